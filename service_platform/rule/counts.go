package rule

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// counts are a rule's, in this process since it started.
type counts struct {
	matched, passed, failed atomic.Uint64 // messages: taken, not taken by WHERE, and with a failure
	inRow                   atomic.Uint64 // of those taken, how many failed since one did not
	last                    atomic.Pointer[LastFailure]
	actions                 [actionsMax + 1]actionCounts
}

type actionCounts struct{ said, failed atomic.Uint64 }

// action gives an action's; the error action is the last.
func (c *counts) action(index int) *actionCounts {
	if index == errorAction {
		index = actionsMax
	}
	return &c.actions[index]
}

// Counts are what a rule did in the process that answers, since it started.
type Counts struct {
	Matched uint64 `json:"matched"`
	Passed  uint64 `json:"not_matched"` // heard, and WHERE did not hold
	Failed  uint64 `json:"failed"`
	// FailedInRow is how many of the messages that it took failed since one did not; 0 where the last one did not fail.
	FailedInRow uint64 `json:"failed_in_row,omitempty"`
	// Last is the last failure.
	Last *LastFailure `json:"last_failure,omitempty"`
}

// LastFailure is a message that a rule failed on, and the first of what it could not do.
type LastFailure struct {
	At      time.Time       `json:"at"` // when the rule took it
	Message message.ID      `json:"message"`
	Trace   message.TraceID `json:"trace"`
	Version int             `json:"version"`
	serviceplatform.RuleFailure
}

func (c *counts) shown() Counts {
	return Counts{c.matched.Load(), c.passed.Load(), c.failed.Load(), c.inRow.Load(), c.last.Load()}
}

// well notes that a message was taken without a failure.
func (c *counts) well() {
	if c.inRow.Load() > 0 {
		c.inRow.Store(0)
	}
}

// namedMax is how many rules have metrics of their own; the others are added up as "other".
const namedMax = 500

// registry keeps the counts of all rules, and shows them as metrics.
type registry struct {
	mu  sync.Mutex
	all map[string]*counts
	in  []string // in the order of their coming

	messages, actions *prometheus.Desc
}

func newRegistry(r prometheus.Registerer) *registry {
	g := &registry{all: map[string]*counts{},
		messages: prometheus.NewDesc("naru_rule_messages_total", "Messages that a rule heard, by what it made of them.", []string{"rule", "outcome"}, nil),
		actions:  prometheus.NewDesc("naru_rule_actions_total", "What a rule's actions said, and could not say.", []string{"rule", "action", "outcome"}, nil)}
	if r != nil {
		r.MustRegister(g)
	}
	return g
}

// of gives a rule's counts; they stay while the process lives.
func (g *registry) of(rule string) *counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.all[rule]
	if c == nil {
		c = &counts{}
		g.all[rule] = c
		g.in = append(g.in, rule)
	}
	return c
}

// Describe is of prometheus.Collector.
func (g *registry) Describe(to chan<- *prometheus.Desc) {
	to <- g.messages
	to <- g.actions
}

// Collect is of prometheus.Collector.
func (g *registry) Collect(to chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	messages, actions := map[[2]string]uint64{}, map[[3]string]uint64{}
	for i, name := range g.in {
		c, shown := g.all[name], name
		if i >= namedMax {
			shown = "other"
		}
		for outcome, n := range map[string]*atomic.Uint64{"matched": &c.matched, "not_matched": &c.passed, "failed": &c.failed} {
			messages[[2]string{shown, outcome}] += n.Load()
		}
		for a := range c.actions {
			label := strconv.Itoa(a)
			if a == actionsMax {
				label = "error"
			}
			if said, failed := c.actions[a].said.Load(), c.actions[a].failed.Load(); said+failed > 0 {
				actions[[3]string{shown, label, "said"}] += said
				actions[[3]string{shown, label, "failed"}] += failed
			}
		}
	}
	for k, n := range messages {
		to <- prometheus.MustNewConstMetric(g.messages, prometheus.CounterValue, float64(n), k[:]...)
	}
	for k, n := range actions {
		to <- prometheus.MustNewConstMetric(g.actions, prometheus.CounterValue, float64(n), k[:]...)
	}
}
