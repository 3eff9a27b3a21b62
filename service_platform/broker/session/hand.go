package session

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// What a member of a shared subscription that keeps no session has in hand, of QoS 1, is written down with its drawing and struck off when
// it is acknowledged. So it goes to another member also where the node of the first one is killed, or stops: when it starts again, or by who
// adopts what was its own.

const (
	// tookAfter is how long what was acknowledged waits for more, to be struck off together. Where the process is killed before, it comes again.
	tookAfter = 100 * time.Millisecond
	// comeBackMost is how long what was in hand waits for members, who have lost their connections with the process. Then nobody is owed it.
	comeBackMost = time.Minute
)

// hands names the store whose members have something in hand; a node that is alone needs no name.
func (s *Store) hands() (store message.ID) {
	if s.cluster != nil {
		store = s.cluster.store
	}
	return store
}

func (s *Store) handKey(d *Drawn) []byte {
	be := binary.BigEndian
	k := be.AppendUint32(be.AppendUint32(key(kindHand, s.hands()), d.at.Generation), d.at.Partition)
	k = append(be.AppendUint32(be.AppendUint64(k, d.at.Sequence), d.at.Index), d.log...)
	return append(append(k, 0), d.group...)
}

// inHand notes that a member is about to get a message.
func (s *Store) inHand(tx component.Tx, d *Drawn) {
	g := gift{group: d.group, i: item{kind: itemRef, log: d.log, at: d.at}}
	tx.Set(s.handKey(d), appendOp(nil, opGift, []byte(d.group), g.encode()))
}

// letGo takes that back, and says whether it was so.
func (s *Store) letGo(tx component.Tx, d *Drawn) (had bool, err error) {
	k := s.handKey(d)
	v, err := tx.Get(k)
	if v != nil {
		tx.Delete(k)
	}
	return v != nil, err
}

// Took says that nobody is owed a message any more that a member had in hand: it was acknowledged, or was dropped. It does not block.
func (s *Store) Took(d *Drawn) {
	s.tookMu.Lock()
	defer s.tookMu.Unlock()
	if s.took = append(s.took, d); len(s.took) == 1 {
		time.AfterFunc(tookAfter, func() { _ = s.Strike(context.Background()) }) // what is not struck off comes again
	}
}

// Strike strikes off what members have no more, as far as is known.
func (s *Store) Strike(ctx context.Context) error {
	return s.changeSoon(ctx, func(tx component.Tx) error {
		s.tookMu.Lock()
		list := s.took
		s.took = nil
		s.tookMu.Unlock()
		for _, d := range list {
			if _, err := s.letGo(tx, d); err != nil {
				return err
			}
		}
		return nil
	})
}

// readHands reads what members had in hand when the process before ended. What was noted before there were neighbours is noted anew.
func (s *Store) readHands(tx component.Tx) error {
	var bad error
	var alone [][]byte
	s.left = nil
	each := func(k, v []byte) bool {
		_, group, v, _, err := nextOp(v)
		var g *gift
		if err == nil {
			g, err = parseGift(string(group), v)
		}
		if bad = err; err != nil {
			return false
		}
		s.left = append(s.left, &Drawn{g.group, g.i.log, g.i.at})
		if s.cluster != nil && message.ID(k[1:17]).IsZero() {
			alone = append(alone, slices.Clone(k))
		}
		return true
	}
	err := tx.Scan(key(kindHand, message.ID{}), each)
	if err == nil && bad == nil {
		for i, k := range alone {
			tx.Delete(k)
			s.inHand(tx, s.left[i])
		}
		if s.cluster != nil {
			s.left = nil
			err = tx.Scan(key(kindHand, s.cluster.store), each)
		}
	}
	if err == nil {
		err = bad
	}
	if err != nil {
		return fmt.Errorf("read what members of shared subscriptions had in hand: %w", err)
	}
	return nil
}

// Recover gives to members what others had in hand when the process before ended: as soon as there are any, since all have lost their
// connections. It returns when nothing of it is left, or nobody came.
func (s *Store) Recover(ctx context.Context) error {
	s.mu.Lock()
	left := s.left
	s.left = nil
	s.mu.Unlock()
	slices.SortFunc(left, (*Drawn).Compare)
	late := time.NewTimer(comeBackMost)
	defer late.Stop()
	tick := time.NewTicker(tookAfter)
	defer tick.Stop()
	for over := false; len(left) > 0; {
		var now, later []*Drawn
		s.mu.Lock()
		for _, d := range left {
			if over || s.groups[d.group] != nil || s.cluster != nil && len(s.parties(d.group)) > 0 {
				now = append(now, d)
			} else {
				later = append(later, d)
			}
		}
		s.mu.Unlock()
		if len(now) > 0 {
			if err := s.Redraw(ctx, now); err != nil {
				return err
			}
		}
		if left = later; len(left) == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-late.C:
			over = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// InHand lists what members have in hand that keep no session, here or at neighbours, as far as is known here. It is for tests.
func (s *Store) InHand() (list []string) {
	_ = s.env.View(func(v component.View) error { // where it is not running there is nothing
		return v.Range([]byte{kindHand}, []byte{kindHand + 1}, false, func(k, _ []byte) bool { list = append(list, string(k)); return true })
	})
	return list
}
