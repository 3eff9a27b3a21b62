package component

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/message"
)

// Metrics are those of the runner, one set per process.
type Metrics struct {
	outcomes *prometheus.CounterVec
	handle   *prometheus.HistogramVec
	retries  *prometheus.CounterVec
	dead     *prometheus.CounterVec
	parked   *prometheus.GaugeVec
	bad      *prometheus.CounterVec

	calls *prometheus.GaugeVec

	lagMessages, lagSeconds *prometheus.GaugeVec

	up       *prometheus.GaugeVec
	restarts *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "naru_messages_total", Help: "Messages by what became of them."}, []string{"component", "log", "outcome"}),
		handle:   prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "naru_handle_duration_seconds", Help: "Time a handler took for one message.", Buckets: prometheus.ExponentialBuckets(1e-6, 4, 12), NativeHistogramBucketFactor: 1.1}, []string{"component"}),
		retries:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "naru_retries_total", Help: "Attempts that failed and will be repeated."}, []string{"component", "reason"}),
		dead:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "naru_dead_total", Help: "Messages given up."}, []string{"component", "reason"}),
		parked:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "naru_parked_messages", Help: "Messages waiting to be tried again."}, []string{"component", "log"}),
		calls:    prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "naru_calls", Help: "Calls under way: messages that are being handled outside."}, []string{"component"}),
		bad:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "naru_unreadable_batches_total", Help: "Batches that could not be read."}, []string{"component", "log"}),
		up:       prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "naru_component_up", Help: "1 while the component runs here."}, []string{"component"}),
		restarts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "naru_component_restarts_total", Help: "Starts after a failure."}, []string{"component"}),
	}
	m.lagMessages = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "naru_lag_messages", Help: "Messages in the log that are not finished, parked ones among them."}, []string{"component", "log"})
	m.lagSeconds = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "naru_lag_seconds", Help: "Age of the oldest message that is not finished."}, []string{"component", "log"})
	if r != nil {
		r.MustRegister(m.lagMessages, m.lagSeconds, m.outcomes, m.handle, m.retries, m.dead, m.parked, m.bad, m.calls, m.up, m.restarts)
	}
	return m
}

// forget drops what is told of a component that is no more.
func (m *Metrics) forget(component string) {
	of := prometheus.Labels{"component": component}
	for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{m.outcomes, m.handle, m.retries, m.dead, m.parked, m.bad, m.calls, m.lagMessages, m.lagSeconds, m.up, m.restarts} {
		v.DeletePartialMatch(of)
	}
}

// metrics are one component's. Only the worker's goroutine uses them, but for handled.
type metrics struct {
	all  *Metrics
	name string
	took prometheus.Observer
	now  prometheus.Gauge // calls under way
	n    map[[2]string]prometheus.Counter
}

func (m *Metrics) of(component string) *metrics {
	return &metrics{all: m, name: component, took: m.handle.WithLabelValues(component), now: m.calls.WithLabelValues(component), n: map[[2]string]prometheus.Counter{}}
}

func (m *metrics) messages(log, outcome string, n uint64) {
	key := [2]string{log, outcome}
	c := m.n[key]
	if c == nil {
		c = m.all.outcomes.WithLabelValues(m.name, log, outcome)
		m.n[key] = c
	}
	c.Add(float64(n))
}

func (m *metrics) handled(d time.Duration)  { m.took.Observe(d.Seconds()) }
func (m *metrics) retried(r message.Reason) { m.all.retries.WithLabelValues(m.name, r.String()).Inc() }
func (m *metrics) died(r message.Reason, n uint64) {
	m.all.dead.WithLabelValues(m.name, r.String()).Add(float64(n))
}
func (m *metrics) parked(log string, n uint64) {
	m.all.parked.WithLabelValues(m.name, log).Set(float64(n))
}
func (m *metrics) calls(n int)           { m.now.Set(float64(n)) }
func (m *metrics) unreadable(log string) { m.all.bad.WithLabelValues(m.name, log).Inc() }

// scope is a registerer that takes back all that was registered through it, so that a component can start again.
type scope struct {
	to prometheus.Registerer
	mu sync.Mutex
	in []prometheus.Collector
}

// Register registers.
func (s *scope) Register(c prometheus.Collector) error {
	if err := s.to.Register(c); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in = append(s.in, c)
	return nil
}

// MustRegister registers, and panics where a name is taken: a bug.
func (s *scope) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		if err := s.Register(c); err != nil {
			panic(err)
		}
	}
}

// Unregister takes one back.
func (s *scope) Unregister(c prometheus.Collector) bool { return s.to.Unregister(c) }

func (s *scope) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.in {
		s.to.Unregister(c)
	}
	s.in = nil
}
