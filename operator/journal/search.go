package journal

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// Found is a message in its place.
type Found struct {
	Log      string
	Position bus.Position
	Message  *message.Message // shares no memory with the log
}

// Query says what to look for; what is left zero selects everything.
type Query struct {
	ID     message.ID
	Trace  message.TraceID
	Device string
	// Subjects selects by any of the patterns.
	Subjects []message.Pattern
	Since    time.Time
	Until    time.Time
	Limit    int
	// OldestFirst turns the order around.
	OldestFirst bool
	// Match is asked last; nil takes all.
	Match func(*Found) bool
}

// Result is what was found, and how far the search went.
type Result struct {
	Found   []Found
	Read    int       // batches read
	Passed  int       // batches that a filter ruled out
	Stopped time.Time // where the search gave up, by Limit or ScanMax; zero when it saw everything

	seen map[message.ID]message.ID // of a trace: what was selected, and its cause
}

// errStop ends a walk at its limit, errFound one that looked for a single message.
var (
	errStop  = errors.New("enough")
	errFound = errors.New("found")
)

// Find looks for messages, the newest first unless asked otherwise. What it returns is complete unless Stopped is set.
func (j *Journal) Find(ctx context.Context, q Query) (Result, error) {
	if q.Limit <= 0 {
		q.Limit = 100
	}
	now := j.env.Now()
	hash, hashed := q.hash()
	if !q.ID.IsZero() { // an id says when it was minted, and so which batches can hold it
		q.Since, q.Until = q.ID.Time().Truncate(time.Millisecond), q.ID.Time().Add(time.Millisecond)
		q.OldestFirst = true // it is in one of the first minutes from there
	}
	hinted := false
	if at, ok := q.Trace.Hint(now.Add(time.Minute)); ok && !q.Trace.IsZero() && q.Since.IsZero() {
		q.Since, hinted = at, true
	}
	r := Result{seen: map[message.ID]message.ID{}}
	err := j.walk(ctx, q, hash, hashed, &r)
	if err == nil && hinted && r.Stopped.IsZero() && !whole(r.seen) {
		// A foreign id whose bits only look like a time, or one from a clock that is ahead of ours.
		q.Since, r.Found = time.Time{}, nil
		err = j.walk(ctx, q, hash, hashed, &r)
	}
	slices.SortStableFunc(r.Found, func(a, b Found) int {
		if q.OldestFirst {
			return a.Message.Recorded().Compare(b.Message.Recorded())
		}
		return b.Message.Recorded().Compare(a.Message.Recorded())
	})
	return r, err
}

// whole says whether the causes of all messages are among them.
func whole(seen map[message.ID]message.ID) bool {
	for _, cause := range seen {
		if _, there := seen[cause]; !cause.IsZero() && !there {
			return false
		}
	}
	return len(seen) > 0
}

// hash is the key to ask filters for, the rarest that the query names.
func (q *Query) hash() (uint64, bool) {
	switch {
	case !q.ID.IsZero():
		return q.ID.Hash(), true
	case !q.Trace.IsZero():
		return q.Trace.Hash(), true
	case q.Device != "":
		return deviceHash(q.Device), true
	}
	return 0, false
}

// walk goes through the minutes in order, then through their batches.
func (j *Journal) walk(ctx context.Context, q Query, hash uint64, hashed bool, r *Result) error {
	var from, to uint32 = 0, ^uint32(0)
	if !q.Since.IsZero() {
		from = minuteOf(q.Since)
	}
	for from < to {
		at, batches, err := j.nextMinute(q, from, to, hash, hashed, r)
		if err != nil || at == 0 {
			return err
		}
		for _, e := range batches {
			if err := ctx.Err(); err != nil {
				return err
			}
			if r.Read >= j.conf.ScanMax {
				r.Stopped = e.max
				return nil
			}
			if err := j.read(ctx, q, e, r); err != nil {
				switch {
				case errors.Is(err, errFound):
					return nil
				case errors.Is(err, errStop):
					r.Stopped = e.max
					return nil
				}
				return err
			}
		}
		if q.OldestFirst {
			from = at + 1
		} else {
			to = at
		}
	}
	return nil
}

