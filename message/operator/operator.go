// Package operator is what the platform says of itself: deaths, refusals, alarms.
package operator

import (
	"encoding/json"
	"time"

	"github.com/naru-platform/naru/message"
)

// DeadSubject is where the dead letters of a component go: operator.dead.<namespace>.<component>, and of a child of one
// operator.dead.<namespace>.<component>:<child>.
func DeadSubject(component string) message.Subject {
	return message.Subject("operator.dead." + spelled(component))
}

// RefusedSubject is where a door tells what it did not let in.
func RefusedSubject(component string) message.Subject {
	return message.Subject("operator.refused." + component)
}

// AlarmSubject is where an alarm of that name is raised and cleared.
func AlarmSubject(name string) message.Subject { return message.NewSubject("operator", "alarm", name) }

// Dead is a message that will not be handled, with all that is needed to understand it and to try it again.
type Dead struct {
	Reason    message.Reason `json:"reason"`
	Detail    string         `json:"detail"`
	Component string         `json:"component"`
	Attempts  int            `json:"attempts"`
	First     time.Time      `json:"first"` // failure
	Last      time.Time      `json:"last"`  // failure
	Log       string         `json:"log"`
	Position  string         `json:"position"` // generation/partition/sequence/index
	Original  []byte         `json:"original"` // the message as it was, as a record
	// Bare says that the data was too large for a letter: it is in the log at the position, and not in Original.
	Bare bool `json:"bare,omitempty"`
	// Again is the dead letter that this one follows: its message was tried again, and died once more.
	Again message.ID `json:"again,omitzero"`
	// Job is the retry that it was part of.
	Job message.ID `json:"job,omitzero"`
}

// Message decodes the original.
func (d *Dead) Message() (*message.Message, error) {
	m := new(message.Message)
	if _, err := message.DecodeRecord(d.Original, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Refusal is something that a door did not let in; equal ones within a short time are told once, with their count.
type Refusal struct {
	Reason    message.Reason  `json:"reason"`
	Detail    string          `json:"detail"`
	Component string          `json:"component"`
	Device    string          `json:"device,omitempty"`
	ClientID  string          `json:"client_id,omitempty"`
	Address   string          `json:"address,omitempty"`
	Subject   message.Subject `json:"subject,omitempty"`
	Count     uint64          `json:"count"`
	First     time.Time       `json:"first"`
	Last      time.Time       `json:"last"`
}

// Alarm is a fault that somebody should look at, and the end of it.
type Alarm struct {
	Name    string    `json:"name"`
	Since   time.Time `json:"since"`
	Detail  string    `json:"detail"`
	Look    string    `json:"look"` // what to do first
	Cleared bool      `json:"cleared"`
}

// Contracts lists what the platform says of itself.
func Contracts() []message.Contract {
	return append(append(retryContracts(), partitionContracts()...), []message.Contract{
		{
			Subjects: "operator.dead.*.*", Type: "operator.dead.v1", Owner: "platform", Route: message.ByLog,
			Doc:         "A component gave a message up, for this reason. The original is inside, untouched. Not said: nothing died there.",
			Says:        []string{"*"},
			Hears:       []string{"operator.journal", "operator.deadletter"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["reason","detail","component","attempts","first","last","log","position","original"],
"properties":{"reason":{"type":"string"},"detail":{"type":"string"},"component":{"type":"string"},
"attempts":{"type":"integer","minimum":0},"first":{"type":"string","format":"date-time"},
"last":{"type":"string","format":"date-time"},"log":{"type":"string"},"position":{"type":"string"},
"original":{"type":"string","contentEncoding":"base64"},"bare":{"type":"boolean"},"again":{"type":"string"},"job":{"type":"string"}}}`),
			Example: json.RawMessage(`{"reason":"schema_mismatch","detail":"/celsius: want number, got string",
"component":"service_platform.rule","attempts":1,"first":"2026-11-23T03:00:00Z","last":"2026-11-23T03:00:00Z",
"log":"device","position":"1/0/42/7","original":""}`),
		},
		{
			Subjects: "operator.refused.*.*", Type: "operator.refused.v1", Owner: "platform", Route: message.ByLog,
			Doc:         "A door did not let something in. Equal refusals are told at most every ten seconds, with their count.",
			Says:        []string{"*"},
			Hears:       []string{"operator.journal"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["reason","detail","component","count","first","last"],
"properties":{"reason":{"type":"string"},"detail":{"type":"string"},"component":{"type":"string"},
"device":{"type":"string"},"client_id":{"type":"string"},"address":{"type":"string"},"subject":{"type":"string"},
"count":{"type":"integer","minimum":1},"first":{"type":"string","format":"date-time"},
"last":{"type":"string","format":"date-time"}}}`),
			Example: json.RawMessage(`{"reason":"acl_denied","detail":"d-17 may not publish on device.d-18.telemetry",
"component":"service_platform.broker","device":"d-17","client_id":"d-17","address":"127.0.0.1:51312",
"subject":"device.d-18.telemetry","count":3,"first":"2026-11-23T03:00:00Z","last":"2026-11-23T03:00:04Z"}`),
		},
		{
			Subjects: "operator.alarm.*", Type: "operator.alarm.v1", Owner: "platform", Route: message.ByLog,
			Doc:         "Something is wrong that does not mend itself, or no longer is. Not said: no fault of that name was seen.",
			Says:        []string{"*"},
			Hears:       []string{"operator.journal"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["name","since","detail","look","cleared"],
"properties":{"name":{"type":"string"},"since":{"type":"string","format":"date-time"},"detail":{"type":"string"},
"look":{"type":"string"},"cleared":{"type":"boolean"}}}`),
			Example: json.RawMessage(`{"name":"ledger_unbalanced","since":"2026-11-23T03:00:00Z",
"detail":"operator.journal on device: 1 message is missing","look":"naru ledger","cleared":false}`),
		},
	}...)
}
