package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/internal/whole"
	"github.com/naru-platform/naru/operator/journal"
	"github.com/naru-platform/naru/operator/ledger"
)

// path is a measurement of the whole way of a reading, from MQTT to its row.
type path struct {
	Publishers int     `json:"publishers"`
	Window     int     `json:"window"`
	Messages   int     `json:"messages"`
	Stages     []stage `json:"stages"`
	CPU        float64 `json:"server_cpu_us_per_message"` // from the first PUBLISH until the last row
	// Balanced is when the ledger had seen all of it, counted from the first PUBLISH.
	Balanced time.Duration `json:"balanced_after_ns"`
	Faults   []string      `json:"faults"`

	profile string // file for a CPU profile
}

// stage is one of the places that every message passes.
type stage struct {
	Name      string        `json:"name"`
	Done      time.Duration `json:"done_after_ns"` // with the last message, counted from the first PUBLISH
	PerSecond float64       `json:"messages_per_second"`
	// Behind is how many messages it had before it when the last was acknowledged, and Lag for how long it went on then.
	Behind int           `json:"behind_at_end"`
	Lag    time.Duration `json:"lag_at_end_ns"`

	series string // the metric that counts what it has done
	done   int
}

// Each reading passes a rule, which puts its output into the twin of its device and into a dataset. No other dataset takes it.
const (
	pathRule = `name: bench-path
sql: SELECT seq AS state.reported.seq, celsius AS state.reported.celsius, note AS state.reported.note FROM 'device/+/event/bench'
actions:
  - twin: {device: "${topic(2)}"}
  - data_bridge: {dataset: bench_path}
`
	pathDataset = `dataset: bench_path
version: 1
owner: bench
doc: What naru bench path measures.
fields:
  - {name: seq, type: int, required: true, at: /state/reported/seq}
  - {name: celsius, type: double, at: /state/reported/celsius}
  - {name: note, type: text, at: /state/reported/note}
`
	pathTopic = "device/%s/event/bench"
	pathNote  = "two hundred bytes in all, as the other measurements have them: the rest of this is text that nobody reads, but all carry, store and trace"
)

const (
	pathTick     = 100 * time.Millisecond // the resolution of when a stage is done
	pathPatience = 2 * time.Minute        // without any message at any stage
	pathTraces   = 20                     // that are looked up at the end
	pathProfile  = 15 * time.Second
)

func benchPath(o *options) *cobra.Command {
	b := path{Publishers: 50, Window: 100, Messages: 200_000}
	c := &cobra.Command{
		Use: "path", Short: "Messages a second from MQTT over rule, twin, bridge and ETL to a stored row", Args: cobra.NoArgs,
		Long: `Starts a naru of its own in a temporary directory, publishes readings of 200 bytes with QoS 1 in a closed loop, without TLS, and
waits until each of them is a row. A rule takes every reading, and gives what it makes of it to the twin of the device and to a
dataset. Told is of each stage how many messages a second it did, from the first PUBLISH to its last message, how far it was behind
when the last message was acknowledged, and the server's CPU time per message, all components together. Every message is traced.

At the end the rows are held against what was acknowledged, one by one, some traces are looked up, and the ledger has to balance; else
what is wrong is told, and the exit code is 2. The load runs on the same machine and competes for its cores. --profile keeps a CPU
profile of the server, of 15 seconds from its first message on.`,
		Example: "  naru bench path\n  naru bench path --messages 1000000 --profile cpu.out\n  naru bench path --publishers 1000 --window 5 -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			if b.Publishers < 1 || b.Window < 1 || b.Window > 65535 || b.Messages < b.Publishers {
				return errors.New("want at least 1 publisher, a window of 1 to 65535 and a message of each publisher")
			}
			b.Messages -= b.Messages % b.Publishers
			if err := b.measure(c.Context(), c.ErrOrStderr()); err != nil {
				return err
			}
			err := o.show(c.OutOrStdout(), b, func(p *printer) {
				p.line("%d publishers × window %d, %d messages, each one reading, twin update and row", b.Publishers, b.Window, b.Messages)
				p.columns("", "STAGE", "MSG/S", "DONE AFTER", "BEHIND AT THE END", "FOR")
				for _, s := range b.Stages {
					p.row(s.Name, fmt.Sprintf("%.0f", s.PerSecond), s.Done.Round(pathTick).String(), strconv.Itoa(s.Behind), s.Lag.Round(pathTick).String())
				}
				p.row("server CPU", fmt.Sprintf("%.1f µs/msg", b.CPU))
				p.row("ledger balanced", b.Balanced.Round(pathTick).String())
				for _, f := range b.Faults {
					p.line("%s", f)
				}
			})
			return found(err, len(b.Faults) > 0)
		},
	}
	f := c.Flags()
	f.IntVar(&b.Publishers, "publishers", b.Publishers, "connections, each of a device of its own")
	f.IntVar(&b.Window, "window", b.Window, "unacknowledged messages of each")
	f.IntVar(&b.Messages, "messages", b.Messages, "of all publishers together")
	f.StringVar(&b.profile, "profile", "", "file for a CPU profile of the server")
	return c
}

