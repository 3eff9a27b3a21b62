package shadow

import (
	"math"
	"strconv"
	"strings"
)

// appendNode writes a node as JSON.
func appendNode(b []byte, n *node) []byte {
	if n.value() {
		return append(b, n.text...)
	}
	return appendObject(b, n.fields)
}

func appendObject(b []byte, fields []node) []byte {
	b = append(b, '{')
	for i := range fields {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendQuoted(b, fields[i].key), ':')
		b = appendNode(b, &fields[i])
	}
	return append(b, '}')
}

// size is how many bytes appendObject writes.
func size(fields []node) int {
	n := 2 + max(0, len(fields)-1)
	for i := range fields {
		f := &fields[i]
		n += len(f.key) + 3 + len(f.text)
		for j := range len(f.key) {
			switch c := f.key[j]; {
			case c == '"' || c == '\\' || c == '\b' || c == '\f' || c == '\n' || c == '\r' || c == '\t':
				n++
			case c < ' ':
				n += 5
			}
		}
		if !f.value() {
			n += size(f.fields)
		}
	}
	return n
}

// stateSize is how many bytes the state has.
func (d *Doc) stateSize() int {
	n := 2
	if len(d.desired) > 0 {
		n += len(`"desired":`) + size(d.desired)
	}
	if len(d.reported) > 0 {
		n += len(`"reported":`) + size(d.reported)
	}
	if len(d.desired) > 0 && len(d.reported) > 0 {
		n++
	}
	return n
}

// fault finds what the protocol refuses in a section: too many levels, or a null in an array, and then the name of the
// field that has it.
func fault(fields []node, level, depth int) (deep bool, nulled string) {
	for i := range fields {
		f := &fields[i]
		switch {
		case !f.value():
			if level+1 > depth {
				return true, ""
			}
			deep, nulled = fault(f.fields, level+1, depth)
		case f.text == emptyObject:
			deep = level+1 > depth
		case f.array():
			levels, has := arrayFault(f.text)
			if deep = level+levels > depth; has {
				nulled = f.key
			}
		}
		if deep || nulled != "" {
			return deep, nulled
		}
	}
	return false, ""
}

// arrayFault counts an array's levels, and looks for nulls in it.
func arrayFault(text string) (levels int, nulled bool) {
	for i, open := 0, 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			i = stringEnd(text, i) - 1
		case '[', '{':
			open++
			levels = max(levels, open)
		case ']', '}':
			open--
		case 'n':
			nulled = true
			i += len(null) - 1
		}
	}
	return levels, nulled
}

// stringEnd is the place behind the string that begins at i.
func stringEnd(text string, i int) int {
	for i++; text[i] != '"'; i++ {
		if text[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// same says whether two canonical texts are the same JSON value.
func same(a, b string) bool {
	if a == b {
		return true
	}
	if !strings.ContainsAny(a, "0123456789") {
		return false // without numbers there is one text for a value
	}
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		switch c := a[i]; {
		case c == '"':
			end, other := stringEnd(a, i), 0
			if b[j] == '"' {
				other = stringEnd(b, j)
			}
			if a[i:end] != b[j:max(j, other)] {
				return false
			}
			i, j = end, other
		case c == '-' || digit(c):
			n, m := numberEnd(a, i), numberEnd(b, j)
			if !sameNumber(a[i:n], b[j:m]) {
				return false
			}
			i, j = n, m
		case c != b[j]:
			return false
		default:
			i, j = i+1, j+1
		}
	}
	return i == len(a) && j == len(b)
}

func numberEnd(s string, i int) int {
	for i < len(s) && (digit(s[i]) || strings.IndexByte("+-.eE", s[i]) >= 0) {
		i++
	}
	return i
}

// sameNumber compares two numbers of RFC 8259 exactly. Empty texts are no numbers. An exponent beyond 2^62 is compared
// as it is written.
func sameNumber(a, b string) bool {
	if a == b {
		return true
	}
	if a == "" || b == "" {
		return false
	}
	x, xok := decimal(a)
	y, yok := decimal(b)
	return xok && yok && x == y
}

// number is a decimal: digits without zeros at either end, times ten to a power. Zero has no digits and no sign.
type number struct {
	negative bool
	digits   string
	power    int64
}

func decimal(s string) (number, bool) {
	var n number
	s, n.negative = strings.CutPrefix(s, "-")
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		e, err := strconv.ParseInt(strings.TrimPrefix(s[i+1:], "+"), 10, 64)
		if err != nil || e > math.MaxInt64/2 || e < math.MinInt64/2 {
			return n, false
		}
		n.power, s = e, s[:i]
	}
	whole, fraction, _ := strings.Cut(s, ".")
	n.power -= int64(len(fraction))
	if n.digits = whole; fraction != "" {
		n.digits += fraction
	}
	n.digits = strings.TrimLeft(n.digits, "0")
	all := len(n.digits)
	n.digits = strings.TrimRight(n.digits, "0")
	n.power += int64(all - len(n.digits))
	if n.digits == "" {
		return number{}, true
	}
	return n, true
}
