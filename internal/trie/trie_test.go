package trie

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/naru-platform/naru/message"
)

func TestTrieSelectsAsAPlainReadingDoes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	token := func(list ...string) string { return list[r.IntN(len(list))] }
	for range 200 {
		var tr Trie[*int]
		patterns := map[*int]message.Pattern{}
		for range 20 {
			var p []string
			for range 1 + r.IntN(4) {
				p = append(p, token("a", "b", "*", "$s"))
			}
			if r.IntN(3) == 0 {
				p[len(p)-1] = ">"
			}
			s := new(int)
			patterns[s] = message.Pattern(strings.Join(p, "."))
			tr.Add(patterns[s], s)
		}
		for s, p := range patterns {
			if r.IntN(4) == 0 {
				tr.Remove(p, s)
				delete(patterns, s)
			}
		}
		for range 50 {
			var tokens []string
			for range 1 + r.IntN(4) {
				tokens = append(tokens, token("a", "b", "c", "$s"))
			}
			subject := message.Subject(strings.Join(tokens, "."))
			got := map[*int]int{}
			tr.Match(subject, func(s *int) { got[s]++ })
			for s, p := range patterns {
				if (got[s] == 1) != p.Matches(subject) || got[s] > 1 {
					t.Fatalf("%s on %s: the trie says %d times, the pattern %t", p, subject, got[s], p.Matches(subject))
				}
				delete(got, s)
			}
			if len(got) > 0 {
				t.Fatalf("%s selects what was removed", subject)
			}
		}
	}
}
