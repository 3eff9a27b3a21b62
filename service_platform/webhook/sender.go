package webhook

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/outbound"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// sender gives a destination its messages.
type sender struct {
	w       *Webhook
	d       *Destination
	version string
	breaker outbound.Breaker

	mu    sync.Mutex
	fault string // why the last call failed; empty where it did not
	at    time.Time
	sent  uint64
}

func newSender(w *Webhook, d *Destination) *sender { return &sender{w: w, d: d, version: d.version()} }

// child declares the destination as a consumer of its own.
func (s *sender) child() component.Child {
	calls := s.d.calls()
	return component.Child{
		Name: s.d.Name, Doc: cmp.Or(s.d.Description, "what goes to "+s.d.URL), Hears: []message.Pattern{message.Pattern(serviceplatform.SendSubject(s.d.Name))},
		Calls: callsMost, Retry: s.d.retry(), Version: s.version,
		Build: func(env component.Env) (*component.Part, error) {
			if s.d.Paused {
				env.Calls(0)
			} else {
				env.Calls(calls)
			}
			return &component.Part{Call: s.call, Key: keyOf}, nil
		},
	}
}

// keyOf is what keeps its order: a device's messages of one action of one rule, whatever its version.
func keyOf(m *message.Message) string {
	rule, _ := m.Properties.Get(serviceplatform.SendRule)
	rule, _, _ = strings.Cut(rule, "@")
	action, _ := m.Properties.Get(serviceplatform.SendAction)
	return m.Device + "\x00" + rule + "\x00" + action
}

// secretWait is how long a message waits for a secret that is not there.
const secretWait = 10 * time.Second

// call gives the destination a message. What it answers is its fate; where it is dead, the rule is told.
func (s *sender) call(ctx context.Context, m *message.Message, try component.Try) ([]*message.Message, error) {
	if !s.d.owes(m) {
		return nil, component.ErrNotMatched // was said before, and is the component's
	}
	if k, _ := s.w.book.Known(s.d.Name); k != nil && k.Value.Paused { // since just now: this sender is about to end
		return nil, &component.RetryAfter{Err: errors.New(s.d.Name + " is paused"), After: time.Second, Uncounted: true}
	}
	if now := s.w.env.Now(); !m.Expires.IsZero() && !now.Before(m.Expires) {
		err := message.Rejectf(message.Expired, "%s was not given it within %s%s", s.d.Name, m.Expires.Sub(m.Recorded()).Round(time.Second), s.because())
		return s.dead(m, try, message.Expired, err)
	}
	t, err := s.target(m)
	if err != nil {
		s.ended(err)
		return s.unsent(m, try, &component.RetryAfter{Err: err, After: secretWait, Uncounted: true})
	}
	a := outbound.Attempt{N: try.N, Deadline: s.w.env.Now().Add(t.Timeout)}
	r := outbound.Binary(m, a)
	if s.d.Mode == "structured" {
		r = outbound.Structured(m, a)
	}
	_, err = s.w.client.Send(ctx, t, r)
	var later *outbound.Later
	var no *message.Rejection
	switch {
	case err == nil:
		s.ended(nil)
		s.w.calls.WithLabelValues(s.d.Name, "handled").Inc()
		return nil, nil
	case errors.As(err, &later):
		// While the breaker is open messages are asked for all the same, unlike a worker's: each has an end of its own (ttl, give_up_after) that
		// must come in time, though nothing is sent.
		if later.Kind != "breaker" { // which has the fault of before
			s.ended(err)
		}
		again := &component.RetryAfter{Err: err, After: later.After, Uncounted: later.Uncounted}
		if try.Last && !later.Uncounted {
			say, _ := s.dead(m, try, message.RetriesExhausted, err)
			return say, again
		}
		s.w.calls.WithLabelValues(s.d.Name, "later").Inc()
		if later.Uncounted {
			return s.unsent(m, try, again)
		}
		return nil, again
	case errors.As(err, &no):
		s.ended(err)
		return s.dead(m, try, no.Reason, err)
	}
	return nil, err
}

// unsent is of a message that could not be sent, which is no attempt: it waits, but not for ever.
func (s *sender) unsent(m *message.Message, try component.Try, again *component.RetryAfter) ([]*message.Message, error) {
	most := s.d.giveUp()
	if s.w.env.Now().Sub(try.First) < most {
		return nil, again
	}
	return s.dead(m, try, message.RetriesExhausted, message.Rejectf(message.RetriesExhausted, "%s could not be given it for %s: %w", s.d.Name, most, again.Err))
}

func (s *sender) dead(m *message.Message, try component.Try, reason message.Reason, err error) ([]*message.Message, error) {
	s.w.calls.WithLabelValues(s.d.Name, "dead").Inc()
	return []*message.Message{failed(s.d.Name, m, try.N, reason, err)}, err
}

// target is whom to call for a message. An error is of a secret that is not there.
func (s *sender) target(m *message.Message) (*outbound.Target, error) {
	t := &outbound.Target{URL: s.d.URL, Timeout: s.d.timeout(), Header: outbound.Header{}, Breaker: &s.breaker}
	own := outbound.Header{}
	for i := range s.d.Headers {
		h := &s.d.Headers[i]
		v, err := s.w.secrets.of(h)
		if err != nil {
			return nil, err
		}
		own[strings.ToLower(h.Name)] = v
	}
	for name, v := range m.Properties.All() {
		if h, ok := strings.CutPrefix(name, serviceplatform.SendHeader); ok {
			t.Header[h] = v
		}
	}
	maps.Copy(t.Header, own) // the destination's own are its secrets, and nobody sends others in their place
	if p, _ := m.Properties.Get(serviceplatform.SendPath); p != "" {
		t.URL = strings.TrimSuffix(t.URL, "/") + "/" + strings.TrimPrefix(p, "/")
	}
	return t, nil
}

func (s *sender) ended(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = s.w.env.Now()
	if s.fault = ""; err != nil {
		s.fault = cut(err.Error())
		return
	}
	s.sent++
}

// because is the last fault, as an end of a sentence.
func (s *sender) because() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault == "" {
		return ""
	}
	return ": " + s.fault
}
