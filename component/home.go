package component

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/answer"
)

// homeTable says at which node lies what a consumer keeps, for those that begin with what comes next. In another process
// such a one would know nothing of what waits, and begin behind it: it would be nobody's. One that begins with the oldest
// needs no home, since it makes anew elsewhere what it has.
const homeTable = "naru_homes"

// homeless stands in that table for a consumer that was moved from its home, or forgotten. No node has its name.
const homeless = "\x00"

// housed says whether the consumer has a home.
func (r *run) housed() bool { return r.spec.State == Local && r.spec.From == Newest }

// homeOf is what that table says of a consumer; nothing where it does not.
func (r *run) homeOf(ctx context.Context, consumer string) (node string, revision uint64, err error) {
	t, err := r.h.Bus.Table(ctx, homeTable, bus.TableOptions{})
	if err != nil {
		return "", 0, err
	}
	e, err := t.Get(ctx, consumer)
	switch {
	case errors.Is(err, bus.ErrNotFound):
		return "", 0, nil
	case err != nil:
		return "", 0, fmt.Errorf("look where %s keeps its place: %w", consumer, err)
	}
	return string(e.Value), e.Revision, nil
}

// abroad says at which other node a consumer's home is; nothing where it is here, or nowhere.
func (r *run) abroad(ctx context.Context, consumer string) (node string, err error) {
	if node, _, err = r.homeOf(ctx, consumer); node == r.h.Node || node == homeless {
		node = ""
	}
	return node, err
}

// settle makes this node the consumer's home where it has none; its lease is held. It is false where another one was faster. What
// lies here of one that was moved or forgotten is of a time before that, and goes first: others may have gone on since. What lies here
// of one that never had a home written down is its own.
func (r *run) settle(ctx context.Context) (bool, error) {
	node, revision, err := r.homeOf(ctx, r.spec.Name)
	switch {
	case err != nil:
		return false, err
	case node == r.h.Node:
		return true, nil
	case node == homeless:
		if err := r.h.discard(filepath.Join(r.h.Dir, r.spec.folder())); err != nil {
			return false, fmt.Errorf("remove what is left here of %s, which was moved since: %w", r.spec.Name, err)
		}
	case node != "":
		return false, nil
	}
	t, err := r.h.Bus.Table(ctx, homeTable, bus.TableOptions{})
	if err != nil {
		return false, err
	}
	_, err = t.Update(ctx, r.spec.Name, []byte(r.h.Node), revision)
	if errors.Is(err, bus.ErrConflict) {
		node, _, err = r.homeOf(ctx, r.spec.Name) // it may have been this one, whose answer was lost
		return err == nil && node == r.h.Node, err
	}
	return err == nil, err
}

// Gone are the consumers that were forgotten, and those that were moved and that no process has taken: nobody takes back what died at
// them. A view of peers that has just begun knows of no process yet.
func Gone(ctx context.Context, b bus.Bus, peers *Peers) (map[string]bool, error) {
	t, err := b.Table(ctx, homeTable, bus.TableOptions{})
	if err != nil {
		return nil, err
	}
	homes, err := bus.Entries(ctx, t, "")
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	for _, e := range homes {
		if string(e.Value) == homeless {
			gone[e.Key] = true
		}
	}
	for _, h := range peers.Components() { // one that may begin anywhere has no home, though it was forgotten once
		delete(gone, h.Name)
	}
	return gone, nil
}

// lastKnown is how far a consumer has come that has nothing here and yet has run: the newest generation of a log that it was in, and
// its places there, as it told or as the logs keep messages for it. Where there are none it has not run.
func (w *worker) lastKnown(ctx context.Context, log bus.LogInfo, name string) (g bus.Generation, places map[uint32]uint64, err error) {
	list, err := Owed(ctx, w.env.Bus)
	if err != nil {
		return g, nil, fmt.Errorf("look how far %s had come: %w", w.env.Spec.Name, err)
	}
	for _, r := range append(list, w.env.Peers.Reports()...) {
		p := r.Position
		if r.Consumer != w.env.Spec.Name || r.Log != name || p.Log != log.ID || p.Generation < g.Number {
			continue
		}
		i := slices.IndexFunc(log.Generations, func(g bus.Generation) bool { return g.Number == p.Generation })
		if i < 0 {
			continue
		}
		if p.Generation > g.Number {
			g, places = log.Generations[i], map[uint32]uint64{}
		}
		places[p.Partition] = max(places[p.Partition], p.Sequence)
	}
	return g, places, nil
}

// move as in [Env.Move].
func (r *run) move(ctx context.Context, name string) error {
	if err := childName(name); err != nil {
		return err
	}
	c := Child{Name: name}
	consumer := c.spec(&r.spec).Name
	if node, err := r.abroad(ctx, consumer); err != nil {
		return err
	} else if node == "" {
		return answer.Conflict("%s has its home at this node, or nowhere: there is nothing that it could be moved from", consumer)
	}
	lease, err := r.h.Bus.Lease(ctx, "consumer/"+consumer, r.h.Node+" (move)", leaseTTL) // not the name that it runs under
	if errors.Is(err, bus.ErrHeld) {
		return answer.Conflict("%s runs: %v; it is moved from a node that is gone", consumer, err)
	}
	if err != nil {
		return err
	}
	defer func() {
		ctx, done := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer done()
		_ = lease.Release(ctx) // it goes by itself
	}()
	return unhouse(ctx, r.h.Bus, consumer)
}

// unhouse lets a consumer have another home, and be begun anew in the one it had.
func unhouse(ctx context.Context, b bus.Bus, consumer string) error {
	t, err := b.Table(ctx, homeTable, bus.TableOptions{})
	if err != nil {
		return err
	}
	_, err = t.Put(ctx, consumer, []byte(homeless))
	return err
}
