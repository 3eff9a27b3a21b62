package rule

import (
	"sync"
	"time"

	"github.com/naru-platform/naru/message"
)

const (
	// roundsKnown is how many messages one may follow from that goes where a circle is known to be closed. Each message that
	// enters a circle makes as many more, which others wait for: sixteen times the work until each is found out by its depth.
	roundsKnown = 4
	// knownFor is how long a circle is known after a message died in it.
	knownFor = time.Minute
	// knownMax is how many circles are known; the rules of a circle are named by it once.
	knownMax = 1000
)

// circles are the places where messages went round until they died: a rule that took again what another, or itself, had said.
type circles struct {
	mu    sync.Mutex
	since map[[2]string]time.Time // who said it, and who took it
}

// note remembers where a message died as a loop.
func (c *circles) note(m *message.Message, taker string, now time.Time) {
	said, _, ok := RuleOf(m.Source)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.since) >= knownMax {
		c.since = nil
	}
	if c.since == nil {
		c.since = map[[2]string]time.Time{}
	}
	c.since[[2]string{said, taker}] = now
}

// goesRound ends a message where a circle is known that it goes round in.
func (e *Engine) goesRound(m *message.Message, r *Rule) error {
	if m.Depth < roundsKnown {
		return nil
	}
	said, _, ok := RuleOf(m.Source)
	if !ok {
		return nil
	}
	place := [2]string{said, r.Name}
	e.closed.mu.Lock()
	defer e.closed.mu.Unlock()
	at, known := e.closed.since[place]
	if !known {
		return nil
	}
	if e.env.Now().Sub(at) > knownFor {
		delete(e.closed.since, place)
		return nil
	}
	return message.Rejectf(message.Loop, "it follows from %d messages, and rule %s takes what rule %s says, where others went round within the last minute until they died; `naru trace` shows where the circle closes", m.Depth, r.Label(), said)
}
