package policy

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/naru-platform/naru/message"
)

// Identity is who a client is, as those know who let it in. What is not known stays empty: a rule with a variable that
// has no value selects nothing.
type Identity struct {
	// Device is the device's name: of its certificate, or what the listener takes for it.
	Device string
	// ClientID is MQTT's.
	ClientID string
	// Username is the one that was logged in with; a user name that nobody checked stays out.
	Username string
	// Listener is the name of the listener.
	Listener string
	// Groups and Attributes are the device's registration's.
	Groups     []string
	Attributes map[string]string
	// Policies are named for this client, beside those that select it: by its listener, by its registration.
	Policies []string
}

// rules is what the same policies say, shared by all clients that they apply to.
type rules struct {
	policies   []string
	listed     []*Rule // numbered from 1 in the trees
	ids        []clientID
	publish    tree
	subscribe  tree
	variables  []string // by slot
	withGroups bool
}

// sharedMax is how many combinations of policies are kept. There are as many as listeners and users' groups mix in fact;
// beyond it they are made again as clients come.
const sharedMax = 4096

// Judge decides for one client. It holds the client's names, and shares the rest. It does not change: make another when
// the registration does. Any number of goroutines may ask it.
type Judge struct {
	rules  *rules
	values []string // by slot
	groups []string
	who    string
}

// Judge gives the one for a client. It fails where a policy is named that there is not: what that one denies would be
// allowed.
func (s *Set) Judge(id Identity) (*Judge, error) {
	which, err := s.applying(&id)
	if err != nil {
		return nil, err
	}
	r := s.combine(which)
	j := &Judge{rules: r, who: id.name()}
	if len(r.variables) > 0 {
		j.values = make([]string, len(r.variables))
	}
	for i, v := range r.variables {
		j.values[i] = fill(id.value(v))
	}
	if r.withGroups {
		for _, g := range id.Groups {
			if token := fill(g); token != "" {
				j.groups = append(j.groups, token)
			}
		}
	}
	return j, nil
}

// name is how a refusal calls the client.
func (id *Identity) name() string {
	switch {
	case id.Device != "":
		return id.Device
	case id.Username != "":
		return id.Username
	}
	return id.ClientID
}

func (id *Identity) value(variable string) string {
	switch variable {
	case varDevice:
		return id.Device
	case varClientID:
		return id.ClientID
	case varUsername:
		return id.Username
	}
	return id.Attributes[strings.TrimPrefix(variable, varAttribute)]
}

// applying lists the policies for a client, in the order of their names.
func (s *Set) applying(id *Identity) (which []int, err error) {
	for _, name := range id.Policies {
		if name == "" {
			continue
		}
		i, there := s.at[name]
		if !there {
			return nil, message.Rejectf(message.ACLDenied, "policy %q is named for %s, and there is none; there are %s", name, id.name(), strings.Join(s.Names(), ", "))
		}
		which = append(which, i)
	}
	for i, p := range s.policies {
		if p.of != nil && p.of.selects(id) {
			which = append(which, i)
		}
	}
	slices.Sort(which)
	return slices.Compact(which), nil
}

func (f *For) selects(id *Identity) bool {
	in := func(list []string, one string) bool { return list == nil || one != "" && slices.Contains(list, one) }
	return in(f.Listeners, id.Listener) && in(f.Users, id.Username) &&
		(f.Groups == nil || slices.ContainsFunc(id.Groups, func(g string) bool { return in(f.Groups, g) }))
}

