// Package worker gives messages to code that is not naru's: a team's service that is called by HTTP with CloudEvents, or
// processes that connect with the SDK. Each worker is a consumer of its own, so that one that is slow, wrong or gone
// holds up its own messages and nobody else's.
package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/internal/outbound"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

// Name is the component's name.
const Name = "service_platform.worker"

// Config is the component's configuration.
type Config struct {
	// Allow are networks in which workers may be called although they are no public ones, such as 10.1.0.0/16.
	Allow []string `json:"allow"`
	// WorkersMax is how many workers there may be.
	WorkersMax int `json:"workers_max"`
	// Demo has a worker for simulated devices be there, as `naru up --sim` sets it; without it that worker is taken away.
	Demo bool `json:"demo"`
}

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name:         Name,
	Doc:          "gives messages to workers, over HTTP or the SDK, and says what follows from them",
	ChildrenHear: []message.Pattern{">"},
	Says:         []message.Pattern{">"}, // mayReach draws the line
	Required:     true,                   // work that nobody did must not be trimmed
}, Config{Allow: []string{}, WorkersMax: 500}, New)

// Workers is the running component.
type Workers struct {
	env    component.Env
	conf   Config
	client *outbound.Client
	book   *book
	stats  *board
	up     *prometheus.GaugeVec

	mu   sync.Mutex
	live map[string]*live
}

// New builds the component.
func New(env component.Env, c Config) (*component.Part, error) {
	allow, err := outbound.Networks(c.Allow)
	if err != nil {
		return nil, fmt.Errorf("allow%w", err)
	}
	if c.WorkersMax < 1 {
		return nil, fmt.Errorf("workers_max is %d; want at least 1", c.WorkersMax)
	}
	w := &Workers{env: env, conf: c, client: outbound.New(outbound.Options{Of: Name, Allow: allow, Now: env.Now}), live: map[string]*live{}, stats: newBoard(),
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "naru_worker_instances", Help: "Instances of a worker that are connected here."}, []string{"worker"})}
	w.book = newBook(env.Now, c.WorkersMax, w.heed, func(key string, err error) {
		env.Log.Error("read a worker of the table; it stays as it was", "worker", key, "error", err)
	})
	if env.Metrics != nil {
		env.Metrics.MustRegister(w.up)
	}
	return &component.Part{Run: w.run, Routes: w.routes(), Close: func() error { w.client.Close(); return nil }}, nil
}

// work is where a worker is given work.
func work(name string) message.Pattern { return message.Pattern(serviceplatform.WorkSubject(name)) }

// run keeps the workers as the table says.
func (w *Workers) run(ctx context.Context, ready func()) error {
	if err := w.book.Open(ctx, w.env.Bus); err != nil {
		return err
	}
	table, err := w.env.Bus.Table(ctx, statsTable, bus.TableOptions{Volatile: true, TTL: statsTTL})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	defer group.Wait()
	watch := func(f func() error) {
		group.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	watch(func() error { return w.book.Follow(ctx) })
	watch(func() error { return w.stats.follow(ctx, table) })
	group.Go(func() { w.tell(ctx, table) })
	watch(func() error { return w.env.Bus.Answer(ctx, wire.Anybody, w.told(w.why), func() {}) })
	group.Go(func() { w.demo(ctx, w.conf.Demo) })
	teller := names.Teller{Bus: w.env.Bus, Kind: names.Workers, Node: w.env.Node}
	again := time.NewTicker(againEvery)
	defer again.Stop()
	for {
		list, news, ok := w.book.List()
		if ok {
			if err := w.apply(list); err != nil {
				return err
			}
			ready()
			if err := teller.Tell(ctx, w.env.Now(), namesOf(list)); err != nil && ctx.Err() == nil {
				w.env.Log.Warn("tell which workers there are; trying again", "error", err)
			}
			w.bury(ctx, list)
		}
		select {
		case <-news:
		case <-again.C: // what could not be forgotten is tried again
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		}
	}
}

// namesOf are the names of the workers that are there.
func namesOf(list []*kept) (all []string) {
	for _, d := range list {
		if !d.Value.Removed {
			all = append(all, d.Value.Name)
		}
	}
	return all
}

// heed takes a change over before who made it is answered: once a worker is said to be paused, no call of this process begins.
func (w *Workers) heed(name string, k *kept) {
	w.mu.Lock()
	l := w.live[name]
	w.mu.Unlock()
	if l != nil && k != nil && !k.Value.Removed {
		l.set(k)
	}
}

// apply makes what runs what the table says.
func (w *Workers) apply(list []*kept) error {
	var set []component.Child
	there := map[string]bool{}
	w.mu.Lock()
	for _, d := range list {
		k := &d.Value
		if k.Removed {
			continue
		}
		there[k.Name] = true
		l := w.live[k.Name]
		if l == nil {
			l = newLive(w, k.Name)
			w.live[k.Name] = l
		}
		l.set(d)
		set = append(set, l.child(k.Record))
	}
	for name := range w.live {
		if !there[name] {
			delete(w.live, name)
			w.up.DeleteLabelValues(name)
		}
	}
	w.mu.Unlock()
	return w.env.Children(set)
}

// againEvery is how often it is tried to forget workers that were removed, until that is done: nobody may have their names before.
const againEvery = 5 * time.Second

// bury forgets what is kept of workers that were removed. What fails is tried again.
func (w *Workers) bury(ctx context.Context, list []*kept) {
	for _, d := range list {
		k := &d.Value
		if !k.Removed || k.Forgotten {
			continue
		}
		if err := w.env.Forget(ctx, k.Name); err != nil {
			if ctx.Err() == nil {
				w.env.Log.Warn("forget a worker that was removed", "worker", k.Name, "error", err)
			}
			continue
		}
		if _, err := w.book.change(ctx, k.Name, Name, "", forgotten); err != nil && ctx.Err() == nil {
			w.env.Log.Warn("note that a worker is forgotten", "worker", k.Name, "error", err)
		}
	}
}

// alive is a worker that is there, as it runs in this process.
func (w *Workers) alive(name string) (*live, error) {
	if _, err := w.book.get(name); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.live[name]; l != nil {
		return l, nil
	}
	return nil, missing(name)
}

// mayReach says what only the platform says, and a worker does not say in its place.
func mayReach(s message.Subject, worker string) error {
	first, rest, _ := strings.Cut(string(s), ".")
	forbidden := strings.HasPrefix(first, "$")
	switch first {
	case message.Operator:
		forbidden = true
	case message.ServicePlatform:
		_, of, _ := strings.Cut(strings.TrimPrefix(rest, "worker."), ".")
		forbidden = !strings.HasPrefix(rest, "worker."+worker+".") && !(strings.HasPrefix(rest, "worker.") && of == "invoke")
	case message.Device:
		_, of, _ := strings.Cut(rest, ".")
		_, _, _, request := device.TwinRequest(s)
		forbidden = of == "presence" || strings.HasPrefix(of, "twin.") && !request
	}
	if forbidden {
		return message.Rejectf(message.Undeclared, "%s is said by the platform alone; worker %s says service_platform.worker.%s.<…>, work for other workers, device.<…>, data_platform.<…>, 3rd_party.<…>, or topics of its own", s, worker, worker)
	}
	return nil
}

// lateBy is for how long a message of a key may be tried before the worker is said to be stuck.
const lateBy = 30 * time.Second
