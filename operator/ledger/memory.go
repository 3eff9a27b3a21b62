package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
)

// memory is what the ledger must not forget with its process: a consumer that is away is owed its messages however often
// the ledger starts, and a fault that was found does not go because nobody looks. It is guarded by the ledger's mutex.
//
// In the store it has three kinds of keys: `r log gen part consumer` with the newest report, `f log gen part row` with
// the fault of a row, and `w log gen part consumer 0 row` with the fault of a consumer that begins a row too late.
type memory struct {
	reports map[consumerAt]component.Report // the newest of each, also of consumers that went away
	faults  map[place]map[string]string     // rows whose headers contradict each other
	late    map[consumerAt]map[string]string
	saved   map[consumerAt]component.Report // what the store has of reports
	gone    map[consumerAt]time.Time        // forgotten, with what was reported until then
	told    map[consumerAt]map[string]bool  // which of late it has
}

const (
	kindReport = 'r'
	kindFault  = 'f'
	kindLate   = 'w'
	// saveEvery is how old the time in a stored report may be; what it counts is stored with the next comparison.
	saveEvery = time.Minute
)

func newMemory() memory {
	return memory{reports: map[consumerAt]component.Report{}, faults: map[place]map[string]string{}, late: map[consumerAt]map[string]string{},
		saved: map[consumerAt]component.Report{}, gone: map[consumerAt]time.Time{}, told: map[consumerAt]map[string]bool{}}
}

// hear takes a report, unless a newer one is known.
func (m *memory) hear(r component.Report) {
	at := consumerAt{r.Consumer, placeOf(&r)}
	if old, ok := m.reports[at]; ok && r.Older(old) {
		return
	}
	if until, ok := m.gone[at]; ok {
		if !r.At.After(until) {
			return
		}
		delete(m.gone, at) // it is there again
	}
	m.reports[at] = r
}

func (m *memory) blame(p place, row, what string) {
	if m.faults[p] == nil {
		m.faults[p] = map[string]string{}
	}
	m.faults[p][row] = what
}

func (m *memory) blameStart(at consumerAt, row, what string) {
	if m.late[at] == nil {
		m.late[at] = map[string]string{}
	}
	m.late[at][row] = what
}

// drop forgets a consumer in a partition.
func (m *memory) drop(at consumerAt) {
	m.gone[at] = m.reports[at].At
	delete(m.reports, at)
	delete(m.late, at)
}

// forgetGone drops the consumers of nodes that went for good, and children that their component has forgotten.
func (l *Ledger) forgetGone(now time.Time) {
	forgotten := l.env.Peers.Forgotten()
	for at, r := range l.reports {
		if until, ok := forgotten[at.consumer]; r.Gone(now) || ok && !r.At.After(until) {
			l.drop(at)
		}
	}
}

// load reads the memory, once. The mutex is held.
func (l *Ledger) load() error {
	if l.loaded {
		return nil
	}
	err := l.env.View(func(v component.View) error {
		var bad error
		each := func(kind byte, f func(p place, rest string, val []byte) error) {
			err := v.Range([]byte{kind}, []byte{kind + 1}, false, func(k, val []byte) bool {
				p, ok := parsePlace(k)
				if !ok {
					return true
				}
				bad = errors.Join(bad, f(p, string(k[placeSize:]), val))
				return true
			})
			bad = errors.Join(bad, err)
		}
		each(kindReport, func(p place, consumer string, val []byte) error {
			var r component.Report
			if err := json.Unmarshal(val, &r); err != nil {
				return fmt.Errorf("the last report of %s: %w", consumer, err)
			}
			l.saved[consumerAt{consumer, p}] = r
			l.hear(r)
			return nil
		})
		each(kindFault, func(p place, row string, val []byte) error {
			l.blame(p, row, string(val))
			return nil
		})
		each(kindLate, func(p place, rest string, val []byte) error {
			consumer, row, _ := strings.Cut(rest, "\x00")
			at := consumerAt{consumer, p}
			l.blameStart(at, row, string(val))
			l.tell(at, row)
			return nil
		})
		return bad
	})
	if err != nil {
		return fmt.Errorf("read what is remembered: %w", err)
	}
	l.loaded = true
	return nil
}