// nextMinute gives the next minute between from and to that has batches worth reading, and those, in order. It skips
// hours and minutes whose filter rules the key out. at is 0 at the end.
func (j *Journal) nextMinute(q Query, from, to uint32, hash uint64, hashed bool, r *Result) (at uint32, list []entry, err error) {
	err = j.env.View(func(v component.View) error {
		for from < to {
			at = to - 1
			if q.OldestFirst {
				at = from
			}
			if hashed { // what is ruled out here needs no look for its minutes
				l := j.levels[len(j.levels)-1]
				if worth, err := j.mayHold(v, l, at/l.unit, hash); err != nil {
					return err
				} else if !worth && q.OldestFirst {
					from = (at/l.unit + 1) * l.unit
					continue
				} else if !worth {
					to = at / l.unit * l.unit
					continue
				}
			}
			at = 0
			if err := v.Range(minutePrefix(from), minutePrefix(to), !q.OldestFirst, func(k, _ []byte) bool {
				at = minuteOfKey(k)
				return false
			}); err != nil || at == 0 {
				return err
			}
			worth := true
			for i := len(j.levels) - 1; hashed && worth && i >= 0; i-- { // the coarsest first
				l := j.levels[i]
				if worth, err = j.mayHold(v, l, at/l.unit, hash); err != nil {
					return err
				}
				if !worth && q.OldestFirst {
					at = (at/l.unit+1)*l.unit - 1 // the span's last minute
				} else if !worth {
					at = at / l.unit * l.unit // its first
				}
			}
			if worth {
				var bad error
				err := v.Range(minutePrefix(at), minutePrefix(at+1), !q.OldestFirst, func(k, val []byte) bool {
					e, _, err := parseEntry(k, val)
					switch {
					case err != nil:
						bad = err
						return false
					case !q.Since.IsZero() && e.max.Before(q.Since.Truncate(time.Millisecond)), !q.Until.IsZero() && e.min.After(q.Until):
					case hashed && !e.filter.Has(hash):
						r.Passed++
					default:
						e.filter = nil // belongs to the view
						list = append(list, e)
					}
					return true
				})
				if err = errors.Join(err, bad); err != nil {
					return err
				}
				if len(list) > 0 {
					sortByTime(list, q.OldestFirst)
					return nil
				}
			}
			if q.OldestFirst {
				from = at + 1
			} else {
				to = at
			}
		}
		at = 0
		return nil
	})
	return at, list, err
}

// read fetches a batch and takes what the query selects. A batch that was trimmed meanwhile has nothing.
func (j *Journal) read(ctx context.Context, q Query, e entry, r *Result) error {
	log, err := j.log(ctx, e.log)
	if err != nil {
		return err
	}
	e.position.Log = log.ID()
	s, err := log.Fetch(ctx, e.position)
	if errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrPurged) {
		return nil
	}
	if err != nil {
		return err
	}
	r.Read++
	if s.Err != nil {
		return nil
	}
	var m message.Message
	var hits []Found
	cursor := s.Batch.Cursor()
	for cursor.Next(&m) {
		if !q.selects(&m) {
			continue
		}
		if !q.Trace.IsZero() {
			r.seen[m.ID] = m.Cause
		}
		p := s.Position
		p.Index = uint32(cursor.Index() - 1)
		f := Found{Log: e.log, Position: p, Message: m.Clone()}
		if q.Match == nil || q.Match(&f) {
			hits = append(hits, f)
		}
	}
	for i := range hits {
		if len(r.Found) >= q.Limit {
			return errStop
		}
		if q.OldestFirst {
			r.Found = append(r.Found, hits[i])
		} else {
			r.Found = append(r.Found, hits[len(hits)-1-i])
		}
	}
	if !q.ID.IsZero() && len(r.Found) > 0 {
		return errFound // an id is there once
	}
	return cursor.Err()
}

func (q *Query) selects(m *message.Message) bool {
	switch {
	case !q.ID.IsZero():
		return m.ID == q.ID
	case !q.Trace.IsZero() && m.Trace.ID != q.Trace,
		q.Device != "" && m.Device != q.Device,
		len(q.Subjects) > 0 && !slices.ContainsFunc(q.Subjects, func(p message.Pattern) bool { return p.Matches(m.Subject) }),
		!q.Since.IsZero() && m.Recorded().Before(q.Since),
		!q.Until.IsZero() && m.Recorded().After(q.Until):
		return false
	}
	return true
}

// sortByTime puts the batches of a minute in order, whatever log they are in.
func sortByTime(list []entry, oldestFirst bool) {
	slices.SortStableFunc(list, func(a, b entry) int {
		if oldestFirst {
			return a.min.Compare(b.min)
		}
		return b.max.Compare(a.max)
	})
}

func minuteOfKey(k []byte) uint32 {
	if len(k) < 5 {
		return 0
	}
	return uint32(k[1])<<24 | uint32(k[2])<<16 | uint32(k[3])<<8 | uint32(k[4])
}
