package broker

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/naru-platform/naru/internal/built"
	"github.com/naru-platform/naru/message"
)

// sys is what a node's broker tells its own clients of itself, on the topics that mosquitto has for it. No log has these
// messages, and neighbours tell of themselves: they are retained in memory, at QoS 0. Like all topics whose first level
// begins with `$`, they are hidden from a leading wildcard and not mounted, and who hears them is a matter of policy.
type sys struct {
	b     *Broker
	every time.Duration // zero for never
	began time.Time
	told  map[string]string // by topic; of run's goroutine
}

// sysInterval reads how often $SYS is told.
func sysInterval(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("sys_interval %q: want a duration such as 10s; 0s for no $SYS topics", s)
	}
	return d, nil
}

// run tells what there is, and then what has changed.
func (s *sys) run(ctx context.Context) {
	if s.every == 0 {
		return
	}
	s.began = s.b.env.Now()
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		s.tell()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *sys) tell() {
	now := s.b.env.Now()
	var list []*message.Message
	for _, f := range s.facts() {
		if s.told[f.topic] == f.value {
			continue
		}
		s.told[f.topic] = f.value
		subject, err := message.FromTopic(f.topic)
		if err != nil {
			panic(err) // they are our own
		}
		list = append(list, &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Subject: subject, Source: "//naru/" + s.b.env.Spec.Name,
			Retain: true, Data: []byte(f.value)})
	}
	s.b.store.Stand(list)
}

// fact is one topic with its value.
type fact struct{ topic, value string }

func (s *sys) facts() []fact {
	b, m := s.b, s.b.metrics
	b.mu.Lock()
	connected, most := len(b.clients), b.connectedMost
	b.mu.Unlock()
	c := b.store.Counts()
	whole := func(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }
	var in, out float64
	for qos := range m.from {
		in, out = in+valueOf(m.from[qos]), out+valueOf(m.to[qos])
	}
	return []fact{
		{"$SYS/broker/version", "naru version " + built.Version()},
		{"$SYS/broker/uptime", fmt.Sprintf("%d seconds", int(b.env.Now().Sub(s.began)/time.Second))},
		{"$SYS/broker/clients/connected", strconv.Itoa(connected)},
		{"$SYS/broker/clients/disconnected", strconv.Itoa(c.Away)},
		{"$SYS/broker/clients/total", strconv.Itoa(c.Sessions)},
		{"$SYS/broker/clients/maximum", strconv.Itoa(most)},
		{"$SYS/broker/messages/received", whole(valueOf(m.packetsIn))},
		{"$SYS/broker/messages/sent", whole(valueOf(m.packetsOut))},
		{"$SYS/broker/publish/messages/received", whole(in)},
		{"$SYS/broker/publish/messages/sent", whole(out)},
		{"$SYS/broker/bytes/received", whole(valueOf(m.bytesIn))},
		{"$SYS/broker/bytes/sent", whole(valueOf(m.bytesOut))},
		{"$SYS/broker/subscriptions/count", strconv.Itoa(c.Subscriptions)},
		{"$SYS/broker/shared_subscriptions/count", strconv.Itoa(c.Groups)},
		{"$SYS/broker/retained messages/count", strconv.Itoa(c.Retained)},
		{"$SYS/broker/store/messages/count", strconv.Itoa(c.Waiting)},
		{"$SYS/broker/store/messages/bytes", strconv.FormatInt(c.Bytes, 10)},
	}
}

// valueOf reads a counter.
func valueOf(c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		return 0 // a counter has nothing that cannot be written
	}
	return m.GetCounter().GetValue()
}
