package component_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
)

func TestAComponentThatRunsSaysWhatKeepsItFromItsWork(t *testing.T) {
	say := make(chan string)
	spec := component.Define(component.Spec{Name: "operator.waiting", Doc: "waits"}, struct{}{}, func(env component.Env, _ struct{}) (*component.Part, error) {
		return &component.Part{Run: func(ctx context.Context, ready func()) error {
			ready()
			for {
				select {
				case why := <-say:
					env.Fault(why)
				case <-ctx.Done():
					return nil
				}
			}
		}}, nil
	})
	r := componenttest.New(t)
	r.Start(spec)
	r.Running("operator.waiting")
	for _, c := range []struct{ why, want string }{{"its server is away\nand more of it", "its server is away"}, {"its server only reads", "its server only reads"}, {"", ""}} {
		say <- c.why
		r.Until(func() bool { h := r.Host.Health()[0]; return h.State == "running" && h.Fault == c.want },
			func() string { return fmt.Sprintf("health is %+v; want the fault %q", r.Host.Health()[0], c.want) })
	}
}
