package status

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// TestStatusNamesTheProcessWithOtherContracts because such a door lets in what another refuses.
func TestStatusNamesTheProcessWithOtherContracts(t *testing.T) {
	r := componenttest.New(t)
	r.Start(Spec)
	idle := component.Define(component.Spec{Name: "service_platform.idle", Doc: "does nothing"}, struct{}{},
		func(component.Env, struct{}) (*component.Part, error) { return &component.Part{}, nil })
	join := func(node string, more ...message.Contract) {
		c, err := message.NewCatalog(append(catalog.Default().Contracts(), more...)...)
		if err != nil {
			t.Fatal(err)
		}
		h := &component.Host{Bus: r.Bus.Reopen(), Catalog: c, Dir: t.TempDir(), Node: node, Specs: []component.Spec{idle}}
		done := make(chan error, 1)
		go func() { done <- h.Run(t.Context()) }()
		t.Cleanup(func() {
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	join("n2")
	join("n3", message.Contract{Subjects: "device.*.telemetry.engine", Type: "engine.v1", Doc: "d", Owner: "o", Route: message.ByLog})

	var st Status
	seen := func() bool {
		w := httptest.NewRecorder()
		r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/status", nil))
		st = Status{}
		return w.Code == http.StatusOK && json.Unmarshal(w.Body.Bytes(), &st) == nil && len(st.Components) == 3
	}
	r.Until(seen, func() string { return "not all processes are seen" })
	if len(st.Faults) != 1 || !strings.HasPrefix(st.Faults[0], "node n3 has other contracts than this one: give") || st.Healthy {
		t.Errorf("the faults are %q", st.Faults)
	}
}
