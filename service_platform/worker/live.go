package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/internal/outbound"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

// live is a worker as it runs in this process, over all its starts.
type live struct {
	w       *Workers
	name    string
	tally   tally
	breaker *outbound.Breaker

	mu      sync.Mutex
	rec     Record
	upto    uint64 // the revision of it
	room    int    // calls that instances take, with kind sdk
	hub     *hub
	open    func(int) // how many calls are made at once; nil while the worker does not run here
	waiters map[message.ID]chan answerOf
	timer   *time.Timer // of the breaker
}

// answerOf is what a caller waits for.
type answerOf struct {
	data        []byte
	contentType string
	err         error
}

func newLive(w *Workers, name string) *live {
	return &live{w: w, name: name, breaker: &outbound.Breaker{}, waiters: map[message.ID]chan answerOf{}}
}

// set takes a worker over as the table has it; an older one changes nothing.
func (l *live) set(k *kept) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.Revision <= l.upto {
		return
	}
	r := k.Value.Record
	if was := l.rec; was.URL != r.URL || was.Mode != r.Mode || !maps.Equal(was.Headers, r.Headers) || was.Timeout != r.Timeout || was.Paused && !r.Paused {
		l.breaker.Now(l.w.env.Now()) // somebody has done something about it
	}
	l.rec, l.upto = r, k.Revision
	l.gate()
}

// gate sets how many calls are made at once: none while it is paused, has no instance, or its breaker is open. mu is held.
func (l *live) gate() {
	if l.open == nil {
		return
	}
	n := l.rec.Concurrency
	now := l.w.env.Now()
	if l.rec.Kind == KindSDK {
		n = min(n, l.room)
	} else if state, left := l.breaker.Look(now); state != outbound.Closed {
		if n = 1; left > 0 {
			n = 0
			if l.timer != nil {
				l.timer.Stop()
			}
			l.timer = time.AfterFunc(left, func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.gate()
			})
		}
	}
	if l.rec.Paused {
		n = 0
	}
	l.open(n)
}

// child is the worker as a consumer.
func (l *live) child(r Record) component.Child {
	return component.Child{Name: r.Name, Doc: "worker " + r.Name, Hears: r.hears(), Calls: r.Concurrency, From: component.Newest, Version: r.version(),
		Retry: component.Retry{First: 200 * time.Millisecond, Most: time.Minute, Attempts: r.Attempts, ParkedMax: 20_000},
		Build: func(env component.Env) (*component.Part, error) { return l.build(env, r) }}
}

// build makes the handlers of one start.
func (l *live) build(env component.Env, r Record) (*component.Part, error) {
	p := &component.Part{Key: keyOf}
	call := l.overHTTP(r)
	var h *hub
	if r.Kind == KindSDK {
		h = newHub(env.Now, func() {
			go func() { // the hub is locked
				l.mu.Lock()
				defer l.mu.Unlock()
				if l.hub == h {
					var n int
					n, l.room = h.size()
					l.w.up.WithLabelValues(l.name).Set(float64(n))
					l.gate()
				}
			}()
		})
		call = l.overHub(h, r)
	}
	p.Call = func(ctx context.Context, m *message.Message, try component.Try) ([]*message.Message, error) {
		return l.call(ctx, env, r, call, m, try)
	}
	env.Calls(0)
	p.Run = func(ctx context.Context, ready func()) error {
		l.mu.Lock()
		l.open, l.hub, l.room = env.Calls, h, 0
		l.gate()
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.open, l.hub, l.room = nil, nil, 0
			if l.timer != nil {
				l.timer.Stop()
			}
		}()
		ready()
		var group sync.WaitGroup
		defer group.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		if h != nil {
			group.Go(func() { h.sweep(ctx) })
		}
		return l.w.env.Bus.Answer(ctx, wire.On(l.name), l.w.told(l.answerTo), func() {})
	}
	return p, nil
}

// keyOf keeps the order of a device's messages, and of a subject's. Work that is of no device has none.
func keyOf(m *message.Message) string {
	if m.Device == "" && strings.HasPrefix(string(m.Subject), "service_platform.worker.") {
		return m.ID.String()
	}
	return m.Key()
}

// result is what a worker did with a message.
type result struct {
	say   []*message.Message
	reply *answerOf
}

type calling func(ctx context.Context, m *message.Message, try component.Try) (result, error)

// call has the worker handle a message, and tells its end to who counts and to who waits for it.
func (l *live) call(ctx context.Context, env component.Env, r Record, do calling, m *message.Message, try component.Try) ([]*message.Message, error) {
	if m.Expired(env.Now()) {
		return nil, message.Rejectf(message.Expired, "it lost its worth at %s, before worker %s had it", m.Expires.UTC().Format(time.RFC3339Nano), l.name)
	}
	if l.asked(m) {
		if err := mayReach(m.ReplyTo, l.name); err != nil {
			return nil, fmt.Errorf("the answer is wanted where worker %s does not speak: %w", l.name, err)
		}
	}
	began := time.Now()
	res, err := do(ctx, m, try)
	if ctx.Err() != nil && err != nil {
		return nil, err
	}
	for _, s := range res.say {
		if reach := mayReach(s.Subject, l.name); reach != nil {
			res.say, err = nil, reach
			break
		}
		if env.Catalog.Find(s.Subject) != nil {
			s.Type = "" // the contract's
		}
		s.QoS = 1 // what follows from a message that was on disk is not said in passing
	}
	l.tally.add(time.Since(began), kindOf(err))
	if r.Kind == KindHTTP {
		l.mu.Lock()
		l.gate()
		l.mu.Unlock()
	}
	if err == nil && res.reply != nil && l.asked(m) {
		res.say = append(res.say, &message.Message{Subject: m.ReplyTo, Correlation: m.Correlation, ContentType: res.reply.contentType, Data: res.reply.data, QoS: 1})
	}
	l.answer(m.ID, res.reply, err, try)
	return res.say, err
}

