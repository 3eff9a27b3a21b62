package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// work is one thing that brokers are asked to do.
type work struct {
	name string
	run  func(ctx context.Context, addr, word string) (measured, error)
}

// row is one work's outcome: medians over the rounds.
type row struct {
	Work      string    `json:"work"`
	Naru      measured  `json:"naru"`
	Mosquitto *measured `json:"mosquitto,omitempty"`
	Ratio     float64   `json:"ratio,omitempty"` // naru's rate to mosquitto's
}

func benchMQTT(o *options) *cobra.Command {
	deliveries, waiting, connections, rounds := 100_000, 100_000, 1000, 3
	var only []string
	alone := false
	c := &cobra.Command{
		Use: "mqtt", Short: "Fan-out, fan-in, QoS 2, an offline backlog, a storm of connections, a stopped subscriber; beside mosquitto", Args: cobra.NoArgs,
		Long: `Starts a naru of its own with a plain listener, and mosquitto beside it where it is installed, and has both do the same work in
turn, several rounds; the medians are shown. naru has each message on disk before it hands it on, with a journal and a ledger of
it; mosquitto keeps nothing. The load runs on the same machine and competes for its cores.

Latency is from the publisher's write until the last subscriber has the message; of a storm, from its beginning until CONNACK.
The rows with a stopped subscriber are the same fan-out once without and once with one that never reads.`,
		Example: "  naru bench mqtt\n  naru bench mqtt --only fan-out,stopped --rounds 5 -o json\n  naru bench mqtt --only backlog --waiting 1000000",
		RunE: func(c *cobra.Command, _ []string) error {
			if deliveries < 1000 || waiting < 1 || connections < 1 || rounds < 1 {
				return errors.New("want at least 1000 deliveries, and 1 of everything else")
			}
			if err := mayHold(connections); err != nil {
				return err
			}
			list, err := works(deliveries, waiting, connections, only)
			if err != nil {
				return err
			}
			rows, err := compare(c.Context(), c.ErrOrStderr(), list, rounds, waiting, alone)
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), rows, func(p *printer) {
				p.columns("", "WORK", "NARU /s", "P50", "P99", "MOSQUITTO /s", "P50", "P99", "NARU : MOSQUITTO")
				for _, r := range rows {
					m := []string{"", "", "", ""}
					if r.Mosquitto != nil {
						m = []string{fmt.Sprintf("%.0f", r.Mosquitto.PerSecond), latency(r.Mosquitto.P50), latency(r.Mosquitto.P99), fmt.Sprintf("%.2f", r.Ratio)}
					}
					p.row(r.Work, fmt.Sprintf("%.0f", r.Naru.PerSecond), latency(r.Naru.P50), latency(r.Naru.P99), m[0], m[1], m[2], m[3])
				}
			})
		},
	}
	f := c.Flags()
	f.IntVar(&deliveries, "deliveries", deliveries, "of fan-out, fan-in and QoS 2, each round")
	f.IntVar(&waiting, "waiting", waiting, "messages of the offline backlog")
	f.IntVar(&connections, "connections", connections, "of the storm")
	f.IntVar(&rounds, "rounds", rounds, "of which the medians are shown")
	f.StringSliceVar(&only, "only", nil, "works, or what their names begin with")
	f.BoolVar(&alone, "alone", false, "without mosquitto")
	return c
}

// latency is one, where one was measured.
func latency(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fine(d)
}

func works(deliveries, waiting, connections int, only []string) (list []work, err error) {
	add := func(name string, l closedLoop) {
		l.payload = cmp.Or(l.payload, 200)
		list = append(list, work{name, l.run})
	}
	for _, n := range []int{1, 10, 100, 1000} {
		add(fmt.Sprintf("fan-out to %d, QoS 1", n), closedLoop{publishers: 1, subscribers: n, qos: 1, window: 50, messages: max(deliveries/n, 50)})
	}
	add("fan-in of 100, QoS 1", closedLoop{publishers: 100, subscribers: 1, qos: 1, window: 500, messages: deliveries})
	add("10 to 1, QoS 2", closedLoop{publishers: 10, subscribers: 1, qos: 2, window: 200, messages: deliveries / 2})
	still := closedLoop{publishers: 4, subscribers: 10, qos: 1, window: 20, messages: deliveries / 10, payload: 1000}
	add("stopped subscriber: none", still)
	still.stalled = 1
	add("stopped subscriber: one", still)
	list = append(list,
		work{fmt.Sprintf("backlog of %d drained", waiting), func(ctx context.Context, addr, word string) (measured, error) {
			return backlog(ctx, addr, word, waiting, 200)
		}},
		work{fmt.Sprintf("storm of %d connections", connections), func(ctx context.Context, addr, word string) (measured, error) {
			return storm(ctx, addr, word, connections)
		}})
	if only == nil {
		return list, nil
	}
	var names []string
	for _, w := range list {
		names = append(names, w.name)
	}
	list = slices.DeleteFunc(list, func(w work) bool {
		return !slices.ContainsFunc(only, func(s string) bool { return strings.HasPrefix(w.name, strings.TrimSpace(s)) })
	})
	if len(list) == 0 {
		return nil, fmt.Errorf("--only %s: there are %s", strings.Join(only, ","), strings.Join(names, "; "))
	}
	return list, nil
}

