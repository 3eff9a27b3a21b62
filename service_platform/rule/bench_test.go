package rule

import (
	"fmt"
	"testing"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// sayings is a transaction of which only what is said counts.
type sayings struct {
	component.Tx
	n int
}

func (s *sayings) Say(*message.Message) error { s.n++; return nil }

// BenchmarkRules has one rule take each message, among 1, 100 and 1,000 that hear disjoint topics: what a message costs follows the rules
// that hear it, and not the rules there are. It is the engine's own work, without log and disk.
//
//	go test -run '^$' -bench Rules -benchtime 100000x -count 5 ./service_platform/rule
func BenchmarkRules(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			e, err := build(component.Env{Node: "n1"}, Config{RulesMax: n, BacktestRate: 1})
			if err != nil {
				b.Fatal(err)
			}
			var rules []*live
			for i := range n {
				name := fmt.Sprintf("rule-%d", i)
				d, err := Parse(fmt.Appendf(nil, `{"name": %q, "sql": "SELECT celsius, topic(2) AS device FROM 'device/+/kind-%d/telemetry' WHERE celsius > 30",
					"actions": [{"republish": {"topic": "device/${device}/hot"}}]}`, name, i))
				if err != nil {
					b.Fatal(err)
				}
				r, err := Compile(d, 1, "n1")
				if err != nil {
					b.Fatal(err)
				}
				rules = append(rules, &live{r, e.counts.of(name)})
			}
			e.now.Store(newSet(rules, nil))
			close(e.loaded)
			list := make([]*message.Message, n)
			for i := range list {
				list[i] = componenttest.Message(message.Subject(fmt.Sprintf("device.d-1.kind-%d.telemetry", i)), "d-1", `{"celsius":31.5,"pressure":1013,"at":"2026-11-28T10:00:00Z"}`)
			}
			tx := &sayings{}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if err := e.Handle(b.Context(), tx, list[i%n]); err != nil {
					b.Fatal(err)
				}
			}
			if tx.n != b.N {
				b.Errorf("%d messages follow from %d", tx.n, b.N)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}
