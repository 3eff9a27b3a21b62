package twin

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/service_platform/twin/shadow"
)

const (
	houseEvery = 30 * time.Second
	// lookMax is how many records are looked at in a turn, sweepMax how many things go in one commit: neither may hold
	// up the requests for long.
	lookMax  = 50_000
	sweepMax = 1000
)

// sweeper goes round through the history, a part in each turn.
type sweeper struct{ next []byte }

// keepHouse removes what is too old, and measures.
func (t *Twins) keepHouse(ctx context.Context, s *sweeper) error {
	return errors.Join(t.sweepRecords(ctx, s), t.sweepDeleted(ctx), t.sweepGone(ctx), t.measure())
}

// sweepRecords removes records beyond their age. What is looked for outside of the handlers' goroutine is still as it
// was in it: records do not change.
func (t *Twins) sweepRecords(ctx context.Context, s *sweeper) error {
	oldest := t.env.Now().Add(-t.age)
	if s.next == nil {
		s.next = []byte{kindRecord}
	}
	looked := 0
	var old [][]byte
	err := t.env.View(func(v component.View) error {
		return v.Range(s.next, []byte{kindRecord + 1}, false, func(k, v []byte) bool {
			if looked++; looked > lookMax || len(old) == sweepMax {
				s.next = slices.Clone(k)
				return false
			}
			if shadow.RecordTime(v).Before(oldest) {
				old = append(old, slices.Clone(k))
			}
			return true
		})
	})
	if err != nil {
		return err
	}
	if looked <= lookMax && len(old) < sweepMax {
		s.next = nil // round
	}
	if len(old) == 0 {
		return nil
	}
	return t.env.Change(ctx, func(tx component.Tx) error {
		for _, k := range old {
			tx.Delete(k)
		}
		return nil
	})
}

// due gives the keys of a kind that are ordered by time, up to a time.
func (t *Twins) due(kind byte, until time.Time) (keys [][]byte, err error) {
	err = t.env.View(func(v component.View) error {
		return v.Range([]byte{kind}, appendTime([]byte{kind}, until), false, func(k, _ []byte) bool {
			keys = append(keys, slices.Clone(k))
			return len(keys) < sweepMax
		})
	})
	return keys, err
}

// sweepDeleted forgets twins that were deleted long ago, their versions and all that is known of them.
func (t *Twins) sweepDeleted(ctx context.Context) error {
	keys, err := t.due(kindExpiry, t.env.Now().Add(-shadow.VersionKept))
	if err != nil || len(keys) == 0 {
		return err
	}
	return t.env.Change(ctx, func(tx component.Tx) error {
		for _, k := range keys {
			if err := t.forget(tx, k); err != nil {
				return err
			}
		}
		return nil
	})
}

// forget removes a twin that is due, and all that is known of it; unless it was made again since it was looked for.
func (t *Twins) forget(tx component.Tx, due []byte) error {
	tx.Delete(due)
	r := parseTwinKey(due[8:])
	d, err := load(tx, r)
	if err != nil || !d.Deleted.Equal(timeOf(due[1:9])) {
		return err
	}
	t.cache.drop(string(twinKey(r)))
	tx.Delete(twinKey(r))
	tx.Delete(conflictKey(r))
	return tx.Scan(recordPrefix(r), func(k, _ []byte) bool {
		tx.Delete(k)
		return true
	})
}

// sweepGone forgets that devices were deleted.
func (t *Twins) sweepGone(ctx context.Context) error {
	keys, err := t.due(kindGoneExpiry, t.env.Now().Add(-shadow.VersionKept))
	if err != nil || len(keys) == 0 {
		return err
	}
	return t.env.Change(ctx, func(tx component.Tx) error {
		for _, k := range keys {
			tx.Delete(k)
			at, err := tx.Get(goneKey(string(k[9:])))
			if err != nil {
				return err
			}
			if at != nil && timeOf(at).Equal(timeOf(k[1:9])) {
				tx.Delete(goneKey(string(k[9:])))
			}
		}
		return nil
	})
}

// measure counts twins and what drifts.
func (t *Twins) measure() error {
	return t.env.View(func(v component.View) error {
		twins, drifting, err := counts(v)
		if err != nil {
			return err
		}
		now := t.env.Now()
		oldest := now
		err = v.Range([]byte{kindDrift}, []byte{kindDrift + 1}, false, func(_, v []byte) bool {
			if at := timeOf(v); at.Before(oldest) {
				oldest = at
			}
			return true
		})
		t.metrics.twins.Set(float64(twins))
		t.metrics.drifting.Set(float64(drifting))
		t.metrics.oldest.Set(now.Sub(oldest).Seconds())
		return err
	})
}

// metrics are the component's own.
type metrics struct {
	requests  *prometheus.CounterVec
	conflicts prometheus.Counter
	twins     prometheus.Gauge
	drifting  prometheus.Gauge
	oldest    prometheus.Gauge
	answers   map[[2]string]prometheus.Counter // of requests, made beforehand
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "naru_twin_requests_total", Help: "Requests to twins by what was answered.",
		}, []string{"request", "answer"}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "naru_twin_conflicts_total", Help: "Updates of twins refused for their version.",
		}),
		twins: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "naru_twins", Help: "Twins there are.",
		}),
		drifting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "naru_twins_drifting", Help: "Twins of which something desired is not reported.",
		}),
		oldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "naru_twin_drift_oldest_seconds", Help: "For how long the longest drifting twin has been so; 0 where none is.",
		}),
		answers: map[[2]string]prometheus.Counter{},
	}
	if r != nil {
		r.MustRegister(m.requests, m.conflicts, m.twins, m.drifting, m.oldest)
	}
	for _, request := range []string{"get", "update", "delete"} {
		for _, answer := range []string{"accepted", "rejected"} {
			m.answers[[2]string{request, answer}] = m.requests.WithLabelValues(request, answer)
		}
	}
	return m
}

func (m *metrics) answered(request, answer string) { m.answers[[2]string{request, answer}].Inc() }
