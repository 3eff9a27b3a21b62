package command

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	sp "github.com/naru-platform/naru/message/service_platform"
)

// counting counts the keys that are read.
type counting struct {
	component.Tx
	n *atomic.Int64
}

func (c counting) Get(key []byte) ([]byte, error) { c.n.Add(1); return c.Tx.Get(key) }

func (c counting) Scan(prefix []byte, f func(k, v []byte) bool) error {
	return c.Tx.Scan(prefix, func(k, v []byte) bool { c.n.Add(1); return f(k, v) })
}

type countingView struct {
	component.View
	n *atomic.Int64
}

func (c countingView) Get(key []byte) ([]byte, error) { c.n.Add(1); return c.View.Get(key) }

func (c countingView) Range(from, to []byte, backwards bool, f func(k, v []byte) bool) error {
	return c.View.Range(from, to, backwards, func(k, v []byte) bool { c.n.Add(1); return f(k, v) })
}

// crowd is the component with commands waiting for so many devices that are away.
type crowd struct {
	*componenttest.Rig
	c       *Commands
	keys    atomic.Int64
	reader  bus.Reader
	version uint64
}

func newCrowd(tb testing.TB, away int) *crowd {
	tb.Helper()
	x := &crowd{Rig: componenttest.New(tb)}
	x.Start(component.Define(Spec, Spec.Defaults().(Config), func(env component.Env, conf Config) (*component.Part, error) {
		view, change := env.View, env.Change
		env.View = func(f func(component.View) error) error {
			return view(func(v component.View) error { return f(countingView{v, &x.keys}) })
		}
		env.Change = func(ctx context.Context, f func(component.Tx) error) error {
			return change(ctx, func(tx component.Tx) error { return f(counting{tx, &x.keys}) })
		}
		var err error
		if x.c, err = build(env, conf); err != nil {
			return nil, err
		}
		return &component.Part{Run: x.c.run, Routes: x.c.routes(), Handle: func(ctx context.Context, tx component.Tx, m *message.Message) error {
			return x.c.hear(ctx, counting{tx, &x.keys}, m)
		}}, nil
	}))
	x.Running(Name)
	for done := 0; done < away; done += 1000 {
		if err := x.c.env.Change(tb.Context(), func(tx component.Tx) error {
			for i := done; i < min(done+1000, away); i++ {
				of := fmt.Sprint("away-", i)
				if err := x.c.request(tx, componenttest.Message(device.CommandSubject(of, "open", "c"), of, "{}"), of, "open", "c"); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			tb.Fatal(err)
		}
	}
	x.version++
	raw, _ := json.Marshal(device.Presence{Online: true, Since: time.Now(), Version: x.version, Node: "n1"}) // plain values
	x.Say(componenttest.Message(device.PresenceSubject("d-1"), "d-1", string(raw)))
	x.Settled(Name, message.Device)
	l, err := x.Bus.Log(tb.Context(), message.ServicePlatform, bus.LogOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	if x.reader, err = l.Reader(tb.Context(), bus.Position{Generation: 1}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(x.reader.Close)
	return x
}

// commands has a device that is connected get one, from when it is said until it is with the broker, and acknowledge it.
func (x *crowd) commands(tb testing.TB, id string) time.Duration {
	tb.Helper()
	began := time.Now()
	x.Say(componenttest.Message(device.CommandSubject("d-1", "open", id), "d-1", "{}"))
	for {
		b, err := x.reader.Next(tb.Context())
		if err != nil {
			tb.Fatal(err)
		}
		var m message.Message
		for c := b.Batch.Cursor(); c.Next(&m); {
			if _, _, ok := sp.CommandRelease(m.Subject); ok && m.Subject.Token(6) == id {
				took := time.Since(began)
				x.version++
				raw, _ := json.Marshal(sp.Receipt{Device: "d-1", Release: m.ID, Name: "open", ID: id, Result: sp.ReceiptDelivered, QoS: 1, Node: "n1", Version: x.version}) // plain values
				x.Say(componenttest.Message(sp.ReceiptSubject("d-1"), "d-1", string(raw)), componenttest.Message(device.ReplySubject("d-1", "open", id), "d-1", "done"))
				return took
			}
		}
	}
}

// TestDevicesThatAreAwayCostTheOthersNothing counts the keys that are read for commands of a device that is connected: they
// are as many beside thousands of commands that wait for devices that are away as beside none.
func TestDevicesThatAreAwayCostTheOthersNothing(t *testing.T) {
	read := func(away int) int64 {
		x := newCrowd(t, away)
		before := x.keys.Load()
		const n = 20
		for i := range n {
			x.commands(t, fmt.Sprint("c", i))
		}
		x.Settled(Name, message.Device)
		x.Settled(Name, message.ServicePlatform)
		return (x.keys.Load() - before) / n
	}
	alone, crowded := read(0), read(3000)
	if crowded > alone+alone/2+10 {
		t.Errorf("a command reads %d keys, and %d beside 3000 that wait", alone, crowded)
	}
}

// BenchmarkCommandBesideDevicesThatAreAway measures a command from when it is said until it is with the broker, beside so many that
// wait.
//
//	go test -run '^$' -bench BesideDevicesThatAreAway -benchtime 2000x ./service_platform/command
func BenchmarkCommandBesideDevicesThatAreAway(b *testing.B) {
	for _, away := range []int{0, 100_000} {
		b.Run(fmt.Sprint(away), func(b *testing.B) {
			x := newCrowd(b, away)
			var all []time.Duration
			for i := 0; b.Loop(); i++ {
				all = append(all, x.commands(b, fmt.Sprint("c", i)))
			}
			slices.SortFunc(all, cmp.Compare[time.Duration])
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
		})
	}
}
