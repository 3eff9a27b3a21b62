package bustest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
)

func tabling() []promise {
	return []promise{
		{"a table gives what was put, and its revision", Features{}, tablePuts},
		{"an update of another revision is a conflict", Features{}, tableConflicts},
		{"a deleted key is not found and may be made anew", Features{}, tableDeletes},
		{"a watch tells what is there, then synced, then changes", Features{}, tableWatches},
		{"a table takes what is a key, and nothing else", Features{}, tableKeys},
		{"an entry goes by itself after its time to live", Features{}, tableExpires},
		{"a table outlives a restart, and a volatile one does not", Features{Reopen: true}, tableVolatile},
	}
}

func (s *scene) table(o bus.TableOptions) bus.Table {
	s.Helper()
	name := "suite"
	if o.Volatile {
		name = "volatile"
	}
	t, err := s.Bus.Table(s.ctx, name, o)
	s.must(err)
	return t
}

func (s *scene) holds(t bus.Table, key, value string, revision uint64) {
	s.Helper()
	e, err := t.Get(s.ctx, key)
	s.must(err)
	if e.Key != key || string(e.Value) != value || e.Revision != revision || e.Deleted {
		s.Fatalf("%s is %q at revision %d, want %q at %d", e.Key, e.Value, e.Revision, value, revision)
	}
}

func tablePuts(s *scene) {
	t := s.table(bus.TableOptions{})
	_, err := t.Get(s.ctx, "node.a")
	s.is(err, bus.ErrNotFound, "a key nobody put")
	const key = "a/B-9_=.x"
	first, err := t.Put(s.ctx, key, []byte("one"))
	s.must(err)
	s.holds(t, key, "one", first)
	second, err := t.Put(s.ctx, key, nil)
	s.must(err)
	if second <= first {
		s.Errorf("revision %d follows %d", second, first)
	}
	s.holds(t, key, "", second)
}

// tableKeys: what is no key is refused, however long, and nobody else notices.
func tableKeys(s *scene) {
	t := s.table(bus.TableOptions{})
	longest := strings.Repeat("k", bus.KeyMax)
	r, err := t.Put(s.ctx, longest, []byte("v"))
	s.must(err)
	for _, key := range []string{"", ".a", "a.", "a b", "a*", "a>", "ü", "a\r\nPUB x 1", longest + "k", strings.Repeat("k", 20_000)} {
		_, got := t.Get(s.ctx, key)
		_, put := t.Put(s.ctx, key, []byte("v"))
		_, made := t.Update(s.ctx, key, []byte("v"), 0)
		for _, err := range []error{got, put, made, t.Delete(s.ctx, key, 0)} {
			if err == nil || errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrConflict) || len(err.Error()) > 25_000 {
				s.Errorf("a key of %d bytes, %.20q: %.200v; want it refused", len(key), key, err)
			}
		}
	}
	s.holds(t, longest, "v", r)
}

func tableConflicts(s *scene) {
	t := s.table(bus.TableOptions{})
	first, err := t.Update(s.ctx, "k", []byte("one"), 0)
	s.must(err)
	_, err = t.Update(s.ctx, "k", []byte("other"), 0)
	s.is(err, bus.ErrConflict, "made although it is there")
	second, err := t.Update(s.ctx, "k", []byte("two"), first)
	s.must(err)
	_, err = t.Update(s.ctx, "k", []byte("other"), first)
	s.is(err, bus.ErrConflict, "an old revision")
	s.is(t.Delete(s.ctx, "k", first), bus.ErrConflict, "deleted at an old revision")
	s.holds(t, "k", "two", second)
}

func tableDeletes(s *scene) {
	t := s.table(bus.TableOptions{})
	r, err := t.Put(s.ctx, "k", []byte("one"))
	s.must(err)
	s.must(t.Delete(s.ctx, "k", r))
	_, err = t.Get(s.ctx, "k")
	s.is(err, bus.ErrNotFound, "a deleted key")
	_, err = t.Update(s.ctx, "k", []byte("two"), 0)
	s.must(err)
	s.must(t.Delete(s.ctx, "k", 0))
	_, err = t.Get(s.ctx, "k")
	s.is(err, bus.ErrNotFound, "a key deleted at whatever revision")
}

func tableWatches(s *scene) {
	t := s.table(bus.TableOptions{})
	for _, key := range []string{"node.a", "node.b", "other.c"} {
		_, err := t.Put(s.ctx, key, []byte(key))
		s.must(err)
	}
	s.must(t.Delete(s.ctx, "node.b", 0))
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	news, ended := make(chan string, 16), make(chan error, 1)
	go func() {
		ended <- t.Watch(ctx, "node.", func(e bus.Entry) {
			news <- fmt.Sprintf("%s=%s %v", e.Key, e.Value, e.Deleted)
		}, func() { news <- "synced" })
	}()
	hear := func(want ...string) {
		s.Helper()
		for _, w := range want {
			select {
			case got := <-news:
				if got == "node.b= true" && w != got { // a deletion from before may be told
					got = <-news
				}
				if got != w {
					s.Fatalf("the watch told %q, want %q", got, w)
				}
			case <-s.ctx.Done():
				s.Fatalf("the watch did not tell %q", w)
			}
		}
	}
	hear("node.a=node.a false", "synced")
	_, err := t.Put(s.ctx, "other.c", []byte("2"))
	s.must(err)
	_, err = t.Put(s.ctx, "node.a", []byte("2"))
	s.must(err)
	hear("node.a=2 false")
	s.must(t.Delete(s.ctx, "node.a", 0))
	hear("node.a= true")
	cancel()
	select {
	case err := <-ended:
		if err != nil && !errors.Is(err, context.Canceled) {
			s.Errorf("the watch ended with %v", err)
		}
	case <-s.ctx.Done():
		s.Error("the watch did not end with its context")
	}
}

func tableExpires(s *scene) {
	t := s.table(bus.TableOptions{TTL: 2 * time.Second})
	r, err := t.Put(s.ctx, "k", []byte("v"))
	s.must(err)
	s.holds(t, "k", "v", r)
	s.pass(5 * time.Second)
	_, err = t.Get(s.ctx, "k")
	s.is(err, bus.ErrNotFound, "after its time to live")
}

func tableVolatile(s *scene) {
	kept, volatile := s.table(bus.TableOptions{}), s.table(bus.TableOptions{Volatile: true})
	r, err := kept.Put(s.ctx, "k", []byte("v"))
	s.must(err)
	_, err = volatile.Put(s.ctx, "k", []byte("v"))
	s.must(err)
	s.Bus = s.Reopen()
	s.holds(s.table(bus.TableOptions{}), "k", "v", r)
	_, err = s.table(bus.TableOptions{Volatile: true}).Get(s.ctx, "k")
	s.is(err, bus.ErrNotFound, "in a volatile table after a restart")
}
