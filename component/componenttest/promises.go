package componenttest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// Case is what a component's own test knows of it.
type Case struct {
	Spec component.Spec
	// Config is its configuration in the test; the defaults where nil.
	Config json.RawMessage
	// Good gives messages that it handles, new ones with each call; what follows from them must be the same each time.
	// Nil where it hears nothing.
	Good func() []*message.Message
	// Poison gives a message that it cannot handle, now or ever. Nil where there is none.
	Poison func() *message.Message
}

// Promises holds a component to what everybody may rely on. It is meant for a component's own tests:
//
//	func TestRuleKeepsThePromises(t *testing.T) {
//		componenttest.Promises(t, componenttest.Case{Spec: rule.Spec, Good: readings, Poison: notJSON})
//	}
func Promises(t *testing.T, c Case) {
	t.Helper()
	t.Run("declares itself", func(t *testing.T) { declares(t, c) })
	t.Run("is built without side effects", func(t *testing.T) { built(t, c) })
	t.Run("runs alone and stops with all it started", func(t *testing.T) { stops(t, c) })
	if c.Poison != nil {
		t.Run("buries a poisonous message once, with cause and trace", func(t *testing.T) { buries(t, c) })
	}
	if c.Good != nil {
		t.Run("does twice as once when it dies between commit and append", func(t *testing.T) { once(t, c) })
	}
}

func (c Case) rig(t *testing.T) *Rig {
	r := New(t)
	r.queued = c.Spec.Takes
	if c.Config != nil {
		r.Config[c.Spec.Name] = c.Config
	}
	return r
}

// declares looks at the data of the Spec.
func declares(t testing.TB, c Case) {
	s := c.Spec
	namespace, rest, ok := strings.Cut(s.Name, ".")
	if !ok || rest == "" || strings.Contains(rest, ".") || !slices.Contains(append(message.Namespaces(), "device"), namespace) {
		t.Errorf("its name is %q; want <namespace>.<component>", s.Name)
	}
	if s.Doc == "" {
		t.Error("it has no doc")
	}
	for _, list := range [][]message.Pattern{s.Hears, s.Takes, s.Says} {
		for _, p := range list {
			if err := p.Valid(); err != nil {
				t.Error(err)
			}
		}
	}
	raw, err := json.Marshal(s.Defaults())
	if err != nil || len(raw) < 2 || raw[0] != '{' {
		t.Errorf("its default configuration is %s (%v); want a struct", raw, err)
	}
}

// built builds it with nothing it could touch.
func built(t testing.TB, c Case) {
	before := goroutines()
	env := component.Env{
		Spec: c.Spec, Log: slog.New(slog.DiscardHandler), Now: time.Now, Bus: untouchable{t: t}, Catalog: catalog.Default(),
		Metrics: prometheus.NewRegistry(), Node: "n1", Owner: message.NewID(time.Now()), Peers: component.NewPeers(),
		Dir: func() (string, error) {
			t.Error("it asked for its directory while it was built")
			return t.TempDir(), nil
		},
		Mint: func(*message.Message) {},
		Say: func(context.Context, *message.Message) error {
			t.Error("it spoke while it was built")
			return bus.ErrClosed
		},
		Door: func(context.Context, string) (bus.Appender, error) {
			t.Error("it opened a door while it was built")
			return nil, bus.ErrClosed
		},
		Change: func(context.Context, func(component.Tx) error) error {
			t.Error("it changed its store while it was built")
			return bus.ErrClosed
		},
		View: func(func(component.View) error) error {
			t.Error("it read its store while it was built")
			return bus.ErrClosed
		},
	}
	part, err := c.Spec.Build(env, c.Config)
	if err != nil {
		t.Fatal(err)
	}
	if part.Close != nil {
		if err := part.Close(); err != nil {
			t.Errorf("close what was only built: %v", err)
		}
	}
	left(t, before)
}

// stops runs it alone and counts what is left.
func stops(t *testing.T, c Case) {
	before := goroutines()
	r := c.rig(t)
	for range 2 { // a second process finds what the first one left
		r.Start(c.Spec)
		r.Running(c.Spec.Name)
		r.Stop()
	}
	r.Close()
	left(t, before)
}

// buries says a poisonous message amid good ones.
func buries(t *testing.T, c Case) {
	r := c.rig(t)
	r.Start(c.Spec)
	poison := c.Poison()
	r.Say(poison)
	r.Until(func() bool { letters, _ := r.Dead(c.Spec.Name); return len(letters) > 0 }, func() string { return "no dead letter came" })
	if len(c.Spec.Hears) > 0 && slices.ContainsFunc(c.Spec.Hears, func(p message.Pattern) bool { return p.Matches(poison.Subject) }) {
		r.Settled(c.Spec.Name, poison.Subject.Namespace())
	}
	r.Stop()
	r.Start(c.Spec) // and a second process does not bury it again
	r.Running(c.Spec.Name)
	r.Stop()
	letters, dead := r.Dead(c.Spec.Name)
	if len(letters) != 1 {
		t.Fatalf("%d dead letters; want one", len(letters))
	}
	original, err := dead[0].Message()
	if err != nil {
		t.Fatal(err)
	}
	if original.ID != poison.ID || letters[0].Cause != poison.ID || letters[0].Trace.ID != poison.Trace.ID {
		t.Errorf("the letter has cause %s and trace %s; want %s and %s", letters[0].Cause, letters[0].Trace.ID, poison.ID, poison.Trace.ID)
	}
	if dead[0].Reason == 0 || dead[0].Detail == "" || dead[0].Component != c.Spec.Name {
		t.Errorf("the letter says reason %s, detail %q, component %q", dead[0].Reason, dead[0].Detail, dead[0].Component)
	}
	onlyDeclared(t, r, c)
}

