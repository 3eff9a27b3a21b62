package sdk

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/nats/ask"
	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

// answerMost is how long an answer may take over the bus: what was lost in a process that died is asked for again while the
// lease lasts.
const answerMost = 6 * time.Second

// busWay asks over the bus: the process that runs the worker, and anybody why there is none.
type busWay struct{ c *ask.Client }

func overBus(o Options, secure *tls.Config) (way, error) {
	c, err := ask.Dial(ask.Options{URL: o.Bus, User: cmp.Or(o.BusUser, os.Getenv("NARU_BUS_USER")), Password: cmp.Or(o.BusPassword, os.Getenv("NARU_BUS_PASSWORD")),
		CredsFile: cmp.Or(o.BusCreds, os.Getenv("NARU_BUS_CREDS")), TLS: secure, Name: "worker instance " + o.Name})
	if err != nil {
		return nil, err
	}
	return &busWay{c}, nil
}

func (b *busWay) turn() {}

func (b *busWay) close() { b.c.Close() }

func (b *busWay) ask(ctx context.Context, q *wire.Question) (*wire.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerMost)
	defer cancel()
	packed, err := wire.Pack(q)
	if err != nil {
		return nil, err
	}
	raw, err := b.c.Ask(ctx, wire.On(q.Worker), packed)
	if errors.Is(err, bus.ErrNobody) && q.Do == wire.DoJoin {
		raw, err = b.c.Ask(ctx, wire.Anybody, packed)
	}
	if err != nil {
		return nil, err
	}
	a, err := wire.Unpack[wire.Answer](raw)
	if err != nil {
		return nil, fmt.Errorf("the platform's answer: %w", err)
	}
	if r := a.Refused; r != nil {
		return nil, &refusal{r.Status, r.Detail, true}
	}
	return a, nil
}
