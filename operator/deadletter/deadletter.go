// Package deadletter keeps what died, and brings it back. It hears the dead letters of all components and keeps each one
// until its message was handled after all, or somebody discarded it, or it is too old; so there is one list, whatever has
// been trimmed from the logs since. Letters that look alike are a group: a fault is seen as one thing, with its count.
//
// A retry is a job: it has the letters that there were when it began, a few of them first, then the others at a rate, and
// a result for each. A letter goes back to the consumer it died at and to no other (operator.retry.<consumer>), with the
// id and the trace its message always had; there it waits, is handled, or dies again.
package deadletter

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// Config is the component's configuration.
type Config struct {
	// MaxAge is how long a letter is kept, and MaxBytes how much all of them may take. Before anything goes for either, an
	// alarm says so: at four fifths of the limit.
	MaxAge   string `json:"max_age"`
	MaxBytes int64  `json:"max_bytes"`
	// JobsKept is how many jobs are remembered with their results once they have ended.
	JobsKept int `json:"jobs_kept"`
	// InFlight is how many letters of a job may wait for their consumer's result at once.
	InFlight int `json:"in_flight"`
}

// Name is the component's.
const Name = "operator.deadletter"

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name:     Name,
	Doc:      "keeps dead letters, in groups that look alike, and sends them back to where they died",
	Hears:    []message.Pattern{"operator.dead.>", "operator.retried.*"},
	Says:     []message.Pattern{"operator.retry.*", "operator.alarm.*"},
	State:    component.Local,
	Required: true, // else a letter could be trimmed before it is kept
}, Config{MaxAge: "720h", MaxBytes: 4 << 30, JobsKept: 100, InFlight: 1000}, New)

// tickEvery is how often jobs go on.
const tickEvery = 100 * time.Millisecond

// Letters is the running component.
type Letters struct {
	env      component.Env
	conf     Config
	age      time.Duration
	letters  prometheus.Gauge
	bytes    prometheus.Gauge
	dropped  prometheus.Counter
	alarming map[string]bool
	swept    time.Time
	looked   time.Time           // for consumers that are gone
	stood    map[message.ID]Job  // the jobs that waited then
	credit   map[message.ID]pace // of the jobs that run; of Run's goroutine

	mu      sync.Mutex
	running map[message.ID]bool // the jobs that run; there are many more that have ended
}

// New builds the component.
func New(env component.Env, c Config) (*component.Part, error) { return build(env, c, new(Letters)) }

func build(env component.Env, c Config, l *Letters) (*component.Part, error) {
	age, err := time.ParseDuration(c.MaxAge)
	switch {
	case err != nil || age <= 0:
		return nil, fmt.Errorf("max_age %q: want a duration such as 720h", c.MaxAge)
	case c.MaxBytes < 1<<20:
		return nil, fmt.Errorf("max_bytes is %d; want at least %d", c.MaxBytes, 1<<20)
	case c.JobsKept < 1 || c.InFlight < 1:
		return nil, fmt.Errorf("jobs_kept is %d and in_flight %d; both want at least 1", c.JobsKept, c.InFlight)
	}
	*l = Letters{env: env, conf: c, age: age, alarming: map[string]bool{}, credit: map[message.ID]pace{}, running: map[message.ID]bool{},
		letters: prometheus.NewGauge(prometheus.GaugeOpts{Name: "naru_dead_letters", Help: "Dead letters that are kept: not handled since, not discarded."}),
		bytes:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "naru_dead_letters_bytes", Help: "What they take."}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "naru_dead_letters_dropped_total", Help: "Dead letters that went for their age, or for want of room."})}
	if env.Metrics != nil {
		env.Metrics.MustRegister(l.letters, l.bytes, l.dropped)
	}
	return &component.Part{Handle: l.hear, Run: l.run, Routes: l.routes()}, nil
}

// run keeps house, and has the jobs go on.
func (l *Letters) run(ctx context.Context, ready func()) error {
	if err := l.env.View(func(v component.View) error {
		return eachJob(v, func(j *Job) {
			if j.State == Running {
				l.runs(j.ID, true)
			}
		})
	}); err != nil {
		return err
	}
	ready()
	l.looked = l.env.Now().Add(goneEvery) // by then all processes have told what they run
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		if err := l.work(ctx); err != nil && ctx.Err() == nil {
			l.env.Log.Warn("go on with the jobs; trying again", "error", err)
		}
		if now := l.env.Now(); now.Sub(l.looked) >= goneEvery {
			l.looked = now
			if err := l.release(ctx); err != nil && ctx.Err() == nil {
				l.env.Log.Warn("look for letters whose consumer is gone; trying again", "in", goneEvery, "error", err)
			}
		}
		if now := l.env.Now(); now.Sub(l.swept) >= houseEvery {
			l.swept = now
			if err := l.keepHouse(ctx); err != nil && ctx.Err() == nil {
				l.env.Log.Warn("keep house among the dead letters; trying again", "in", houseEvery, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// runs notes that a job runs, or has ended.
func (l *Letters) runs(id message.ID, on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if on {
		l.running[id] = true
	} else {
		delete(l.running, id)
	}
}