// once compares what follows from good messages in a life without faults with what follows in one full of them.
func once(t *testing.T, c Case) {
	calm := consequences(t, c, func(*Rig) {})
	for name, order := range map[string]func(*Rig){
		"before the append": func(r *Rig) { r.FailBefore(1) },
		"after the append":  func(r *Rig) { r.FailAfter(1) },
	} {
		if got := consequences(t, c, order); !slices.Equal(got, calm) {
			t.Errorf("died %s, it said\n%s\nwithout dying\n%s", name, strings.Join(got, "\n"), strings.Join(calm, "\n"))
		}
	}
}

// consequences says good messages and gives what followed from each, in words that are the same in each run.
func consequences(t *testing.T, c Case, order func(*Rig)) (list []string) {
	r := c.rig(t)
	order(r)
	r.Start(c.Spec)
	good := c.Good()
	logs := map[string]bool{}
	for _, m := range good {
		r.Say(m)
		if slices.ContainsFunc(c.Spec.Hears, func(p message.Pattern) bool { return p.Matches(m.Subject) }) {
			logs[m.Subject.Namespace()] = true
		}
	}
	for log := range logs {
		r.Settled(c.Spec.Name, log)
	}
	r.Until(func() bool {
		q, err := r.Bus.Queue(context.Background(), component.CommandQueue)
		if err != nil {
			t.Fatal(err)
		}
		n, err := q.Waiting(context.Background())
		return err == nil && (n == 0 || len(c.Spec.Takes) == 0)
	}, func() string { return "messages remain in the queue" })
	r.Stop() // what was committed is said before it ends
	if r.Faults() > 0 {
		r.Start(c.Spec)
		r.Running(c.Spec.Name)
		r.Stop()
	}
	onlyDeclared(t, r, c)
	for _, m := range r.Said(c.Spec.Name) {
		cause := slices.IndexFunc(good, func(g *message.Message) bool { return g.ID == m.Cause })
		if cause < 0 {
			continue // said by itself, when it liked
		}
		list = append(list, fmt.Sprintf("message %d: %s of %d bytes", cause, m.Subject, len(m.Data)))
	}
	r.Close()
	slices.Sort(list) // there is no order between the queue and the logs, nor between logs
	return list
}

// onlyDeclared looks at all that the component said.
func onlyDeclared(t testing.TB, r *Rig, c Case) {
	for _, m := range r.Said(c.Spec.Name) {
		ok := slices.ContainsFunc(append([]message.Pattern{"operator.alarm.*"}, c.Spec.Says...), func(p message.Pattern) bool { return p.Matches(m.Subject) })
		if !ok {
			t.Errorf("it said %s and does not declare it", m.Subject)
		}
	}
}

// untouchable is a bus for components that must not use it yet.
type untouchable struct {
	bus.Bus
	t testing.TB
}

// Log is a side effect.
func (u untouchable) Log(context.Context, string, bus.LogOptions) (bus.Log, error) {
	u.t.Error("it opened a log while it was built")
	return nil, bus.ErrClosed
}

// Queue is a side effect.
func (u untouchable) Queue(context.Context, string) (bus.Queue, error) {
	u.t.Error("it opened a queue while it was built")
	return nil, bus.ErrClosed
}

// Table is a side effect.
func (u untouchable) Table(context.Context, string, bus.TableOptions) (bus.Table, error) {
	u.t.Error("it opened a table while it was built")
	return nil, bus.ErrClosed
}

// goroutines counts those that run naru's code, by the outermost function of it; the test's own are left out.
func goroutines() map[string]int {
	buf := make([]byte, 1<<20)
	for n := runtime.Stack(buf, true); n == len(buf); n = runtime.Stack(buf, true) {
		buf = make([]byte, 2*len(buf))
	}
	found := map[string]int{}
	for one := range strings.SplitSeq(strings.TrimRight(string(buf), "\x00"), "\n\n") {
		if strings.Contains(one, "testing.tRunner") {
			continue
		}
		place := ""
		for line := range strings.SplitSeq(one, "\n") {
			if f, ok := strings.CutPrefix(line, "github.com/naru-platform/naru/"); ok {
				place, _, _ = strings.Cut(f, "({")
			}
		}
		if place != "" {
			found[place]++
		}
	}
	return found
}

// left complains about goroutines that were not there before, once they had time to end.
func left(t testing.TB, before map[string]int) {
	t.Helper()
	var more []string
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience / 4)
	defer late.Stop()
	for {
		more = more[:0]
		for place, n := range goroutines() {
			if n > before[place] {
				more = append(more, place)
			}
		}
		if len(more) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-late.C:
			slices.Sort(more)
			t.Errorf("goroutines are left: %s", strings.Join(more, ", "))
			return
		}
	}
}
