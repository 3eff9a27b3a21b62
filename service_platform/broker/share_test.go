package broker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// shareAll is the filter that the members of the group share.
const shareAll = "$share/g/a/#"

// tally is what the members of a group got, together.
type tally struct {
	mu   sync.Mutex
	got  map[string][]string // who, by payload
	news chan struct{}
}

func newTally() *tally { return &tally{got: map[string][]string{}, news: make(chan struct{}, 1)} }

func (l *tally) add(payload, who string) {
	l.mu.Lock()
	l.got[payload] = append(l.got[payload], who)
	l.mu.Unlock()
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// wait wants all of a list to have come.
func (l *tally) wait(t *testing.T, want []string) {
	t.Helper()
	late := time.After(90 * time.Second)
	for {
		l.mu.Lock()
		lacks := slices.DeleteFunc(slices.Clone(want), func(p string) bool { return len(l.got[p]) > 0 })
		l.mu.Unlock()
		if len(lacks) == 0 {
			return
		}
		select {
		case <-l.news:
		case <-late:
			t.Fatalf("%d of %d messages went to nobody: %q", len(lacks), len(want), lacks[:min(len(lacks), 10)])
		}
	}
}

// roomFor waits until all but so many of n messages have come: a busy machine shall not fall behind.
func (l *tally) roomFor(n, ahead int, stop <-chan struct{}) bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		l.mu.Lock()
		came := len(l.got)
		l.mu.Unlock()
		if came > n-ahead {
			return true
		}
		select {
		case <-tick.C:
		case <-stop:
			return false
		}
	}
}

// once wants each of a list to have come once, and says how many came to whom.
func (l *tally) once(t *testing.T, want []string) map[string]int {
	t.Helper()
	l.wait(t, want)
	l.mu.Lock()
	defer l.mu.Unlock()
	by := map[string]int{}
	bad := 0
	for _, p := range want {
		for _, who := range l.got[p] {
			by[who]++
		}
		if n := len(l.got[p]); n != 1 {
			if bad++; bad < 10 {
				t.Errorf("%s came %d times: to %q", p, n, l.got[p])
			}
		}
	}
	return by
}

// member is a client of a group, that keeps its session or not. What it has in hand of QoS 2 it remembers.
type member struct {
	w    *town
	id   string
	life uint32
	qos  byte
	into *tally
	open map[uint16]bool
	p    *peer
	done chan struct{}
}

func (w *town) member(id string, life uint32, qos byte, into *tally) *member {
	return &member{w: w, id: id, life: life, qos: qos, into: into, open: map[uint16]bool{}}
}

// comes connects it to a node, where it subscribes, unless it has.
func (m *member) comes(node int) *member {
	m.w.t.Helper()
	var ack packet.Connack
	for began := time.Now(); ; { // it may be refused while the node where it was is taken to be there
		if m.p, ack = m.w.at(node, keeping(m.id, m.life == 0, m.life)); ack.Code == 0 {
			break
		}
		if m.p.Close(); time.Since(began) > 90*time.Second {
			m.w.t.Fatalf("CONNACK of %s at node %d is %+v", m.id, node+1, ack)
		}
	}
	var early []frame
	if !ack.SessionPresent {
		m.open = map[uint16]bool{}
		if codes := m.p.subscribe(packet.Subscription{Filter: shareAll, QoS: m.qos}); codes[0].Failed() {
			m.w.t.Fatalf("SUBACK of %s is %x", m.id, codes)
		}
		early, m.p.early = m.p.early, nil
	}
	m.done = make(chan struct{})
	go m.run(m.p, m.done, early)
	return m
}

