package deadletter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// rig is the component with what it hears and says in a test's hands.
type rig struct {
	*componenttest.Rig
	t *testing.T
}

func start(t *testing.T, r *componenttest.Rig, more ...component.Spec) *rig {
	t.Helper()
	r.Start(append([]component.Spec{Spec}, more...)...)
	r.Running(Name)
	return &rig{r, t}
}

// ask asks over HTTP, and reads the answer into out unless it is nil.
func (r *rig) ask(method, path string, body, out any) int {
	r.t.Helper()
	raw, ok := body.([]byte)
	if !ok && body != nil {
		raw, _ = json.Marshal(body) // of the test's own making
	}
	w := httptest.NewRecorder()
	r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest(method, path, bytes.NewReader(raw)))
	if out != nil && w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			r.t.Fatalf("%s %s: %v: %s", method, path, err, w.Body)
		}
	}
	if w.Code != http.StatusOK {
		r.t.Logf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
	return w.Code
}

// die has a message die at a component, and gives the letter's message.
func die(component, device, data, detail string, reason message.Reason) *message.Message {
	m := componenttest.Message(message.NewSubject("device", device, "telemetry"), device, data)
	d := operator.Dead{Reason: reason, Detail: detail, Component: component, Attempts: 1, First: time.Now(), Last: time.Now(), Log: "device", Position: "1/0/1/0",
		Original: message.AppendRecord(nil, m)}
	raw, _ := json.Marshal(d) // plain values
	letter := componenttest.Message(operator.DeadSubject(component), device, string(raw))
	letter.Trace, letter.Cause = m.Trace, m.ID
	return letter
}

func (r *rig) list(query string) (l List) {
	r.t.Helper()
	if code := r.ask("GET", "/api/v1/dead?"+query, nil, &l); code != 200 {
		r.t.Fatalf("list %s: %d", query, code)
	}
	return l
}

func (r *rig) heard(n int64) {
	r.t.Helper()
	r.Until(func() bool { return r.list("").totals.Letters == n }, func() string { return fmt.Sprintf("want %d letters, there are %d", n, r.list("").totals.Letters) })
}

func TestLettersThatLookAlikeAreAGroup(t *testing.T) {
	r := start(t, componenttest.New(t))
	for i := range 20 {
		r.Say(die("service_platform.twin", fmt.Sprintf("d-%d", i), "{}", fmt.Sprintf(`schema_mismatch: /celsius of "d-%d": want number, got %d`, i, i*1000), message.SchemaMismatch))
	}
	r.Say(die("service_platform.twin", "d-1", "{}", "panic: index out of range [7]\ngoroutine 12", message.HandlerPanic))
	r.heard(21)
	var g struct {
		Groups []Group
		totals
	}
	r.ask("GET", "/api/v1/dead/groups", nil, &g)
	if len(g.Groups) != 2 || g.Groups[0].Count != 20 || g.Groups[1].Count != 1 || g.Letters != 21 {
		t.Fatalf("groups: %+v", g)
	}
	if want := `schema_mismatch: /celsius of "…": want number, got #`; g.Groups[0].Shape != want {
		t.Errorf("the shape is %q; want %q", g.Groups[0].Shape, want)
	}
	if g.Groups[0].Owner != "device" || g.Groups[0].Kind != "device.*.telemetry" {
		t.Errorf("owner %q, kind %q", g.Groups[0].Owner, g.Groups[0].Kind)
	}
	if l := r.list("group=" + g.Groups[0].ID + "&limit=7"); len(l.Letters) != 7 || l.Next == "" {
		t.Errorf("a page of the group has %d letters, next %q", len(l.Letters), l.Next)
	} else if rest := r.list("group=" + g.Groups[0].ID + "&before=" + l.Next); len(rest.Letters) != 13 || rest.Next != "" {
		t.Errorf("the rest has %d letters, next %q", len(rest.Letters), rest.Next)
	}
}

