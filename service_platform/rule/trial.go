package rule

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
)

// Trial is a version in shadow mode: it runs live on what comes, says nothing, and is compared with the version that runs.
type Trial struct {
	Version int       `json:"version"`
	At      time.Time `json:"since"`
	By      string    `json:"by"`
	Why     string    `json:"why,omitempty"`
}

// The changes of a rule that concern its trial and not what runs.
const (
	trialStarted = "shadow_started"
	trialStopped = "shadow_stopped"
)

func (c *Change) trial() bool { return c.Change == trialStarted || c.Change == trialStopped }

// Tally is how a version in shadow mode did beside the one that ran, since both are what they are.
type Tally struct {
	Version     int               `json:"version"`
	Against     int               `json:"against"` // 0 where none runs
	Since       time.Time         `json:"since"`
	Heard       uint64            `json:"heard"` // messages that one of the two hears
	Matched     uint64            `json:"matched"`
	Before      uint64            `json:"matched_before"`
	Failed      uint64            `json:"failed"`
	Same        uint64            `json:"same"`
	Skipped     uint64            `json:"not_compared,omitempty"` // since a twin that it asks for was not known yet
	Differences map[string]uint64 `json:"differences"`
	Examples    []Difference      `json:"examples"`
}

// trialExamplesMax is how many examples of each difference are kept: a tally is a value of a table.
const trialExamplesMax = 2

// ShownTrial is a trial with how it goes, in all processes together.
type ShownTrial struct {
	Trial
	Fault string `json:"fault,omitempty"` // why it does not run
	Tally Tally  `json:"tally"`
}

// trial is a version in shadow mode in this process, beside the one that runs; old is nil where none does.
type trial struct {
	now, old *Rule
	tally    *tally
}

// tally counts for one rule. What it counts is kept in the table of rules by a key of this process's own.
type tally struct {
	mu    sync.Mutex
	of    Tally
	dirty bool
}

// about makes the tally one of two versions: another pair begins anew.
func (t *tally) about(version, against int, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of.Version != version || t.of.Against != against {
		t.of, t.dirty = Tally{Version: version, Against: against, Since: now.UTC(), Differences: map[string]uint64{}}, true
	}
}

// verdicts are what two versions made of a message.
type verdicts struct {
	before, after *Verdict
	what          string
	example       *Difference // where one may be wanted
}

// try has both versions judge a message.
func (t *trial) try(m *message.Message, with trying) *verdicts {
	v := &verdicts{before: t.old.verdict(m, with), after: t.now.verdict(m, with)}
	if v.before.pending || v.after.pending {
		return v
	}
	if v.what = difference(v.before, v.after); v.what != "" && t.tally.wants(v.what) {
		x := showDifference(v.what, m, t.old, t.now, v.before, v.after, with.look)
		v.example = &x
	}
	return v
}

func (t *tally) wants(what string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.of.Differences[what] < trialExamplesMax
}

// add counts a message. It is called once what the rules said of it is committed.
func (t *trial) add(v *verdicts) {
	t.tally.mu.Lock()
	defer t.tally.mu.Unlock()
	of := &t.tally.of
	if of.Version != t.now.Version || of.Against != t.old.number() {
		return // it was about others
	}
	if !v.before.Heard && !v.after.Heard {
		return
	}
	t.tally.dirty = true
	of.Heard++
	of.Matched += count(v.after.Matched)
	of.Before += count(v.before.Matched)
	of.Failed += count(v.after.fails())
	switch {
	case v.before.pending || v.after.pending:
		of.Skipped++
	case v.what == "":
		of.Same++
	default:
		if of.Differences[v.what]++; v.example != nil && of.Differences[v.what] <= trialExamplesMax {
			of.Examples = append(of.Examples, *v.example)
		}
	}
}

// number is a rule's version; 0 where there is no rule.
func (r *Rule) number() int {
	if r == nil {
		return 0
	}
	return r.Version
}

