package component

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// lot parks for a test, as a worker does.
func lot() *parking {
	p := newParking()
	p.line = p.wait
	return &p
}

func (p *parking) leave(device string, seq uint64, next time.Time) {
	at := place{log: "device"}
	p.push(&parked{m: &message.Message{ID: message.ID{byte(seq >> 8), byte(seq)}, Device: device}, at: at, position: bus.Position{Sequence: seq}, next: next})
}

func TestParkingGivesTheOldestAndTheNextAsALookAtAllWould(t *testing.T) {
	p, at, now := lot(), place{log: "device"}, time.Unix(1e9, 0)
	r := rand.New(rand.NewPCG(1, 2))
	for seq := range uint64(30_000) {
		switch n := r.IntN(100); {
		case n < 51+10*int(seq/1000%2)-5: // it grows and shrinks
			place := seq
			if n == 0 {
				place = r.Uint64N(seq + 1) // taken back
			}
			p.leave(fmt.Sprint("d-", r.IntN(500)), place, now.Add(time.Duration(r.IntN(1000))*time.Second))
		case p.n > 0:
			var keys []parkKey // of any that is the first of its device
			for k := range p.rows {
				keys = append(keys, k)
			}
			slices.SortFunc(keys, func(a, b parkKey) int { return p.rows[a][0].next.Compare(p.rows[b][0].next) })
			want := p.rows[keys[0]][0].next
			x := p.due(want)
			if x == nil || !x.next.Equal(want) || p.rows[x.key][0] != x {
				t.Fatalf("next is %+v; want one of %v that is the first of its device", x, want)
			}
			p.pop(x.key)
			if row := p.rows[x.key]; len(row) > 0 {
				p.line(row[0])
			}
		}
		if seq%7 > 0 {
			continue
		}
		var all []*parked
		for _, row := range p.rows {
			all = append(all, row...)
		}
		slices.SortFunc(all, func(a, b *parked) int { return earlier(a.position, b.position) })
		got := p.oldestAt(at)
		if !slices.EqualFunc(got, all[:min(len(all), attemptsShown)], func(a, b *parked) bool { return a.position == b.position && !a.gone }) {
			t.Fatalf("of %d the oldest %d are not the first", len(all), len(got))
		}
		if o := p.order[at]; o != nil && len(o.list) > 2*len(all)+200 {
			t.Fatalf("%d are kept of %d", len(o.list), len(all))
		}
	}
}

// BenchmarkParked is a message that is parked, looked for and taken out, with so many that wait.
func BenchmarkParked(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, at, now := lot(), place{log: "device"}, time.Unix(1e9, 0)
			for i := range n {
				p.leave(fmt.Sprint("d-", i), uint64(i), now.Add(time.Duration(i)*time.Millisecond))
			}
			for i := 0; b.Loop(); i++ {
				p.leave(fmt.Sprint("new-", i), uint64(n+i), now)
				x := p.due(now)
				if len(p.oldestAt(at)) == 0 {
					b.Fatal("nothing is shown")
				}
				p.pop(x.key)
				if row := p.rows[x.key]; len(row) > 0 {
					p.line(row[0])
				}
			}
		})
	}
}
