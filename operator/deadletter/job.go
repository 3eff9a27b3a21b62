package deadletter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// Job does the same with all letters that a filter selects, of those that were there when it began.
type Job struct {
	ID     message.ID `json:"id"`
	Kind   string     `json:"kind"` // retry, or discard
	Filter Filter     `json:"filter"`
	By     string     `json:"by"`
	Note   string     `json:"note,omitempty"`
	// Canary is how many letters go first: the others follow when these were handled, and stay where they are when one
	// was not.
	Canary int `json:"canary"`
	// Rate is how many letters go in a second.
	Rate  float64    `json:"rate"`
	State string     `json:"state"`
	Why   string     `json:"why,omitempty"` // it stopped
	Began time.Time  `json:"began"`
	Ended time.Time  `json:"ended,omitzero"`
	Upto  message.ID `json:"upto"`           // the newest letter when it began
	After message.ID `json:"after,omitzero"` // how far it has come
	// Selected is how many letters it was to be; those that were discarded or taken by another job since are passed over.
	Selected   int64 `json:"selected"`
	Sent       int64 `json:"sent"`
	Waiting    int64 `json:"waiting"` // for their result
	Handled    int64 `json:"handled"`
	NotMatched int64 `json:"not_matched"`
	Died       int64 `json:"died_again"`
	Refused    int64 `json:"refused"`
	Discarded  int64 `json:"discarded"`
	All        bool  `json:"all_sent"`
}

// The kinds and states of jobs.
const (
	Retry   = "retry"
	Discard = "discard"

	Running   = "running"
	Done      = "done"
	Stopped   = "stopped" // its canary was not handled
	Cancelled = "cancelled"
)

// Result is what became of one letter of a job.
type Result struct {
	Letter    message.ID `json:"letter"`
	Message   message.ID `json:"message"`
	Component string     `json:"component"`
	Device    string     `json:"device,omitempty"`
	Result    string     `json:"result"` // waiting, handled, not_matched, dead, refused, discarded
	Detail    string     `json:"detail,omitempty"`
	At        time.Time  `json:"at"`
}

const (
	resultWaiting   = "waiting"
	resultDiscarded = "discarded"

	rateDefault   = 50
	canaryDefault = 5
	rateMax       = 100_000
	lookedAtOnce  = 20_000 // letters that one step of a job passes over
	activeMax     = 20     // jobs at once
)

