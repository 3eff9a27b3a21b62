package sql

import (
	"bytes"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
)

// Regular expressions are those of RE2 (package regexp): their time is linear in the text, and there are no
// look-arounds and no back references in patterns. A literal pattern is compiled with the statement, and refused if wrong.
var regexpFunctions = []function{
	{name: "regexp_matches", min: 2, max: 2, prepare: prepareRegexp, call: func(e *env, c *call, a []value) value {
		s, r := matchOperands(e, c, a)
		if r == nil {
			return undefined
		}
		return boolean(r.Match(s))
	}},
	{name: "regexp_substr", min: 2, max: 2, prepare: prepareRegexp, call: func(e *env, c *call, a []value) value {
		s, r := matchOperands(e, c, a)
		if r == nil {
			return undefined
		}
		at := r.FindIndex(s)
		if at == nil {
			return undefined
		}
		return textBytes(s[at[0]:at[1]])
	}},
	{name: "regexp_replace", min: 3, max: 3, prepare: prepareRegexp, call: regexpReplace},
}

const (
	patternMax   = 4096          // bytes of a pattern
	statesMax    = 8192          // of a pattern with its repetitions written out
	allStatesMax = 8 * statesMax // of the patterns of a statement: a state takes some 100 bytes
	stateBytes   = 64            // what making a state costs, as bytes looked at
)

// compiled is a pattern, with how many states it has: as many are looked at for each byte, at worst.
type compiled struct {
	*regexp.Regexp
	states int
}

func prepareRegexp(p *parser, c *call) {
	l, ok := c.args[1].(*literal)
	if !ok || l.v.kind != String {
		return
	}
	r, err := compileRegexp(l.v.b, nil)
	if err != nil {
		p.failAt(l.from, "a regular expression of RE2", "the string "+cut(string(l.v.b)), err.Error())
	}
	if p.states += r.states; p.states > allStatesMax {
		p.failAt(l.from, fmt.Sprintf("patterns of at most %d states together", allStatesMax), "more", "use regexp_matches in several rules")
	}
	c.prepared = r
}

// compileRegexp reads a pattern; e counts what that takes, where a message has it.
func compileRegexp(pattern []byte, e *env) (*compiled, error) {
	if len(pattern) > patternMax {
		return nil, fmt.Errorf("a pattern has at most %d bytes", patternMax)
	}
	tree, err := syntax.Parse(string(pattern), syntax.Perl)
	if err != nil {
		return nil, err
	}
	n := states(tree)
	if n > statesMax {
		return nil, fmt.Errorf("a pattern has at most %d states with its repetitions written out; this has more", statesMax)
	}
	if e != nil {
		if e.work(n * stateBytes); e.err != nil {
			return nil, e.err
		}
	}
	r, err := regexp.Compile(string(pattern))
	if err != nil {
		return nil, err
	}
	return &compiled{r, n}, nil
}

// states is about how many a pattern has once it is compiled.
func states(r *syntax.Regexp) int {
	n := 1
	switch r.Op {
	case syntax.OpLiteral:
		n = len(r.Rune)
	case syntax.OpCapture:
		n = 2
	}
	for _, sub := range r.Sub {
		n = min(n+states(sub), statesMax+1)
	}
	if r.Op == syntax.OpRepeat {
		n = min(n*max(r.Min, r.Max, 1), statesMax+1)
	}
	return n
}

// matchOperands gives the text and the pattern; no pattern means Undefined.
func matchOperands(e *env, c *call, a []value) ([]byte, *compiled) {
	s, ok := e.toText(a[0])
	if !ok {
		return nil, nil
	}
	r, ok := c.prepared.(*compiled)
	if !ok {
		pattern, ok := e.toText(a[1])
		if !ok {
			return nil, nil
		}
		var err error
		if r, err = compileRegexp(pattern, e); err != nil {
			return nil, nil
		}
	}
	if e.work(len(s) * (4 + r.states/2)); e.err != nil {
		return nil, nil
	}
	return s, r
}

func regexpReplace(e *env, c *call, a []value) value {
	s, r := matchOperands(e, c, a)
	by, ok := e.toText(a[2])
	if r == nil || !ok {
		return undefined
	}
	parts, ok := replacement(by, r.Regexp)
	if !ok {
		return undefined
	}
	var out []byte
	from := 0
	for _, at := range r.FindAllSubmatchIndex(s, -1) {
		out = append(out, s[from:at[0]]...)
		for _, p := range parts {
			if p.group < 0 {
				out = append(out, p.text...)
			} else if at[2*p.group] >= 0 {
				out = append(out, s[at[2*p.group]:at[2*p.group+1]]...)
			}
		}
		if from = at[1]; len(out) > outputMax {
			break
		}
	}
	return e.limited(append(out, s[from:]...))
}

// part of a replacement: a text, or what a group has matched.
type part struct {
	group int // -1: text
	text  []byte
}

// replacement reads $1, ${name} and backslashes as Java does; it is false for a group that the pattern has not.
func replacement(by []byte, r *regexp.Regexp) (parts []part, ok bool) {
	add := func(c byte) {
		if n := len(parts); n == 0 || parts[n-1].group >= 0 {
			parts = append(parts, part{group: -1})
		}
		parts[len(parts)-1].text = append(parts[len(parts)-1].text, c)
	}
	for i := 0; i < len(by); i++ {
		switch c := by[i]; {
		case c == '\\':
			if i++; i == len(by) {
				return nil, false
			}
			add(by[i])
		case c != '$':
			add(c)
		case i+1 < len(by) && by[i+1] == '{':
			end := bytes.IndexByte(by[i:], '}')
			if end < 0 {
				return nil, false
			}
			group := r.SubexpIndex(string(by[i+2 : i+end]))
			if group < 0 {
				return nil, false
			}
			parts = append(parts, part{group: group})
			i += end
		default:
			// The first digit names a group in any case; further ones only as long as there is such a group.
			end := i + 1
			for end < len(by) && by[end] >= '0' && by[end] <= '9' {
				if n, _ := strconv.Atoi(string(by[i+1 : end+1])); end > i+1 && n > r.NumSubexp() {
					break
				}
				end++
			}
			group, err := strconv.Atoi(string(by[i+1 : end]))
			if err != nil || group > r.NumSubexp() {
				return nil, false
			}
			parts = append(parts, part{group: group})
			i = end - 1
		}
	}
	return parts, true
}