func (b *path) measure(ctx context.Context, say io.Writer) error {
	fmt.Fprintln(say, "starting a platform in a temporary directory …")
	server, err := startChild(ctx, &ingest{Tracing: true})
	if err != nil {
		return err
	}
	defer server.stop()
	if err := server.cl.do(ctx, http.MethodPut, "/api/v1/data/models", url.Values{"by": {"bench"}, "why": {"bench"}}, []byte(pathDataset), nil); err != nil {
		return err
	}
	if err := server.cl.do(ctx, http.MethodPut, rulePath("bench-path", ""), url.Values{"by": {"bench"}, "why": {"bench"}}, []byte(pathRule), nil); err != nil {
		return err
	}
	all := make([]*member, b.Publishers)
	for i := range all {
		if all[i], err = dialMember(server.addr.plain, pathDevice(i), true); err != nil {
			return err
		}
		defer all[i].Close()
	}
	b.Stages = []stage{
		{Name: "acknowledged"},
		{Name: "rule", series: `naru_rule_messages_total{outcome="matched",rule="bench-path"} `},
		{Name: "twin", series: `naru_twin_requests_total{answer="accepted",request="update"} `},
		{Name: "bridge", series: `naru_bridge_messages_total{dataset="bench_path"} `},
		{Name: "row", series: `naru_etl_rows_total{dataset="bench_path"} `},
	}
	fmt.Fprintf(say, "publishing %d messages …\n", b.Messages)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	errs := make([]error, len(all)+1)
	if b.profile != "" {
		group.Go(func() { errs[len(all)] = server.profile(ctx, b.profile, pathProfile) })
	}
	before, began := cpuOf(server.cmd.Process.Pid), time.Now()
	var acked atomic.Int64
	failed := make(chan error, len(all))
	for i, m := range all {
		group.Go(func() {
			body := func(n int) []byte {
				return fmt.Appendf(nil, `{"seq":%d,"celsius":%d.5,"note":%q}`, n, 15+n%17, pathNote)
			}
			if err := m.publish(ctx, fmt.Sprintf(pathTopic, pathDevice(i)), b.Messages/b.Publishers, b.Window, body, func() { acked.Add(1) }); err != nil {
				failed <- err
			}
		})
	}
	if err := b.follow(ctx, say, server, began, &acked, failed); err != nil {
		return err
	}
	b.CPU = float64((cpuOf(server.cmd.Process.Pid) - before).Microseconds()) / float64(b.Messages)
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Fprintln(say, "holding rows and ledger against what was acknowledged …")
	return b.check(ctx, server, began)
}

func pathDevice(i int) string { return fmt.Sprintf("bench-%d", i) }

// follow looks what the stages have done until the last one has done all.
func (b *path) follow(ctx context.Context, say io.Writer, server *child, began time.Time, acked *atomic.Int64, failed <-chan error) error {
	tick := time.NewTicker(pathTick)
	defer tick.Stop()
	moved, told := began, began
	for ended := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case <-tick.C:
		}
		counted, err := server.metrics(ctx)
		if err != nil {
			return err
		}
		since, open := time.Since(began), false
		for i := range b.Stages {
			s := &b.Stages[i]
			done := counted[s.series]
			if i == 0 {
				done = int(acked.Load())
			}
			if done > s.done {
				s.done, moved = done, time.Now()
			}
			if s.done >= b.Messages && s.Done == 0 {
				s.Done, s.PerSecond = since, float64(b.Messages)/since.Seconds()
				if ended > 0 {
					s.Lag = since - ended
				}
			}
			open = open || s.Done == 0
		}
		if ended == 0 && b.Stages[0].Done > 0 {
			ended = since
			for i := range b.Stages {
				b.Stages[i].Behind = max(b.Messages-b.Stages[i].done, 0)
			}
		}
		if !open {
			return nil
		}
		if time.Since(moved) > pathPatience {
			return fmt.Errorf("nothing has moved for %s: %s", pathPatience, b.standing())
		}
		if time.Since(told) > 5*time.Second {
			told = time.Now()
			fmt.Fprintln(say, b.standing())
		}
	}
}

