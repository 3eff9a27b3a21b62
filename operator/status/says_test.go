package status

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
)

// TestStatusSaysWhichComponentFailedWhereAndWhy and says where another one listens, which is well.
func TestStatusSaysWhichComponentFailedWhereAndWhy(t *testing.T) {
	run := func(name string, f func(context.Context, component.Env, func()) error) component.Spec {
		return component.Define(component.Spec{Name: name, Doc: "runs"}, struct{}{}, func(env component.Env, _ struct{}) (*component.Part, error) {
			return &component.Part{Run: func(ctx context.Context, ready func()) error { return f(ctx, env, ready) }}, nil
		})
	}
	r := componenttest.New(t)
	r.Start(Spec,
		run("service_platform.ill", func(context.Context, component.Env, func()) error { return errors.New("the valve is stuck") }),
		run("service_platform.well", func(ctx context.Context, env component.Env, ready func()) error {
			env.Listening("devices", "127.0.0.1:4711")
			ready()
			<-ctx.Done()
			return nil
		}))
	const fault = "service_platform.ill on n1 failed: the valve is stuck"
	var st Status
	r.Until(func() bool {
		w := httptest.NewRecorder()
		r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/status", nil))
		st = Status{}
		if w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &st) != nil {
			return false
		}
		return slices.Contains(st.Faults, fault) && slices.ContainsFunc(st.Components, func(c Component) bool {
			return c.Name == "service_platform.well" && c.State == "running" && c.Listens["devices"] == "127.0.0.1:4711"
		})
	}, func() string {
		raw, _ := json.Marshal(st)
		return "it says " + string(raw)
	})
	if st.Healthy || len(st.Faults) != 1 {
		t.Errorf("healthy is %v, with the faults %q", st.Healthy, st.Faults)
	}
}
