package worker_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/service_platform/worker"
)

// TestARemovedWorkerIsForgottenOnceThatCanBe has it held by another process while it is removed, and nothing else is changed after that.
func TestARemovedWorkerIsForgottenOnceThatCanBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		r.Start(worker.Spec)
		r.Running(worker.Name)
		ask := func(method, query string) int {
			w := httptest.NewRecorder()
			r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest(method, "/api/v1/workers/w"+query, strings.NewReader("{}")))
			return w.Code
		}
		lease, err := r.Bus.Lease(t.Context(), "consumer/"+worker.Name+"/w", "n2", 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if code := ask("PUT", ""); code != 200 {
			t.Fatalf("it is added with %d", code)
		}
		if code := ask("DELETE", "?force=true"); code != 200 {
			t.Fatalf("it is removed with %d", code)
		}
		time.Sleep(time.Minute)
		if code := ask("PUT", ""); code != 409 {
			t.Fatalf("it is added again with %d while the former one is not forgotten", code)
		}
		if err := lease.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		code := 0
		r.Until(func() bool { code = ask("PUT", ""); return code == 200 }, func() string { return http.StatusText(code) + " where it may be added again" })
		r.Stop()
	})
}
