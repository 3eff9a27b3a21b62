package command

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/message"
	sp "github.com/naru-platform/naru/message/service_platform"
)

func TestOperatorSaysACommandAsAnAppDoes(t *testing.T) {
	story(t, "", func(r *rig) {
		r.present("d-1", true)
		var s Shown
		if code := r.ask("POST", "/api/v1/commands", `{"device":"d-1","name":"open","id":"c1","data":{"angle":30},"ttl":"10m","qos":0,"by":"kim"}`, &s); code != 200 {
			t.Fatalf("send: %d", code)
		}
		out := r.released(1)
		if s.ID != "c1" || s.Data != `{"angle":30}` || s.Expires.Sub(s.Times.Queued).Round(time.Second) != 10*time.Minute || out.QoS != 0 || !strings.HasSuffix(s.Source, "?by=kim") || out.Trace.ID != s.Trace {
			t.Errorf("it is %+v, released %+v", s, out)
		}
		found := 0
		for _, m := range r.Read(message.Device) {
			if m.ID == s.Message && m.Subject == "device.d-1.command.open.c1" {
				found++
			}
		}
		if found != 1 {
			t.Errorf("it is %d times in the log", found)
		}
		if code := r.ask("POST", "/api/v1/commands", `{"device":"d-1","name":"open","id":"c1"}`, &s); code != 200 || s.Data != `{"angle":30}` {
			t.Errorf("said again: %d %+v", code, s)
		}
		if code := r.ask("POST", "/api/v1/commands", `{"device":"d-1","name":"open","text":"now"}`, &s); code != 200 || s.ID == "" || s.Data != "now" || s.ID != s.Message.String() {
			t.Errorf("without an id: %d %+v", code, s)
		}
		for _, body := range []string{`{}`, `{"device":"d/1","name":"open"}`, `{"device":"d-1","name":"a+"}`, `{"device":"d-1","name":"open","ttl":"soon"}`, `{"device":"d-1","name":"open","qos":3}`,
			`{"device":"d-1","name":"open","data":1,"text":"1"}`, `{"device":"d-1","name":"open","dta":1}`, `nonsense`} {
			if code := r.ask("POST", "/api/v1/commands", body, nil); code != 400 {
				t.Errorf("%s is answered with %d", body, code)
			}
		}
	})
}

func TestWhoWaitsIsToldTheEnd(t *testing.T) {
	story(t, "", func(r *rig) {
		r.command("d-1", "c1", "")
		r.is("d-1", "c1", sp.CommandQueued)
		done := make(chan Shown, 1)
		go func() {
			var s Shown
			r.ask("GET", "/api/v1/commands/d-1/c1?wait=30s", "", &s)
			done <- s
		}()
		r.pass(10 * time.Second)
		r.answer("d-1", "c1", "done")
		if s := <-done; s.State != sp.CommandReplied {
			t.Errorf("told is %+v", s)
		}
		began := time.Now()
		r.command("d-1", "c2", "")
		r.is("d-1", "c2", sp.CommandQueued)
		var s Shown
		if code := r.ask("GET", "/api/v1/commands/d-1/c2?wait=5s", "", &s); code != 200 || s.State != sp.CommandQueued || time.Since(began) < 5*time.Second {
			t.Errorf("after %s: %d %+v", time.Since(began), code, s)
		}
		for _, path := range []string{"d-1/c2?wait=1h", "d-1/c2?wait=x"} {
			if code := r.ask("GET", "/api/v1/commands/"+path, "", nil); code != 400 {
				t.Errorf("%s is answered with %d", path, code)
			}
		}
		if code := r.ask("GET", "/api/v1/commands/d-1/none", "", nil); code != 404 {
			t.Errorf("what is not there is answered with %d", code)
		}
	})
}

func TestCancelledCommandGoesNowhere(t *testing.T) {
	story(t, "", func(r *rig) {
		for _, id := range []string{"c1", "c2", "c3"} {
			r.command("d-1", id, "")
		}
		r.is("d-1", "c3", sp.CommandQueued)
		var s Shown
		if code := r.ask("DELETE", "/api/v1/commands/d-1/c1", "", nil); code != 400 {
			t.Errorf("cancelled by nobody: %d", code)
		}
		if code := r.ask("DELETE", "/api/v1/commands/d-1/c1?by=kim", "", &s); code != 200 || s.State != sp.CommandCancelled || s.Detail != "taken back by kim" {
			t.Errorf("cancel: %d %+v", code, s)
		}
		if code := r.ask("DELETE", "/api/v1/commands/d-1/c1?by=kim", "", nil); code != 409 {
			t.Errorf("cancelled twice: %d", code)
		}
		r.present("d-1", true)
		if out := r.released(1); out.Subject.Token(6) != "c2" {
			t.Errorf("released is %s", out.Subject)
		}
		if code := r.ask("DELETE", "/api/v1/commands/d-1/c2?by=kim", "", &s); code != 200 || !strings.Contains(s.Detail, "it was released already") {
			t.Errorf("cancel: %d %+v", code, s)
		}
		if out := r.released(2); out.Subject.Token(6) != "c3" { // it makes room for the next one
			t.Errorf("released is %s", out.Subject)
		}
		r.counted()
	})
}

func TestCommandsAreListedByPages(t *testing.T) {
	story(t, "", func(r *rig) {
		for i := range 7 {
			r.command(fmt.Sprint("d-", i%2), fmt.Sprint("c", i), "")
			r.pass(time.Millisecond) // what is said in one moment has no order
		}
		r.answer("d-0", "c0", "done")
		r.is("d-0", "c0", sp.CommandReplied)
		pages := func(query string) (ids []string) {
			for before := ""; ; {
				var l List
				if code := r.ask("GET", "/api/v1/commands?limit=2&"+query+"&before="+before, "", &l); code != 200 {
					t.Fatalf("%s: %d", query, code)
				}
				for _, x := range l.Commands {
					ids = append(ids, x.ID)
				}
				if before = l.Next; before == "" {
					return ids
				}
			}
		}
		for query, want := range map[string]string{
			"": "c6 c5 c4 c3 c2 c1 c0", "device=d-0": "c6 c4 c2 c0", "device=d-1": "c5 c3 c1", "state=replied": "c0", "state=open&device=d-0": "c6 c4 c2", "name=close": "", "device=d": "",
		} {
			if got := strings.Join(pages(query), " "); got != want {
				t.Errorf("%q lists %s; want %s", query, got, want)
			}
		}
		for _, query := range []string{"state=lost", "limit=0", "before=x", "device=d-0&before=x"} {
			if code := r.ask("GET", "/api/v1/commands?"+query, "", nil); code != 400 {
				t.Errorf("%q is answered with %d", query, code)
			}
		}
	})
}
