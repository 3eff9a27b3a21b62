package component

import (
	"context"
	"errors"
	"fmt"

	"github.com/naru-platform/naru/bus"
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

// settle makes this node the consumer's home where it has none. It is false where another one was faster.
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
	return err == nil, err
}

// unhouse lets a consumer that is forgotten have another home, where there is one of its name again.
func unhouse(ctx context.Context, b bus.Bus, consumer string) error {
	t, err := b.Table(ctx, homeTable, bus.TableOptions{})
	if err != nil {
		return err
	}
	return t.Delete(ctx, consumer, 0)
}
