package message

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Subject names where a message belongs: tokens joined by dots, `<namespace>.<entity>.<kind>[.<name>…]`.
//
// Every legal MQTT topic name is exactly one subject and back. A level of the topic is a token of the subject; what a
// token cannot hold (dot, space, percent, asterisk, greater-than, control characters) is written as a percent sign
// and two upper-case hexadecimal digits per byte, and an empty level is a lone percent sign:
//
//	device/d-17/telemetry   device.d-17.telemetry
//	/a//b.c/                %.a.%.b%2Ec.%
type Subject string

// Pattern selects subjects: `*` stands for one token, `>` as the last token for one or more. A wildcard in the first
// place does not match a first token that begins with `$` (MQTT 5 §4.7.2).
type Pattern string

// The namespaces are the author's, exactly.
const (
	Device          = "device"
	ServicePlatform = "service_platform"
	DataPlatform    = "data_platform"
	ThirdParty      = "3rd_party"
	Operator        = "operator"
)

// Namespaces lists the five, in the order of the picture.
func Namespaces() []string {
	return []string{Device, ServicePlatform, DataPlatform, ThirdParty, Operator}
}

// Namespace is the first token, if it is one of the five; else it is Device: what comes from outside under a name of
// its own is something a device said.
func (s Subject) Namespace() string {
	first, _, _ := strings.Cut(string(s), ".")
	switch first {
	case ServicePlatform, DataPlatform, ThirdParty, Operator:
		return first
	}
	return Device
}

// Token is the nth token, counted from 0, unescaped; empty when there is none.
func (s Subject) Token(n int) string {
	rest := string(s)
	for ; n > 0; n-- {
		var ok bool
		if _, rest, ok = strings.Cut(rest, "."); !ok {
			return ""
		}
	}
	token, _, _ := strings.Cut(rest, ".")
	return unescape(token)
}

// Valid says what is wrong with the subject; nil when nothing is.
func (s Subject) Valid() error {
	if at, what := check(string(s), false); what != "" {
		return fmt.Errorf("subject %q: %s at byte %d", short(string(s)), what, at)
	}
	return nil
}

// Valid says what is wrong with the pattern; nil when nothing is.
func (p Pattern) Valid() error {
	if at, what := check(string(p), true); what != "" {
		return fmt.Errorf("pattern %q: %s at byte %d", short(string(p)), what, at)
	}
	return nil
}

// Literal says whether the pattern has no wildcard and so is the subject it matches.
func (p Pattern) Literal() bool { return !strings.ContainsAny(string(p), "*>") }

// Matches says whether the pattern selects the subject. Both must be valid.
//
// Each reader asks it of each message, so it goes over the bytes once and cuts nothing: a wildcard is always a whole token.
func (p Pattern) Matches(s Subject) bool {
	if len(s) > 0 && s[0] == '$' && len(p) > 0 && (p[0] == '*' || p[0] == '>') {
		return false
	}
	at := 0 // in s
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case c == '>':
			return true
		case c == '*':
			for at < len(s) && s[at] != '.' {
				at++
			}
		case at == len(s) || s[at] != c:
			return false
		default:
			at++
		}
	}
	return at == len(s)
}

// Covers says whether every subject that q selects is selected by p as well.
func (p Pattern) Covers(q Pattern) bool {
	pat, sub := string(p), string(q)
	if strings.HasPrefix(sub, "$") && (strings.HasPrefix(pat, "*") || strings.HasPrefix(pat, ">")) {
		return false
	}
	for {
		pt, pr, pmore := strings.Cut(pat, ".")
		if pt == ">" {
			return true
		}
		st, sr, smore := strings.Cut(sub, ".")
		if st == ">" || st == "*" && pt != "*" || pt != "*" && pt != st || pmore != smore {
			return false
		}
		if !pmore {
			return true
		}
		pat, sub = pr, sr
	}
}

// FromTopic is the subject of an MQTT topic name. It fails on what MQTT 5 §4.7 forbids in a topic name: wildcards,
// NUL, malformed UTF-8, nothing at all.
func FromTopic(topic string) (Subject, error) {
	switch {
	case topic == "":
		return "", fmt.Errorf("topic name is empty")
	case !utf8.ValidString(topic):
		return "", fmt.Errorf("topic name %q is not UTF-8", short(topic))
	case strings.ContainsAny(topic, "+#\x00"):
		return "", fmt.Errorf("topic name %q has a wildcard or NUL", short(topic))
	}
	if plainTopic(topic) { // the usual case: nothing to escape
		return Subject(strings.ReplaceAll(topic, "/", ".")), nil
	}
	return Subject(fromLevels(topic)), nil
}

// Topic is the MQTT topic name of a valid subject.
func (s Subject) Topic() string { return toLevels(string(s)) }

