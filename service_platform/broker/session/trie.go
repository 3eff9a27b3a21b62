package session

import (
	"strings"

	"github.com/naru-platform/naru/message"
)

// trie finds the subscriptions that select a subject, at a cost that follows the tokens and the matches, not the number
// of subscriptions.
type trie struct{ root node }

type node struct {
	next map[string]*node
	here []*Subscription // whose pattern ends here
	deep []*Subscription // whose pattern goes on with `>`
}

func (t *trie) add(p message.Pattern, s *Subscription) {
	n := &t.root
	for token := range strings.SplitSeq(string(p), ".") {
		if token == ">" {
			n.deep = append(n.deep, s)
			return
		}
		child := n.next[token]
		if child == nil {
			child = new(node)
			if n.next == nil {
				n.next = map[string]*node{}
			}
			n.next[token] = child
		}
		n = child
	}
	n.here = append(n.here, s)
}

func (t *trie) remove(p message.Pattern, s *Subscription) { t.root.remove(string(p), s) }

// remove says whether the node is empty now.
func (n *node) remove(rest string, s *Subscription) bool {
	token, rest, more := strings.Cut(rest, ".")
	switch child := n.next[token]; {
	case token == ">":
		n.deep = without(n.deep, s)
	case child == nil:
	case more:
		if child.remove(rest, s) {
			delete(n.next, token)
		}
	default:
		if child.here = without(child.here, s); child.empty() {
			delete(n.next, token)
		}
	}
	return n.empty()
}

func (n *node) empty() bool { return len(n.next) == 0 && len(n.here) == 0 && len(n.deep) == 0 }

func without(list []*Subscription, s *Subscription) []*Subscription {
	for i := range list {
		if list[i] == s {
			list[i] = list[len(list)-1]
			list[len(list)-1] = nil
			return list[:len(list)-1]
		}
	}
	return list
}

// match calls f for each subscription with a pattern that selects the subject.
func (t *trie) match(s message.Subject, f func(*Subscription)) {
	t.root.match(string(s), strings.HasPrefix(string(s), "$"), f)
}

// match goes down both ways, by name and by `*`. hidden says that wildcards do not see the next token (MQTT-4.7.2-1).
func (n *node) match(rest string, hidden bool, f func(*Subscription)) {
	if !hidden {
		for _, s := range n.deep {
			f(s)
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
		for _, s := range child.here {
			f(s)
		}
	}
}
