package rule

import (
	"fmt"
	"strings"

	"github.com/naru-platform/naru/message"
)

// reach is where what a rule says can be heard: its actions' subjects as far as they are known, and the twin's answers.
func (r *Rule) reach() (list []message.Pattern) {
	for _, a := range r.actions {
		for _, p := range a.to {
			list = append(list, p)
			if dataset, ok := strings.CutPrefix(string(p), "service_platform.bridge."); ok { // the bridge says it again
				list = append(list, message.Pattern("data_platform."+strings.TrimSuffix(dataset, ".put")+".*"))
			}
			if strings.HasPrefix(string(p), "device.") && strings.HasSuffix(string(p), ".update") && strings.Contains(string(p), ".twin.") {
				for _, word := range []string{".accepted", ".documents", ".delta", ".rejected"} {
					list = append(list, p+message.Pattern(word))
				}
				list = append(list, p[:strings.Index(string(p), ".twin.")]+".twin.changed")
			}
		}
	}
	return list
}

// feeds says whether what one rule says can be what another hears.
func (r *Rule) feeds(other *Rule) bool {
	for _, p := range r.reach() {
		for _, q := range other.from {
			if overlap(string(p), string(q)) {
				return true
			}
		}
	}
	return false
}

// overlap says whether there is a subject that both patterns select.
func overlap(p, q string) bool {
	for {
		a, restP, moreP := strings.Cut(p, ".")
		b, restQ, moreQ := strings.Cut(q, ".")
		switch {
		case a == ">" || b == ">":
			return true
		case a != b && a != "*" && b != "*", moreP != moreQ:
			return false
		case !moreP:
			return true
		}
		p, q = restP, restQ
	}
}

// cycles names the circles that a rule would close with those that run. Whether a message goes round depends on WHERE too,
// so they are warnings; a message that does dies as a loop.
func (e *Engine) cycles(r *Rule) []string {
	rules := []*Rule{r}
	if s := e.now.Load(); s != nil {
		for _, l := range s.byName {
			if l.Name != r.Name {
				rules = append(rules, l.Rule)
			}
		}
	}
	from := map[*Rule]*Rule{}
	for queue := []*Rule{r}; len(queue) > 0; queue = queue[1:] {
		for _, next := range rules {
			if !queue[0].feeds(next) {
				continue
			}
			if next == r {
				way := r.Name
				for at := queue[0]; at != r; at = from[at] {
					way = at.Name + " → " + way
				}
				return []string{fmt.Sprintf("it may hear what follows from itself: %s → %s; see that WHERE ends that, or its messages die as loop", r.Name, way)}
			}
			if from[next] == nil {
				from[next] = queue[0]
				queue = append(queue, next)
			}
		}
	}
	return nil
}
