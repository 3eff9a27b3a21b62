package device

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
)

// TwinChanged is a twin's state that became another one.
type TwinChanged struct {
	Device string `json:"device"`
	// Shadow is the twin's name; empty for the device's unnamed one.
	Shadow string `json:"shadow,omitempty"`
	// Change is created, updated or deleted.
	Change  string    `json:"change"`
	Version uint64    `json:"version"`
	At      time.Time `json:"at"`     // when the message that changed it was accepted, in whole seconds; its id says it more exactly
	Source  string    `json:"source"` // of that message, whose id is this one's cause
	// Paths are the JSON pointers of the values that changed, such as /desired/color.
	Paths []string `json:"paths"`
	// Previous and Current are {"desired":…,"reported":…} before and after; missing where there was or is no twin.
	Previous json.RawMessage `json:"previous,omitempty"`
	Current  json.RawMessage `json:"current,omitempty"`
}

// TwinChangedSubject is where changes of a device's twins are told, of all its twins.
func TwinChangedSubject(device string) message.Subject {
	return message.NewSubject(message.Device, device, "twin", "changed")
}

// TwinRef names a twin; an empty shadow is the device's unnamed one.
type TwinRef struct {
	Device string `json:"device"`
	Shadow string `json:"shadow,omitempty"`
}

// String names it for people.
func (r TwinRef) String() string {
	if r.Shadow == "" {
		return "of " + r.Device
	}
	return r.Shadow + " of " + r.Device
}

// TwinRead is a twin as it was when somebody inside had wished for it: state, metadata, version and timestamp. Document is
// missing where there is no such twin.
type TwinRead struct {
	Shadow   string          `json:"shadow,omitempty"`
	Document json.RawMessage `json:"document,omitempty"`
}

// TwinReadWord ends the subject where it is said.
const TwinReadWord = "read"

// TwinReadSubject is where a twin is told to those inside who wished for it.
func TwinReadSubject(device string) message.Subject {
	return message.NewSubject(message.Device, device, "twin", TwinReadWord)
}

// TwinTold reads the subject of what a twin says that tells how it is: `documents` of an update, `changed` or `read`. Of the
// last two the data says which of the device's twins it is about, and the shadow is empty.
func TwinTold(s message.Subject) (ref TwinRef, what string, ok bool) {
	tokens := strings.Split(string(s), ".")
	if len(tokens) < 4 || tokens[0] != message.Device || tokens[2] != "twin" {
		return ref, "", false
	}
	ref.Device = s.Token(1)
	switch words := tokens[3:]; {
	case len(words) == 1 && (words[0] == "changed" || words[0] == TwinReadWord):
		return ref, words[0], true
	case len(words) == 2 && words[0] == "update" && words[1] == "documents":
		return ref, words[1], true
	case len(words) == 4 && words[0] == "name" && words[2] == "update" && words[3] == "documents":
		ref.Shadow = s.Token(4)
		return ref, words[3], true
	}
	return ref, "", false
}

// TwinSubject is where something about a device's twin is said: a request such as update, or with a second word its
// answer. An empty shadow is the unnamed one.
func TwinSubject(device, shadow string, words ...string) message.Subject {
	var room [8]string
	tokens := append(room[:0], message.Device, device, "twin")
	if shadow != "" {
		tokens = append(tokens, "name", shadow)
	}
	return message.NewSubject(append(tokens, words...)...)
}

// answers are what follows on each request, in the words of AWS IoT's Device Shadow protocol.
var answers = map[string][]string{
	"get":    {"accepted", "rejected"},
	"update": {"accepted", "rejected", "delta", "documents"},
	"delete": {"accepted", "rejected"},
}

// TwinRequest reads the subject of a request to a twin: its device, its name (empty for the unnamed one) and get, update
// or delete. ok is false for any other subject.
func TwinRequest(s message.Subject) (device, shadow, request string, ok bool) {
	tokens := strings.Split(string(s), ".")
	switch {
	case len(tokens) < 4 || tokens[0] != message.Device || tokens[2] != "twin":
	case len(tokens) == 4:
		return s.Token(1), "", tokens[3], answers[tokens[3]] != nil
	case len(tokens) == 6 && tokens[3] == "name" && tokens[4] != "%": // which would be no name
		return s.Token(1), s.Token(4), tokens[5], answers[tokens[5]] != nil
	}
	return "", "", "", false
}

// The AWS spelling of the same: $aws/things/<thing>/shadow[/name/<shadow>]/<words>.
const (
	awsRoot   = "$aws"
	awsThings = "things"
	awsShadow = "shadow"
)

// FromShadowTopic gives the subject of an MQTT topic of AWS IoT's Device Shadow protocol. ok is false for a topic that is
// none of the protocol's.
func FromShadowTopic(topic string) (s message.Subject, ok bool) {
	if !strings.HasPrefix(topic, awsRoot+"/") {
		return "", false
	}
	tokens, ok := fromShadow(strings.Split(topic, "/"))
	if !ok {
		return "", false
	}
	s, err := message.FromTopic(strings.Join(tokens, "/"))
	return s, err == nil && shadowWords(strings.Split(string(s), ".")[2:])
}

// ShadowTopic gives the AWS topic of a subject. ok is false where the protocol has none, as for `changed`.
func ShadowTopic(s message.Subject) (topic string, ok bool) {
	tokens := strings.Split(string(s), ".")
	if len(tokens) < 4 || tokens[0] != message.Device || tokens[2] != "twin" || !shadowWords(tokens[2:]) {
		return "", false
	}
	levels := strings.Split(s.Topic(), "/")
	return strings.Join(append([]string{awsRoot, awsThings, levels[1], awsShadow}, levels[3:]...), "/"), true
}

// FromShadowFilter gives the patterns that select what an MQTT topic filter in the AWS spelling does. What they select
// may have no AWS topic; ShadowTopic tells. ok is false for a filter that is not below $aws/things/<thing or +>/shadow/.
func FromShadowFilter(filter string) (p []message.Pattern, ok bool) {
	tokens, ok := fromShadow(strings.Split(filter, "/"))
	if !ok || slices.Contains(tokens[1:2], "#") {
		return nil, false
	}
	p, err := message.FromFilter(strings.Join(tokens, "/"))
	return p, err == nil
}

// fromShadow puts the levels of the AWS spelling into naru's places.
func fromShadow(levels []string) ([]string, bool) {
	if len(levels) < 5 || levels[0] != awsRoot || levels[1] != awsThings || levels[2] == "" || levels[3] != awsShadow {
		return nil, false
	}
	return append([]string{message.Device, levels[2], "twin"}, levels[4:]...), true
}

// shadowWords says whether the tokens from `twin` on are a request or an answer of the protocol.
func shadowWords(tokens []string) bool {
	words := tokens[1:]
	if len(words) > 2 && words[0] == "name" {
		if words[1] == "%" { // no name
			return false
		}
		words = words[2:]
	}
	switch len(words) {
	case 1:
		return answers[words[0]] != nil
	case 2:
		return slices.Contains(answers[words[0]], words[1])
	}
	return false
}