func (m *member) run(p *peer, done chan struct{}, early []frame) {
	defer close(done)
	for {
		var f frame
		if len(early) > 0 {
			f, early = early[0], early[1:]
		} else {
			h, body, err := p.try(5 * time.Minute)
			if err != nil {
				return
			}
			f = frame{h, body}
		}
		switch f.h.Type {
		case packet.PUBLISH:
			var x packet.Publish
			if x.Decode(f.h, f.body, packet.V5) != nil {
				return
			}
			if x.QoS < 2 || !m.open[x.ID] {
				m.into.add(string(x.Payload), m.id)
			}
			switch x.QoS {
			case 1:
				_, _ = p.Write((&packet.Ack{Type: packet.PUBACK, ID: x.ID}).Append(nil, packet.V5))
			case 2:
				m.open[x.ID] = true
				_, _ = p.Write((&packet.Ack{Type: packet.PUBREC, ID: x.ID}).Append(nil, packet.V5))
			}
		case packet.PUBREL:
			id := uint16(f.body[0])<<8 | uint16(f.body[1])
			delete(m.open, id)
			_, _ = p.Write((&packet.Ack{Type: packet.PUBCOMP, ID: id}).Append(nil, packet.V5))
		case packet.DISCONNECT:
			return
		}
	}
}

// goes ends its connection, after which it hears nothing.
func (m *member) goes() {
	m.p.Close()
	<-m.done
}

// gone does so, and waits until its node knows.
func (m *member) gone(node int) {
	m.w.t.Helper()
	m.goes()
	m.w.nodes[node].eventually(func() string {
		for _, x := range m.w.nodes[node].sessions() {
			if x.ClientID == m.id && x.Connected {
				return m.id + " is still there"
			}
		}
		return ""
	})
}

// leaves unsubscribes.
func (m *member) leaves() {
	_, _ = m.p.Write((&packet.Unsubscribe{ID: 98, Filters: []string{shareAll}}).Append(nil, packet.V5))
}

func numbered(what string, n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprint(what, "-", i))
	}
	return list
}

// says publishes a list, one after the other.
func (p *peer) says(list []string, qos byte) {
	for i, s := range list {
		p.send(publish("a/b", s, qos, uint16(i%60000+1)))
	}
}

func TestOneOfAGroupAmongAllNodesHearsEachMessage(t *testing.T) {
	for qos := range byte(3) {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			w, into := newTown(t, 3), newTally()
			w.member("kept-1", 3600, qos, into).comes(0)
			w.member("kept-2", 3600, qos, into).comes(1)
			w.member("casual-2", 0, qos, into).comes(1)
			w.member("casual-3", 0, qos, into).comes(2)
			var all []string
			var group sync.WaitGroup
			for i := range w.nodes {
				pub, list := w.publisher(i), numbered(fmt.Sprint("n", i), 60)
				all = append(all, list...)
				group.Go(func() { pub.says(list, qos) })
			}
			group.Wait()
			into.wait(t, all)
			last := numbered("last", 8)
			w.publisher(0).says(last, qos)
			by := into.once(t, append(all, last...))
			for _, who := range []string{"kept-1", "kept-2", "casual-2", "casual-3"} {
				if by[who] < 20 {
					t.Errorf("%s got %d of %d messages: %v", who, by[who], len(all)+len(last), by)
				}
			}
		})
	}
}

func TestAGroupOfWhichNobodyIsThereKeepsEachMessageOnce(t *testing.T) {
	w, into := newTown(t, 2), newTally()
	one, two := w.member("one", 3600, 2, into).comes(0), w.member("two", 3600, 2, into).comes(1)
	pub := w.publisher(0)
	one.gone(0)
	first := numbered("first", 20)
	pub.says(first, 2)
	if by := into.once(t, first); by["two"] != len(first) {
		t.Errorf("one member was there, and they went to %v", by)
	}
	two.gone(1)
	second := numbered("second", 20)
	pub.says(second, 2)
	one.comes(1)
	two.comes(0)
	by := into.once(t, append(first, second...)) // the one that comes first may have all that waits
	if by["one"]+by["two"] != len(first)+len(second) || by["two"] < len(first) {
		t.Errorf("they went to %v", by)
	}
}

