package operator

import (
	"encoding/json"
	"time"

	"github.com/naru-platform/naru/message"
)

// Repartitioned says that a log has got other partitions, and who did it.
type Repartitioned struct {
	Log        string    `json:"log"`
	Generation uint32    `json:"generation"` // that was opened
	Before     int       `json:"before"`
	Partitions int       `json:"partitions"`
	By         string    `json:"by"`
	Note       string    `json:"note,omitempty"`
	At         time.Time `json:"at"`
}

// RepartitionedSubject is where it is told of a log.
func RepartitionedSubject(log string) message.Subject {
	return message.NewSubject(message.Operator, "repartitioned", log)
}

func partitionContracts() []message.Contract {
	return []message.Contract{{
		Subjects: "operator.repartitioned.*", Type: "operator.repartitioned.v1", Owner: "platform", Route: message.ByLog,
		Doc:         "A log, the last token, has got other partitions. Not said: it has those that it had.",
		Says:        []string{"operator.partition"},
		Hears:       []string{"operator.journal"},
		ContentType: "application/json",
		Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["log","generation","before","partitions","by","at"],
"properties":{"log":{"type":"string"},"generation":{"type":"integer","minimum":1},"before":{"type":"integer","minimum":1},
"partitions":{"type":"integer","minimum":1},"by":{"type":"string"},"note":{"type":"string"},"at":{"type":"string","format":"date-time"}}}`),
		Example: json.RawMessage(`{"log":"device","generation":2,"before":1,"partitions":4,"by":"kim","note":"rules lag","at":"2026-11-23T03:00:00Z"}`),
	}}
}
