package session

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/message"
)

// leaver is a client that may have left.
type leaver struct {
	client
	left atomic.Bool
}

func (l *leaver) HungUp() bool { return l.left.Load() }

// TestNobodyIsClaimedWhoHasLeft since a client that did not wait is at another node by then, and would lose its connection there.
// Who waits with it is claimed all the same.
func TestNobodyIsClaimedWhoHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{node: "n1", claims: map[string]*claim{}, waits: map[string][]chan error{}, asked: map[string]bool{}, giving: map[string]bool{},
			ending: map[string]struct{}{}, kick: make(chan struct{}, 1)}
		s := &Store{cluster: c}
		who := Who{Identity: "d", ClientID: "d"}
		ended := make(chan error, 3)
		wait := func(ctx context.Context) *leaver {
			l := &leaver{}
			go func() { ended <- s.hold(ctx, who, false, l) }()
			synctest.Wait()
			return l
		}
		state := func(what string, asks, waits int) {
			t.Helper()
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(c.asks) != asks || len(c.waits[who.Key()]) != waits || c.asked[who.Key()] != (asks > 0) {
				t.Errorf("%s: %d claims are to be made, and %d wait; want %d and %d", what, len(c.asks), len(c.waits[who.Key()]), asks, waits)
			}
		}
		first, second := wait(t.Context()), wait(t.Context())
		state("two wait", 1, 2)
		first.left.Store(true)
		if err := <-ended; message.ReasonOf(err, 0) != message.TakenOver {
			t.Errorf("who has left is told %v", err)
		}
		state("one has left", 1, 1)
		second.left.Store(true)
		<-ended
		state("both have left", 0, 0)

		late, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wait(late)
		state("one comes again", 1, 1)
		if err := <-ended; !errors.As(err, new(*message.Rejection)) || message.ReasonOf(err, 0) != message.BusUnavailable {
			t.Errorf("who had no more time is told %v", err)
		}
		state("its time is over", 0, 0)

		wait(t.Context())
		s.mu.Lock()
		c.asks = nil // it is being made
		s.mu.Unlock()
		third := wait(t.Context())
		third.left.Store(true)
		<-ended
		s.mu.Lock()
		if !c.asked[who.Key()] || len(c.waits[who.Key()]) != 1 {
			t.Error("a claim that is being made was forgotten")
		}
		c.claims[who.Key()] = &claim{Owner: "n1"}
		s.mu.Unlock()
		s.settleWaits(who.Key(), nil)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestASessionIsCalmAfterAnEarlyPUBREL since what was released is not waited for: a client that moves to another node would wait
// for it there, as long as the old node does.
func TestASessionIsCalmAfterAnEarlyPUBREL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{}
		x := &Session{store: s, epoch: 1}
		id := message.NewID(time.Now())
		if !x.Receive(1, 7, id) {
			t.Fatal("the message is not taken")
		}
		calm := make(chan bool)
		go func() { calm <- x.calm(yieldMost) }()
		synctest.Wait()
		if known, err := x.Release(t.Context(), 1, []uint16{7}); err != nil || !known[0] {
			t.Fatal(known, err)
		}
		x.Stored(7, id) // too late to mean anything
		if !<-calm {
			t.Error("a message whose PUBREL came is waited for")
		}
	})
}

// TestWhoLeavesWithItsAnswerIsMissedByNobody since the client is this node's by then, and would stay it for good without ever
// having come: other nodes would have to claim what is nobody's, and its device would be told to be there.
func TestWhoLeavesWithItsAnswerIsMissedByNobody(t *testing.T) {
	c := &cluster{node: "n1", waits: map[string][]chan error{}, asked: map[string]bool{}, ending: map[string]struct{}{}}
	s := &Store{cluster: c}
	key := Who{Mount: "m", ClientID: "d"}.Key()
	wait := make(chan error, 1)
	c.waits[key] = append(c.waits[key], wait)
	c.claims = map[string]*claim{key: {Owner: "n1"}}
	s.granted(key)
	s.unwait(key, wait)
	if _, given := c.ending[key]; !given {
		t.Error("the client stays this node's, and nobody is there")
	}
	s.Close()
}
