package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/worker"
	"github.com/naru-platform/naru/service_platform/worker/sdk"
	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

// yard is a platform of several processes on one NATS.
type yard struct {
	t     *testing.T
	bus   string // its URL
	nodes map[string]*yardNode
	dirs  map[string]string // stay over a node's starts
	door  bus.Appender
	log   bus.Log
}

type yardNode struct {
	url  string
	stop func()
}

func newYard(t *testing.T, nodes ...string) *yard {
	t.Helper()
	server, err := natsserver.NewServer(&natsserver.Options{Port: -1, Host: "127.0.0.1", JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(func() { server.Shutdown(); server.WaitForShutdown() })
	y := &yard{t: t, bus: server.ClientURL(), nodes: map[string]*yardNode{}, dirs: map[string]string{}}
	y.until("the bus is up", func() bool { return server.ReadyForConnections(time.Second) })
	for _, n := range nodes {
		y.begin(n)
	}
	b := y.open()
	if y.log, err = b.Log(t.Context(), message.Device, bus.LogOptions{}); err != nil {
		t.Fatal(err)
	}
	if y.door, err = y.log.Appender(t.Context(), bus.AppenderOptions{Name: "test", Owner: message.NewID(time.Now())}); err != nil {
		t.Fatal(err)
	}
	return y
}

func (y *yard) open() *nats.Bus {
	y.t.Helper()
	b, err := nats.Open(y.t.Context(), nats.Options{URL: y.bus})
	if err != nil {
		y.t.Fatal(err)
	}
	y.t.Cleanup(func() { b.Close() })
	return b
}

// begin starts a process.
func (y *yard) begin(name string) {
	y.t.Helper()
	if y.dirs[name] == "" {
		y.dirs[name] = y.t.TempDir()
	}
	host := &component.Host{Bus: y.open(), Catalog: catalog.Default(), Dir: y.dirs[name], Node: name, Specs: []component.Spec{worker.Spec}, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx) }()
	s := httptest.NewServer(host.Handler(func(*http.Request) bool { return true }))
	var once sync.Once
	y.nodes[name] = &yardNode{s.URL, func() {
		once.Do(func() {
			s.CloseClientConnections()
			s.Close()
			cancel()
			if err := <-done; err != nil {
				y.t.Error(err)
			}
		})
	}}
	y.t.Cleanup(y.nodes[name].stop)
}

func (y *yard) until(what string, happened func() bool) {
	y.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(2 * time.Minute)
	defer late.Stop()
	for !happened() {
		select {
		case <-tick.C:
		case <-late.C:
			y.t.Fatalf("it does not happen: %s", what)
		}
	}
}

func (y *yard) ask(node, method, path, body string) (int, string) {
	y.t.Helper()
	q, err := http.NewRequest(method, y.nodes[node].url+path, strings.NewReader(body))
	if err != nil {
		y.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(q)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(raw)
}

func (y *yard) shown(node, name string) (s worker.Shown) {
	y.t.Helper()
	if code, body := y.ask(node, "GET", "/api/v1/workers/"+name, ""); code == 200 {
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			y.t.Fatal(err)
		}
	}
	return s
}

// add adds a worker, and says at which nodes it runs and does not run.
func (y *yard) add(name string) (runs, other string) {
	y.t.Helper()
	y.until("the worker is added", func() bool {
		code, _ := y.ask("n1", "PUT", "/api/v1/workers/"+name, `{"name":"`+name+`","hears":["device.*.telemetry"],"concurrency":64,"attempts":100}`)
		return code == 200
	})
	for n := range y.nodes {
		y.until("the worker is known and heard of at "+n, func() bool { s := y.shown(n, name); return s.State == "no_instances" && s.Run != nil })
	}
	runs = y.shown("n1", name).Run.Node
	for n := range y.nodes {
		if n != runs {
			other = n
		}
	}
	return runs, other
}

func (y *yard) instance(name, as string, o sdk.Options, h sdk.Handler) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	o.Name, o.Token, o.Concurrency = as, "x", 8
	done := make(chan error, 1)
	go func() { done <- sdk.Run(ctx, name, h, o) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				y.t.Errorf("instance %s: %v", as, err)
			}
		})
	}
	y.t.Cleanup(stop)
	return stop
}

