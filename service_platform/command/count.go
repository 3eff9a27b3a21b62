package command

import (
	"encoding/json"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/component"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// states lists the states of a command, in the order of its way.
var states = []string{serviceplatform.CommandQueued, serviceplatform.CommandReleased, serviceplatform.CommandSent, serviceplatform.CommandDelivered,
	serviceplatform.CommandReplied, serviceplatform.CommandFailed, serviceplatform.CommandExpired, serviceplatform.CommandCancelled}

// counts are how many commands are kept, by state.
type counts map[string]int64

func loadCounts(g getter) (counts, error) {
	n := counts{}
	v, err := g.Get([]byte{kindCounts})
	if err == nil && v != nil {
		err = json.Unmarshal(v, &n)
	}
	return n, err
}

// count moves a command from one state to another; it has none before it is kept, and after it is forgotten.
func (c *Commands) count(tx component.Tx, from, to string) error {
	if from == to {
		return nil
	}
	n, err := loadCounts(tx)
	if err != nil {
		return err
	}
	if from != "" {
		n[from]--
	}
	if to != "" {
		n[to]++
	}
	v, err := json.Marshal(n)
	if err != nil {
		return err
	}
	tx.Set([]byte{kindCounts}, v)
	tx.After(func() { c.metrics.set(n) })
	return nil
}

// metrics are the component's own.
type metrics struct {
	kept *prometheus.GaugeVec
	over *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		kept: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "naru_commands", Help: "Commands that are kept, by state."}, []string{"state"}),
		over: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "naru_commands_ended_total", Help: "Commands that have ended, by state."}, []string{"state"}),
	}
	if r != nil {
		r.MustRegister(m.kept, m.over)
	}
	return m
}

func (m *metrics) set(n counts) {
	for _, s := range states {
		m.kept.WithLabelValues(s).Set(float64(n[s]))
	}
}

func (m *metrics) ended(state string) { m.over.WithLabelValues(state).Inc() }