// FromFilter gives the patterns that together select what an MQTT topic filter does: one, or two where the filter
// ends in `/#`, which also matches its parent level (MQTT 5 §4.7.1.2).
func FromFilter(filter string) ([]Pattern, error) {
	if filter == "" || !utf8.ValidString(filter) || strings.ContainsRune(filter, 0) {
		return nil, fmt.Errorf("topic filter %q is empty or malformed", short(filter))
	}
	levels := strings.Split(filter, "/")
	for i, l := range levels {
		if strings.Contains(l, "#") && (l != "#" || i != len(levels)-1) {
			return nil, fmt.Errorf("topic filter %q: # must be the last level and alone in it", short(filter))
		}
		if strings.Contains(l, "+") && l != "+" {
			return nil, fmt.Errorf("topic filter %q: + must be alone in its level", short(filter))
		}
		switch l {
		case "#":
			levels[i] = ">"
		case "+":
			levels[i] = "*"
		default:
			levels[i] = escape(l)
		}
	}
	all := Pattern(strings.Join(levels, "."))
	if n := len(levels); n > 1 && levels[n-1] == ">" {
		return []Pattern{Pattern(strings.Join(levels[:n-1], ".")), all}, nil
	}
	return []Pattern{all}, nil
}

// Escape makes a text one token of a subject. A text with `/`, `+` or `#` stays illegal, as Valid will say.
func Escape(text string) string { return escape(text) }

// NewSubject joins texts into a subject, each escaped into one token.
func NewSubject(tokens ...string) Subject {
	var room [128]byte
	b := room[:0]
	for i, t := range tokens {
		if i > 0 {
			b = append(b, '.')
		}
		b = appendEscaped(b, t)
	}
	return Subject(b)
}

// check walks the tokens and names the first fault.
func check(s string, wildcards bool) (at int, what string) {
	if s == "" {
		return 0, "nothing there"
	}
	if s == "%" && !wildcards {
		return 0, "one empty level, which is no topic"
	}
	for start := 0; ; {
		end := strings.IndexByte(s[start:], '.')
		last := end < 0
		if last {
			end = len(s) - start
		}
		token := s[start : start+end]
		switch {
		case token == "":
			return start, "an empty token (an empty MQTT level is written %)"
		case wildcards && token == "*", wildcards && last && token == ">":
		default:
			if i, w := checkToken(token); w != "" {
				return start + i, w
			}
		}
		if last {
			return 0, ""
		}
		start += end + 1
	}
}

func checkToken(t string) (at int, what string) {
	if t == "%" {
		return 0, ""
	}
	for i := 0; i < len(t); {
		c := t[i]
		switch {
		case c == '%':
			if i+2 >= len(t) || hexValue(t[i+1]) < 0 || hexValue(t[i+2]) < 0 {
				return i, "a percent sign without two upper-case hexadecimal digits"
			}
			if b := byte(hexValue(t[i+1])<<4 | hexValue(t[i+2])); !mustEscape(b) || b == 0 {
				return i, "an escape of what needs none"
			}
			i += 3
		case c == '*' || c == '>':
			return i, "a wildcard"
		case c == '+' || c == '#' || c == '/':
			return i, "a character of MQTT's own grammar"
		case mustEscape(c):
			return i, fmt.Sprintf("%q, which must be escaped", c)
		case c < utf8.RuneSelf:
			i++
		default:
			r, n := utf8.DecodeRuneInString(t[i:])
			if r == utf8.RuneError && n == 1 {
				return i, "malformed UTF-8"
			}
			i += n
		}
	}
	return 0, ""
}

// mustEscape says which bytes cannot stand in a token as they are.
func mustEscape(c byte) bool {
	return c <= ' ' || c == 0x7f || c == '.' || c == '%' || c == '*' || c == '>'
}

func plainTopic(t string) bool {
	slash := true // an empty level at the start must be escaped
	for i := range len(t) {
		c := t[i]
		if c == '/' {
			if slash {
				return false
			}
			slash = true
			continue
		}
		slash = false
		if mustEscape(c) {
			return false
		}
	}
	return !slash
}

func fromLevels(topic string) string {
	levels := strings.Split(topic, "/")
	for i, l := range levels {
		levels[i] = escape(l)
	}
	return strings.Join(levels, ".")
}

func toLevels(subject string) string {
	if !strings.Contains(subject, "%") {
		return strings.ReplaceAll(subject, ".", "/")
	}
	tokens := strings.Split(subject, ".")
	for i, t := range tokens {
		tokens[i] = unescape(t)
	}
	return strings.Join(tokens, "/")
}

const hexDigits = "0123456789ABCDEF"

// escape leaves the three characters of MQTT's grammar alone: no legal topic holds them, and a subject that was built
// from other text shows them to Valid.
func escape(level string) string {
	var room [64]byte
	return string(appendEscaped(room[:0], level))
}

func appendEscaped(b []byte, level string) []byte {
	if level == "" {
		return append(b, '%')
	}
	from := 0
	for i := range len(level) {
		if c := level[i]; mustEscape(c) {
			b = append(append(b, level[from:i]...), '%', hexDigits[c>>4], hexDigits[c&15])
			from = i + 1
		}
	}
	return append(b, level[from:]...)
}

func unescape(token string) string {
	if token == "%" {
		return ""
	}
	if !strings.Contains(token, "%") {
		return token
	}
	var b strings.Builder
	for i := 0; i < len(token); i++ {
		if token[i] == '%' && i+2 < len(token) {
			b.WriteByte(byte(hexValue(token[i+1])<<4 | hexValue(token[i+2])))
			i += 2
			continue
		}
		b.WriteByte(token[i])
	}
	return b.String()
}

func hexValue(c byte) int { return strings.IndexByte(hexDigits, c) }

func short(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
