package bustest

import (
	"time"

	"github.com/naru-platform/naru/bus"
)

func leasing() []promise {
	return []promise{
		{"a lease is held by one owner and renewed", Features{}, leaseHeld},
		{"a released lease goes to the next", Features{}, leaseReleased},
		{"a lease without renewal is lost after its time", Features{SetDown: true}, leaseLost},
	}
}

const leaseTTL = 2 * time.Second

func (s *scene) lease(owner string) bus.Lease {
	s.Helper()
	l, err := s.Bus.Lease(s.ctx, "rule.0", owner, leaseTTL)
	s.must(err)
	s.Cleanup(func() { l.Release(s.Context()) })
	return l
}

func (s *scene) held(owner string) {
	s.Helper()
	_, err := s.Bus.Lease(s.ctx, "rule.0", owner, leaseTTL)
	s.is(err, bus.ErrHeld, "lease for "+owner)
}

func leaseHeld(s *scene) {
	l := s.lease("a")
	s.held("b")
	other, err := s.Bus.Lease(s.ctx, "rule.1", "b", leaseTTL)
	s.must(err)
	defer other.Release(s.ctx)
	s.lease("a") // to stay the owner
	s.pass(2 * leaseTTL)
	if !l.Held() {
		s.Error("the lease was not renewed")
	}
	s.held("b")
}

func leaseReleased(s *scene) {
	l := s.lease("a")
	s.must(l.Release(s.ctx))
	if l.Held() {
		s.Error("a released lease is held")
	}
	select {
	case <-l.Lost():
	default:
		s.Error("a released lease does not say that it is lost")
	}
	if next := s.lease("b"); !next.Held() {
		s.Error("the next owner does not hold it")
	}
	s.held("a")
}

func leaseLost(s *scene) {
	l := s.lease("a")
	s.SetDown(true)
	began := time.Now()
	select {
	case <-l.Lost():
	case <-s.ctx.Done():
		s.Fatal("the lease was never lost")
	}
	if l.Held() {
		s.Error("a lost lease is held")
	}
	if took := time.Since(began); took > 2*leaseTTL {
		s.Errorf("it was lost after %s, and lives for %s", took, leaseTTL)
	}
	s.SetDown(false)
	s.pass(leaseTTL)
	if next := s.lease("b"); !next.Held() {
		s.Error("the next owner does not hold it")
	}
}