// asked says whether a message wants its answer said. Only work does: what a worker hears besides may have a response topic on which
// its sender may not speak, and so nobody speaks for him. Work is given by those inside.
func (l *live) asked(m *message.Message) bool {
	return m.ReplyTo != "" && m.Subject == serviceplatform.WorkSubject(l.name)
}

// answer gives a call's end to who waits for it. A failure that is tried again is none yet.
func (l *live) answer(id message.ID, reply *answerOf, err error, try component.Try) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.waiters[id]
	if c == nil {
		return
	}
	var rejected *message.Rejection
	switch {
	case err == nil || errors.Is(err, component.ErrNotMatched):
		a := answerOf{}
		if reply != nil {
			a = *reply
		}
		c <- a
	case errors.As(err, &rejected) || try.Last:
		c <- answerOf{err: err}
	default:
		return
	}
	delete(l.waiters, id)
}

// wait has the end of a message's call told.
func (l *live) wait(id message.ID) (end <-chan answerOf, stop func()) {
	c := make(chan answerOf, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiters[id] = c
	return c, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiters, id)
	}
}

// overHTTP calls a worker of kind http.
func (l *live) overHTTP(r Record) calling {
	to := r.target()
	to.Breaker = l.breaker
	return func(ctx context.Context, m *message.Message, try component.Try) (result, error) {
		a := outbound.Attempt{N: try.N, Deadline: l.w.env.Now().Add(r.timeout())}
		q := outbound.Binary(m, a)
		if r.Mode == "structured" {
			q = outbound.Structured(m, a)
		}
		got, err := l.w.client.Send(ctx, to, q)
		if err != nil {
			return result{}, later(err)
		}
		waited := l.asked(m)
		l.mu.Lock()
		waited = waited || l.waiters[m.ID] != nil
		l.mu.Unlock()
		say, err := got.Events()
		if err != nil && (!waited || got.Event()) {
			return result{}, err
		}
		if err != nil || len(say) == 0 {
			return result{reply: &answerOf{data: got.Body, contentType: got.Header.Get("Content-Type")}}, nil // it is an answer, and no event
		}
		return result{say: say, reply: &answerOf{data: say[0].Data, contentType: say[0].ContentType}}, nil
	}
}

// later makes a failure of a call one that the runner knows.
func later(err error) error {
	var l *outbound.Later
	if !errors.As(err, &l) {
		return err
	}
	return &component.RetryAfter{Err: &failure{l.Kind, l}, After: l.After, Uncounted: l.Uncounted}
}

// overHub calls a worker of kind sdk.
func (l *live) overHub(h *hub, r Record) calling {
	return func(ctx context.Context, m *message.Message, try component.Try) (result, error) {
		c := wire.Call{Attempt: try.N, Last: try.Last, Timeout: r.timeout(), Message: wire.Message{ID: m.ID.String(), Trace: m.Trace.Traceparent(), Subject: string(m.Subject), Source: m.Source,
			Type: m.Type, Device: m.Device, Time: m.Happened(), Expires: m.Expires, ContentType: m.ContentType, Data: m.Data}}
		if !m.Cause.IsZero() {
			c.Message.Cause = m.Cause.String()
		}
		got, err := h.do(ctx, keyOf(m), c)
		if err != nil {
			if errors.Is(err, errLost) {
				err = &failure{"instance_lost", err}
			}
			return result{}, err
		}
		var res result
		if n := len(got.Say); n > outbound.EventsMax {
			return result{}, message.Rejectf(message.NotDecodable, "worker %s says %d messages; up to %d may follow from one", l.name, n, outbound.EventsMax)
		}
		got.Detail = cut(got.Detail)
		for i := range got.Say {
			s := &got.Say[i]
			out := &message.Message{Subject: message.Subject(s.Subject), Type: s.Type, Device: s.Device, Time: s.Time, Expires: s.Expires, ContentType: s.ContentType, Data: s.Data}
			if err := out.Subject.Valid(); err != nil {
				return result{}, message.Rejectf(message.NotDecodable, "what worker %s says: %w", l.name, err)
			}
			res.say = append(res.say, out)
		}
		if got.Reply != nil || got.ReplyType != "" {
			res.reply = &answerOf{data: got.Reply, contentType: got.ReplyType}
		}
		switch got.End {
		case wire.Done:
			return res, nil
		case wire.NotMatched:
			return res, component.ErrNotMatched
		case wire.Rejected:
			return res, message.Rejectf(message.ReceiverRefused, "%s", got.Detail)
		case wire.Failed:
			err := error(&failure{"handler_error", errors.New(got.Detail)})
			if got.RetryAfter > 0 {
				err = &component.RetryAfter{Err: err, After: got.RetryAfter}
			}
			return res, err
		}
		return result{}, message.Rejectf(message.NotDecodable, "an instance ended a call with %q; want %s, %s, %s or %s", got.End, wire.Done, wire.NotMatched, wire.Rejected, wire.Failed)
	}
}

// cut bounds what is told of a failure: it is kept, shown and said with each attempt.
func cut(s string) string {
	if len(s) > detailMax {
		return strings.ToValidUTF8(s[:detailMax], "") + "…"
	}
	return s
}

const detailMax = 4 << 10

// joined gives the hub for an instance.
func (l *live) joined() (*hub, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec.Kind != KindSDK {
		return nil, answer.Bad(fmt.Errorf("worker %s is of kind %s, and has no instances that connect", l.name, l.rec.Kind))
	}
	return l.hub, nil
}