func TestAGroupGoesOnWithoutTheNodeThatDraws(t *testing.T) {
	for _, dies := range []int{0, 1} {
		t.Run(fmt.Sprint("node ", dies+1), func(t *testing.T) {
			w, into := newTown(t, 3), newTally()
			mem := []*member{w.member("m-1", 3600, 2, into).comes(0), w.member("m-2", 3600, 2, into).comes(1), w.member("m-3", 3600, 2, into).comes(2)}
			casual := w.member("c", 0, 2, into).comes(2)
			defer casual.goes()
			pub := w.publisher(2)
			first := numbered("first", 30)
			pub.says(first, 2)
			half := make(chan struct{})
			second := numbered("second", 200)
			var group sync.WaitGroup
			group.Go(func() {
				for i, s := range second {
					if i == len(second)/2 {
						close(half)
					}
					pub.send(publish("a/b", s, 2, uint16(i+1)))
				}
			})
			<-half
			w.kill(dies)
			mem[dies].goes()
			group.Wait()
			mem[dies].comes(2)
			third := numbered("third", 30)
			pub.says(third, 2)
			into.once(t, slices.Concat(first, second, third))
		})
	}
}

func TestAMemberGetsNothingThatItMayNotHave(t *testing.T) {
	n := 0
	w, into := newTown(t, 2, func(c *Config) {
		if n++; n == 2 {
			c.Listeners[0].Refuse = []string{"a/secret/#"}
		}
	}), newTally()
	w.member("may", 3600, 1, into).comes(0)
	w.member("may not", 3600, 1, into).comes(1)
	w.member("may not either", 0, 1, into).comes(1)
	pub := w.publisher(0)
	var secret, known []string
	for i := range 30 {
		s, k := fmt.Sprint("secret-", i), fmt.Sprint("known-", i)
		pub.send(publish("a/secret/x", s, 1, 1))
		pub.send(publish("a/known", k, 1, 2))
		secret, known = append(secret, s), append(known, k)
	}
	into.once(t, known)
	if by := into.once(t, secret); by["may"] != len(secret) {
		t.Errorf("what one may have went to %v", by)
	}
}

func TestAMemberThatTakesNothingIsNotPreferred(t *testing.T) {
	w, into := newTown(t, 2), newTally()
	slow := keeping("slow", true, 3600)
	slow.Properties.Set(packet.ReceiveMaximum, 1)
	p, _ := w.at(1, slow)
	p.subscribe(packet.Subscription{Filter: shareAll, QoS: 1})
	w.member("quick", 3600, 1, into).comes(0)
	pub := w.publisher(1)
	pub.says([]string{"1", "2"}, 1) // one of them is the slow one's, as soon as it is sent
	held := string(p.hear().Payload)
	list := numbered("m", 40)
	pub.says(list, 1)
	if by := into.once(t, list); by["quick"] != len(list) {
		t.Errorf("the slow member held %s, and what followed went to %v", held, by)
	}
}

// A member that keeps no session goes with messages that it has not acknowledged: sent, waiting for its receive maximum, or on
// their way to it. Others get them, but for those of QoS 2 (MQTT-4.8.2-5) and what it did acknowledge.
func TestWhatAMemberHadInHandGoesToAnother(t *testing.T) {
	for name, nodes := range map[string]int{"alone": 1, "among neighbours": 2} {
		for other, life := range map[string]uint32{"casual": 0, "kept": 3600, "away": 3600} {
			t.Run(name+", to one that is "+other, func(t *testing.T) {
				w, into := newTown(t, nodes, func(c *Config) { c.Cluster = map[bool]string{true: "on", false: "off"}[nodes > 1] }), newTally()
				narrow := keeping("one", true, 0)
				narrow.Properties.Set(packet.ReceiveMaximum, 2)
				one, _ := w.at(0, narrow)
				one.subscribe(packet.Subscription{Filter: shareAll, QoS: 2})
				watch, _ := w.at(0, keeping("watch", true, 0))
				watch.subscribe(packet.Subscription{Filter: "a/#"})
				pub, list := w.publisher(nodes-1), numbered("m", 5)
				pub.says(list, 1)
				pub.send(publish("a/b", "twice", 2, 100))
				for string(watch.hear().Payload) != "twice" { // until then it may be drawn for who comes
				}
				one.ack(packet.PUBACK, one.hear().ID, 0)
				one.hear()
				if m := one.hear(); string(m.Payload) != "m-2" { // so the acknowledgement has come
					t.Fatalf("%s came; want m-2", m.Payload)
				}
				two := w.member("two", life, 2, into).comes(nodes - 1)
				if other == "away" {
					two.gone(nodes - 1)
				}
				one.Close()
				if other == "away" {
					w.nodes[nodes-1].eventually(func() string {
						if n := w.nodes[nodes-1].session("two").Waiting; n != 4 {
							return fmt.Sprintf("%d messages wait for the other one; want 4", n)
						}
						return ""
					})
					two.comes(nodes - 1)
				}
				into.once(t, list[1:])
				pub.says([]string{"last"}, 1)
				into.once(t, []string{"last"})
				into.mu.Lock()
				defer into.mu.Unlock()
				if len(into.got["m-0"])+len(into.got["twice"]) > 0 {
					t.Errorf("what was acknowledged, or is of QoS 2, came to another one: %v", into.got)
				}
			})
		}
	}
}

