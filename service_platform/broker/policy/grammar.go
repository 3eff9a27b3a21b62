package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/naru-platform/naru/message"
)

// token is a place of a rule: a word, `*`, `>` last, or a variable.
type token struct {
	text     string
	variable bool // text is its name
}

func (t token) String() string {
	if t.variable {
		return "${" + t.text + "}"
	}
	return t.text
}

// pattern is what a rule selects, or one of several.
type pattern []token

func (p pattern) String() string {
	texts := make([]string, len(p))
	for i, t := range p {
		texts[i] = t.String()
	}
	return strings.Join(texts, ".")
}

// parse reads a rule. An MQTT filter that ends in `/#` gives two patterns (MQTT 5 §4.7.1.2), and so may one below $aws.
func parse(text string) ([]pattern, error) {
	switch {
	case text == "":
		return nil, errors.New("nothing there; write a subject such as device.${device}.telemetry, or take the entry out")
	case len(text) > textMax:
		return nil, fmt.Errorf("it has %d bytes; %d is the most", len(text), textMax)
	case strings.HasPrefix(text, "$share/"), strings.HasPrefix(text, "$share."):
		return nil, errors.New("policies do not know share groups: `$share/<group>/` is taken off before they are asked; write what comes behind it")
	}
	separator, mqtt, err := spelling(text)
	if err != nil {
		return nil, err
	}
	tokens, err := split(text, separator)
	if err != nil {
		return nil, err
	}
	if len(tokens) > depthMax {
		return nil, fmt.Errorf("it has %d tokens; %d is the most", len(tokens), depthMax)
	}
	patterns := []pattern{tokens}
	if mqtt {
		if patterns, err = fromMQTT(tokens); err != nil {
			return nil, err
		}
	}
	for _, p := range patterns {
		if err := p.check(); err != nil {
			return nil, err
		}
	}
	for _, p := range slices.Clone(patterns) {
		if twin := p.awsTwin(); twin != nil {
			patterns = append(patterns, twin)
		}
	}
	return patterns, nil
}

// spelling tells MQTT's from naru's, and refuses a mixture, which would be a rule for something that nobody says.
func spelling(text string) (separator byte, mqtt bool, err error) {
	outside := withoutVariables(text)
	slash := strings.Contains(outside, "/")
	mqtt = slash || text == "+" || text == "#"
	if mqtt && strings.ContainsAny(outside, "*>") || !mqtt && strings.ContainsAny(outside, "+#") {
		return 0, false, errors.New("it mixes two spellings; write either device.*.telemetry.> or device/+/telemetry/#")
	}
	if mqtt {
		return '/', true, nil
	}
	return '.', false, nil
}

func withoutVariables(text string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "${")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, text, found = strings.Cut(rest, "}")
		if !found {
			return b.String()
		}
	}
}

// split cuts at separators outside of variables.
func split(text string, separator byte) (list []token, err error) {
	for {
		if inner, ok := strings.CutPrefix(text, "${"); ok {
			name, rest, closed := strings.Cut(inner, "}")
			switch {
			case !closed:
				return nil, fmt.Errorf("%q has no closing brace", text)
			case rest != "" && rest[0] != separator:
				return nil, partial(text[:len(text)-len(rest)])
			}
			if err := variable(name); err != nil {
				return nil, err
			}
			list = append(list, token{name, true})
			if rest == "" {
				return list, nil
			}
			text = rest[1:]
			continue
		}
		word, rest, more := strings.Cut(text, string(separator))
		if before, _, found := strings.Cut(word, "${"); found {
			name, _, _ := strings.Cut(text[len(before):], "}")
			return nil, partial(name + "}")
		}
		if ours := foreign[word]; ours != "" && word[0] == '%' {
			return nil, fmt.Errorf("%s is another broker's; write ${%s}", word, ours)
		}
		list = append(list, token{text: word})
		if !more {
			return list, nil
		}
		text = rest
	}
}

func partial(name string) error {
	return fmt.Errorf("%s is part of a token, and a variable has to be all of it: write it between separators, or keep the whole in an attribute", name)
}

// fromMQTT reads levels as message.FromFilter does.
func fromMQTT(levels []token) ([]pattern, error) {
	texts := make([]string, len(levels))
	for i, l := range levels {
		switch {
		case l.variable:
			texts[i] = "v"
		case strings.Contains(l.text, "#") && (l.text != "#" || i != len(levels)-1):
			return nil, errors.New("# must be the last level and alone in it; for one level write +")
		case strings.Contains(l.text, "+") && l.text != "+":
			return nil, errors.New("+ must be alone in its level")
		default:
			texts[i] = l.text
		}
	}
	selected, err := message.FromFilter(strings.Join(texts, "/"))
	if err != nil {
		return nil, err
	}
	var patterns []pattern
	for _, s := range selected {
		var p pattern
		for i, text := range strings.Split(string(s), ".") {
			if levels[i].variable {
				p = append(p, levels[i])
			} else {
				p = append(p, token{text: text})
			}
		}
		patterns = append(patterns, p)
	}
	return patterns, nil
}

// check is Valid of message.Pattern, with what to do.
func (p pattern) check() error {
	plain := make([]string, len(p))
	for i, t := range p {
		switch {
		case t.variable:
			plain[i] = "v"
			continue
		case t.text == ">" && i < len(p)-1:
			return errors.New("> must be the last token; for one token in the middle write *")
		case strings.ContainsAny(t.text, "*>") && len(t.text) > 1:
			return fmt.Errorf("%q: a wildcard stands for a whole token; write * for it, or %%2A and %%3E for the characters themselves", t.text)
		}
		plain[i] = t.text
	}
	return message.Pattern(strings.Join(plain, ".")).Valid()
}

// covers says whether p selects all that q does, whoever comes: a variable is covered by itself and by wildcards.
func (p pattern) covers(q pattern) bool {
	if len(q) > 0 && special(q[0].String()) && !p[0].variable && (p[0].text == "*" || p[0].text == ">") {
		return false
	}
	for i, t := range p {
		switch {
		case i >= len(q):
			return false
		case t.text == ">" && !t.variable:
			return true
		case !q[i].variable && q[i].text == ">":
			return false
		case t != q[i] && (t.variable || t.text != "*"):
			return false
		}
	}
	return len(p) == len(q)
}

// overlaps says whether some subject is selected by both, for some client at least.
func (p pattern) overlaps(q pattern) bool {
	for i := 0; ; i++ {
		switch {
		case i == len(p) || i == len(q):
			return len(p) == len(q)
		case p[i].text == ">" || q[i].text == ">":
			return true
		case p[i] != q[i] && p[i].text != "*" && q[i].text != "*" && !p[i].variable && !q[i].variable:
			return false
		}
	}
}
