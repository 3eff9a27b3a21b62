package schema

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// The limits of a document, beside its size: each keeps the work for a byte of it small.
const (
	depthMax    = 256  // objects and arrays within each other; the validator goes down with them
	digitsMax   = 1000 // of a number, which is computed exactly
	exponentMax = 400  // of ten; binary64 ends at 308
)

// decode reads one JSON text (RFC 8259) into what the validator knows. encoding/json would take a name twice and text
// that is not UTF-8, and leaves numbers of any exponent to be computed.
func decode(data []byte) (any, error) {
	d := decoder{s: string(data)} // all texts in the document share it
	d.space()
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	d.space()
	if d.at < len(d.s) {
		return nil, d.fail("something behind the end")
	}
	return v, nil
}

type decoder struct {
	s  string
	at int
}

func (d *decoder) fail(what string) error {
	if d.at >= len(d.s) {
		return fmt.Errorf("not JSON at byte %d: it ends there", d.at)
	}
	return fmt.Errorf("not JSON at byte %d: %s", d.at, what)
}

func (d *decoder) space() {
	for d.at < len(d.s) {
		switch d.s[d.at] {
		case ' ', '\t', '\n', '\r':
			d.at++
		default:
			return
		}
	}
}

// next is the byte at hand, or 0 at the end.
func (d *decoder) next() byte {
	if d.at < len(d.s) {
		return d.s[d.at]
	}
	return 0
}

func (d *decoder) value(depth int) (any, error) {
	if depth > depthMax {
		return nil, d.fail(fmt.Sprintf("more than %d levels within each other", depthMax))
	}
	switch c := d.next(); {
	case c == '{':
		return d.object(depth)
	case c == '[':
		return d.array(depth)
	case c == '"':
		return d.text()
	case c == '-' || digit(c):
		n, err := d.number()
		if err != nil {
			return nil, err
		}
		return json.Number(n), nil
	}
	switch {
	case d.word("true"):
		return true, nil
	case d.word("false"):
		return false, nil
	case d.word("null"):
		return nil, nil
	}
	return nil, d.fail("no value begins so")
}

func (d *decoder) word(w string) bool {
	if !strings.HasPrefix(d.s[d.at:], w) {
		return false
	}
	d.at += len(w)
	return true
}

func (d *decoder) object(depth int) (any, error) {
	m := map[string]any{}
	d.at++
	d.space()
	if d.next() == '}' {
		d.at++
		return m, nil
	}
	for {
		if d.next() != '"' {
			return nil, d.fail(`a name in double quotes is wanted`)
		}
		began := d.at
		name, err := d.text()
		if err != nil {
			return nil, err
		}
		if _, twice := m[name]; twice {
			d.at = began
			return nil, d.fail("the name " + quote(name) + " for the second time")
		}
		d.space()
		if d.next() != ':' {
			return nil, d.fail("a colon is wanted")
		}
		d.at++
		d.space()
		if m[name], err = d.value(depth + 1); err != nil {
			return nil, err
		}
		d.space()
		switch d.next() {
		case ',':
			d.at++
			d.space()
		case '}':
			d.at++
			return m, nil
		default:
			return nil, d.fail("a comma or } is wanted")
		}
	}
}

func (d *decoder) array(depth int) (any, error) {
	list := []any{}
	d.at++
	d.space()
	if d.next() == ']' {
		d.at++
		return list, nil
	}
	for {
		v, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
		d.space()
		switch d.next() {
		case ',':
			d.at++
			d.space()
		case ']':
			d.at++
			return list, nil
		default:
			return nil, d.fail("a comma or ] is wanted")
		}
	}
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// number takes a number as it is written (RFC 8259 §6), within the limits.
func (d *decoder) number() (string, error) {
	began := d.at
	digits := func() bool {
		from := d.at
		for digit(d.next()) {
			d.at++
		}
		return d.at > from
	}
	if d.next() == '-' {
		d.at++
	}
	if d.next() == '0' {
		d.at++ // and nothing more before the point
	} else if !digits() {
		return "", d.fail("a digit is wanted")
	}
	if d.next() == '.' {
		d.at++
		if !digits() {
			return "", d.fail("a digit is wanted")
		}
	}
	long := d.at-began > digitsMax
	if c := d.next(); c == 'e' || c == 'E' {
		d.at++
		from := d.at
		if c := d.next(); c == '+' || c == '-' {
			d.at++
		}
		if !digits() {
			return "", d.fail("a digit is wanted")
		}
		n, err := strconv.Atoi(d.s[from:d.at])
		long = long || err != nil || n > exponentMax || n < -exponentMax
	}
	if long {
		n := d.s[began:d.at]
		return "", fmt.Errorf("the number at byte %d is too large or too long: got %s, want up to %d digits and exponents up to %d",
			began, clip(n, valueMax), digitsMax, exponentMax)
	}
	return d.s[began:d.at], nil
}

// text takes a text in quotes. One without escapes is a part of the document.
func (d *decoder) text() (string, error) {
	d.at++
	from := d.at
	for d.at < len(d.s) {
		c := d.s[d.at]
		switch {
		case c == '"':
			d.at++
			return d.s[from : d.at-1], nil
		case c == '\\':
			return d.escaped(from)
		case c >= ' ' && c < utf8.RuneSelf:
			d.at++
		default:
			if err := d.rune(); err != nil {
				return "", err
			}
		}
	}
	return "", d.fail("")
}

// rune passes over one character of a text.
func (d *decoder) rune() error {
	c := d.s[d.at]
	if c < ' ' {
		return d.fail("a control character in a text")
	}
	if c < utf8.RuneSelf {
		d.at++
		return nil
	}
	r, n := utf8.DecodeRuneInString(d.s[d.at:])
	if r == utf8.RuneError && n == 1 {
		return d.fail("malformed UTF-8")
	}
	d.at += n
	return nil
}

// escaped goes on with a text at its first escape.
func (d *decoder) escaped(from int) (string, error) {
	b := []byte(d.s[from:d.at])
	for d.at < len(d.s) {
		c := d.s[d.at]
		if c == '"' {
			d.at++
			return string(b), nil
		}
		if c != '\\' {
			from := d.at
			if err := d.rune(); err != nil {
				return "", err
			}
			b = append(b, d.s[from:d.at]...)
			continue
		}
		d.at++
		c = d.next()
		if i := strings.IndexByte(`"\/bfnrt`, c); i >= 0 && c != 0 {
			b = append(b, "\"\\/\b\f\n\r\t"[i])
			d.at++
			continue
		}
		if c != 'u' {
			return "", d.fail("an escape that does not exist")
		}
		d.at++
		r, err := d.hex4()
		if err != nil {
			return "", err
		}
		if utf16.IsSurrogate(r) {
			r = d.pair(r)
		}
		b = utf8.AppendRune(b, r)
	}
	return "", d.fail("")
}

// pair joins a surrogate with the one behind it; one that is alone stands for no character.
func (d *decoder) pair(high rune) rune {
	if !strings.HasPrefix(d.s[d.at:], `\u`) {
		return utf8.RuneError
	}
	back := d.at
	d.at += 2
	low, err := d.hex4()
	if r := utf16.DecodeRune(high, low); err == nil && r != utf8.RuneError {
		return r
	}
	d.at = back // it speaks for itself
	return utf8.RuneError
}

func (d *decoder) hex4() (rune, error) {
	var r rune
	for range 4 {
		c := d.next()
		switch {
		case digit(c):
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, d.fail("four hexadecimal digits are wanted")
		}
		d.at++
	}
	return r, nil
}
