// Package pump copies the log of the data platform into another one that lies elsewhere, such as an Amazon Kinesis data
// stream: each batch once it is stored, in order, as often as it takes. What is copied twice is the same, and read once.
//
// While the stream is away or slow the pump stands still and says why; the log keeps what it has not copied.
package pump

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// Name is the component's name.
const Name = "data_platform.pump"

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name:     Name,
	Doc:      "copies what lands in the data platform into a stream elsewhere, each message once",
	Hears:    []message.Pattern{"data_platform.>"},
	State:    component.Local,
	Required: true,
}, struct{}{}, New)

// tellEvery is how often others hear how far the copy has come.
const tellEvery = time.Second

type pump struct{ env component.Env }

// New builds the component.
func New(env component.Env, _ struct{}) (*component.Part, error) {
	p := &pump{env}
	return &component.Part{HandleBatch: p.copy, Run: p.run}, nil
}

func (p *pump) target(ctx context.Context) (bus.Copier, error) {
	log, err := p.env.Bus.Log(ctx, bus.CopyName(message.DataPlatform), bus.LogOptions{})
	if err != nil {
		return nil, err
	}
	c, ok := log.(bus.Copier)
	if !ok {
		return nil, errors.New("there is nothing to copy into: set bus.kinesis")
	}
	return c, nil
}

func (p *pump) copy(ctx context.Context, tx component.Tx, _ string, s bus.Stored) error {
	to, err := p.target(ctx)
	if err != nil {
		return err
	}
	committed, err := to.Append(ctx, tx, s)
	if err != nil {
		return err
	}
	tx.After(committed)
	return nil
}

func (p *pump) run(ctx context.Context, ready func()) error {
	to, err := p.target(ctx)
	if err != nil {
		return fmt.Errorf("open what is copied into: %w", err)
	}
	ready()
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := to.Tell(ctx); err != nil && ctx.Err() == nil {
			p.env.Log.Warn("tell how far the copy has come", "error", err) // told again at the next tick
		}
	}
}
