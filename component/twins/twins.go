// Package twins follows the documents of twins for who reads them while it handles messages: a rule that asks with
// get_thing_shadow(), a pipeline that enriches rows.
package twins

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// Twins are the documents of the twins that a component asks for. One that is asked for the first time is wished for on the
// bus; service_platform.twin says it in the log of the device, behind all that it has done to it, and from there on this
// process follows what the twin says of its changes. So who asks waits for the first answer, and for none after it; what it
// sees is some milliseconds behind the twin, never before an answer that was seen once. What was not asked for in a long time
// is forgotten, and asked for anew. Its methods may be called by any number of goroutines.
type Twins struct {
	env   component.Env
	first chan struct{} // closed when a twin is asked for: before that nothing is followed
	begin sync.Once
	asks  chan device.TwinRef

	mu         sync.Mutex
	following  bool
	young, old map[device.TwinRef]*twinEntry
	bytes      int           // of young
	news       chan struct{} // closed and made anew when something becomes known
	waiting    map[message.ID]time.Time
}

// twinEntry is what is known of a twin. A nil document that is known is that of a twin that is not there.
type twinEntry struct {
	known    bool
	document []byte
	asked    time.Time
}

const (
	twinBytes   = 64 << 20 // of documents that are at hand
	twinEntryIs = 256      // bytes of an entry beside its document, about
	askAgain    = 2 * time.Second
	asksMax     = 1024
	askers      = 4
	// Patience is how long is waited for a twin that nobody tells.
	Patience = 5 * time.Second
	// waitingMax bounds what is remembered of messages that wait; those beyond it begin to wait anew.
	waitingMax = 100_000
)

// New makes them for a component, which declares that it says service_platform.TwinWanted.
func New(env component.Env) *Twins {
	return &Twins{env: env, first: make(chan struct{}), asks: make(chan device.TwinRef, asksMax), young: map[device.TwinRef]*twinEntry{},
		news: make(chan struct{}), waiting: map[message.ID]time.Time{}}
}

// Unknown is the error of a twin whose document is not known yet.
type Unknown struct{ ref device.TwinRef }

// Error names it.
func (u *Unknown) Error() string {
	return fmt.Sprintf("the twin %s is not known here yet: service_platform.twin has not told it; is it running?", u.ref)
}

// Document is a twin's document: its state, metadata, version and timestamp, or nil where there is no such twin. It does not
// wait: what is not known yet is an *Unknown, and is asked for.
func (t *Twins) Document(ref device.TwinRef) ([]byte, error) {
	t.begin.Do(func() { close(t.first) })
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.get(ref)
	if x.known {
		return x.document, nil
	}
	if now := t.env.Now(); t.following && now.Sub(x.asked) >= askAgain {
		select {
		case t.asks <- ref:
			x.asked = now
		default: // there is no room for more; it is asked for later
		}
	}
	return nil, &Unknown{ref}
}

// get finds or begins an entry. mu is held.
func (t *Twins) get(ref device.TwinRef) *twinEntry {
	x := t.young[ref]
	if x != nil {
		return x
	}
	if x = t.old[ref]; x == nil {
		x = &twinEntry{}
	}
	t.young[ref] = x
	t.grow(ref, x)
	return x
}

// grow counts what came, and forgets what was not asked for since the room was half full. mu is held.
func (t *Twins) grow(ref device.TwinRef, x *twinEntry) {
	if t.bytes += len(ref.Device) + len(ref.Shadow) + len(x.document) + twinEntryIs; t.bytes > twinBytes/2 {
		t.old, t.young, t.bytes = t.young, map[device.TwinRef]*twinEntry{}, 0
	}
}

// learn takes a document over, if anybody asked for it; nil where there is no such twin.
func (t *Twins) learn(ref device.TwinRef, document []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.young[ref]
	if x == nil {
		if x = t.old[ref]; x == nil {
			return
		}
	}
	x.known, x.document = true, document
	t.grow(ref, x)
	close(t.news)
	t.news = make(chan struct{})
}

// forget begins anew: what is said while nobody listens is missed.
func (t *Twins) forget(following bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.following, t.young, t.old, t.bytes = following, map[device.TwinRef]*twinEntry{}, nil, 0
	close(t.news)
	t.news = make(chan struct{})
}

// Run follows the twins until ctx is done, once one was asked for.
func (t *Twins) Run(ctx context.Context) {
	select {
	case <-t.first:
	case <-ctx.Done():
		return
	}
	var group sync.WaitGroup
	for range askers {
		group.Go(func() { t.ask(ctx) })
	}
	for ctx.Err() == nil {
		if err := t.follow(ctx); err != nil && ctx.Err() == nil {
			t.env.Log.Warn("follow twins; beginning anew", "in", again, "error", err)
			wait := time.NewTimer(again)
			select {
			case <-wait.C:
			case <-ctx.Done():
			}
			wait.Stop()
		}
	}
	group.Wait()
}

// again is after what time something is begun anew that has failed.
const again = time.Second

