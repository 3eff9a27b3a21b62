package bustest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/naru-platform/naru/bus"
)

func asking() []promise {
	return []promise{
		{"what is asked is answered by who answers on that name", Features{}, askAnswered},
		{"of several who answer one gets each question", Features{}, askOne},
		{"a question that takes long holds up no other", Features{}, askBeside},
		{"where nobody answers, or nobody any more, that is told at once", Features{}, askNobody},
		{"who asks an engine that is away is not kept longer than he wants", Features{SetDown: true}, askAway},
	}
}

// answering answers on a name until stop is called.
func (s *scene) answering(name string, f func(ctx context.Context, question []byte) []byte) (stop func()) {
	s.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Bus.Answer(ctx, name, f, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		s.Fatalf("answering on %s ended: %v", name, err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				s.Errorf("answering on %s ended: %v", name, err)
			}
		})
	}
	s.Cleanup(stop)
	return stop
}

func (s *scene) ask(name, question string) string {
	s.Helper()
	a, err := s.Bus.Ask(s.ctx, name, []byte(question))
	s.must(err)
	return string(a)
}

func askAnswered(s *scene) {
	s.answering("suite.a", func(_ context.Context, q []byte) []byte { return append([]byte("a hears "), q...) })
	s.answering("suite.b", func(context.Context, []byte) []byte { return nil })
	if got := s.ask("suite.a", "x"); got != "a hears x" {
		s.Errorf("the answer is %q", got)
	}
	if got := s.ask("suite.b", ""); got != "" {
		s.Errorf("the answer without bytes is %q", got)
	}
	large := make([]byte, s.Bus.MaxMessage())
	if a, err := s.Bus.Ask(s.ctx, "suite.a", large[len("a hears "):]); err != nil || len(a) != len(large) {
		s.Errorf("the largest question is answered with %d bytes, %v", len(a), err)
	}
}

func askOne(s *scene) {
	var mu sync.Mutex
	asked := map[string]int{}
	for i := range 2 {
		s.answering("suite.a", func(_ context.Context, q []byte) []byte {
			mu.Lock()
			defer mu.Unlock()
			asked[string(q)]++
			return fmt.Append(nil, i)
		})
	}
	for i := range 50 {
		s.ask("suite.a", fmt.Sprint(i))
	}
	mu.Lock()
	defer mu.Unlock()
	for q, n := range asked {
		if n != 1 {
			s.Errorf("question %s was asked %d times", q, n)
		}
	}
	if len(asked) != 50 {
		s.Errorf("%d questions were asked", len(asked))
	}
}

func askBeside(s *scene) {
	release, begun := make(chan struct{}), make(chan struct{})
	s.answering("suite.a", func(ctx context.Context, q []byte) []byte {
		if string(q) == "slow" {
			close(begun)
			<-release
		}
		return q
	})
	slow := make(chan string, 1)
	go func() {
		a, err := s.Bus.Ask(s.ctx, "suite.a", []byte("slow"))
		slow <- fmt.Sprint(string(a), err)
	}()
	<-begun
	if got := s.ask("suite.a", "fast"); got != "fast" {
		s.Errorf("beside the slow one the answer is %q", got)
	}
	close(release)
	if got := <-slow; got != "slow<nil>" {
		s.Errorf("the slow answer is %s", got)
	}
}

func askNobody(s *scene) {
	_, err := s.Bus.Ask(s.ctx, "suite.a", nil)
	s.is(err, bus.ErrNobody, "ask before anybody answers")
	stop := s.answering("suite.a", func(context.Context, []byte) []byte { return []byte("here") })
	s.ask("suite.a", "")
	stop()
	_, err = s.Bus.Ask(s.ctx, "suite.a", nil)
	s.is(err, bus.ErrNobody, "ask when nobody answers any more")
}

func askAway(s *scene) {
	s.answering("suite.a", func(_ context.Context, q []byte) []byte { return q })
	s.SetDown(true)
	ctx, cancel := s.brief()
	defer cancel()
	if _, err := s.Bus.Ask(ctx, "suite.a", nil); err == nil || errors.Is(err, bus.ErrNobody) {
		s.Errorf("an engine that is away answers with %v", err)
	}
	s.SetDown(false)
	for {
		a, err := s.Bus.Ask(s.ctx, "suite.a", []byte("again"))
		if err == nil && string(a) == "again" {
			return
		}
		if s.ctx.Err() != nil {
			s.Fatalf("the engine is back, and a question is answered with %q, %v", a, err)
		}
		s.pass(moment / 10)
	}
}
