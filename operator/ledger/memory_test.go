package ledger

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// forget asks for a consumer to be forgotten, and gives the status.
func (r *rig) forget(consumer string) int {
	w := httptest.NewRecorder()
	r.host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest("DELETE", "/api/v1/ledger/"+consumer, nil))
	return w.Code
}

func (r *rig) log() bus.Log {
	r.t.Helper()
	l, err := r.bus.Log(r.t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// Reports go from their table after a minute, so a ledger that starts then would know nothing of who is away.
func TestLedgerThatStartsAgainKnowsWhatWaitsForAConsumerThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, dir := mem.New(mem.Options{}), t.TempDir()
		defer b.Close()
		r := start(t, b, dir, nil)
		r.say(5)
		r.await(func(l Line) bool { return l.Handled == 5 })
		<-time.After(3 * time.Second) // the ledger compares each second
		r.stop()
		r.say(3)
		<-time.After(5 * time.Minute)

		r = start(t, b, dir, nil, Spec)
		l := r.await(func(l Line) bool { return l.Accepted == 8 })
		if l.Waiting != 3 || !l.Balanced || !l.Stale {
			t.Errorf("three messages wait for a consumer that is away: %+v", l)
		}
		// A new generation that the consumer has not begun waits for it too.
		if err := r.log().Repartition(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		r.say(4)
		r.await(func(l Line) bool { return l.Accepted == 12 && l.Waiting == 7 && l.Balanced })
		r.stop()

		r = start(t, b, dir, nil)
		if l := r.await(func(l Line) bool { return l.Waiting == 0 && l.Handled == 12 }); !l.Balanced || l.Stale {
			t.Errorf("it is back: %+v", l)
		}
		<-time.After(3 * time.Second)
		if code := r.forget("operator.worker"); code != http.StatusConflict {
			t.Errorf("a consumer that is there is forgotten: %d", code)
		}
		r.stop()
		<-time.After(5 * time.Minute)
		r = start(t, b, dir, nil, Spec)
		r.await(func(l Line) bool { return l.Stale })
		if code := r.forget("operator.worker"); code != http.StatusOK {
			t.Errorf("a consumer that went for good is not forgotten: %d", code)
		}
		if code := r.forget("operator.worker"); code != http.StatusNotFound {
			t.Errorf("a consumer that was forgotten is known: %d", code)
		}
		r.stop()
		r = start(t, b, dir, nil, Spec)
		<-time.After(3 * time.Second)
		if code := r.forget("operator.worker"); code != http.StatusNotFound {
			t.Errorf("a consumer that was forgotten is known after a start: %d", code)
		}
		r.stop()
	})
}

// A row that goes backwards had two owners at once. It stays a fault when nobody looks.
func TestLedgerStaysRedAboutARowThatWentBackwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, dir := mem.New(mem.Options{}), t.TempDir()
		defer b.Close()
		r := start(t, b, dir, nil)
		r.say(2)
		r.await(func(l Line) bool { return l.Handled == 2 })
		r.stop()
		// The log does not let this happen, so the ledger is told of it by hand.
		backwards := component.Define(Spec, Config{EverySeconds: 1}, func(env component.Env, c Config) (*component.Part, error) {
			part, err := New(env, c)
			if err != nil {
				return nil, err
			}
			account := part.HandleBatch
			part.HandleBatch = func(ctx context.Context, tx component.Tx, log string, s bus.Stored) error {
				if log == message.Device {
					s.Batch.Running = 0
				}
				return account(ctx, tx, log, s)
			}
			return part, nil
		})
		r = start(t, b, dir, nil, worker, backwards)
		r.say(1)
		bad := func(l Line) bool {
			return !l.Balanced && strings.Contains(l.Fault, "says that 0 messages were before it; there were 2")
		}
		r.await(bad)
		r.stop()
		r = start(t, b, dir, nil)
		r.await(bad)
		r.stop()
	})
}

func TestLedgerStaysGreenForAConsumerThatBeginsWithTheNewest(t *testing.T) {
	newest := component.Define(component.Spec{Name: "operator.worker", Doc: "begins late", Hears: []message.Pattern{"device.>"}, State: component.Local, From: component.Newest},
		struct{}{}, func(component.Env, struct{}) (*component.Part, error) {
			return &component.Part{Handle: func(context.Context, component.Tx, *message.Message) error { return nil }}, nil
		})
	b := mem.New(mem.Options{})
	defer b.Close()
	r := start(t, b, t.TempDir(), nil, Spec)
	r.say(5)
	r.append("quiet", 2) // a row that says nothing after the consumer has begun
	r.stop()
	r = start(t, b, r.host.Dir, nil, newest, Spec)
	r.awaitAccount(7)
	r.await(func(l Line) bool { return l.Balanced && l.Accepted == 0 && l.Waiting == 0 })
	r.say(3)
	r.awaitAccount(10)
	l := r.await(func(l Line) bool { return l.Handled == 3 })
	if !l.Balanced || l.Accepted != 3 || l.Fault != "" {
		t.Errorf("the consumer began behind the fifth message: %+v", l)
	}
	r.stop()
}

// A consumer that is added when the beginning was trimmed begins behind it, and does not meet rows that ended there.
func TestLedgerStaysGreenForAConsumerThatCameAfterATrim(t *testing.T) {
	b := mem.New(mem.Options{})
	defer b.Close()
	r := start(t, b, t.TempDir(), nil, Spec)
	r.append("quiet", 2)
	r.say(5)
	r.awaitAccount(7)
	r.stop()
	if err := r.log().Trim(t.Context(), bus.Position{Generation: 1, Sequence: 4}); err != nil {
		t.Fatal(err)
	}
	r = start(t, b, r.host.Dir, nil)
	r.awaitAccount(7)
	l := r.await(func(l Line) bool { return l.Handled > 0 && l.Waiting == 0 })
	if !l.Balanced || l.Accepted != l.Handled {
		t.Errorf("what was trimmed before it came is not the consumer's: %+v", l)
	}
	r.append("quiet", 1)
	r.awaitAccount(8)
	if l := r.await(func(l Line) bool { return l.Handled == 4 }); !l.Balanced {
		t.Errorf("the row speaks again: %+v", l)
	}
	r.stop()
}

// A runner that passes a batch over, header and all, has counts that agree with themselves.
func TestLedgerGoesRedWhenAMutantPassesABatchOver(t *testing.T) {
	for name, nth := range map[string]int{"the first of a row": 1, "one in the middle": 3, "the last": 5} {
		t.Run(name, func(t *testing.T) {
			b, dir := mem.New(mem.Options{}), t.TempDir()
			defer b.Close()
			n := 0
			r := start(t, b, dir, func(component string, i int) int {
				if component == "operator.worker" && i < 0 {
					if n++; n == nth {
						return 0
					}
				}
				return 1
			})
			r.say(5)
			l := r.await(func(l Line) bool { return !l.Balanced && l.Fault != "" })
			t.Log(l.Fault)
			r.stop()
			r = start(t, b, dir, nil)
			r.await(func(l Line) bool { return !l.Balanced })
			r.stop()
		})
	}
}
