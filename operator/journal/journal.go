// Package journal finds messages. It keeps no copy of them: the logs are the record, and the journal is an index over
// their batches, by time and by small filters over message ids, trace ids and devices. A message's fate is not written
// down either: it follows from the consumers' positions and from the exceptions.
package journal

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// Config is the journal's configuration.
type Config struct {
	// ScanMax is how many batches one search may read before it stops and says where; it keeps a careless search from
	// reading the disk for an hour.
	ScanMax int `json:"scan_max"`
}

// Spec declares the journal.
var Spec = component.Define(component.Spec{
	Name:     "operator.journal",
	Doc:      "indexes every batch of every log, and finds messages, traces and fates",
	Hears:    []message.Pattern{">"},
	State:    component.Local,
	Lazy:     true,
	Required: true,
}, Config{ScanMax: 200_000}, New)

// Journal is the index. It is safe for concurrent use.
type Journal struct {
	env  component.Env
	conf Config

	mu      sync.Mutex
	logs    map[string]bus.Log
	levels  []*level // of filters, the finest first
	newest  uint32   // the newest minute seen
	batches uint64   // how many were indexed
}

// New builds the journal.
func New(env component.Env, c Config) (*component.Part, error) {
	if c.ScanMax <= 0 {
		return nil, fmt.Errorf("scan_max is %d; want at least 1", c.ScanMax)
	}
	j := &Journal{env: env, conf: c, logs: map[string]bus.Log{}, levels: newLevels()}
	return &component.Part{HandleBatch: j.index, Run: j.run, Routes: j.routes()}, nil
}

// log opens a log once.
func (j *Journal) log(ctx context.Context, name string) (bus.Log, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if l := j.logs[name]; l != nil {
		return l, nil
	}
	l, err := j.env.Bus.Log(ctx, name, bus.LogOptions{})
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, err)
	}
	j.logs[name] = l
	return l, nil
}

// minuteOf is the minute that a time belongs to, counted from 1970.
func minuteOf(t time.Time) uint32 { return uint32(t.Unix() / 60) }
