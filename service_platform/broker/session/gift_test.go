package session

import (
	"slices"
	"strings"
	"testing"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// drawer is a transaction over nothing else.
type drawer struct {
	component.Tx
	m map[string][]byte
}

func (d drawer) Get(k []byte) ([]byte, error) { return d.m[string(k)], nil }
func (d drawer) Set(k, v []byte)              { d.m[string(k)] = slices.Clone(v) }
func (d drawer) Delete(k []byte)              { delete(d.m, string(k)) }
func (d drawer) Scan(prefix []byte, f func(k, v []byte) bool) error {
	for k, v := range d.m {
		if strings.HasPrefix(k, string(prefix)) && !f([]byte(k), v) {
			break
		}
	}
	return nil
}

// A node that has joined may come to adopt another one, and has then what that one was given before it joined, and not twice what it was told
// itself since.
func TestANodeThatJoinsKnowsWhatOthersWereGivenAndHaveNotTaken(t *testing.T) {
	id := func(b byte) message.ID { return message.ID{15: b} }
	own, dead := id(1), id(2)
	c := &cluster{node: "n3", lacks: everything}
	c.forget()
	c.store, c.start = own, id(9)
	s := &Store{cluster: c}
	w := &writing{Tx: drawer{m: map[string][]byte{}}, s: s}
	gifts := []*gift{{group: "g", to: dead, i: item{kind: itemRef, log: "device", at: bus.Position{Sequence: 5}}},
		{group: "g", to: dead, i: item{kind: itemRef, log: "device", at: bus.Position{Sequence: 6}}}}
	c.shares.at = bus.Position{Generation: 1, Sequence: 40}
	s.gifted(w, gifts[1]) // heard here
	var ops []byte
	for n, g := range gifts { // what another node has, which has heard another gift at that place
		ops = appendOp(ops, opOffer, giftKey(dead, bus.Position{Generation: 1, Sequence: 40}, uint32(n+3)), appendOp(nil, opGift, []byte(g.group), g.encode()))
	}
	for range 2 { // by two nodes
		if err := s.apply(w, &serviceplatform.SessionState{Node: "n1"}, ops, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.shares.pending[dead]; n != 2 {
		t.Errorf("%d gifts are known; want 2", n)
	}
	list, err := s.bequeath(w, dead, own)
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	for _, g := range list {
		got = append(got, g.i.at.Sequence)
	}
	slices.Sort(got)
	if !slices.Equal(got, []uint64{5, 6}) {
		t.Errorf("the gifts of the node that is gone are %v; want both, once", got)
	}
}
