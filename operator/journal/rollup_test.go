package journal

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// shelf is a store for filters alone. What a process that ends had in memory is lost, and what it had set is here.
type shelf struct {
	component.Tx
	m      map[string][]byte
	filled map[string]bool // minutes with batches, by their keys' prefix
}

func (s shelf) Get(k []byte) ([]byte, error) { return s.m[string(k)], nil }
func (s shelf) Set(k, v []byte)              { s.m[string(k)] = bytes.Clone(v) }
func (s shelf) Delete(k []byte)              { delete(s.m, string(k)) }
func (s shelf) Scan(prefix []byte, f func(k, v []byte) bool) error {
	if s.filled[string(prefix)] {
		f(prefix, nil)
	}
	return nil
}
func (s shelf) Range(_, _ []byte, _ bool, _ func(k, v []byte) bool) error { panic("not asked") }

// TestFiltersRuleOutNothingThatIsThere adds batches to minutes in the order in which logs at different paces give them,
// with stragglers and two processes that end in the middle; and asks for every key at the end.
func TestFiltersRuleOutNothingThatIsThere(t *testing.T) {
	const begin, minutes = 29_000_000, 300
	r := rand.New(rand.NewPCG(1, 2))
	s := shelf{m: map[string][]byte{}, filled: map[string]bool{}}
	now := time.Unix(60*(begin+minutes), 0)
	fresh := func() *Journal {
		return &Journal{levels: newLevels(), env: component.Env{Now: func() time.Time { return now }}}
	}
	j := fresh()
	type key struct {
		at   uint32
		hash uint64
	}
	var all []key
	add := func(at uint32, keys int) {
		hashes := make([]uint64, keys)
		for i := range hashes {
			hashes[i] = r.Uint64()
			all = append(all, key{at, hashes[i]})
		}
		if err := j.rollUp(s, at, hashes); err != nil {
			t.Fatal(err)
		}
		s.filled[string(minutePrefix(at))] = true
	}
	for m := range uint32(minutes) {
		for range 6 {
			add(begin+m, 20)
		}
		if m > 90 && m%2 == 0 { // another log, an hour and a half behind
			add(begin+m-90, 7)
		}
		switch m {
		case 100: // several pieces
			for range 3 {
				add(begin+m, pieceMax*2/3)
			}
		case 170, 230:
			j = fresh()
		case 200: // a clock that is far ahead
			add(begin+5000, 3)
		}
	}
	written := map[byte]int{}
	for k := range s.m {
		written[k[0]]++
	}
	if written['h'] < 1 || written['m'] < 100 {
		t.Errorf("written are %d hours and %d minutes of 5 and %d", written['h'], written['m'], minutes)
	}
	for _, l := range j.levels {
		asked, passed := 0, 0
		for _, k := range all {
			has, err := j.mayHold(s, l, k.at/l.unit, k.hash)
			if err != nil || !has {
				t.Fatalf("a key of minute %d is ruled out by its %d minutes (%v)", k.at-begin, l.unit, err)
			}
		}
		for m := range uint32(minutes) {
			at := (begin + m) / l.unit
			if s.m[string(l.headKey(at))] == nil {
				continue // not rolled up: it says yes to all
			}
			for range 20 {
				has, err := j.mayHold(s, l, at, r.Uint64())
				if err != nil {
					t.Fatal(err)
				}
				asked++
				if has {
					passed++
				}
			}
		}
		if asked == 0 || passed*25 > asked {
			t.Errorf("of %d keys that are nowhere, filters of %d minutes let %d pass", asked, l.unit, passed)
		}
	}
}

