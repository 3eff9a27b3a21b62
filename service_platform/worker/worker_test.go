package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/worker"
	"github.com/naru-platform/naru/service_platform/worker/sdk"
)

func TestWorkerKeepsThePromises(t *testing.T) {
	componenttest.Promises(t, componenttest.Case{Spec: worker.Spec})
}

// rig is a platform with workers, reached by HTTP.
type rig struct {
	*componenttest.Rig
	t   *testing.T
	url string
}

func newRig(t *testing.T) *rig {
	r := &rig{Rig: componenttest.New(t), t: t}
	r.Config[worker.Name] = json.RawMessage(`{"allow":["127.0.0.0/8"]}`)
	r.begin()
	return r
}

// begin starts the process.
func (r *rig) begin() {
	r.Start(worker.Spec)
	s := httptest.NewServer(r.Host.Handler(func(*http.Request) bool { return true }))
	r.t.Cleanup(s.Close)
	r.url = s.URL
	r.Running(worker.Name)
}

// ask asks the platform, and gives status and body.
func (r *rig) ask(method, path string, in any) (int, string) {
	r.t.Helper()
	raw, isRaw := in.([]byte)
	if !isRaw && in != nil {
		var err error
		if raw, err = json.Marshal(in); err != nil {
			r.t.Fatal(err)
		}
	}
	q, err := http.NewRequest(method, r.url+path, bytes.NewReader(raw))
	if err != nil {
		r.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// add adds a worker and waits until it runs.
func (r *rig) add(rec worker.Record) {
	r.t.Helper()
	if code, body := r.ask("PUT", "/api/v1/workers/"+rec.Name, rec); code != 200 {
		r.t.Fatalf("add %s: %d %s", rec.Name, code, body)
	}
	r.ready(rec.Name)
}

// ready waits until a worker hears what is said.
func (r *rig) ready(name string) {
	r.t.Helper()
	var s worker.Shown
	r.Until(func() bool {
		s = r.shown(name)
		return s.State == "running" || s.State == "no_instances"
	}, func() string { return fmt.Sprintf("%s is %q (%s)", name, s.State, s.Detail) })
}

func (r *rig) shown(name string) (s worker.Shown) {
	r.t.Helper()
	if code, body := r.ask("GET", "/api/v1/workers/"+name, nil); code == 200 {
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			r.t.Fatal(err)
		}
	}
	return s
}

// state waits until a worker is in a state.
func (r *rig) state(name, want string) worker.Shown {
	r.t.Helper()
	var s worker.Shown
	r.Until(func() bool { s = r.shown(name); return s.State == want }, func() string { return fmt.Sprintf("%s is %s (%s); want %s", name, s.State, s.Detail, want) })
	return s
}

func (r *rig) settled(name string) component.Report {
	r.t.Helper()
	return r.Settled(worker.Name+"/"+name, message.Device)
}

func telemetry(device, data string) *message.Message {
	return componenttest.Message(message.NewSubject("device", device, "telemetry"), device, data)
}

var hears = []message.Pattern{"device.*.telemetry"}

// service is a worker of kind http.
func service(t *testing.T, f http.HandlerFunc) string {
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s.URL
}

// counts are things that happened, by name, from any goroutine.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counts) add(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[name]++
	return c.n[name]
}

func (c *counts) of(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[name]
}

