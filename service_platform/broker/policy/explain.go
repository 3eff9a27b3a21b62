package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/naru-platform/naru/message"
)

// Explanation is a decision with all that was looked at on the way.
type Explanation struct {
	Action  Action `json:"action"`
	Subject string `json:"subject"` // or the pattern of the filter that decided
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason"`
	// Policies are all there are, those that do not apply among them.
	Policies []PolicySeen `json:"policies"`
	// Rules are those of the policies that apply, for the action. The one that decided is marked.
	Rules []RuleSeen `json:"rules"`
}

// PolicySeen says whether a policy applies to the client, and why.
type PolicySeen struct {
	Name    string `json:"name"`
	Applies bool   `json:"applies"`
	Why     string `json:"why"`
}

// RuleSeen says whether a rule holds for the subject, and why not.
type RuleSeen struct {
	*Rule
	Holds   bool   `json:"holds"`
	Why     string `json:"why,omitempty"` // it does not hold
	Decided bool   `json:"decided,omitempty"`
}

// Explain decides as the client's Judge does, looking at each rule by itself. what is the subject, or for Subscribe the
// patterns of a filter. It is for people: a thousand times slower.
func (s *Set) Explain(id Identity, a Action, what ...message.Pattern) (Explanation, error) {
	switch {
	case a != Publish && a != Subscribe && a != Deliver:
		return Explanation{}, fmt.Errorf("action %q; there are %s, %s and %s", a, Publish, Subscribe, Deliver)
	case len(what) == 0 || a != Subscribe && len(what) > 1:
		return Explanation{}, fmt.Errorf("to explain %s, one subject is wanted; there are %d", a, len(what))
	}
	for _, p := range what {
		if err := p.Valid(); err != nil {
			return Explanation{}, err
		}
		if a != Subscribe && !p.Literal() {
			return Explanation{}, fmt.Errorf("%s is asked of one subject, and %s is a pattern", a, p)
		}
	}
	which, err := s.applying(&id)
	if err != nil {
		return Explanation{}, err
	}
	e := Explanation{Action: a}
	for i, p := range s.policies {
		e.Policies = append(e.Policies, p.seen(&id, slices.Contains(which, i)))
	}
	for i, p := range what {
		if i+1 < len(what) && parentOf(p, what[i+1]) {
			continue
		}
		s.explain(&e, &id, which, p)
		if !e.Allowed {
			break
		}
	}
	return e, nil
}

func (s *Set) explain(e *Explanation, id *Identity, which []int, what message.Pattern) {
	e.Subject, e.Rules = string(what), nil
	action := e.Action
	if action == Deliver {
		action = Subscribe
	}
	allow, deny := -1, -1
	for _, i := range which {
		for _, r := range s.policies[i].rules {
			if r.action != action {
				continue
			}
			seen := r.seen(id, string(what))
			switch at := len(e.Rules); {
			case seen.Holds && r.allow && allow < 0:
				allow = at
			case seen.Holds && !r.allow && deny < 0:
				deny = at
			}
			e.Rules = append(e.Rules, seen)
		}
	}
	d := Decision{Allowed: deny < 0 && allow >= 0}
	switch {
	case deny >= 0:
		e.Rules[deny].Decided, d.Rule = true, e.Rules[deny].Rule
	case allow >= 0:
		e.Rules[allow].Decided, d.Rule = true, e.Rules[allow].Rule
	}
	e.Allowed, e.Reason = d.Allowed, d.Reason()
}

func (p *compiled) seen(id *Identity, applies bool) PolicySeen {
	seen := PolicySeen{Name: p.name, Applies: applies}
	switch f := p.of; {
	case slices.Contains(id.Policies, p.name):
		seen.Why = "it is named for this client"
	case f == nil:
		seen.Why = "it is not named for this client, and is for nobody by itself"
	case applies && f.All:
		seen.Why = "it is for all"
	case applies:
		seen.Why = "it is for" + f.String()
	default:
		seen.Why = "it is for" + f.String() + ", and this client is" + (&For{Listeners: []string{id.Listener}, Groups: slices.Concat([]string{}, id.Groups), Users: []string{id.Username}}).only(f)
	}
	return seen
}

