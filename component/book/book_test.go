package book

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
)

type note struct {
	Count int      `json:"count"`
	By    []string `json:"by"`
}

// follow opens a book on a bus and follows it until the test ends.
func follow(t *testing.T, on bus.Bus, o Options[note]) *Book[note] {
	t.Helper()
	o.Table, o.What, o.Owner = "notes", "note", "service_platform.notes"
	b := New(o)
	if err := b.Open(t.Context(), on); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Follow(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return b
}

func engine(t *testing.T) bus.Bus {
	b := mem.New(mem.Options{})
	t.Cleanup(func() { b.Close() })
	return b
}

func add(d *Doc[note]) error { d.Value.Count++; return nil }

// TestEveryChangeCountsOnce has many make the same change through two books at once.
func TestEveryChangeCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		on := engine(t)
		books := []*Book[note]{follow(t, on, Options[note]{Prefix: "note/"}), follow(t, on, Options[note]{Prefix: "note/"})}
		var group sync.WaitGroup
		for i := range 10 {
			group.Go(func() {
				if _, err := books[i%2].Change(t.Context(), "a", add); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		for _, b := range books {
			synctest.Wait()
			if d, ok := b.Known("a"); !ok || d == nil || d.Value.Count != 10 {
				t.Errorf("a book knows %+v; want 10 changes", d)
			}
		}
	})
}

// TestAChangeIsKnownWhenItReturns holds Change to what it says: who asks next, and who is told, knows it.
func TestAChangeIsKnownWhenItReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		told := map[string]int{}
		b := follow(t, engine(t), Options[note]{Told: func(name string, d *Doc[note]) {
			mu.Lock()
			defer mu.Unlock()
			if told[name] = -1; d != nil {
				told[name] = d.Value.Count
			}
		}})
		_, news, _ := b.List()
		for n := 1; n <= 3; n++ {
			d, err := b.Change(t.Context(), "a", add)
			if err != nil {
				t.Fatal(err)
			}
			known, _ := b.Known("a")
			mu.Lock()
			if known == nil || known.Revision != d.Revision || told["a"] != n {
				t.Fatalf("after change %d the book knows %+v and told %d", n, known, told["a"])
			}
			mu.Unlock()
		}
		select {
		case <-news:
		default:
			t.Error("nobody rang")
		}
		if err := b.Erase(t.Context(), "a", 1<<40); !errors.Is(err, bus.ErrConflict) {
			t.Errorf("erase what has changed since: %v", err)
		}
		if err := b.Erase(t.Context(), "a", 0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if d, ok := b.Known("a"); d != nil || !ok || told["a"] != -1 {
			t.Errorf("erased, and known as %+v, told %d", d, told["a"])
		}
	})
}

// TestWhatCannotBeReadHoldsAsItWas puts nonsense where a document was, and a stranger's key beside it.
func TestWhatCannotBeReadHoldsAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken, other []string
		b := follow(t, engine(t), Options[note]{Prefix: "note/",
			Broken: func(key string, _ error) { broken = append(broken, key) },
			Other:  func(e bus.Entry) { other = append(other, e.Key) }})
		if _, err := b.Change(t.Context(), "a", add); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"note/a", "stranger"} {
			if _, err := b.Table().Put(t.Context(), key, []byte("{")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if d, _ := b.Known("a"); d == nil || d.Value.Count != 1 {
			t.Errorf("what was known became %+v", d)
		}
		if strings.Join(broken, " ") != "note/a" || strings.Join(other, " ") != "stranger" {
			t.Errorf("broken: %v, other: %v", broken, other)
		}
		if _, err := b.Change(t.Context(), "a", add); err == nil || !strings.Contains(err.Error(), "note a in the table") {
			t.Errorf("changed what cannot be read: %v", err)
		}
	})
}

// TestErrorsWriteNothing has a change give up.
func TestErrorsWriteNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := follow(t, engine(t), Options[note]{})
		no := errors.New("no")
		for _, want := range []error{no, ErrSame} {
			if _, err := b.Change(t.Context(), "a", func(d *Doc[note]) error { d.Value.Count = 9; return want }); !errors.Is(err, want) {
				t.Errorf("gave %v; want %v", err, want)
			}
			if d, err := b.Find(t.Context(), "a"); d != nil || err != nil {
				t.Errorf("wrote %+v, %v", d, err)
			}
		}
		fresh := New(Options[note]{Table: "notes", What: "note", Owner: "service_platform.notes"})
		if _, err := fresh.Change(t.Context(), "a", add); err == nil || !strings.Contains(err.Error(), "is starting") {
			t.Errorf("a book that is not open: %v", err)
		}
	})
}