func TestWhatAnHTTPWorkerAnswersFollowsFromTheMessage(t *testing.T) {
	r := newRig(t)
	var seen counts
	r.add(worker.Record{Name: "hot", Hears: hears, URL: service(t, func(w http.ResponseWriter, q *http.Request) {
		seen.add(q.Header.Get("Idempotency-Key") + " " + q.Header.Get("ce-subject") + " " + q.Header.Get("ce-naruattempt"))
		w.Header().Set("Content-Type", "application/cloudevents+json")
		fmt.Fprintf(w, `{"specversion":"1.0","id":"1","source":"hot","type":"alert","subject":"data_platform.alert.%s","data":{"hot":true}}`, q.Header.Get("ce-narudevice"))
	})})
	m := telemetry("d-1", `{"celsius":31}`)
	r.Say(m, componenttest.Message("service_platform.worker.hot.invoke", "d-2", `{}`))
	r.settled("hot")
	r.Settled(worker.Name+"/hot", message.ServicePlatform)
	if seen.of(m.ID.String()+" device.d-1.telemetry 1") != 1 {
		t.Errorf("it was given %v", seen.n)
	}
	r.Until(func() bool { return len(r.Said(worker.Name+"/hot")) == 2 }, func() string { return "what follows is not said" })
	for _, s := range r.Said(worker.Name + "/hot") {
		if s.Subject == "data_platform.alert.d-1" && (s.QoS != 1 || s.Cause != m.ID || s.Trace.ID != m.Trace.ID || s.Device != "d-1" || string(s.Data) != `{"hot":true}`) {
			t.Errorf("it does not follow from its cause: %+v", s)
		}
	}
}

