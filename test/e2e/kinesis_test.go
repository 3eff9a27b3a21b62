//go:build long && foreign

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/bustest"
	"github.com/naru-platform/naru/bus/kinesis"
	"github.com/naru-platform/naru/bus/kinesis/local"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/message"
)

// TestEachMessageIsOnceInKinesis has a rule put what simulated devices say into the data platform, and a Kinesis server of
// others behind that. The platform is killed eight times, five of them under load. Then each message of the log is read from the stream once, by
// what the ledger says, and by what is in both.
func TestEachMessageIsOnceInKinesis(t *testing.T) {
	if !bustest.Alone(t) {
		return
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "anybody")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "nothing")
	conf := kinesis.Config{Stream: "e2e", Region: "eu-north-1", Endpoint: local.Kinesalite(t), Shards: 2, Tokens: 4}
	dir := t.TempDir()
	file, rule := filepath.Join(dir, "naru.yaml"), filepath.Join(dir, "lead.yaml")
	for name, text := range map[string]string{
		file: fmt.Sprintf("bus:\n  kinesis: {stream: %s, region: %s, endpoint: %q, shards: %d, tokens: %d}\n", conf.Stream, conf.Region, conf.Endpoint, conf.Shards, conf.Tokens),
		rule: "name: lead\nsql: SELECT * FROM 'device/+/telemetry'\nactions:\n  - republish: {topic: \"data_platform/raw/${topic(2)}\"}\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := newPlatform(t, "--sim", "5", "--config", file)
	p.start()
	p.ok("rule", "add", rule)
	line := func(consumer, log string) (found ledgerLine) {
		var lines []ledgerLine
		p.json(&lines, "ledger")
		for _, l := range lines {
			if l.Consumer == consumer && l.Log == log {
				found = l
			}
		}
		return found
	}
	handled := uint64(0)
	for range 3 {
		for late := time.Now().Add(3 * time.Minute); ; {
			if l := line("operator.ledger", "data_platform.kinesis"); l.Handled >= handled+20 {
				handled = l.Handled
				break
			}
			if time.Now().After(late) {
				t.Fatalf("%d messages come out of Kinesis, and no more: %+v\n%s", handled, line("data_platform.pump", "data_platform"), p.out)
			}
		}
		p.kill()
		p.start()
	}
	p.stop()
	killUnderLoad(p, 5, []*sender{newSender("d-0", p.plain), newSender("d-1", p.plain)})
	p.stop()
	p.args = []string{"--config", file} // without devices
	p.start()
	var far, near ledgerLine
	for late := time.Now().Add(3 * time.Minute); ; {
		p.settled(0)
		near, far = line("data_platform.pump", "data_platform"), line("operator.ledger", "data_platform.kinesis")
		if near.Handled > 0 && far.Handled == near.Handled && far.Balanced && near.Balanced {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("what is read from Kinesis is not what was put there: %+v\n%+v", far, near)
		}
	}
	p.stop()

	inner, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(p.data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	b, err := kinesis.Over(t.Context(), inner, kinesis.Options{Config: conf, Source: message.DataPlatform})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	want := map[message.ID]int{}
	eachStored(t, b, message.DataPlatform, func(m *message.Message) { want[m.ID]++ })
	got := readAll(t, b, bus.CopyName(message.DataPlatform), len(want))
	if !maps.Equal(got, want) || uint64(len(want)) != near.Handled {
		t.Errorf("%d messages are in the stream, %d in the log, and %d were copied", len(got), len(want), near.Handled)
	}
	t.Logf("%d messages through eight kills", len(got))
}

// readAll reads a log until it has found so many messages, and what lies behind them for a moment; by id, how often.
func readAll(t *testing.T, b bus.Bus, name string, n int) map[message.ID]int {
	t.Helper()
	log, err := b.Log(t.Context(), name, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := log.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	type read struct {
		s   bus.Stored
		err error
	}
	all := make(chan read)
	for _, part := range info.Generations[0].Partitions {
		r, err := log.Reader(ctx, bus.Position{Generation: 1, Partition: part.Number})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		go func() {
			for {
				s, err := r.Next(ctx)
				select {
				case all <- read{s, err}:
				case <-ctx.Done():
					return
				}
				if err != nil {
					return
				}
			}
		}()
	}
	got := map[message.ID]int{}
	var calm <-chan time.Time
	for {
		select {
		case x := <-all:
			if x.err != nil || x.s.Err != nil {
				t.Fatal(x.err, x.s.Err)
			}
			c := x.s.Batch.Cursor()
			for id, ok := c.NextID(); ok; id, ok = c.NextID() {
				got[id]++
			}
			if len(got) >= n && calm == nil {
				calm = time.After(3 * time.Second)
			}
		case <-calm:
			return got
		case <-ctx.Done():
			t.Fatalf("%d of %d messages are in the stream", len(got), n)
		}
	}
}
