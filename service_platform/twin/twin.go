// Package twin keeps what each device should be and what it says it is: device twins with the semantics of AWS IoT's
// Device Shadow, named ones too. It hears `device.<id>.twin.get|update|delete` and `device.<id>.twin.name.<shadow>.…`,
// and answers there with accepted, rejected, delta and documents; `device.<id>.twin.changed` tells what became different.
//
// The protocol itself is package shadow, without I/O. Here is its store: one value for each twin, read, changed and
// committed together with the answers and the position in the log, so that a message takes effect once whatever dies
// between. Beside the twins stand their history, the updates that were refused for their version, and which twins drift:
// what is desired there was not reported.
package twin

import (
	"context"
	"fmt"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/twin/shadow"
)

// Config is the component's configuration.
type Config struct {
	// StateMax is how many bytes desired and reported of a twin may have together.
	StateMax int `json:"state_max"`
	// DepthMax is how many levels they may have.
	DepthMax int `json:"depth_max"`
	// ShadowsMax is how many twins a device may have, with the unnamed one.
	ShadowsMax int `json:"shadows_max"`
	// HistoryMax is how many changes of a twin are remembered, and HistoryAge for how long.
	HistoryMax int    `json:"history_max"`
	HistoryAge string `json:"history_age"`
}

// Defaults is the configuration where nothing is said.
var Defaults = Config{StateMax: shadow.Defaults.State, DepthMax: shadow.Defaults.Depth, ShadowsMax: 64, HistoryMax: 32, HistoryAge: "168h"}

// The bounds of the configuration.
const (
	// stateMost keeps the largest answer within a message: metadata may be a dozen times its state, twice in documents.
	stateMost = 32 << 10
	depthMost = 32
	// conflictsMax is how many refused updates of a twin are remembered: enough to see who fights with whom.
	conflictsMax = 16
)

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name: "service_platform.twin",
	Doc:  "device twins: desired and reported state with AWS Shadow semantics, their history and who changed what",
	Hears: []message.Pattern{
		"device.*.twin.update", "device.*.twin.get", "device.*.twin.delete",
		"device.*.twin.name.*.update", "device.*.twin.name.*.get", "device.*.twin.name.*.delete",
		"service_platform.x509.device.*", serviceplatform.TwinWanted,
	},
	Says: []message.Pattern{
		"device.*.twin.*.accepted", "device.*.twin.update.documents", "device.*.twin.changed", "device.*.twin.update.delta", "device.*.twin.*.rejected", "device.*.twin.read",
		"device.*.twin.name.*.*.accepted", "device.*.twin.name.*.update.documents", "device.*.twin.name.*.update.delta", "device.*.twin.name.*.*.rejected",
		// What operators ask for over HTTP goes the way of all requests.
		"device.*.twin.update", "device.*.twin.delete", "device.*.twin.name.*.update", "device.*.twin.name.*.delete",
	},
	State:    component.Local,
	Required: true, // a lost update would leave a twin wrong for good
}, Defaults, New)

// Twins is the running component.
type Twins struct {
	env     component.Env
	limits  shadow.Limits
	shadows int
	history uint64
	age     time.Duration
	metrics *metrics
	hub     *hub
	cache   *cache
}

// New builds the component.
func New(env component.Env, c Config) (*component.Part, error) {
	t, err := build(env, c)
	if err != nil {
		return nil, err
	}
	return &component.Part{Handle: t.hear, Run: t.run, Routes: t.routes()}, nil
}

func build(env component.Env, c Config) (*Twins, error) {
	age, err := time.ParseDuration(c.HistoryAge)
	switch {
	case err != nil || age <= 0:
		return nil, fmt.Errorf("history_age %q: want a duration such as 168h", c.HistoryAge)
	case c.StateMax < 2 || c.StateMax > stateMost:
		return nil, fmt.Errorf("state_max is %d; want 2 to %d", c.StateMax, stateMost)
	case c.DepthMax < 1 || c.DepthMax > depthMost:
		return nil, fmt.Errorf("depth_max is %d; want 1 to %d", c.DepthMax, depthMost)
	case c.ShadowsMax < 1 || c.HistoryMax < 1:
		return nil, fmt.Errorf("shadows_max is %d and history_max %d; both want at least 1", c.ShadowsMax, c.HistoryMax)
	}
	return &Twins{env: env, limits: shadow.Limits{Request: shadow.Defaults.Request, State: c.StateMax, Depth: c.DepthMax},
		shadows: c.ShadowsMax, history: uint64(c.HistoryMax), age: age, metrics: newMetrics(env.Metrics), hub: newHub(), cache: newCache()}, nil
}

// run keeps house: what is too old goes, and what drifts is counted.
func (t *Twins) run(ctx context.Context, ready func()) error {
	ready()
	defer t.hub.close()
	tick := time.NewTicker(houseEvery)
	defer tick.Stop()
	var s sweeper
	for {
		if err := t.keepHouse(ctx, &s); err != nil && ctx.Err() == nil {
			t.env.Log.Warn("keep the twins' house; trying again", "in", houseEvery, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