// Members that keep no session come and go without ever acknowledging, while one stays: that one gets every message.
func TestNothingIsLostWithMembersThatComeAndGo(t *testing.T) {
	for name, nodes := range map[string]int{"alone": 1, "among neighbours": 2} {
		t.Run(name, func(t *testing.T) {
			w, into := newTown(t, nodes, func(c *Config) { c.Cluster = map[bool]string{true: "on", false: "off"}[nodes > 1] }), newTally()
			w.member("stays", 0, 1, into).comes(nodes - 1)
			pub, stop := w.publisher(0), make(chan struct{})
			var all []string
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := 0; into.roomFor(i, 200, stop); i++ {
					select {
					case <-stop:
						return
					default:
					}
					all = append(all, fmt.Sprint("m-", i))
					pub.send(publish("a/b", all[i], 1, uint16(i%60000+1)))
				}
			})
			for i := range 30 {
				p, _ := w.at(i%nodes, keeping(fmt.Sprint("c-", i), true, 0))
				p.subscribe(packet.Subscription{Filter: shareAll, QoS: 1})
				for range 5 {
					p.hear()
				}
				p.Close()
			}
			close(stop)
			wg.Wait()
			into.wait(t, all)
			t.Logf("%d messages", len(all))
		})
	}
}

func TestAGroupEndsWithItsLastMemberAndBeginsAgain(t *testing.T) {
	w, into := newTown(t, 2), newTally()
	key := groupKeyOf(w)
	for round := range 3 {
		a, b := w.member("a", 0, 1, into).comes(round%2), w.member("b", 3600, 1, into).comes((round+1)%2)
		list := numbered(fmt.Sprint("round-", round), 10)
		w.publisher(round%2).says(list, 1)
		into.once(t, list)
		a.goes()
		b.leaves()
		w.nodes[0].eventually(func() string {
			for i, r := range w.nodes {
				if r.b.store.Draws(key) {
					return fmt.Sprintf("node %d still draws for the group in round %d", i+1, round)
				}
			}
			return ""
		})
		b.goes()
		p, _ := w.at(0, keeping("b", true, 0))
		p.Close()
	}
}

func groupKeyOf(*town) string { return "3rd_party.legacy\x00\x00\x00" + shareAll }