func TestEachAnswerOfAWorkerIsAFate(t *testing.T) {
	r := newRig(t)
	var tries counts
	r.add(worker.Record{Name: "moody", Hears: hears, Attempts: 3, Timeout: "2s", URL: service(t, func(w http.ResponseWriter, q *http.Request) {
		data, _ := io.ReadAll(q.Body) // what there is
		n := tries.add(string(data) + " " + q.Header.Get("Idempotency-Key"))
		switch string(data) {
		case "refuses":
			http.Error(w, "no such sensor", http.StatusUnprocessableEntity)
		case "garbage":
			fmt.Fprint(w, "<html>what?</html>")
		case "forged":
			w.Header().Set("Content-Type", "application/cloudevents+json")
			fmt.Fprint(w, `{"specversion":"1.0","id":"1","source":"x","type":"x","subject":"operator.alarm.x"}`)
		case "hangs":
			<-q.Context().Done()
		case "crashes":
			panic(http.ErrAbortHandler)
		case "later":
			if n < 3 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})})
	want := map[string]message.Reason{"refuses": message.ReceiverRefused, "garbage": message.NotDecodable, "forged": message.Undeclared, "hangs": message.RetriesExhausted, "crashes": message.RetriesExhausted}
	ids := map[message.ID]string{}
	for _, data := range []string{"refuses", "garbage", "forged", "hangs", "crashes", "later", "fine"} {
		m := telemetry(data, data)
		ids[m.ID] = data
		r.Say(m, telemetry(data, "fine")) // and the next of its device goes on
	}
	rep := r.settled("moody")
	if rep.Outcomes[component.Dead].Count != 5 || rep.Outcomes[component.Handled].Count != 9 {
		t.Errorf("the outcomes are %+v", rep.Outcomes)
	}
	letters, dead := r.Buried(worker.Name+"/moody", 5)
	for i, d := range dead {
		data := ids[letters[i].Cause]
		if d.Reason != want[data] {
			t.Errorf("%s died of %s (%s); want %s", data, d.Reason, d.Detail, want[data])
		}
	}
	for id, data := range ids {
		n := map[string]int{"hangs": 3, "crashes": 3, "later": 3}[data]
		if got := tries.of(data + " " + id.String()); got != max(n, 1) {
			t.Errorf("%s was given %d times with the same key; want %d", data, got, max(n, 1))
		}
	}
	s := r.shown("moody")
	if s.Run == nil || s.Run.Errors["timeout"] == 0 || s.Run.Errors["receiver_refused"] == 0 || s.Dead != 5 {
		r.Until(func() bool {
			s = r.shown("moody")
			return s.Run != nil && s.Run.Errors["timeout"] == 3 && s.Run.Errors["receiver_refused"] == 1 && s.Run.P99 > 0
		},
			func() string { return fmt.Sprintf("it is told as %+v", s.Run) })
	}
}

func TestAWorkerThatIsDownLosesNothingAndHoldsUpNoOther(t *testing.T) {
	r := newRig(t)
	var down, up counts
	var well bool
	var mu sync.Mutex
	r.add(worker.Record{Name: "down", Hears: hears, Attempts: 100, URL: service(t, func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if !well {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		down.add(q.Header.Get("Idempotency-Key"))
	})})
	r.add(worker.Record{Name: "up", Hears: hears, URL: service(t, func(_ http.ResponseWriter, q *http.Request) { up.add(q.Header.Get("Idempotency-Key")) })})
	for i := range 60 {
		r.Say(telemetry(fmt.Sprint("d", i%20), fmt.Sprint(i)))
	}
	r.settled("up")
	if s := r.state("down", "breaker_open"); !strings.Contains(s.Detail, "answered 500") || strings.Count(s.Detail, "fail since") != 1 {
		t.Errorf("of one that answers 500 it is said: %s", s.Detail)
	}
	mu.Lock()
	well = true
	mu.Unlock()
	r.settled("down")
	for name, c := range map[string]*counts{"down": &down, "up": &up} {
		if len(c.n) != 60 {
			t.Errorf("%s handled %d messages", name, len(c.n))
		}
	}
	r.state("down", "running")
}

// Three messages that the worker never survives are enough to open its breaker. They die after their attempts, and the others,
// said behind them, are handled before.
func TestMessagesThatAreToBlameDoNotKeepTheBreakerOpen(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	var handled []string
	r.add(worker.Record{Name: "fragile", Hears: hears, Attempts: 5, Concurrency: 2, URL: service(t, func(w http.ResponseWriter, q *http.Request) {
		data, _ := io.ReadAll(q.Body) // what there is
		if string(data) == "poison" {
			panic(http.ErrAbortHandler)
		}
		mu.Lock()
		defer mu.Unlock()
		handled = append(handled, string(data))
		w.WriteHeader(http.StatusNoContent)
	})})
	for i := range 3 {
		r.Say(telemetry(fmt.Sprint("p-", i), "poison"), telemetry(fmt.Sprint("p-", i), "behind"))
	}
	r.state("fragile", "breaker_open")
	for i := range 5 {
		r.Say(telemetry(fmt.Sprint("d-", i), "fine"))
	}
	rep := r.settled("fragile")
	if rep.Outcomes[component.Dead].Count != 3 || rep.Outcomes[component.Handled].Count != 8 {
		t.Errorf("the outcomes are %+v", rep.Outcomes)
	}
	if !slices.Equal(handled[:5], []string{"fine", "fine", "fine", "fine", "fine"}) {
		t.Errorf("it handled %v", handled)
	}
	r.Buried(worker.Name+"/fragile", 3)
}

func TestAPausedWorkerWaitsAndARemovedOneIsForgotten(t *testing.T) {
	r := newRig(t)
	var seen counts
	rec := worker.Record{Name: "w", Hears: hears, Headers: map[string]string{"Authorization": "Bearer hush"}, URL: service(t, func(_ http.ResponseWriter, q *http.Request) {
		if q.URL.RawQuery == "code=hush&x" {
			seen.add(q.Header.Get("Authorization"))
		}
	}) + "/?code=hush&x"}
	r.add(rec)
	known := names.NewKnown(r.Bus, names.Workers, time.Now)
	r.Until(func() bool { return known.Check(t.Context(), "w") == nil }, func() string { return "rules are not told that it is there" })
	if code, _ := r.ask("POST", "/api/v1/workers/w/pause?by=kim&why=lunch", nil); code != 200 {
		t.Fatal(code)
	}
	r.state("w", "paused")
	r.Say(telemetry("d", "1"))
	r.Until(func() bool { return r.shown("w").Behind == 1 }, func() string { return "nothing waits" })
	if code, body := r.ask("DELETE", "/api/v1/workers/w", nil); code != 409 || !strings.Contains(body, "force") {
		t.Errorf("a worker with a message before it is removed: %d %s", code, body)
	}
	r.Stop()
	r.begin() // it stays paused
	r.state("w", "paused")
	if seen.of("Bearer hush") != 0 {
		t.Error("it is paused and was called")
	}
	_, body := r.ask("GET", "/api/v1/workers/w", nil)
	if strings.Contains(body, "hush") || !strings.Contains(body, "?code=(hidden)\\u0026(hidden)") || !strings.Contains(body, "Authorization") || !strings.Contains(body, `"why":"lunch"`) {
		t.Errorf("it is shown as %s", body)
	}
	r.ask("POST", "/api/v1/workers/w/resume", nil)
	r.settled("w")
	if seen.of("Bearer hush") != 1 {
		t.Errorf("it was called %v", seen.n)
	}
	r.ask("POST", "/api/v1/workers/w/pause", nil)
	r.Say(telemetry("d", "2"))
	r.Until(func() bool { return r.shown("w").Behind == 1 }, func() string { return "nothing waits" })
	if code, body := r.ask("DELETE", "/api/v1/workers/w?force=true", nil); code != 200 {
		t.Fatalf("remove it: %d %s", code, body)
	}
	r.Until(func() bool { return !r.Host.Peers().Forgotten()[worker.Name+"/w"].IsZero() }, func() string { return "it is not forgotten" })
	if code, _ := r.ask("GET", "/api/v1/workers/w", nil); code != 404 {
		t.Errorf("it is there: %d", code)
	}
	r.Until(func() bool { code, _ := r.ask("PUT", "/api/v1/workers/w", rec); return code == 200 }, func() string { return "it cannot be added again" })
	r.ready("w")
	r.Say(telemetry("d", "3"))
	r.settled("w")
	if seen.of("Bearer hush") != 2 {
		t.Errorf("begun anew it was called %v: the message of the one before is nobody's", seen.n)
	}
}

func TestARecordIsRefusedWithThePlace(t *testing.T) {
	r := newRig(t)
	for want, rec := range map[string]any{
		"small letters": worker.Record{Name: "Hot"},
		"http://":       worker.Record{Name: "a", URL: "ftp://x"},
		"timeout":       worker.Record{Name: "a", Timeout: "1 minute"},
		"concurrency":   worker.Record{Name: "a", Concurrency: -1},
		"hears":         worker.Record{Name: "a", Hears: []message.Pattern{"device..x"}},
		"which workers": worker.Record{Name: "a", Hears: []message.Pattern{"$aws.>"}},
		"of kind http":  worker.Record{Name: "a", Kind: "sdk", URL: "http://x"},
		"naru sets it":  worker.Record{Name: "a", URL: "http://x", Headers: map[string]string{"Ce-Id": "1"}},
		"unknown field": map[string]any{"name": "a", "urll": "x"},
	} {
		name := "a"
		if x, ok := rec.(worker.Record); ok {
			name = x.Name
		}
		if code, body := r.ask("PUT", "/api/v1/workers/"+name, rec); code != 400 || !strings.Contains(body, want) {
			t.Errorf("%+v: %d %s; want %q", rec, code, body, want)
		}
	}
}

func TestACallIsAnsweredInTimeOrNotAtAll(t *testing.T) {
	r := newRig(t)
	release := make(chan struct{})
	defer close(release)
	r.add(worker.Record{Name: "sum", URL: service(t, func(w http.ResponseWriter, q *http.Request) {
		data, _ := io.ReadAll(q.Body) // what there is
		switch string(data) {
		case "slow":
			select {
			case <-release:
			case <-q.Context().Done():
			}
		case "bad":
			http.Error(w, "no numbers", http.StatusBadRequest)
		default:
			w.Header().Set("Content-Type", "text/plain")
			fmt.Fprintf(w, "sum of %s", data)
		}
	})})
	for data, want := range map[string]struct {
		timeout string
		code    int
		says    string
	}{"1 2": {"30s", 200, "sum of 1 2"}, "bad": {"30s", 502, "no numbers"}, "slow": {"500ms", 504, "naru trace"}} {
		if code, body := r.ask("POST", "/api/v1/workers/sum/call?timeout="+want.timeout, []byte(data)); code != want.code || !strings.Contains(body, want.says) {
			t.Errorf("%s is answered with %d %s", data, code, body)
		}
	}
	if code, _ := r.ask("POST", "/api/v1/workers/nobody/call", []byte("x")); code != 404 {
		t.Errorf("nobody answers %d", code)
	}
	// By the log: the answer goes where it is wanted, with its correlation.
	m := componenttest.Message("service_platform.worker.sum.invoke", "", "3 4")
	m.ReplyTo, m.Correlation = "data_platform.sums", []byte("c1")
	r.Say(m)
	var got *message.Message
	r.Until(func() bool {
		for _, x := range r.Read(message.DataPlatform) {
			got = x
		}
		return got != nil
	}, func() string { return "no answer is said" })
	if got.Subject != "data_platform.sums" || string(got.Correlation) != "c1" || string(got.Data) != "sum of 3 4" || got.Cause != m.ID {
		t.Errorf("the answer is %+v", got)
	}
}

func TestAnAnswerIsSaidForWorkOnlyAndWhereAWorkerSpeaks(t *testing.T) {
	r := newRig(t)
	var seen counts
	r.add(worker.Record{Name: "w", Hears: hears, URL: service(t, func(w http.ResponseWriter, q *http.Request) {
		seen.add(q.Header.Get("ce-subject"))
		w.Header().Set("Content-Type", "application/cloudevents+json")
		fmt.Fprint(w, `{"specversion":"1.0","id":"1","source":"w","type":"t","subject":"said","data":1}`)
	})})
	heard := telemetry("d-1", "{}") // the broker asks nobody whether its sender may speak there
	heard.ReplyTo = "device.d-2.command.open.c1"
	work := componenttest.Message("service_platform.worker.w.invoke", "", "{}")
	work.ReplyTo = "operator.alarm.x"
	r.Say(heard, work)
	if rep := r.settled("w"); rep.Outcomes[component.Handled].Count != 1 {
		t.Errorf("what it heard is %+v", rep.Outcomes)
	}
	if rep := r.Settled(worker.Name+"/w", message.ServicePlatform); rep.Outcomes[component.Dead].Count != 1 || seen.of("service_platform.worker.w.invoke") != 0 {
		t.Errorf("work whose answer is wanted on %s is %+v, after %v", work.ReplyTo, rep.Outcomes, seen.n)
	}
	r.Until(func() bool { return len(r.Said(worker.Name+"/w")) > 0 }, func() string { return "what follows is not said" })
	for _, m := range r.Said(worker.Name + "/w") {
		if m.Subject == heard.ReplyTo || m.Subject == work.ReplyTo {
			t.Errorf("%s is said", m.Subject)
		}
	}
}

func TestAnEventThatCannotBeReadIsNoAnswer(t *testing.T) {
	r := newRig(t)
	r.add(worker.Record{Name: "w", URL: service(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/cloudevents+json")
		fmt.Fprint(w, `{"specversion":"1.0","id":"1","source":"w","type":"t","subject":"device.*.telemetry","data":1}`)
	})})
	if code, body := r.ask("POST", "/api/v1/workers/w/call", []byte("1")); code != 502 || !strings.Contains(body, "device.*.telemetry") {
		t.Errorf("who waits is answered %d %s; want what is wrong with what should have been said", code, body)
	}
}

