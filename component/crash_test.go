package component

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/operator"
)

// crashy counts the messages of a device and says each count. What ends in 3 is dead, and what ends in 7 fails at
// first, in each life anew.
func crashy() Spec {
	return Define(Spec{Name: "operator.crashy", Doc: "counts", Hears: []message.Pattern{"device.*.telemetry"},
		Says: []message.Pattern{"service_platform.count.*"}, State: Local, Retry: Retry{First: time.Millisecond, Most: time.Millisecond, Attempts: 100}},
		struct{}{}, func(env Env, _ struct{}) (*Part, error) {
			failed := map[message.ID]bool{}
			return &Part{Handle: func(_ context.Context, tx Tx, m *message.Message) error {
				v, err := tx.Get([]byte("n"))
				if err != nil {
					return err
				}
				n := 0
				fmt.Sscan(string(v), &n)
				tx.Set([]byte("n"), fmt.Append(nil, n+1))
				switch last := m.Data[len(m.Data)-1]; {
				case last == '3':
					return message.Rejectf(message.SchemaMismatch, "it ends in 3")
				case last == '7' && !failed[m.ID]:
					failed[m.ID] = true
					return errors.New("not at first")
				}
				return tx.Say(&message.Message{Subject: "service_platform.count.d", Data: fmt.Appendf(nil, "%s is %d", m.Data, n+1)})
			}}, nil
		})
}

// life is a process that dies at a boundary.
type life struct {
	mu   sync.Mutex
	want string // the boundary, and the how manyth of that name
	left int
	fs   *vfs.MemFS
	at   string
	died chan struct{}
}

var errDied = errors.New("died")

func (l *life) boundary(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at != "" {
		return errDied // nothing is done after death
	}
	if name != l.want {
		return nil
	}
	if l.left--; l.left > 0 {
		return nil
	}
	l.at = name
	l.fs = l.fs.CrashClone(vfs.CrashCloneCfg{}) // what was not synced is gone
	close(l.died)
	return errDied
}

// live runs a process, which has its specs and file system, until it dies at the boundary, and says something again and again
// meanwhile. What it had of the bus goes with it.
func (l *life) live(t *testing.T, r *rig, host *Host, longest time.Duration, say func()) {
	t.Helper()
	handle := r.bus.Reopen()
	host.Bus, host.Catalog, host.Dir, host.Node, host.crash, host.Log = handle, catalog.Default(), r.dir, "n1", l.boundary, slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx) }()
	late, tick := time.After(longest), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for alive := true; alive; {
		say()
		select {
		case <-l.died:
			alive = false
		case <-tick.C:
		case <-late:
			t.Fatal("it came to no boundary")
		}
	}
	if err := handle.Close(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestNoEffectIsLostOrDoubledWhereverTheProcessDies(t *testing.T) {
	r := newRig(t)
	fs := vfs.NewCrashableMem()
	boundaries := []string{"before the commit", "after the commit", "after the append", "after striking off"}
	sent := 0
	for n := range 60 {
		l := &life{want: boundaries[n%4], left: n/4%5 + 1, fs: fs, died: make(chan struct{})}
		l.live(t, r, &Host{Specs: []Spec{crashy()}, fs: fs}, 20*time.Second, func() {
			r.say(reading("d", fmt.Sprint(sent)))
			sent++
		})
		fs = l.fs
	}

	r.host = &Host{Bus: r.bus, Catalog: catalog.Default(), Dir: r.dir, Node: "n1", Specs: []Spec{crashy()}, fs: fs}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.host.Run(ctx) }()
	rep := r.await("operator.crashy", "device", func(rep Report) bool { return total(rep) == uint64(sent) && rep.Waiting.Count == 0 })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if o, f := owed(rep); o != f {
		t.Errorf("accepted %+v, finished %+v", o, f)
	}

	var want, said []string
	dead := map[string]int{}
	count := 0
	for i := range sent {
		if i%10 == 3 {
			continue
		}
		count++
		want = append(want, fmt.Sprintf("%d is %d", i, count))
	}
	for _, m := range r.read("service_platform") {
		said = append(said, string(m.Data))
	}
	if !slices.Equal(said, want) {
		t.Errorf("it said\n%q\nand should have said\n%q", said, want)
	}
	for _, m := range r.read("operator") {
		if m.Subject == operator.DeadSubject("operator.crashy") {
			dead[m.Cause.String()]++
		}
	}
	if len(dead) != sent-count {
		t.Errorf("%d messages have dead letters; want %d", len(dead), sent-count)
	}
	for id, n := range dead {
		if n != 1 {
			t.Errorf("%s has %d dead letters", id, n)
		}
	}
}

// A queue knows no numbers, so what was put into it must not be there again after a power cut, though nothing was committed since.
func TestWhatWasPutIntoTheQueueIsStruckOffForGood(t *testing.T) {
	r := newRig(t)
	spec := Define(Spec{Name: "operator.asking", Doc: "asks", Hears: []message.Pattern{"device.*.telemetry"},
		Says: []message.Pattern{"operator.retry.*", "service_platform.count.*"}, State: Local}, struct{}{}, func(Env, struct{}) (*Part, error) {
		return &Part{Handle: func(_ context.Context, tx Tx, _ *message.Message) error {
			return errors.Join(tx.Say(&message.Message{Subject: "operator.retry.somebody", ContentType: "application/json",
				Data: []byte(`{"letter":"a","consumer":"b","log":"device","position":"1/0/1/0","original":""}`)}), tx.Say(&message.Message{Subject: "service_platform.count.d"}))
		}}, nil
	})
	l := &life{want: "after striking off", left: 1, fs: vfs.NewCrashableMem(), died: make(chan struct{})}
	r.say(reading("d", "1"))
	l.live(t, r, &Host{Specs: []Spec{spec}, fs: l.fs}, time.Minute, func() {})
	q, err := r.bus.Queue(t.Context(), CommandQueue)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := q.Waiting(t.Context()); n != 1 || err != nil {
		t.Fatalf("%d are in the queue, %v", n, err)
	}
	s, err := openStore(t.Context(), l.fs, r.dir+"/operator.asking", slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	left, err := s.outbox()
	if err != nil || len(left) != 1 || left[0].m.Subject != "service_platform.count.d" {
		t.Errorf("%d messages are left to be said, %v; want the one for the log", len(left), err)
	}
	if err := s.close(func() {}); err != nil {
		t.Fatal(err)
	}
}
