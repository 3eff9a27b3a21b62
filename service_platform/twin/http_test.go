package twin

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
)

// desk is a running component and its HTTP.
type desk struct {
	t     testing.TB
	r     *componenttest.Rig
	h     http.Handler
	twins *Twins
	ahead atomic.Int64 // of the machine's clock, in nanoseconds
}

func (d *desk) now() time.Time { return time.Now().Add(time.Duration(d.ahead.Load())) }

// pass lets time pass, and gives the time after it.
func (d *desk) pass(x time.Duration) time.Time {
	d.ahead.Add(int64(x))
	return d.now()
}

func open(t testing.TB, config string) *desk {
	t.Helper()
	r := componenttest.New(t)
	if config != "" {
		r.Config[name] = json.RawMessage(config)
	}
	d := &desk{t: t, r: r}
	r.Start(component.Define(Spec, Defaults, func(env component.Env, c Config) (*component.Part, error) {
		env.Now = d.now
		var err error
		if d.twins, err = build(env, c); err != nil {
			return nil, err
		}
		return &component.Part{Handle: d.twins.hear, Run: d.twins.run, Routes: d.twins.routes()}, nil
	}))
	r.Running(name)
	d.h = r.Host.Handler(func(*http.Request) bool { return true })
	return d
}

// update says an update as a device does, and waits until it is handled.
func (d *desk) update(subject message.Subject, data string) *message.Message {
	d.t.Helper()
	m := say(subject, data)
	m.ID = message.NewID(d.now())
	d.r.Say(m)
	d.r.Settled(name, "device")
	return m
}

// house keeps house once, with all that is too old.
func (d *desk) house() {
	d.t.Helper()
	if err := d.twins.keepHouse(d.t.Context(), &sweeper{}); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) get(path string, into any) {
	d.t.Helper()
	if code := ask(d.t, d.h, "GET", path, "", into); code != http.StatusOK {
		d.t.Fatalf("GET %s: %d", path, code)
	}
}

func (d *desk) refused(method, path, body string, code int, detail string) {
	d.t.Helper()
	var p answer.Problem
	if got := ask(d.t, d.h, method, path, body, &p); got != code || !strings.Contains(p.Detail, detail) {
		d.t.Errorf("%s %s is answered with %d %q; want %d %q", method, path, got, p.Detail, code, detail)
	}
}

func TestATwinIsShownWithWhatDrifts(t *testing.T) {
	d := open(t, "")
	d.update("device.d-1.twin.name.config.update", `{"state":{"desired":{"x":1}}}`)
	m := d.update("device.d-1.twin.update", `{"state":{"desired":{"a":{"b":1},"c":2},"reported":{"c":2,"a":{"b":3}}}}`)
	var s Shown
	d.get("/api/v1/twins/d-1", &s)
	if s.Version != 1 || s.Message != m.ID.String() || s.Source != "//naru/test" || !s.Updated.Equal(m.Recorded()) || fmt.Sprint(s.Shadows) != "[config]" {
		t.Errorf("it is shown as %+v", s)
	}
	if len(s.Drift) != 1 || s.Drift[0].Path != "/a/b" || string(s.Drift[0].Desired) != "1" || string(s.Drift[0].Reported) != "3" {
		t.Errorf("its drift is %+v", s.Drift)
	}
	if !strings.Contains(string(s.Document), `"delta":{"a":{"b":1}}`) || !strings.Contains(string(s.Document), `"metadata"`) {
		t.Errorf("its document is %s", s.Document)
	}
	d.refused("GET", "/api/v1/twins/d-2", "", 404, "device d-2 has no twin")
	d.refused("GET", "/api/v1/twins/d-1?shadow=none", "", 404, "no twin of the name none")
	d.refused("GET", "/api/v1/twins/d-1?shadow=a.b", "", 400, "no name of a shadow")
}

