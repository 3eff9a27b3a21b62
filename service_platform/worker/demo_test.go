package worker_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/worker"
)

func TestDemoWorkerIsThereInSimulationsOnly(t *testing.T) {
	r := newRig(t)
	again := func(demo bool) {
		t.Helper()
		r.Stop()
		r.Config[worker.Name] = fmt.Appendf(nil, `{"allow":["127.0.0.0/8"],"demo":%t}`, demo)
		r.begin()
	}
	const path = "/api/v1/workers/" + worker.DemoName
	answered := func(status int) {
		t.Helper()
		var code int
		r.Until(func() bool { code, _ = r.ask("GET", path, nil); return code == status }, func() string { return fmt.Sprintf("it is answered %d", code) })
	}
	answered(404)
	again(true)
	answered(200)
	again(true) // over a restart it is the same one
	answered(200)
	r.ready(worker.DemoName)
	if s := r.shown(worker.DemoName); !s.Demo || s.Version != 1 {
		t.Errorf("it is %+v", s)
	}
	mine := worker.Record{Name: worker.DemoName, Hears: []message.Pattern{"x"}}
	for method, path := range map[string]string{"PUT": path, "DELETE": path, "POST": path + "/pause"} {
		if code, body := r.ask(method, path, mine); code != 409 || !strings.Contains(body, "give yours another name") {
			t.Errorf("%s by somebody is answered %d %s", method, code, body)
		}
	}
	again(false)
	answered(404)
	r.Until(func() bool { code, _ := r.ask("PUT", path, mine); return code == 200 }, func() string { return "the name is not free" })
	again(true) // somebody's own stays, whoever starts
	r.ready(worker.DemoName)
	if code, body := r.ask("PUT", path, worker.Record{Name: worker.DemoName, Hears: []message.Pattern{"y"}}); code != 200 {
		t.Errorf("somebody changes his own, and is answered %d %s", code, body)
	}
	_, body := r.ask("GET", path, nil)
	var s worker.Shown
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.Demo || len(s.Hears) != 1 || s.Hears[0] != "y" {
		t.Errorf("somebody's own became %s", body)
	}
}
