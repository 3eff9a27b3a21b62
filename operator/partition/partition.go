// Package partition shows what the logs are made of, who reads them and how far each reader is, and gives a log other
// partitions while the platform runs.
package partition

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// Spec declares the component. Every process that has it answers alike: what it knows lies on the bus.
var Spec = component.Define(component.Spec{
	Name: "operator.partition",
	Doc:  "shows the logs with their generations and readers, and gives a log other partitions",
	Says: []message.Pattern{"operator.repartitioned.*"},
}, struct{}{}, New)

// Log is a log at a moment.
type Log struct {
	Name string     `json:"log"`
	ID   message.ID `json:"id"`
	// Partitions is how many the open generation has.
	Partitions  int              `json:"partitions"`
	Generations []bus.Generation `json:"generations"` // oldest first; the last one is open
	Bytes       uint64           `json:"bytes"`
	Oldest      time.Time        `json:"oldest,omitzero"` // when its oldest message was accepted
	Newest      time.Time        `json:"newest,omitzero"`
	Consumers   []Consumer       `json:"consumers"`
	// Changes are who gave it other partitions, the newest last.
	Changes []operator.Repartitioned `json:"changes,omitempty"`
	// Engine is what stores it, and how many fsync queues that is.
	Engine string `json:"engine"`
}

// Consumer is a reader of a log.
type Consumer struct {
	Name string `json:"consumer"`
	// Generation is the one that it reads. While that is not the open one, it has not gone over.
	Generation uint32    `json:"generation"`
	Over       bool      `json:"over"` // it reads the open generation
	Behind     uint64    `json:"behind_messages"`
	Oldest     time.Time `json:"oldest,omitzero"` // of what lies before it
	Parked     uint64    `json:"parked,omitempty"`
	Fault      string    `json:"fault,omitempty"` // why it stands still
	// Away says that nobody runs it now. It goes over when it runs again.
	Away bool `json:"away,omitempty"`
}

const (
	askWait   = 10 * time.Second // for the engine
	probeMost = 64               // batches looked at for one that has a message in it
)

type partition struct{ env component.Env }

// New builds the component.
func New(env component.Env, _ struct{}) (*component.Part, error) {
	p := &partition{env}
	return &component.Part{Routes: []component.Route{
		{Pattern: "GET /api/v1/logs", Handler: answer.Func(p.serveList)},
		{Pattern: "GET /api/v1/logs/{log}", Handler: answer.Func(p.serveLog)},
		{Pattern: "POST /api/v1/logs/{log}/repartition", Handler: answer.Func(p.serveRepartition)},
	}}, nil
}

func (p *partition) serveList(_ http.ResponseWriter, r *http.Request) (any, error) {
	out := struct {
		Logs []*Log `json:"logs"`
	}{}
	for _, name := range message.Namespaces() {
		l, err := p.look(r.Context(), name)
		if err != nil {
			return nil, err
		}
		out.Logs = append(out.Logs, l)
	}
	return out, nil
}

func (p *partition) serveLog(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := known(r.PathValue("log")); err != nil {
		return nil, err
	}
	return p.look(r.Context(), r.PathValue("log"))
}

func known(name string) error {
	if !slices.Contains(message.Namespaces(), name) {
		return answer.Missing("there is no log %q; there are %s", name, strings.Join(message.Namespaces(), ", "))
	}
	return nil
}

// look reads a log's shape, and where its readers are.
func (p *partition) look(ctx context.Context, name string) (*Log, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	log, err := p.env.Bus.Log(ctx, name, bus.LogOptions{})
	if err != nil {
		return nil, err
	}
	info, err := log.Info(ctx)
	if err != nil {
		return nil, err
	}
	l := &Log{Name: name, ID: info.ID, Generations: info.Generations, Consumers: p.consumers(info), Engine: p.env.Bus.Status(ctx).Engine}
	for _, g := range info.Generations {
		l.Partitions = len(g.Partitions)
		for _, part := range g.Partitions {
			l.Bytes += part.Bytes
			if err := span(ctx, log, bus.Position{Generation: g.Number, Partition: part.Number}, part, l); err != nil {
				return nil, err
			}
		}
	}
	l.Changes, err = p.changes(ctx, name)
	return l, err
}

// span widens a log's time by a partition's. At its ends may lie batches without a message, which have no time.
func span(ctx context.Context, log bus.Log, at bus.Position, part bus.Partition, l *Log) error {
	probe := func(from uint64, step int64, take func(b *message.Batch)) error {
		for seq, n := from, 0; seq >= part.First && seq <= part.Last && seq > 0 && n < probeMost; seq, n = uint64(int64(seq)+step), n+1 {
			at.Sequence = seq
			s, err := log.Fetch(ctx, at)
			if errors.Is(err, bus.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if s.Err == nil && s.Batch.Count > 0 {
				take(&s.Batch)
				return nil
			}
		}
		return nil
	}
	return errors.Join(
		probe(part.First, 1, func(b *message.Batch) {
			if l.Oldest.IsZero() || b.First.Before(l.Oldest) {
				l.Oldest = b.First
			}
		}),
		probe(part.Last, -1, func(b *message.Batch) {
			if b.Last.After(l.Newest) {
				l.Newest = b.Last
			}
		}))
}

// consumers are the readers of a log, as they told of themselves.
func (p *partition) consumers(info bus.LogInfo) []Consumer {
	now := p.env.Now()
	by := map[string][]component.Report{}
	for _, r := range p.env.Peers.Reports() {
		if r.Log == info.Name && !r.Gone(now) {
			by[r.Consumer] = append(by[r.Consumer], r)
		}
	}
	list := []Consumer{}
	for name, reports := range by {
		c := Consumer{Name: name, Away: true}
		c.Generation = reads(info, reports)
		c.Over = len(info.Generations) == 0 || c.Generation == info.Generations[len(info.Generations)-1].Number
		for _, r := range reports {
			c.Parked += r.Waiting.Count
			c.Fault = cmp.Or(c.Fault, r.Fault)
		}
		for _, h := range p.env.Peers.Components() {
			if h.Name != name && h.Name+"/"+h.Node != name || h.State == "stopped" {
				continue
			}
			c.Away = false
			if h.State == "failed" {
				c.Fault = cmp.Or(c.Fault, h.Fault)
			}
			b := h.Behind[info.Name]
			c.Behind += b.Messages
			if !b.Oldest.IsZero() && (c.Oldest.IsZero() || b.Oldest.Before(c.Oldest)) {
				c.Oldest = b.Oldest
			}
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b Consumer) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// reads is the generation that a consumer reads: the first, from where it is heard of, that it has not read to its end with
// nothing of it parked.
func reads(info bus.LogInfo, reports []component.Report) uint32 {
	at := map[[2]uint32]component.Report{}
	first := ^uint32(0)
	for _, r := range reports {
		at[[2]uint32{r.Position.Generation, r.Position.Partition}] = r
		first = min(first, r.Position.Generation)
	}
	open := uint32(0)
	for _, g := range info.Generations {
		open = g.Number
		if g.Number < first || !g.Sealed {
			continue
		}
		for _, part := range g.Partitions {
			r, heard := at[[2]uint32{g.Number, part.Number}]
			if part.Last == 0 || heard && r.Waiting.Count == 0 && (r.Finished || r.Position.Sequence >= part.Last) {
				continue
			}
			return g.Number
		}
	}
	return open
}
