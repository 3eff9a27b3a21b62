package twin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

const name = "service_platform.twin"

// say makes a message of a device.
func say(subject message.Subject, data string) *message.Message {
	return componenttest.Message(subject, subject.Token(1), data)
}

func gone(id string) *message.Message {
	m := componenttest.Message(serviceplatform.DeviceChangedSubject(id), id, fmt.Sprintf(`{"device":%q,"change":"deleted","by":"operator"}`, id))
	m.Source = "//naru/n1/service_platform.x509"
	return m
}

func TestTwinKeepsThePromises(t *testing.T) {
	componenttest.Promises(t, componenttest.Case{
		Spec: Spec,
		Good: func() []*message.Message {
			return []*message.Message{
				say("device.d-1.twin.get", ""),
				say("device.d-1.twin.update", `{"state":{"desired":{"on":true},"reported":{"on":false}}}`),
				say("device.d-1.twin.update", `{"state":{"reported":{"on":true}}}`),
				say("device.d-1.twin.update", `{"state":{"reported":{"on":true}},"version":1}`),
				say("device.d-1.twin.name.config.update", `{"state":{"desired":{"a":[1,2]}},"clientToken":"t"}`),
				say("device.d-2.twin.update", `not JSON`),
				say("device.d-1.twin.name.config.get", ""),
				say("device.d-1.twin.delete", ""),
				gone("d-3"),
			}
		},
		Poison: func() *message.Message { return componenttest.Message("device.%.twin.update", "", `{"state":{}}`) },
	})
}

// answers gives what was said of each message: the last words of the subjects and the data.
func answers(r *componenttest.Rig, to ...*message.Message) []string {
	var list []string
	said := r.Said(name)
	for _, m := range to {
		for _, s := range said {
			if s.Cause == m.ID {
				list = append(list, s.Subject.Topic()+" "+string(s.Data))
			}
		}
	}
	return list
}

func heard(t *testing.T, ms ...*message.Message) (*componenttest.Rig, []string) {
	t.Helper()
	r := componenttest.New(t)
	r.Start(Spec)
	r.Say(ms...)
	for _, m := range ms {
		r.Settled(name, m.Subject.Namespace())
	}
	r.Stop()
	return r, answers(r, ms...)
}

// subjects is what of answers is the same in each run.
func subjects(list []string) (s []string) {
	for _, l := range list {
		topic, _, _ := strings.Cut(l, " ")
		s = append(s, topic)
	}
	return s
}

func TestARequestIsAnsweredWhereItWasMade(t *testing.T) {
	ask := say("device.d-1.twin.name.config.update", `{"state":{"desired":{"a":1}},"clientToken":"t-7"}`)
	ask.Correlation = []byte("c")
	r, got := heard(t, ask, say("device.d-1.twin.name.config.get", ""), say("device.d-1.twin.get", ""))
	want := []string{
		"device/d-1/twin/name/config/update/accepted", "device/d-1/twin/name/config/update/delta",
		"device/d-1/twin/name/config/update/documents", "device/d-1/twin/changed",
		"device/d-1/twin/name/config/get/accepted", "device/d-1/twin/get/rejected",
	}
	if !slices.Equal(subjects(got), want) {
		t.Fatalf("answers are\n%s", strings.Join(got, "\n"))
	}
	at := ask.Recorded().Unix()
	if want := fmt.Sprintf(`{"state":{"desired":{"a":1}},"metadata":{"desired":{"a":{"timestamp":%d}}},"version":1,"timestamp":`, at); !strings.Contains(got[0], want) || !strings.Contains(got[0], `"clientToken":"t-7"`) {
		t.Errorf("accepted is %s", got[0])
	}
	if !strings.Contains(got[5], `{"code":404,"message":"No shadow exists with name: 'd-1'"`) {
		t.Errorf("rejected is %s", got[5])
	}
	for _, m := range r.Said(name) {
		if m.Cause != ask.ID {
			continue
		}
		answer := strings.HasSuffix(string(m.Subject), "accepted")
		if m.Trace.ID != ask.Trace.ID || m.Device != "d-1" || m.QoS != 1 || m.Depth != 1 || (string(m.Correlation) == "c") != answer {
			t.Errorf("%s has trace %s, device %q, QoS %d, depth %d, correlation %q", m.Subject, m.Trace.ID, m.Device, m.QoS, m.Depth, m.Correlation)
		}
	}
}

