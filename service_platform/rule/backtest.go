package rule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/past"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/internal/when"
	"github.com/naru-platform/naru/message"
)

// Backtest is what a version of a rule would have made of messages that are in the logs, beside the version that runs.
// Nothing is said. What would have followed from what it says is not known, so rules that hear other rules' messages are
// tried on those that were said in fact; and a twin that it asks for is the twin as it is now.
type Backtest struct {
	Rule    string    `json:"rule"`
	Version int       `json:"version"` // 0 where it was given with the question
	Against int       `json:"against"` // the version that runs; 0 where none does
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	Upto    time.Time `json:"upto"` // how far it came
	// Read is how many messages were looked at, Heard how many of them one of the two hears.
	Read  uint64 `json:"read"`
	Heard uint64 `json:"heard"`
	// Matched is how many the version takes, MatchedBefore the one that runs; Failed and FailedBefore those of which
	// something could not be done.
	Matched       uint64            `json:"matched"`
	MatchedBefore uint64            `json:"matched_before"`
	Failed        uint64            `json:"failed"`
	FailedBefore  uint64            `json:"failed_before"`
	Same          uint64            `json:"same"` // heard, and nothing differs
	Differences   map[string]uint64 `json:"differences"`
	Examples      []Difference      `json:"examples"` // some of each difference; where there is nothing to compare with, of what matches
	Unreadable    uint64            `json:"unreadable_batches,omitempty"`
	// Stopped says why it ended before the end.
	Stopped string        `json:"stopped,omitempty"`
	Took    time.Duration `json:"took_ns"`
}

const (
	examplesMax = 5         // of each difference
	backtestMax = 1_000_000 // messages, where nothing else is asked for
	backtestFor = 5 * time.Minute
	backtestDay = 24 * time.Hour
	progressGap = time.Second
)

// backtest is one that runs.
type backtest struct {
	e        *Engine
	old, now *Rule // old may be nil
	with     trying
	limit    uint64
	deadline time.Time
	pace     pace
	tell     func(*Backtest) error // of its progress; an error ends it
	told     time.Time
	of       Backtest
}

// add tries both versions on a message.
func (b *backtest) add(m *message.Message) {
	b.of.Read++
	before, after := b.old.verdict(m, b.with), b.now.verdict(m, b.with)
	if !before.Heard && !after.Heard {
		return
	}
	b.of.Heard++
	b.of.Matched += count(after.Matched)
	b.of.MatchedBefore += count(before.Matched)
	b.of.Failed += count(after.fails())
	b.of.FailedBefore += count(before.fails())
	what := difference(before, after)
	if what == "" {
		b.of.Same++
		return
	}
	if b.of.Differences[what]++; b.of.Differences[what] <= examplesMax {
		b.of.Examples = append(b.of.Examples, showDifference(what, m, b.old, b.now, before, after, b.with.look))
	}
}

func count(yes bool) uint64 {
	if yes {
		return 1
	}
	return 0
}

// batch tries the messages of a batch, and says whether to go on.
func (b *backtest) batch(ctx context.Context, s *bus.Stored) (bool, error) {
	began := time.Now()
	if s.Err != nil {
		b.of.Unreadable++
		return true, nil
	}
	read := b.of.Read
	var m message.Message
	cursor := s.Batch.Cursor()
	for cursor.Next(&m) {
		at := m.Recorded()
		if at.Before(b.of.Since) || at.After(b.of.Until) {
			continue
		}
		if b.of.Read >= b.limit {
			b.of.Stopped = fmt.Sprintf("it has read %d messages, the limit", b.limit)
			return false, nil
		}
		b.add(&m)
		if at.After(b.of.Upto) {
			b.of.Upto = at.UTC()
		}
	}
	if err := cursor.Err(); err != nil {
		b.of.Unreadable++
	}
	if now := time.Now(); now.Sub(b.told) >= progressGap {
		b.told = now
		if err := b.tell(&b.of); err != nil {
			return false, err
		}
	}
	if time.Now().After(b.deadline) {
		b.of.Stopped = "its time is over"
		return false, nil
	}
	return true, b.pace.wait(ctx, time.Since(began), int(b.of.Read-read))
}

