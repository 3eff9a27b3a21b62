package shadow

import (
	"errors"
	"slices"
	"strings"

	"github.com/naru-platform/naru/internal/span"
)

// The faults of a text. There is one error for all of them in the protocol.
var (
	errJSON = errors.New("not JSON")
	errDeep = errors.New("too many levels")
)

// levelsMax keeps the parser's stack small; what a document may have is far below.
const levelsMax = 64

// parser reads JSON (RFC 8259), in UTF-8 as its caller has made sure, into nodes: names sorted and unique, values as
// canonical text. What it gives aliases the text wherever it can.
type parser struct {
	s     string
	at    int
	stack []node // fields of the objects that are open
	room  []node // to take fields of closed objects from
	buf   []byte // the array that is open
}

// parse reads one JSON text.
func parse(s string) (node, error) {
	p := parser{s: s}
	p.space()
	n, err := p.node(0)
	if err != nil {
		return node{}, err
	}
	p.space()
	if p.at < len(s) {
		return node{}, errJSON
	}
	return n, nil
}

func (p *parser) space() {
	for p.at < len(p.s) {
		switch p.s[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

func (p *parser) next() byte {
	if p.at < len(p.s) {
		return p.s[p.at]
	}
	return 0
}

func (p *parser) take(c byte) bool {
	if p.next() != c {
		return false
	}
	p.at++
	return true
}

// node reads a value where its name is not known yet.
func (p *parser) node(level int) (node, error) {
	switch p.next() {
	case '{':
		return p.object(level + 1)
	case '[':
		p.buf = p.buf[:0]
		if err := p.array(level + 1); err != nil {
			return node{}, err
		}
		return node{text: string(p.buf)}, nil
	}
	text, err := p.scalar()
	return node{text: text}, err
}

func (p *parser) object(level int) (node, error) {
	if level > levelsMax {
		return node{}, errDeep
	}
	began := len(p.stack)
	defer func() { p.stack = p.stack[:began] }()
	p.at++
	for p.space(); !p.take('}'); p.space() {
		if len(p.stack) > began {
			if !p.take(',') {
				return node{}, errJSON
			}
			p.space()
		}
		key, err := p.name()
		if err != nil {
			return node{}, err
		}
		n, err := p.node(level)
		if err != nil {
			return node{}, err
		}
		n.key = key
		p.stack = append(p.stack, n)
	}
	fields := sorted(p.stack[began:])
	if len(fields) == 0 {
		return node{text: emptyObject}, nil
	}
	return node{fields: p.keep(fields)}, nil
}

// name reads a name and its colon.
func (p *parser) name() (string, error) {
	key, plain, err := p.quoted()
	if err != nil {
		return "", err
	}
	if !plain {
		key = string(span.Unquote(nil, key))
	} else {
		key = key[1 : len(key)-1]
	}
	p.space()
	if !p.take(':') {
		return "", errJSON
	}
	p.space()
	return key, nil
}

// keep copies the fields of a closed object off the stack.
func (p *parser) keep(fields []node) []node {
	if cap(p.room)-len(p.room) < len(fields) {
		p.room = make([]node, 0, max(8, 2*cap(p.room), len(fields)))
	}
	from := len(p.room)
	p.room = append(p.room, fields...)
	return p.room[from:len(p.room):len(p.room)]
}

// sorted sorts fields by name in place, and keeps the last of each name.
func sorted(fields []node) []node {
	ordered := true
	for i := 1; i < len(fields) && ordered; i++ {
		ordered = fields[i-1].key < fields[i].key
	}
	if ordered {
		return fields
	}
	slices.SortStableFunc(fields, func(a, b node) int { return compare(a.key, b.key) })
	kept := fields[:0]
	for i := range fields {
		if i+1 < len(fields) && fields[i+1].key == fields[i].key {
			continue
		}
		kept = append(kept, fields[i])
	}
	return kept
}

// array writes an array's canonical text behind buf.
func (p *parser) array(level int) error {
	if level > levelsMax {
		return errDeep
	}
	p.at++
	p.buf = append(p.buf, '[')
	first := true
	for p.space(); !p.take(']'); p.space() {
		if !first {
			if !p.take(',') {
				return errJSON
			}
			p.buf = append(p.buf, ',')
			p.space()
		}
		first = false
		if err := p.inner(level); err != nil {
			return err
		}
	}
	p.buf = append(p.buf, ']')
	return nil
}

// inner writes the canonical text of a value within an array.
func (p *parser) inner(level int) error {
	switch p.next() {
	case '[':
		return p.array(level + 1)
	case '{':
		// Objects within arrays are rare: their texts are taken off the buffer, sorted, and put back.
		began := len(p.buf)
		var fields []node
		if level+1 > levelsMax {
			return errDeep
		}
		p.at++
		for p.space(); !p.take('}'); p.space() {
			if len(fields) > 0 {
				if !p.take(',') {
					return errJSON
				}
				p.space()
			}
			key, err := p.name()
			if err != nil {
				return err
			}
			if err := p.inner(level + 1); err != nil {
				return err
			}
			fields = append(fields, node{key: key, text: string(p.buf[began:])})
			p.buf = p.buf[:began]
		}
		p.buf = appendObject(p.buf, sorted(fields))
		return nil
	}
	text, err := p.scalar()
	p.buf = append(p.buf, text...)
	return err
}

// scalar reads a string, a number or a word, as canonical text.
func (p *parser) scalar() (string, error) {
	switch c := p.next(); {
	case c == '"':
		text, plain, err := p.quoted()
		if err == nil && !plain {
			text = string(appendQuoted(nil, string(span.Unquote(nil, text))))
		}
		return text, err
	case c == '-' || digit(c):
		return p.number()
	}
	for _, w := range [...]string{"true", "false", null} {
		if strings.HasPrefix(p.s[p.at:], w) {
			p.at += len(w)
			return w, nil
		}
	}
	return "", errJSON
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// number reads a number of RFC 8259 §6.
func (p *parser) number() (string, error) {
	began := p.at
	p.take('-')
	if !p.take('0') && !p.digits() {
		return "", errJSON
	}
	if p.take('.') && !p.digits() {
		return "", errJSON
	}
	if p.take('e') || p.take('E') {
		if !p.take('+') {
			p.take('-')
		}
		if !p.digits() {
			return "", errJSON
		}
	}
	return p.s[began:p.at], nil
}

func (p *parser) digits() bool {
	began := p.at
	for digit(p.next()) {
		p.at++
	}
	return p.at > began
}

// quoted reads a string with its quotes, as it is written; plain says that nothing in it is escaped, so that the text is
// canonical.
func (p *parser) quoted() (text string, plain bool, err error) {
	if p.next() != '"' {
		return "", false, errJSON
	}
	began := p.at
	plain = true
	for p.at++; p.at < len(p.s); p.at++ {
		switch c := p.s[p.at]; {
		case c == '"':
			p.at++
			return p.s[began:p.at], plain, nil
		case c < ' ':
			return "", false, errJSON
		case c == '\\':
			plain = false
			if p.at++; p.at == len(p.s) {
				return "", false, errJSON
			}
			switch p.s[p.at] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if p.at+4 >= len(p.s) || hex4(p.s[p.at+1:]) < 0 {
					return "", false, errJSON
				}
				p.at += 4
			default:
				return "", false, errJSON
			}
		}
	}
	return "", false, errJSON
}

func hex4(s string) rune {
	var r rune
	for i := range 4 {
		c := s[i]
		switch {
		case digit(c):
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// AppendText writes a text as a JSON string.
func AppendText(b []byte, s string) []byte {
	return appendQuoted(b, strings.ToValidUTF8(s, "\uFFFD"))
}

// appendQuoted writes a string as JSON: only what must be escaped is.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, `\b`...)
		case '\f':
			b = append(b, `\f`...)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			const digits = "0123456789abcdef"
			b = append(b, `\u00`...)
			b = append(b, digits[c>>4], digits[c&15])
		}
	}
	return append(append(b, s[from:]...), '"')
}
