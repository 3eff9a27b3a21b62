package broker

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

const (
	refusalEvery = 10 * time.Second // equal refusals are told once in so long, with their count
	refusalKinds = 10_000           // told apart within that time; beyond, they are counted under no device
)

// refusal is something that was not let in.
type refusal struct {
	reason                         message.Reason
	detail                         error
	device, client, address, topic string
}

// refusals counts what was not let in, tells of it, and remembers the last.
type refusals struct {
	b    *Broker
	keep int

	mu      sync.Mutex
	open    map[refusalKey]*operator.Refusal
	recent  []operator.Refusal
	hurried chan struct{} // a first refusal of its kind is told at once
}

type refusalKey struct {
	reason message.Reason
	device string
	host   string
	kind   string // of denial
}

func newRefusals(b *Broker, keep int) *refusals {
	return &refusals{b: b, keep: max(keep, 1), open: map[refusalKey]*operator.Refusal{}, hurried: make(chan struct{}, 1)}
}

// add notes a refusal. It does not block.
func (r *refusals) add(x refusal) {
	r.b.metrics.refused.WithLabelValues(r.b.env.Spec.Name, x.reason.String()).Inc()
	now := r.b.env.Now()
	detail := ""
	if x.detail != nil {
		detail = packet.Readable(x.detail.Error()) // which may repeat what a stranger says
	}
	host := x.address
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		host = host[:i]
	}
	key := refusalKey{x.reason, x.device, host, kindOf(x.detail)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.open) >= refusalKinds && r.open[key] == nil {
		key = refusalKey{reason: x.reason}
	}
	o := r.open[key]
	if o == nil {
		o = &operator.Refusal{Reason: x.reason, Component: r.b.env.Spec.Name, Device: strings.Clone(x.device), First: now}
		r.open[key] = o
		r.b.env.Log.Warn("refused", "reason", x.reason, "device", x.device, "client_id", x.client, "address", x.address, "topic", x.topic, "error", detail)
		select {
		case r.hurried <- struct{}{}:
		default:
		}
	}
	o.Count++
	o.Last, o.Detail, o.Address, o.ClientID = now, strings.Clone(detail), x.address, strings.Clone(x.client)
	if x.topic != "" {
		if s, err := message.FromTopic(strings.Clone(x.topic)); err == nil {
			o.Subject = s
		}
	}
}

// run tells of refusals: of a new kind within a moment, then every ten seconds.
func (r *refusals) run(ctx context.Context) {
	tick := time.NewTicker(refusalEvery)
	defer tick.Stop()
	told := map[refusalKey]uint64{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.hurried:
			r.tell(ctx, told, false)
		case <-tick.C:
			r.tell(ctx, told, true)
			clear(told)
		}
	}
}

// tell says what has been counted and not said. At the end of a round the counts begin anew.
func (r *refusals) tell(ctx context.Context, told map[refusalKey]uint64, round bool) {
	r.mu.Lock()
	var list []operator.Refusal
	for k, o := range r.open {
		if said := told[k]; said == 0 || round && o.Count > said {
			x := *o
			x.Count -= said
			list = append(list, x)
		}
		told[k] = o.Count
	}
	if round {
		clear(r.open)
	}
	r.recent = append(r.recent, list...)
	if n := len(r.recent) - r.keep; n > 0 {
		r.recent = slices.Delete(r.recent, 0, n)
	}
	r.mu.Unlock()
	for _, x := range list {
		m := &message.Message{Subject: operator.RefusedSubject(x.Component), Device: x.Device, ContentType: "application/json", Data: mustJSON(x)}
		if err := r.b.env.Say(ctx, m); err != nil && ctx.Err() == nil {
			r.b.env.Log.Warn("tell of a refusal", "error", err)
		}
	}
}

// serve shows the last ones, the newest first.
func (r *refusals) serve(_ http.ResponseWriter, q *http.Request) (any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []operator.Refusal{}
	device := q.URL.Query().Get("device")
	for _, x := range slices.Backward(r.recent) {
		if device == "" || x.Device == device {
			out = append(out, x)
		}
	}
	return out, nil
}

// reasonMax is how much of a refusal a client is told in words, bytes.
const reasonMax = 512

// reasonString is a refusal as an MQTT 5 Reason String: bounded, and text that every client may receive (§1.5.4).
func reasonString(err error) string {
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(err.Error(), "?"))
	if len(s) > reasonMax {
		s = strings.ToValidUTF8(s[:reasonMax], "") + "…"
	}
	return s
}
