package ledger

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// Line is the account of one consumer with one log, over all its partitions and generations.
type Line struct {
	Log      string `json:"log"`
	Consumer string `json:"consumer"`
	// Accepted is what the appenders wrote since the consumer's start.
	Accepted uint64 `json:"accepted"`
	// Handled counts every good end: also not heard, and not matched.
	Handled uint64 `json:"handled"`
	// Waiting is behind the consumer's position, or parked.
	Waiting uint64 `json:"waiting"`
	// Dead counts dead letters and what was in unreadable batches.
	Dead uint64 `json:"dead"`
	// Balanced says that both accounts agree, in count and in the sum of ids, at the consumer's position.
	Balanced bool              `json:"balanced"`
	Fault    string            `json:"fault,omitempty"`
	Outcomes map[string]uint64 `json:"outcomes"`
	Parked   uint64            `json:"parked"`
	Required bool              `json:"required"`
	Node     string            `json:"node"`
	At       time.Time         `json:"at"` // of the consumer's report
	Stale    bool              `json:"stale,omitempty"`
	Child    bool              `json:"child,omitempty"` // a component's child, `<component>/<child>`; else what is behind the slash is a node
}

// staleAfter is when a consumer that reports at least every 20 s is taken to be away.
const staleAfter = 45 * time.Second

// compare holds the accounts against each other.
func (l *Ledger) compare(ctx context.Context) error {
	fresh := l.env.Peers.Reports()
	now := l.env.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.load(); err != nil {
		return err
	}
	for _, r := range fresh {
		l.hear(r)
	}
	l.forgetGone(now)
	lines := map[[2]string]*Line{}
	err := l.env.View(func(v component.View) error {
		accounts, err := readAccounts(v)
		if err != nil {
			return err
		}
		for at, r := range l.reports {
			key := [2]string{at.consumer, at.place.log}
			line := lines[key]
			if line == nil {
				line = &Line{Log: at.place.log, Consumer: at.consumer, Balanced: true, Outcomes: map[string]uint64{}}
				lines[key] = line
			}
			if err := l.add(ctx, v, line, &r, at.place, accounts[at.place]); err != nil {
				return err
			}
		}
		for key, line := range lines {
			line.At = l.heardOf(key[1], key[0])
			line.Stale = now.Sub(line.At) > staleAfter
		}
		return l.unread(v, lines, accounts)
	})
	if err != nil {
		return fmt.Errorf("read the account: %w", err)
	}
	for _, line := range l.lines {
		if lines[[2]string{line.Consumer, line.Log}] == nil { // it was forgotten
			l.balanced.DeleteLabelValues(line.Log, line.Consumer)
			l.imbalance.DeleteLabelValues(line.Log, line.Consumer)
		}
	}
	l.lines = l.lines[:0:0]
	for _, line := range lines {
		l.lines = append(l.lines, *line)
		good := 0.0
		if line.Balanced {
			good = 1
		}
		l.balanced.WithLabelValues(line.Log, line.Consumer).Set(good)
		l.imbalance.WithLabelValues(line.Log, line.Consumer).Set(float64(line.Accepted) - float64(line.Handled+line.Waiting+line.Dead))
	}
	slices.SortFunc(l.lines, func(a, b Line) int { return cmp.Or(cmp.Compare(a.Log, b.Log), cmp.Compare(a.Consumer, b.Consumer)) })
	return nil
}

// heardOf is when a consumer last told of a log: of the partition it has told least of lately, unless it is finished there.
func (l *Ledger) heardOf(log, consumer string) time.Time {
	var oldest, newest time.Time
	for at, r := range l.reports {
		if at.consumer != consumer || at.place.log != log {
			continue
		}
		if r.At.After(newest) {
			newest = r.At
		}
		if !r.Finished && (oldest.IsZero() || r.At.Before(oldest)) {
			oldest = r.At
		}
	}
	if oldest.IsZero() {
		return newest
	}
	return oldest
}

// account is what the ledger knows of a partition.
type account struct {
	reached uint64
	last    map[string]component.Sum // what each row has come to
}

