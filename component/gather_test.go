package component

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/operator"
)

// outside is a database of which it is known what it has: rows and a position, in one transaction.
type outside struct {
	mu    sync.Mutex
	rows  map[message.ID]int
	upto  bus.Position
	calls int
	most  int  // messages of one call
	away  bool // it takes nothing
}

func (o *outside) load(in []Heard) ([]error, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.away {
		return nil, errors.New("the database is away")
	}
	o.calls++
	o.most = max(o.most, len(in))
	fates := make([]error, len(in))
	for i, h := range in {
		if last := h.Message.Data[len(h.Message.Data)-1]; last == '3' && !h.Again {
			fates[i] = message.Rejectf(message.SchemaMismatch, "it ends in 3")
			continue
		} else if last == '4' {
			fates[i] = ErrNotMatched
			continue
		}
		p := h.Position
		if !h.Again && (p.Sequence < o.upto.Sequence || p.Sequence == o.upto.Sequence && p.Index <= o.upto.Index) {
			continue // it was here, and the process died behind it
		}
		o.rows[h.Message.ID]++
	}
	if last := in[len(in)-1]; !last.Again && (last.Position.Sequence > o.upto.Sequence || last.Position.Sequence == o.upto.Sequence && last.Position.Index > o.upto.Index) {
		o.upto = last.Position
	}
	return fates, nil
}

// loads loads what it hears into a database, some at a time.
func loads(o *outside, gather time.Duration) Spec {
	return Define(Spec{Name: "operator.loads", Doc: "loads", Hears: []message.Pattern{"device.*.telemetry"}, State: Local, Gather: gather, GatherMax: 7,
		Says: []message.Pattern{"operator.x.>"}, Retry: Retry{First: time.Millisecond, Most: time.Millisecond}}, struct{}{}, func(Env, struct{}) (*Part, error) {
		return &Part{HandleAll: func(_ context.Context, tx Tx, _ string, in []Heard) ([]error, error) {
			if err := tx.Say(&message.Message{Subject: "operator.x.y"}); err == nil {
				return nil, errors.New("it could say something")
			}
			return o.load(in)
		}}, nil
	})
}

func TestWhatIsLoadedTogetherIsLoadedOnceWhereverTheProcessDies(t *testing.T) {
	r := newRig(t)
	fs := vfs.NewCrashableMem()
	o := &outside{rows: map[message.ID]int{}}
	boundaries := []string{"after HandleAll", "before the commit", "after the commit"}
	sent := 0
	for n := range 45 {
		l := &life{want: boundaries[n%3], left: n/3%4 + 1, fs: fs, died: make(chan struct{})}
		l.live(t, r, &Host{Specs: []Spec{loads(o, time.Millisecond)}, fs: fs}, 60*time.Second, func() {
			r.say(reading("d", fmt.Sprint(sent)))
			sent++
		})
		fs = l.fs
	}
	r.host = &Host{Bus: r.bus, Catalog: catalog.Default(), Dir: r.dir, Node: "n1", Specs: []Spec{loads(o, time.Millisecond)}, fs: fs}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.host.Run(ctx) }()
	rep := r.await("operator.loads", "device", func(rep Report) bool { return total(rep) == uint64(sent) })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if accepted, finished := owed(rep); accepted != finished {
		t.Errorf("accepted %+v, finished %+v", accepted, finished)
	}
	want := 0
	for i := range sent {
		if i%10 != 3 && i%10 != 4 {
			want++
		}
	}
	if len(o.rows) != want {
		t.Errorf("%d messages of %d are rows; want %d", len(o.rows), sent, want)
	}
	for id, n := range o.rows {
		if n != 1 {
			t.Errorf("%s is %d rows", id, n)
		}
	}
	letters := map[string]int{}
	for _, m := range r.read("operator") {
		if m.Subject == operator.DeadSubject("operator.loads") {
			letters[m.Cause.String()]++
		}
	}
	if dead := rep.Outcomes[Dead].Count; len(letters) != int(dead) || rep.Outcomes[Handled].Count != uint64(want) {
		t.Errorf("%d letters for %d dead, %+v", len(letters), dead, rep.Outcomes)
	}
	if o.most < 2 {
		t.Error("nothing was ever gathered")
	}
}
