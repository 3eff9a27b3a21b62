package api

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/data_platform/storage"
)

// sceptic refuses pipelines that want heat.
func sceptic(_ context.Context, _ *model.Dataset, p *model.Pipeline) error {
	if strings.Contains(p.Steps[0].SQL, "heat") {
		return &model.Fault{Text: "there is no heat"}
	}
	return nil
}

const doors = "dataset: doors\nversion: 1\nowner: works\ndoc: A door.\nfrom: [device.*.event.opened]\nfields: [{name: open, type: bool}]\n"

func TestModelsAreShownAppliedAndRemoved(t *testing.T) {
	r := componenttest.New(t)
	r.Start(With(storage.NewHub(), sceptic))
	r.Running(Name)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "", "", 200, `"name":"telemetry"`},
		{"GET", "/dataset/telemetry", "", 200, `"built_in":true`},
		{"GET", "/dataset/telemetry/schema", "", 200, `"celsius"`},
		{"GET", "/dataset/doors", "", 404, "naru data models"},
		{"PUT", "?dry=1&file=d.yaml", doors + "---\npipeline: p\ndataset: doors\nsteps: [{sql: SELECT * FROM input}]\n", 200, "[]"},
		{"PUT", "?file=d.yaml", doors + "---\npipeline: p\ndataset: doors\nsteps: [{sql: SELECT heat FROM input}]\n", 409, "d.yaml:8: there is no heat; nothing was changed"},
		{"GET", "/dataset/doors", "", 404, "no dataset doors"},
		{"PUT", "?file=d.yaml", "dataset: doors\nversoin: 1\n", 400, `d.yaml:2: there is no setting \"versoin\"; did you mean \"version\"?`},
		{"PUT", "?file=d.yaml&by=me", doors, 200, `"by":"me"`},
		{"PUT", "?dry=1", strings.Replace(doors, "bool", "int", 1), 409, "make it 2"},
		{"PUT", "", strings.Replace(doors, "bool", "int", 1), 409, "not each value that is there fits"},
		{"GET", "/dataset/doors", "", 200, `"version":1`},
		{"GET", "/asyncapi.json", "", 200, `data_platform.doors.v1`},
		{"DELETE", "/dataset/doors", "", 200, `"deleted":true`},
		{"DELETE", "/dataset/doors", "", 404, "no dataset doors"},
		{"GET", "/rule/doors", "", 404, "no rule doors"},
		{"PUT", "", strings.Repeat("#", bodyMax+1), 400, "they may have"},
	} {
		w := httptest.NewRecorder()
		r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest(c.method, "/api/v1/data/models"+c.path, strings.NewReader(c.body)))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s %s: %d %s; want %d and %s", c.method, c.path, w.Code, w.Body, c.status, c.want)
		}
	}
}

func TestAPIKeepsThePromises(t *testing.T) {
	componenttest.Promises(t, componenttest.Case{Spec: With(storage.NewHub(), sceptic)})
}
