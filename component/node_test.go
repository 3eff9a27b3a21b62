package component_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message/catalog"
)

// A process that runs on a copy of another one's directory ends, and the other goes on. One that is started again, after whatever end, does not.
func TestTwoProcessesDoNotRunAsOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFamily(t)
		defer f.r.Close()
		f.r.Start(f.spec)
		f.r.Running(mother)
		copied := &component.Host{Bus: f.r.Bus.Reopen(), Catalog: catalog.Default(), Dir: t.TempDir(), Node: "n1"}
		if err := copied.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "runs as node n1") {
			t.Fatalf("the second process of one name: %v", err)
		}
		if f.r.Host.Health()[0].State != "running" {
			t.Error("the first one does not run any more")
		}

		other := componenttest.New(t) // killed, it leaves its lease behind
		defer other.Close()
		killed := other.Bus.Reopen()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- (&component.Host{Bus: killed, Catalog: catalog.Default(), Dir: t.TempDir(), Node: "n1"}).Run(ctx)
		}()
		synctest.Wait()
		killed.Close()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		again, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := (&component.Host{Bus: other.Bus, Catalog: catalog.Default(), Dir: t.TempDir(), Node: "n1"}).Run(again); err != nil {
			t.Errorf("it is started again after a kill: %v", err)
		}
	})
}
