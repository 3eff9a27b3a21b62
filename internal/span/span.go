// Package span says where the parts of a JSON text end, for who reads only some of it. The text is known to be valid; places
// are indexes of its bytes.
package span

// Space gives the first place from i on that is no white space; the text's length where there is none.
func Space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// String gives the place behind the string that begins at i.
func String[T []byte | string](b T, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// Value gives the place behind the value that begins at i.
func Value[T []byte | string](b T, i int) int {
	switch b[i] {
	case '"':
		return String(b, i)
	case '{', '[':
		for depth := 0; ; {
			switch b[i] {
			case '"':
				i = String(b, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
	}
	for i < len(b) && !ends(b[i]) {
		i++
	}
	return i
}

// ends says whether c ends a number or a word.
func ends(c byte) bool {
	switch c {
	case ',', '}', ']', ' ', '\n', '\t', '\r':
		return true
	}
	return false
}
