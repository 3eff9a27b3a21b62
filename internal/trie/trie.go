// Package trie finds which of many patterns select a subject, at a cost that follows the tokens and the matches, not the
// number of patterns.
package trie

import (
	"strings"

	"github.com/naru-platform/naru/message"
)

// Trie has values under patterns. The zero value is empty. It may be read by any number of goroutines while nobody
// changes it.
type Trie[T comparable] struct{ root node[T] }

type node[T comparable] struct {
	next map[string]*node[T]
	here []T // whose pattern ends here
	deep []T // whose pattern goes on with `>`
}

// Add puts a value under a valid pattern.
func (t *Trie[T]) Add(p message.Pattern, v T) {
	n := &t.root
	for token := range strings.SplitSeq(string(p), ".") {
		if token == ">" {
			n.deep = append(n.deep, v)
			return
		}
		child := n.next[token]
		if child == nil {
			child = new(node[T])
			if n.next == nil {
				n.next = map[string]*node[T]{}
			}
			n.next[token] = child
		}
		n = child
	}
	n.here = append(n.here, v)
}

// Remove takes a value away that was put under the pattern.
func (t *Trie[T]) Remove(p message.Pattern, v T) { t.root.remove(string(p), v) }

// remove says whether the node is empty now.
func (n *node[T]) remove(rest string, v T) bool {
	token, rest, more := strings.Cut(rest, ".")
	switch child := n.next[token]; {
	case token == ">":
		n.deep = without(n.deep, v)
	case child == nil:
	case more:
		if child.remove(rest, v) {
			delete(n.next, token)
		}
	default:
		if child.here = without(child.here, v); child.empty() {
			delete(n.next, token)
		}
	}
	return n.empty()
}

func (n *node[T]) empty() bool { return len(n.next) == 0 && len(n.here) == 0 && len(n.deep) == 0 }

func without[T comparable](list []T, v T) []T {
	for i := range list {
		if list[i] == v {
			var none T
			list[i] = list[len(list)-1]
			list[len(list)-1] = none
			return list[:len(list)-1]
		}
	}
	return list
}

// Empty says that there is nothing in it.
func (t *Trie[T]) Empty() bool { return t.root.empty() }

// Match calls f for each value whose pattern selects the subject.
func (t *Trie[T]) Match(s message.Subject, f func(T)) {
	t.root.match(string(s), strings.HasPrefix(string(s), "$"), f)
}

// match goes down both ways, by name and by `*`. hidden says that wildcards do not see the next token (MQTT-4.7.2-1).
func (n *node[T]) match(rest string, hidden bool, f func(T)) {
	if !hidden {
		for _, v := range n.deep {
			f(v)
		}
	}
	if n.next == nil {
		return
	}
	token, rest, more := strings.Cut(rest, ".")
	for i, name := range [2]string{token, "*"} {
		child := n.next[name]
		if child == nil || i == 1 && (hidden || token == "*") {
			continue
		}
		if more {
			child.match(rest, false, f)
			continue
		}
		for _, v := range child.here {
			f(v)
		}
	}
}