func TestWhatIsAskedOverHTTPGoesTheWayOfAllRequests(t *testing.T) {
	d := open(t, "")
	var a struct {
		Version int
		State   json.RawMessage
	}
	if code := ask(t, d.h, "POST", "/api/v1/twins/d.1?shadow=config&by=kim", `{"state":{"desired":{"a":1}}}`, &a); code != 200 || a.Version != 1 || string(a.State) != `{"desired":{"a":1}}` {
		t.Errorf("it is answered with %d %+v", code, a)
	}
	var b Blame
	d.get("/api/v1/twins/d.1/blame?shadow=config", &b)
	if len(b.Fields) != 1 || !strings.HasSuffix(b.Fields[0].Changed.Source, "service_platform.twin?by=kim") {
		t.Errorf("it was by %+v", b.Fields)
	}
	d.refused("POST", "/api/v1/twins/d.1?shadow=config", `{"state":{},"version":7}`, 409, "Version conflict")
	d.refused("POST", "/api/v1/twins/d.1", `{"state":5}`, 400, "State node must be an object")
	d.refused("POST", "/api/v1/twins/d.1", strings.Repeat(" ", 128<<10+1), 400, "it may have 131072 bytes")
	d.refused("DELETE", "/api/v1/twins/d.1", "", 404, "device d.1 has no twin")
	if code := ask(t, d.h, "DELETE", "/api/v1/twins/d.1?shadow=config", "", &a); code != 200 || a.Version != 1 {
		t.Errorf("its end is answered with %d %+v", code, a)
	}
	found := false
	for _, m := range d.r.Read("device") {
		found = found || m.Subject == "device.d%2E1.twin.name.config.update"
	}
	if !found {
		t.Error("the request is not in the log")
	}
}

func TestBlameLeadsToTheMessages(t *testing.T) {
	d := open(t, "")
	first := d.update("device.d-1.twin.update", `{"state":{"reported":{"a":{"b":1,"c":2},"ab":3}}}`)
	again := d.update("device.d-1.twin.update", `{"state":{"reported":{"a":{"b":1,"c":5}}}}`)
	var b Blame
	d.get("/api/v1/twins/d-1/blame?path=/reported/a", &b)
	if len(b.Fields) != 2 || b.Version != 2 {
		t.Fatalf("blame is %+v", b)
	}
	if f := b.Fields[0]; f.Path != "/reported/a/b" || f.Changed.ID != first.ID || f.Wrote.ID != again.ID || !f.WroteAt.Equal(again.Recorded()) {
		t.Errorf("a/b is by %+v", f)
	}
	if f := b.Fields[1]; f.Path != "/reported/a/c" || f.Changed.ID != again.ID || string(f.Value) != "5" || f.Trace != again.Trace.ID || b.Fields[0].Trace != first.Trace.ID {
		t.Errorf("a/c is by %+v", f)
	}
	d.refused("GET", "/api/v1/twins/d-1/blame?path=/desired/z", "", 404, "no field /desired/z")
	d.refused("GET", "/api/v1/twins/d-2/blame", "", 404, "no twin")
	d.refused("GET", "/api/v1/twins/d-2/history", "", 404, "no twin")
	d.refused("GET", "/api/v1/twins/d-2/conflicts", "", 404, "no twin")
}