// compare has each version in shadow mode that hears the message, or whose running version does, judge it. A bug in one
// concerns nobody else.
func (e *Engine) compare(s *set, tx component.Tx, m *message.Message, hits []*live) {
	if len(s.trials) == 0 {
		return
	}
	var concerned []*trial
	if name, ok := ingested(m.Subject); ok {
		if t := s.trials[name]; t != nil {
			concerned = append(concerned, t)
		}
	} else {
		s.trialTree.Match(m.Subject, func(t *trial) {
			if t.now.hearsSubject(m.Subject) && !slices.Contains(concerned, t) {
				concerned = append(concerned, t)
			}
		})
		for _, l := range hits {
			if t := s.trials[l.Name]; t != nil && !slices.Contains(concerned, t) {
				concerned = append(concerned, t)
			}
		}
	}
	for _, t := range concerned {
		func() {
			defer func() {
				if p := recover(); p != nil {
					e.env.Log.Error("compare a version in shadow mode: a bug in naru", "rule", t.now.Label(), "id", m.ID, "error", p)
				}
			}()
			v := t.try(m, trying{look: shadows{e.twins}, check: e.env.Check})
			tx.After(func() { t.add(v) })
		}()
	}
}

// tallyPrefix begins the keys of the tallies: rule, process.
const tallyPrefix = "tally/"

func tallyKey(rule, node string) string {
	return tallyPrefix + rule + "/" + strings.Map(func(r rune) rune {
		if r < 128 && (r == '-' || r == '_' || r == '.' || r == '=' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
			return r
		}
		return '_'
	}, node)
}

// tallyEvery is how often tallies are kept. Of a process that is killed, what it counted since is lost; nothing counts twice.
const tallyEvery = 2 * time.Second

// keepTallies writes the tallies that changed, until ctx is done.
func (b *book) keepTallies(ctx context.Context) {
	tick := time.NewTicker(tallyEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.writeTallies(ctx)
		case <-ctx.Done(): // what is counted until all are at their end is kept when the component closes
			return
		}
	}
}

func (b *book) writeTallies(ctx context.Context) {
	b.mu.Lock()
	mine := maps.Clone(b.tallies)
	for name := range mine {
		if h := b.heads[name]; h == nil || h.Trial == nil {
			delete(mine, name) // the trial is over; its keys are gone
		}
	}
	b.mu.Unlock()
	for name, t := range mine {
		t.mu.Lock()
		raw, err := json.Marshal(&t.of)
		dirty := t.dirty
		t.dirty = false
		t.mu.Unlock()
		if !dirty || err != nil {
			continue
		}
		if _, err := b.Table().Put(ctx, tallyKey(name, b.e.env.Node), raw); err != nil {
			t.mu.Lock()
			t.dirty = true
			t.mu.Unlock()
			b.e.env.Log.Debug("keep the tally of a version in shadow mode", "rule", name, "error", err)
		}
	}
}

// toldTally takes over what the table says of a tally: another process's, or at the start this one's own. mu is held.
func (b *book) toldTally(key string, value []byte, deleted bool) {
	rule, _, _ := strings.Cut(key[len(tallyPrefix):], "/")
	if deleted {
		delete(b.others, key)
		return
	}
	of := Tally{}
	if json.Unmarshal(value, &of) != nil {
		return
	}
	if of.Differences == nil {
		of.Differences = map[string]uint64{}
	}
	if key != tallyKey(rule, b.e.env.Node) {
		b.others[key] = of
	} else if !b.synced && b.tallies[rule] == nil {
		b.tallies[rule] = &tally{of: of}
	}
}

// refreshTrial makes a rule's trial what its head says, and says whether that changed. mu is held.
func (b *book) refreshTrial(name string) (changed bool) {
	h, was := b.heads[name], b.trials[name]
	if h == nil || h.Trial == nil || h.Deleted {
		delete(b.trials, name)
		delete(b.tallies, name)
		return was != nil
	}
	r, err := b.version(h, h.Trial.Version)
	h.trialFault = ""
	if err != nil {
		h.trialFault = err.Error()
		delete(b.trials, name)
		return was != nil
	}
	var old *Rule
	if l := b.running[name]; l != nil {
		old = l.Rule
	}
	if was != nil && was.now == r && was.old == old {
		return false
	}
	t := b.tallies[name]
	if t == nil {
		t = &tally{}
		b.tallies[name] = t
	}
	t.about(r.Version, old.number(), b.e.env.Now())
	b.trials[name] = &trial{now: r, old: old, tally: t}
	return true
}