// instance runs one; stop ends it in peace.
func (r *rig) instance(name, as string, h sdk.Handler) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- sdk.Run(ctx, name, h, sdk.Options{URLs: []string{r.url}, Token: "x", Name: as, Concurrency: 4})
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				r.t.Error(err)
			}
		})
	}
	r.t.Cleanup(stop)
	return stop
}

func TestInstancesShareDevicesTakeOverAndGiveBack(t *testing.T) {
	r := newRig(t)
	r.add(worker.Record{Name: "team", Hears: hears, Concurrency: 64})
	r.state("team", "no_instances")
	var mu sync.Mutex
	by := map[string]map[string]bool{} // device -> instances
	last := map[string]int{}
	var wrong []string
	handle := func(as string) sdk.Handler {
		return func(_ context.Context, c *sdk.Call) error {
			n := 0
			fmt.Sscan(string(c.Message.Data), &n)
			mu.Lock()
			defer mu.Unlock()
			if by[c.Message.Device] == nil {
				by[c.Message.Device] = map[string]bool{}
			}
			by[c.Message.Device][as] = true
			if n < last[c.Message.Device] { // the last one is given again where an instance is not heard in time
				wrong = append(wrong, fmt.Sprintf("%s: %d after %d", c.Message.Device, n, last[c.Message.Device]))
			}
			last[c.Message.Device] = n
			return c.Say("data_platform.seen."+c.Message.Device, c.Message.Data)
		}
	}
	instances := func(n int) {
		t.Helper()
		r.Until(func() bool { s := r.shown("team"); return s.Run != nil && len(s.Run.Instances) == n }, func() string { return fmt.Sprintf("want %d instances", n) })
	}
	sent := 0
	round := func() (who map[string]int) {
		t.Helper()
		mu.Lock()
		clear(by)
		mu.Unlock()
		for range 3 {
			sent++
			for d := range 24 {
				r.Say(telemetry(fmt.Sprint("d", d), fmt.Sprint(sent)))
			}
		}
		r.settled("team")
		mu.Lock()
		defer mu.Unlock()
		who = map[string]int{}
		for d, is := range by {
			if len(is) != 1 {
				t.Errorf("%s went to %v", d, slices.Sorted(maps.Keys(is)))
			}
			for i := range is {
				who[i]++
			}
		}
		return who
	}
	r.instance("team", "a", handle("a"))
	instances(1)
	if who := round(); who["a"] != 24 {
		t.Errorf("one instance has %v", who)
	}
	stop := r.instance("team", "b", handle("b"))
	instances(2)
	if who := round(); who["a"] == 0 || who["b"] == 0 {
		t.Errorf("two instances have %v", who)
	}
	stop()
	instances(1)
	if who := round(); who["a"] != 24 {
		t.Errorf("one gave back, and the other has %v", who)
	}
	if len(wrong) > 0 {
		t.Errorf("out of order: %s", strings.Join(wrong, "; "))
	}
	r.Until(func() bool { return len(r.Said(worker.Name+"/team")) == sent*24 }, func() string {
		return fmt.Sprintf("%d messages are said; want %d", len(r.Said(worker.Name+"/team")), sent*24)
	})
}