// standing is how far each stage is.
func (b *path) standing() string {
	var parts []string
	for _, s := range b.Stages {
		parts = append(parts, fmt.Sprintf("%s %d", s.Name, s.done))
	}
	return strings.Join(parts, ", ")
}

// check notes what is not as it should be: each acknowledged message is one row, its trace is there, and the ledger balances.
func (b *path) check(ctx context.Context, server *child, began time.Time) error {
	fault := func(format string, args ...any) { b.Faults = append(b.Faults, fmt.Sprintf(format, args...)) }
	for _, s := range b.Stages {
		if s.done != b.Messages {
			fault("%s: %d of %d messages were counted", s.Name, s.done, b.Messages)
		}
	}
	type device struct {
		Device                               string
		N, Different, Least, Greatest, Trace int
	}
	var rows []device
	if err := server.ask(ctx, "SELECT device, count(*) AS n, count(DISTINCT seq) AS different, min(seq) AS least, max(seq) AS greatest, count(DISTINCT trace_id) AS trace FROM bench_path GROUP BY device", &rows); err != nil {
		return err
	}
	each := b.Messages / b.Publishers
	for _, r := range rows {
		if r != (device{r.Device, each, each, 0, each - 1, each}) {
			fault("%s: %d rows of %d readings from %d to %d with %d traces, and %d were acknowledged", r.Device, r.N, r.Different, r.Least, r.Greatest, r.Trace, each)
		}
	}
	if len(rows) != b.Publishers {
		fault("there are rows of %d devices, and %d have spoken", len(rows), b.Publishers)
	}
	var traces []struct{ Trace string }
	if err := server.ask(ctx, fmt.Sprintf("SELECT trace_id AS trace FROM bench_path ORDER BY hash(trace_id) LIMIT %d", pathTraces), &traces); err != nil {
		return err
	}
	for until := time.Now().Add(pathPatience); ; {
		var lines []ledger.Line
		if err := server.cl.get(ctx, "/api/v1/ledger", nil, &lines); err != nil {
			return err
		}
		if i := slices.IndexFunc(lines, func(l ledger.Line) bool { return l.Waiting > 0 || !l.Balanced || l.Dead > 0 }); i < 0 && len(lines) > 0 {
			b.Balanced = time.Since(began)
			break
		} else if time.Now().After(until) || i >= 0 && (lines[i].Dead > 0 || lines[i].Fault != "") {
			fault("the ledger does not balance: %+v", lines[i])
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pathTick):
		}
	}
	for _, t := range traces {
		var v journal.TraceView
		if err := server.cl.get(ctx, "/api/v1/traces/"+t.Trace, nil, &v); err != nil {
			return err
		}
		for _, want := range []string{".event.bench", ".twin.update", ".twin.update.accepted"} {
			if !slices.ContainsFunc(v.Messages, func(l journal.Line) bool { return strings.HasSuffix(string(l.Subject), want) }) {
				fault("trace %s of a row has no message %s", t.Trace, want)
			}
		}
		if !slices.ContainsFunc(v.Messages, func(l journal.Line) bool { return strings.HasPrefix(string(l.Subject), "data_platform.bench_path.") }) {
			fault("trace %s of a row does not lead into the data platform", t.Trace)
		}
	}
	return nil
}

// ask answers a query as rows of v.
func (k *child) ask(ctx context.Context, sql string, v any) error {
	return k.cl.do(ctx, http.MethodPost, "/api/v1/data/query", url.Values{"format": {"json"}}, map[string]any{"sql": sql}, v)
}

// metrics are the child's, by name and labels with the space behind, as whole numbers.
func (k *child) metrics(ctx context.Context) (map[string]int, error) {
	r, err := k.cl.open(ctx, http.MethodGet, "/metrics", nil, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	all := map[string]int{}
	for in := bufio.NewScanner(r); ; {
		if !in.Scan() {
			return all, in.Err()
		}
		if at := strings.LastIndexByte(in.Text(), ' '); at > 0 && in.Text()[0] != '#' {
			if n, err := strconv.ParseFloat(in.Text()[at+1:], 64); err == nil {
				all[in.Text()[:at+1]] = int(n)
			}
		}
	}
}

// profile keeps a CPU profile of the child in a file.
func (k *child) profile(ctx context.Context, file string, d time.Duration) error {
	r, err := k.cl.open(ctx, http.MethodGet, "/debug/pprof/profile", url.Values{"seconds": {strconv.Itoa(int(d.Seconds()))}}, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	raw, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read the profile: %w", err)
	}
	return whole.Write(file, raw, 0o644)
}
