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

// housed says whether the consumer has a home.
func (r *run) housed() bool { return r.spec.State == Local && r.spec.From == Newest }

// abroad says at which other node the consumer's home is; nothing where it is here, or nowhere yet.
func (r *run) abroad(ctx context.Context) (node string, err error) {
	t, err := r.h.Bus.Table(ctx, homeTable, bus.TableOptions{})
	if err != nil {
		return "", err
	}
	e, err := t.Get(ctx, r.spec.Name)
	switch {
	case errors.Is(err, bus.ErrNotFound) || err == nil && string(e.Value) == r.h.Node:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("look where %s keeps its place: %w", r.spec.Name, err)
	}
	return string(e.Value), nil
}

// settle makes this node the consumer's home where it has none. It is false where another one was faster. What lies here from
// before is then of a time when it had its home here and went, and goes: others have gone on since.
func (r *run) settle(ctx context.Context) (bool, error) {
	t, err := r.h.Bus.Table(ctx, homeTable, bus.TableOptions{})
	if err != nil {
		return false, err
	}
	_, err = t.Update(ctx, r.spec.Name, []byte(r.h.Node), 0)
	if errors.Is(err, bus.ErrConflict) {
		node, err := r.abroad(ctx)
		return node == "", err
	}
	if err == nil {
		err = r.h.discard(filepath.Join(r.h.Dir, r.spec.folder()))
	}
	return err == nil, err
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
	lease, err := r.h.Bus.Lease(ctx, "consumer/"+consumer, r.h.Node, leaseTTL)
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

// unhouse lets a consumer have another home.
func unhouse(ctx context.Context, b bus.Bus, consumer string) error {
	t, err := b.Table(ctx, homeTable, bus.TableOptions{})
	if err != nil {
		return err
	}
	return t.Delete(ctx, consumer, 0)
}
