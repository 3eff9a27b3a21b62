package broker

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

const (
	// leaseTTL is for how long a node that says nothing is taken to be there: after it a neighbour goes on with its clients.
	leaseTTL = 3 * time.Second
	// lookEvery is how often a node looks after its neighbours.
	lookEvery = 250 * time.Millisecond
	// fillPatience is how long a node that lacks something waits for its neighbours to tell it, before it looks whether they
	// are there: those that lack nothing come first.
	fillPatience = 2 * leaseTTL
)

// roster is the brokers on the bus, whether they are there or not.
type roster struct {
	node  string
	table bus.Table

	mu  sync.Mutex
	all map[string]string // by key of the table
}

// rosterTable is where brokers that share a bus are listed.
const rosterTable = "naru_brokers"

type listed struct {
	Node string `json:"node"`
}

func rosterKey(node string) string { return hex.EncodeToString([]byte(node)) }

// enrol puts this node on the roster, and follows it.
func (b *Broker) enrol(ctx context.Context) (*roster, error) {
	t, err := b.env.Bus.Table(ctx, rosterTable, bus.TableOptions{})
	if err != nil {
		return nil, err
	}
	r := &roster{node: b.env.Node, table: t, all: map[string]string{}}
	if _, err := t.Put(ctx, rosterKey(b.env.Node), mustJSON(listed{b.env.Node})); err != nil {
		return nil, err
	}
	synced, ended := make(chan struct{}), make(chan error, 1)
	b.group.Go(func() { ended <- t.Watch(ctx, "", r.hear, func() { close(synced) }) })
	select {
	case <-synced:
		return r, nil
	case err := <-ended:
		return nil, fmt.Errorf("follow the list of brokers: %w", err)
	}
}

func (r *roster) hear(e bus.Entry) {
	var l listed
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Deleted || json.Unmarshal(e.Value, &l) != nil {
		delete(r.all, e.Key)
	} else {
		r.all[e.Key] = l.Node
	}
}

// others are the other brokers, by name.
func (r *roster) others() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, node := range r.all {
		if node != r.node {
			list = append(list, node)
		}
	}
	slices.Sort(list)
	return list
}

// join has this node be one among several: it is on the roster, is heard by the others, and has what they keep.
func (b *Broker) join(ctx context.Context) error {
	if !b.clustered {
		return nil
	}
	if err := b.oneOrder(ctx); err != nil {
		return err
	}
	r, err := b.enrol(ctx)
	if err != nil {
		return err
	}
	b.roster = r
	if err := b.store.Begin(ctx); err != nil {
		return err
	}
	// Where this node has lost what it kept, those that have copies go on with it.
	lost := func() bool { return slices.Contains(b.store.Orphans(), b.env.Node) }
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for began := time.Now(); lost() && len(r.others()) > 0; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if time.Since(began) > fillPatience {
			b.look(ctx)
		}
	}
	if err := b.store.Fill(ctx, r.others, fillPatience, b.look); err != nil {
		return err
	}
	if lost() { // nobody has copies: what the log still tells of it is all there is
		if err := b.adopt(ctx, b.env.Node, true); err != nil {
			return err
		}
	}
	b.group.Go(func() { b.lookAfter(ctx) })
	return nil
}

// oneOrder makes sure that all nodes hear each other in the same order.
func (b *Broker) oneOrder(ctx context.Context) error {
	log, err := b.env.Bus.Log(ctx, message.ServicePlatform, bus.LogOptions{})
	if err != nil {
		return err
	}
	info, err := log.Info(ctx)
	if err != nil {
		return err
	}
	if g := info.Generations[len(info.Generations)-1]; len(g.Partitions) > 1 {
		return fmt.Errorf("log %s has %d partitions, and brokers that share a bus tell each other of their sessions in the order of one: repartition it to 1, or set cluster to off",
			message.ServicePlatform, len(g.Partitions))
	}
	return nil
}

// lookAfter looks after the neighbours until ctx is done.
func (b *Broker) lookAfter(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.look(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// look goes on with what was the own of nodes that are gone, or have lost what they kept.
func (b *Broker) look(ctx context.Context) {
	// A bus that was away has forgotten its leases, and those who are there say so again first.
	if s := b.env.Bus.Status(ctx); !s.Up || b.env.Now().Sub(s.Since) < leaseTTL {
		return
	}
	for _, node := range b.roster.others() {
		if err := b.succeed(ctx, node); err != nil && !errors.Is(err, bus.ErrHeld) && ctx.Err() == nil {
			b.env.Log.Warn("go on with the clients of a node that is gone", "node", node, "error", err)
		}
	}
	for _, node := range b.store.Orphans() {
		if node == b.env.Node {
			continue
		}
		if err := b.adopt(ctx, node, true); err != nil && ctx.Err() == nil {
			b.env.Log.Warn("go on with the clients of a node that has lost what it kept", "node", node, "error", err)
		}
	}
}

// succeed goes on with all that was a node's own, once that node is gone and fenced, and all is heard that it has said.
func (b *Broker) succeed(ctx context.Context, node string) error {
	began := time.Now()
	place, err := b.env.Succeed(ctx, node)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = place.Release(ctx) // it goes by itself
	}()
	fences, err := b.heardOf(ctx, place.Fences)
	if err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !b.store.Heard(fences) {
		select {
		case <-tick.C:
		case <-place.Lost():
			return errors.New("its place was lost again")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for lost := range 2 { // what a former store of the node had, and what the last one has
		if err := b.adopt(ctx, node, lost == 0); err != nil {
			return err
		}
	}
	if err := b.roster.table.Delete(ctx, rosterKey(node), 0); err != nil {
		return err
	}
	b.env.Log.Info("went on with the clients of a node that is gone", "node", node, "took", time.Since(began))
	return nil
}

// heardOf are the places in the logs that the broker hears.
func (b *Broker) heardOf(ctx context.Context, all []bus.Position) (list []bus.Position, err error) {
	for _, name := range b.env.Spec.Logs() {
		log, err := b.env.Bus.Log(ctx, name, bus.LogOptions{})
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			if p.Log == log.ID() {
				list = append(list, p)
			}
		}
	}
	return list, nil
}

// adopt makes what was a node's own this node's, and tells what that one could not. lost says that the node is there, and
// has lost what it kept.
func (b *Broker) adopt(ctx context.Context, node string, lost bool) error {
	left, err := b.store.Adopt(ctx, node, lost)
	if err == nil {
		b.tellLeft(ctx, left)
	}
	return err
}

// tellLeft says the wills of clients whose node is gone, and that devices are not connected any more.
func (b *Broker) tellLeft(ctx context.Context, left session.Left) {
	for _, w := range left.Wills {
		if w.Delay < 0 {
			b.dropWill(w.ID)
		} else {
			b.sayWill(w)
		}
	}
	var list []*message.Message
	for _, x := range left.Absent {
		list = append(list, b.presence(x.Device, device.Presence{Reason: message.ConnectionLost, Client: x.Last.Client, Version: x.Version}))
	}
	if err := b.tellAll(ctx, list); err != nil && ctx.Err() == nil {
		b.env.Log.Warn("tell which devices are gone since their node is", "error", err)
	}
}
