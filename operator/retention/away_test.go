package retention

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// Who reads the advice to forget a consumer at three in the morning may follow it: it is for those that stay away, not for
// all that a platform has at the moment it starts.
func TestRetentionAdvisesToForgetOnlyWhoStaysAway(t *testing.T) {
	now := time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	b := mem.New(mem.Options{Now: func() time.Time { return now }})
	defer b.Close()
	log, err := b.Log(t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	marks, err := b.Table(t.Context(), component.RequiredTable, bus.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	at := bus.Position{Log: log.ID(), Generation: 1}
	value, err := json.Marshal(at)
	if err != nil {
		t.Fatal(err)
	}
	for _, consumer := range []string{"operator.back", "operator.beyond", "operator.gone"} {
		if _, err := marks.Put(t.Context(), message.Device+"/1/0/"+consumer, value); err != nil {
			t.Fatal(err)
		}
	}
	var said bytes.Buffer
	peers := component.NewPeers()
	r := &Retention{env: component.Env{Now: func() time.Time { return now }, Peers: peers, Log: slog.New(slog.NewTextHandler(&said, nil))},
		since: map[string]time.Time{}, told: map[string]time.Time{}}
	look := func(d time.Duration) string {
		t.Helper()
		now = now.Add(d)
		said.Reset()
		if _, err := r.floor(t.Context(), marks, map[string]uint32{}, message.Device, at); err != nil {
			t.Fatal(err)
		}
		return said.String()
	}
	for _, d := range []time.Duration{0, tellAfter - time.Second} {
		if got := look(d); got != "" {
			t.Fatalf("%s after the start it says %s", d, got)
		}
	}
	peers.Add(component.Report{Checkpoint: component.Checkpoint{Consumer: "operator.back", Log: message.Device, Position: at}, Required: true, At: now})
	later := at
	later.Generation++
	peers.Add(component.Report{Checkpoint: component.Checkpoint{Consumer: "operator.beyond", Log: message.Device, Position: later}, Required: true, At: now})
	if got := look(time.Second); !strings.Contains(got, "naru ledger forget operator.gone") || strings.Count(got, "naru ledger forget") != 1 {
		t.Errorf("it says %q; want the advice for operator.gone alone", got)
	}
	if got := look(time.Second); got != "" {
		t.Errorf("it says again %q", got)
	}
}