func TestAnSDKWorkersEndsAreFates(t *testing.T) {
	r := newRig(t)
	r.add(worker.Record{Name: "w", Hears: hears, Attempts: 2})
	var tries counts
	r.instance("w", "a", func(ctx context.Context, c *sdk.Call) error {
		data := string(c.Message.Data)
		n := tries.add(data)
		switch data {
		case "reject":
			return sdk.Reject(fmt.Errorf("never"))
		case "skip":
			return sdk.ErrNotMatched
		case "panic":
			panic("a bug")
		case "flaky":
			if n == 1 {
				return sdk.After(time.Millisecond, fmt.Errorf("not yet"))
			}
		case "forged":
			return c.Say("device.d.presence", nil)
		case "ask":
			c.Reply("text/plain", []byte("answer to "+c.Message.ID))
		}
		return nil
	})
	for _, data := range []string{"reject", "skip", "panic", "flaky", "forged", "fine"} {
		r.Say(telemetry(data, data))
	}
	rep := r.settled("w")
	if rep.Outcomes[component.Handled].Count != 2 || rep.Outcomes[component.NotMatched].Count != 1 || rep.Outcomes[component.Dead].Count != 3 || tries.of("panic") != 2 {
		t.Errorf("outcomes %+v; %v", rep.Outcomes, tries.n)
	}
	if s := r.shown("w"); s.Handled != 2 || s.NotMatched != 1 || s.Dead != 3 {
		t.Errorf("it is shown with %d handled, %d that were no concern of it, %d dead", s.Handled, s.NotMatched, s.Dead)
	}
	if code, body := r.ask("POST", "/api/v1/workers/w/call", []byte("ask")); code != 200 || !strings.HasPrefix(body, "answer to ") {
		t.Errorf("a call is answered with %d %s", code, body)
	}
	if err := sdk.Run(t.Context(), "nobody", func(context.Context, *sdk.Call) error { return nil }, sdk.Options{URLs: []string{r.url}}); err == nil || !strings.Contains(err.Error(), "naru worker add") {
		t.Errorf("a worker that is not there is told %v", err)
	}
}

