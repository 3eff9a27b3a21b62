package operator

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
)

// Retry asks a consumer to take back a message that died there. Its subject names the consumer, which alone hears it.
type Retry struct {
	Letter   message.ID `json:"letter"`       // the dead letter
	Job      message.ID `json:"job,omitzero"` // that it is part of
	Consumer string     `json:"consumer"`
	Log      string     `json:"log"`
	Position string     `json:"position"` // as Dead.Position
	Original []byte     `json:"original"` // the message to be handled, as a record; with the id it always had
	// Bare says that its data is not in Original, but in the log at the position.
	Bare bool `json:"bare,omitempty"`
}

// RetrySubject is where a consumer is asked to take messages back.
func RetrySubject(consumer string) message.Subject {
	return message.NewSubject(message.Operator, "retry", spelled(consumer))
}

// spelled is a consumer's name in a subject. That of a component's child, `<component>/<child>`, has a slash, which no
// subject holds.
func spelled(consumer string) string { return strings.ReplaceAll(consumer, "/", ":") }

// Message decodes what is to be handled.
func (r *Retry) Message() (*message.Message, error) {
	m := new(message.Message)
	if _, err := message.DecodeRecord(r.Original, m); err != nil {
		return nil, err
	}
	return m.Clone(), nil
}

// The results of a retry. One that dies again is told by a dead letter that names the one before.
const (
	RetryHandled    = "handled"
	RetryNotMatched = "not_matched"
	RetryDead       = "dead"    // again
	RetryRefused    = "refused" // the consumer cannot take it back; the detail says why
)

// Retried is what became of a message that was taken back.
type Retried struct {
	Letter   message.ID `json:"letter"`
	Job      message.ID `json:"job,omitzero"`
	Message  message.ID `json:"message"`
	Consumer string     `json:"consumer"`
	Result   string     `json:"result"`
	Detail   string     `json:"detail,omitempty"`
	At       time.Time  `json:"at"`
}

// RetriedSubject is where a consumer tells what became of them.
func RetriedSubject(consumer string) message.Subject {
	return message.NewSubject(message.Operator, "retried", spelled(consumer))
}

func retryContracts() []message.Contract {
	return []message.Contract{
		{
			Subjects: "operator.retry.*", Type: "operator.retry.v1", Owner: "platform", Route: message.ByQueue,
			Doc:         "A dead letter goes back to the consumer it died at, the last token, and to no other.",
			Says:        []string{"operator.deadletter"},
			Hears:       []string{"*"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["letter","consumer","log","position","original"],
"properties":{"letter":{"type":"string"},"job":{"type":"string"},"consumer":{"type":"string"},"log":{"type":"string"},
"position":{"type":"string"},"original":{"type":"string","contentEncoding":"base64"},"bare":{"type":"boolean"}}}`),
			Example: json.RawMessage(`{"letter":"0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e","job":"0193d5a1-7b2c-7e41-9c3f-5d2f8a6b1c4e",
"consumer":"service_platform.twin","log":"device","position":"1/0/42/7","original":""}`),
		},
		{
			Subjects: "operator.retried.*", Type: "operator.retried.v1", Owner: "platform", Route: message.ByLog,
			Doc:         "What became of a dead letter that was tried again. Not said: it waits still, or died again, which a dead letter tells.",
			Says:        []string{"*"},
			Hears:       []string{"operator.deadletter", "operator.journal"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["letter","message","consumer","result","at"],
"properties":{"letter":{"type":"string"},"job":{"type":"string"},"message":{"type":"string"},"consumer":{"type":"string"},
"result":{"enum":["handled","not_matched","refused"]},"detail":{"type":"string"},"at":{"type":"string","format":"date-time"}}}`),
			Example: json.RawMessage(`{"letter":"0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e","message":"0193d59f-7b2c-7e41-9c3f-5d2f8a6b1c4e",
"consumer":"service_platform.twin","result":"handled","at":"2026-11-23T03:00:00Z"}`),
		},
	}
}
