package sql

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // zones must not depend on what is installed where naru runs
	"unicode/utf8"
)

// Functions over times. parse_time has the patterns of Joda-Time's DateTimeFormat, time_to_epoch those of Java's
// java.time.format.DateTimeFormatter; names of months and days are English.
var timeFunctions = []function{
	{name: "parse_time", min: 2, max: 3, call: formatTime, prepare: preparePattern(0, jodaLetters)},
	{name: "time_to_epoch", min: 2, max: 2, call: timeToEpoch, prepare: preparePattern(1, javaLetters)},
}

const (
	jodaLetters = "GCYxweEyDMdaKhHkmsSzZ"
	javaLetters = "GuyDMLdEaKhHkmsSAnVzOXxZ"
)

// field is one part of a pattern: a letter and how often it stands there, a literal text, or an optional part.
type field struct {
	letter   byte // 0: literal or optional
	count    int
	text     string
	optional []field
}

// readPattern reads a pattern's letters; other letters are a fault, other signs stand for themselves.
func readPattern(s, letters string) ([]field, error) {
	if len(s) > 256 {
		return nil, fmt.Errorf("a pattern has at most 256 bytes")
	}
	stack := [][]field{nil}
	add := func(f field) { top := len(stack) - 1; stack[top] = append(stack[top], f) }
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
			n := i + 1
			for n < len(s) && s[n] == c {
				n++
			}
			if strings.IndexByte(letters, c) < 0 {
				return nil, fmt.Errorf("the letter %q means nothing in a pattern; put words in single quotes", c)
			}
			add(field{letter: c, count: n - i})
			i = n
		case c == '\'':
			text, n := quotedText(s[i:])
			if n == 0 {
				return nil, fmt.Errorf("a single quote is not closed")
			}
			add(field{text: text})
			i += n
		case letters == javaLetters && c == '[':
			if stack = append(stack, nil); len(stack) > 8 {
				return nil, fmt.Errorf("optional parts are nested too deep")
			}
			i++
		case letters == javaLetters && c == ']':
			top := len(stack) - 1
			if top == 0 {
				return nil, fmt.Errorf("] without [")
			}
			inner := stack[top]
			stack = stack[:top]
			add(field{optional: inner})
			i++
		default:
			_, n := utf8.DecodeRuneInString(s[i:])
			add(field{text: s[i : i+n]})
			i += n
		}
	}
	if len(stack) > 1 {
		return nil, fmt.Errorf("[ without ]")
	}
	return stack[0], nil
}

// quotedText reads a text between single quotes, in which two quotes are one; two alone are a quote. n is 0 where it does not end.
func quotedText(s string) (text string, n int) {
	if strings.HasPrefix(s, "''") {
		return "'", 2
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '\'' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 == len(s) || s[i+1] != '\'' {
			return b.String(), i + 1
		}
		b.WriteByte('\'')
		i++
	}
	return "", 0
}

// preparePattern reads a literal pattern with the statement, and refuses a wrong one there.
func preparePattern(arg int, letters string) func(*parser, *call) {
	return func(p *parser, c *call) {
		l, ok := c.args[arg].(*literal)
		if !ok || l.v.kind != String {
			return
		}
		fields, err := readPattern(string(l.v.b), letters)
		if err != nil {
			p.failAt(l.from, "a pattern of date and time", "the string "+cut(string(l.v.b)), err.Error())
		}
		c.prepared = fields
	}
}

func (e *env) pattern(c *call, v value, letters string) ([]field, bool) {
	if fields, ok := c.prepared.([]field); ok {
		return fields, true
	}
	b, ok := e.toText(v)
	if !ok {
		return nil, false
	}
	fields, err := readPattern(string(b), letters)
	return fields, err == nil
}

// zoneBytes is what finding a time zone costs, as bytes looked at: it is read from its file.
const zoneBytes = 64 * stepBytes

// zone finds a time zone by its name or offset.
func zone(name string) (*time.Location, bool) {
	switch name {
	case "":
		return nil, false
	case "UTC", "GMT", "UT", "Z":
		return time.UTC, true
	}
	offset := name
	for _, prefix := range [...]string{"UTC", "GMT", "UT"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			offset = rest
			break
		}
	}
	if offset != "" && (offset[0] == '+' || offset[0] == '-') {
		seconds, n := readOffset(offset)
		if n != len(offset) {
			return nil, false
		}
		return time.FixedZone(name, seconds), true
	}
	if full, ok := shortZones[name]; ok {
		name = full
	}
	if name == "Local" {
		return nil, false
	}
	l, err := time.LoadLocation(name)
	return l, err == nil
}

// shortZones are the abbreviations that Java reads as regions.
var shortZones = map[string]string{
	"PST": "America/Los_Angeles", "PDT": "America/Los_Angeles", "MST": "America/Denver", "MDT": "America/Denver",
	"CST": "America/Chicago", "CDT": "America/Chicago", "EST": "America/New_York", "EDT": "America/New_York",
	"BST": "Europe/London", "CET": "Europe/Paris", "CEST": "Europe/Paris", "EET": "Europe/Athens", "EEST": "Europe/Athens",
	"MSK": "Europe/Moscow", "IST": "Asia/Kolkata", "JST": "Asia/Tokyo", "KST": "Asia/Seoul",
	"AEST": "Australia/Sydney", "AEDT": "Australia/Sydney", "NZST": "Pacific/Auckland", "NZDT": "Pacific/Auckland",
}

// readOffset reads +h, +hh, +hhmm, +hh:mm and the same with seconds; n is how many bytes it took, 0 for another form.
func readOffset(s string) (seconds, n int) {
	if s == "" || s[0] != '+' && s[0] != '-' {
		return 0, 0
	}
	two := func(at int) int {
		if at+2 <= len(s) && isDigit(s[at]) && isDigit(s[at+1]) {
			return int(s[at]-'0')*10 + int(s[at+1]-'0')
		}
		return -1
	}
	h := two(1)
	if n = 3; h < 0 {
		if len(s) < 2 || !isDigit(s[1]) {
			return 0, 0
		}
		h, n = int(s[1]-'0'), 2
	}
	seconds = h * 3600
	for _, unit := range [...]int{60, 1} {
		at := n
		if at < len(s) && s[at] == ':' {
			at++
		}
		v := two(at)
		if v < 0 || v > 59 {
			break
		}
		seconds += v * unit
		n = at + 2
	}
	if seconds > 18*3600 {
		return 0, 0
	}
	if s[0] == '-' {
		seconds = -seconds
	}
	return seconds, n
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