// String gives the lists that are there, each with a space in front.
func (f *For) String() string { return f.only(f) }

// only does so for the lists that another has.
func (f *For) only(other *For) string {
	var b strings.Builder
	for _, l := range []struct {
		name           string
		ours, relevant []string
	}{{"listeners", f.Listeners, other.Listeners}, {"groups", f.Groups, other.Groups}, {"users", f.Users, other.Users}} {
		if l.relevant != nil {
			fmt.Fprintf(&b, " %s %q", l.name, l.ours)
		}
	}
	return b.String()
}

func (r *Rule) seen(id *Identity, subject string) RuleSeen {
	seen := RuleSeen{Rule: r}
	for _, p := range r.patterns {
		why := p.missed(id, strings.Split(subject, "."), r.allow)
		if why == "" {
			return RuleSeen{Rule: r, Holds: true}
		}
		if seen.Why == "" {
			seen.Why = why
		}
	}
	return seen
}

// missed says why a pattern does not cover the tokens, as walk.look has it; empty where it does.
func (p pattern) missed(id *Identity, tokens []string, allow bool) string {
	for i, t := range p {
		if i == len(tokens) {
			return "the subject ends before " + p[i:].String()
		}
		switch got := tokens[i]; {
		case !t.variable && (t.text == "*" || t.text == ">") && i == 0 && allow && special(got):
			return "a wildcard in the first place does not allow " + got
		case !t.variable && t.text == ">":
			return ""
		case got == ">":
			return fmt.Sprintf("the filter selects all that follows, the rule only %s", p[i:])
		case !t.variable && t.text == "*":
		case got == "*":
			return fmt.Sprintf("the filter selects any token in place %d, the rule only %s", i+1, t)
		case t.variable:
			if why := id.stands(t.text, got); why != "" {
				return why
			}
			if i == 0 && allow && reserved(got) {
				return fmt.Sprintf("%s is %s here, which in the first place is no name for a client", t, got)
			}
		case t.text != got:
			return fmt.Sprintf("place %d is %s, the rule has %s", i+1, got, t)
		}
	}
	if len(tokens) > len(p) {
		return "the subject goes on with " + strings.Join(tokens[len(p):], ".")
	}
	return ""
}

// stands says why a variable does not stand for a token; empty where it does.
func (id *Identity) stands(variable, got string) string {
	values := id.Groups
	if variable != varGroup {
		values = []string{id.value(variable)}
	}
	var known []string
	for _, v := range values {
		switch token := fill(v); token {
		case got:
			return ""
		case "":
			if v != "" {
				return fmt.Sprintf("${%s} is %q, which no topic can have as a level", variable, v)
			}
		default:
			known = append(known, token)
		}
	}
	if len(known) == 0 {
		return fmt.Sprintf("this client has no ${%s}", variable)
	}
	return fmt.Sprintf("${%s} is %s, not %s", variable, strings.Join(known, " or "), got)
}

// String is for a terminal: the decision, the policies, the rules.
func (e Explanation) String() string {
	var b strings.Builder
	verdict := "refused"
	if e.Allowed {
		verdict = "allowed"
	}
	fmt.Fprintf(&b, "%s %s: %s, %s\n", e.Action, e.Subject, verdict, e.Reason)
	for _, p := range e.Policies {
		mark := " "
		if p.Applies {
			mark = "+"
		}
		fmt.Fprintf(&b, "%s policy %s: %s\n", mark, p.Name, p.Why)
	}
	for _, r := range e.Rules {
		mark, why := " ", r.Why
		switch {
		case r.Decided:
			mark, why = ">", "holds, and decides"
		case r.Holds:
			mark, why = "+", "holds"
		}
		fmt.Fprintf(&b, "%s %s: %s\n", mark, r.Rule, why)
	}
	return b.String()
}
