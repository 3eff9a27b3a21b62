package ledger

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
)

// TestForgettingAConsumerReleasesWhatTheLogsKeepForIt also where the ledger has dropped it by itself, as it does with the
// consumers of a node that is gone.
func TestForgettingAConsumerReleasesWhatTheLogsKeepForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mem.New(mem.Options{})
		defer b.Close()
		marks, err := b.Table(t.Context(), component.RequiredTable, bus.TableOptions{})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(bus.Position{Generation: 1, Sequence: 1})
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"device/1/0/operator.worker", "operator/1/0/operator.worker", "device/1/0/service_platform.broker/n9", "device/1/0/operator.ledger"} {
			if _, err := marks.Put(t.Context(), key, raw); err != nil {
				t.Fatal(err)
			}
		}
		kept := func(consumer string) int {
			keys, err := component.Marks(t.Context(), b, consumer)
			if err != nil {
				t.Fatal(err)
			}
			return len(keys)
		}
		r := start(t, b, t.TempDir(), nil)
		r.say(2)
		r.await(func(l Line) bool { return l.Handled == 2 })
		if code := r.forget("operator.worker"); code != http.StatusConflict || kept("operator.worker") != 2 {
			t.Errorf("a consumer that is there: %d, with %d marks left", code, kept("operator.worker"))
		}
		<-time.After(3 * time.Second)
		r.stop()
		r = start(t, b, r.host.Dir, nil, Spec)
		r.say(1)
		<-time.After(5 * time.Minute)
		r.await(func(l Line) bool { return l.Stale && l.Waiting == 1 })
		if code := r.forget("operator.worker"); code != http.StatusOK || kept("operator.worker") != 0 {
			t.Errorf("a consumer that went for good: %d, with %d marks left", code, kept("operator.worker"))
		}
		for _, l := range r.lines() {
			if l.Consumer == "operator.worker" {
				t.Errorf("it is still owed something: %+v", l)
			}
		}
		if code := r.forget("service_platform.broker/n9"); code != http.StatusOK || kept("service_platform.broker/n9") != 0 {
			t.Errorf("a consumer of a node that is gone: %d, with %d marks left", code, kept("service_platform.broker/n9"))
		}
		if code := r.forget("service_platform.broker/n9"); code != http.StatusNotFound {
			t.Errorf("one that nobody knows: %d", code)
		}
		if kept("operator.ledger") != 1 {
			t.Error("another one's mark went too")
		}
		r.stop()
	})
}

// lines asks for the ledger as an operator does.
func (r *rig) lines() (list []Line) {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/ledger", nil))
	if w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &list) != nil {
		r.t.Fatalf("the ledger: %d %s", w.Code, w.Body)
	}
	return list
}