// Members come, go, move and leave, and nodes die, in any order, while messages are said: each goes to one member. Casual
// members of a node that dies take what they had in hand with them, so there are none here but at the last node.
func TestEachMessageGoesToOneMemberWhateverHappens(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			w, into := newTown(t, 3), newTally()
			last := len(w.nodes) - 1
			alive := []int{0, 1, 2}
			stay := w.member("stays", 3600, 2, into).comes(0) // there is always a member
			at := map[*member]int{stay: 0}
			members := []*member{stay}
			pub := w.publisher(last)
			var all []string
			var wg sync.WaitGroup
			stop := make(chan struct{})
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					if !into.roomFor(i, 40, stop) {
						return
					}
					s := fmt.Sprint("m-", i)
					all = append(all, s)
					pub.send(publish("a/b", s, 2, uint16(i%60000+1)))
				}
			})
			var story []string
			for step := range 25 {
				k := rnd.IntN(len(members))
				m := members[k]
				node := alive[rnd.IntN(len(alive))]
				switch what := rnd.IntN(10); {
				case what < 3 && len(members) < 6:
					m = w.member(fmt.Sprint("m", step), 3600, 2, into).comes(node)
					members = append(members, m)
					at[m] = node
					story = append(story, fmt.Sprintf("%s comes to %d", m.id, node+1))
				case what < 5: // away, and there again or elsewhere
					m.goes()
					story = append(story, fmt.Sprintf("%s moves from %d to %d", m.id, at[m]+1, node+1))
					m.comes(node)
					at[m] = node
				case what < 6:
					c := w.member(fmt.Sprint("c", step), 0, 0, into).comes(last)
					story = append(story, fmt.Sprintf("%s comes to %d", c.id, last+1))
					defer c.goes()
				case what < 8 && len(alive) > 1 && step > 5:
					dead := rnd.IntN(len(alive) - 1) // never the last node
					story = append(story, fmt.Sprintf("node %d dies", alive[dead]+1))
					w.kill(alive[dead])
					for _, m := range members {
						if at[m] == alive[dead] {
							m.goes()
						}
					}
					gone := alive[dead]
					alive = slices.Delete(alive, dead, dead+1)
					for _, m := range members {
						if at[m] == gone {
							at[m] = alive[rnd.IntN(len(alive))]
							story = append(story, fmt.Sprintf("%s goes on at %d", m.id, at[m]+1))
							m.comes(at[m])
						}
					}
				}
			}
			close(stop)
			wg.Wait()
			into.wait(t, all)
			end := numbered("end", 10)
			pub.says(end, 2)
			by := into.once(t, append(all, end...))
			t.Logf("%d messages to %v", len(all)+len(end), by)
			if t.Failed() {
				t.Log(strings.Join(story, "\n"))
			}
		})
	}
}

// What a member without a kept session had in hand goes to another one also where its node is killed, or stops: by the node when it starts
// again, or by the neighbour that goes on with what was its own.
func TestWhatAMemberHadInHandOutlivesItsNode(t *testing.T) {
	for _, nodes := range []int{1, 2} {
		for _, end := range []string{"killed", "stopped"} {
			for other, life := range map[string]uint32{"casual": 0, "away": 3600} {
				t.Run(fmt.Sprintf("%s, of %d, to one that is %s", end, nodes, other), func(t *testing.T) {
					w, into := newTown(t, nodes, func(c *Config) { c.Cluster = map[bool]string{true: "on", false: "off"}[nodes > 1] }), newTally()
					var two *member
					if other == "away" {
						two = w.member("two", life, 2, into).comes(nodes - 1)
						two.gone(nodes - 1)
					}
					narrow := keeping("one", true, 0)
					narrow.Properties.Set(packet.ReceiveMaximum, 2)
					one, _ := w.at(0, narrow)
					one.subscribe(packet.Subscription{Filter: shareAll, QoS: 1})
					watch, _ := w.at(0, keeping("watch", true, 0))
					watch.subscribe(packet.Subscription{Filter: "a/#"})
					pub, list := w.publisher(nodes-1), numbered("m", 5)
					pub.says(list, 1)
					for range list { // until then it may be drawn for who comes
						watch.hear()
					}
					inHand := func(want int) {
						t.Helper()
						w.nodes[nodes-1].eventually(func() string {
							here, there := w.nodes[0].b.store.InHand(), w.nodes[nodes-1].b.store.InHand()
							if len(here) != want || !slices.Equal(here, there) {
								return fmt.Sprintf("%d messages are in hand, and the other node knows of %d; want %d", len(here), len(there), want)
							}
							return ""
						})
					}
					inHand(5) // before, four may be others than those that are left
					one.ack(packet.PUBACK, one.hear().ID, 0)
					inHand(4)
					if end == "killed" {
						w.kill(0)
					}
					w.nodes[0].stop()
					if nodes == 1 {
						if end == "killed" {
							w.nodes[0].bus = w.nodes[0].bus.Reopen()
						}
						w.nodes[0].start(catalog.Default())
					}
					if two == nil {
						two = w.member("two", life, 2, into)
					}
					two.comes(nodes - 1)
					into.once(t, list[1:])
					w.nodes[nodes-1].eventually(func() string {
						if n := len(w.nodes[nodes-1].b.store.InHand()); n != 0 {
							return fmt.Sprintf("%d messages are in hand still", n)
						}
						return ""
					})
					if into.got["m-0"] != nil {
						t.Error("what was acknowledged came again")
					}
				})
			}
		}
	}
}