func TestFiltersSelect(t *testing.T) {
	r := start(t, componenttest.New(t))
	for i := range 6 {
		r.Say(die([]string{"service_platform.twin", "service_platform.rule"}[i%2], fmt.Sprintf("d-%d", i%3), "{}", fmt.Sprint("broken ", i), message.SchemaMismatch))
	}
	r.heard(6)
	for query, want := range map[string]int{
		"": 6, "component=service_platform.rule": 3, "device=d-0": 2, "device=d-0&component=service_platform.twin": 1, "text=broken+4": 1, "reason=schema_mismatch": 6,
		"reason=NARU-405": 0, "subject=device.d-1.*": 2, "owner=device": 6, "since=2001-01-01T00:00:00Z": 6, "until=2001-01-01T00:00:00Z": 0,
	} {
		if got := len(r.list(query).Letters); got != want {
			t.Errorf("%q selects %d letters; want %d", query, got, want)
		}
	}
	id := r.list("text=broken+3").Letters[0].ID
	if l := r.list("id=" + id.String()); len(l.Letters) != 1 || l.Letters[0].ID != id {
		t.Errorf("by its id %+v is found", l)
	}
	for _, query := range []string{"reason=nonsense", "since=yesterday", "limit=0", "id=x", "subject=a..b", "before=x"} {
		if code := r.ask("GET", "/api/v1/dead?"+query, nil, nil); code != http.StatusBadRequest {
			t.Errorf("%q is answered with %d", query, code)
		}
	}
}

func TestLetterKeepsTheMessageUntouched(t *testing.T) {
	r := start(t, componenttest.New(t))
	letter := die("service_platform.twin", "d-1", `{"celsius":"warm"}`, "schema_mismatch: /celsius", message.SchemaMismatch)
	r.Say(letter)
	r.heard(1)
	var s Shown
	if code := r.ask("GET", "/api/v1/dead/letters/"+letter.ID.String(), nil, &s); code != 200 || s.Data != `{"celsius":"warm"}` || s.Message != letter.Cause || s.Trace != letter.Trace.ID {
		t.Fatalf("the letter is shown as %d %+v", code, s)
	}
	if code := r.ask("PUT", "/api/v1/dead/letters/"+letter.ID.String()+"/data?by=kim", []byte(`{"celsius":21}`), &s); code != 200 || s.EditedData != `{"celsius":21}` || s.Data != `{"celsius":"warm"}` {
		t.Fatalf("edited it is shown as %d %+v", code, s)
	}
	if code := r.ask("PUT", "/api/v1/dead/letters/"+letter.ID.String()+"/data", []byte(`{}`), nil); code != http.StatusBadRequest {
		t.Errorf("an edit by nobody is answered with %d", code)
	}
	var entries []Entry
	if r.ask("GET", "/api/v1/dead/audit", nil, &entries); len(entries) != 1 || entries[0].By != "kim" || entries[0].What != "edit" || entries[0].Letter != letter.ID {
		t.Errorf("the audit has %+v", entries)
	}
}

// taker is a consumer whose handler gives what result does.
func taker(result func(m *message.Message) error) component.Spec {
	return component.Define(component.Spec{Name: "operator.taker", Doc: "handles what it can", Hears: []message.Pattern{"device.>"},
		State: component.Local}, struct{}{}, func(component.Env, struct{}) (*component.Part, error) {
		return &component.Part{Handle: func(_ context.Context, _ component.Tx, m *message.Message) error { return result(m) }}, nil
	})
}

// broken lets every message die, until it is mended.
type broken struct {
	mended bool // changed while nothing is handled
	after  func(m *message.Message) error
}

func (b *broken) handle(m *message.Message) error {
	if !b.mended {
		return message.Rejectf(message.HandlerError, "the door of %q is open", m.Device)
	}
	return b.after(m)
}

// dies has n messages die at the taker.
func (r *rig) dies(n int) {
	r.t.Helper()
	for i := range n {
		r.Say(componenttest.Message("device.d.telemetry", fmt.Sprint("d-", i), "{}"))
	}
	r.heard(int64(n))
}

func (r *rig) job(id message.ID) (j JobShown) {
	r.t.Helper()
	if code := r.ask("GET", "/api/v1/dead/jobs/"+id.String()+"?limit=1000", nil, &j); code != 200 {
		r.t.Fatalf("job %s: %d", id, code)
	}
	return j
}

func (r *rig) ended(id message.ID) JobShown {
	r.t.Helper()
	r.Until(func() bool { return r.job(id).State != Running }, func() string { return fmt.Sprintf("the job does not end: %+v", r.job(id)) })
	return r.job(id)
}

func TestJobBringsLettersBackToWhereTheyDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := componenttest.New(t)
		traces := map[message.ID]message.TraceID{}
		b := &broken{after: func(m *message.Message) error { traces[m.ID] = m.Trace.ID; return nil }}
		r := start(t, c, taker(b.handle))
		r.dies(30)
		r.Say(die("service_platform.rule", "d-1", "{}", "broken", message.SchemaMismatch))
		r.heard(31)
		before := r.Settled("operator.taker", message.Device)
		b.mended = true
		var j Job
		if code := r.ask("POST", "/api/v1/dead/jobs", map[string]any{"kind": "retry", "by": "kim", "rate": 1000, "canary": 3, "filter": Filter{Component: "operator.taker"}}, &j); code != 200 {
			t.Fatalf("begin: %d", code)
		}
		e := r.ended(j.ID)
		if e.State != Done || e.Handled != 30 || e.Selected != 30 || e.Sent != 30 || e.Waiting != 0 || len(e.Results) != 30 {
			t.Errorf("the job ended as %+v", e.Job)
		}
		after := r.Settled("operator.taker", message.Device)
		if before.Outcomes[component.Dead].Count != 30 || after.Outcomes[component.Dead].Count != 0 || after.Outcomes[component.Handled] != before.Outcomes[component.Dead] {
			t.Errorf("the account was %+v, and is %+v", before.Outcomes, after.Outcomes)
		}
		for _, m := range r.Read(message.Device) {
			if traces[m.ID] != m.Trace.ID {
				t.Errorf("message %s of trace %s was handled with trace %s", m.ID, m.Trace.ID, traces[m.ID])
			}
		}
		if l := r.list(""); l.totals.Letters != 1 || l.Letters[0].Component != "service_platform.rule" || l.totals.Groups != 1 {
			t.Errorf("%+v are left", l)
		}
		c.Close()
	})
}

func TestCanaryThatFailsKeepsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := componenttest.New(t)
		n := 0
		b := &broken{after: func(*message.Message) error {
			if n++; n == 2 {
				return message.Rejectf(message.HandlerError, "still open")
			}
			return nil
		}}
		r := start(t, c, taker(b.handle))
		r.dies(20)
		b.mended = true
		var j Job
		r.ask("POST", "/api/v1/dead/jobs?all=true", map[string]any{"kind": "retry", "by": "kim", "rate": 1000, "canary": 3}, &j)
		e := r.ended(j.ID)
		r.Until(func() bool { e = r.job(j.ID); return e.Waiting == 0 }, func() string { return fmt.Sprintf("%+v", e.Job) })
		if e.State != Stopped || e.Sent != 3 || e.Died != 1 || e.Handled != 2 || !strings.Contains(e.Why, ", of the 3 that went first, was not handled: ") || !strings.HasSuffix(e.Why, "; the others stay") {
			t.Errorf("the job ended as %+v", e.Job)
		}
		// 17 were not touched, and one is there again, as a letter of its own.
		r.heard(18)
		if l := r.list("text=still"); len(l.Letters) != 1 {
			t.Errorf("the one that died again is %+v", l.Letters)
		}
		r.Settled("operator.taker", message.Device)
		n = 1 // the next one dies again, and it is the only one
		r.ask("POST", "/api/v1/dead/jobs", map[string]any{"kind": "retry", "by": "kim", "rate": 1000, "canary": 3, "filter": Filter{IDs: []message.ID{r.list("text=still").Letters[0].ID}}}, &j)
		r.ended(j.ID)
		r.Until(func() bool { e = r.job(j.ID); return e.Waiting == 0 }, func() string { return fmt.Sprintf("%+v", e.Job) })
		if e.State != Stopped || strings.Contains(e.Why, "went first") || strings.Contains(e.Why, "others") {
			t.Errorf("the retry of one letter ended as %+v", e.Job)
		}
		c.Close()
	})
}

func TestCancelledJobSendsNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := componenttest.New(t)
		b := &broken{after: func(*message.Message) error { return nil }}
		r := start(t, c, taker(b.handle))
		r.dies(50)
		b.mended = true
		var j Job
		r.ask("POST", "/api/v1/dead/jobs?all=true", map[string]any{"kind": "retry", "by": "kim", "rate": 5, "canary": 0}, &j)
		r.Until(func() bool { return r.job(j.ID).Handled >= 5 }, func() string { return fmt.Sprintf("%+v", r.job(j.ID).Job) })
		if code := r.ask("POST", "/api/v1/dead/jobs/"+j.ID.String()+"/cancel?by=lee", nil, nil); code != 200 {
			t.Fatalf("cancel: %d", code)
		}
		sent := r.job(j.ID).Sent
		if sent > 15 {
			t.Errorf("at 5 a second %d were sent", sent)
		}
		<-time.After(time.Minute)
		if e := r.job(j.ID); e.State != Cancelled || e.Sent != sent || e.Waiting != 0 {
			t.Errorf("a minute later it is %+v", e.Job)
		}
		if code := r.ask("POST", "/api/v1/dead/jobs/"+j.ID.String()+"/cancel?by=lee", nil, nil); code != http.StatusConflict {
			t.Errorf("cancelled again: %d", code)
		}
		r.heard(50 - sent)
		c.Close()
	})
}

