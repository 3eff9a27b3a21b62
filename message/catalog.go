package message

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Route is the way a message takes through the bus.
type Route string

const (
	// ByLog is for facts: kept in order per key, heard by any number, read again at will.
	ByLog Route = "log"
	// ByQueue is for what addresses one receiver and may wait for it: a command, a call to a third party.
	ByQueue Route = "queue"
)

// Contract is what a kind of message promises: data, so that catalog, diagram, policy and checks all read the same.
type Contract struct {
	// Subjects is where messages of this kind go.
	Subjects Pattern
	// Type is the CloudEvents type with its version: `device.telemetry.v1`.
	Type string
	// Doc says in a sentence or two what it means, and what it means that it was not said.
	Doc string
	// Owner is the team that answers for it.
	Owner string
	// Route is the way it takes.
	Route Route
	// Says lists who may say it: components by name, `device` for devices on their own subtree.
	Says []string
	// Hears lists who is known to listen; others may.
	Hears []string
	// ContentType is the media type of its data; empty where anything may come.
	ContentType string
	// Schema is a JSON Schema (2020-12) of its data; nil where anything may come.
	Schema json.RawMessage
	// Example is data that keeps the schema.
	Example json.RawMessage
}

// Catalog is the set of contracts in force. It does not change once made; any number of goroutines may read it.
type Catalog struct {
	contracts []Contract
	ranked    []int // indices of contracts: those that begin with a word first, and of them the more particular ones
	root      branch
}

// branch is a place in the tree of patterns, a token further than its parent. Contracts are numbers in ranked, from 1.
type branch struct {
	word map[string]*branch
	any  *branch // `*`
	here int     // a pattern ends here
	rest int     // a pattern goes on with `>`
}

// NewCatalog checks the contracts and joins them. Two contracts of one type, or on one pattern, are an error.
func NewCatalog(contracts ...Contract) (*Catalog, error) {
	c := &Catalog{contracts: slices.Clone(contracts)}
	slices.SortStableFunc(c.contracts, func(a, b Contract) int { return cmp.Compare(a.Subjects, b.Subjects) })
	types, patterns := map[string]bool{}, map[Pattern]bool{}
	for i, k := range c.contracts {
		if err := k.Subjects.Valid(); err != nil {
			return nil, fmt.Errorf("contract %s: %w", k.Type, err)
		}
		switch {
		case k.Type == "" || k.Doc == "" || k.Owner == "":
			return nil, fmt.Errorf("contract on %s: type, doc and owner are wanted", k.Subjects)
		case types[k.Type]:
			return nil, fmt.Errorf("contract %s is there twice", k.Type)
		case patterns[k.Subjects]:
			return nil, fmt.Errorf("subjects %s have two contracts; the second is %s", k.Subjects, k.Type)
		case k.Route != ByLog && k.Route != ByQueue:
			return nil, fmt.Errorf("contract %s: route %q; there are %q and %q", k.Type, k.Route, ByLog, ByQueue)
		case k.Schema != nil && !json.Valid(k.Schema):
			return nil, fmt.Errorf("contract %s: its schema is not JSON", k.Type)
		}
		types[k.Type], patterns[k.Subjects] = true, true
		c.ranked = append(c.ranked, i)
	}
	slices.SortStableFunc(c.ranked, func(a, b int) int {
		p, q := c.contracts[a].Subjects, c.contracts[b].Subjects
		return cmp.Or(cmp.Compare(wildFirst(p), wildFirst(q)), cmp.Compare(specificity(q), specificity(p)))
	})
	for rank, i := range c.ranked {
		c.root.add(string(c.contracts[i].Subjects), rank+1)
	}
	return c, nil
}

// Contracts lists them by subject.
func (c *Catalog) Contracts() []Contract { return slices.Clone(c.contracts) }

// Fingerprint is a short text that two catalogs share if they hold the same contracts, to the last word.
func (c *Catalog) Fingerprint() string {
	h := sha256.New()
	for _, k := range c.contracts {
		fmt.Fprintf(h, "%q %q %q %q %q %q %q %q %q %q\n", k.Subjects, k.Type, k.Doc, k.Owner, k.Route, k.Says, k.Hears, k.ContentType, k.Schema, k.Example)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Find is the most particular contract for the subject; nil where none covers it. The result must not be changed.
func (c *Catalog) Find(s Subject) *Contract {
	rank := c.root.find(string(s), strings.HasPrefix(string(s), "$"))
	if rank == 0 {
		return nil
	}
	return &c.contracts[c.ranked[rank-1]]
}

func (b *branch) add(pattern string, rank int) {
	token, rest, more := strings.Cut(pattern, ".")
	if token == ">" {
		b.rest = rank
		return
	}
	next := b.any
	if token != "*" {
		next = b.word[token]
	}
	if next == nil {
		next = new(branch)
		switch {
		case token == "*":
			b.any = next
		case b.word == nil:
			b.word = map[string]*branch{token: next}
		default:
			b.word[token] = next
		}
	}
	if more {
		next.add(rest, rank)
	} else {
		next.here = rank
	}
}

// find is the best rank of the patterns that match; literal says that no wildcard may stand for the first token.
func (b *branch) find(subject string, literal bool) int {
	token, rest, more := strings.Cut(subject, ".")
	best := 0
	better := func(rank int) {
		if rank != 0 && (best == 0 || rank < best) {
			best = rank
		}
	}
	down := func(next *branch) {
		switch {
		case next == nil:
		case more:
			better(next.find(rest, false))
		default:
			better(next.here)
		}
	}
	down(b.word[token])
	if !literal {
		down(b.any)
		better(b.rest)
	}
	return best
}

// wildFirst is 1 for a pattern that any first token may stand in.
func wildFirst(p Pattern) int {
	if p[0] == '*' || p[0] == '>' {
		return 1
	}
	return 0
}

// specificity orders patterns: one that selects fewer subjects counts for more.
func specificity(p Pattern) int {
	n := 0
	for token := range strings.SplitSeq(string(p), ".") {
		switch token {
		case ">":
			n++
		case "*":
			n += 16
		default:
			n += 17
		}
	}
	return n
}
