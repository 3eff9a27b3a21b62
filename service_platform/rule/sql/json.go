package sql

import (
	"bytes"
	"unicode/utf8"

	"github.com/naru-platform/naru/internal/span"
)

// jsonDepthMax bounds how deep a payload may nest: reading it uses stack.
const jsonDepthMax = 512

// checker reads bytes that nobody has checked, once, and notes where the wanted top-level members are.
type checker struct {
	b    []byte
	i    int
	want [][]byte // names of top-level members
	at   [][]byte // their values; the last of equal names
}

// check says whether all of b is one JSON text (RFC 8259) in UTF-8 of bearable depth; where it is not, i is the place.
func (s *checker) check() bool {
	if !utf8.Valid(s.b) {
		for s.i < len(s.b) {
			r, n := utf8.DecodeRune(s.b[s.i:])
			if r == utf8.RuneError && n == 1 {
				return false
			}
			s.i += n
		}
	}
	s.space()
	if !s.value(0) {
		return false
	}
	s.space()
	return s.i == len(s.b)
}

func (s *checker) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\n', '\t', '\r':
			s.i++
		default:
			return
		}
	}
}

func (s *checker) value(depth int) bool {
	if s.i >= len(s.b) || depth > jsonDepthMax {
		return false
	}
	switch c := s.b[s.i]; c {
	case '{':
		return s.object(depth)
	case '[':
		return s.array(depth)
	case '"':
		return s.string()
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	default:
		return s.number()
	}
}

func (s *checker) object(depth int) bool {
	s.i++
	s.space()
	if s.is('}') {
		return true
	}
	for {
		from := s.i
		if !s.string() {
			return false
		}
		key := s.b[from:s.i]
		s.space()
		if !s.is(':') {
			return false
		}
		s.space()
		from = s.i
		if !s.value(depth + 1) {
			return false
		}
		if depth == 0 {
			for n, w := range s.want {
				if keyIs(key, w) {
					s.at[n] = s.b[from:s.i]
				}
			}
		}
		s.space()
		if s.is('}') {
			return true
		}
		if !s.is(',') {
			return false
		}
		s.space()
	}
}

func (s *checker) array(depth int) bool {
	s.i++
	s.space()
	if s.is(']') {
		return true
	}
	for {
		if !s.value(depth + 1) {
			return false
		}
		s.space()
		if s.is(']') {
			return true
		}
		if !s.is(',') {
			return false
		}
		s.space()
	}
}

func (s *checker) is(c byte) bool {
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

func (s *checker) word(w string) bool {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		return false
	}
	s.i += len(w)
	return true
}

func (s *checker) string() bool {
	if !s.is('"') {
		return false
	}
	for {
		for s.i < len(s.b) && !special[s.b[s.i]] {
			s.i++
		}
		if s.i == len(s.b) || s.b[s.i] < ' ' {
			return false
		}
		s.i++
		if s.b[s.i-1] == '"' {
			return true
		}
		if s.i == len(s.b) {
			return false
		}
		switch s.b[s.i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			for range 4 {
				s.i++
				if s.i == len(s.b) || unhex(s.b[s.i]) < 0 {
					return false
				}
			}
		default:
			return false
		}
		s.i++
	}
}

// special are the bytes that mean something within a string.
var special = func() (t [256]bool) {
	for c := range ' ' {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

func (s *checker) number() bool {
	s.is('-')
	switch {
	case s.is('0'):
	case !s.digits():
		return false
	}
	if s.is('.') && !s.digits() {
		return false
	}
	if s.is('e') || s.is('E') {
		if !s.is('+') {
			s.is('-')
		}
		return s.digits()
	}
	return true
}

func (s *checker) digits() bool {
	from := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > from
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// What follows reads JSON that is known to be valid.

// walk goes through the members of an object or the items of an array. key is a member's name with its quotes.
type walk struct {
	raw      []byte
	i        int
	object   bool
	key, val []byte
}

func walkOver(raw []byte) walk { return walk{raw: raw, i: 1, object: raw[0] == '{'} }

func (w *walk) next() bool {
	i := span.Space(w.raw, w.i)
	if w.raw[i] == ',' {
		i = span.Space(w.raw, i+1)
	}
	if w.raw[i] == '}' || w.raw[i] == ']' {
		return false
	}
	if w.object {
		end := span.String(w.raw, i)
		w.key = w.raw[i:end]
		i = span.Space(w.raw, span.Space(w.raw, end)+1)
	}
	end := span.Value(w.raw, i)
	w.val = w.raw[i:end]
	w.i = end
	return true
}

// find gives the value of an object's member; of equal names, the last. It is nil where there is none.
func find(object, name []byte) (val []byte) {
	for w := walkOver(object); w.next(); {
		if keyIs(w.key, name) {
			val = w.val
		}
	}
	return val
}

func keyIs(quoted, name []byte) bool {
	in := quoted[1 : len(quoted)-1]
	if len(in) == len(name) {
		return bytes.Equal(in, name) && bytes.IndexByte(in, '\\') < 0
	}
	return len(in) > len(name) && bytes.IndexByte(in, '\\') >= 0 && bytes.Equal(unquote(quoted), name)
}

// unquote gives the text of a JSON string; where nothing is escaped it is a part of the same bytes.
func unquote(quoted []byte) []byte {
	in := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(in, '\\') < 0 {
		return in
	}
	return span.Unquote(make([]byte, 0, len(in)), quoted)
}

// appendQuoted writes text as a JSON string. Bytes that are no UTF-8 become U+FFFD.
func appendQuoted(dst, text []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(text); {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRune(text[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(dst, text[from:i]...)
				dst = append(dst, "\uFFFD"...)
				from = i + 1
			}
			i += n
			continue
		}
		dst = append(dst, text[from:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		from = i
	}
	dst = append(dst, text[from:]...)
	return append(dst, '"')
}

// appendCompact copies a JSON value without white space, and whole numbers without a point (10.0 as 10).
func appendCompact(dst, raw []byte) []byte {
	for i := 0; i < len(raw); {
		switch c := raw[i]; {
		case c == '"':
			end := span.String(raw, i)
			dst = append(dst, raw[i:end]...)
			i = end
		case c == ' ' || c == '\n' || c == '\t' || c == '\r':
			i++
		case c == '-' || c >= '0' && c <= '9':
			end := span.Value(raw, i)
			dst = appendNumber(dst, raw[i:end])
			i = end
		default:
			dst = append(dst, c)
			i++
		}
	}
	return dst
}

// appendNumber copies a JSON number as it is spelled, unless it is a whole number spelled with a point or exponent.
func appendNumber(dst, raw []byte) []byte {
	if bytes.ContainsAny(raw, ".eE") {
		if d, ok := parseDecimal(raw, true); ok && d.isInt() {
			return d.append(dst)
		}
	}
	return append(dst, raw...)
}
