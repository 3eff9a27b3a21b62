package broker

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// lastState is what a node has told last of its sessions.
func (r *rig) lastState(node string) (last serviceplatform.SessionState) {
	r.t.Helper()
	log, err := r.bus.Log(r.t.Context(), message.ServicePlatform, bus.LogOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := log.Info(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	reader, err := log.Reader(r.t.Context(), bus.Position{Generation: info.Generations[0].Number})
	if err != nil {
		r.t.Fatal(err)
	}
	defer reader.Close()
	for at, end := uint64(0), info.Generations[0].Partitions[0].Last; at < end; {
		s, err := reader.Next(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		at = s.Position.Sequence
		var m message.Message
		for c := s.Batch.Cursor(); c.Next(&m); {
			var st serviceplatform.SessionState
			if m.Subject == serviceplatform.SessionStateSubject(node) && json.Unmarshal(m.Data, &st) == nil {
				last = st
			}
		}
	}
	return last
}

// A node that has missed what a neighbour said has to begin anew, as one does that was taken for gone and is not: its lease
// is its own all the while, so nothing but itself ends it.
func TestABrokerThatIsNoMoreAmongTheOthersBeginsAnew(t *testing.T) {
	w := newTown(t, 2)
	p, _ := w.at(0, keeping("x", false, 3600))
	before := w.nodes[0].lastState("n1").Start
	log, err := w.nodes[0].bus.Log(t.Context(), message.ServicePlatform, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	door, err := log.Appender(t.Context(), bus.AppenderOptions{Name: "test", Owner: message.NewID(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	st := w.nodes[1].lastState("n2")
	st.Number, st.Begins = st.Number+10, false
	m := &message.Message{ID: message.NewID(time.Now()), Trace: message.NewTrace(time.Now()), Subject: serviceplatform.SessionStateSubject("n2"), Data: mustJSON(st)}
	if _, err := bus.AppendSync(t.Context(), door, m); err != nil {
		t.Fatal(err)
	}
	p.ended()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); w.nodes[0].lastState("n1").Start == before || w.nodes[0].host.Health()[0].State != "running"; {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("the broker is %q, and has not begun anew", w.nodes[0].host.Health()[0].State)
		}
	}
	if _, ack := w.at(0, keeping("x", false, 3600)); !ack.SessionPresent {
		t.Error("its session is not there any more")
	}
	g := w.nodes[0].gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.change) != 1 {
		t.Errorf("%d brokers are told of changes, and kept for it; want the one that runs", len(g.change))
	}
}