// run reads the logs that one of the versions can hear, each from the beginning of the time asked for.
func (b *backtest) run(ctx context.Context) error {
	for _, name := range b.logs() {
		l, err := b.e.env.Bus.Log(ctx, name, bus.LogOptions{})
		if err != nil {
			return err
		}
		info, err := l.Info(ctx)
		if err != nil {
			return err
		}
		for _, g := range info.Generations {
			for _, p := range g.Partitions {
				from, err := past.Seek(ctx, l, g.Number, p, b.of.Since)
				if err != nil {
					return err
				}
				var bad error
				err = past.Scan(ctx, l, g.Number, p, from, func(s *bus.Stored) bool {
					if s.Batch.Count > 0 && s.Batch.First.After(b.of.Until.Add(past.Late)) {
						return false
					}
					var more bool
					more, bad = b.batch(ctx, s)
					return more && bad == nil
				})
				if err = errors.Join(err, bad); err != nil || b.of.Stopped != "" {
					return err
				}
			}
		}
	}
	return nil
}

// logs are those whose messages one of the versions can hear.
func (b *backtest) logs() (list []string) {
	for _, ns := range message.Namespaces() {
		if b.now.reads(ns) || b.old.reads(ns) {
			list = append(list, ns)
		}
	}
	return list
}

// reads says whether messages of a log can be heard by the rule.
func (r *Rule) reads(log string) bool {
	if r == nil {
		return false
	}
	if len(r.from) == 0 {
		return log == message.Device // $aws/rules/<rule>/…
	}
	for _, p := range r.from {
		first := message.Subject(p).Token(0)
		if first == "*" || first == ">" {
			if log != message.Operator {
				return true
			}
		} else if message.Subject(first).Namespace() == log {
			return true
		}
	}
	return false
}

// pace keeps a backtest from taking more than a part of the time of one core, and from reading faster than a rate.
type pace struct {
	rate  float64 // messages a second
	share float64 // of the time
	owed  time.Duration
}

// wait is called after each batch with what it took.
func (p *pace) wait(ctx context.Context, took time.Duration, messages int) error {
	p.owed += max(time.Duration(float64(took)*(1-p.share)/p.share), time.Duration(float64(messages)/p.rate*float64(time.Second))-took)
	if p.owed < time.Millisecond { // too short to sleep
		return ctx.Err()
	}
	t := time.NewTimer(p.owed)
	defer t.Stop()
	began := time.Now()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	p.owed -= time.Since(began)
	return ctx.Err()
}