func TestJobGoesOnAfterARestartAndSendsEachLetterOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := componenttest.New(t)
		taken := map[message.ID]int{}
		b := &broken{after: func(m *message.Message) error { taken[m.ID]++; return nil }}
		r := start(t, c, taker(b.handle))
		r.dies(40)
		b.mended = true
		var j Job
		r.ask("POST", "/api/v1/dead/jobs?all=true", map[string]any{"kind": "retry", "by": "kim", "rate": 10, "canary": 2}, &j)
		for range 3 {
			sent := r.job(j.ID).Sent
			r.Until(func() bool { return r.job(j.ID).Sent > sent+3 }, func() string { return fmt.Sprintf("%+v", r.job(j.ID).Job) })
			c.FailAfter(1)
			c.Stop()
			r = start(t, c, taker(b.handle))
		}
		<-time.After(time.Minute) // what was delivered and not answered comes again after the queue's AckWait
		if e := r.ended(j.ID); e.State != Done || e.Handled != 40 {
			t.Errorf("it ended as %+v", e.Job)
		}
		if len(taken) != 40 {
			t.Errorf("%d messages were handled", len(taken))
		}
		for id, n := range taken {
			if n != 1 {
				t.Errorf("message %s was handled %d times", id, n)
			}
		}
		r.Settled("operator.taker", message.Device)
		c.Close()
	})
}

func TestLetterOfALostAccountIsNotTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := componenttest.New(t)
		r := start(t, c, taker(func(*message.Message) error { return nil }))
		letter := die("operator.taker", "d-1", "{}", "broken", message.SchemaMismatch)
		r.Say(letter)
		r.heard(1)
		var j Job
		r.ask("POST", "/api/v1/dead/jobs?all=true", map[string]any{"kind": "retry", "by": "kim"}, &j)
		if e := r.ended(j.ID); e.State != Stopped || e.Refused != 1 || e.Results[0].Detail == "" {
			t.Errorf("it ended as %+v", e)
		}
		if l := r.list(""); len(l.Letters) != 1 || l.Letters[0].State != Dead {
			t.Errorf("the letter is %+v", l.Letters)
		}
		c.Close()
	})
}

// Nobody tells what became of a letter whose consumer was removed, before it was sent or since.
func TestLettersOfAConsumerThatIsGoneComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := componenttest.New(t)
		r := start(t, c, taker(func(*message.Message) error { return nil }))
		r.Say(die("service_platform.worker/gone", "d-1", "{}", "broken", message.SchemaMismatch), die("service_platform.worker/away", "d-2", "{}", "broken", message.SchemaMismatch))
		r.heard(2)
		homes, err := c.Bus.Table(t.Context(), "naru_homes", bus.TableOptions{})
		if err == nil {
			_, err = homes.Put(t.Context(), "service_platform.worker/gone", []byte("\x00"))
		}
		if err == nil {
			_, err = homes.Put(t.Context(), "service_platform.worker/away", []byte("n9"))
		}
		if err != nil {
			t.Fatal(err)
		}
		var j, k Job
		r.ask("POST", "/api/v1/dead/jobs", map[string]any{"kind": "retry", "by": "kim", "filter": map[string]any{"component": "service_platform.worker/gone"}}, &j)
		r.ask("POST", "/api/v1/dead/jobs", map[string]any{"kind": "retry", "by": "kim", "filter": map[string]any{"component": "service_platform.worker/away"}}, &k)
		<-time.After(2 * time.Minute)
		if e := r.job(j.ID); e.State != Stopped || e.Refused != 1 || e.Waiting != 0 {
			t.Errorf("the job ended as %+v", e.Job)
		}
		if e := r.job(k.ID); e.State != Running || e.Waiting != 1 {
			t.Errorf("one whose consumer may come again is %+v", e.Job)
		}
		for _, x := range r.list("").Letters {
			if want := map[bool]string{true: Dead, false: Retrying}[x.Component == "service_platform.worker/gone"]; x.State != want {
				t.Errorf("letter of %s is %s; want %s", x.Component, x.State, want)
			}
		}
		c.Close()
	})
}

func TestDiscardIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := componenttest.New(t)
		r := start(t, c)
		for i := range 10 {
			r.Say(die("service_platform.twin", fmt.Sprint("d-", i%2), "{}", "broken", message.SchemaMismatch))
		}
		r.heard(10)
		if code := r.ask("POST", "/api/v1/dead/jobs", map[string]any{"kind": "discard", "by": "kim"}, nil); code != http.StatusBadRequest {
			t.Errorf("discarding everything without saying so: %d", code)
		}
		var j Job
		r.ask("POST", "/api/v1/dead/jobs", map[string]any{"kind": "discard", "by": "kim", "note": "the lamp was in the lab", "filter": Filter{Device: "d-1"}}, &j)
		if e := r.ended(j.ID); e.State != Done || e.Discarded != 5 || len(e.Results) != 5 || e.Results[0].Result != "discarded" {
			t.Errorf("it ended as %+v", e)
		}
		r.heard(5)
		if code := r.ask("POST", "/api/v1/dead/jobs", map[string]any{"kind": "discard", "by": "kim", "filter": Filter{Device: "d-1"}}, nil); code != http.StatusNotFound {
			t.Errorf("a job of nothing is answered with %d", code)
		}
		c.Close()
	})
}

func TestNothingGoesBeforeAnAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := componenttest.New(t)
		c.Config[Name] = json.RawMessage(`{"max_age":"20m","max_bytes":1048576}`)
		r := start(t, c)
		r.Say(die("service_platform.twin", "d-1", "{}", "broken", message.SchemaMismatch))
		r.heard(1)
		alarms := func() (list []operator.Alarm) {
			for _, m := range r.Read(message.Operator) {
				if m.Subject.Token(1) == "alarm" {
					var a operator.Alarm
					if err := json.Unmarshal(m.Data, &a); err != nil {
						t.Fatal(err)
					}
					list = append(list, a)
				}
			}
			return list
		}
		<-time.After(14 * time.Minute)
		if got := alarms(); len(got) != 0 {
			t.Errorf("after fourteen minutes: %+v", got)
		}
		<-time.After(4 * time.Minute)
		if got := alarms(); len(got) != 1 || got[0].Name != "dead_letters_old" || got[0].Cleared {
			t.Errorf("after eighteen minutes: %+v", got)
		}
		r.heard(1)
		<-time.After(5 * time.Minute)
		r.heard(0)
		<-time.After(2 * time.Minute)
		if got := alarms(); len(got) != 2 || !got[1].Cleared {
			t.Errorf("when it is gone: %+v", got)
		}
		c.Close()
	})
}

func TestSummaryReadsWhatItWrote(t *testing.T) {
	now := time.Now().UTC()
	x := Letter{ID: message.NewID(now), State: Retrying, Reason: message.Loop, Detail: "déjà vu", Component: "a.b", Owner: "o", Attempts: 7, First: now, Last: now, Device: "d", Subject: "device.d.x",
		Message: message.NewID(now), Trace: message.NewTrace(now).ID, Group: "0123456789abcdef", Job: message.NewID(now), Edited: true, Bytes: 99}
	raw := x.encode()
	var y Letter
	if err := y.decode(key(kindSummary, x.ID), raw); err != nil || y != x {
		t.Errorf("read %+v, %v; wrote %+v", y, err, x)
	}
	for n := range len(raw) {
		if err := y.decode(key(kindSummary, x.ID), raw[:n]); err == nil {
			t.Errorf("cut to %d bytes it is read", n)
		}
	}
}

func TestAShapeLeavesOutWhatDiffersAndKeepsWhatTells(t *testing.T) {
	for detail, want := range map[string]string{
		`the worker answered 500 after 31 ms`:                   `the worker answered 500 after # ms`,
		`status 404: no such pump 17`:                           `status 404: no such pump #`,
		`3rd_party.legacy.t1 is nobody's`:                       `3rd_party.legacy.t# is nobody's`,
		`message 0199f0c2-3b7e-7c55-8d1e-1f2a3b4c5d6e is known`: `message # is known`,
	} {
		if got := shapeOf(detail); got != want {
			t.Errorf("%q has the shape %q; want %q", detail, got, want)
		}
	}
}
