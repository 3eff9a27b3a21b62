package deadletter

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

const (
	houseEvery = time.Minute
	dropAtOnce = 1000 // letters that one change removes
	auditMax   = 100_000
)

// Entry is something that somebody did, or that went by itself.
type Entry struct {
	At     time.Time  `json:"at"`
	By     string     `json:"by"`
	What   string     `json:"what"` // retry, discard, cancel, edit, drop
	Job    message.ID `json:"job,omitzero"`
	Letter message.ID `json:"letter,omitzero"`
	Detail string     `json:"detail"`
}

func (l *Letters) audit(tx component.Tx, e Entry) error {
	e.At = tx.Now().UTC()
	return write(tx, key(kindAudit, message.NewID(e.At)), e)
}

// keepHouse raises alarms before anything goes, and drops what is beyond the limits.
func (l *Letters) keepHouse(ctx context.Context) error {
	var t totals
	var oldest message.ID
	err := l.env.View(func(v component.View) (err error) {
		if t, _, err = read[totals](v, []byte{kindTotals}); err != nil {
			return err
		}
		return v.Range([]byte{kindSummary}, []byte{kindSummary + 1}, false, func(k, _ []byte) bool { oldest = idOf(k); return false })
	})
	if err != nil {
		return err
	}
	l.letters.Set(float64(t.Letters))
	l.bytes.Set(float64(t.Bytes))
	now := l.env.Now()
	limit := l.conf.MaxBytes
	if err := l.alarm(ctx, "dead_letters_full", t.Bytes >= limit/5*4,
		fmt.Sprintf("%d dead letters take %d bytes of the %d that they may (max_bytes); beyond, the oldest go", t.Letters, t.Bytes, limit)); err != nil {
		return err
	}
	age := time.Duration(0)
	if !oldest.IsZero() {
		age = now.Sub(oldest.Time())
	}
	if err := l.alarm(ctx, "dead_letters_old", age >= l.age/5*4,
		fmt.Sprintf("the oldest dead letter is %s old, and at %s (max_age) it goes", age.Round(time.Minute), l.age)); err != nil {
		return err
	}
	for ctx.Err() == nil {
		n, err := l.drop(ctx, now)
		if err != nil {
			return err
		}
		if n < dropAtOnce {
			break
		}
	}
	return l.forgetJobs(ctx)
}

// drop removes the oldest letters that are too old, or too many bytes.
func (l *Letters) drop(ctx context.Context, now time.Time) (n int, err error) {
	var gone []message.ID
	err = l.env.View(func(v component.View) error {
		t, _, err := read[totals](v, []byte{kindTotals})
		if err != nil {
			return err
		}
		_, _, err = walk(v, &Filter{}, message.ID{}, message.ID{}, false, dropAtOnce, func(x *Letter) bool {
			if now.Sub(x.ID.Time()) < l.age && t.Bytes <= l.conf.MaxBytes {
				return false
			}
			t.Bytes -= int64(x.Bytes)
			gone = append(gone, x.ID)
			return true
		})
		return err
	})
	if err != nil || len(gone) == 0 {
		return 0, err
	}
	return len(gone), l.env.Change(ctx, func(tx component.Tx) error {
		for _, id := range gone {
			x, err := summary(tx, id)
			if err == nil && x != nil {
				err = l.remove(tx, x)
				if err == nil && x.State == Retrying {
					err = l.took(tx, x.Job, Result{Letter: id, Message: x.Message, Component: x.Component, Device: x.Device, Result: operator.RetryRefused, Detail: "dropped before its result came", At: tx.Now()})
				}
			}
			if err != nil {
				return err
			}
		}
		tx.After(func() { l.dropped.Add(float64(len(gone))) })
		return l.audit(tx, Entry{By: Name, What: "drop", Detail: fmt.Sprintf("%d letters, %s to %s, beyond max_age or max_bytes", len(gone), gone[0], gone[len(gone)-1])})
	})
}

// forgetJobs forgets jobs that ended long ago with their results, and the oldest entries of the audit.
func (l *Letters) forgetJobs(ctx context.Context) error {
	var ended []message.ID
	entries := 0
	var stale [][]byte
	if err := l.env.View(func(v component.View) error {
		err := eachJob(v, func(j *Job) {
			if j.State != Running && j.Waiting <= 0 {
				ended = append(ended, j.ID)
			}
		})
		if err != nil {
			return err
		}
		return v.Range([]byte{kindAudit}, []byte{kindAudit + 1}, true, func(k, _ []byte) bool {
			if entries++; entries > auditMax {
				stale = append(stale, slices.Clone(k))
			}
			return len(stale) < dropAtOnce
		})
	}); err != nil {
		return err
	}
	for _, id := range ended[:max(0, len(ended)-l.conf.JobsKept)] {
		for more := true; more; {
			var keys [][]byte
			if err := l.env.View(func(v component.View) error {
				p := key(kindResult, id)
				return v.Range(p, append(slices.Clone(p), slices.Repeat([]byte{0xff}, 17)...), false, func(k, _ []byte) bool {
					keys = append(keys, slices.Clone(k))
					return len(keys) < dropAtOnce
				})
			}); err != nil {
				return err
			}
			if more = len(keys) == dropAtOnce; !more {
				keys = append(keys, key(kindJob, id))
			}
			if err := l.env.Change(ctx, func(tx component.Tx) error {
				for _, k := range keys {
					tx.Delete(k)
				}
				return nil
			}); err != nil {
				return err
			}
		}
	}
	if len(stale) == 0 {
		return nil
	}
	return l.env.Change(ctx, func(tx component.Tx) error {
		for _, k := range stale {
			tx.Delete(k)
		}
		return nil
	})
}

// alarm raises or clears one, when that changes.
func (l *Letters) alarm(ctx context.Context, name string, on bool, detail string) error {
	if l.alarming[name] == on {
		return nil
	}
	data, err := json.Marshal(operator.Alarm{Name: name, Since: l.env.Now().UTC(), Detail: detail, Look: "naru dead groups", Cleared: !on})
	if err != nil {
		return err
	}
	if err := l.env.Say(ctx, &message.Message{Subject: operator.AlarmSubject(name), ContentType: "application/json", Data: data}); err != nil {
		return err
	}
	l.alarming[name] = on
	return nil
}
