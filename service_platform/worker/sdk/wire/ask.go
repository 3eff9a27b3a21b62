package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Anybody is the name on the bus that each process answers on which has workers. It tells who finds nobody by a worker's own name
// why that is so.
const Anybody = "service_platform.worker"

// On is the name on the bus that a worker is asked on, where it runs.
func On(worker string) string { return Anybody + "." + worker }

// What is asked.
const (
	DoJoin    = "join"
	DoPoll    = "poll"
	DoResults = "results"
	DoLeave   = "leave"
	DoWork    = "work"
)

// Question is what an instance, or who wants work done, asks over the bus.
type Question struct {
	Do      string   `json:"do"`
	Worker  string   `json:"worker"`
	ID      string   `json:"id,omitempty"` // the instance's, unless it joins
	Join    *Join    `json:"join,omitempty"`
	Has     []uint64 `json:"has,omitempty"` // of a poll
	Results []Result `json:"results,omitempty"`
	Work    *Work    `json:"work,omitempty"`
}

// Work is to be done by a worker, and answered in time.
type Work struct {
	Timeout     time.Duration `json:"timeout_ns"`
	Trace       string        `json:"traceparent,omitempty"`
	Device      string        `json:"device,omitempty"`
	ContentType string        `json:"content_type,omitempty"`
	Data        []byte        `json:"data,omitempty"`
}

// Answer answers a question.
type Answer struct {
	Refused *Refusal `json:"refused,omitempty"` // then nothing else counts, except of work which message it was
	Joined  *Joined  `json:"joined,omitempty"`
	Calls   []Call   `json:"calls,omitempty"`
	Worked  *Worked  `json:"worked,omitempty"`
}

// Worked is what came of work.
type Worked struct {
	Message     string `json:"message"` // its id
	Trace       string `json:"traceparent"`
	ContentType string `json:"content_type,omitempty"`
	Data        []byte `json:"data,omitempty"`
}

// Refusal is an answer that is no good one, as a problem is over HTTP.
type Refusal struct {
	Status int    `json:"status"`
	Title  string `json:"title,omitempty"`
	Detail string `json:"detail"`
	Reason string `json:"reason,omitempty"`
	Code   string `json:"code,omitempty"`
}

// packed is what travels over the bus. bare gives a copy, and where in it data stands: that goes beside the JSON, which would
// make it larger by a third.
type packed[T any] interface {
	*T
	bare() (T, []*[]byte)
}

func (q *Question) bare() (c Question, data []*[]byte) {
	c = *q
	c.Results = slices.Clone(q.Results)
	for i := range c.Results {
		r := &c.Results[i]
		data = append(data, &r.Reply)
		r.Say = slices.Clone(r.Say)
		for n := range r.Say {
			data = append(data, &r.Say[n].Data)
		}
	}
	if q.Work != nil {
		w := *q.Work
		c.Work, data = &w, append(data, &w.Data)
	}
	return c, data
}

func (a *Answer) bare() (c Answer, data []*[]byte) {
	c = *a
	c.Calls = slices.Clone(a.Calls)
	for i := range c.Calls {
		data = append(data, &c.Calls[i].Message.Data)
	}
	if a.Worked != nil {
		w := *a.Worked
		c.Worked, data = &w, append(data, &w.Data)
	}
	return c, data
}

// head is in front of the data.
type head[T any] struct {
	Sizes []int `json:"sizes"` // of the data, in order; -1 for none
	Value T     `json:"value"`
}

// Pack writes a question or an answer for the bus.
func Pack[T any, P packed[T]](v P) ([]byte, error) {
	bare, places := v.bare()
	h, data := head[T]{Sizes: make([]int, len(places))}, make([][]byte, len(places))
	size := 0
	for i, p := range places {
		data[i] = *p
		size += len(data[i])
		if h.Sizes[i] = len(data[i]); data[i] == nil {
			h.Sizes[i] = -1
		}
		*p = nil
	}
	h.Value = bare
	raw, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 4, 4+len(raw)+size)
	binary.BigEndian.PutUint32(out, uint32(len(raw)))
	out = append(out, raw...)
	for _, d := range data {
		out = append(out, d...)
	}
	return out, nil
}

var errShort = errors.New("it ends too early")

// Unpack reads what Pack wrote. What it gives refers to raw.
func Unpack[T any, P packed[T]](raw []byte) (P, error) {
	if len(raw) < 4 {
		return nil, errShort
	}
	n, rest := binary.BigEndian.Uint32(raw), raw[4:]
	if uint64(n) > uint64(len(rest)) {
		return nil, errShort
	}
	var h head[T]
	if err := json.Unmarshal(rest[:n], &h); err != nil {
		return nil, err
	}
	rest = rest[n:]
	value, places := P(&h.Value).bare()
	if len(places) != len(h.Sizes) {
		return nil, fmt.Errorf("it has %d pieces of data; want %d", len(h.Sizes), len(places))
	}
	for i, size := range h.Sizes {
		if size < 0 {
			continue
		}
		if size > len(rest) {
			return nil, errShort
		}
		*places[i], rest = rest[:size:size], rest[size:]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes are left over", len(rest))
	}
	return &value, nil
}
