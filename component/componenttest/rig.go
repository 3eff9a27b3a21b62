// Package componenttest holds components to what everybody may rely on, and runs them in tests: on the engine in memory,
// with a directory of their own, and with faults to order. A [Rig] made inside a bubble of testing/synctest runs in the
// bubble's time, so that back-off and expiry take none.
package componenttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/operator"
)

// patience is how long anything is waited for before the test fails.
const patience = time.Minute

// Rig runs components as one process does, again and again on the same data.
type Rig struct {
	// Bus is the engine; its faults are for tests to use.
	Bus *mem.Bus
	// Node names the process; "n1" unless changed before Start.
	Node string
	// Dir holds the components' directories.
	Dir string
	// Config is each component's configuration, by its name.
	Config map[string]json.RawMessage
	// Over puts more on the process's bus, where it is set before Start.
	Over func(bus.Bus) bus.Bus
	// Host is the process as it was started last.
	Host *component.Host

	tb     testing.TB
	queued []message.Pattern // what goes to the queue, beside what contracts send there
	faults *faults
	stop   func()
}

// New makes a rig; what it started is stopped at the test's end.
func New(tb testing.TB) *Rig {
	r := &Rig{Bus: mem.New(mem.Options{}), Node: "n1", Dir: tb.TempDir(), Config: map[string]json.RawMessage{}, tb: tb, faults: &faults{}, stop: func() {}}
	tb.Cleanup(r.Close)
	return r
}

// Close stops the process and the engine. In a bubble call it before the bubble ends.
func (r *Rig) Close() {
	r.Stop()
	if err := r.Bus.Close(); err != nil {
		r.tb.Error(err)
	}
}

// Start runs the specs. A second start on the same rig is a process that starts again; stop the first before.
func (r *Rig) Start(specs ...component.Spec) {
	r.tb.Helper()
	b := bus.Bus(faulty{r.Bus, r.faults})
	if r.Over != nil {
		b = r.Over(b)
	}
	r.Host = &component.Host{Bus: b, Catalog: catalog.Default(), Dir: r.Dir, Node: r.Node, Specs: specs, Config: r.Config,
		Log: slog.New(slog.NewTextHandler(r.tb.Output(), &slog.HandlerOptions{Level: slog.LevelError}))}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	host := r.Host
	go func() { done <- host.Run(ctx) }()
	r.stop = func() {
		cancel()
		late := time.NewTimer(2 * patience)
		defer late.Stop()
		select {
		case err := <-done:
			if err != nil {
				r.tb.Error(err)
			}
		case <-late.C:
			r.tb.Fatal("the process does not stop")
		}
	}
}

// Stop stops the process gracefully.
func (r *Rig) Stop() {
	stop := r.stop
	r.stop = func() {}
	stop()
}

// FailBefore makes the next n batches of an outbox fail as if the process had died before they were written.
func (r *Rig) FailBefore(n int) { r.faults.order(n, false) }

// FailAfter makes the next n batches of an outbox be written, and their component die before it hears of it.
func (r *Rig) FailAfter(n int) { r.faults.order(n, true) }

// Faults is how many of the ordered faults were met.
func (r *Rig) Faults() int { return r.faults.count() }

// Message makes a message of a device, complete with id and trace.
func Message(subject message.Subject, device, data string) *message.Message {
	now := time.Now()
	return &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Device: device, Subject: subject,
		Source: "//naru/test", ContentType: "application/json", Data: []byte(data)}
}

// Say appends messages to the logs they belong to, or puts them into the queue where their contract says so. All are on
// disk when it returns.
func (r *Rig) Say(ms ...*message.Message) {
	r.tb.Helper()
	ctx := context.Background()
	for _, m := range ms {
		k := catalog.Default().Find(m.Subject)
		if k != nil && k.Route == message.ByQueue || slices.ContainsFunc(r.queued, func(p message.Pattern) bool { return p.Matches(m.Subject) }) {
			r.Put(m)
			continue
		}
		l, err := r.Bus.Log(ctx, m.Subject.Namespace(), bus.LogOptions{})
		if err != nil {
			r.tb.Fatal(err)
		}
		a, err := l.Appender(ctx, bus.AppenderOptions{Name: "test", Owner: message.NewID(time.Now())})
		if err != nil {
			r.tb.Fatal(err)
		}
		if _, err := bus.AppendSync(ctx, a, m); err != nil {
			r.tb.Fatal(err)
		}
		if err := a.Close(ctx); err != nil {
			r.tb.Fatal(err)
		}
	}
}

// Put puts messages into the queue, whatever their contracts.
func (r *Rig) Put(ms ...*message.Message) {
	r.tb.Helper()
	q, err := r.Bus.Queue(context.Background(), component.CommandQueue)
	if err != nil {
		r.tb.Fatal(err)
	}
	for _, m := range ms {
		if err := q.Put(context.Background(), m, false); err != nil {
			r.tb.Fatal(err)
		}
	}
}

// Await waits until a consumer's newest report on a log satisfies f, and gives it.
func (r *Rig) Await(consumer, log string, f func(component.Report) bool) (found component.Report) {
	r.tb.Helper()
	var last component.Report
	r.Until(func() bool {
		for _, rep := range r.Host.Peers().Reports() {
			if rep.Consumer == consumer && rep.Log == log {
				if last = rep; f(rep) {
					found = rep
					return true
				}
			}
		}
		return false
	}, func() string {
		text, _ := json.Marshal(last) // a Report can be written
		return consumer + " on " + log + " is not as awaited; its last report is " + string(text)
	})
	return found
}