func TestHistoryIsBoundedAndLeadsBack(t *testing.T) {
	d := open(t, `{"history_max":4}`)
	var ms []*message.Message
	for i := range 6 {
		ms = append(ms, d.update("device.d-1.twin.update", fmt.Sprintf(`{"state":{"reported":{"n":%d,"m":{"k":%d}}}}`, i, i/2)))
	}
	var h History
	d.get("/api/v1/twins/d-1/history?limit=3", &h)
	if len(h.Records) != 3 || h.Records[0].Number != 6 || h.Next != 4 {
		t.Fatalf("history is %+v", h)
	}
	if r := h.Records[1]; r.Version != 5 || r.Message != ms[4].ID || r.Trace != ms[4].Trace.ID || r.Change != "updated" || len(r.Changes) != 2 ||
		r.Changes[0].Path != "/reported/m/k" || string(r.Changes[0].Before) != "1" || string(r.Changes[0].After) != "2" {
		t.Errorf("record 5 is %+v", r)
	}
	h = History{}
	d.get(fmt.Sprintf("/api/v1/twins/d-1/history?before=%d", 4), &h)
	if len(h.Records) != 1 || h.Records[0].Number != 3 || h.Next != 0 {
		t.Errorf("what is older is %+v", h)
	}
	h = History{}
	d.get("/api/v1/twins/d-1/history?path=/reported/m", &h)
	if len(h.Records) != 2 || h.Records[0].Version != 5 || h.Records[1].Version != 3 {
		t.Errorf("of m it is %+v", h)
	}
	for version := 3; version <= 6; version++ {
		var s Shown
		d.get(fmt.Sprintf("/api/v1/twins/d-1?version=%d", version), &s)
		if want := fmt.Sprintf(`{"state":{"reported":{"m":{"k":%d},"n":%d}}}`, (version-1)/2, version-1); string(s.Document) != want || s.Version != uint64(version) || s.Message != ms[version-1].ID.String() {
			t.Errorf("version %d was %s by %s; want %s", version, s.Document, s.Message, want)
		}
	}
	d.refused("GET", "/api/v1/twins/d-1?version=2", "", 404, "does not reach back so far")
	d.refused("GET", "/api/v1/twins/d-1?version=7", "", 404, "there is no 7 yet")
	d.refused("GET", "/api/v1/twins/d-1?version=0", "", 400, "want a number from 1")
	d.refused("GET", "/api/v1/twins/d-1?version=1&at=1m", "", 400, "one of them")
	d.refused("GET", "/api/v1/twins/d-1?at=noon", "", 400, "want a time")
	d.refused("GET", "/api/v1/twins/d-1?at=24h", "", 404, "does not reach back so far")
	d.refused("GET", "/api/v1/twins/d-1/history?before=x", "", 400, "a record's number")
	d.refused("GET", "/api/v1/twins/d-1/history?limit=0", "", 400, "want 1 to 1000")
}

func TestTimeTravelKnowsWhatThereWas(t *testing.T) {
	d := open(t, "")
	before := d.pass(time.Minute)
	d.pass(time.Minute)
	d.update("device.d-1.twin.update", `{"state":{"reported":{"n":1}}}`)
	first := d.pass(time.Hour)
	d.pass(time.Hour)
	d.update("device.d-1.twin.update", `{"state":{"reported":{"n":2}}}`)
	d.update("device.d-1.twin.update", `{"state":{"reported":{"n":2}}}`)
	second := d.pass(time.Hour)
	d.pass(time.Hour)
	d.update("device.d-1.twin.delete", ``)
	none := d.pass(time.Hour)
	d.pass(time.Hour)
	d.update("device.d-1.twin.update", `{"state":{"desired":{"o":3}}}`)
	now := d.pass(time.Hour)
	was := func(at time.Time, want string, version uint64) {
		t.Helper()
		var s Shown
		d.get("/api/v1/twins/d-1?at="+at.UTC().Format(time.RFC3339), &s)
		if string(s.Document) != want || s.Version != version {
			t.Errorf("at %v it was %s of version %d; want %s, %d", at, s.Document, s.Version, want, version)
		}
	}
	all := func() {
		t.Helper()
		d.refused("GET", "/api/v1/twins/d-1?at="+before.UTC().Format(time.RFC3339), "", 404, "had no such twin then")
		was(first, `{"state":{"reported":{"n":1}}}`, 1)
		was(second, `{"state":{"reported":{"n":2}}}`, 2)
		d.refused("GET", "/api/v1/twins/d-1?at="+none.UTC().Format(time.RFC3339), "", 404, "had no such twin then")
		was(now, `{"state":{"desired":{"o":3}}}`, 4)
	}
	all()
	d.pass(time.Hour)
	d.update("device.d-1.twin.update", `{"state":{"desired":{"o":4}}}`)
	all()
	// Eight days on, all of it is too old, and what is now was all the time that is remembered.
	week := d.pass(8 * 24 * time.Hour)
	was(week.Add(-time.Hour), `{"state":{"desired":{"o":4}}}`, 5)
	d.refused("GET", "/api/v1/twins/d-1?at="+second.UTC().Format(time.RFC3339), "", 404, "does not reach back so far")
	d.update("device.d-1.twin.update", `{"state":{"desired":{"o":5}}}`)
	was(week.Add(-time.Hour), `{"state":{"desired":{"o":4}}}`, 0)
}

