// Package webhook sends what rules say to HTTP servers elsewhere, as CloudEvents. Each destination is a consumer of its own: one
// that hangs, fails or is gone keeps its own messages waiting, and no others; and within it, a message that is tried again
// delays only its own device for that rule's action.
//
// Here are destinations as they are registered (destination.go), their table (book.go), what is called for a message
// (sender.go), headers with secrets (secret.go) and the HTTP API (http.go).
package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/internal/outbound"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// Name is the component's name.
const Name = "service_platform.webhook"

// Config is the component's configuration.
type Config struct {
	// Allow lists networks that may be called though they are loopback, private or link-local, such as 10.1.0.0/16.
	Allow []string `json:"allow"`
	// SecretsDir is the folder with the files that destinations take headers from; none where empty.
	SecretsDir string `json:"secrets_dir"`
	// DestinationsMax is how many destinations there may be.
	DestinationsMax int `json:"destinations_max"`
}

const sends = message.Pattern("service_platform.webhook.*.send")

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name:         Name,
	Doc:          "what rules send to HTTP servers elsewhere, each destination for itself",
	Hears:        []message.Pattern{sends},
	ChildrenHear: []message.Pattern{sends},
	Says:         []message.Pattern{sends, "service_platform.webhook.*.failed"},
	State:        component.Local,
}, Config{Allow: []string{}, DestinationsMax: 200}, New)

// Webhook is the running component.
type Webhook struct {
	env     component.Env
	conf    Config
	allow   []netip.Prefix
	secrets secrets
	client  *outbound.Client
	book    *book
	calls   *prometheus.CounterVec

	mu      sync.Mutex
	senders map[string]*sender // by destination, of those that are declared
}

// New builds the component.
func New(env component.Env, c Config) (*component.Part, error) {
	w, err := build(env, c)
	if err != nil {
		return nil, err
	}
	return &component.Part{Call: w.unsent, Run: w.run, Routes: w.routes()}, nil
}

func build(env component.Env, c Config) (*Webhook, error) {
	if c.DestinationsMax < 1 {
		return nil, fmt.Errorf("destinations_max is %d; want at least 1", c.DestinationsMax)
	}
	w := &Webhook{env: env, conf: c, senders: map[string]*sender{}}
	var err error
	if w.allow, err = outbound.Networks(c.Allow); err != nil {
		return nil, fmt.Errorf("allow%w", err)
	}
	if c.SecretsDir != "" {
		if w.secrets.dir, err = filepath.Abs(c.SecretsDir); err != nil {
			return nil, fmt.Errorf("secrets_dir: %w", err)
		}
	}
	w.client = outbound.New(outbound.Options{Of: Name, Allow: w.allow, Now: env.Now})
	w.book = newBook(w)
	w.calls = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "naru_webhook_calls_total",
		Help: "Calls of a destination, by how they ended: handled, later, dead."}, []string{"destination", "outcome"})
	if env.Metrics != nil {
		env.Metrics.MustRegister(w.calls)
	}
	return w, nil
}

// run follows the table, and has a child for each destination.
func (w *Webhook) run(ctx context.Context, ready func()) error {
	defer w.client.Close()
	if err := w.book.Open(ctx, w.env.Bus); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	group.Go(func() {
		if err := w.book.Follow(ctx); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	})
	told := false
	teller := names.Teller{Bus: w.env.Bus, Kind: names.Destinations, Node: w.env.Node}
	again := time.NewTicker(againEvery)
	defer again.Stop()
	for ctx.Err() == nil {
		list, news, known := w.book.list()
		if known {
			switch err := w.declare(ctx, list); {
			case err != nil && ctx.Err() == nil:
				w.env.Log.Warn("declare the destinations; trying again", "error", err)
			case !told:
				told = true
				ready()
			}
			if err := teller.Tell(ctx, w.env.Now(), namesOf(list)); err != nil && ctx.Err() == nil {
				w.env.Log.Warn("tell which destinations there are; trying again", "error", err)
			}
		}
		select {
		case <-news:
		case <-again.C: // one that is to be forgotten may still run elsewhere
		case <-ctx.Done():
		}
	}
	group.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

const againEvery = 5 * time.Second

// namesOf are the names of the destinations that are there.
func namesOf(list []*Destination) (all []string) {
	for _, d := range list {
		if !d.Deleted {
			all = append(all, d.Name)
		}
	}
	return all
}

// declare has the destinations of the table run, and forgets those that were deleted.
func (w *Webhook) declare(ctx context.Context, list []*Destination) error {
	var set []component.Child
	var gone []*Destination
	senders := map[string]*sender{}
	w.mu.Lock()
	for _, d := range list {
		if d.Deleted {
			gone = append(gone, d)
			continue
		}
		s := w.senders[d.Name]
		if s == nil || s.version != d.version() {
			s = newSender(w, d)
		}
		senders[d.Name] = s
		set = append(set, s.child())
	}
	w.senders = senders
	w.mu.Unlock()
	if err := w.env.Children(set); err != nil {
		return err
	}
	for _, d := range gone {
		if err := w.env.Forget(ctx, d.Name); err != nil {
			return fmt.Errorf("forget destination %s: %w", d.Name, err)
		}
		if err := w.book.Erase(ctx, d.Name, d.revision); err != nil {
			return fmt.Errorf("forget destination %s: %w", d.Name, err)
		}
	}
	return nil
}

func (w *Webhook) sender(name string) *sender {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.senders[name]
}

// unsent takes what goes to no destination: each message is the account of the destination that was there when it was
// said, or of this. It dies, and may be tried again when there is one by its name.
func (w *Webhook) unsent(ctx context.Context, m *message.Message, try component.Try) ([]*message.Message, error) {
	name := m.Subject.Token(2)
	d, err := w.book.find(ctx, name)
	switch {
	case err != nil:
		return nil, err
	case d == nil:
		err := message.Rejectf(message.RuleError, "there is no destination %s: register it with `naru destination add`, then `naru dead retry`", name)
		return []*message.Message{failed(name, m, try.N, message.RuleError, err)}, err
	case d.owes(m):
		return nil, component.ErrNotMatched
	}
	again := &message.Message{Subject: m.Subject, QoS: 1, ContentType: m.ContentType, Data: m.Data, Properties: m.Properties, Expires: m.Expires}
	return []*message.Message{again}, nil
}

// failed tells that a destination was not given a message.
func failed(destination string, m *message.Message, attempts int, reason message.Reason, err error) *message.Message {
	property := func(name string) string { v, _ := m.Properties.Get(name); return v }
	f := serviceplatform.WebhookFailed{Destination: destination, Reason: reason, Error: cut(err.Error()), Attempts: attempts, Rule: property(serviceplatform.SendRule),
		Action: property(serviceplatform.SendAction), Topic: property(serviceplatform.SendTopic), Client: property(serviceplatform.SendClient)}
	return &message.Message{Subject: serviceplatform.WebhookFailedSubject(destination), QoS: 1, ContentType: "application/json", Data: f.JSON(property(serviceplatform.SendPayload))}
}

const errorShown = 1024 // bytes of an error in what is told of it

func cut(s string) string {
	if len(s) > errorShown {
		return s[:errorShown] + "…"
	}
	return s
}