// showTrial adds up how a trial goes.
func (b *book) showTrial(k *kept) *ShownTrial {
	if k.Trial == nil {
		return nil
	}
	s := &ShownTrial{Trial: *k.Trial, Tally: Tally{Version: k.Trial.Version, Differences: map[string]uint64{}, Examples: []Difference{}}}
	b.mu.Lock()
	defer b.mu.Unlock()
	if h := b.heads[k.Name]; h != nil {
		s.Fault = h.trialFault
	}
	against := 0
	if l := b.running[k.Name]; l != nil {
		against = l.Version
	}
	s.Tally.Against = against
	add := func(t *Tally) {
		if t.Version != k.Trial.Version || t.Against != against {
			return
		}
		if s.Tally.Since.IsZero() || t.Since.Before(s.Tally.Since) {
			s.Tally.Since = t.Since
		}
		of := &s.Tally
		of.Heard, of.Matched, of.Before, of.Failed = of.Heard+t.Heard, of.Matched+t.Matched, of.Before+t.Before, of.Failed+t.Failed
		of.Same, of.Skipped = of.Same+t.Same, of.Skipped+t.Skipped
		for what, n := range t.Differences {
			of.Differences[what] += n
		}
		of.Examples = append(of.Examples, t.Examples...)
	}
	if t := b.tallies[k.Name]; t != nil {
		t.mu.Lock()
		add(&t.of)
		t.mu.Unlock()
	}
	for key, t := range b.others {
		if strings.HasPrefix(key, tallyPrefix+k.Name+"/") {
			add(&t)
		}
	}
	slices.SortStableFunc(s.Tally.Examples, func(x, y Difference) int { return strings.Compare(x.Message.String(), y.Message.String()) })
	return s
}

// startTrial puts a document, or a version that is kept, into shadow mode. A rule that is not there is made, disabled.
func startTrial(number int, hash string, has bool) changing {
	return func(h *Head, v *Version) (string, error) {
		fresh := h.Deleted
		switch {
		case has && h.version(h.Last) != nil && h.version(h.Last).Hash == hash && !fresh:
			number = h.Last // it was put before
		case has:
			h.Versions = append(slices.Clone(h.Versions), *v)
			h.Last, number = v.Number, v.Number
		case fresh:
			return "", missing(h.Name)
		case h.version(number) == nil:
			return "", answer.Missing("version %d of rule %s is not kept; `naru rule history %s` shows those that are", number, h.Name, h.Name)
		}
		if fresh {
			h.Deleted, h.Enabled, h.Current = false, false, number
		}
		if number == h.Current && h.Enabled {
			return "", answer.Conflict("version %d of rule %s is the one that runs; there is nothing to compare it with", number, h.Name)
		}
		if h.Trial != nil && h.Trial.Version == number {
			return "", errSame
		}
		h.Trial = &Trial{Version: number, At: v.At, By: v.By}
		return trialStarted, nil
	}
}

func stopTrial(h *Head, _ *Version) (string, error) {
	if h.Deleted {
		return "", missing(h.Name)
	}
	if h.Trial == nil {
		return "", answer.Missing("no version of rule %s is in shadow mode; `naru rule shadow start` begins one", h.Name)
	}
	h.Trial = nil
	return trialStopped, nil
}

// promote makes the version in shadow mode the one that runs.
func promote(h *Head, _ *Version) (string, error) {
	if h.Deleted {
		return "", missing(h.Name)
	}
	if h.Trial == nil {
		return "", answer.Missing("no version of rule %s is in shadow mode; `naru rule shadow start` begins one", h.Name)
	}
	h.Current, h.Enabled, h.Trial = h.Trial.Version, true, nil
	return "promoted", nil
}

// tryDocument puts a document into shadow mode.
func (b *book) tryDocument(ctx context.Context, d *Document, a act) (*kept, error) {
	if _, err := Compile(d, 0, b.e.env.Node); err != nil {
		return nil, answer.Bad(err)
	}
	var err error
	if a.document, a.hash, err = d.content(); err != nil {
		return nil, fmt.Errorf("rule %s: %w", d.Name, err)
	}
	a.do, a.beside = startTrial(0, a.hash, true), true
	return b.change(ctx, d.Name, a)
}