func (y *yard) say(m *message.Message) {
	y.t.Helper()
	if err := y.door.Append(y.t.Context(), m, nil, 0); err != nil {
		y.t.Fatal(err)
	}
}

// said counts, by their cause, what was said on subjects of a pattern, until it is enough.
func (y *yard) said(on message.Pattern, enough func(map[message.ID]int) bool) map[message.ID]int {
	y.t.Helper()
	r, err := y.log.Reader(y.t.Context(), bus.Position{Generation: 1})
	if err != nil {
		y.t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(y.t.Context(), time.Minute)
	defer cancel()
	of := map[message.ID]int{}
	for !enough(of) {
		s, err := r.Next(ctx)
		if err != nil || s.Err != nil {
			y.t.Fatalf("%v, %v; what was said so far follows from %d messages", err, s.Err, len(of))
		}
		var m message.Message
		for c := s.Batch.Cursor(); c.Next(&m); {
			if on.Matches(m.Subject) {
				of[m.Cause]++
			}
		}
	}
	return of
}

// TestAnInstanceConnectsToAnyProcessAndOverTheBus: two instances of a worker that runs in one process, connected in each way
// there is. They share the devices, each device's messages come in order, and what follows from each is said once.
func TestAnInstanceConnectsToAnyProcessAndOverTheBus(t *testing.T) {
	y := newYard(t, "n1", "n2")
	for way, options := range map[string]func(runs, other string) sdk.Options{
		"by-http": func(runs, _ string) sdk.Options { return sdk.Options{URLs: []string{y.nodes[runs].url}} },
		"by-http-at-another-process": func(_, other string) sdk.Options {
			return sdk.Options{URLs: []string{y.nodes[other].url}}
		},
		"over-the-bus": func(string, string) sdk.Options { return sdk.Options{Bus: y.bus} },
	} {
		t.Run(way, func(t *testing.T) {
			runs, other := y.add(way)
			var mu sync.Mutex
			last, by, wrong := map[string]int{}, map[string]int{}, []string(nil)
			for _, as := range []string{"a", "b"} {
				y.instance(way, as, options(runs, other), func(_ context.Context, c *sdk.Call) error {
					n := 0
					fmt.Sscan(string(c.Message.Data), &n)
					mu.Lock()
					defer mu.Unlock()
					if by[as]++; n != last[c.Message.Device]+1 && n != last[c.Message.Device] { // it is given again where an instance is not heard in time
						wrong = append(wrong, fmt.Sprintf("%s: %d after %d", c.Message.Device, n, last[c.Message.Device]))
					}
					last[c.Message.Device] = n
					if c.Message.Device == way+"-0" && n == 1 { // as much as one message may say
						return c.Say("device."+c.Message.Device+".said."+way, bytes.Repeat([]byte("x"), 1<<20))
					}
					return c.Say("device."+c.Message.Device+".said."+way, c.Message.Data)
				})
			}
			y.until("two instances are there", func() bool { s := y.shown(other, way); return s.Run != nil && len(s.Run.Instances) == 2 })
			const devices, each = 20, 10
			ids := map[message.ID]bool{}
			for n := range each {
				for d := range devices {
					data := fmt.Sprint(n + 1)
					if n == 3 && d == 0 {
						data += strings.Repeat(" ", 1<<20) // and as much as one may be
					}
					m := telemetry(fmt.Sprintf("%s-%d", way, d), data)
					ids[m.ID] = true
					y.say(m)
				}
			}
			of := y.said(message.Pattern("device.*.said."+way), func(of map[message.ID]int) bool {
				n := 0
				for id := range of {
					if ids[id] {
						n++
					}
				}
				return n == len(ids)
			})
			for id := range ids {
				if of[id] != 1 {
					t.Errorf("of %s there is said %d times", id, of[id])
				}
			}
			mu.Lock()
			if len(wrong) > 0 {
				t.Errorf("out of order: %s", strings.Join(wrong, "; "))
			}
			if by["a"] == 0 || by["b"] == 0 {
				t.Errorf("the instances were given %v", by)
			}
			mu.Unlock()
			if code, body := y.ask(other, "POST", "/api/v1/workers/"+way+"/call?device="+way+"-call", "1"); code != 204 {
				t.Errorf("a call at a process that does not run it is answered %d %s", code, body)
			}
			if code, body := y.ask(other, "POST", "/api/v1/workers/"+way+"/instances/gone/calls", "{}"); code != 410 {
				t.Errorf("an instance that is not known is told %d %s", code, body)
			}
		})
	}
}

func TestOverTheBusAWorkerThatIsNotThereIsTold(t *testing.T) {
	y := newYard(t, "n1")
	y.add("w")
	err := sdk.Run(t.Context(), "nobody", func(context.Context, *sdk.Call) error { return nil }, sdk.Options{Bus: y.bus})
	if err == nil || !strings.Contains(err.Error(), "naru worker add") {
		t.Errorf("it is told %v", err)
	}
}

// An account that may speak to one worker and to anybody must not reach another worker by the latter.
func TestAnybodyTakesNoInstanceIn(t *testing.T) {
	y := newYard(t, "n1")
	y.add("w")
	for _, q := range []wire.Question{{Do: wire.DoJoin, Worker: "w", Join: &wire.Join{Name: "x", Concurrency: 1}}, {Do: wire.DoWork, Worker: "w", Work: &wire.Work{Timeout: time.Second}}} {
		raw, err := wire.Pack(&q)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err = y.open().Ask(t.Context(), wire.Anybody, raw); err != nil {
			t.Fatal(err)
		}
		if a, err := wire.Unpack[wire.Answer](raw); err != nil || a.Refused == nil || a.Joined != nil {
			t.Errorf("%s is answered %+v, %v", q.Do, a, err)
		}
	}
	q := wire.Question{Do: wire.DoWork, Worker: "w", Work: &wire.Work{Timeout: 1 << 60}}
	raw, err := wire.Pack(&q)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = y.open().Ask(t.Context(), wire.On("w"), raw); err != nil {
		t.Fatal(err)
	}
	if a, err := wire.Unpack[wire.Answer](raw); err != nil || a.Refused == nil || a.Refused.Status != 400 {
		t.Errorf("a wait of years is answered %+v, %v", a, err)
	}
}

// TestInstancesWaitForTheProcessOfTheirWorker: the process that runs the worker ends, messages come, and no other takes it over,
// since it would begin behind them. When the process is back, instances that were connected in any way go on there.
func TestInstancesWaitForTheProcessOfTheirWorker(t *testing.T) {
	y := newYard(t, "n1", "n2")
	runs, other := y.add("w")
	handle := func(_ context.Context, c *sdk.Call) error {
		return c.Say("device."+c.Message.Device+".said", c.Message.Data)
	}
	y.instance("w", "bus", sdk.Options{Bus: y.bus}, handle)
	y.instance("w", "other", sdk.Options{URLs: []string{y.nodes[other].url}}, handle)
	instances := func(n int) {
		t.Helper()
		y.until(fmt.Sprintf("%d instances are there", n), func() bool {
			s := y.shown(other, "w")
			return s.State == "running" && s.Run != nil && len(s.Run.Instances) == n && s.Run.Node == runs
		})
	}
	instances(2)
	ids := map[message.ID]bool{}
	say := func() {
		for i := range 60 {
			m := telemetry(fmt.Sprint("d-", i%15), fmt.Sprint(i))
			ids[m.ID] = true
			y.say(m)
		}
	}
	say()
	y.nodes[runs].stop()
	say()
	y.until("the worker is away", func() bool { return y.shown(other, "w").State == "away" })
	y.begin(runs)
	instances(2)
	for id, n := range y.said("device.*.said", func(of map[message.ID]int) bool {
		n := 0
		for id := range ids {
			n += min(of[id], 1)
		}
		return n == len(ids)
	}) {
		if ids[id] && n != 1 {
			t.Errorf("of %s there is said %d times", id, n)
		}
	}
}

// TestAWorkerWhoseHomeIsNotWrittenDownKeepsWhatItHas, as one of a time before homes were.
func TestAWorkerWhoseHomeIsNotWrittenDownKeepsWhatItHas(t *testing.T) {
	y := newYard(t, "n1", "n2")
	first, second := y.add("w")
	y.nodes[second].stop()
	y.instance("w", "i", sdk.Options{Bus: y.bus}, func(context.Context, *sdk.Call) error { return nil })
	for i := range 8 {
		if i == 5 {
			y.until("five are handled", func() bool { s := y.shown(first, "w"); return s.Handled == 5 && s.Behind == 0 })
			y.nodes[first].stop()
			b, err := nats.Open(t.Context(), nats.Options{URL: y.bus})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			homes, err := b.Table(t.Context(), "naru_homes", bus.TableOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := homes.Delete(t.Context(), "service_platform.worker/w", 0); err != nil {
				t.Fatal(err)
			}
		}
		y.say(telemetry(fmt.Sprint("d-", i), "1"))
	}
	y.begin(first)
	y.until("all are handled, by its own account", func() bool { s := y.shown(first, "w"); return s.Handled == 8 && s.Behind == 0 })
}

// TestAWorkerMovesFromANodeThatIsGone has a worker go on at another node, behind what it had handled, and back again: what lies at its
// first node from before is of no use any more.
func TestAWorkerMovesFromANodeThatIsGone(t *testing.T) {
	y := newYard(t, "n1", "n2")
	first, second := y.add("w")
	y.instance("w", "i", sdk.Options{Bus: y.bus}, func(_ context.Context, c *sdk.Call) error {
		return c.Say("device."+c.Message.Device+".done", nil)
	})
	all := map[message.ID]bool{}
	handles := func(node string, n int) {
		t.Helper()
		for range n {
			m := telemetry(fmt.Sprint("d-", len(all)), "1")
			all[m.ID] = true
			y.say(m)
		}
		y.until(fmt.Sprintf("%d are handled at %s", n, node), func() bool {
			s := y.shown(node, "w")
			return s.Run != nil && s.Run.Node == node && s.Handled == uint64(n) && s.Behind == 0
		})
	}
	handles(first, 5)
	for _, node := range []string{first, second} {
		if code, body := y.ask(node, "POST", "/api/v1/workers/w/move?by=kim", ""); code != 409 {
			t.Errorf("a worker that runs is moved by %s: %d %s", node, code, body)
		}
	}
	y.nodes[first].stop()
	for range 3 { // nobody hears them yet
		m := telemetry(fmt.Sprint("d-", len(all)), "1")
		all[m.ID] = true
		y.say(m)
	}
	move := func(to string, more ...string) {
		t.Helper()
		if code, body := y.ask(to, "POST", "/api/v1/workers/w/move?by=kim&why=fire"+strings.Join(more, ""), ""); code != 200 || !strings.Contains(body, `"left_behind":0`) {
			t.Fatalf("it is not moved: %d %s", code, body)
		}
	}
	move(second)
	y.until("the three are handled at the other node", func() bool { s := y.shown(second, "w"); return s.Handled == 3 && s.Behind == 0 })
	y.begin(first)
	y.until("it is known where it is, and what it has done", func() bool {
		s := y.shown(first, "w")
		return s.Run != nil && s.Run.Node == second && s.Handled == 3
	})
	y.nodes[second].stop()
	reports, err := y.open().Table(t.Context(), "naru_fates", bus.TableOptions{Volatile: true, TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	told, err := bus.Entries(t.Context(), reports, "service_platform.worker/w")
	if err != nil || len(told) == 0 {
		t.Fatalf("%d reports, %v", len(told), err)
	}
	for _, e := range told { // as a minute does
		if err := reports.Delete(t.Context(), e.Key, 0); err != nil {
			t.Fatal(err)
		}
	}
	y.until("nobody knows what it had in its hands", func() bool { return y.shown(first, "w").Handled == 0 })
	if code, body := y.ask(first, "POST", "/api/v1/workers/w/move?by=kim", ""); code != 409 || !strings.Contains(body, "not known any more") {
		t.Fatalf("it is moved, or not for the reason that is so: %d %s", code, body)
	}
	move(first, "&force=true")
	y.until("it runs there", func() bool {
		s := y.shown(first, "w")
		return s.Run != nil && s.Run.Node == first && s.State == "running"
	})
	handles(first, 2) // without operator.retention it begins with what comes
	for id, n := range y.said("device.*.done", func(of map[message.ID]int) bool { return len(of) == len(all) }) {
		if n != 1 || !all[id] {
			t.Errorf("%d messages follow from %s", n, id)
		}
	}
	s := y.shown(first, "w")
	if n := len(s.Versions); n != 3 || s.Versions[2].Change != "moved" || s.Versions[2].By != "kim" || s.Versions[2].Why != "fire" {
		t.Errorf("its versions are %+v", s.Versions)
	}
}
