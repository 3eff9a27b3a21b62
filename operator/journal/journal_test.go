package journal

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// clock is a clock that tests move.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *clock) forward(d time.Duration) { c.at.Add(int64(d)) }

type rig struct {
	t     *testing.T
	clock clock
	bus   *mem.Bus
	host  *component.Host
	door  bus.Appender
	n     int
}

func newRig(t *testing.T) *rig { return newRigOf(t, Spec) }

func newRigOf(t *testing.T, spec component.Spec) *rig {
	r := &rig{t: t}
	r.clock.at.Store(time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC).UnixNano())
	r.bus = mem.New(mem.Options{Now: r.clock.now})
	r.host = &component.Host{Bus: r.bus, Catalog: catalog.Default(), Dir: t.TempDir(), Node: "n1", Now: r.clock.now, Specs: []component.Spec{spec},
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.host.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; r.bus.Close() })
	l, err := r.bus.Log(t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.door, err = l.Appender(t.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(r.clock.now())}); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) say(device string, tr message.Trace, cause *message.Message) *message.Message {
	r.t.Helper()
	r.n++
	m := &message.Message{ID: message.NewID(r.clock.now()), Trace: tr, Device: device, Subject: message.NewSubject("device", device, "telemetry"), Data: fmt.Append(nil, r.n)}
	if tr.ID.IsZero() {
		m.Trace = message.NewTrace(r.clock.now())
	}
	if cause != nil {
		if err := m.Follow(cause); err != nil {
			r.t.Fatal(err)
		}
	}
	if _, err := bus.AppendSync(r.t.Context(), r.door, m); err != nil {
		r.t.Fatal(err)
	}
	return m
}

// get asks until the answer is good and f is content: the journal is a moment behind the log.
func (r *rig) get(path string, v any, f func() bool) {
	r.t.Helper()
	h := r.host.Handler(func(*http.Request) bool { return true })
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code == http.StatusOK && json.Unmarshal(w.Body.Bytes(), v) == nil && f() {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			r.t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestJournalFindsMessagesTracesAndDevicesOverHours(t *testing.T) {
	r := newRig(t)
	var all []*message.Message
	for i := range 300 { // five hours, so that most minutes are rolled up
		all = append(all, r.say(fmt.Sprintf("d-%d", i%50), message.Trace{}, nil))
		r.clock.forward(time.Minute)
	}
	foreign := message.Trace{ID: message.TraceID{0xff, 1, 2, 3}, Span: message.NewSpan()}
	first := r.say("d-x", foreign, nil)
	r.clock.forward(40 * time.Minute)
	second := r.say("d-x", message.Trace{Span: message.NewSpan(), ID: foreign.ID}, first)

	var line Line
	for _, m := range []*message.Message{all[0], all[150], all[299], first, second} {
		r.get("/api/v1/messages/"+m.ID.String(), &line, func() bool { return line.ID == m.ID })
		if line.Data != string(m.Data) || line.Subject != m.Subject {
			t.Errorf("%s is found as %+v", m.ID, line)
		}
	}
	var view TraceView
	r.get("/api/v1/traces/"+foreign.ID.String(), &view, func() bool { return len(view.Messages) == 2 })
	if view.Messages[1].Cause != first.ID || view.Took != 40*time.Minute {
		t.Errorf("the trace is %+v", view)
	}
	var list List
	r.get("/api/v1/messages?device=d-7&limit=100", &list, func() bool { return len(list.Messages) == 6 })
	if list.Read > 40 {
		t.Errorf("%d batches were read to find 6 messages of one device among 300; the filters do not help", list.Read)
	}
	r.get("/api/v1/messages?since=2026-11-23T04:00:00Z&until=2026-11-23T04:09:30Z&limit=100", &list, func() bool { return len(list.Messages) == 10 })
	for i := 1; i < len(list.Messages); i++ {
		if list.Messages[i].Recorded.After(list.Messages[i-1].Recorded) {
			t.Error("the list is not newest first")
		}
	}
}

func TestJournalTellsFates(t *testing.T) {
	r := newRig(t)
	m := r.say("d-1", message.Trace{}, nil)
	var line Line
	r.get("/api/v1/messages/"+m.ID.String(), &line, func() bool { return line.Outcome == OutcomeHandled })
	if len(line.Fates) != 1 || line.Fates[0].Consumer != "operator.journal" {
		t.Errorf("fates %+v", line.Fates)
	}
}

func TestJournalRefusesBadQuestionsClearly(t *testing.T) {
	r := newRig(t)
	h := r.host.Handler(func(*http.Request) bool { return true })
	m := r.say("d-1", message.Trace{}, nil)
	var line Line
	r.get("/api/v1/messages/"+m.ID.String(), &line, func() bool { return true })
	for path, status := range map[string]int{
		"/api/v1/messages?since=yesterday":                      400,
		"/api/v1/messages?outcome=lost":                         400,
		"/api/v1/messages?limit=0":                              400,
		"/api/v1/messages?subject=a..b":                         400,
		"/api/v1/messages/no-id":                                400,
		"/api/v1/traces/00":                                     400,
		"/api/v1/messages/0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e": 404,
		"/api/v1/traces/0193d5a07b2c1a2b5d2f8a6b1c4e7f90":       404,
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		var p struct{ Detail string }
		if w.Code != status || json.Unmarshal(w.Body.Bytes(), &p) != nil || p.Detail == "" {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestAnAnswerHoldsWhatWasSaidBeforeTheQuestion(t *testing.T) {
	r := newRig(t)
	var list List
	r.get("/api/v1/messages", &list, func() bool { return true }) // it runs
	h := r.host.Handler(func(*http.Request) bool { return true })
	for range 5 {
		m := r.say("d-1", message.Trace{}, nil)
		for _, path := range []string{"/api/v1/messages/" + m.ID.String(), "/api/v1/traces/" + m.Trace.ID.String()} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if w.Code != http.StatusOK {
				t.Fatalf("%s: %d %s", path, w.Code, w.Body)
			}
		}
	}
}
