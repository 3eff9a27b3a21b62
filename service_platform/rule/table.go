package rule

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	docs "github.com/naru-platform/naru/component/book"
	"github.com/naru-platform/naru/internal/answer"
)

const (
	tableName   = "rules"
	headPrefix  = "rule/"
	partPrefix  = "version/"
	versionsMax = 20 // of a rule that are kept
	changesMax  = 50 // of a rule that are remembered
)

// Head is a rule as a whole: which of its versions runs, and who made it what it is. It is one key of the table, so a rule
// changes at once. The versions have keys of their own, written before.
type Head struct {
	Name    string `json:"name"`
	Current int    `json:"version"`
	Last    int    `json:"last"` // the highest number given
	Enabled bool   `json:"enabled"`
	Deleted bool   `json:"deleted,omitempty"`
	// File is the file that the rule is from; such a rule is changed there.
	File     string    `json:"file,omitempty"`
	Versions []Version `json:"versions"` // those kept, oldest first
	Changes  []Change  `json:"changes"`  // oldest first
	// Trial is the version in shadow mode, where there is one.
	Trial *Trial `json:"shadow_mode,omitempty"`
}

// Version is one of a rule's.
type Version struct {
	Number int       `json:"version"`
	Hash   string    `json:"hash"` // of its content
	At     time.Time `json:"at"`
	By     string    `json:"by"`
}

// Change is who changed what of a rule, when and why.
type Change struct {
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	Why     string    `json:"why,omitempty"`
	Change  string    `json:"change"` // created, updated, enabled, disabled, rolled_back, promoted, deleted, shadow_started, shadow_stopped
	Version int       `json:"version"`
}

// Runs says whether the rule is in force.
func (h *Head) Runs() bool { return h.Enabled && !h.Deleted }

func (h *Head) version(number int) *Version {
	for i := range h.Versions {
		if h.Versions[i].Number == number {
			return &h.Versions[i]
		}
	}
	return nil
}

// partKey holds a version. Its content's hash is in it, so that two who write the same number at once write two keys, and
// the head says whose counts.
func partKey(rule string, v *Version) string {
	return fmt.Sprintf("%s%s/%d-%s", partPrefix, rule, v.Number, v.Hash)
}

// kept is a head as it is in the table.
type kept struct {
	Head
	revision uint64
	fault    string // why it does not run as it should

	trialFault string // why its version in shadow mode does not run
}

// book is the table of rules as this process knows it.
type book struct {
	*docs.Book[Head]
	e *Engine

	mu       sync.Mutex
	heads    map[string]*kept
	parts    map[string][]byte // documents, by their keys
	compiled map[string]*Rule  // by the same
	running  map[string]*live
	trials   map[string]*trial
	tallies  map[string]*tally // of this process, by rule
	others   map[string]Tally  // of others, by key
	synced   bool
}

func newBook(e *Engine) *book {
	b := &book{e: e, heads: map[string]*kept{}, parts: map[string][]byte{}, compiled: map[string]*Rule{}, running: map[string]*live{}, trials: map[string]*trial{}, tallies: map[string]*tally{}, others: map[string]Tally{}}
	b.Book = docs.New(docs.Options[Head]{Table: tableName, Prefix: headPrefix, What: "rule", Owner: Name,
		Broken: func(key string, err error) {
			e.env.Log.Error("read a rule of the table; what ran goes on", "key", key, "error", err)
		},
		Told: b.toldHead, Other: b.toldOther, Read: b.read,
	})
	return b
}

// read puts in force what the table says, now that all of it is known.
func (b *book) read() {
	b.mu.Lock()
	b.synced = true
	for name := range b.heads {
		b.refresh(name)
	}
	b.swap()
	b.mu.Unlock()
	select {
	case <-b.e.loaded:
	default:
		close(b.e.loaded)
	}
}

