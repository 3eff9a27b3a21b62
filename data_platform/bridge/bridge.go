// Package bridge leads messages over into the data platform: what a dataset takes as it is, and what rules put there. It says
// them again in the log data_platform, under the dataset's name, with payload, content type and properties unchanged; trace
// and cause lead back.
//
// Its position is its output (State Derived): a message is in the data platform once, whatever dies in between. What is slow
// behind it does not concern it, since the log lies between.
package bridge

import (
	"context"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/message"
)

// Name is the component's name.
const Name = "data_platform.bridge"

const puts = "service_platform.bridge."

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name:     Name,
	Doc:      "what datasets take of devices and third parties, and what rules put there, on its way into the data platform",
	Hears:    []message.Pattern{"device.>", "3rd_party.>", puts + "*.put"},
	Says:     []message.Pattern{"data_platform.*.>"},
	State:    component.Derived,
	Into:     message.DataPlatform,
	Required: true, // a reading that no dataset was asked about would be missing for good
}, Config{}, New)

// Config is the component's configuration; there is nothing to set.
type Config struct{}

// Bridge is the running component.
type Bridge struct {
	env  component.Env
	book *model.Book
	said *prometheus.CounterVec
}

// New builds the component.
func New(env component.Env, _ Config) (*component.Part, error) {
	b := &Bridge{env: env, book: model.NewBook(env.Bus, env.Log, env.Now)}
	b.said = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "naru_bridge_messages_total", Help: "Messages led over into the data platform, by dataset."}, []string{"dataset"})
	if env.Metrics != nil {
		env.Metrics.MustRegister(b.said)
	}
	return &component.Part{Handle: b.handle, Run: b.book.Serve}, nil
}

// handle says a message once for each dataset that it is for. What was not there when a process started must not decide, so
// the first message waits until the table has been read.
func (b *Bridge) handle(ctx context.Context, tx component.Tx, m *message.Message) error {
	select {
	case <-b.book.Synced():
	default:
		select {
		case <-b.book.Synced():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	set := b.book.Set()
	if strings.HasPrefix(string(m.Subject), puts) {
		name := m.Subject.Token(2)
		d := set.Datasets[name]
		if d == nil {
			return message.Rejectf(message.DatasetUnknown, "there is no dataset %q; `naru data models` shows those there are, `naru data apply` adds one for what comes next", name)
		}
		return b.put(tx, d, m)
	}
	err := component.ErrNotMatched
	set.Taking(m.Subject, func(d *model.Dataset) {
		if err == nil || err == component.ErrNotMatched {
			err = b.put(tx, d, m)
		}
	})
	return err
}

func (b *Bridge) put(tx component.Tx, d *model.Dataset, m *message.Message) error {
	out := &message.Message{Subject: d.SubjectOf(m), Device: m.Device, Time: m.Happened(), ContentType: m.ContentType, Schema: m.Schema, Text: m.Text, Properties: m.Properties, Data: m.Data}
	if err := tx.Say(out); err != nil {
		return fmt.Errorf("dataset %s: %w", d.Name, err)
	}
	tx.After(b.said.WithLabelValues(d.Name).Inc)
	return nil
}