// One message must not take its instance along, and with it what all the others have in their hands.
func TestWhatCannotBeToldOfAMessageIsItsOwnFault(t *testing.T) {
	r := newRig(t)
	r.add(worker.Record{Name: "w", Hears: hears, Attempts: 1})
	r.instance("w", "a", func(_ context.Context, c *sdk.Call) error {
		long := strings.Repeat("\x01", 3<<20)
		switch string(c.Message.Data) {
		case "long error":
			return errors.New(long)
		case "long subject":
			return c.Say(long, nil)
		case "long type":
			return c.SayMessage(sdk.Message{Subject: "x", Type: long})
		case "long answer":
			c.Reply(long, nil)
		case "long all":
			return errors.Join(c.Say(long, nil), errors.New(long))
		case "no time":
			return c.SayMessage(sdk.Message{Subject: "x", Time: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)})
		case "too many":
			for range 1001 {
				if err := c.Say("x", nil); err != nil {
					return err
				}
			}
		}
		return nil
	})
	id := r.state("w", "running").Run.Instances[0].ID
	bad := []string{"long error", "long subject", "long type", "long answer", "long all", "no time", "too many"}
	for i, data := range append(bad, "fine") {
		r.Say(telemetry(fmt.Sprint("d-", i), data))
	}
	rep := r.settled("w")
	if rep.Outcomes[component.Handled].Count != 1 || rep.Outcomes[component.Dead].Count != uint64(len(bad)) {
		t.Errorf("outcomes %+v; want one handled, and %d dead", rep.Outcomes, len(bad))
	}
	if s := r.shown("w"); len(s.Run.Instances) != 1 || s.Run.Instances[0].ID != id || s.Run.Errors["instance_lost"]+s.Run.Errors["timeout"] > 0 {
		t.Errorf("the instance was lost: %+v", s.Run)
	}
}

func TestAnInstanceOutlivesThePlatform(t *testing.T) {
	r := newRig(t)
	r.add(worker.Record{Name: "w", Hears: hears, Attempts: 50})
	var seen counts
	h := func(_ context.Context, c *sdk.Call) error {
		seen.add(c.Message.ID)
		return c.Say("data_platform.seen", c.Message.Data)
	}
	gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, q)
	}))
	defer gate.Close()
	_ = gate
	stop := r.instance("w", "a", h)
	for i := range 20 {
		r.Say(telemetry(fmt.Sprint("d", i%5), fmt.Sprint(i)))
	}
	r.settled("w")
	stop()
	if len(seen.n) != 20 {
		t.Errorf("%d were handled", len(seen.n))
	}
}