func TestConflictsAreRemembered(t *testing.T) {
	d := open(t, "")
	first := d.update("device.d-1.twin.update", `{"state":{"desired":{"a":1}}}`)
	var last *message.Message
	for i := range conflictsMax + 3 {
		last = d.update("device.d-1.twin.update", fmt.Sprintf(`{"state":{"desired":{"a":2}},"version":%d}`, i+5))
	}
	var out struct{ Conflicts []Conflict }
	d.get("/api/v1/twins/d-1/conflicts", &out)
	if len(out.Conflicts) != conflictsMax {
		t.Fatalf("%d conflicts are remembered; want %d", len(out.Conflicts), conflictsMax)
	}
	c := out.Conflicts[conflictsMax-1]
	if c.Message != last.ID || c.Trace != last.Trace.ID || c.Stated != conflictsMax+7 || c.Was != 1 || c.Other.ID != first.ID || c.Source != "//naru/test" {
		t.Errorf("the last one is %+v", c)
	}
	long := say("device.d-1.twin.update", `{"state":{},"version":99}`)
	long.Source = strings.Repeat("s", 5000)
	d.r.Say(long)
	d.r.Settled(name, "device")
	if d.get("/api/v1/twins/d-1/conflicts", &out); len(out.Conflicts) != conflictsMax || len(out.Conflicts[conflictsMax-1].Source) != 128 {
		t.Errorf("a long source is remembered with %d bytes", len(out.Conflicts[len(out.Conflicts)-1].Source))
	}
	d.pass(8 * 24 * time.Hour)
	if d.get("/api/v1/twins/d-1/conflicts", &out); len(out.Conflicts) != 0 {
		t.Errorf("after eight days there are %d", len(out.Conflicts))
	}
}

func TestTwinsAreListedInParts(t *testing.T) {
	d := open(t, "")
	for i := range 5 {
		d.update(message.Subject(fmt.Sprintf("device.a-%d.twin.update", i)), `{"state":{"desired":{"x":1}}}`)
		d.update(message.Subject(fmt.Sprintf("device.b-%d.twin.name.n.update", i)), `{"state":{"reported":{"x":1}}}`)
	}
	walk := func(path string) (names []string) {
		next := ""
		for {
			var l List
			d.get(path+"&after="+next, &l)
			for _, x := range l.Twins {
				names = append(names, strings.TrimSuffix(x.Device+"/"+x.Shadow, "/"))
			}
			if l.All != 10 || l.Drifting != 5 {
				t.Fatalf("of all there are %d, and %d drift", l.All, l.Drifting)
			}
			if next = l.Next; next == "" {
				return names
			}
		}
	}
	for path, want := range map[string]string{
		"/api/v1/twins?limit=3":             "[a-0 a-1 a-2 a-3 a-4 b-0/n b-1/n b-2/n b-3/n b-4/n]",
		"/api/v1/twins?prefix=b-&limit=2":   "[b-0/n b-1/n b-2/n b-3/n b-4/n]",
		"/api/v1/twins?device=a-3":          "[a-3]",
		"/api/v1/twins?device=a-&limit=1":   "[]",
		"/api/v1/drift?limit=2":             "[a-0 a-1 a-2 a-3 a-4]",
		"/api/v1/drift?older=1h&limit=1000": "[]",
	} {
		if got := fmt.Sprint(walk(path)); got != want {
			t.Errorf("%s gives %s; want %s", path, got, want)
		}
	}
	d.refused("GET", "/api/v1/twins?after=*", "", 400, "want what `next`")
	d.refused("GET", "/api/v1/drift?older=long", "", 400, "want a duration")
}

