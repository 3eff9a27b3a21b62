package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
)

// start holds the place where a consumer began a row against the ledger's own: one that begins later has left out a
// batch, unless that was trimmed before it could be read, or lies before the place where the consumer itself began.
func (l *Ledger) start(ctx context.Context, v component.View, r *component.Report, p place, row string) error {
	mine := r.Rows[row].Start
	want, seq, err := rowStart(v, p, row)
	if err != nil || seq == 0 || mine == want || mine.Count < want.Count || r.UnreadableBatches > 0 {
		return err // it knows the row for longer; or what it left out it has told of
	}
	if seq <= r.Began {
		before, _, err := rowAt(v, p, row, r.Began)
		if err != nil || before == nil || mine == *before {
			return err
		}
		want = *before
	} else if l.excuse(ctx, r, p, row, seq) {
		return nil
	}
	l.blameStart(consumerAt{r.Consumer, p}, row, fmt.Sprintf("the row of %s begins with %d messages before it, and for the consumer with %d%s: its first batch was left out",
		row, want.Count, mine.Count, sameCount(mine, want)))
	return nil
}

// excuse says whether a consumer need not have met a batch of a row, since it was trimmed: then the consumer came later.
// While the bus does not answer it is given the benefit; the next comparison asks again.
func (l *Ledger) excuse(ctx context.Context, r *component.Report, p place, row string, seq uint64) bool {
	at := consumerAt{r.Consumer, p}
	if l.excused[at][row] {
		return true
	}
	first, err := l.first(ctx, p)
	if err != nil {
		l.env.Log.Debug("ask where a log begins", "log", p.log, "error", err)
		return true
	}
	if seq >= first {
		return false
	}
	if l.excused[at] == nil {
		l.excused[at] = map[string]bool{}
	}
	l.excused[at][row] = true
	return true
}

// first is the first batch that a reader of a partition gets.
func (l *Ledger) first(ctx context.Context, p place) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	log, err := l.env.Bus.Log(ctx, p.log, bus.LogOptions{})
	if err != nil {
		return 0, err
	}
	info, err := log.Info(ctx)
	if err != nil {
		return 0, err
	}
	for _, g := range info.Generations {
		if g.Number == p.generation && int(p.partition) < len(g.Partitions) {
			return g.Partitions[p.partition].First, nil
		}
	}
	return 0, errors.New("the partition is gone")
}
