package broker

import (
	"context"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
)

// presence is what is told of a device that came or went. Versions grow, also from node to node.
func (b *Broker) presence(name string, p device.Presence) *message.Message {
	p.Since, p.Node = b.env.Now(), b.env.Node
	m := &message.Message{Subject: device.PresenceSubject(name), Device: name, ContentType: "application/json", Data: mustJSON(p)}
	b.env.Mint(m)
	return m
}

// online has it written down which devices are connected, many with one write, so that after a crash it can be told that
// they are not any more.
type online struct {
	b *Broker

	mu      sync.Mutex
	marks   map[string]bool
	writing bool
}

func (o *online) mark(device string, on bool) {
	if o.b.clustered {
		return // what was told of devices is heard by all nodes, and kept so
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.marks == nil {
		o.marks = map[string]bool{}
	}
	o.marks[device] = on
	if !o.writing {
		o.writing = true
		o.b.group.Go(o.write)
	}
}

func (o *online) write() {
	for {
		o.mu.Lock()
		marks := o.marks
		o.marks = nil
		if len(marks) == 0 {
			o.writing = false
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		err := o.b.store.MarkOnline(ctx, marks)
		cancel()
		if err != nil && !o.b.stop.Load() {
			o.b.env.Log.Warn("write down who is connected", "error", err)
		}
	}
}

// leftBehind tells of what a broker that was killed could not: the wills and the absence of its clients.
func (b *Broker) leftBehind(ctx context.Context) error {
	if b.clustered {
		left, err := b.store.Left(ctx)
		if err == nil {
			b.tellLeft(ctx, left)
		}
		return err
	}
	wills, err := b.store.Wills()
	if err != nil {
		return err
	}
	for _, w := range wills {
		b.sayWill(w)
	}
	devices, err := b.store.Online()
	if err != nil || len(devices) == 0 {
		return err
	}
	var list []*message.Message
	gone := map[string]bool{}
	for _, d := range devices {
		list = append(list, b.presence(d, device.Presence{Reason: message.ConnectionLost, Version: b.store.Version()}))
		gone[d] = false
	}
	if err := b.tellAll(ctx, list); err != nil {
		b.env.Log.Warn("tell which devices are gone since the broker ended; the next start does", "error", err)
		return nil
	}
	return b.store.MarkOnline(ctx, gone)
}

// sayPatience is for what the broker says for itself to get into the log, where somebody waits for it.
const sayPatience = time.Minute

// tellAll tells of devices, and returns when that is on disk.
func (b *Broker) tellAll(ctx context.Context, list []*message.Message) error {
	if len(list) == 0 {
		return nil
	}
	a, err := b.door(ctx, message.Device)
	if err != nil {
		return err
	}
	fates := make(settled, len(list)) // they may go to several partitions
	for _, m := range list {
		if err := a.Append(ctx, m, fates, 0); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, sayPatience)
	defer cancel()
	for range list {
		select {
		case err := <-fates:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// settled is told the fate of each message; it has room for all.
type settled chan error

func (s settled) Appended(_ uint64, _ bus.Position, err error) { s <- err }
func (settled) Settled()                                       {}
