// Package command keeps commands until their devices have answered, or their time is over. It hears `device.<id>.command.<name>.<command-id>`,
// whoever says it, and releases the commands of a device one at a time, in their order, while the device is connected and wants
// them. A broker delivers what was released, as it does any message of a session, and tells how far it came; `….reply`
// ends the command.
//
// Everything that a command is, and what each device's state is, lies in one store and is committed with the position in the
// logs. What depends on time or on nobody's message, releases and expiries, follows from keys in that store, so nothing has to
// be remembered over a restart, and what waits for devices that are away costs the others nothing.
package command

import (
	"context"
	"fmt"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// Config is the component's configuration.
type Config struct {
	// TTL is how long a command lives whose sender said nothing, TTLMax the longest any does.
	TTL    string `json:"ttl"`
	TTLMax string `json:"ttl_max"`
	// WaitingMax is how many commands of a device may wait to be delivered, and how many may be delivered and not answered.
	WaitingMax int `json:"waiting_max"`
	// EndedKept is how many commands of a device are remembered once they have ended, and EndedAge for how long.
	EndedKept int    `json:"ended_kept"`
	EndedAge  string `json:"ended_age"`
	// Again is after how long without a word of it a released command is released once more, to a device that is still
	// connected. The broker delivers none twice that it still has.
	Again string `json:"again"`
}

// Name is the component's.
const Name = "service_platform.command"

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name: Name,
	Doc:  "keeps commands to devices until they are answered or their time is over, and releases them one at a time",
	Hears: []message.Pattern{
		"device.*.command.*.*", "device.*.command.*.*.reply", "device.*.presence", "service_platform.broker.receipt.*", "service_platform.x509.device.*",
	},
	Says: []message.Pattern{
		"service_platform.command.release.*.*.*.*", "service_platform.command.ended.*",
		"device.*.command.*.*", // what operators ask for over HTTP goes the way of all commands
		">",                    // an answer, where the command's sender wants it; mayAnswer draws the line
	},
	State:    component.Local,
	Required: true, // a command that was not heard would be lost
}, Config{TTL: "24h", TTLMax: "720h", WaitingMax: 1000, EndedKept: 100, EndedAge: "168h", Again: "1m"}, New)

// Commands is the running component.
type Commands struct {
	env                 component.Env
	ttl, most           time.Duration
	age, again          time.Duration
	waitingMax, endKept int
	metrics             *metrics
	hub                 *hub
	wake                chan struct{}        // something may be released
	began               time.Time            // when it started; of Run's goroutine, as what follows
	ahead               time.Time            // when the history was swept last
	aside               map[string]time.Time // keys of what failed, and when it is tried again
}

// New builds the component.
func New(env component.Env, c Config) (*component.Part, error) {
	x, err := build(env, c)
	if err != nil {
		return nil, err
	}
	return &component.Part{Handle: x.hear, Run: x.run, Routes: x.routes()}, nil
}

func build(env component.Env, c Config) (*Commands, error) {
	x := &Commands{env: env, waitingMax: c.WaitingMax, endKept: c.EndedKept, hub: newHub(), wake: make(chan struct{}, 1), aside: map[string]time.Time{}}
	for _, d := range []struct {
		name, text string
		to         *time.Duration
	}{{"ttl", c.TTL, &x.ttl}, {"ttl_max", c.TTLMax, &x.most}, {"ended_age", c.EndedAge, &x.age}, {"again", c.Again, &x.again}} {
		var err error
		if *d.to, err = time.ParseDuration(d.text); err != nil || *d.to <= 0 {
			return nil, fmt.Errorf("%s %q: want a duration such as 24h", d.name, d.text)
		}
	}
	switch {
	case x.ttl > x.most:
		return nil, fmt.Errorf("ttl %s is longer than ttl_max %s", c.TTL, c.TTLMax)
	case c.WaitingMax < 1 || c.EndedKept < 0:
		return nil, fmt.Errorf("waiting_max is %d and ended_kept %d; want at least 1 and 0", c.WaitingMax, c.EndedKept)
	}
	x.metrics = newMetrics(env.Metrics)
	return x, nil
}

const (
	// tickEvery is how late a command may expire, or be released once more.
	tickEvery = time.Second
	// houseEvery is how often what has ended long ago is forgotten.
	houseEvery = 30 * time.Second
	// atOnce is how many things go in one commit: what devices say does not wait long behind it.
	atOnce = 256
	// asideFor is for how long what failed is left alone: it is damaged, or meets a bug.
	asideFor = 10 * time.Minute
)

// run releases what may be released, and ends what is over.
func (c *Commands) run(ctx context.Context, ready func()) error {
	if err := c.env.View(func(v component.View) error {
		n, err := loadCounts(v)
		c.metrics.set(n)
		return err
	}); err != nil {
		return err
	}
	ready()
	c.began = c.env.Now()
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		more, err := c.work(ctx)
		if err != nil && ctx.Err() == nil {
			c.env.Log.Warn("go on with the commands; trying again", "in", tickEvery, "error", err)
		}
		if more && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-tick.C:
		}
	}
}

// rouse has run look. It does not block.
func (c *Commands) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
