// Package wire is what a worker's instances and the platform say to each other, in JSON over HTTP:
//
//	POST   /api/v1/workers/{worker}/instances               Join    -> Joined
//	POST   /api/v1/workers/{worker}/instances/{id}/calls    Poll    -> Calls; waits for some while there is none
//	POST   /api/v1/workers/{worker}/instances/{id}/results  Results -> nothing
//	DELETE /api/v1/workers/{worker}/instances/{id}
//
// and, with the same meaning, over the bus: a [Question] asked [On] the worker's name, written by [Pack]. Where nobody answers there,
// [Anybody] tells why.
//
// An instance is there as long as it asks: beyond its lease it is answered 410, and what it had is somebody else's.
package wire

import "time"

// Join is what an instance says of itself.
type Join struct {
	Name        string `json:"name"`        // for people
	Concurrency int    `json:"concurrency"` // calls at once
}

// Joined is what it is told.
type Joined struct {
	ID           string  `json:"id"`
	LeaseSeconds float64 `json:"lease_seconds"`
	// DataMax is how many bytes of data one request's results may have together; what one result says beyond it is refused.
	DataMax int `json:"data_max,omitempty"`
}

// Poll asks for calls.
type Poll struct {
	Has []uint64 `json:"has"` // the calls that the instance has in its hands
}

// Calls are given to an instance.
type Calls struct {
	Calls []Call `json:"calls"`
}

// Call is a message to be handled. The message's id is the key by which it is known again: it is the same for each attempt.
type Call struct {
	Number   uint64        `json:"number"`
	Attempt  int           `json:"attempt"`
	Last     bool          `json:"last,omitempty"` // fails it, the message is dead
	Timeout  time.Duration `json:"timeout_ns"`
	Deadline time.Time     `json:"deadline"`
	Message  Message       `json:"message"`
}

// Message is one that is heard or said.
type Message struct {
	ID          string    `json:"id,omitempty"`
	Trace       string    `json:"traceparent,omitempty"`
	Cause       string    `json:"cause,omitempty"`
	Subject     string    `json:"subject"`
	Source      string    `json:"source,omitempty"`
	Type        string    `json:"type,omitempty"`
	Device      string    `json:"device,omitempty"`
	Time        time.Time `json:"time,omitzero"`
	Expires     time.Time `json:"expires,omitzero"`
	ContentType string    `json:"content_type,omitempty"`
	Data        []byte    `json:"data,omitempty"`
}

// The ends of a call.
const (
	Done       = "done"
	NotMatched = "not_matched" // the message did not concern the worker
	Rejected   = "rejected"    // it is dead: it will never be handled
	Failed     = "failed"      // it is to be tried again
)

// Results are ends of calls.
type Results struct {
	Results []Result `json:"results"`
}

// Result is the end of a call. What it says is said where it is done or not matched, and with its dead letter where it dies.
type Result struct {
	Number     uint64        `json:"number"`
	End        string        `json:"end"`
	Detail     string        `json:"detail,omitempty"`
	RetryAfter time.Duration `json:"retry_after_ns,omitempty"`
	Say        []Message     `json:"say,omitempty"`
	Reply      []byte        `json:"reply,omitempty"`
	ReplyType  string        `json:"reply_type,omitempty"` // media type of it
}