func TestChangedTellsWhatBecameOfTheState(t *testing.T) {
	first := say("device.d-1.twin.update", `{"state":{"desired":{"a":1},"reported":{"a":1}}}`)
	again := say("device.d-1.twin.update", `{"state":{"reported":{"a":1}}}`)
	other := say("device.d-1.twin.update", `{"state":{"reported":{"a":2}}}`)
	gone := say("device.d-1.twin.delete", ``)
	r, _ := heard(t, first, again, other, gone)
	var got []string
	for _, m := range r.Said(name) {
		if m.Subject != device.TwinChangedSubject("d-1") {
			continue
		}
		var c device.TwinChanged
		if err := json.Unmarshal(m.Data, &c); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %d %v %s %s", c.Change, c.Version, c.Paths, c.Previous, c.Current))
		if c.Source != "//naru/test" || c.At.IsZero() || m.Cause == again.ID {
			t.Errorf("%s follows from %s", m.Data, m.Cause)
		}
	}
	want := []string{
		`created 1 [/desired/a /reported/a]  {"desired":{"a":1},"reported":{"a":1}}`,
		`updated 3 [/reported/a] {"desired":{"a":1},"reported":{"a":1}} {"desired":{"a":1},"reported":{"a":2}}`,
		`deleted 3 [/desired/a /reported/a] {"desired":{"a":1},"reported":{"a":2}} `,
	}
	if !slices.Equal(got, want) {
		t.Errorf("changes are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestUpdatesOfOneBatchFollowEachOther(t *testing.T) {
	r := componenttest.New(t)
	var ms []*message.Message
	for i := range 300 {
		ms = append(ms, say(message.Subject(fmt.Sprintf("device.d-%d.twin.update", i%3)), fmt.Sprintf(`{"state":{"reported":{"n":%d}},"version":%d}`, i/3, i/3)))
	}
	together(t, r, ms)
	r.Start(Spec)
	r.Settled(name, "device")
	r.Stop()
	for i, a := range subjects(answers(r, ms...)) {
		if strings.HasSuffix(a, "rejected") {
			t.Fatalf("answer %d is %s: an update did not see the one before it", i, a)
		}
	}
}

// together appends messages so that few batches hold them.
func together(t *testing.T, r *componenttest.Rig, ms []*message.Message) {
	t.Helper()
	l, err := r.Bus.Log(t.Context(), "device", bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Appender(t.Context(), bus.AppenderOptions{Name: "test", Owner: message.NewID(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		if err := a.Append(t.Context(), m, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestEveryUpdateTakesEffectOnceWhateverDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the time between two starts is the bubble's
		r := componenttest.New(t)
		defer r.Close()
		dies(t, r)
	})
}

func dies(t *testing.T, r *componenttest.Rig) {
	r.Start(Spec)
	var ms []*message.Message
	for round := range 12 {
		var part []*message.Message
		for i := range 60 {
			part = append(part, say(message.Subject(fmt.Sprintf("device.d-%d.twin.update", i%4)), fmt.Sprintf(`{"state":{"reported":{"n":%d},"desired":{"m":%d}},"clientToken":"%d-%d"}`, i, round, round, i)))
		}
		ms = append(ms, part...)
		died := r.Faults()
		switch round % 4 {
		case 0:
			r.FailBefore(2)
			died += 2
		case 1:
			r.FailAfter(2)
			died += 2
		}
		together(t, r, part)
		if round%4 == 2 {
			r.Stop() // wherever it is
			r.Start(Spec)
		}
		r.Until(func() bool { return r.Faults() == died }, func() string { return "it does not die" })
	}
	r.Settled(name, "device")
	r.Stop()
	versions, tokens := map[string][]int{}, map[string]int{}
	for _, m := range r.Said(name) {
		var a struct {
			Version     int
			ClientToken string
		}
		if !strings.HasSuffix(string(m.Subject), ".accepted") {
			continue
		}
		if err := json.Unmarshal(m.Data, &a); err != nil {
			t.Fatal(err)
		}
		versions[m.Device] = append(versions[m.Device], a.Version)
		tokens[a.ClientToken]++
	}
	if len(tokens) != len(ms) {
		t.Errorf("%d updates were accepted of %d", len(tokens), len(ms))
	}
	for token, n := range tokens {
		if n != 1 {
			t.Errorf("update %s was accepted %d times", token, n)
		}
	}
	for _, d := range slices.Sorted(maps.Keys(versions)) {
		for i, v := range versions[d] {
			if v != i+1 {
				t.Fatalf("versions of %s are %v", d, versions[d])
			}
		}
		if len(versions[d]) != len(ms)/4 {
			t.Errorf("%s has %d versions; want %d", d, len(versions[d]), len(ms)/4)
		}
	}
}

func TestTwinsOfADeletedDeviceGoWithIt(t *testing.T) {
	r := componenttest.New(t)
	r.Start(Spec)
	late := say("device.d-1.twin.update", `{"state":{"reported":{"a":"late"}}}`) // accepted before the device was deleted, heard after
	r.Say(say("device.d-1.twin.update", `{"state":{"reported":{"a":1}}}`), say("device.d-1.twin.name.config.update", `{"state":{"desired":{"b":1}}}`),
		say("device.d-10.twin.update", `{"state":{"reported":{"a":1}}}`))
	r.Settled(name, "device")
	g := gone("d-1")
	r.Say(g)
	r.Settled(name, "service_platform")
	r.Say(late)
	r.Settled(name, "device")
	after := say("device.d-1.twin.update", `{"state":{"reported":{"a":"again"}}}`)
	r.Say(after)
	r.Settled(name, "device")
	s := r.Host.Handler(func(*http.Request) bool { return true })
	var l List
	ask(t, s, "GET", "/api/v1/twins", "", &l)
	r.Stop()
	if got := fmt.Sprint(subjects(answers(r, g))); got != "[device/d-1/twin/changed device/d-1/twin/changed]" {
		t.Errorf("of its end is said %s", got)
	}
	if got := strings.Join(answers(r, late), "\n"); !strings.Contains(got, `update/rejected {"code":404,"message":"Thing not found"`) {
		t.Errorf("an update from before is answered with %s", got)
	}
	if got := strings.Join(answers(r, after), "\n"); !strings.Contains(got, `"version":2`) || !strings.Contains(got, "accepted") {
		t.Errorf("an update after it is answered with %s", got)
	}
	if len(l.Twins) != 2 || l.Twins[0].Device != "d-1" || l.Twins[1].Device != "d-10" || l.All != 2 || l.Drifting != 0 {
		t.Errorf("left are %+v", l)
	}
}

func TestADeviceHasOnlySoManyTwins(t *testing.T) {
	r := componenttest.New(t)
	r.Config[name] = json.RawMessage(`{"shadows_max":2}`)
	r.Start(Spec)
	update := func(shadow string) *message.Message {
		m := say(device.TwinSubject("d-1", shadow, "update"), `{"state":{"reported":{"a":1}}}`)
		r.Say(m)
		return m
	}
	update("")
	update("one")
	two := update("two")
	again := update("one")
	r.Say(say("device.d-1.twin.name.one.delete", ""))
	three := update("three")
	wrong := update("a.b")
	r.Settled(name, "device")
	r.Stop()
	for m, want := range map[*message.Message]string{two: "Too many shadows; maximum is 2", again: `"version":2`, three: `"version":1`, wrong: "Invalid shadow name"} {
		if got := answers(r, m)[0]; !strings.Contains(got, want) {
			t.Errorf("%s is answered with %s; want %s", m.Subject, got, want)
		}
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	for _, c := range []string{`{"state_max":1}`, `{"state_max":32769}`, `{"depth_max":0}`, `{"depth_max":33}`, `{"shadows_max":0}`, `{"history_max":0}`, `{"history_age":"soon"}`, `{"history_age":"0s"}`, `{"what":1}`} {
		if _, err := Spec.Build(component.Env{}, json.RawMessage(c)); err == nil {
			t.Errorf("%s is taken", c)
		}
	}
}

// The largest documents that the limits allow must fit into a message.
func TestTheLargestTwinCanBeAnswered(t *testing.T) {
	r := componenttest.New(t)
	r.Config[name] = json.RawMessage(fmt.Sprintf(`{"state_max":%d}`, stateMost))
	r.Start(Spec)
	big := `{"state":{"desired":{"a":[` + strings.Repeat("1,", stateMost/2-20) + `1]}}}`
	first, second := say("device.d-1.twin.update", big), say("device.d-1.twin.update", big)
	r.Say(first, second, say("device.d-1.twin.get", ""))
	r.Settled(name, "device")
	r.Stop()
	letters, dead := r.Dead(name)
	if len(letters) != 0 || len(answers(r, second)) != 3 {
		t.Errorf("%d died: %+v", len(letters), dead)
	}
}

// ask asks over HTTP and gives the status.
func ask(t testing.TB, h http.Handler, method, path, body string, into any) int {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, bytes.NewReader([]byte(body))))
	if into != nil {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
	}
	return w.Code
}

// TestAWillIsNoRequest: it is a message like others, and changes no twin.
func TestAWillIsNoRequest(t *testing.T) {
	will := say("device.d-1.twin.update", `{"state":{"reported":{"gone":true}}}`)
	will.Will = true
	if _, got := heard(t, will, say("device.d-1.twin.get", "")); !slices.Equal(subjects(got), []string{"device/d-1/twin/get/rejected"}) {
		t.Errorf("answers are %v", got)
	}
}
