package broker

import (
	"strings"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/service_platform/broker/policy"
)

// What a client calls by a topic has up to three names. The view is the one that policies are asked about: the topic
// itself, as a subject. The subject is where the platform has it: below the listener's mount point, if there is one. And
// where the client spells a twin as AWS IoT does, view and subject are those of the twin, so that there is one message
// with one rule; what is sent to the client is in the spelling of its subscription.
//
// Topics whose first level is `$SYS` or `$aws` are not mounted: they are the broker's and the platform's for everybody.
// Below a mount point their views keep that spelling, since device.<name> is another world's there: a policy has to name
// them, and a wildcard does not (MQTT-4.7.2-1).

const (
	sysRoot = "$SYS"
	awsRoot = "$aws"
)

func unmounted(topic string) bool {
	first, _, _ := strings.Cut(topic, "/")
	return first == sysRoot || first == awsRoot
}

// names gives the view and the subject of a client's topic name.
func (e *entrance) names(topic string) (view, subject message.Subject, err error) {
	if e.mount == "" {
		view, err = policy.Present(topic)
		return view, view, err
	}
	view, err = message.FromTopic(topic)
	switch {
	case err != nil:
	case unmounted(topic):
		subject, err = policy.Present(topic)
	default:
		subject = message.Subject(e.mount) + "." + view
	}
	return view, subject, err
}

// selection is what a topic filter means.
type selection struct {
	view   []message.Pattern // what policies are asked
	of     []message.Pattern // what it selects on the platform
	aws    bool              // it is in AWS IoT's spelling of twins
	hidden int               // tokens of the mount point in front
}

// selects says what a topic filter without `$share/<group>/` does. Below a mount point a filter that ends in `/#` still
// has its parent; the filter `#` alone has all below the mount point.
func (e *entrance) selects(filter string) (s selection, err error) {
	if e.mount == "" || unmounted(filter) {
		if s.of, err = policy.PresentFilter(filter); err != nil {
			return s, err
		}
		s.view = s.of
		s.aws = strings.HasPrefix(filter, awsRoot+"/") && !strings.HasPrefix(string(s.of[0]), awsRoot+".")
		if s.aws && e.mount != "" {
			s.view, err = message.FromFilter(filter)
		}
		return s, err
	}
	if s.view, err = message.FromFilter(filter); err != nil {
		return s, err
	}
	s.hidden = e.depth
	for _, p := range s.view {
		s.of = append(s.of, e.mount+"."+p)
	}
	return s, nil
}

// topic is how a client here knows a subject; aws, by a subscription in AWS IoT's spelling.
func (e *entrance) topic(s message.Subject, aws bool) string {
	if aws {
		if topic, ok := device.ShadowTopic(s); ok {
			return topic
		}
	}
	return e.below(s).Topic()
}

// viewOf is what policies are asked about a subject that is to be sent.
func (e *entrance) viewOf(s message.Subject, aws bool) message.Subject {
	if aws && e.mount != "" {
		if topic, ok := device.ShadowTopic(s); ok {
			if view, err := message.FromTopic(topic); err == nil {
				return view
			}
		}
	}
	return e.below(s)
}

// below takes the mount point off.
func (e *entrance) below(s message.Subject) message.Subject {
	if e.mount != "" {
		if rest, ok := strings.CutPrefix(string(s), string(e.mount)); ok && len(rest) > 1 && rest[0] == '.' {
			return message.Subject(rest[1:])
		}
	}
	return s
}
