package etl

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// standing is how a dataset stands: how far it was loaded, and what waits. The metrics ask it when they are read, so that the
// lag of a dataset that stands still grows.
type standing struct {
	mu        sync.Mutex
	watermark time.Time     // when the newest message that was loaded was accepted
	took      time.Duration // from there to its row
	oldest    time.Time     // acceptance of the oldest message in hand; zero where none waits
	since     time.Time     // the breaker is open; zero where it is closed
}

// begin notes that messages are in hand.
func (s *standing) begin(oldest time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oldest = oldest
}

// goOn notes that they have their fates.
func (s *standing) goOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oldest, s.since = time.Time{}, time.Time{}
}

// open notes that they cannot have them, and gives since when that is so.
func (s *standing) open(now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		s.since = now
	}
	return s.since
}

func (s *standing) loaded(newest, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watermark, s.took = newest, max(now.Sub(newest), 0)
}

// standings are those of all datasets, as metrics.
type standings struct {
	now func() time.Time
	mu  sync.Mutex
	all map[string]*standing
}

func (s *standings) of(dataset string) *standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string]*standing{}
	}
	if s.all[dataset] == nil {
		s.all[dataset] = &standing{}
	}
	return s.all[dataset]
}

// keep drops those of other datasets than are named.
func (s *standings) keep(names map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.all {
		if !names[name] {
			delete(s.all, name)
		}
	}
}

var (
	watermarkIs = prometheus.NewDesc("naru_etl_watermark_seconds", "When the newest message that was loaded was accepted, in seconds since 1970, by dataset.", []string{"dataset"}, nil)
	lagIs       = prometheus.NewDesc("naru_etl_lag_seconds", "How long the oldest message in hand has waited for its row since it was accepted; where none waits, how long the newest one took.", []string{"dataset"}, nil)
	breakerIs   = prometheus.NewDesc("naru_etl_breaker_open", "1 while the dataset stands still since its database or its pipeline fails.", []string{"dataset"}, nil)
)

// Describe is prometheus.Collector's.
func (s *standings) Describe(c chan<- *prometheus.Desc) {
	c <- watermarkIs
	c <- lagIs
	c <- breakerIs
}

// Collect is prometheus.Collector's.
func (s *standings) Collect(c chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for name, x := range s.all {
		x.mu.Lock()
		lag, open := x.took, 0.0
		if !x.oldest.IsZero() {
			lag = max(now.Sub(x.oldest), 0)
		}
		if !x.since.IsZero() {
			open = 1
		}
		if !x.watermark.IsZero() {
			c <- prometheus.MustNewConstMetric(watermarkIs, prometheus.GaugeValue, float64(x.watermark.UnixMilli())/1000, name)
		}
		c <- prometheus.MustNewConstMetric(lagIs, prometheus.GaugeValue, lag.Seconds(), name)
		c <- prometheus.MustNewConstMetric(breakerIs, prometheus.GaugeValue, open, name)
		x.mu.Unlock()
	}
}
