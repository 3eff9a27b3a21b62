// Package span says where the parts of a JSON text end, and what its strings say, for who reads only some of it. The text is known to be
// valid; places are indexes of its bytes.
package span

import (
	"unicode/utf16"
	"unicode/utf8"
)

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

// Unquote appends what a string says to b; quoted is the string with its quotes. Half a surrogate pair says U+FFFD.
func Unquote[T []byte | string](b []byte, quoted T) []byte {
	s := quoted[1 : len(quoted)-1]
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		i++
		switch s[i] {
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'u':
			r := hex4(s, i+1)
			i += 4
			if utf16.IsSurrogate(r) && i+6 < len(s) && s[i+1] == '\\' && s[i+2] == 'u' {
				if both := utf16.DecodeRune(r, hex4(s, i+3)); both != utf8.RuneError {
					r = both
					i += 6
				}
			}
			b = utf8.AppendRune(b, r) // of half a pair U+FFFD
		default:
			b = append(b, s[i])
		}
	}
	return b
}

// hex4 is the number that the four digits from i on are.
func hex4[T []byte | string](s T, i int) (r rune) {
	for _, c := range []byte(s[i : i+4]) {
		switch {
		case c >= 'a':
			c -= 'a' - 10
		case c >= 'A':
			c -= 'A' - 10
		default:
			c -= '0'
		}
		r = r<<4 | rune(c)
	}
	return r
}