func (b *book) toldHead(name string, d *docs.Doc[Head]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d == nil {
		delete(b.heads, name)
	} else {
		b.heads[name] = &kept{Head: d.Value, revision: d.Revision}
	}
	if b.synced && b.refresh(name) {
		b.swap()
	}
}

func (b *book) toldOther(e bus.Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case strings.HasPrefix(e.Key, partPrefix) && e.Deleted:
		delete(b.parts, e.Key)
		delete(b.compiled, e.Key)
	case strings.HasPrefix(e.Key, partPrefix):
		b.parts[e.Key] = slices.Clone(e.Value)
		name, _, _ := strings.Cut(e.Key[len(partPrefix):], "/")
		if b.synced && b.heads[name] != nil && b.refresh(name) {
			b.swap()
		}
	case strings.HasPrefix(e.Key, tallyPrefix):
		b.toldTally(e.Key, e.Value, e.Deleted)
	}
}

// refresh makes what runs of a rule what its head says, in shadow mode too, and says whether that changed. mu is held.
func (b *book) refresh(name string) (changed bool) {
	runs := b.refreshRunning(name)
	return b.refreshTrial(name) || runs
}

// refreshRunning is for what runs. Where the version cannot run, the one before goes on, and the fault is told. mu is held.
func (b *book) refreshRunning(name string) (changed bool) {
	h := b.heads[name]
	was := b.running[name]
	if h == nil || !h.Runs() {
		delete(b.running, name)
		return was != nil
	}
	r, err := b.rule(h)
	if err != nil {
		h.fault = err.Error()
		b.e.env.Log.Error("a rule cannot run", "rule", name, "version", h.Current, "error", err)
		return false
	}
	h.fault = ""
	if was != nil && was.Rule == r {
		return false
	}
	b.running[name] = &live{r, b.e.counts.of(name)}
	return true
}

// rule gives a head's current version, compiled. mu is held.
func (b *book) rule(h *kept) (*Rule, error) { return b.version(h, h.Current) }

