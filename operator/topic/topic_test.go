package topic

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

func TestTopicKeepsThePromises(t *testing.T) {
	componenttest.Promises(t, componenttest.Case{Spec: Spec})
}

// server answers as the process does.
func server(t *testing.T, r *componenttest.Rig) *httptest.Server {
	r.Start(Spec)
	r.Running(Spec.Name)
	s := httptest.NewServer(r.Host.Handler(func(*http.Request) bool { return true }))
	t.Cleanup(s.Close)
	return s
}

func list(t *testing.T, s *httptest.Server) map[string]Line {
	t.Helper()
	resp, err := http.Get(s.URL + "/api/v1/topics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var lines []Line
	if err := json.NewDecoder(resp.Body).Decode(&lines); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	by := map[string]Line{}
	for _, l := range lines {
		by[string(l.Subjects)] = l
	}
	return by
}

func TestTopicCountsWhatIsSaidAlsoAcrossStarts(t *testing.T) {
	r := componenttest.New(t)
	s := server(t, r)
	typed := componenttest.Message("device.d-1.telemetry", "d-1", "12345")
	typed.Type = "device.telemetry.v1"
	r.Say(typed, componenttest.Message("kitchen.lamp", "", "on"), componenttest.Message("kitchen.lamp", "", "off"))
	r.Settled(Spec.Name, "device")
	by := list(t, s)
	if l := by["kitchen.lamp"]; l.Messages != 2 || l.Bytes != 5 || !l.Orphan || l.PerSec <= 0 {
		t.Errorf("kitchen.lamp: %+v", l)
	}
	var telemetry Line
	for p, l := range by {
		if message.Pattern(p).Matches("device.d-1.telemetry") && l.Messages > 0 {
			telemetry = l
		}
	}
	if telemetry.Messages != 1 || telemetry.Type != typed.Type || telemetry.Owner == "" || telemetry.Doc == "" {
		t.Errorf("telemetry: %+v", telemetry)
	}
	r.Stop()
	s = server(t, r)
	r.Say(componenttest.Message("kitchen.lamp", "", "on"))
	r.Settled(Spec.Name, "device")
	if l := list(t, s)["kitchen.lamp"]; l.Messages != 3 {
		t.Errorf("after a start kitchen.lamp has %d messages; want 3", l.Messages)
	}
}

func TestTheRateIsOfTheLastTenSeconds(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	var l Line
	for i := range 40 {
		l.count(at.Add(time.Duration(i)*500*time.Millisecond), 1) // two a second, for twenty seconds
	}
	for after, want := range map[time.Duration]float64{19 * time.Second: 2, 24 * time.Second: 1, 40 * time.Second: 0} {
		c := l
		if got := c.rate(at.Add(after)); got != want {
			t.Errorf("%s after the first the rate is %v; want %v", after, got, want)
		}
	}
	l.count(at, 1) // a straggler counts, and moves nothing
	if l.Messages != 41 || l.rate(at.Add(19*time.Second)) != 2 {
		t.Errorf("after a straggler: %d messages, %v a second", l.Messages, l.rate(at.Add(19*time.Second)))
	}
}

func TestSubjectsWithoutContractAreToldApartUpToALimit(t *testing.T) {
	r := componenttest.New(t)
	r.Config[Spec.Name] = json.RawMessage(`{"uncatalogued_max":2}`)
	s := server(t, r)
	for _, name := range []string{"a", "b", "c", "d"} {
		r.Say(componenttest.Message(message.NewSubject("own", name), "", "x"))
	}
	r.Settled(Spec.Name, "device")
	by := list(t, s)
	if by["own.a"].Messages != 1 || by["own.b"].Messages != 1 || by[">"].Messages != 2 {
		t.Errorf("a %d, b %d, all others %d", by["own.a"].Messages, by["own.b"].Messages, by[">"].Messages)
	}
}

func TestEchoGivesWhatIsSaidFromNowOnAndEndsWithItsClient(t *testing.T) {
	r := componenttest.New(t)
	s := server(t, r)
	r.Say(componenttest.Message("device.d-1.telemetry", "d-1", "before"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/api/v1/echo?subject=device.*.telemetry", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r.Say(componenttest.Message("device.d-1.event.x", "d-1", "of another subject"), componenttest.Message("device.d-1.telemetry", "d-1", "text"),
		componenttest.Message("device.d-2.telemetry", "d-2", "\xff\x00"))
	lines := bufio.NewScanner(resp.Body)
	var got []Heard
	for len(got) < 2 && lines.Scan() {
		var h Heard
		if err := json.Unmarshal(lines.Bytes(), &h); err != nil {
			t.Fatal(err)
		}
		got = append(got, h)
	}
	if len(got) != 2 || got[0].Text != "text" || got[0].Device != "d-1" || !bytes.Equal(got[1].Binary, []byte("\xff\x00")) {
		t.Errorf("heard %+v", got)
	}
	cancel()
	s.Close() // returns when the handler has ended
}

func TestWhatIsAskedWronglyIsAnsweredWithTheFault(t *testing.T) {
	r := componenttest.New(t)
	s := server(t, r)
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", "/api/v1/echo?subject=a..b", "", "empty token"},
		{"POST", "/api/v1/publish", "{", "request"},
		{"POST", "/api/v1/publish", `{"subject":"a.b","dta":"x"}`, "dta"},
		{"POST", "/api/v1/publish", `{"subject":"a b"}`, "subject"},
		{"POST", "/api/v1/publish", `{"subject":"a.b","traceparent":"nonsense"}`, "traceparent"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, s.URL+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var problem struct {
			Status int    `json:"status"`
			Detail string `json:"detail"`
		}
		err = json.NewDecoder(resp.Body).Decode(&problem)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusBadRequest || problem.Status != http.StatusBadRequest || !strings.Contains(problem.Detail, c.want) {
			t.Errorf("%s %s %s is answered with %s %+v (%v); want it to say %q", c.method, c.path, c.body, resp.Status, problem, err, c.want)
		}
	}
}

func TestAnOperatorsMessageIsCompleteAndOnDisk(t *testing.T) {
	r := componenttest.New(t)
	s := server(t, r)
	resp, err := http.Post(s.URL+"/api/v1/publish", "application/json", strings.NewReader(
		`{"subject":"device.d-1.event.hello","data":"hi","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var said struct{ ID, Trace string }
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	for _, m := range r.Read("device") {
		if m.ID.String() == said.ID && m.Trace.ID.String() == "0af7651916cd43dd8448eb211c80319c" && m.Device == "d-1" && string(m.Data) == "hi" && m.Source != "" {
			return
		}
	}
	t.Errorf("%+v is not in the log", said)
}
