package shadow

import (
	"strings"

	"github.com/naru-platform/naru/internal/same"
	"github.com/naru-platform/naru/internal/span"
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
			i = span.String(text, i) - 1
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

// alike says whether two canonical texts are the same JSON value.
func alike(a, b string) bool {
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
			end, other := span.String(a, i), 0
			if b[j] == '"' {
				other = span.String(b, j)
			}
			if a[i:end] != b[j:max(j, other)] {
				return false
			}
			i, j = end, other
		case c == '-' || digit(c):
			if b[j] != '-' && !digit(b[j]) {
				return false
			}
			n, m := span.Value(a, i), span.Value(b, j)
			if !same.Numbers(a[i:n], b[j:m]) {
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