// compiledVersion gives a version of a rule to who asks for it by number.
func (b *book) compiledVersion(h *kept, number int) (*Rule, error) {
	if h.version(number) == nil {
		return nil, answer.Missing("version %d of rule %s is not kept; `naru rule history %s` shows those that are", number, h.Name, h.Name)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r, err := b.version(h, number)
	if err != nil {
		err = answer.Conflict("version %d of rule %s cannot run here: %s", number, h.Name, err)
	}
	return r, err
}

// version gives a version of a rule, compiled. mu is held.
func (b *book) version(h *kept, number int) (*Rule, error) {
	v := h.version(number)
	if v == nil {
		return nil, fmt.Errorf("version %d is not kept", number)
	}
	key := partKey(h.Name, v)
	if r := b.compiled[key]; r != nil {
		return r, nil
	}
	raw := b.parts[key]
	if raw == nil {
		return nil, fmt.Errorf("version %d is not in the table yet", v.Number)
	}
	d, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	r, err := Compile(d, v.Number, b.e.env.Node)
	if err == nil {
		b.compiled[key] = r
	}
	return r, err
}

// swap puts what runs in force, between two messages. mu is held.
func (b *book) swap() {
	names := slices.Sorted(maps.Keys(b.running))
	list := make([]*live, len(names))
	for i, n := range names {
		list[i] = b.running[n]
	}
	b.e.now.Store(newSet(list, b.trials))
}

// act is a change of a rule as somebody wants it.
type act struct {
	by, why, file string
	revision      uint64 // the rule must still have it; 0 is any
	do            func(h *Head, v *Version) (change string, err error)
	document      []byte // of a new version, whose number and hash v has
	hash          string
	beside        bool // it does not concern what runs, and so is for rules from files too
}

// errSame says that nothing is to be changed.
var errSame = docs.ErrSame

// change makes a change, once, whoever else changes the same rule.
func (b *book) change(ctx context.Context, name string, a act) (*kept, error) {
	var before Head
	var gone []Version
	var wrote []string // also by attempts that somebody else was quicker than
	d, err := b.Change(ctx, name, func(d *docs.Doc[Head]) (err error) {
		if d.Revision == 0 {
			d.Value = Head{Name: name, Deleted: true}
		}
		before = d.Value
		var key string
		if key, gone, err = b.make(ctx, d, a); key != "" {
			wrote = append(wrote, key)
		}
		if errors.Is(err, errSame) {
			d.Value = before
		}
		return err
	})
	if err != nil && !errors.Is(err, errSame) {
		return nil, err
	}
	k := &kept{Head: d.Value, revision: d.Revision}
	for _, key := range wrote {
		if !slices.ContainsFunc(k.Versions, func(v Version) bool { return partKey(name, &v) == key }) {
			_ = b.Table().Delete(ctx, key, 0) // what stays is never read
		}
	}
	if err != nil {
		return k, nil
	}
	if before.Trial != nil && (k.Trial == nil || k.Trial.Version != before.Trial.Version) {
		b.dropTallies(ctx, name)
	}
	for i := range gone {
		_ = b.Table().Delete(ctx, partKey(name, &gone[i]), 0) // what stays is never read again
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := b.heads[name]; now != nil {
		k.fault = now.fault
	}
	return k, nil
}

// make makes a change in a head, writes the new version where there is one, under the key wrote, and gives those that are not
// kept any more.
func (b *book) make(ctx context.Context, d *docs.Doc[Head], a act) (wrote string, gone []Version, err error) {
	k := &d.Value
	if a.revision != 0 && a.revision != d.Revision {
		return "", nil, &answer.Problem{Status: 412, Title: "Precondition Failed",
			Detail: fmt.Sprintf("rule %s was changed in the meantime: it has revision %d, not %d; look at it again with `naru rule show %s`", k.Name, d.Revision, a.revision, k.Name)}
	}
	if k.File != a.file && !k.Deleted && !a.beside {
		return "", nil, k.elsewhere(a.file)
	}
	v := &Version{Number: k.Last + 1, Hash: a.hash, At: b.e.env.Now().UTC(), By: a.by}
	before := *k
	what, err := a.do(k, v)
	if err != nil {
		return "", nil, err
	}
	if before.Deleted && !k.Deleted && b.count() >= b.e.conf.RulesMax {
		return "", nil, answer.Conflict("there are %d rules, as many as may be (rules_max)", b.e.conf.RulesMax)
	}
	if k.Last == v.Number {
		wrote = partKey(k.Name, v)
		if _, err := b.Table().Put(ctx, wrote, a.document); err != nil {
			return "", nil, err
		}
	}
	if !a.beside || before.Deleted {
		k.File = a.file
	}
	change := Change{At: v.At, By: a.by, Why: a.why, Change: what, Version: k.Current}
	if k.Trial != nil && what == trialStarted {
		change.Version, k.Trial.Why = k.Trial.Version, a.why
	} else if before.Trial != nil && what == trialStopped {
		change.Version = before.Trial.Version
	}
	k.Changes = append(slices.Clone(k.Changes), change)
	k.Changes = k.Changes[max(0, len(k.Changes)-changesMax):]
	return wrote, trim(k), nil
}

// elsewhere says where a rule is changed that cannot be changed from here: from that file, or from none.
func (h *Head) elsewhere(file string) error {
	switch {
	case h.File == demoFile:
		return answer.Conflict("rule %s is naru's own, and runs while devices are simulated; give yours another name", h.Name)
	case file == "":
		return answer.Conflict("rule %s is from the file %s: change it there; removed from there, it is free", h.Name, h.File)
	case h.File != "":
		return answer.Conflict("rule %s is from the file %s already", h.Name, h.File)
	}
	return answer.Conflict("there is a rule %s that is from no file: `naru rule delete %s`, or name the one in the file otherwise", h.Name, h.Name)
}

// count is how many rules there are.
func (b *book) count() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range b.heads {
		if !k.Deleted {
			n++
		}
	}
	return n
}

// dropTallies forgets how a trial that is over went.
func (b *book) dropTallies(ctx context.Context, rule string) {
	b.mu.Lock()
	keys := []string{tallyKey(rule, b.e.env.Node)}
	for key := range b.others {
		if strings.HasPrefix(key, tallyPrefix+rule+"/") {
			keys = append(keys, key)
		}
	}
	b.mu.Unlock()
	for _, key := range keys {
		_ = b.Table().Delete(ctx, key, 0) // what stays is of another pair of versions, and counts for nothing
	}
}

// trim forgets the oldest versions beyond those kept, never the current one.
func trim(h *Head) (gone []Version) {
	for i := 0; len(h.Versions) > versionsMax && i < len(h.Versions); {
		if n := h.Versions[i].Number; n == h.Current || h.Trial != nil && n == h.Trial.Version {
			i++
			continue
		}
		gone = append(gone, h.Versions[i])
		h.Versions = slices.Delete(slices.Clone(h.Versions), i, i+1)
	}
	return gone
}

// put makes a document the rule's current version.
func (b *book) put(ctx context.Context, d *Document, a act) (*kept, *Rule, error) {
	r, err := Compile(d, 0, b.e.env.Node)
	if err != nil {
		return nil, nil, answer.Bad(err)
	}
	if a.document, a.hash, err = d.content(); err != nil {
		return nil, nil, err
	}
	a.do = func(h *Head, v *Version) (string, error) {
		what := "updated"
		if h.Deleted {
			what, h.Enabled = "created", true
		}
		enabled := h.Enabled
		if d.Enabled != nil {
			enabled = *d.Enabled
		}
		now := h.version(h.Current)
		if same := now != nil && now.Hash == a.hash && !h.Deleted; !same {
			h.Versions = append(slices.Clone(h.Versions), *v)
			h.Current, h.Last = v.Number, v.Number
		} else if enabled == h.Enabled {
			return "", errSame
		} else if what = "disabled"; enabled {
			what = "enabled"
		}
		h.Enabled, h.Deleted = enabled, false
		return what, nil
	}
	k, err := b.change(ctx, d.Name, a)
	return k, r, err
}

// turn enables or disables a rule.
func turn(on bool) func(h *Head, _ *Version) (string, error) {
	return func(h *Head, _ *Version) (string, error) {
		switch {
		case h.Deleted:
			return "", missing(h.Name)
		case h.Enabled == on:
			return "", errSame
		}
		h.Enabled = on
		if on {
			return "enabled", nil
		}
		return "disabled", nil
	}
}

// rollBack makes a version that is kept the current one; 0 is the one before. A deleted rule comes back by it.
func rollBack(to int) func(h *Head, _ *Version) (string, error) {
	return func(h *Head, _ *Version) (string, error) {
		number := to
		if number == 0 {
			for _, v := range h.Versions {
				if v.Number < h.Current || h.Deleted {
					number = v.Number
				}
			}
		}
		switch {
		case len(h.Versions) == 0:
			return "", missing(h.Name)
		case number == 0:
			return "", answer.Conflict("rule %s has no version before %d", h.Name, h.Current)
		case h.version(number) == nil:
			return "", answer.Missing("version %d of rule %s is not kept; `naru rule history %s` shows those that are", number, h.Name, h.Name)
		case number == h.Current && !h.Deleted:
			return "", errSame
		}
		h.Current, h.Deleted = number, false
		if h.Trial != nil && h.Trial.Version == number {
			h.Trial = nil
		}
		return "rolled_back", nil
	}
}

func remove(h *Head, _ *Version) (string, error) {
	if h.Deleted {
		return "", missing(h.Name)
	}
	h.Deleted, h.Trial = true, nil
	return "deleted", nil
}

func missing(name string) error {
	return answer.Missing("there is no rule %s; `naru rule list` shows those there are", name)
}
