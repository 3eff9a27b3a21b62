package policy

import (
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
)

// Present gives the subject of an MQTT topic name: the one name under which a message is asked about, stored and
// delivered. Topics of AWS IoT's Device Shadow protocol are a second spelling of twins,
//
//	$aws/things/d-17/shadow/update   device.d-17.twin.update
//
// so that one rule holds for both and none is passed by in the other. All else, such as $aws/certificates/create/json or
// $aws/things/d-17/jobs/get, keeps its name ($aws.certificates.create.json), which nothing that is built in allows.
// It fails where message.FromTopic does.
//
// Where a listener has a mount point there is no second spelling, and message.FromTopic is asked instead.
func Present(topic string) (message.Subject, error) {
	if s, ok := device.FromShadowTopic(topic); ok {
		return s, nil
	}
	return message.FromTopic(topic)
}

// PresentFilter does so for a topic filter without `$share/<group>/`, as message.FromFilter does: a filter that ends in
// `/#` gives its parent, too. `$aws/#` and the like are not taken for a spelling of twins, and select none of them.
func PresentFilter(filter string) ([]message.Pattern, error) {
	if p, ok := device.FromShadowFilter(filter); ok {
		return p, nil
	}
	return message.FromFilter(filter)
}

// awsTwin gives the twins that a pattern below $aws means in AWS IoT's spelling; nil where it means none. The pattern
// stays in force beside it, for what is below $aws and no twin's.
func (p pattern) awsTwin() pattern {
	if p[0] != (token{text: "$aws"}) {
		return nil
	}
	thing := token{text: "*"}
	for i, want := range []string{"things", "", "shadow", ">"} {
		switch at := i + 1; {
		case at == len(p): // ends above what a twin's topic has
			return nil
		case p[at] == token{text: ">"}:
			return pattern{{text: message.Device}, thing, {text: "twin"}, {text: ">"}}
		case want == "":
			thing = p[at]
		case want != ">" && p[at].text != want && p[at].text != "*":
			return nil
		}
	}
	return append(pattern{{text: message.Device}, thing, {text: "twin"}}, p[4:]...)
}
