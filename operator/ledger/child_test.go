package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// mother has one child, until it is told to forget it.
func mother(away <-chan struct{}, forgotten chan<- error) component.Spec {
	hears := []message.Pattern{"device.*.telemetry"}
	return component.Define(component.Spec{Name: "operator.mother", Doc: "has a child", ChildrenHear: hears}, struct{}{},
		func(env component.Env, _ struct{}) (*component.Part, error) {
			return &component.Part{Run: func(ctx context.Context, ready func()) error {
				err := env.Children([]component.Child{{Name: "c", Hears: hears, Build: func(component.Env) (*component.Part, error) {
					return &component.Part{Handle: func(_ context.Context, _ component.Tx, m *message.Message) error {
						if string(m.Data) == "poison" {
							return message.Reject(message.NotDecodable, errors.New("poison"))
						}
						return nil
					}}, nil
				}}})
				ready()
				if err == nil {
					select {
					case <-away:
						forgotten <- errors.Join(env.Children(nil), env.Forget(ctx, "c"))
					case <-ctx.Done():
					}
					<-ctx.Done()
				}
				return err
			}}, nil
		})
}

func TestLedgerHasALineForAChildUntilItIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		away, forgotten := make(chan struct{}), make(chan error, 1)
		child := func() *Line {
			w := httptest.NewRecorder()
			r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/ledger", nil))
			var lines []Line
			if err := json.Unmarshal(w.Body.Bytes(), &lines); err != nil {
				return nil // the ledger is starting
			}
			for _, l := range lines {
				if l.Consumer == "operator.mother/c" && l.Log == message.Device {
					return &l
				}
			}
			return nil
		}
		await := func(what string, f func(*Line) bool) {
			t.Helper()
			var last *Line
			r.Until(func() bool { last = child(); return f(last) }, func() string { return what + ": " + string(mustJSON(last)) })
		}
		r.Start(mother(away, forgotten), Spec)
		for _, data := range []string{"1", "poison", "2"} {
			r.Say(componenttest.Message("device.d.telemetry", "d", data))
		}
		await("three messages have a fate", func(l *Line) bool {
			return l != nil && l.Child && l.Balanced && l.Accepted == 3 && l.Handled == 2 && l.Dead == 1
		})
		r.Settled("operator.ledger", message.Device)
		r.Stop()

		// It is away for longer than a node that is gone for good is waited for: it is no node, and is owed its messages.
		r.Start(Spec)
		r.Say(componenttest.Message("device.d.telemetry", "d", "3"))
		long, cancel := context.WithTimeout(context.Background(), 11*time.Minute)
		defer cancel()
		<-long.Done()
		await("one waits for a child that is away", func(l *Line) bool { return l != nil && l.Waiting == 1 && l.Stale && l.Balanced })
		r.Stop()

		r.Start(mother(away, forgotten), Spec)
		await("it is back", func(l *Line) bool { return l != nil && l.Waiting == 0 && l.Balanced && !l.Stale })
		close(away)
		if err := <-forgotten; err != nil {
			t.Fatal(err)
		}
		await("it is forgotten", func(l *Line) bool { return l == nil })
	})
}

func mustJSON(v any) []byte {
	raw, _ := json.Marshal(v) // a Line can be written
	return raw
}