// Until waits for something that happens by itself; what says what is missing.
func (r *Rig) Until(happened func() bool, what func() string) {
	r.tb.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !happened() {
		select {
		case <-tick.C:
		case <-late.C:
			r.tb.Fatal(what())
		}
	}
}

// Running waits until a component does its work.
func (r *Rig) Running(name string) {
	r.tb.Helper()
	state := ""
	r.Until(func() bool {
		for _, h := range r.Host.Health() {
			if h.Name == name {
				state = h.State + " " + h.Fault
				return h.State == "running"
			}
		}
		return false
	}, func() string { return name + " does not run: " + state })
}

// Settled waits until a component has given each message of a log its fate and nothing waits. It holds the outcomes
// against the headers: what was accepted must be what is finished, in count and in sum.
func (r *Rig) Settled(consumer, log string) component.Report {
	r.tb.Helper()
	l, err := r.Bus.Log(context.Background(), log, bus.LogOptions{})
	if err != nil {
		r.tb.Fatal(err)
	}
	info, err := l.Info(context.Background())
	if err != nil {
		r.tb.Fatal(err)
	}
	g := info.Generations[len(info.Generations)-1]
	last := make([]uint64, len(g.Partitions))
	for i, p := range g.Partitions {
		last[i] = r.lastSaid(l, g.Number, p)
	}
	rep := r.Await(consumer, log, func(rep component.Report) bool {
		return rep.Position.Generation == g.Number && rep.Position.Sequence >= last[rep.Position.Partition] && rep.Waiting.Count == 0
	})
	if owed, finished := Balance(rep); owed != finished {
		r.tb.Errorf("%s on %s: accepted %+v, finished %+v", consumer, log, owed, finished)
	}
	return rep
}

// lastSaid is the newest batch of a partition that has a message in it: who derives batches into the log that he hears
// leaves marks behind it that are nobody's to finish.
func (r *Rig) lastSaid(l bus.Log, generation uint32, p bus.Partition) uint64 {
	for seq := p.Last; seq >= p.First && seq > 0; seq-- {
		s, err := l.Fetch(context.Background(), bus.Position{Generation: generation, Partition: p.Number, Sequence: seq})
		if err != nil || s.Err != nil || s.Batch.Count > 0 {
			return seq
		}
	}
	return 0
}

// Balance is what the headers say was accepted, and what the outcomes and what is parked say became of it.
func Balance(r component.Report) (owed, finished component.Sum) {
	for _, row := range r.Rows {
		owed = owed.Plus(row.Upto.Minus(row.Start))
	}
	finished = r.Waiting
	for _, s := range r.Outcomes {
		finished = finished.Plus(s)
	}
	return owed, finished
}

// Read gives all messages of a log, in the order of their partition's batches.
func (r *Rig) Read(log string) (list []*message.Message) {
	r.tb.Helper()
	ctx := context.Background()
	l, err := r.Bus.Log(ctx, log, bus.LogOptions{})
	if err != nil {
		r.tb.Fatal(err)
	}
	info, err := l.Info(ctx)
	if err != nil {
		r.tb.Fatal(err)
	}
	for _, g := range info.Generations {
		for _, p := range g.Partitions {
			for seq := p.First; seq <= p.Last; seq++ {
				s, err := l.Fetch(ctx, bus.Position{Generation: g.Number, Partition: p.Number, Sequence: seq})
				if err = errors.Join(err, s.Err); err != nil {
					r.tb.Fatal(err)
				}
				var m message.Message
				c := s.Batch.Cursor()
				for c.Next(&m) {
					list = append(list, m.Clone())
				}
				if c.Err() != nil {
					r.tb.Fatal(c.Err())
				}
			}
		}
	}
	return list
}

// Said is what a component said, in all logs, without its dead letters and alarms. It is known by its source, so a
// component that gives messages a source of their own is not found.
func (r *Rig) Said(name string) (list []*message.Message) {
	r.tb.Helper()
	for _, log := range message.Namespaces() {
		for _, m := range r.Read(log) {
			if strings.HasSuffix(m.Source, "/"+name) && m.Subject.Token(1) != "dead" {
				list = append(list, m)
			}
		}
	}
	return list
}

// Buried is [Rig.Dead], once there are n letters: they are said behind the commit that decides their messages' fates.
func (r *Rig) Buried(name string, n int) (letters []*message.Message, dead []operator.Dead) {
	r.tb.Helper()
	r.Until(func() bool { letters, dead = r.Dead(name); return len(letters) >= n }, func() string {
		return fmt.Sprintf("%d letters of %s are there; want %d", len(letters), name, n)
	})
	return letters, dead
}

// Dead is the dead letters of a component, each with its letter.
func (r *Rig) Dead(name string) (letters []*message.Message, dead []operator.Dead) {
	r.tb.Helper()
	for _, m := range r.Read(message.Operator) {
		if m.Subject != operator.DeadSubject(name) {
			continue
		}
		var d operator.Dead
		if err := json.Unmarshal(m.Data, &d); err != nil {
			r.tb.Fatal(err)
		}
		letters, dead = append(letters, m), append(dead, d)
	}
	return letters, dead
}
