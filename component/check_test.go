package component_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/operator"
)

// contract makes one that wants a number in the field.
func contract(subjects message.Pattern, typ, field string) message.Contract {
	k := message.Contract{Subjects: subjects, Type: typ, Doc: "d", Owner: "o", Route: message.ByLog}
	if field != "" {
		k.Schema = json.RawMessage(`{"required":["` + field + `"],"properties":{"` + field + `":{"type":"number"}}}`)
	}
	return k
}

func checker(t testing.TB, contracts ...message.Contract) *component.Checker {
	t.Helper()
	c, err := message.NewCatalog(contracts...)
	if err != nil {
		t.Fatal(err)
	}
	k, err := component.NewChecker(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestCheckerHoldsToTheMostParticularContract(t *testing.T) {
	k := checker(t,
		contract("device.*.telemetry.>", "any.v1", "any"), contract("device.*.telemetry.engine", "engine.v1", "celsius"),
		contract("device.*.telemetry.engine.raw", "raw.v1", ""), contract("*.status", "status.v1", "up"), contract("device.*.event.*", "event.v1", ""))
	for _, c := range []struct{ subject, data, want string }{
		{"device.d-1.telemetry.engine", `{"celsius":1}`, ""},
		{"device.d-1.telemetry.engine", `{"any":1,"celsius":"x"}`, "schema_mismatch: /celsius: got string, want number (contract engine.v1)"},
		{"device.d-1.telemetry.brake", `{"celsius":1}`, "schema_mismatch: /any: got nothing, want a value: it is required (contract any.v1)"},
		{"device.d-1.telemetry.engine.raw", "\xff\x00", ""},
		{"device.d-1.telemetry", "free", ""},
		{"device.d-1.event.door", "free", ""},
		{"house.status", `{"up":true}`, "schema_mismatch: /up: got boolean, want number (contract status.v1)"},
		{"$SYS.status", `free`, ""},
		{"house.kitchen", `free`, ""},
		{"device.d-1.telemetry.engine", "\x80", "schema_mismatch: not JSON at byte 0: no value begins so (contract engine.v1)"},
		{"device.d-1.telemetry.engine", "", "schema_mismatch: not JSON at byte 0: it ends there (contract engine.v1)"},
	} {
		err := k.Check(&message.Message{Subject: message.Subject(c.subject), Data: []byte(c.data)})
		if got := errorText(err); got != c.want {
			t.Errorf("%s %q\n got: %s\nwant: %s", c.subject, c.data, got, c.want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestCheckerNamesTheContractWhoseSchemaIsBroken(t *testing.T) {
	k := contract("a.b", "a.v1", "")
	k.Schema = json.RawMessage(`{"type":"numbr"}`)
	c, err := message.NewCatalog(k)
	if err != nil {
		t.Fatal(err)
	}
	_, err = component.NewChecker(c)
	if err == nil || !strings.HasPrefix(err.Error(), `schema of a.v1: /type: got "numbr", want one of`) {
		t.Errorf("got %v", err)
	}
	host := &component.Host{Catalog: c, Dir: t.TempDir(), Node: "n1"}
	if got := host.Run(t.Context()); errorText(got) != errorText(err) {
		t.Errorf("a process with it says %v", got)
	}
}

func TestEveryExampleKeepsItsContract(t *testing.T) {
	k, err := component.NewChecker(catalog.Default())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range catalog.Default().Contracts() {
		if c.Example == nil {
			continue
		}
		subject := message.Subject(strings.ReplaceAll(string(c.Subjects), "*", "x"))
		if err := k.Check(&message.Message{Subject: subject, Data: c.Example}); err != nil {
			t.Errorf("%s: %v", c.Type, err)
		}
		if k.Check(&message.Message{Subject: subject, Data: []byte(`[]`)}) == nil {
			t.Errorf("%s: its schema takes anything", c.Type)
		}
	}
}

func TestFreeMessageCostsNothing(t *testing.T) {
	k, err := component.NewChecker(catalog.Default())
	if err != nil {
		t.Fatal(err)
	}
	m := &message.Message{Subject: "device.d-17.telemetry", Data: []byte("anything")}
	if n := testing.AllocsPerRun(100, func() { _ = k.Check(m) }); n != 0 {
		t.Errorf("it allocates %v times", n)
	}
}

// speaker says what it is told: data that keeps or breaks the contract of an alarm.
func speaker(told chan<- component.Env) component.Spec {
	return component.Define(component.Spec{Name: "service_platform.speaker", Doc: "says what it is told", State: component.Local,
		Hears: []message.Pattern{"device.*.telemetry"}, Says: []message.Pattern{"operator.alarm.*", "device.>"}},
		struct{}{}, func(env component.Env, _ struct{}) (*component.Part, error) {
			return &component.Part{
				Handle: func(_ context.Context, tx component.Tx, m *message.Message) error {
					return tx.Say(&message.Message{Subject: operator.AlarmSubject("a"), Data: m.Data})
				},
				Run: func(ctx context.Context, ready func()) error {
					ready()
					select {
					case told <- env:
					case <-ctx.Done():
						return nil
					}
					<-ctx.Done()
					return nil
				},
			}, nil
		})
}

func TestComponentCannotBreakAContract(t *testing.T) {
	good := `{"name":"a","since":"2026-11-23T03:00:00Z","detail":"d","look":"l","cleared":false}`
	bad := strings.Replace(good, `"a"`, `7`, 1)
	const want = "/name: got number, want string (contract operator.alarm.v1)"
	r := componenttest.New(t)
	told := make(chan component.Env)
	r.Start(speaker(told))
	env := <-told

	// By itself.
	say := func(data string) error {
		return env.Say(t.Context(), &message.Message{Subject: operator.AlarmSubject("a"), Data: []byte(data)})
	}
	if err := say(good); err != nil {
		t.Fatal(err)
	}
	mismatch(t, say(bad), want)
	mismatch(t, env.Check(&message.Message{Subject: operator.AlarmSubject("a"), Data: []byte(bad)}), want)

	// For somebody outside.
	door, err := env.Door(t.Context(), message.Device)
	if err != nil {
		t.Fatal(err)
	}
	presence := &message.Message{Subject: "device.d-1.presence", Device: "d-1", Data: []byte(`{"online":"yes","since":"2026-11-23T03:00:00Z","session":"s","version":1,"node":"n"}`)}
	env.Mint(presence)
	_, err = bus.AppendSync(t.Context(), door, presence)
	mismatch(t, err, "/online: got string, want boolean (contract device.presence.v1)")

	// As a consequence: the message that led to it dies, and says why.
	r.Say(componenttest.Message("device.d-1.telemetry", "d-1", good), componenttest.Message("device.d-1.telemetry", "d-1", bad))
	rep := r.Settled("service_platform.speaker", message.Device)
	if rep.Outcomes[component.Handled].Count != 1 || rep.Outcomes[component.Dead].Count != 1 {
		t.Errorf("the outcomes are %+v", rep.Outcomes)
	}
	var dead []operator.Dead
	var alarms int
	r.Until(func() bool {
		dead, alarms = nil, 0
		for _, m := range r.Read(message.Operator) {
			switch m.Subject {
			case operator.AlarmSubject("a"):
				alarms++
			case operator.DeadSubject("service_platform.speaker"):
				var d operator.Dead
				if err := json.Unmarshal(m.Data, &d); err != nil {
					t.Fatal(err)
				}
				dead = append(dead, d)
			}
		}
		return len(dead) == 1 && alarms == 2
	}, func() string { return "the alarm and the dead letter were not said" })
	if d := dead[0]; d.Reason != message.SchemaMismatch || !strings.Contains(d.Detail, want) || d.Attempts != 1 {
		t.Errorf("the dead letter says %s, %s, after %d attempts", d.Reason, d.Detail, d.Attempts)
	}
}

func mismatch(t *testing.T, err error, want string) {
	t.Helper()
	var r *message.Rejection
	if !errors.As(err, &r) || r.Reason != message.SchemaMismatch || r.Err.Error() != want {
		t.Errorf("got %v; want schema_mismatch: %s", err, want)
	}
}

func BenchmarkCheck(b *testing.B) {
	many := []message.Contract{contract("device.*.telemetry.engine", "engine.v1", "celsius")}
	for i := range 100 {
		name := "x" + string(rune('a'+i/26)) + string(rune('a'+i%26))
		many = append(many, contract(message.Pattern("device.*.telemetry."+name), name, "v"))
	}
	def, err := component.NewChecker(catalog.Default())
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		k       *component.Checker
		subject message.Subject
	}{
		{"free", def, "device.d-17.telemetry"},
		{"one of 101", checker(b, many...), "device.d-17.telemetry.engine"},
		{"free beside 101", checker(b, many...), "device.d-17.telemetry"},
	} {
		m := &message.Message{Subject: c.subject, Data: []byte(`{"seq":7,"kind":"thermometer","celsius":22.29}`)}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = c.k.Check(m)
			}
		})
	}
}

func BenchmarkNewChecker(b *testing.B) {
	for b.Loop() {
		if _, err := component.NewChecker(catalog.Default()); err != nil {
			b.Fatal(err)
		}
	}
}
