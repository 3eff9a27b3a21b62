package x509

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// errAway says that a table could not be asked or written: nobody's fault who asked, and perhaps different in a moment.
var errAway = errors.New("the bus is away")

// awayError is a fault of the bus as it told it.
type awayError struct{ error }

func (e awayError) Unwrap() error        { return e.error }
func (e awayError) Is(target error) bool { return target == errAway }

// awayReason is why a table could not be asked or written: storage_low where the bus says that its disk is nearly full.
func awayReason(ctx context.Context, b bus.Bus) message.Reason {
	if b.Status(ctx).Space.Shut {
		return message.StorageLow
	}
	return message.BusUnavailable
}

// store is a table whose faults are told apart from what it says: what is not there, or was changed by another.
type store struct{ bus.Table }

// openStore opens a table.
func openStore(ctx context.Context, b bus.Bus, name string, o bus.TableOptions) (store, error) {
	t, err := b.Table(ctx, name, o)
	if err != nil {
		return store{}, awayError{fmt.Errorf("open table %s: %w", name, err)}
	}
	return store{t}, nil
}

func (s store) Get(ctx context.Context, key string) (bus.Entry, error) {
	e, err := s.Table.Get(ctx, key)
	return e, faultOf(err)
}

func (s store) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	r, err := s.Table.Put(ctx, key, value)
	return r, faultOf(err)
}

func (s store) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	r, err := s.Table.Update(ctx, key, value, revision)
	return r, faultOf(err)
}

func (s store) Delete(ctx context.Context, key string, revision uint64) error {
	return faultOf(s.Table.Delete(ctx, key, revision))
}

func (s store) Watch(ctx context.Context, prefix string, f func(bus.Entry), synced func()) error {
	return faultOf(s.Table.Watch(ctx, prefix, f, synced))
}

func faultOf(err error) error {
	if err == nil || errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrConflict) {
		return err
	}
	return awayError{err}
}

// patiently calls f until the bus is there again or ctx is done. Anything but the bus's being away ends it too.
func patiently(ctx context.Context, f func() error) error {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := f()
		if !errors.Is(err, errAway) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}
