package message

import (
	"encoding/binary"
	"iter"
)

// Properties are a publisher's own name-value pairs in the order given, names repeated as often as given, kept in the
// form they are stored in: for each a length-prefixed name and a length-prefixed value. Nil has none.
type Properties []byte

// Add appends a pair.
func (p Properties) Add(name, value string) Properties {
	p = binary.AppendUvarint(p, uint64(len(name)))
	p = append(p, name...)
	p = binary.AppendUvarint(p, uint64(len(value)))
	return append(p, value...)
}

// All gives the pairs in order. The strings alias p.
func (p Properties) All() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for rest := []byte(p); len(rest) > 0; {
			name, r, ok := prefixed(rest)
			if !ok {
				return
			}
			value, r, ok := prefixed(r)
			if !ok || !yield(alias(name), alias(value)) {
				return
			}
			rest = r
		}
	}
}

// Get is the value of the first pair of that name.
func (p Properties) Get(name string) (value string, ok bool) {
	for n, v := range p.All() {
		if n == name {
			return v, true
		}
	}
	return "", false
}

// wellFormed says whether the block is whole pairs, nothing more and nothing less.
func (p Properties) wellFormed() bool {
	for rest := []byte(p); len(rest) > 0; {
		var ok bool
		if _, rest, ok = prefixed(rest); !ok {
			return false
		}
		if _, rest, ok = prefixed(rest); !ok {
			return false
		}
	}
	return true
}

// prefixed takes a length-prefixed field off the front of b.
func prefixed(b []byte) (field, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, false
	}
	return b[w : w+int(n)], b[w+int(n):], true
}
