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

// ruled is an engine with rules in force, of their documents.
func ruled(b *testing.B, documents ...[]byte) *Engine {
	b.Helper()
	e, err := build(component.Env{Node: "n1"}, Config{RulesMax: len(documents), BacktestRate: 1})
	if err != nil {
		b.Fatal(err)
	}
	var rules []*live
	for _, raw := range documents {
		d, err := Parse(raw)
		if err != nil {
			b.Fatal(err)
		}
		r, err := Compile(d, 1, "n1")
		if err != nil {
			b.Fatal(err)
		}
		rules = append(rules, &live{r, e.counts.of(d.Name)})
	}
	e.now.Store(newSet(rules, nil))
	close(e.loaded)
	return e
}

// BenchmarkRules has one rule take each message, among 1, 100 and 1,000 that hear disjoint topics: what a message costs follows the rules
// that hear it, and not the rules there are. It is the engine's own work, without log and disk.
//
//	go test -run '^$' -bench Rules -benchtime 100000x -count 5 ./service_platform/rule
func BenchmarkRules(b *testing.B) {
	for _, c := range []struct{ rules, heard int }{{1, 1}, {100, 100}, {1000, 1000}, {100, 1}, {1000, 1}} {
		b.Run(fmt.Sprintf("%d-of-%d", c.heard, c.rules), func(b *testing.B) {
			documents := make([][]byte, c.rules)
			for i := range documents {
				documents[i] = fmt.Appendf(nil, `{"name": "rule-%d", "sql": "SELECT celsius, topic(2) AS device FROM 'device/+/kind-%d/telemetry' WHERE celsius > 30",
					"actions": [{"republish": {"topic": "device/${topic(2)}/hot"}}]}`, i, i)
			}
			e := ruled(b, documents...)
			list := make([]*message.Message, c.heard)
			for i := range list {
				list[i] = componenttest.Message(message.Subject(fmt.Sprintf("device.d-1.kind-%d.telemetry", i)), "d-1", `{"celsius":31.5,"pressure":1013,"at":"2026-11-28T10:00:00Z"}`)
			}
			tx := &sayings{}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if err := e.Handle(b.Context(), tx, list[i%len(list)]); err != nil {
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

// BenchmarkRulesOfOneTopic has 300 rules hear each message, as eKuiper's own benchmark of many rules has it
// (https://github.com/lf-edge/ekuiper/tree/master/test/benchmark/multiple_rules). There all rules match, and one in ten says something; a rule of
// naru's says something where it matches, so nine in ten read the same and do not match.
//
//	go test -run '^$' -bench RulesOfOneTopic -benchtime 2000x -count 5 ./service_platform/rule
func BenchmarkRulesOfOneTopic(b *testing.B) {
	const rules = 300
	documents := make([][]byte, rules)
	for i := range documents {
		limit := 20
		if i%10 > 0 {
			limit = 2000
		}
		documents[i] = fmt.Appendf(nil, `{"name": "rule-%d", "sql": "SELECT temperature FROM 'rawdata' WHERE temperature > %d", "actions": [{"republish": {"topic": "demoSink"}}]}`, i, limit)
	}
	e := ruled(b, documents...)
	m, tx := componenttest.Message("rawdata", "d-1", `{"temperature": 53, "humidity": 41}`), &sayings{}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := e.Handle(b.Context(), tx, m); err != nil {
			b.Fatal(err)
		}
	}
	if tx.n != b.N*rules/10 {
		b.Errorf("%d messages follow from %d", tx.n, b.N)
	}
	b.ReportMetric(float64(b.N*rules)/b.Elapsed().Seconds(), "rules/s")
}
