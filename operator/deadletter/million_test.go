package deadletter

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// BenchmarkMillionLetters lists, groups and looks through a million dead letters of a hundred kinds.
//
//	go test -run '^$' -bench MillionLetters -benchtime 5x ./operator/deadletter
func BenchmarkMillionLetters(b *testing.B) {
	const n = 1_000_000
	r := componenttest.New(b)
	var l *Letters
	spec := component.Define(Spec, Config{MaxAge: "720h", MaxBytes: 4 << 30, JobsKept: 100, InFlight: 1000}, func(env component.Env, c Config) (*component.Part, error) {
		l = &Letters{}
		p, err := build(env, c, l)
		return p, err
	})
	r.Start(spec)
	r.Running(Name)
	now := time.Now()
	reasons := []message.Reason{message.SchemaMismatch, message.HandlerError, message.RetriesExhausted, message.Loop}
	for done := 0; done < n; done += 10_000 {
		err := l.env.Change(b.Context(), func(tx component.Tx) error {
			for i := done; i < done+10_000; i++ {
				original := &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Device: fmt.Sprint("d-", i%5000), Subject: message.NewSubject("device", fmt.Sprint("d-", i%5000), "telemetry")}
				d := operator.Dead{Reason: reasons[i%4], Detail: fmt.Sprintf("/%c: want number, got %d", 'a'+i%25, i), Component: "service_platform.twin", Attempts: 1, First: now, Last: now,
					Original: message.AppendRecord(nil, original)}
				m := &message.Message{ID: message.NewID(now), Trace: original.Trace, Cause: original.ID, Device: original.Device, Data: make([]byte, 500)}
				x := l.letterOf(m, &d)
				if err := l.join(tx, &x); err != nil {
					return err
				}
				tx.Set(key(kindLetter, x.ID), m.Data)
				tx.Set(key(kindSummary, x.ID), x.encode())
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	h := r.Host.Handler(func(*http.Request) bool { return true })
	for name, path := range map[string]string{"groups": "/api/v1/dead/groups", "list": "/api/v1/dead?limit=1000", "device": "/api/v1/dead?limit=1000&device=d-17", "nothing": "/api/v1/dead?text=no+such+text"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
				if w.Code != http.StatusOK {
					b.Fatal(w.Code, w.Body)
				}
			}
		})
	}
}
