//go:build long

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/twin"
)

// twinUpdate is the nth update of a device: it counts, and each eighth states a version that the twin never has.
func twinUpdate(device string) func(n int) []byte {
	return func(n int) []byte {
		if n%8 == 7 {
			return fmt.Appendf(nil, `{"state":{"reported":{"n":-1}},"clientToken":"%s-%d","version":999999999}`, device, n)
		}
		return fmt.Appendf(nil, `{"state":{"reported":{"n":%d}},"clientToken":"%s-%d"}`, n, device, n)
	}
}

// TestTwinUpdatesTakeEffectOnceThroughSIGKILL kills the process that holds the twins twenty times under load. Then each
// update that is in the log has had one effect: a version, an answer, and a record where it changed something.
func TestTwinUpdatesTakeEffectOnceThroughSIGKILL(t *testing.T) {
	config := filepath.Join(t.TempDir(), "naru.yaml")
	if err := os.WriteFile(config, []byte("service_platform.twin:\n  history_max: 10000000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t, "--config", config)
	pace := time.NewTicker(2 * time.Millisecond) // what all senders together say is read again one by one in the end
	defer pace.Stop()
	senders := make([]*sender, 8)
	for i := range senders {
		s := newSender(fmt.Sprintf("d-%d", i), p.plain)
		update := twinUpdate(s.id)
		s.topic, s.window = "twin/update", 4
		s.payload = func(n int) []byte { <-pace.C; return update(n) }
		senders[i] = s
	}
	killUnderLoad(p, 20, senders)
	acked := 0
	for _, s := range senders {
		acked += len(s.acked)
	}
	for _, l := range p.settled(uint64(acked)) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	histories, twins := map[string][]twin.Record{}, map[string]twin.Shown{}
	for _, s := range senders {
		histories[s.id] = p.twinHistory(s.id)
		var shown twin.Shown
		p.json(&shown, "twin", "get", s.id)
		twins[s.id] = shown
	}
	p.stop()
	b, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(p.data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	log := readTwinLog(t, b)
	for _, s := range senders {
		for _, fault := range log.faults(s, histories[s.id], twins[s.id]) {
			t.Errorf("%s: %s", s.id, fault)
		}
	}
	t.Logf("%d updates acknowledged through twenty kills, %d in the log", acked, len(log.answered))
}

// twinHistory reads all of a twin's history, the oldest first.
func (p *platform) twinHistory(device string) (all []twin.Record) {
	p.t.Helper()
	for before := ""; ; {
		args := []string{"twin", "history", device, "--limit", "1000"}
		if before != "" {
			args = append(args, "--before", before)
		}
		var h twin.History
		p.json(&h, args...)
		all = append(all, h.Records...)
		if h.Next == 0 {
			slices.Reverse(all)
			return all
		}
		before = fmt.Sprint(h.Next)
	}
}

// twinLog is what the log has of twins.
type twinLog struct {
	requests map[string][]twinRequest // by device, in the order of the log
	answered map[message.ID][]answered
	changed  map[message.ID]int
}

type twinRequest struct {
	id      message.ID
	token   string
	refused bool // by its version, as it must be
}

type answered struct {
	word, token string
	version     int
	code        int
}

func readTwinLog(t *testing.T, b bus.Bus) *twinLog {
	t.Helper()
	l := &twinLog{map[string][]twinRequest{}, map[message.ID][]answered{}, map[message.ID]int{}}
	eachStored(t, b, message.Device, func(m *message.Message) {
		_, word, ok := strings.Cut(string(m.Subject), ".twin.")
		if !ok {
			return
		}
		var d struct {
			ClientToken   string
			Version, Code int
		}
		if err := json.Unmarshal(m.Data, &d); err != nil {
			t.Fatalf("%s: %v", m.Subject, err)
		}
		device := strings.Clone(m.Device)
		switch word {
		case "update":
			l.requests[device] = append(l.requests[device], twinRequest{m.ID, d.ClientToken, d.Version != 0})
		case "update.accepted", "update.rejected":
			l.answered[m.Cause] = append(l.answered[m.Cause], answered{word, d.ClientToken, d.Version, d.Code})
		case "changed":
			l.changed[m.Cause]++
		}
	})
	return l
}

// faults holds what the log has of a device against what its sender knows, and what the twin and its history are.
func (l *twinLog) faults(s *sender, history []twin.Record, shown twin.Shown) (faults []string) {
	found := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	stored, version, last, records := map[string]int{}, 0, "", 0
	for _, r := range l.requests[s.id] {
		stored[r.token]++
		got := l.answered[r.id]
		if len(got) != 1 {
			found("update %s, message %s, has %d answers", r.token, r.id, len(got))
			continue
		}
		a := got[0]
		if a.token != r.token {
			found("update %s is answered with %+v", r.token, a)
		}
		if r.refused {
			if a.word != "update.rejected" || a.code != 409 || l.changed[r.id] != 0 {
				found("update %s states a wrong version, and is answered with %+v; %d changes", r.token, a, l.changed[r.id])
			}
			continue
		}
		if version++; a.word != "update.accepted" || a.version != version {
			found("update %s is answered with %+v; version %d is due", r.token, a, version)
		}
		changes := 1
		if r.token == last { // sent again after a break: it says what is there
			changes = 0
		}
		last = r.token
		if l.changed[r.id] != changes {
			found("update %s is told %d times as a change; want %d", r.token, l.changed[r.id], changes)
		}
		if changes == 0 {
			continue
		}
		if records == len(history) {
			found("update %s is not in the history", r.token)
			return faults
		}
		h := history[records]
		if records++; h.Message != r.id || h.Version != uint64(version) || h.Number != uint64(records) {
			found("record %d of the history is of message %s, version %d, number %d; want %s and %d", records, h.Message, h.Version, h.Number, r.id, version)
			return faults
		}
	}
	if len(history) != records || shown.Version != uint64(version) || version == 0 {
		found("the history has %d records, and the twin version %d; want %d and %d", len(history), shown.Version, records, version)
	}
	var doc struct {
		State struct{ Reported struct{ N int } }
	}
	if err := json.Unmarshal(shown.Document, &doc); err != nil || fmt.Sprintf("%s-%d", s.id, doc.State.Reported.N) != last {
		found("the twin is %s (%v); the last update that was accepted is %s", shown.Document, err, last)
	}
	for n := range s.acked {
		token := fmt.Sprintf("%s-%d", s.id, n)
		if times := stored[token]; times == 0 || times > s.sent[n] {
			found("update %s was acknowledged, sent %d times, and is stored %d times", token, s.sent[n], times)
		}
	}
	return faults
}