// ask wishes for twins.
func (t *Twins) ask(ctx context.Context) {
	for {
		select {
		case ref := <-t.asks:
			data, err := json.Marshal(ref)
			if err == nil {
				err = t.env.Say(ctx, &message.Message{Subject: serviceplatform.TwinWanted, Device: ref.Device, QoS: 1, ContentType: "application/json", Data: data})
			}
			if err != nil && ctx.Err() == nil {
				t.env.Log.Warn("wish for a twin; it is wished for again", "device", ref.Device, "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// follow hears the open generation of the log of devices from its end on. It returns when that is sealed.
func (t *Twins) follow(ctx context.Context) error {
	l, err := t.env.Bus.Log(ctx, message.Device, bus.LogOptions{})
	if err != nil {
		return err
	}
	info, err := l.Info(ctx)
	if err != nil {
		return err
	}
	g := info.Generations[len(info.Generations)-1]
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	defer group.Wait()
	defer t.forget(false)
	var readers []bus.Reader
	for _, p := range g.Partitions {
		r, err := l.Reader(ctx, bus.Position{Log: l.ID(), Generation: g.Number, Partition: p.Number, Sequence: p.Last})
		if err != nil {
			cancel(err)
			break
		}
		defer r.Close()
		readers = append(readers, r)
	}
	if ctx.Err() == nil {
		t.forget(true)
	}
	for _, r := range readers {
		group.Go(func() { cancel(t.hear(ctx, r)) })
	}
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, bus.ErrSealed) && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (t *Twins) hear(ctx context.Context, r bus.Reader) error {
	var m message.Message
	for {
		s, err := r.Next(ctx)
		if err != nil {
			return err
		}
		if s.Err != nil {
			return s.Err // a twin may have been told in it
		}
		for cursor := s.Batch.Cursor(); cursor.Next(&m); {
			t.heard(&m)
		}
	}
}

// heard takes over what a message says of a twin.
func (t *Twins) heard(m *message.Message) {
	if !strings.HasPrefix(string(m.Subject), "device.") || !strings.Contains(string(m.Subject), ".twin.") {
		return
	}
	ref, what, ok := device.TwinTold(m.Subject)
	if !ok || !t.wanted(ref, what) {
		return
	}
	switch what {
	case device.TwinReadWord:
		var read device.TwinRead
		if json.Unmarshal(m.Data, &read) == nil {
			t.learn(device.TwinRef{Device: ref.Device, Shadow: read.Shadow}, read.Document)
		}
	case "documents":
		var d struct {
			Current struct {
				State    json.RawMessage `json:"state"`
				Metadata json.RawMessage `json:"metadata"`
				Version  uint64          `json:"version"`
			} `json:"current"`
			Timestamp int64 `json:"timestamp"`
		}
		if json.Unmarshal(m.Data, &d) == nil {
			t.learn(ref, fmt.Appendf(nil, `{"state":%s,"metadata":%s,"version":%d,"timestamp":%d}`, d.Current.State, d.Current.Metadata, d.Current.Version, d.Timestamp))
		}
	case "changed":
		var c device.TwinChanged
		if bytes.Contains(m.Data, []byte(`"change":"deleted"`)) && json.Unmarshal(m.Data, &c) == nil && c.Change == "deleted" {
			t.learn(device.TwinRef{Device: c.Device, Shadow: c.Shadow}, nil)
		}
	}
}

// wanted says whether somebody asked for the twin. Of what does not say in its subject which twin it is about, any may be.
func (t *Twins) wanted(ref device.TwinRef, what string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return what != "documents" || t.young[ref] != nil || t.old[ref] != nil
}

// Await says whether a message is to be tried again later since its handling met a twin that is not known yet. After a while
// it is not: who asked then has to do without.
func (t *Twins) Await(m *message.Message, err error) bool {
	var unknown *Unknown
	t.mu.Lock()
	defer t.mu.Unlock()
	if !errors.As(err, &unknown) {
		if len(t.waiting) > 0 {
			delete(t.waiting, m.ID)
		}
		return false
	}
	now := t.env.Now()
	since, there := t.waiting[m.ID]
	if !there {
		if len(t.waiting) >= waitingMax {
			clear(t.waiting)
		}
		t.waiting[m.ID], since = now, now
	}
	if now.Sub(since) < Patience {
		return true
	}
	delete(t.waiting, m.ID)
	return false
}

// Wait gives a twin's document, and waits for it where it is not known yet, for a while.
func (t *Twins) Wait(ctx context.Context, ref device.TwinRef) ([]byte, error) {
	late := time.NewTimer(Patience)
	defer late.Stop()
	return t.wait(ctx, ref, late)
}

// WaitAll is Wait for many, that are asked for together, by device.
func (t *Twins) WaitAll(ctx context.Context, devices []string) (map[string][]byte, error) {
	late := time.NewTimer(Patience)
	defer late.Stop()
	for _, d := range devices {
		_, _ = t.Document(device.TwinRef{Device: d}) // asked for beside each other
	}
	all := make(map[string][]byte, len(devices))
	for _, d := range devices {
		doc, err := t.wait(ctx, device.TwinRef{Device: d}, late)
		if err != nil {
			return nil, err
		}
		all[d] = doc
	}
	return all, nil
}

func (t *Twins) wait(ctx context.Context, ref device.TwinRef, late *time.Timer) ([]byte, error) {
	var tick *time.Ticker
	for {
		t.mu.Lock()
		news := t.news
		t.mu.Unlock()
		doc, err := t.Document(ref)
		var unknown *Unknown
		if !errors.As(err, &unknown) {
			return doc, err
		}
		if tick == nil {
			tick = time.NewTicker(askAgain / 4) // what found no room among the asks is asked for again
			defer tick.Stop()
		}
		select {
		case <-news:
		case <-tick.C:
		case <-late.C:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
