package rule

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/naru-platform/naru/internal/trie"
	"github.com/naru-platform/naru/message"
)

// set is the rules in force at a moment. It does not change once made, so a message meets one set.
type set struct {
	byName map[string]*live
	tree   trie.Trie[*live]

	trials    map[string]*trial // versions in shadow mode, by rule
	trialTree trie.Trie[*trial]

	roots map[string]bool // first tokens of what they all hear, wildcards among them
}

// live is a rule in force with its counts, which outlive its versions.
type live struct {
	*Rule
	counts *counts
}

func newSet(rules []*live, trials map[string]*trial) *set {
	s := &set{byName: map[string]*live{}, trials: maps.Clone(trials), roots: map[string]bool{}}
	for _, t := range trials {
		for _, p := range t.now.from {
			s.roots[message.Subject(p).Token(0)] = true
			s.trialTree.Add(p, t)
		}
	}
	for _, r := range rules {
		s.byName[r.Name] = r
		for _, p := range r.from {
			s.roots[message.Subject(p).Token(0)] = true
			s.tree.Add(p, r)
		}
	}
	return s
}

// mayHear says whether some rule may hear something of a log. The logs of devices and of the services hold more than what rules name:
// topics of Basic Ingest, and answers about twins.
func (s *set) mayHear(log string) bool {
	return log == message.Device || log == message.ServicePlatform || s.roots[log] || s.roots["*"] || s.roots[">"]
}

// concerned gives the rules that hear the subject, by name, in the room given. straight is the rule that a topic of
// Basic Ingest names, whether it is there or not.
func (s *set) concerned(subject message.Subject, room []*live) (hits []*live, straight string) {
	if name, ok := ingested(subject); ok {
		if r := s.byName[name]; r != nil {
			return append(room, r), name
		}
		return room, name
	}
	inside := strings.HasPrefix(string(subject), message.Operator+".")
	hits = room
	s.tree.Match(subject, func(r *live) {
		// What the platform says of itself is seen by who names it, not by a wildcard, as it is with topics that begin with $.
		if !inside || !r.wild() {
			hits = append(hits, r)
		}
	})
	if len(hits) > 1 {
		slices.SortFunc(hits, func(a, b *live) int { return cmp.Compare(a.Name, b.Name) })
	}
	return hits, ""
}

const ingest = "$aws.rules."

// ingested reads the rule that a topic of Basic Ingest leads to.
func ingested(s message.Subject) (rule string, ok bool) {
	if !strings.HasPrefix(string(s), ingest) {
		return "", false
	}
	return s.Token(2), true
}
