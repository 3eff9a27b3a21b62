package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/policy"
)

// setPolicies compiles what is configured, with what listeners refuse among it, and gives each listener its policies.
func (b *Broker) setPolicies() error {
	all := map[string]policy.Policy{}
	for name, p := range b.conf.Policies {
		all[name] = p
	}
	var listeners []string
	for _, e := range b.entrances {
		listeners = append(listeners, e.Name)
		e.policies = []string{e.Policy}
		if len(e.Refuse) == 0 {
			continue
		}
		name := refusing(e.Name, all)
		var deny []string
		for _, f := range e.Refuse {
			s, err := e.selects(f)
			if err != nil {
				return fmt.Errorf("listener %s: refuse: %w", e.Name, err)
			}
			for _, p := range s.view {
				if !slices.Contains(deny, string(p)) {
					deny = append(deny, string(p))
				}
			}
		}
		rules := policy.Rules{Deny: deny}
		all[name] = policy.Policy{Doc: "What listener " + e.Name + " refuses.", Publish: rules, Subscribe: rules}
		e.policies = append(e.policies, name)
	}
	set, err := policy.Compile(all, listeners, b.env.Catalog)
	if err != nil {
		return fmt.Errorf("policies: %w", err)
	}
	for _, e := range b.entrances {
		if !slices.Contains(set.Names(), e.Policy) {
			return fmt.Errorf("listener %s: policy %q is not there; there are %s", e.Name, e.Policy, strings.Join(set.Names(), ", "))
		}
	}
	b.policies = set
	return nil
}

// tellPolicies tells which policies a device may be given, now and until ctx is done: whoever registers devices refuses others.
func (b *Broker) tellPolicies(ctx context.Context) error {
	all := slices.Sorted(maps.Keys(policy.Builtin(b.env.Catalog)))
	all = append(all, slices.Sorted(maps.Keys(b.conf.Policies))...)
	if err := names.Tell(ctx, b.env.Bus, names.Policies, b.env.Node, all); err != nil {
		return err
	}
	b.group.Go(func() {
		names.Keep(ctx, b.env.Bus, names.Policies, b.env.Node, all, func(err error) {
			b.env.Log.Warn("the names of the policies could not be told; trying again", "error", err)
		})
	})
	return nil
}

// refusing names the policy of what a listener refuses.
func refusing(listener string, taken map[string]policy.Policy) string {
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '-'
	}, listener)
	name := "refused-at-" + plain[:min(len(plain), 40)]
	for n, first := 2, name; ; n++ {
		if _, there := taken[name]; !there {
			return name
		}
		name = fmt.Sprintf("%s-%d", first, n)
	}
}

// identity is who the client is, for policies; client is its client id.
func (c *conn) identity(client string) (policy.Identity, error) {
	id := policy.Identity{Device: c.named, ClientID: client, Username: c.user, Listener: c.in.Name, Policies: c.in.policies}
	k := c.b.keeper
	if k == nil || c.leaf == nil || c.claim != "" {
		return id, nil
	}
	own, groups, attributes, known := k.DeviceOf(c.leaf)
	if !known {
		return id, message.Rejectf(message.CertUnregistered, "the certificate of %s was withdrawn a moment ago", c.named)
	}
	id.Groups, id.Attributes = groups, attributes
	if own != "" {
		id.Policies = append(slices.Clip(id.Policies), own)
	}
	return id, nil
}

// appoint makes the Judge for the client, who must be allowed its client id.
func (c *conn) appoint(client string) (*policy.Judge, error) {
	id, err := c.identity(client)
	if err != nil {
		return nil, err
	}
	j, err := c.b.policies.Judge(id)
	if err != nil {
		return nil, err
	}
	return j, j.MayBeCalled(id)
}

// rejudge has policies look again at the client, since its registration has changed. Who has no policy any more that lets
// it be there as it is has to go.
func (c *conn) rejudge() {
	if c.rights.Load() == nil {
		return // it may do nothing that policies decide about
	}
	j, err := c.appoint(c.clientID)
	if err != nil {
		c.end(message.ReasonOf(err, message.ACLDenied), err)
		return
	}
	c.rights.Store(j)
	c.b.group.Go(func() { // whoever tells of changes does not wait for the disk
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		defer cancel()
		if err := c.review(ctx); err != nil && !c.b.stop.Load() {
			c.b.env.Log.Warn("take subscriptions away that are not allowed any more", "client_id", c.clientID, "error", err)
		}
	})
}

// review takes the subscriptions of the session away that the policies of now would not grant, and tells of each. What
// still waits from them is decided one by one.
func (c *conn) review(ctx context.Context) error {
	j := c.rights.Load()
	c.kept.Judged(&hearing{c.in, j})
	var gone []string
	for _, sub := range c.kept.Subscriptions() {
		_, inner, _ := packet.ParseShare(sub.Filter)
		s, err := c.in.selects(inner)
		if err == nil {
			err = c.denial(j, policy.Subscribe, s.view...)
		}
		if err != nil {
			c.notGranted(sub.Filter, fmt.Errorf("a subscription of its session ends: %w", err))
			gone = append(gone, sub.Filter)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	_, err := c.kept.Unsubscribe(ctx, gone)
	return err
}

// hearing is what a session knows of its client's policies, also while it is away.
type hearing struct {
	in    *entrance
	judge *policy.Judge
}

// Hears says whether the session's client may have a message.
func (h *hearing) Hears(s message.Subject, aws bool) bool {
	return h.judge.Deliver(h.in.viewOf(s, aws)).Allowed
}

// mayHear says so for the connection, whatever brought the message.
func (c *conn) mayHear(s message.Subject, aws bool) bool {
	j := c.rights.Load()
	return j == nil || j.Deliver(c.in.viewOf(s, aws)).Allowed // nil for who is answered only: see claim.go
}

// denied is a refusal by policy. Those of a kind are told together.
type denied struct {
	error
	kind string
}

// Unwrap gives the *message.Rejection.
func (d *denied) Unwrap() error { return d.error }

// kindOf tells refusals of one reason apart.
func kindOf(err error) string {
	if d := (*denied)(nil); errors.As(err, &d) {
		return d.kind
	}
	return ""
}

// denial asks, and gives the refusal where it is not allowed.
func (c *conn) denial(j *policy.Judge, a policy.Action, what ...message.Pattern) error {
	var d policy.Decision
	if a == policy.Publish {
		d = j.Publish(message.Subject(what[0]))
	} else {
		d = j.Subscribe(what...)
	}
	if d.Allowed {
		return nil
	}
	kind := string(a)
	if d.Rule != nil {
		kind += " " + d.Rule.String()
	}
	return &denied{j.Refusal(a, what[len(what)-1], d), kind}
}
