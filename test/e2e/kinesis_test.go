//go:build long && foreign

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	aws_credentials "github.com/aws/aws-sdk-go-v2/credentials"
	aws_kinesis "github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/bustest"
	"github.com/naru-platform/naru/bus/kinesis"
	"github.com/naru-platform/naru/bus/kinesis/local"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/data_platform/storage"
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
	handled := uint64(0)
	for range 3 {
		for late := time.Now().Add(3 * time.Minute); ; {
			if l := p.line("operator.ledger", "data_platform.kinesis"); l.Handled >= handled+20 {
				handled = l.Handled
				break
			}
			if time.Now().After(late) {
				t.Fatalf("%d messages come out of Kinesis, and no more: %+v\n%s", handled, p.line("data_platform.pump", "data_platform"), p.out)
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
		near, far = p.line("data_platform.pump", "data_platform"), p.line("operator.ledger", "data_platform.kinesis")
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

// TestSimulatedReadingsBecomeRowsThroughKinesis is `naru up --sim` with the configuration of examples/kinesis.yaml and a Kinesis server of
// others. The platform is killed six times, each time when more rows have come. Then each message for the dataset is one row, the trace of
// a reading ends at its row, and the rows came by way of the stream.
func TestSimulatedReadingsBecomeRowsThroughKinesis(t *testing.T) { becomeRows(t, false) }

// TestSimulatedReadingsBecomeRowsThroughAnAggregatedStream is the same with `aggregate: true`; AWS's own module for Node finds each message in the
// stream as well, by its device and as it was said.
func TestSimulatedReadingsBecomeRowsThroughAnAggregatedStream(t *testing.T) { becomeRows(t, true) }

func becomeRows(t *testing.T, aggregate bool) {
	if !bustest.Alone(t) {
		return
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "anybody")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "nothing")
	if endpoint := local.Kinesalite(t); endpoint != "http://127.0.0.1:4567" {
		t.Fatalf("the example names another endpoint than %s", endpoint)
	}
	example, err := os.ReadFile("../../examples/kinesis.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "naru.yaml")
	if aggregate {
		example = append(bytes.TrimRight(example, "\n"), "\n    aggregate: true\n"...)
	}
	if err := os.WriteFile(file, example, 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t, "--config", file, "--sim", "5")
	p.start()
	rows := 0
	more := func() {
		t.Helper()
		for late := time.Now().Add(3 * time.Minute); ; {
			var counted []struct{ N int }
			if out, code := p.naru("data", "query", "-o", "json", "SELECT count(*) AS n FROM telemetry"); code == 0 {
				if err := json.Unmarshal([]byte(out), &counted); err != nil {
					t.Fatal(err)
				}
				if counted[0].N >= rows+10 {
					rows = counted[0].N
					return
				}
			}
			if time.Now().After(late) {
				t.Fatalf("there are %d rows, and no more come\n%s", rows, p.out)
			}
		}
	}
	for range 6 {
		more()
		p.kill()
		p.start()
	}
	more()
	p.stop()
	p.args = p.args[:2] // without devices
	p.start()
	var near, far ledgerLine
	for late := time.Now().Add(3 * time.Minute); ; {
		p.settled(0)
		near, far = p.line("data_platform.pump", "data_platform"), p.line("data_platform.etl/telemetry", "data_platform.kinesis")
		if near.Handled > 0 && far.Handled == near.Handled {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("what is loaded is not what was put into the stream: %+v\n%+v", far, near)
		}
	}
	if direct := p.line("data_platform.etl/telemetry", "data_platform"); direct.Log != "" {
		t.Errorf("rows are loaded past the stream: %+v", direct)
	}
	var newest []struct{ Trace string }
	p.json(&newest, "data", "query", "SELECT trace_id AS trace FROM telemetry ORDER BY recorded DESC LIMIT 1")
	if out, code := p.naru("trace", newest[0].Trace); code != 0 || !strings.Contains(out, "row of dataset telemetry") {
		t.Errorf("naru trace does not end at the row: %d\n%s", code, out)
	}
	p.stop()

	b, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(p.data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	want, got, said := map[string]int{}, map[string]int{}, map[string]int{}
	eachStored(t, b, message.DataPlatform, func(m *message.Message) {
		want[m.ID.String()]++
		said[m.Device+" "+string(m.Data)]++
	})
	if aggregate {
		if seen := seenByAWS(t, "http://127.0.0.1:4567", "naru-data"); !maps.Equal(seen, said) {
			t.Errorf("AWS's consumer finds %d messages, %d are in the log, or one more often than it was said", len(seen), len(said))
		}
	}
	store, err := storage.OpenDuck(t.Context(), filepath.Join(p.data, storage.Name, "data.duckdb"), storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	r, err := store.Query(t.Context(), "SELECT message_id FROM telemetry", nil, storage.Limits{Rows: 1_000_000})
	if err != nil {
		t.Fatal(err)
	}
	for row, err := range r.Rows() {
		if err != nil {
			t.Fatal(err)
		}
		got[row[0].(string)]++
	}
	if !maps.Equal(got, want) {
		t.Errorf("%d messages are rows, %d are in the log, or one is more than one row", len(got), len(want))
	}
	t.Logf("%d rows through six kills", len(got))
}

// seenByAWS reads a stream to its end, and has AWS's module take its records apart: how often there is each payload of a device, where repeats
// of a record are passed over as docs/kinesis.md says.
func seenByAWS(t *testing.T, endpoint, stream string) map[string]int {
	t.Helper()
	client := aws_kinesis.New(aws_kinesis.Options{Region: "eu-north-1", BaseEndpoint: &endpoint, Credentials: aws_credentials.NewStaticCredentialsProvider("anybody", "nothing", "")})
	shards, err := client.ListShards(t.Context(), &aws_kinesis.ListShardsInput{StreamName: &stream})
	if err != nil {
		t.Fatal(err)
	}
	var asked struct {
		Records [][]byte `json:"records"`
	}
	for _, s := range shards.Shards {
		it, err := client.GetShardIterator(t.Context(), &aws_kinesis.GetShardIteratorInput{StreamName: &stream, ShardId: s.ShardId, ShardIteratorType: types.ShardIteratorTypeTrimHorizon})
		if err != nil {
			t.Fatal(err)
		}
		for next := it.ShardIterator; ; {
			out, err := client.GetRecords(t.Context(), &aws_kinesis.GetRecordsInput{ShardIterator: next})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range out.Records {
				asked.Records = append(asked.Records, r.Data)
			}
			if next = out.NextShardIterator; len(out.Records) == 0 || next == nil {
				break
			}
		}
	}
	in, err := json.Marshal(asked)
	if err != nil {
		t.Fatal(err)
	}
	var apart struct {
		Records [][]struct {
			Key  string `json:"key"`
			Data []byte `json:"data"`
		}
	}
	if err := json.Unmarshal(local.Node(t, "kpl.js", in), &apart); err != nil {
		t.Fatal(err)
	}
	seen, known := map[string]int{}, map[string]bool{}
	for _, users := range apart.Records {
		if !strings.HasPrefix(users[0].Key, "batch-of-naru/") {
			t.Errorf("a record is not aggregated; its key is %s", users[0].Key)
		}
		if known[users[0].Key] {
			continue
		}
		known[users[0].Key] = true
		for _, u := range users[1:] {
			seen[u.Key+" "+string(u.Data)]++
		}
	}
	return seen
}

// line is what the ledger says of a consumer and a log; empty where it says nothing.
func (p *platform) line(consumer, log string) (found ledgerLine) {
	p.t.Helper()
	var lines []ledgerLine
	p.json(&lines, "ledger")
	for _, l := range lines {
		if l.Consumer == consumer && l.Log == log {
			found = l
		}
	}
	return found
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