func readAccounts(v component.View) (map[place]*account, error) {
	all := map[place]*account{}
	of := func(p place) *account {
		if all[p] == nil {
			all[p] = &account{last: map[string]component.Sum{}}
		}
		return all[p]
	}
	err := v.Range([]byte{kindReached}, []byte{kindReached + 1}, false, func(k, val []byte) bool {
		if p, ok := parsePlace(k); ok && len(val) == 8 {
			of(p).reached = binary.BigEndian.Uint64(val)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	err = v.Range([]byte{'l'}, []byte{'l' + 1}, false, func(k, val []byte) bool {
		if p, ok := parsePlace(k); ok {
			of(p).last[string(k[placeSize:])] = decodeSum(val)
		}
		return true
	})
	return all, err
}

// add takes one partition into a consumer's line.
func (l *Ledger) add(ctx context.Context, v component.View, line *Line, r *component.Report, p place, a *account) error {
	line.Node, line.Required, line.Child = r.Node, r.Required, r.Child
	finished := r.Waiting
	for outcome, s := range r.Outcomes {
		finished = finished.Plus(s)
		line.Outcomes[outcome] += s.Count
		switch outcome {
		case component.Dead, component.Unreadable:
			line.Dead += s.Count
		default:
			line.Handled += s.Count
		}
	}
	line.Parked += r.Waiting.Count
	line.Waiting += r.Waiting.Count
	line.Accepted += finished.Count // unless what follows knows better
	if r.Fault != "" && line.Fault == "" {
		line.Fault = r.Fault
	}
	if a == nil || a.reached < r.Position.Sequence {
		return nil // the ledger is behind the consumer; the next comparison will tell
	}
	var owed, beyond component.Sum // at the consumer's position; and behind it
	for row, last := range a.last {
		at, seq, err := rowAt(v, p, row, r.Position.Sequence)
		if err != nil {
			return err
		}
		mine, met := r.Rows[row]
		switch {
		case at == nil && !met:
			// All of the row lies beyond the consumer's position. Where it starts the consumer will find out; until
			// then it starts where it started for the ledger.
			first, _, err := rowStart(v, p, row)
			if err != nil {
				return err
			}
			beyond = beyond.Plus(last.Minus(first))
			continue
		case at == nil:
			continue // pruned, or begun before the ledger: nothing to hold it against
		case !met && (seq <= r.Began || l.excuse(ctx, r, p, row, seq)):
			beyond = beyond.Plus(last.Minus(*at)) // nothing was written to the row since the consumer began
			continue
		case !met:
			l.fault(line, "the row of %s has %d messages up to %s, and the consumer knows none", row, at.Count, spot(r))
			continue
		}
		if mine.Upto != *at {
			l.fault(line, "%s wrote %d messages up to %s; the consumer counted %d%s", row, at.Count, spot(r), mine.Upto.Count, sameCount(mine.Upto, *at))
		}
		if err := l.start(ctx, v, r, p, row); err != nil {
			return err
		}
		owed = owed.Plus(mine.Upto.Minus(mine.Start))
		beyond = beyond.Plus(last.Minus(mine.Upto))
	}
	for row, mine := range r.Rows { // rows the ledger does not know any more
		if _, ok := a.last[row]; !ok {
			owed = owed.Plus(mine.Upto.Minus(mine.Start))
		}
	}
	if lost := r.Outcomes[component.Unreadable]; lost.Count > 0 && r.UnreadableBatches == 0 {
		l.fault(line, "%d messages are told to be in batches that cannot be read, and the consumer met no such batch: it left some out", lost.Count)
	}
	if owed != finished {
		l.fault(line, "%d messages were accepted up to %s, and %d have a fate%s", owed.Count, spot(r), finished.Count, sameCount(owed, finished))
	}
	line.Accepted += owed.Count - finished.Count + beyond.Count
	line.Waiting += beyond.Count
	for _, what := range l.faults[p] {
		l.fault(line, "%s", what)
	}
	for _, what := range l.late[consumerAt{r.Consumer, p}] {
		l.fault(line, "%s", what)
	}
	return nil
}

// unread adds to each line what lies in partitions that its consumer has not begun: all of that waits.
func (l *Ledger) unread(v component.View, lines map[[2]string]*Line, accounts map[place]*account) error {
	oldest := map[[2]string]uint32{} // generation that the consumer knows
	for at := range l.reports {
		key := [2]string{at.consumer, at.place.log}
		if g, ok := oldest[key]; !ok || at.place.generation < g {
			oldest[key] = at.place.generation
		}
	}
	for key, line := range lines {
		for p, a := range accounts {
			if _, begun := l.reports[consumerAt{line.Consumer, p}]; begun || p.log != line.Log || p.generation < oldest[key] {
				continue
			}
			for row, last := range a.last {
				first, _, err := rowStart(v, p, row)
				if err != nil {
					return err
				}
				n := last.Minus(first).Count
				line.Waiting += n
				line.Accepted += n
			}
		}
	}
	return nil
}

func (l *Ledger) fault(line *Line, format string, args ...any) {
	line.Balanced = false
	what := fmt.Sprintf(format, args...)
	if line.Fault == "" {
		line.Fault = what
	} else if len(line.Fault) < 1000 {
		line.Fault += "; " + what
	}
}

// rowAt is what a row had come to at a sequence, and the batch there that made it so; nil where nothing is known.
func rowAt(v component.View, p place, row string, upTo uint64) (found *component.Sum, seq uint64, err error) {
	err = v.Range(rowPrefix(p, row), rowKey(p, row, upTo+1), true, func(k, val []byte) bool {
		s := decodeSum(val)
		found = &s
		_, seq, _ = parseRowKey(k)
		return false
	})
	return found, seq, err
}

// rowStart is what a row had come to before the first batch that the ledger met, and that batch.
func rowStart(v component.View, p place, row string) (s component.Sum, seq uint64, err error) {
	val, err := v.Get(startKey(p, row))
	if len(val) >= 16 {
		s = decodeSum(val[:16])
	}
	if len(val) == 24 {
		seq = binary.BigEndian.Uint64(val[16:])
	}
	return s, seq, err
}

func startKey(p place, row string) []byte { return append(placePrefix('s', p), row...) }

func sameCount(a, b component.Sum) string {
	if a.Count == b.Count && a.IDs != b.IDs {
		return " (as many, but not the same ones)"
	}
	return ""
}

func spot(r *component.Report) string { return placeOf(r).at(r.Position.Sequence) }

func (p place) at(seq uint64) string {
	return fmt.Sprintf("%s/%d/%d/%d", p.log, p.generation, p.partition, seq)
}

func placeOf(r *component.Report) place {
	return place{r.Log, r.Position.Generation, r.Position.Partition}
}

func (l *Ledger) say(ctx context.Context, a operator.Alarm) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return l.env.Say(ctx, &message.Message{Subject: operator.AlarmSubject(a.Name), ContentType: "application/json", Data: data})
}

func (l *Ledger) routes() []component.Route {
	return []component.Route{{Pattern: "GET /api/v1/ledger", Handler: answer.Func(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		if err := l.compare(r.Context()); err != nil {
			return nil, err
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.lines == nil {
			return []Line{}, nil
		}
		return slices.Clone(l.lines), nil
	})}, {Pattern: "DELETE /api/v1/ledger/{consumer...}", Handler: answer.Func(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return l.forget(r.Context(), r.PathValue("consumer"))
	})}}
}
