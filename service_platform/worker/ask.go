package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

const (
	askMost     = pollMost + 3*time.Second // for an answer of another process
	dataMax     = 5 << 20                  // of the results in one request, by HTTP; JSON makes it larger by a third
	callDefault = 10 * time.Second
	callMost    = 2 * time.Minute
)

// ask has a question answered where the worker runs: here, or in another process over the bus.
func (w *Workers) ask(ctx context.Context, q *wire.Question) (*wire.Answer, error) {
	l, err := w.alive(q.Worker)
	if err != nil {
		return nil, err
	}
	if l.runs() {
		return l.answerTo(ctx, q)
	}
	raw, err := wire.Pack(q)
	if err != nil {
		return nil, err
	}
	most := askMost
	if q.Work != nil {
		most += q.Work.Timeout
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	if raw, err = w.env.Bus.Ask(ctx, wire.On(q.Worker), raw); err != nil {
		return nil, w.elsewhere(l, err)
	}
	a, err := wire.Unpack[wire.Answer](raw)
	if err != nil {
		return nil, fmt.Errorf("the answer of the process that runs worker %s: %w", l.name, err)
	}
	if r := a.Refused; r != nil {
		return a, &answer.Problem{Status: r.Status, Title: r.Title, Detail: r.Detail, Reason: r.Reason, Code: r.Code}
	}
	return a, nil
}

// elsewhere says why a worker could not be asked that does not run here.
func (w *Workers) elsewhere(l *live, err error) error {
	if s := w.stats.of(l.name, w.env.Now()); s != nil && s.Node != w.env.Node {
		return answer.Unavailable("worker %s ran on node %s, which does not answer, and another process takes it over when its lease has ended: %s", l.name, s.Node, err)
	}
	if errors.Is(err, bus.ErrNobody) {
		return answer.Unavailable("worker %s is starting", l.name)
	}
	return answer.Unavailable("worker %s cannot be reached over the bus: %s", l.name, err)
}

// why tells an instance that joins over the bus why nobody answers by the worker's name. It takes none in: whose account may speak
// to one worker would speak to any here.
func (w *Workers) why(_ context.Context, q *wire.Question) (*wire.Answer, error) {
	l, err := w.alive(q.Worker)
	if err == nil {
		_, err = l.joined()
	}
	if err != nil {
		return nil, err
	}
	return nil, w.elsewhere(l, bus.ErrNobody)
}

// told answers what was asked over the bus, with a refusal where there is an error.
func (w *Workers) told(ask func(context.Context, *wire.Question) (*wire.Answer, error)) func(context.Context, []byte) []byte {
	return func(ctx context.Context, raw []byte) []byte {
		a := &wire.Answer{}
		q, err := wire.Unpack[wire.Question](raw)
		if err != nil {
			err = answer.Bad(fmt.Errorf("the question: %w", err))
		} else if got, aerr := ask(ctx, q); aerr == nil {
			a = got
		} else if err = aerr; got != nil {
			a.Worked = got.Worked
		}
		if err != nil {
			p := &answer.Problem{Status: http.StatusInternalServerError, Title: "Internal Server Error", Detail: err.Error()}
			errors.As(err, &p)
			a.Refused = &wire.Refusal{Status: p.Status, Title: p.Title, Detail: p.Detail, Reason: p.Reason, Code: p.Code}
		}
		packed, err := wire.Pack(a)
		if err != nil {
			w.env.Log.Error("write an answer", "error", err)
		}
		return packed
	}
}

// runs says whether the worker runs in this process.
func (l *live) runs() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open != nil
}

// answerTo answers where the worker runs.
func (l *live) answerTo(ctx context.Context, q *wire.Question) (*wire.Answer, error) {
	if q.Do == wire.DoWork && q.Work != nil {
		return l.work(ctx, q.Work)
	}
	h, err := l.joined()
	if err != nil {
		return nil, err
	}
	if h == nil {
		return nil, answer.Unavailable("worker %s is starting", l.name)
	}
	switch {
	case q.Do == wire.DoJoin && q.Join != nil:
		i, err := h.join(q.Join.Name, q.Join.Concurrency)
		if err != nil {
			return nil, err
		}
		return &wire.Answer{Joined: &wire.Joined{ID: i.id, LeaseSeconds: leaseTime.Seconds(), DataMax: min(dataMax, l.w.env.Bus.MaxMessage())}}, nil
	case q.Do == wire.DoPoll:
		calls, err := h.poll(ctx, q.ID, q.Has, l.w.env.Bus.MaxMessage())
		return &wire.Answer{Calls: calls}, err
	case q.Do == wire.DoResults:
		return &wire.Answer{}, h.results(q.ID, q.Results)
	case q.Do == wire.DoLeave:
		h.leave(q.ID)
		return &wire.Answer{}, nil
	}
	return nil, answer.Bad(fmt.Errorf("do %q: want %s, %s, %s, %s or %s, with what belongs to it", q.Do, wire.DoJoin, wire.DoPoll, wire.DoResults, wire.DoLeave, wire.DoWork))
}

// work says work for the worker and waits for its answer. Where none comes in time the message keeps its way: it is handled,
// or has another fate. What was said is told with an error, too.
func (l *live) work(ctx context.Context, k *wire.Work) (*wire.Answer, error) {
	w := l.w
	if k.Timeout <= 0 || k.Timeout > callMost {
		return nil, answer.Bad(fmt.Errorf("timeout %s: want more than nothing, and %s at most", k.Timeout, callMost))
	}
	now := w.env.Now()
	m := &message.Message{ID: message.NewID(now), Subject: serviceplatform.WorkSubject(l.name), Device: k.Device, ContentType: k.ContentType, Data: k.Data, QoS: 1, Expires: now.Add(k.Timeout)}
	if t, err := message.ParseTraceparent(k.Trace); err == nil {
		m.Trace = t
	}
	end, stop := l.wait(m.ID)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, k.Timeout)
	defer cancel()
	if err := w.env.Say(ctx, m); err != nil {
		return nil, err
	}
	a := &wire.Answer{Worked: &wire.Worked{Message: m.ID.String(), Trace: m.Trace.Traceparent()}}
	select {
	case got := <-end:
		if got.err != nil {
			return a, &answer.Problem{Status: http.StatusBadGateway, Title: "Bad Gateway", Detail: got.err.Error(), Reason: message.ReasonOf(got.err, message.RetriesExhausted).String()}
		}
		a.Worked.ContentType, a.Worked.Data = got.contentType, got.data
		return a, nil
	case <-ctx.Done():
		return a, &answer.Problem{Status: http.StatusGatewayTimeout, Title: "Gateway Timeout",
			Detail: fmt.Sprintf("worker %s did not answer within %s; what becomes of message %s tells `naru trace %s`", l.name, k.Timeout, m.ID, m.Trace.ID)}
	}
}