func TestDriftEndsWhenItIsReported(t *testing.T) {
	d := open(t, "")
	d.update("device.d-1.twin.update", `{"state":{"desired":{"a":1,"b":2}}}`)
	d.pass(time.Hour)
	d.update("device.d-1.twin.update", `{"state":{"desired":{"c":3},"reported":{"b":2}}}`)
	var l List
	d.get("/api/v1/drift?older=30m", &l)
	if len(l.Twins) != 1 || len(l.Twins[0].Fields) != 1 || l.Twins[0].Fields[0].Path != "/a" || d.now().Sub(l.Twins[0].Drift) < time.Hour {
		t.Errorf("what drifts for long is %+v", l.Twins)
	}
	d.update("device.d-1.twin.update", `{"state":{"reported":{"a":1}}}`)
	l = List{}
	d.get("/api/v1/drift", &l)
	if len(l.Twins) != 1 || l.Twins[0].Fields[0].Path != "/c" || d.now().Sub(l.Twins[0].Drift) > time.Minute {
		t.Errorf("what drifts is %+v", l.Twins)
	}
	d.update("device.d-1.twin.update", `{"state":{"reported":{"c":3}}}`)
	l = List{}
	if d.get("/api/v1/drift", &l); len(l.Twins) != 0 || l.Drifting != 0 || l.All != 1 {
		t.Errorf("after all is reported, %+v drifts", l)
	}
}

func TestAWatchGivesChangesAsTheyCome(t *testing.T) {
	d := open(t, "")
	s := httptest.NewServer(d.h)
	defer s.Close()
	watch := func(path string) *bufio.Scanner {
		resp, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		if resp.Header.Get("Content-Type") != "application/x-ndjson" {
			t.Fatalf("%s is answered with %s", path, resp.Status)
		}
		return bufio.NewScanner(resp.Body)
	}
	all, one := watch("/api/v1/twins/d-1/watch"), watch("/api/v1/twins/d-1/watch?shadow=config")
	d.update("device.d-2.twin.update", `{"state":{"reported":{"a":1}}}`)
	d.update("device.d-1.twin.update", `{"state":{"reported":{"a":1}}}`)
	d.update("device.d-1.twin.update", `{"state":{"reported":{"a":1}}}`)
	d.update("device.d-1.twin.name.config.update", `{"state":{"reported":{"b":1}}}`)
	next := func(sc *bufio.Scanner) (r Record) {
		t.Helper()
		if !sc.Scan() {
			t.Fatal("the watch ended")
		}
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := next(all); r.Device != "d-1" || r.Shadow != "" || r.Change != "created" || r.Changes[0].Path != "/reported/a" {
		t.Errorf("first comes %+v", r)
	}
	if r := next(all); r.Shadow != "config" {
		t.Errorf("then comes %+v", r)
	}
	if r := next(one); r.Shadow != "config" || string(r.Changes[0].After) != "1" {
		t.Errorf("of config comes %+v", r)
	}
	d.r.Stop()
	if all.Scan() {
		t.Errorf("after the component stopped comes %s", all.Bytes())
	}
}

func TestASlowWatcherHoldsNobodyUp(t *testing.T) {
	h := newHub()
	w := h.watch("d", nil)
	rec := recordOf(t)
	for range watchRoom + 5 {
		h.tell(ref{"d", ""}, rec)
	}
	if len(w.lines) != watchRoom || w.missed.Load() != 5 {
		t.Errorf("%d wait for it, and it missed %d", len(w.lines), w.missed.Load())
	}
	for range watchersMax - 1 {
		h.watch("d", nil)
	}
	if h.watch("d", nil) != nil {
		t.Error("one more than the limit may watch")
	}
	h.leave(w)
	if h.watch("d", nil) == nil {
		t.Error("nobody may watch although one left")
	}
}

// keys counts the keys in the component's store by their kinds.
func (d *desk) keys() map[string]int {
	d.t.Helper()
	n := map[string]int{}
	err := d.twins.env.View(func(v component.View) error {
		return v.Range(nil, nil, false, func(k, _ []byte) bool {
			n[string(k[:1])]++
			return true
		})
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}