// TestLookupOfAForeignTraceAsksHoursNotMinutes counts what a lookup reads of the index, whose id says no time.
func TestLookupOfAForeignTraceAsksHoursNotMinutes(t *testing.T) {
	const hours = 8
	var reads atomic.Int64
	r := newRigOf(t, component.Define(Spec, Config{ScanMax: 1000}, func(env component.Env, c Config) (*component.Part, error) {
		view := env.View
		env.View = func(f func(component.View) error) error {
			return view(func(v component.View) error { return f(counted{v, &reads}) })
		}
		return New(env, c)
	}))
	foreign := func(n byte) message.Trace {
		return message.Trace{ID: message.TraceID{0xff, 7, n}, Span: message.NewSpan()}
	}
	for i := range hours * 60 {
		switch i {
		case 70:
			r.say("d-x", foreign(1), nil)
		case 100: // a straggler of an hour ago
			r.clock.forward(-time.Hour)
			r.say("d-x", foreign(2), nil)
			r.clock.forward(time.Hour)
		}
		r.say("d-1", message.Trace{}, nil)
		r.clock.forward(time.Minute)
	}
	var view TraceView
	for _, n := range []byte{1, 2} {
		r.get("/api/v1/traces/"+foreign(n).ID.String(), &view, func() bool { return len(view.Messages) == 1 })
	}
	h := r.host.Handler(func(*http.Request) bool { return true })
	reads.Store(0)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/traces/"+foreign(3).ID.String(), nil))
	if w.Code != http.StatusNotFound {
		t.Fatalf("a trace that is nowhere: %d %s", w.Code, w.Body)
	}
	// Each hour wants a look for its head and a page. A few keys that are nowhere pass a filter.
	if n := reads.Load(); n > hours*60/5 {
		t.Errorf("a lookup over %d hours with a batch in each minute reads the index %d times", hours, n)
	}
}

// counted counts what is read of a view.
type counted struct {
	component.View
	n *atomic.Int64
}

func (c counted) Get(k []byte) ([]byte, error) {
	c.n.Add(1)
	return c.View.Get(k)
}

func (c counted) Range(from, to []byte, backwards bool, f func(k, v []byte) bool) error {
	return c.View.Range(from, to, backwards, func(k, v []byte) bool {
		c.n.Add(1)
		return f(k, v)
	})
}

// TestIndexLetsGoOfWhatWasTrimmed because it would fill the disk that retention gives back.
func TestIndexLetsGoOfWhatWasTrimmed(t *testing.T) {
	var j *Journal
	r := newRigOf(t, component.Define(Spec, Config{ScanMax: 1000}, func(env component.Env, c Config) (*component.Part, error) {
		part, err := New(env, c)
		if err != nil {
			return nil, err
		}
		j = &Journal{env: env, conf: c, logs: map[string]bus.Log{}, levels: newLevels()}
		part.HandleBatch = j.index // and Run prunes another journal, which has nothing
		return part, nil
	}))
	var all []*message.Message
	for range 200 {
		all = append(all, r.say("d-1", message.Trace{}, nil))
		r.clock.forward(time.Minute)
	}
	var line Line
	last := all[len(all)-1]
	r.get("/api/v1/messages/"+last.ID.String(), &line, func() bool { return true })
	kinds := func() map[byte]int {
		n := map[byte]int{}
		if err := j.env.View(func(v component.View) error {
			return v.Range(nil, nil, false, func(k, _ []byte) bool { n[k[0]]++; return true })
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := kinds()
	log, err := r.bus.Log(t.Context(), message.Device, bus.LogOptions{})
	if err == nil {
		err = log.Trim(t.Context(), bus.Position{Generation: 1, Sequence: 150})
	}
	if err == nil {
		err = j.prune(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	after := kinds()
	if before['b'] != 200 || after['b'] != 50 || after['m'] >= before['m'] || after['p'] != after['m'] {
		t.Errorf("the index had %v and has %v after three quarters of the log were trimmed", before, after)
	}
	r.get("/api/v1/messages/"+last.ID.String(), &line, func() bool { return line.ID == last.ID })
	r.get("/api/v1/messages/"+all[150].ID.String(), &line, func() bool { return line.ID == all[150].ID })
}
