package broker

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/policy"
)

// Registry is what an Admission may be beyond admitting: one that knows what is registered of a device by its name.
type Registry interface {
	// RegisteredDevice is Doorkeeper.DeviceOf by the device's name; known is false where no such device would be let in.
	RegisteredDevice(name string) (policy string, groups []string, attributes map[string]string, known bool)
}

// May is what a client may do with a topic, and which policy decides: the answer that the client itself would get.
type May struct {
	Listener string `json:"listener"`
	Who      string `json:"who"`
	ClientID string `json:"client_id"`
	Topic    string `json:"topic"`
	// Named is where the platform has the topic; of a filter, what it selects there.
	Named  []string          `json:"named,omitempty"`
	Groups []string          `json:"groups,omitempty"`
	Attrs  map[string]string `json:"attributes,omitempty"`
	policy.Explanation
}

// serveMay answers whether a client may do something: listener, who (a device, a user, or where nobody is asked a client
// id), client_id where it is another, action (publish, subscribe or deliver), topic.
func (b *Broker) serveMay(_ http.ResponseWriter, r *http.Request) (any, error) {
	return b.may(r.URL.Query())
}

func (b *Broker) may(q url.Values) (*May, error) {
	e, err := b.entranceOf(q.Get("listener"))
	if err != nil {
		return nil, err
	}
	m := &May{Listener: e.Name, Who: q.Get("who"), ClientID: q.Get("client_id"), Topic: q.Get("topic")}
	m.Action = policy.Action(q.Get("action"))
	switch {
	case m.Who == "" && m.ClientID == "":
		return nil, answer.Bad(errors.New("who: want a device, a user or a client id"))
	case m.Topic == "":
		return nil, answer.Bad(errors.New("topic: want a topic, or for subscribe a topic filter, as the client sees it"))
	case m.Action != policy.Publish && m.Action != policy.Subscribe && m.Action != policy.Deliver:
		return nil, answer.Bad(fmt.Errorf("action %q; there are %s, %s and %s", m.Action, policy.Publish, policy.Subscribe, policy.Deliver))
	}
	id, err := b.stranger(e, m)
	if err != nil {
		return nil, err
	}
	m.ClientID, m.Groups, m.Attrs = id.ClientID, id.Groups, id.Attributes
	refused := func(err error) (*May, error) {
		m.Allowed, m.Reason = false, err.Error()
		return m, nil
	}
	j, err := b.policies.Judge(id)
	if err == nil {
		err = j.MayBeCalled(id)
	}
	if err != nil {
		return refused(err)
	}
	view, named, err := e.asked(m.Action, m.Topic)
	if err != nil {
		return nil, answer.Bad(err)
	}
	for _, p := range named {
		m.Named = append(m.Named, string(p))
	}
	if m.Explanation, err = b.policies.Explain(id, m.Action, view...); err != nil {
		return nil, answer.Bad(err)
	}
	if m.Action == policy.Publish && m.Allowed {
		if err := platformsOwn(message.Subject(named[0])); err != nil {
			return refused(err)
		}
	}
	return m, nil
}

// asked is what policies are asked about a topic or filter, and where the platform has it.
func (e *entrance) asked(a policy.Action, topic string) (view, named []message.Pattern, err error) {
	if a == policy.Subscribe {
		if err := packet.ValidTopicFilter(topic); err != nil {
			return nil, nil, err
		}
		_, inner, _ := packet.ParseShare(topic)
		s, err := e.selects(inner)
		return s.view, s.of, err
	}
	v, s, err := e.names(topic)
	return []message.Pattern{message.Pattern(v)}, []message.Pattern{message.Pattern(s)}, err
}

// entranceOf finds a listener; without a name the first for devices with certificates, or the first of the configuration's list.
func (b *Broker) entranceOf(name string) (*entrance, error) {
	if name == "" {
		i := slices.IndexFunc(b.entrances, func(e *entrance) bool { return e.Auth == byCertificate })
		if i < 0 && len(b.conf.Listeners) > 0 {
			i = len(b.entrances) - len(b.conf.Listeners)
		}
		return b.entrances[max(i, 0)], nil
	}
	var names []string
	for _, e := range b.entrances {
		if e.Name == name {
			return e, nil
		}
		names = append(names, e.Name)
	}
	return nil, answer.Bad(fmt.Errorf("listener %q is not there; there are %s", name, strings.Join(names, ", ")))
}

// stranger is the identity of a client that may not be connected, as identify would have it.
func (b *Broker) stranger(e *entrance, m *May) (policy.Identity, error) {
	id := policy.Identity{ClientID: m.ClientID, Listener: e.Name, Policies: e.policies}
	switch {
	case e.Auth == byCertificate:
		registry, ok := b.admission.(Registry)
		if !ok {
			return id, answer.Unavailable("nobody here knows what is registered of devices")
		}
		own, groups, attributes, known := registry.RegisteredDevice(m.Who)
		if !known {
			return id, answer.Missing("device %q is not registered, or disabled: it would not be let in at listener %s (`naru device show %s`)", m.Who, e.Name, m.Who)
		}
		id.Device, id.Groups, id.Attributes = m.Who, groups, attributes
		if own != "" {
			id.Policies = append(slices.Clip(id.Policies), own)
		}
	case e.Auth == byPassword:
		if _, known := e.users[m.Who]; !known {
			return id, answer.Missing("listener %s has no user %q in %s", e.Name, m.Who, e.UsersFile)
		}
		id.Username = m.Who
		if e.Policy == policyDevice {
			id.Device = m.Who
		}
	default:
		if id.ClientID == "" {
			id.ClientID = m.Who
		}
		if e.Policy == policyDevice {
			id.Device = id.ClientID
		}
	}
	if id.ClientID == "" {
		if id.ClientID = id.Device; id.ClientID == "" {
			id.ClientID = "any"
		}
	}
	if id.Device != "" && message.NewSubject(message.Device, id.Device).Valid() != nil {
		return id, answer.Bad(fmt.Errorf("%q is no device name", readable(id.Device)))
	}
	return id, nil
}