// serveBacktest answers with lines of JSON: how it goes on, each second, and at the end the result, or the error that ended it.
func (e *Engine) serveBacktest(w http.ResponseWriter, r *http.Request) (any, error) {
	b, err := e.asked(w, r)
	if err != nil {
		return nil, err
	}
	select {
	case e.testing <- struct{}{}:
	default:
		return nil, answer.Conflict("another backtest runs in this process; one at a time, so that they take nothing from who is at work")
	}
	defer func() { <-e.testing }()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() { // ends with the request
		select {
		case <-e.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	flush := http.NewResponseController(w)
	line := func(name string, v any) error {
		raw, err := json.Marshal(map[string]any{name: v})
		if err != nil {
			return err
		}
		if _, err := w.Write(append(raw, '\n')); err != nil {
			return err
		}
		return flush.Flush()
	}
	began := e.env.Now()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	b.tell = func(of *Backtest) error { return line("progress", of) }
	err = b.run(ctx)
	b.of.Took = e.env.Now().Sub(began)
	if err != nil {
		if r.Context().Err() == nil {
			_ = line("error", err.Error()) // the client went; there is nobody to tell
		}
		return nil, nil
	}
	_ = line("result", &b.of) // likewise
	return nil, nil
}

// asked reads which version is to be tried, since when, and how far.
func (e *Engine) asked(w http.ResponseWriter, r *http.Request) (*backtest, error) {
	q, now := r.URL.Query(), e.env.Now()
	b := &backtest{e: e, limit: backtestMax, told: now, pace: pace{rate: float64(e.conf.BacktestRate), share: 0.5},
		of: Backtest{Rule: r.PathValue("name"), Differences: map[string]uint64{}, Examples: []Difference{}}}
	b.with = trying{look: patientShadows{r.Context(), e.twins}, check: e.env.Check}
	var err error
	if b.of.Since, err = moment(q.Get("since"), now, now.Add(-backtestDay)); err != nil {
		return nil, answer.Bad(fmt.Errorf("since=%s: %w", q.Get("since"), err))
	}
	if b.of.Until, err = moment(q.Get("until"), now, now); err != nil {
		return nil, answer.Bad(fmt.Errorf("until=%s: %w", q.Get("until"), err))
	}
	if !b.of.Since.Before(b.of.Until) {
		return nil, answer.Bad(fmt.Errorf("since is %s, and until %s: want since before until", b.of.Since.Format(time.RFC3339), b.of.Until.Format(time.RFC3339)))
	}
	if s := q.Get("limit"); s != "" {
		if b.limit, err = strconv.ParseUint(s, 10, 64); err != nil || b.limit == 0 {
			return nil, answer.Bad(fmt.Errorf("limit=%s: want a number of messages", s))
		}
	}
	if s := q.Get("rate"); s != "" {
		rate, err := strconv.ParseFloat(s, 64)
		if err != nil || rate < 1 || rate > b.pace.rate {
			return nil, answer.Bad(fmt.Errorf("rate=%s: want messages a second, up to %d (backtest_rate)", s, e.conf.BacktestRate))
		}
		b.pace.rate = rate
	}
	lasts := backtestFor
	if s := q.Get("for"); s != "" {
		if lasts, err = time.ParseDuration(s); err != nil || lasts <= 0 {
			return nil, answer.Bad(fmt.Errorf("for=%s: want a duration such as 5m", s))
		}
	}
	b.deadline = time.Now().Add(lasts)
	return b, e.versions(w, r, b)
}

// versions finds the version to be tried and the one that runs.
func (e *Engine) versions(w http.ResponseWriter, r *http.Request, b *backtest) error {
	if err := e.known(); err != nil {
		return err
	}
	if l := e.now.Load().byName[b.of.Rule]; l != nil {
		b.old, b.of.Against = l.Rule, l.Version
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, documentMax))
	if err != nil {
		return answer.Bad(fmt.Errorf("read the rule: %w; it may have %d bytes", err, documentMax))
	}
	number, err := versionOf(r)
	switch {
	case err != nil:
		return err
	case len(bytes.TrimSpace(raw)) == 0:
		k, err := e.head(r, true)
		if err != nil {
			return err
		}
		if number == 0 {
			if number = k.Current; k.Trial != nil {
				number = k.Trial.Version
			}
		}
		if b.now, err = e.book.compiledVersion(k, number); err != nil {
			return err
		}
		if b.of.Version = number; b.old == b.now { // there is nothing to compare with
			b.old, b.of.Against = nil, 0
		}
		return nil
	case number > 0:
		return answer.Bad(errors.New("version and a rule in the request: want one of them"))
	}
	d, err := Parse(raw)
	if err != nil {
		return answer.Bad(err)
	}
	if d.Name == "" {
		d.Name = b.of.Rule
	}
	if d.Name != b.of.Rule {
		return answer.Bad(fmt.Errorf("the rule calls itself %q, and is tried as %q", d.Name, b.of.Rule))
	}
	if len(d.Actions) == 0 && b.old != nil {
		d.Actions, d.ErrorAction = b.old.Document.Actions, b.old.Document.ErrorAction // it is the SQL that is tried
	}
	if b.now, err = Compile(d, 0, e.env.Node); err != nil {
		return answer.Bad(err)
	}
	return nil
}

// moment reads a time; what it is where nothing is asked for is given.
func moment(s string, now, otherwise time.Time) (time.Time, error) {
	if s == "" {
		return otherwise.UTC(), nil
	}
	at, err := when.Parse(s, now)
	return at.UTC(), err
}
