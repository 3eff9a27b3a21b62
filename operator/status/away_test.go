package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	"github.com/naru-platform/naru/message/catalog"
)

// told is what status says now.
func told(t *testing.T, r *componenttest.Rig) (st Status) {
	t.Helper()
	w := httptest.NewRecorder()
	r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/status", nil))
	if err := json.Unmarshal(w.Body.Bytes(), &st); w.Code != http.StatusOK || err != nil {
		t.Fatal(w.Code, w.Body.String(), err)
	}
	return st
}

// TestStatusTellsOfWhatRunsNowhere and of nothing while another process has taken over: one that stands by is well.
func TestStatusTellsOfWhatRunsNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		r.Start(Spec)
		r.Running(Spec.Name)
		works := component.Define(component.Spec{Name: "service_platform.works", Doc: "works", Hears: []message.Pattern{"device.>"}, State: component.Local, Required: true}, struct{}{},
			func(component.Env, struct{}) (*component.Part, error) {
				return &component.Part{Handle: func(context.Context, component.Tx, *message.Message) error { return nil }}, nil
			})
		run := func(node string) (stop func()) {
			h := &component.Host{Bus: r.Bus.Reopen(), Catalog: catalog.Default(), Dir: t.TempDir(), Node: node, Specs: []component.Spec{works}}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- h.Run(ctx) }()
			return func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
		var st Status
		ask := func() Status {
			st = told(t, r)
			return st
		}
		states := func() (list []string) {
			for _, c := range ask().Components {
				if c.Name == works.Name {
					list = append(list, c.Node+" "+c.State)
				}
			}
			return list
		}
		await := func(want ...string) {
			t.Helper()
			r.Until(func() bool { return slices.Equal(states(), want) }, func() string { return fmt.Sprintf("it is %v; want %v", states(), want) })
		}
		first := run("n2")
		await("n2 running")
		second := run("n3")
		await("n2 running", "n3 standby")
		time.Sleep(2 * lookAfter)
		if ask(); !st.Healthy {
			t.Errorf("with one that runs and one that stands by: %q", st.Faults)
		}
		first()
		r.Until(func() bool { return slices.Contains(states(), "n3 running") }, func() string { return fmt.Sprint("nobody took over: ", states()) })
		if ask(); !st.Healthy {
			t.Errorf("with the other process: %q", st.Faults)
		}
		r.Say(componenttest.Message("device.d.telemetry", "d", "1"))
		owe(t, r, works.Name)
		second()
		await(" away") // and not as stopped, too
		time.Sleep(5 * time.Minute)
		await(" away")
		if i := slices.IndexFunc(st.Components, func(c Component) bool { return c.State == "away" }); len(st.Components[i].Lag) != 1 || st.Components[i].Lag[0].Batches != 1 || st.Components[i].Lag[0].Oldest.IsZero() || time.Since(st.Components[i].Lag[0].Oldest) < 5*time.Minute {
			t.Errorf("it is behind by %+v; want one batch", st.Components[i].Lag)
		}
		if len(st.Faults) != 1 || !strings.HasPrefix(st.Faults[0], "service_platform.works runs in no process, and messages wait for it") || st.Healthy ||
			!strings.HasSuffix(st.Faults[0], "start it (`naru run service_platform.works`), or if it went for good, `naru ledger forget service_platform.works`") {
			t.Errorf("with none: %q", st.Faults)
		}
		third := run("n4")
		await("n4 running")
		if ask(); !st.Healthy {
			t.Errorf("when it is back: %q", st.Faults)
		}
		third()
		time.Sleep(time.Minute)
		if err := r.Host.Peers().Forget(t.Context(), r.Bus, works.Name, time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := states(); len(got) != 0 || !st.Healthy {
			t.Errorf("forgotten, it is %v, with %q", got, st.Faults)
		}
		r.Stop()
	})
}

// owe notes, as operator.retention does, that the log keeps messages for a consumer.
func owe(t *testing.T, r *componenttest.Rig, consumer string) {
	t.Helper()
	marks, err := r.Bus.Table(t.Context(), component.RequiredTable, bus.TableOptions{})
	if err == nil {
		_, err = marks.Put(t.Context(), "device/1/0/"+consumer, []byte(`{"generation":1}`))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestStatusExcusesAProcessThatHasJustBegun for what its components still wait for, and not for what has failed.
func TestStatusExcusesAProcessThatHasJustBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		r.Say(componenttest.Message("device.d.telemetry", "d", "1"))
		shut := component.Define(component.Spec{Name: "service_platform.shut", Doc: "waits for a database", Hears: []message.Pattern{"device.>"}, State: component.Local, Required: true}, struct{}{},
			func(component.Env, struct{}) (*component.Part, error) {
				return &component.Part{HandleAll: func(context.Context, component.Tx, string, []component.Heard) ([]error, error) {
					return nil, errors.New("the database is shut")
				}}, nil
			})
		r.Start(Spec, shut)
		r.Running(Spec.Name)
		var st Status
		ask := func() Status {
			st = told(t, r)
			return st
		}
		r.Until(func() bool { return len(ask().Faults) > 0 }, func() string { return "it stands still, and nothing is told" })
		if st.Healthy || !st.Starting || !strings.Contains(st.Faults[0], "the database is shut") {
			t.Errorf("at first: healthy %t, starting %t, %q", st.Healthy, st.Starting, st.Faults)
		}
		time.Sleep(lookAfter)
		if ask(); st.Healthy || st.Starting {
			t.Errorf("later: healthy %t, starting %t, %q", st.Healthy, st.Starting, st.Faults)
		}
		r.Stop()
	})
}
