package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/naru-platform/naru/internal/near"
	"github.com/naru-platform/naru/message"
)

// Set is all policies in force, compiled. It does not change; any number of goroutines may ask it.
type Set struct {
	policies []compiled // by name
	at       map[string]int

	mu     sync.Mutex
	shared map[string]*rules // by the policies that are in them
}

// compiled is one policy.
type compiled struct {
	name  string
	of    *For
	ids   []clientID
	rules []*Rule
}

// Rule is an entry of a policy's list.
type Rule struct {
	Policy string `json:"policy"`
	// List is where it stands in the policy: publish.allow, publish.deny, subscribe.allow or subscribe.deny, and Entry
	// its place there, from 0.
	List  string `json:"list"`
	Entry int    `json:"entry"`
	// Text is the entry as it was written.
	Text string `json:"text"`

	patterns []pattern
	action   Action // Publish or Subscribe
	allow    bool
}

// String names the place and the text: `policy device: publish.allow[3] device.${device}.telemetry`.
func (r *Rule) String() string {
	return fmt.Sprintf("policy %s: %s[%d] %s", r.Policy, r.List, r.Entry, r.Text)
}

// Selects lists the patterns of the rule in naru's grammar, variables in their places.
func (r *Rule) Selects() []string {
	texts := make([]string, len(r.patterns))
	for i, p := range r.patterns {
		texts[i] = p.String()
	}
	return texts
}

// Compile makes a Set of the built-in policies (see Builtin) and those of the configuration. Errors name the policy, the
// place in it and what to write instead; all of them are told at once. listeners are the names that a policy may name;
// nil takes any.
func Compile(configured map[string]Policy, listeners []string, c *message.Catalog) (*Set, error) {
	all := Builtin(c)
	var faults []error
	fault := func(name string, err error) { faults = append(faults, fmt.Errorf("policy %q: %w", name, err)) }
	for name := range configured {
		if _, there := all[name]; there {
			fault(name, errors.New("this name is a built-in policy's; give yours another one, and name that at the listener"))
		}
	}
	maps.Copy(all, configured)
	if len(all) > policiesMax {
		return nil, fmt.Errorf("there are %d policies; %d is the most: let variables and groups tell clients apart", len(all), policiesMax)
	}
	s := &Set{at: map[string]int{}, shared: map[string]*rules{}}
	total := 0
	for _, name := range slices.Sorted(maps.Keys(all)) {
		p, err := compile(name, all[name], listeners)
		if err != nil {
			fault(name, err)
			continue
		}
		s.at[name] = len(s.policies)
		s.policies = append(s.policies, p)
		total += len(p.rules) + len(p.ids)
	}
	if total > rulesMax {
		faults = append(faults, fmt.Errorf("the policies have %d entries together; %d is the most: let variables and wildcards tell subjects apart", total, rulesMax))
	}
	if len(faults) > 0 {
		slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return nil, errors.Join(faults...)
	}
	return s, nil
}

// Names lists the policies.
func (s *Set) Names() []string { return slices.Sorted(maps.Keys(s.at)) }

func compile(name string, p Policy, listeners []string) (c compiled, err error) {
	c.name = name
	if name == "" || len(name) > nameMax || strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) {
		return c, fmt.Errorf("a name has 1 to %d letters, digits, - and _", nameMax)
	}
	if p.Publish.IsZero() && p.Subscribe.IsZero() && p.ClientIDs == nil {
		return c, errors.New("it says nothing; give it publish or subscribe, each with allow or deny, or client_ids")
	}
	if p.ClientIDs != nil && len(p.ClientIDs) == 0 {
		return c, errors.New("client_ids is an empty list, which says nothing; leave it out, or name some (* is every one)")
	}
	for i, text := range p.ClientIDs {
		id, err := parseClientID(text)
		if err != nil {
			return c, fmt.Errorf("client_ids[%d] %q: %w", i, shorten(text), err)
		}
		c.ids = append(c.ids, id)
	}
	if c.of = p.For; c.of != nil {
		if err := c.of.check(listeners); err != nil {
			return c, err
		}
	}
	for _, of := range []struct {
		action Action
		rules  Rules
	}{{Publish, p.Publish}, {Subscribe, p.Subscribe}} {
		denied, err := list(name, of.action, false, of.rules.Deny)
		if err != nil {
			return c, err
		}
		allowed, err := list(name, of.action, true, of.rules.Allow)
		if err != nil {
			return c, err
		}
		if err := idle(allowed, denied); err != nil {
			return c, err
		}
		c.rules = append(append(c.rules, allowed...), denied...)
	}
	return c, nil
}

func plain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

// list compiles one list.
func list(policy string, a Action, allow bool, texts []string) (rules []*Rule, err error) {
	where := string(a) + ".deny"
	if allow {
		where = string(a) + ".allow"
	}
	if texts != nil && len(texts) == 0 {
		return nil, fmt.Errorf("%s is an empty list, which says nothing; leave it out, or name subjects (> is every one)", where)
	}
	seen := map[string]int{}
	for i, text := range texts {
		r := &Rule{Policy: policy, List: where, Entry: i, Text: text, action: a, allow: allow}
		if r.patterns, err = parse(text); err != nil {
			return nil, fmt.Errorf("%s[%d] %q: %w", where, i, shorten(text), err)
		}
		key := strings.Join(r.Selects(), " ")
		if j, twice := seen[key]; twice {
			return nil, fmt.Errorf("%s[%d] %q: the same as %s[%d]; take one out", where, i, text, where, j)
		}
		seen[key] = i
		rules = append(rules, r)
	}
	return rules, nil
}

// idle finds what is allowed and can never be, since the same policy denies it whoever comes.
func idle(allowed, denied []*Rule) error {
	for _, a := range allowed {
		for _, d := range denied {
			if !slices.ContainsFunc(a.patterns, func(p pattern) bool {
				return !slices.ContainsFunc(d.patterns, func(q pattern) bool { return q.covers(p) })
			}) {
				return fmt.Errorf("%s[%d] %q can never hold, since %s[%d] %q denies all of it; take one of them out", a.List, a.Entry, a.Text, d.List, d.Entry, d.Text)
			}
		}
	}
	return nil
}

func shorten(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

func (f *For) check(listeners []string) error {
	given := 0
	for _, l := range []struct {
		name    string
		entries []string
	}{{"listeners", f.Listeners}, {"groups", f.Groups}, {"users", f.Users}} {
		if l.entries == nil {
			continue
		}
		given++
		if len(l.entries) == 0 {
			return fmt.Errorf("for.%s is an empty list, which nobody is in; leave it out, or name some", l.name)
		}
		if i := slices.Index(l.entries, ""); i >= 0 {
			return fmt.Errorf("for.%s[%d] is empty; name one, or take it out", l.name, i)
		}
	}
	switch {
	case f.All && given > 0:
		return errors.New("for.all is everybody, and beside it lists are named; take one of them out")
	case !f.All && given == 0:
		return errors.New("for selects nobody; write `for: {all: true}` for everybody, or listeners, groups or users; without for, the policy applies where it is named")
	case listeners == nil:
		return nil
	}
	for i, l := range f.Listeners {
		if slices.Contains(listeners, l) {
			continue
		}
		if meant := near.Word(l, listeners); meant != "" {
			return fmt.Errorf("for.listeners[%d]: there is no listener %q; did you mean %q?", i, l, meant)
		}
		return fmt.Errorf("for.listeners[%d]: there is no listener %q; there are %s", i, l, strings.Join(listeners, ", "))
	}
	return nil
}
