package webhook

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// elsewhere is an HTTP server that takes what it is told to take.
type elsewhere struct {
	*httptest.Server
	mu     sync.Mutex
	taken  []string // device and body of what was answered with 2xx, in order
	asked  []*http.Request
	answer func(w http.ResponseWriter, device, body string) int // its status; 204 where nil
}

func newElsewhere(t *testing.T, answer func(w http.ResponseWriter, device, body string) int) *elsewhere {
	t.Helper()
	e := &elsewhere{answer: answer}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		device, body, status := r.Header.Get("Ce-Narudevice"), string(raw), http.StatusNoContent
		if e.answer != nil {
			status = e.answer(w, device, body)
		}
		e.mu.Lock()
		e.asked = append(e.asked, r)
		if status/100 == 2 {
			e.taken = append(e.taken, device+" "+body)
		}
		e.mu.Unlock()
		w.WriteHeader(status)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *elsewhere) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.taken)
}

func (e *elsewhere) requests() []*http.Request {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.asked)
}

func ask(t *testing.T, r *componenttest.Rig, method, path, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

// running starts a rig that may call this machine.
func running(t *testing.T, config string) *componenttest.Rig {
	t.Helper()
	r := componenttest.New(t)
	r.Config[Name] = json.RawMessage(config)
	r.Start(Spec)
	r.Until(func() bool { code, _ := ask(t, r, "GET", "/api/v1/destinations", ""); return code == 200 }, func() string { return "no answer" })
	return r
}

const here = `{"allow":["127.0.0.1"]}`

// register registers a destination and waits until it runs.
func register(t *testing.T, r *componenttest.Rig, name, settings string) {
	t.Helper()
	if code, body := ask(t, r, "PUT", "/api/v1/destinations/"+name+"?by=tester", settings); code != 200 {
		t.Fatalf("%s: %d %s", name, code, body)
	}
	r.Running(Name + "/" + name)
}

// send is what a rule says.
func send(destination, device, rule, data string, more ...string) *message.Message {
	m := componenttest.Message(serviceplatform.SendSubject(destination), device, data)
	m.Properties = m.Properties.Add(serviceplatform.SendRule, rule).Add(serviceplatform.SendAction, "0")
	for i := 0; i+1 < len(more); i += 2 {
		m.Properties = m.Properties.Add(more[i], more[i+1])
	}
	return m
}

func TestDestinationGetsWhatRulesSay(t *testing.T) {
	t.Setenv("NARU_SECRET_PAGER", "s3cret-of-env")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pager.key"), []byte("s3cret-of-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := newElsewhere(t, nil)
	r := running(t, fmt.Sprintf(`{"allow":["127.0.0.0/8"],"secrets_dir":%q}`, dir))
	register(t, r, "pager", fmt.Sprintf(`{"url":"%s/hook/","headers":[{"name":"X-Team","value":"ops"},{"name":"Authorization","prefix":"Bearer ","env":"NARU_SECRET_PAGER"},{"name":"X-Api-Key","file":"pager.key"}]}`, e.URL))
	m := send("pager", "d-1", "hot@3", `{"t":31}`, serviceplatform.SendPath, "alarms/d-1", serviceplatform.SendHeader+"x-level", "high", serviceplatform.SendHeader+"x-team", "others")
	r.Say(m)
	r.Until(func() bool { return len(e.all()) == 1 }, func() string { return "nothing comes" })
	q := e.requests()[0]
	for name, want := range map[string]string{"Ce-Specversion": "1.0", "Ce-Id": m.ID.String(), "Idempotency-Key": m.ID.String(), "Ce-Narudevice": "d-1", "Ce-Naruattempt": "1",
		"Content-Type": "application/json", "X-Team": "ops", "X-Level": "high", "Authorization": "Bearer s3cret-of-env", "X-Api-Key": "s3cret-of-file"} {
		if got := q.Header.Get(name); got != want {
			t.Errorf("%s is %q; want %q", name, got, want)
		}
	}
	if got := e.all()[0]; q.URL.Path != "/hook/alarms/d-1" || got != `d-1 {"t":31}` || !strings.Contains(q.Header.Get("Traceparent"), m.Trace.ID.String()) {
		t.Errorf("%s gets %s under %s", q.URL.Path, got, q.Header.Get("Traceparent"))
	}
	known := names.NewKnown(r.Bus, names.Destinations, time.Now)
	r.Until(func() bool { return known.Check(t.Context(), "pager") == nil }, func() string { return "nobody tells that it is there" })
	r.Settled(Name+"/pager", "service_platform")
	r.Settled(Name, "service_platform")
	_, list := ask(t, r, "GET", "/api/v1/destinations", "")
	_, one := ask(t, r, "GET", "/api/v1/destinations/pager", "")
	table, err := r.Bus.Table(t.Context(), tableName, bus.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := table.Get(t.Context(), keyPrefix+"pager")
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"the list": list, "what is shown": one, "the table": string(kept.Value)} {
		if strings.Contains(text, "s3cret") || !strings.Contains(text, "NARU_SECRET_PAGER") {
			t.Errorf("%s has %s", where, text)
		}
	}
}

func TestMessageThatIsTriedAgainDelaysOnlyItsDeviceForThatAction(t *testing.T) {
	var mu sync.Mutex
	well := false
	e := newElsewhere(t, func(_ http.ResponseWriter, device, body string) int {
		mu.Lock()
		defer mu.Unlock()
		if device == "d-1" && strings.HasPrefix(body, "a") && !well {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	r := running(t, here)
	register(t, r, "pager", fmt.Sprintf(`{"url":%q}`, e.URL))
	r.Say(send("pager", "d-1", "a@1", "a1"), send("pager", "d-1", "a@2", "a2"), send("pager", "d-1", "b@1", "b1"))
	for n := range 20 {
		r.Say(send("pager", "d-2", "a@1", fmt.Sprintf("a%d", n)))
	}
	r.Until(func() bool { return len(e.all()) == 21 }, func() string { return fmt.Sprintf("taken are %s", e.all()) })
	if got := e.all(); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "d-1 a") }) || !slices.Contains(got, "d-1 b1") {
		t.Errorf("taken are %s", got)
	}
	mu.Lock()
	well = true
	mu.Unlock()
	r.Until(func() bool { return len(e.all()) == 23 }, func() string { return fmt.Sprintf("taken are %s", e.all()) })
	if got := e.all()[21:]; !slices.Equal(got, []string{"d-1 a1", "d-1 a2"}) {
		t.Errorf("what waited is taken as %s", got)
	}
	r.Settled(Name+"/pager", "service_platform")
}

func TestDestinationThatHangsDelaysNoOther(t *testing.T) {
	free := make(chan struct{})
	hangs := newElsewhere(t, func(http.ResponseWriter, string, string) int { <-free; return http.StatusOK })
	defer close(free)
	e := newElsewhere(t, nil)
	r := running(t, here)
	register(t, r, "hangs", fmt.Sprintf(`{"url":%q,"timeout":"5m"}`, hangs.URL))
	register(t, r, "pager", fmt.Sprintf(`{"url":%q}`, e.URL))
	for n := range 40 {
		r.Say(send("hangs", fmt.Sprintf("d-%d", n), "a@1", "x"), send("pager", fmt.Sprintf("d-%d", n), "a@1", "x"))
	}
	r.Until(func() bool { return len(e.all()) == 40 }, func() string { return fmt.Sprintf("%d of 40 are taken", len(e.all())) })
	var s Shown
	r.Until(func() bool {
		_, body := ask(t, r, "GET", "/api/v1/destinations/hangs", "")
		return json.Unmarshal([]byte(body), &s) == nil && s.Waiting == 40
	}, func() string { return fmt.Sprintf("of 40 messages %d wait", s.Waiting) })
	if code, body := ask(t, r, "DELETE", "/api/v1/destinations/hangs", ""); code != 409 || !strings.Contains(body, "40 messages wait") {
		t.Errorf("to delete it is answered %d %s", code, body)
	}
}

func TestRefusedMessageIsDeadAndItsRuleIsTold(t *testing.T) {
	e := newElsewhere(t, func(w http.ResponseWriter, _, _ string) int { return http.StatusGone })
	r := running(t, here)
	register(t, r, "pager", fmt.Sprintf(`{"url":%q}`, e.URL))
	m := send("pager", "d-1", "hot@3", "x", serviceplatform.SendTopic, "device/d-1/telemetry", serviceplatform.SendClient, "c", serviceplatform.SendPayload, "eyJhIjoxfQ==")
	r.Say(m)
	r.Settled(Name+"/pager", "service_platform")
	_, dead := r.Buried(Name+"/pager", 1)
	if len(dead) != 1 || dead[0].Reason != message.ReceiverRefused || !strings.Contains(dead[0].Detail, "answered 410") {
		t.Fatalf("dead are %+v", dead)
	}
	tells(t, r, m, `{"destination":"pager","reason":"receiver_refused","attempts":1,"rule":"hot@3","action":"0","topic":"device/d-1/telemetry","client":"c","payload":"eyJhIjoxfQ=="}`)
}

// tells holds what is told of a message that was not taken, without the text of the error.
func tells(t *testing.T, r *componenttest.Rig, of *message.Message, want string) {
	t.Helper()
	var told []string
	r.Until(func() bool {
		told = nil
		for _, m := range r.Read("service_platform") {
			if m.Cause == of.ID && serviceplatform.IsWebhookFailed(m.Subject) {
				var doc map[string]any
				if err := json.Unmarshal(m.Data, &doc); err != nil || doc["error"] == "" {
					t.Fatalf("told is %s (%v)", m.Data, err)
				}
				delete(doc, "error")
				raw, err := json.Marshal(doc)
				if err != nil {
					t.Fatal(err)
				}
				told = append(told, string(raw))
			}
		}
		return len(told) > 0
	}, func() string { return "nothing is told" })
	var expected map[string]any
	if err := json.Unmarshal([]byte(want), &expected); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(expected)
	if err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0] != string(raw) {
		t.Errorf("told is %s; want %s", told, raw)
	}
}

