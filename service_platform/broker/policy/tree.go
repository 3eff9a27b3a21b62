package policy

import (
	"strings"

	"github.com/naru-platform/naru/message"
)

// tree holds the rules of one action by their tokens, so that a decision looks at few of them. It does not change once
// made.
type tree struct {
	words []word
	index map[string]*tree // instead of words, where there are many
	any   *tree            // `*`
	vars  []variableTo
	here  ends // rules that end here
	rest  ends // rules that go on with `>`
}

type word struct {
	text string
	to   *tree
}

type variableTo struct {
	slot int // in a Judge's values; groups for slotGroup
	to   *tree
}

const slotGroup = -1

// ends are the first allowing and the first denying rule that end in a place, numbered from 1; 0 is none.
type ends struct{ allow, deny int32 }

// wordsMax is where a map begins to be quicker than looking at each.
const wordsMax = 8

// add puts a pattern in; slot numbers variables.
func (t *tree) add(p pattern, number int32, allow bool, slot func(name string) int) {
	if len(p) == 0 {
		t.here.add(number, allow)
		return
	}
	if p[0] == (token{text: ">"}) {
		t.rest.add(number, allow)
		return
	}
	t.child(p[0], slot).add(p[1:], number, allow, slot)
}

func (e *ends) add(number int32, allow bool) {
	at := &e.deny
	if allow {
		at = &e.allow
	}
	if *at == 0 {
		*at = number
	}
}

// child gives the place behind a token, and makes it where it is not there.
func (t *tree) child(k token, slot func(name string) int) *tree {
	switch {
	case k.variable:
		n := slot(k.text)
		for _, v := range t.vars {
			if v.slot == n {
				return v.to
			}
		}
		t.vars = append(t.vars, variableTo{n, new(tree)})
		return t.vars[len(t.vars)-1].to
	case k.text == "*":
		if t.any == nil {
			t.any = new(tree)
		}
		return t.any
	}
	if to := t.word(k.text); to != nil {
		return to
	}
	to := new(tree)
	switch {
	case t.index != nil:
		t.index[k.text] = to
	case len(t.words) < wordsMax:
		t.words = append(t.words, word{k.text, to})
	default:
		t.index = map[string]*tree{k.text: to}
		for _, w := range t.words {
			t.index[w.text] = w.to
		}
		t.words = nil
	}
	return to
}

func (t *tree) word(text string) *tree {
	if t.index != nil {
		return t.index[text]
	}
	for i := range t.words {
		if t.words[i].text == text {
			return t.words[i].to
		}
	}
	return nil
}

// walk looks for the rules that cover a subject or filter.
type walk struct {
	values []string
	groups []string
	found  ends
}

// look goes into all places that cover the tokens of s. Since a subject has neither `*` nor `>` (a topic's own are
// escaped), to match it and to cover it are the same. What allows may not be reached by
//   - a wildcard in the first place, where s begins with `$SYS`, `$aws` or `$share`, which are no topics of clients', or
//   - a variable in the first place whose value is a namespace or begins with `$`: a client that calls itself `operator`
//     must not speak as one.
//
// What denies may.
func (w *walk) look(t *tree, s string, first, allows bool) {
	token, rest, more := s, "", false
	if i := strings.IndexByte(s, '.'); i >= 0 {
		token, rest, more = s[:i], s[i+1:], true
	}
	wild, held := allows, allows
	if first && allows {
		wild = !special(token)
		held = len(t.vars) == 0 || !reserved(token)
	}
	w.note(t.rest, wild)
	if token == ">" {
		return
	}
	if t.any != nil {
		w.down(t.any, rest, more, wild)
	}
	if token == "*" {
		return
	}
	if to := t.word(token); to != nil {
		w.down(to, rest, more, allows)
	}
	for i := range t.vars {
		if v := &t.vars[i]; w.stands(v.slot, token) {
			w.down(v.to, rest, more, held)
		}
	}
}

func (w *walk) down(t *tree, rest string, more, allows bool) {
	if more {
		w.look(t, rest, false, allows)
	} else {
		w.note(t.here, allows)
	}
}

// note keeps the first rules.
func (w *walk) note(e ends, allows bool) {
	if e.deny != 0 && (w.found.deny == 0 || e.deny < w.found.deny) {
		w.found.deny = e.deny
	}
	if allows && e.allow != 0 && (w.found.allow == 0 || e.allow < w.found.allow) {
		w.found.allow = e.allow
	}
}

// stands says whether a variable has the value.
func (w *walk) stands(slot int, token string) bool {
	if slot != slotGroup {
		return w.values[slot] == token && token != ""
	}
	for _, g := range w.groups {
		if g == token && g != "" {
			return true
		}
	}
	return false
}

// special says that a first token has a meaning to brokers: who may touch it must be said by name. Any other one that
// begins with `$` is a topic as others, but for what MQTT filters see of it.
func special(token string) bool { return token == "$SYS" || token == "$aws" || token == "$share" }

// reserved says that a first token is not for a client to choose by its own name.
func reserved(token string) bool {
	switch token {
	case message.Device, message.ServicePlatform, message.DataPlatform, message.ThirdParty, message.Operator:
		return true
	}
	return strings.HasPrefix(token, "$")
}
