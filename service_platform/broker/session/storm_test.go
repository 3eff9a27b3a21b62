package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// TestAStormOfClientsIsToldInPieces since a message has a largest size: of more clients that come, or go, at once than one can name,
// none would ever be claimed, or given up.
func TestAStormOfClientsIsToldInPieces(t *testing.T) {
	var s *Store
	r := componenttest.New(t)
	r.Start(component.Define(component.Spec{Name: name, Doc: "keeps", Hears: []message.Pattern{"device.>", "service_platform.>"}, Says: []message.Pattern{states},
		State: component.Local, PerNode: true}, struct{}{}, func(env component.Env, _ struct{}) (*component.Part, error) {
		s = New(env, wide, func(Who, message.Reason, error) {})
		s.Join(func(message.ID) {}, func(Left) {})
		return &component.Part{HandleBatch: s.Hear}, nil
	}))
	r.Running(name)
	if err := errors.Join(s.Load(t.Context()), s.Begin(t.Context())); err != nil {
		t.Fatal(err)
	}
	alone := func() []string { return nil }
	if err := s.Fill(t.Context(), alone, time.Minute, func(context.Context) {}); err != nil {
		t.Fatal(err)
	}
	eventually := func(wrong func() string) {
		t.Helper()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for until := time.Now().Add(20 * time.Second); ; <-tick.C {
			s.mu.Lock()
			what := wrong()
			s.mu.Unlock()
			if what == "" {
				return
			}
			if time.Now().After(until) {
				t.Fatal(what)
			}
		}
	}
	const n = 40
	type joined struct {
		x     *Session
		epoch uint64
		err   error
	}
	came := make(chan joined, n)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i := range n {
		go func() {
			x, epoch, _, err := s.Connect(ctx, Who{ClientID: fmt.Sprint(i, strings.Repeat("-", 30_000))}, Caps{}, true, 0, new(client))
			came <- joined{x, epoch, err}
		}()
	}
	eventually(func() string {
		if len(s.cluster.asks) < n {
			return fmt.Sprintf("%d of %d clients wait to be claimed", len(s.cluster.asks), n)
		}
		return ""
	})
	running, stop := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { defer close(over); s.Announce(running) }()
	defer func() { stop(); <-over; s.Close() }()
	for range n {
		c := <-came
		if c.err != nil {
			t.Fatal(c.err)
		}
		if _, err := c.x.Disconnect(t.Context(), c.epoch, nil); err != nil {
			t.Fatal(err)
		}
	}
	eventually(func() string {
		if c := s.cluster; len(c.claims)+len(c.giving)+len(c.ending) > 0 {
			return fmt.Sprintf("%d clients are this node's, and %d are being given up; nobody is there", len(c.claims), len(c.giving))
		}
		return ""
	})
}