func TestWhatGoesToNoDestinationIsDeadUntilThereIsOne(t *testing.T) {
	e := newElsewhere(t, nil)
	r := running(t, here)
	m := send("pager", "d-1", "hot@3", "early")
	r.Say(m)
	r.Settled(Name, "service_platform")
	if _, dead := r.Buried(Name, 1); len(dead) != 1 || dead[0].Reason != message.RuleError || !strings.Contains(dead[0].Detail, "no destination pager") {
		t.Fatalf("dead are %+v", dead)
	}
	tells(t, r, m, `{"destination":"pager","reason":"rule_error","attempts":1,"rule":"hot@3","action":"0"}`)
	register(t, r, "pager", fmt.Sprintf(`{"url":%q}`, e.URL))
	r.Say(send("pager", "d-1", "hot@3", "later"))
	r.Until(func() bool { return len(e.all()) == 1 }, func() string { return "nothing comes" })
	r.Settled(Name+"/pager", "service_platform")
	r.Settled(Name, "service_platform")
	if got := e.all(); !slices.Equal(got, []string{"d-1 later"}) {
		t.Errorf("taken are %s", got)
	}
}

func TestPausedDestinationKeepsItsMessages(t *testing.T) {
	e := newElsewhere(t, nil)
	r := running(t, here)
	register(t, r, "pager", fmt.Sprintf(`{"url":%q}`, e.URL))
	if code, body := ask(t, r, "POST", "/api/v1/destinations/pager/pause", ""); code != 200 || !strings.Contains(body, `"paused":true`) {
		t.Fatalf("pause: %d %s", code, body)
	}
	r.Say(send("pager", "d-1", "a@1", "1"), send("pager", "d-1", "a@1", "2"))
	r.Await(Name+"/pager", "service_platform", func(rep report) bool { return rep.Waiting.Count == 2 })
	r.Stop()
	r.Start(Spec) // it stays so
	r.Running(Name + "/pager")
	r.Await(Name+"/pager", "service_platform", func(rep report) bool { return rep.Waiting.Count == 2 })
	if n := len(e.requests()); n != 0 {
		t.Errorf("paused, it is asked %d times", n)
	}
	r.Until(func() bool { code, _ := ask(t, r, "POST", "/api/v1/destinations/pager/resume", ""); return code == 200 }, func() string { return "it is not resumed" })
	r.Until(func() bool { return len(e.all()) == 2 }, func() string { return fmt.Sprintf("taken are %s", e.all()) })
	r.Settled(Name+"/pager", "service_platform")
}

func TestForgottenDestinationGoesWithItsAccount(t *testing.T) {
	e := newElsewhere(t, nil)
	r := running(t, here)
	register(t, r, "pager", fmt.Sprintf(`{"url":%q}`, e.URL))
	if code, body := ask(t, r, "DELETE", "/api/v1/destinations/pager", ""); code != 200 {
		t.Fatalf("delete: %d %s", code, body)
	}
	r.Until(func() bool {
		code, _ := ask(t, r, "PUT", "/api/v1/destinations/pager", fmt.Sprintf(`{"url":%q}`, e.URL+"/new"))
		return code == 200
	}, func() string { return "its name is not free" })
	r.Running(Name + "/pager")
	r.Say(send("pager", "d-1", "a@1", "1"))
	r.Until(func() bool { return len(e.all()) == 1 }, func() string { return "nothing comes" })
	if path := e.requests()[0].URL.Path; path != "/new" {
		t.Errorf("it is sent to %s", path)
	}
}

func TestWebhookKeepsThePromises(t *testing.T) {
	componenttest.Promises(t, componenttest.Case{Spec: Spec, Poison: func() *message.Message { return send("nobody", "d-1", "a@1", "x") }})
}