func (m *memory) tell(at consumerAt, row string) {
	if m.told[at] == nil {
		m.told[at] = map[string]bool{}
	}
	m.told[at][row] = true
}

// save writes what has changed since it was written, in one commit; nothing where nothing has.
func (l *Ledger) save(ctx context.Context) error {
	l.mu.Lock()
	reports := map[consumerAt]component.Report{}
	for at, r := range l.reports {
		if old, ok := l.saved[at]; !ok || !same(&old, &r) || r.At.Sub(old.At) >= saveEvery {
			r.Exceptions = nil // they are for those who look now
			reports[at] = r
		}
	}
	var gone []consumerAt
	for at := range l.gone {
		if _, there := l.saved[at]; there {
			gone = append(gone, at)
		}
	}
	type start struct {
		at  consumerAt
		row string
	}
	late := map[start]string{}
	for at, rows := range l.late {
		for row, what := range rows {
			if !l.told[at][row] {
				late[start{at, row}] = what
			}
		}
	}
	l.mu.Unlock()
	if len(reports)+len(gone)+len(late) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := l.env.Change(ctx, func(tx component.Tx) error {
		for _, at := range gone {
			tx.Delete(reportKey(at))
			err := tx.Scan(lateKey(at, ""), func(k, _ []byte) bool { tx.Delete(k); return true })
			if err != nil {
				return err
			}
		}
		for at, r := range reports {
			v, err := json.Marshal(r)
			if err != nil {
				return err
			}
			tx.Set(reportKey(at), v)
		}
		for s, what := range late {
			tx.Set(lateKey(s.at, s.row), []byte(what))
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range gone {
		delete(l.saved, at)
		delete(l.told, at)
	}
	for at, r := range reports {
		l.saved[at] = r
	}
	for s := range late {
		l.tell(s.at, s.row)
	}
	return nil
}

// same says whether two reports say the same of messages.
func same(a, b *component.Report) bool {
	return a.Position == b.Position && a.Waiting == b.Waiting && a.Finished == b.Finished && a.Fault == b.Fault && a.UnreadableBatches == b.UnreadableBatches
}

// Forgotten is what a consumer was still owed when it was forgotten.
type Forgotten struct {
	Consumer string `json:"consumer"`
	Waiting  uint64 `json:"waiting"`
}

// forget drops a consumer that went for good, with what was owed to it and what the logs keep for it. One that is there
// cannot be forgotten.
func (l *Ledger) forget(ctx context.Context, consumer string) (*Forgotten, error) {
	if err := l.compare(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	f, known := &Forgotten{Consumer: consumer}, false
	for _, line := range l.lines {
		if line.Consumer != consumer {
			continue
		}
		known = true
		if !line.Stale {
			l.mu.Unlock()
			return nil, answer.Conflict("%s was heard of at %s: stop it first, for good; it is forgotten when it has been silent for %s",
				consumer, line.At.Format(time.RFC3339), staleAfter)
		}
		f.Waiting += line.Waiting
	}
	l.mu.Unlock()
	if !known { // the logs may keep messages for it all the same: of a node that is gone only that is left
		marks, err := component.Marks(ctx, l.env.Bus, consumer)
		if err != nil {
			return nil, err
		}
		if len(marks) == 0 {
			return nil, answer.Missing("the ledger knows no consumer %s, and the logs keep nothing for it", consumer)
		}
	}
	if err := l.env.Peers.Forget(ctx, l.env.Bus, consumer, l.env.Now()); err != nil {
		return nil, fmt.Errorf("release what is kept for %s: %w", consumer, err)
	}
	l.mu.Lock()
	for at := range l.reports {
		if at.consumer == consumer {
			l.drop(at)
		}
	}
	l.mu.Unlock()
	l.env.Log.Warn("a consumer is forgotten", "consumer", consumer, "waiting", f.Waiting)
	return f, l.save(ctx)
}

func reportKey(at consumerAt) []byte {
	return append(placePrefix(kindReport, at.place), at.consumer...)
}

func faultKey(p place, row string) []byte { return append(placePrefix(kindFault, p), row...) }

func lateKey(at consumerAt, row string) []byte {
	return append(append(append(placePrefix(kindLate, at.place), at.consumer...), 0), row...)
}
