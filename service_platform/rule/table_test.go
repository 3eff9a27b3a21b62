package rule

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
)

// engine starts a rig with the rule hot, and gives its engine.
func engine(t *testing.T) (*componenttest.Rig, *Engine) {
	t.Helper()
	var e *Engine
	r := componenttest.New(t)
	r.Start(component.Define(Spec, Config{RulesMax: 10, BacktestRate: 1000}, func(env component.Env, c Config) (part *component.Part, err error) {
		if e, err = build(env, c); err != nil {
			return nil, err
		}
		return &component.Part{Handle: e.Handle, Run: e.run, Routes: e.routes(), Close: e.close}, nil
	}))
	r.Until(func() bool { code, _ := ask(t, r, "GET", "/api/v1/rules", ""); return code == 200 }, func() string { return "no answer" })
	put(t, r, "hot", hot)
	return r, e
}

// A version is written before its rule names it. Where another change of the rule is quicker it is written again, under the next
// number, and nothing would ever take the first one away.
func TestAVersionThatAnotherOneWasQuickerThanIsNotKept(t *testing.T) {
	r, e := engine(t)
	d, err := Parse([]byte(strings.Replace(hot, "> 30", "> 40", 1)))
	if err != nil {
		t.Fatal(err)
	}
	a := act{by: "slow"}
	if a.document, a.hash, err = d.content(); err != nil {
		t.Fatal(err)
	}
	tries := 0
	a.do = func(h *Head, v *Version) (string, error) {
		if tries++; tries == 1 {
			put(t, r, "hot", strings.Replace(hot, "> 30", "> 35", 1))
		}
		h.Versions = append(slices.Clone(h.Versions), *v)
		h.Current, h.Last = v.Number, v.Number
		return "updated", nil
	}
	k, err := e.book.change(t.Context(), "hot", a)
	if err != nil || k.Current != 3 || tries != 2 {
		t.Fatalf("version %d at the %d. attempt (%v); want 3 at the second", k.Current, tries, err)
	}
	for number, want := range map[int]error{2: bus.ErrNotFound, 3: nil} {
		if _, err := e.book.Table().Get(t.Context(), partKey("hot", &Version{Number: number, Hash: a.hash})); !errors.Is(err, want) {
			t.Errorf("as version %d it is there, or not: %v; want %v", number, err, want)
		}
	}
}

// What a rule is shown as is of one moment: its faults come and go with the table, in another goroutine.
func TestARuleIsShownWhileItsFaultsChange(t *testing.T) {
	r, e := engine(t)
	enough, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-enough:
				return
			default:
				e.book.mu.Lock()
				e.book.refresh("hot")
				e.book.mu.Unlock()
			}
		}
	}()
	for range 20 {
		for _, path := range []string{"/api/v1/rules", "/api/v1/rules/hot"} {
			if code, body := ask(t, r, "GET", path, ""); code != 200 {
				t.Errorf("%s: %d %s", path, code, body)
			}
		}
	}
	close(enough)
	<-over
}