// compare has the brokers work in turn.
func compare(ctx context.Context, say io.Writer, list []work, rounds, waiting int, alone bool) (rows []row, err error) {
	fmt.Fprintln(say, "starting the brokers in temporary directories …")
	server, addr, err := startOpen(ctx, waiting)
	if err != nil {
		return nil, err
	}
	defer server.stop()
	peer := ""
	if !alone {
		stop, at, err := startMosquitto(ctx)
		if err != nil {
			return nil, err
		}
		defer stop()
		peer = at
	}
	for i, w := range list {
		var ours, theirs []measured
		for n := range rounds {
			fmt.Fprintf(say, "%s, round %d of %d …\n", w.name, n+1, rounds)
			m, err := w.run(ctx, addr, fmt.Sprintf("w%d-%d", i, n))
			if err != nil {
				return nil, fmt.Errorf("naru, %s: %w", w.name, err)
			}
			ours = append(ours, m)
			if peer == "" {
				continue
			}
			if m, err = w.run(ctx, peer, fmt.Sprintf("w%d-%d", i, n)); err != nil {
				return nil, fmt.Errorf("mosquitto, %s: %w", w.name, err)
			}
			theirs = append(theirs, m)
		}
		r := row{Work: w.name, Naru: middle(ours)}
		if peer != "" {
			m := middle(theirs)
			r.Mosquitto, r.Ratio = &m, r.Naru.PerSecond/m.PerSecond
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func middle(all []measured) (m measured) {
	slices.SortFunc(all, func(a, b measured) int { return cmp.Compare(a.PerSecond, b.PerSecond) })
	m.PerSecond = all[len(all)/2].PerSecond
	slices.SortFunc(all, func(a, b measured) int { return cmp.Compare(a.P50, b.P50) })
	m.P50 = all[len(all)/2].P50
	slices.SortFunc(all, func(a, b measured) int { return cmp.Compare(a.P99, b.P99) })
	m.P99 = all[len(all)/2].P99
	return m
}

// startOpen starts a naru that is an ordinary broker, with room for the backlog.
func startOpen(ctx context.Context, waiting int) (*child, string, error) {
	addr, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	k, err := startChild(ctx, &ingest{Tracing: true, config: fmt.Sprintf(`service_platform.broker:
  session_messages_max: %d
  session_bytes_max: %d
  listeners:
    - {name: open, address: %q, protocol: mqtt, auth: none, policy: open, mount: 3rd_party.bench}
`, max(100_000, waiting+1000), int64(max(100_000, waiting+1000))*1000, addr)})
	return k, addr, err
}

// startMosquitto starts mosquitto as fast as it can be made: in memory, nothing cut short.
func startMosquitto(ctx context.Context) (stop func(), addr string, err error) {
	binary, err := mosquitto()
	if err != nil {
		return nil, "", errors.New("mosquitto is not on this machine: install it (Debian: apt-get install mosquitto), or say --alone")
	}
	dir, err := os.MkdirTemp("", "naru-mosquitto-")
	if err != nil {
		return nil, "", err
	}
	if addr, err = freeAddress(); err != nil {
		return nil, "", err
	}
	_, port, _ := net.SplitHostPort(addr)
	file := filepath.Join(dir, "mosquitto.conf")
	conf := "listener " + port + " 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true\nlog_type error\n"
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, "", err
	}
	cmd := exec.Command(binary, "-c", file)
	if err := cmd.Start(); err != nil {
		return nil, "", fmt.Errorf("start mosquitto: %w", err)
	}
	stop = func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait(); _ = os.RemoveAll(dir) }
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return stop, addr, nil
		}
		if time.Now().After(until) || ctx.Err() != nil {
			stop()
			return nil, "", errors.New("mosquitto did not start")
		}
	}
}
