package partition

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

func TestPartitionKeepsThePromises(t *testing.T) {
	componenttest.Promises(t, componenttest.Case{Spec: Spec})
}

// reader hears the device log, and waits where it is told to.
func reader(hold chan struct{}) component.Spec {
	return component.Define(component.Spec{Name: "service_platform.reader", Doc: "reads", Hears: []message.Pattern{"device.>"}, State: component.Derived, Into: message.ServicePlatform},
		struct{}{}, func(component.Env, struct{}) (*component.Part, error) {
			return &component.Part{Handle: func(ctx context.Context, _ component.Tx, _ *message.Message) error {
				select {
				case <-hold:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}}, nil
		})
}

// ask gives the status and the text of an answer, and its value.
func ask[T any](t *testing.T, r *componenttest.Rig, method, path, body string) (int, string, T) {
	t.Helper()
	w := httptest.NewRecorder()
	r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	var v T
	_ = json.Unmarshal(w.Body.Bytes(), &v) // a refusal is a text
	return w.Code, w.Body.String(), v
}

func TestALogGetsOtherPartitionsAndTellsWhoHasGoneOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		hold := make(chan struct{})
		r.Start(Spec, reader(hold))
		r.Running(Spec.Name)
		r.Say(componenttest.Message("device.d-1.telemetry", "d-1", "1"))
		close(hold)
		r.Settled("service_platform.reader", message.Device)

		code, text, done := ask[Done](t, r, "POST", "/api/v1/logs/device/repartition", `{"partitions":4,"by":"kim","note":"lag"}`)
		if code != http.StatusOK || done.Generation != 2 || done.Before != 1 || done.Partitions != 4 {
			t.Fatalf("answered %d %s", code, text)
		}
		var l Log
		r.Until(func() bool {
			_, text, l = ask[Log](t, r, "GET", "/api/v1/logs/device", "")
			return len(l.Consumers) == 1 && l.Consumers[0].Over
		}, func() string { return "the reader does not go over: " + text })
		if l.Partitions != 4 || len(l.Generations) != 2 || !l.Generations[0].Sealed || l.Oldest.IsZero() || l.Newest.IsZero() || l.Bytes == 0 {
			t.Errorf("the log is %s", text)
		}
		if len(l.Changes) != 1 || l.Changes[0].By != "kim" || l.Changes[0].Note != "lag" || l.Changes[0].At.IsZero() {
			t.Errorf("its changes are %+v", l.Changes)
		}
		told := r.Said(Spec.Name)
		if len(told) != 1 || told[0].Subject != "operator.repartitioned.device" || !strings.Contains(string(told[0].Data), `"by":"kim"`) {
			t.Errorf("it told %v", told)
		}
	})
}

func TestALogWaitsForItsReadersBeforeItIsChangedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		hold := make(chan struct{})
		r.Start(Spec, reader(hold))
		r.Running(Spec.Name)
		r.Say(componenttest.Message("device.d-1.telemetry", "d-1", "1"))
		hold <- struct{}{}
		r.Await("service_platform.reader", message.Device, func(rep component.Report) bool { return rep.Position.Sequence == 1 })
		r.Say(componenttest.Message("device.d-1.telemetry", "d-1", "2"))
		r.Until(func() bool { // it has been seen to run
			_, _, l := ask[Log](t, r, "GET", "/api/v1/logs/device", "")
			return len(l.Consumers) == 1 && !l.Consumers[0].Away
		}, func() string { return "the reader is not shown" })
		if code, text, _ := ask[Done](t, r, "POST", "/api/v1/logs/device/repartition", `{"partitions":2,"by":"kim"}`); code != http.StatusOK {
			t.Fatalf("answered %d %s", code, text)
		}
		code, text, _ := ask[Done](t, r, "POST", "/api/v1/logs/device/repartition", `{"partitions":3,"by":"kim"}`)
		if code != http.StatusConflict || !strings.Contains(text, "service_platform.reader has not gone over") {
			t.Errorf("while a reader is in the old generation it answers %d %s", code, text)
		}
		close(hold)
		r.Until(func() bool {
			code, text, _ = ask[Done](t, r, "POST", "/api/v1/logs/device/repartition", `{"partitions":3,"by":"kim"}`)
			return code == http.StatusOK
		}, func() string { return "it is refused for ever: " + text })
	})
}

func TestARepartitionThatMakesNoSenseIsRefusedWithTheReason(t *testing.T) {
	r := componenttest.New(t)
	r.Start(Spec)
	r.Running(Spec.Name)
	for _, c := range []struct {
		log, body, says string
		code            int
	}{
		{"devise", `{"partitions":2,"by":"kim"}`, `there is no log \"devise\"; there are`, http.StatusNotFound},
		{"device", `{"partitions":0,"by":"kim"}`, "partitions 0: want 1 to 64", http.StatusBadRequest},
		{"device", `{"partitions":65,"by":"kim"}`, "partitions 65: want 1 to 64", http.StatusBadRequest},
		{"device", `{"partitions":2}`, "by: want the name", http.StatusBadRequest},
		{"device", `{"partitions":2,"by":"kim","partitoins":3}`, "partitoins", http.StatusBadRequest},
		{"device", `{"partitions":2,"by":"` + strings.Repeat("k", textMax+1) + `"}`, fmt.Sprint("at most ", textMax), http.StatusBadRequest},
		{"device", `{"partitions":1,"by":"kim"}`, "log device has 1 already", http.StatusConflict},
	} {
		if code, text, _ := ask[Done](t, r, "POST", "/api/v1/logs/"+c.log+"/repartition", c.body); code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s %s is answered with %d %s; want %d, %q", c.log, c.body, code, text, c.code, c.says)
		}
	}
	if n := len(r.Said(Spec.Name)); n != 0 {
		t.Errorf("it told of %d changes", n)
	}
}

// Partitions in one embedded server wait for one disk, which who asks for more of them should know.
func TestMorePartitionsOfOneEmbeddedServerAreWarnedOf(t *testing.T) {
	w := warnings(&Log{Engine: "nats embedded", Partitions: 1}, 4)
	if len(w) != 1 || !strings.Contains(w[0], "same disk") {
		t.Errorf("the warnings are %q", w)
	}
	if w := warnings(&Log{Engine: "nats nats://a:4222", Partitions: 1}, 4); len(w) != 0 {
		t.Errorf("of a cluster it warns %q", w)
	}
}
