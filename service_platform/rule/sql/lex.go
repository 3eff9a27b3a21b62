package sql

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

type tokenKind uint8

const (
	tokenEnd tokenKind = iota
	tokenName
	tokenVariable // @name
	tokenNumber
	tokenString
	tokenSign // an operator or a bracket
)

type token struct {
	place
	kind tokenKind
	text string // a name, a sign, a number; a string's content
}

// is compares a sign, or a word in any case.
func (t token) is(word string) bool {
	return t.kind == tokenSign && t.text == word || t.kind == tokenName && strings.EqualFold(t.text, word)
}

func (t token) String() string {
	switch t.kind {
	case tokenEnd:
		return "the end"
	case tokenString:
		return "the string " + cut(t.text)
	case tokenVariable:
		return "@" + cut(t.text)
	}
	return fmt.Sprintf("%q", cut(t.text))
}

// cut keeps an error's text short whatever the statement holds.
func cut(text string) string {
	const most = 40
	if len(text) <= most {
		return text
	}
	n := most
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "…"
}

// lexer cuts a statement into tokens. Backslashes in strings stand for themselves (regular expressions have many); a
// doubled quote stands for one quote.
type lexer struct {
	text string
	at   int
}

func (l *lexer) next() (token, *Error) {
	for l.at < len(l.text) {
		switch l.text[l.at] {
		case ' ', '\t', '\n', '\r', '\f':
			l.at++
			continue
		}
		break
	}
	from := l.at
	if from == len(l.text) {
		return token{kind: tokenEnd, place: place{from, from}}, nil
	}
	c := l.text[from]
	switch {
	case c == '\'' || c == '"':
		return l.quoted(c)
	case c >= '0' && c <= '9' || c == '.' && from+1 < len(l.text) && l.text[from+1] >= '0' && l.text[from+1] <= '9':
		return l.number()
	case c == '@':
		l.at++
		name := l.name()
		if name == "" {
			return token{}, fault(l.text, from, "a variable's name after @", l.rest(from+1), "")
		}
		if len(name) > variableNameMax {
			return token{}, fault(l.text, from, fmt.Sprintf("a variable's name of at most %d characters", variableNameMax), fmt.Sprint(len(name)), "")
		}
		return token{kind: tokenVariable, text: name, place: place{from, l.at}}, nil
	}
	if name := l.name(); name != "" {
		return token{kind: tokenName, text: name, place: place{from, l.at}}, nil
	}
	for _, sign := range [...]string{"<>", "<=", ">=", "!=", "--", "/*", "(", ")", "[", "]", "{", "}", ",", ".", ":", "=", "<", ">", "+", "-", "*", "/", "%"} {
		if !strings.HasPrefix(l.text[from:], sign) {
			continue
		}
		if sign == "/*" || sign == "--" && !strings.HasPrefix(l.text[from+2:], "-") && l.comment(from) {
			return token{}, fault(l.text, from, "an expression", "a comment", "the dialect has no comments; say it in the rule's description")
		}
		if sign == "--" {
			sign = "-"
		}
		l.at += len(sign)
		return token{kind: tokenSign, text: sign, place: place{from, l.at}}, nil
	}
	return token{}, fault(l.text, from, "a name, a number, a string or an operator", l.rest(from), l.hint(from))
}

// comment tells -- that begins a comment (a blank or a letter follows) from two signs of a number (5--3).
func (l *lexer) comment(at int) bool {
	after := at + 2
	return after == len(l.text) || !(l.text[after] >= '0' && l.text[after] <= '9' || l.text[after] == '(' || l.text[after] == '@')
}

func (l *lexer) hint(at int) string {
	switch l.text[at] {
	case '`':
		return "names are not quoted; for a name that is no word use get(*, 'the name')"
	case ';':
		return "a rule is one statement, without a semicolon"
	case '|':
		return "join strings with + or concat()"
	case '!':
		return "use NOT or <>"
	}
	if r, _ := utf8.DecodeRuneInString(l.text[at:]); unicode.Is(unicode.Pd, r) {
		return "this dash is no minus; type -"
	}
	return ""
}

func (l *lexer) rest(at int) string {
	if at >= len(l.text) {
		return "the end"
	}
	r, n := utf8.DecodeRuneInString(l.text[at:])
	if r == utf8.RuneError && n == 1 {
		return fmt.Sprintf("the byte 0x%02x", l.text[at])
	}
	return fmt.Sprintf("%q", r)
}

func (l *lexer) quoted(quote byte) (token, *Error) {
	from := l.at
	var b strings.Builder
	for i := from + 1; i < len(l.text); i++ {
		if l.text[i] != quote {
			b.WriteByte(l.text[i])
			continue
		}
		if i+1 < len(l.text) && l.text[i+1] == quote {
			b.WriteByte(quote)
			i++
			continue
		}
		l.at = i + 1
		return token{kind: tokenString, text: b.String(), place: place{from, l.at}}, nil
	}
	return token{}, fault(l.text, from, fmt.Sprintf("a closing %c", quote), "the end", "")
}

func (l *lexer) number() (token, *Error) {
	from := l.at
	digits := func() {
		for l.at < len(l.text) && l.text[l.at] >= '0' && l.text[l.at] <= '9' {
			l.at++
		}
	}
	digits()
	if l.at+1 < len(l.text) && l.text[l.at] == '.' && l.text[l.at+1] >= '0' && l.text[l.at+1] <= '9' {
		l.at++
		digits()
	}
	if rest := l.text[l.at:]; len(rest) > 1 && (rest[0] == 'e' || rest[0] == 'E') {
		after := 1
		if rest[1] == '+' || rest[1] == '-' {
			after = 2
		}
		if after < len(rest) && rest[after] >= '0' && rest[after] <= '9' {
			l.at += after
			digits()
		}
	}
	end := l.at
	if l.name() != "" {
		return token{}, fault(l.text, from, "a number", fmt.Sprintf("%q", cut(l.text[from:l.at])),
			"a name that begins with a digit is read with get(*, 'the name')")
	}
	return token{kind: tokenNumber, text: l.text[from:end], place: place{from, end}}, nil
}

func (l *lexer) name() string {
	from := l.at
	for l.at < len(l.text) {
		r, n := utf8.DecodeRuneInString(l.text[l.at:])
		if r != '_' && !unicode.IsLetter(r) && (l.at == from || !unicode.IsDigit(r)) {
			break
		}
		l.at += n
	}
	return l.text[from:l.at]
}
