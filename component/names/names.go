// Package names lets a component tell the names of what it has, and another refuse a name that nobody has. Components do
// not import each other, and a wrong name is best told to the person who wrote it, not to the device that it is for.
package names

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/near"
)

// Policies are the names of the policies that a device may be given; the brokers tell them.
const Policies = "policy"

// Destinations are the names of the HTTP servers that rules may send to; the process that sends tells them.
const Destinations = "destination"

// Workers are the names of the workers that rules may give work to; the processes that know them tell them.
const Workers = "worker"

// Table has the names, under `<kind>.<node, hexadecimal>`.
const Table = "naru_names"

// What is told is told again, and goes by itself when its node has been away for longer than a restart takes.
const (
	again = 20 * time.Second
	ttl   = 5 * time.Minute
)

// fresh is how long a name that was found is taken for known without looking again.
const fresh = 10 * time.Second

// shownMax is how many names an error lists.
const shownMax = 20

// ErrNobody says that no node has told any names of the kind, so that nothing can be said of one.
var ErrNobody = errors.New("nobody has told which there are")

// Unknown is the error for a name that no node has.
type Unknown struct {
	Kind, Name string
	Known      []string // sorted
}

// Error names the one that may have been meant, and those there are.
func (u *Unknown) Error() string {
	so := "; there are"
	// Nearer than elsewhere: a name may be a policy's, and one that is only somewhat alike may allow far more.
	if w := near.Within(u.Name, u.Known, len(u.Name)/3); w != "" {
		so = fmt.Sprintf("; did you mean %q? There are", w)
	}
	list, more := u.Known, ""
	if n := len(list) - shownMax; n > 0 {
		list, more = list[:shownMax], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("there is no %s %q%s %s%s", u.Kind, u.Name, so, strings.Join(list, ", "), more)
}

func open(ctx context.Context, b bus.Bus) (bus.Table, error) {
	return b.Table(ctx, Table, bus.TableOptions{Volatile: true, TTL: ttl})
}

// Tell tells a node's names of a kind, in the place of those that it told before.
func Tell(ctx context.Context, b bus.Bus, kind, node string, all []string) error {
	raw, err := json.Marshal(all)
	if err != nil {
		return err
	}
	t, err := open(ctx, b)
	if err == nil {
		_, err = t.Put(ctx, kind+"."+hex.EncodeToString([]byte(node)), raw)
	}
	if err != nil {
		return fmt.Errorf("tell the names of each %s: %w", kind, err)
	}
	return nil
}

// Teller tells a node's names of a kind that changes. It is for one goroutine.
type Teller struct {
	Bus        bus.Bus
	Kind, Node string

	told []string
	when time.Time
}

// Tell tells all, where they are not what was told before or that was long ago. It is to be called more often than every twenty
// seconds; what failed is told with the next call.
func (t *Teller) Tell(ctx context.Context, now time.Time, all []string) error {
	if !t.when.IsZero() && slices.Equal(all, t.told) && now.Sub(t.when) <= again {
		return nil
	}
	if err := Tell(ctx, t.Bus, t.Kind, t.Node, all); err != nil {
		return err
	}
	t.told, t.when = slices.Clone(all), now
	return nil
}

// Keep tells them again and again until ctx is done. failed is called where that did not work; it is tried again.
func Keep(ctx context.Context, b bus.Bus, kind, node string, all []string, failed func(error)) {
	tick := time.NewTicker(again)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := Tell(ctx, b, kind, node, all); err != nil && ctx.Err() == nil {
				failed(err)
			}
		}
	}
}

// Known answers whether any node has a name. It is safe for concurrent use.
type Known struct {
	bus    bus.Bus
	kind   string
	now    func() time.Time
	asking chan struct{} // who asks: one at a time, and the others have its answer

	mu   sync.Mutex
	all  []string // sorted
	read time.Time
}

// NewKnown makes one that has not looked yet.
func NewKnown(b bus.Bus, kind string, now func() time.Time) *Known {
	return &Known{bus: b, kind: kind, now: now, asking: make(chan struct{}, 1)}
}

// Check gives nil where some node has the name, an *Unknown where none has, ErrNobody where no node tells its names, and
// the bus's error where it cannot be asked. A name is asked for on the bus before it is unknown, so one that was added a
// moment ago is found; one that is gone may be known for ten seconds more.
func (k *Known) Check(ctx context.Context, name string) error {
	if k.remembers(name) {
		return nil
	}
	select {
	case k.asking <- struct{}{}:
		defer func() { <-k.asking }()
	case <-ctx.Done():
		return fmt.Errorf("look whether there is a %s %q: %w", k.kind, name, ctx.Err())
	}
	if k.remembers(name) {
		return nil
	}
	all, err := ask(ctx, k.bus, k.kind)
	if err != nil {
		return fmt.Errorf("look whether there is a %s %q: %w", k.kind, name, err)
	}
	k.mu.Lock()
	k.all, k.read = all, k.now()
	k.mu.Unlock()
	switch {
	case k.remembers(name):
		return nil
	case len(all) == 0:
		return fmt.Errorf("%s %q: %w", k.kind, name, ErrNobody)
	}
	return &Unknown{k.kind, name, all}
}

// remembers says whether the name was there a moment ago.
func (k *Known) remembers(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, found := slices.BinarySearch(k.all, name)
	return found && k.now().Sub(k.read) < fresh
}

// ask gives the names that all nodes have together, sorted.
func ask(ctx context.Context, b bus.Bus, kind string) (all []string, err error) {
	t, err := open(ctx, b)
	if err != nil {
		return nil, err
	}
	told, err := bus.Entries(ctx, t, kind+".")
	if err != nil {
		return nil, err
	}
	for _, e := range told {
		var list []string
		if json.Unmarshal(e.Value, &list) == nil {
			all = append(all, list...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