// begin makes a job of a request.
func (l *Letters) begin(ctx context.Context, j Job) (*Job, error) {
	if j.Rate == 0 {
		j.Rate = rateDefault
	}
	switch err := j.Filter.check(); {
	case err != nil:
		return nil, answer.Bad(fmt.Errorf("filter: %w", err))
	case j.Kind != Retry && j.Kind != Discard:
		return nil, answer.Bad(fmt.Errorf("kind %q: want %s or %s", j.Kind, Retry, Discard))
	case j.Rate <= 0 || j.Rate > rateMax || math.IsNaN(j.Rate):
		return nil, answer.Bad(fmt.Errorf("rate %g: want letters a second, up to %d", j.Rate, rateMax))
	case j.Canary < 0:
		return nil, answer.Bad(fmt.Errorf("canary %d: want how many letters go first, 0 for none", j.Canary))
	case j.By == "":
		return nil, answer.Bad(fmt.Errorf("by: want the name of who does this, for the record"))
	}
	if j.Kind == Discard {
		j.Canary = 0
	}
	now := l.env.Now()
	j = Job{ID: message.NewID(now), Kind: j.Kind, Filter: j.Filter, By: cut(j.By, 200), Note: cut(j.Note, 1000), Canary: j.Canary, Rate: j.Rate, State: Running, Began: now.UTC()}
	active := 0
	var tried *Letter // one that is selected, and in hand already
	err := l.env.View(func(v component.View) error {
		if err := eachJob(v, func(o *Job) { active += int(flag(o.State == Running)) }); err != nil {
			return err
		}
		err := v.Range([]byte{kindSummary}, []byte{kindSummary + 1}, true, func(k, _ []byte) bool { j.Upto = idOf(k); return false })
		if err != nil || j.Upto.IsZero() {
			return err
		}
		_, _, err = walk(v, &j.Filter, message.ID{}, j.Upto, false, math.MaxInt, func(x *Letter) bool {
			if j.Selected += int64(flag(x.State == Dead)); x.State != Dead && tried == nil {
				tried = x
			}
			return true
		})
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case active >= activeMax:
		return nil, answer.Conflict("%d jobs run already; cancel one, or wait: `naru dead jobs`", active)
	case j.Selected == 0 && tried != nil:
		return nil, answer.Conflict("what is selected is being tried again already, such as letter %s by job %s; wait for its result", tried.ID, tried.Job)
	case j.Selected == 0:
		return nil, answer.Missing("no dead letter is selected; `naru dead groups` shows what there is")
	}
	return &j, l.env.Change(ctx, func(tx component.Tx) error {
		if err := write(tx, key(kindJob, j.ID), j); err != nil {
			return err
		}
		tx.After(func() { l.runs(j.ID, true) })
		return l.audit(tx, Entry{By: j.By, What: j.Kind, Job: j.ID, Detail: fmt.Sprintf("%d letters, %s", j.Selected, describe(&j))})
	})
}

func describe(j *Job) string {
	f, _ := json.Marshal(j.Filter) // plain values
	s := fmt.Sprintf("filter %s, %g a second", f, j.Rate)
	if j.Canary > 0 {
		s += fmt.Sprintf(", %d first", j.Canary)
	}
	if j.Note != "" {
		s += ": " + j.Note
	}
	return s
}

// cancel ends a job: what was sent is still told of, and nothing more is sent.
func (l *Letters) cancel(ctx context.Context, id message.ID, by string) (j Job, err error) {
	err = l.env.Change(ctx, func(tx component.Tx) (err error) {
		there := false
		if j, there, err = read[Job](tx, key(kindJob, id)); err != nil {
			return err
		} else if !there {
			return answer.Missing("there is no job %s; `naru dead jobs` lists them", id)
		}
		if j.State != Running {
			return answer.Conflict("job %s has ended: it is %s", id, j.State)
		}
		j.end(Cancelled, "by "+by, tx.Now())
		if err := l.audit(tx, Entry{By: by, What: "cancel", Job: id, Detail: fmt.Sprintf("%d of %d were sent, %d wait for their result", j.Sent, j.Selected, j.Waiting)}); err != nil {
			return err
		}
		return write(tx, key(kindJob, id), j)
	})
	return j, err
}

func (j *Job) end(state, why string, now time.Time) { j.State, j.Why, j.Ended = state, why, now.UTC() }

// halted says what one of the first letters ended a job by, and what that means for the others, where there are any.
func (j *Job) halted(letter message.ID, what string) string {
	among, rest := "", ""
	if first := min(int64(j.Canary), j.Selected); first > 1 {
		among = fmt.Sprintf(", of the %d that went first,", first)
	}
	if j.Selected > j.Sent {
		rest = "; the others stay"
	}
	return fmt.Sprintf("letter %s%s %s%s", letter, among, what, rest)
}

// canary says that the job waits for its first letters.
func (j *Job) canary() bool { return j.Canary > 0 && j.Handled+j.NotMatched < int64(j.Canary) }

// took notes a result of a job.
func (l *Letters) took(tx component.Tx, id message.ID, r Result) error {
	j, there, err := read[Job](tx, key(kindJob, id))
	if err != nil || !there {
		return err
	}
	first := j.canary()
	j.Waiting--
	switch r.Result {
	case operator.RetryHandled:
		j.Handled++
	case operator.RetryNotMatched:
		j.NotMatched++
	case operator.RetryDead:
		j.Died++
	case operator.RetryRefused:
		j.Refused++
	}
	if first && (r.Result == operator.RetryDead || r.Result == operator.RetryRefused) && j.State == Running {
		j.end(Stopped, j.halted(r.Letter, "was not handled: "+cut(r.Detail, 200)), tx.Now())
	}
	j.maybeDone(tx.Now())
	return firstError(write(tx, resultKey(id, r.Letter), r), write(tx, key(kindJob, id), j))
}

func (j *Job) maybeDone(now time.Time) {
	if j.State == Running && j.All && j.Waiting <= 0 {
		j.end(Done, "", now)
	}
}

// pace is what a job may send.
type pace struct {
	at     time.Time
	credit float64
}

// work has each job go on, as far as its rate lets it.
func (l *Letters) work(ctx context.Context) error {
	l.mu.Lock()
	ids := slices.SortedFunc(maps.Keys(l.running), func(a, b message.ID) int { return bytes.Compare(a[:], b[:]) })
	l.mu.Unlock()
	if len(ids) == 0 && len(l.credit) == 0 {
		return nil
	}
	var jobs []Job
	if err := l.env.View(func(v component.View) error {
		for _, id := range ids {
			j, _, err := read[Job](v, key(kindJob, id))
			if err != nil {
				return err
			}
			if j.State == Running {
				jobs = append(jobs, j)
			} else {
				l.runs(id, false)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	now := l.env.Now()
	for id := range l.credit {
		if !slices.ContainsFunc(jobs, func(j Job) bool { return j.ID == id }) {
			delete(l.credit, id)
		}
	}
	for i := range jobs {
		j := &jobs[i]
		p, there := l.credit[j.ID]
		if !there {
			p = pace{now, 1}
		}
		// A job that could not go on for a while does not make up for it.
		p.credit, p.at = min(p.credit+now.Sub(p.at).Seconds()*j.Rate, max(1, j.Rate)), now
		sent, err := l.step(ctx, j, int(p.credit))
		p.credit -= float64(sent)
		l.credit[j.ID] = p
		if err != nil {
			return fmt.Errorf("job %s: %w", j.ID, err)
		}
	}
	return nil
}

// goneEvery is how often it is looked whether jobs wait for somebody who is no more.
const goneEvery = 30 * time.Second

// release takes letters back that were sent to a consumer which was removed since, or before: nobody would ever tell what became of them.
// Jobs are looked at that wait and have not moved since the last time.
func (l *Letters) release(ctx context.Context) error {
	waiting := map[message.ID]Job{}
	var still []message.ID
	if err := l.env.View(func(v component.View) error {
		return eachJob(v, func(j *Job) {
			if j.Waiting <= 0 {
				return
			}
			if was, ok := l.stood[j.ID]; ok && was.Sent == j.Sent && was.Waiting == j.Waiting && was.ended() == j.ended() {
				still = append(still, j.ID)
			}
			waiting[j.ID] = *j
		})
	}); err != nil {
		return err
	}
	l.stood = waiting
	if len(still) == 0 {
		return nil
	}
	gone, err := component.Gone(ctx, l.env.Bus, l.env.Peers)
	if err != nil || len(gone) == 0 {
		return err
	}
	var letters []message.ID
	if err := l.env.View(func(v component.View) error {
		var bad error
		for _, id := range still {
			err := v.Range(key(kindResult, id), append(key(kindResult, id), slices.Repeat([]byte{0xff}, 17)...), false, func(_, raw []byte) bool {
				var r Result
				if bad = json.Unmarshal(raw, &r); bad == nil && r.Result == resultWaiting && gone[r.Component] {
					letters = append(letters, r.Letter)
				}
				return bad == nil
			})
			if err = firstError(err, bad); err != nil {
				return err
			}
		}
		return nil
	}); err != nil || len(letters) == 0 {
		return err
	}
	return l.env.Change(ctx, func(tx component.Tx) error {
		for _, id := range letters {
			if err := l.settle(tx, id, operator.RetryRefused, "its consumer is there no more: it was removed, or moved and no process has taken it; discard the letter, or say its message again"); err != nil {
				return err
			}
		}
		return nil
	})
}

// ended is how many of a job's letters have a result.
func (j *Job) ended() int64 { return j.Handled + j.NotMatched + j.Died + j.Refused }

// step sends a job's next letters, most of them at most.
func (l *Letters) step(ctx context.Context, j *Job, most int) (sent int, err error) {
	most = min(most, l.conf.InFlight-int(j.Waiting))
	if j.canary() {
		most = min(most, j.Canary-int(j.Sent))
	}
	if j.All || most <= 0 {
		return 0, nil
	}
	var next []message.ID
	var reached message.ID
	more := false
	if err := l.env.View(func(v component.View) error {
		reached, more, err = walk(v, &j.Filter, j.After, j.Upto, false, lookedAtOnce, func(x *Letter) bool {
			if len(next) == most {
				return false
			}
			if x.State == Dead {
				next = append(next, x.ID)
			}
			return true
		})
		return err
	}); err != nil {
		return 0, err
	}
	return len(next), l.env.Change(ctx, func(tx component.Tx) error {
		j, there, err := read[Job](tx, key(kindJob, j.ID))
		if err != nil || !there || j.State != Running {
			return err // cancelled meanwhile
		}
		for _, id := range next {
			if err := l.do(tx, &j, id); err != nil {
				return err
			}
		}
		if !reached.IsZero() {
			j.After = reached
		}
		j.All = !more
		j.maybeDone(tx.Now())
		return write(tx, key(kindJob, j.ID), j)
	})
}

// do sends a letter back, or discards it.
func (l *Letters) do(tx component.Tx, j *Job, id message.ID) error {
	x, err := summary(tx, id)
	if err != nil || x == nil || x.State != Dead {
		return err
	}
	r := Result{Letter: id, Message: x.Message, Component: x.Component, Device: x.Device, Result: resultWaiting, At: tx.Now().UTC()}
	j.Sent++
	if j.Kind == Discard {
		j.Discarded++
		r.Result = resultDiscarded
		return firstError(l.remove(tx, x), write(tx, resultKey(j.ID, id), r))
	}
	if err := l.send(tx, j, x); err != nil {
		r.Result, r.Detail = operator.RetryRefused, cut(err.Error(), detailMax)
		j.Refused++
		if j.Canary > 0 && j.Sent <= int64(j.Canary) {
			j.end(Stopped, j.halted(id, "cannot be sent: "+r.Detail), tx.Now())
		}
		return write(tx, resultKey(j.ID, id), r)
	}
	j.Waiting++
	x.State, x.Job = Retrying, j.ID
	tx.Set(key(kindSummary, id), x.encode())
	return write(tx, resultKey(j.ID, id), r)
}

// send says a letter's message to its consumer again.
func (l *Letters) send(tx component.Tx, j *Job, x *Letter) error {
	var d operator.Dead
	raw, err := tx.Get(key(kindLetter, x.ID))
	if err == nil {
		err = json.Unmarshal(raw, &d)
	}
	if err != nil {
		return fmt.Errorf("read the letter: %w", err)
	}
	if d.Log == "" {
		return fmt.Errorf("it was refused at the door of %s and is in no log: have it said again where that is allowed, or discard it", d.Component)
	}
	r := operator.Retry{Letter: x.ID, Job: j.ID, Consumer: d.Component, Log: d.Log, Position: d.Position, Original: d.Original, Bare: d.Bare}
	if x.Edited {
		if r.Original, err = tx.Get(key(kindEdited, x.ID)); err != nil {
			return err
		}
		r.Bare = false
	}
	original, err := r.Message()
	if err != nil {
		return fmt.Errorf("the message in the letter cannot be read: %w", err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	m := &message.Message{Subject: operator.RetrySubject(d.Component), Device: original.Device, ContentType: "application/json", Data: data}
	m.Trace.ID, m.Cause = original.Trace.ID, x.ID
	return tx.Say(m)
}

// eachJob calls f for all jobs, oldest first.
func eachJob(v component.View, f func(*Job)) error {
	var bad error
	err := v.Range([]byte{kindJob}, []byte{kindJob + 1}, false, func(_, raw []byte) bool {
		var j Job
		if bad = json.Unmarshal(raw, &j); bad == nil {
			f(&j)
		}
		return bad == nil
	})
	return firstError(err, bad)
}

// edit puts other data into a letter's message, which its next retry has. The original stays as it was.
func (l *Letters) edit(ctx context.Context, id message.ID, data []byte, by string) error {
	if by == "" {
		return answer.Bad(fmt.Errorf("by: want the name of who does this, for the record"))
	}
	return l.env.Change(ctx, func(tx component.Tx) error {
		x, err := summary(tx, id)
		switch {
		case err != nil:
			return err
		case x == nil:
			return answer.Missing("there is no dead letter %s; it may have been handled, discarded or dropped since: `naru dead audit`", id)
		case x.State != Dead:
			return answer.Conflict("letter %s is being tried again by job %s; wait for its result", id, x.Job)
		}
		var d operator.Dead
		raw, err := tx.Get(key(kindLetter, id))
		if err == nil {
			err = json.Unmarshal(raw, &d)
		}
		if err != nil {
			return fmt.Errorf("read the letter: %w", err)
		}
		m, err := d.Message()
		if err != nil {
			return answer.Bad(fmt.Errorf("the message in letter %s cannot be read, and so not edited: %w", id, err))
		}
		was := len(m.Data)
		m.Data = data
		if err := l.env.Check(m); err != nil {
			return err
		}
		tx.Set(key(kindEdited, id), message.AppendRecord(nil, m))
		x.Edited = true
		tx.Set(key(kindSummary, id), x.encode())
		return l.audit(tx, Entry{By: by, What: "edit", Letter: id, Detail: fmt.Sprintf("%d bytes of data for the %d of the original: %s", len(data), was, cut(strings.ToValidUTF8(string(data), "?"), detailMax))})
	})
}