// combine joins policies, once for all clients.
func (s *Set) combine(which []int) *rules {
	key := make([]byte, 0, 2*len(which))
	for _, i := range which {
		key = binary.BigEndian.AppendUint16(key, uint16(i))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.shared[string(key)]; r != nil {
		return r
	}
	r := new(rules)
	for _, i := range which {
		r.join(&s.policies[i])
	}
	if len(s.shared) >= sharedMax {
		clear(s.shared)
	}
	s.shared[string(key)] = r
	return r
}

func (r *rules) join(p *compiled) {
	r.policies = append(r.policies, p.name)
	r.ids = append(r.ids, p.ids...)
	for _, rule := range p.rules {
		r.listed = append(r.listed, rule)
		t := &r.subscribe
		if rule.action == Publish {
			t = &r.publish
		}
		for _, of := range rule.patterns {
			t.add(of, int32(len(r.listed)), rule.allow, r.slot)
		}
	}
}

// slot is a variable's place in Judge.values.
func (r *rules) slot(name string) int {
	if name == varGroup {
		r.withGroups = true
		return slotGroup
	}
	if i := slices.Index(r.variables, name); i >= 0 {
		return i
	}
	r.variables = append(r.variables, name)
	return len(r.variables) - 1
}

// Decision is what was decided, and by which rule: the first that denies, else the first that allows; none where nothing
// allows.
type Decision struct {
	Allowed bool
	Rule    *Rule
}

// Publish decides whether the client may say something under the subject, now, as a will or with `retain`. The subject is
// valid (message.FromTopic, Present).
func (j *Judge) Publish(subject message.Subject) Decision {
	return j.decide(&j.rules.publish, string(subject))
}

// Subscribe decides about an MQTT topic filter, as the patterns that message.FromFilter or PresentFilter makes of it, in
// their order, without `$share/<group>/`. One rule has to allow all that a pattern selects; several together do not.
//
// The parent `a` of a filter `a/#` need not be allowed: Deliver withholds it.
func (j *Judge) Subscribe(filter ...message.Pattern) (d Decision) {
	for i, p := range filter {
		if i+1 < len(filter) && parentOf(p, filter[i+1]) {
			continue
		}
		if d = j.decide(&j.rules.subscribe, string(p)); !d.Allowed {
			return d
		}
	}
	return d
}

// parentOf says whether q is p and `>` behind it.
func parentOf(p, q message.Pattern) bool {
	return len(q) == len(p)+2 && strings.HasPrefix(string(q), string(p)) && strings.HasSuffix(string(q), ".>")
}

// Deliver decides whether a message with this subject may be sent to the client, whatever subscription selected it and
// when that was granted: live, retained, from a queue, from a restored session, for a shared subscription.
func (j *Judge) Deliver(subject message.Subject) Decision {
	return j.decide(&j.rules.subscribe, string(subject))
}

func (j *Judge) decide(t *tree, s string) Decision {
	if s == "" {
		return Decision{}
	}
	w := walk{values: j.values, groups: j.groups}
	w.look(t, s, true, true)
	switch {
	case w.found.deny != 0:
		return Decision{false, j.rules.listed[w.found.deny-1]}
	case w.found.allow != 0:
		return Decision{true, j.rules.listed[w.found.allow-1]}
	}
	return Decision{}
}

// Reason says why in words.
func (d Decision) Reason() string {
	switch {
	case d.Rule == nil:
		return "no policy allows it"
	case d.Allowed:
		return "allowed by " + d.Rule.String()
	}
	return "denied by " + d.Rule.String()
}

// Refusal is the error for a client that was not allowed what it asked for: a *message.Rejection with ACLDenied that names
// client, subject, and rule or policies. It is nil where it was allowed.
func (j *Judge) Refusal(a Action, what message.Pattern, d Decision) error {
	verb := map[Action]string{Publish: "publish on", Subscribe: "subscribe to", Deliver: "hear"}[a]
	switch {
	case d.Allowed:
		return nil
	case d.Rule != nil:
		return message.Rejectf(message.ACLDenied, "%s may not %s %s: denied by %s", j.who, verb, what, d.Rule)
	case len(j.rules.policies) == 0:
		return message.Rejectf(message.ACLDenied, "%s may not %s %s: no policy applies to it", j.who, verb, what)
	}
	some := j.rules.policies
	more := ""
	if n := len(some) - 5; n > 0 {
		some, more = some[:5], fmt.Sprintf(" and %d more", n)
	}
	return message.Rejectf(message.ACLDenied, "%s may not %s %s: allowed by none of its policies (%s%s)", j.who, verb, what, strings.Join(some, ", "), more)
}
