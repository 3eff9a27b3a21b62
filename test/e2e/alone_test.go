//go:build long

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// components are the names of all that are in the binary, as it completes them.
func components(t *testing.T) (names []string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), naruBinary(t), "__complete", "run", "").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if name := strings.TrimSpace(line); strings.Contains(name, ".") && !strings.HasPrefix(name, ":") {
			names = append(names, name)
		}
	}
	if len(names) < 5 || !slices.Contains(names, "service_platform.broker") {
		t.Fatalf("the binary completes the components as %q", names)
	}
	return names
}

// ready asks the process whether it is.
func (p *platform) ready() string {
	p.t.Helper()
	var where struct{ URL string }
	raw, err := os.ReadFile(filepath.Join(p.data, "naru.json"))
	if err == nil {
		err = json.Unmarshal(raw, &where)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := http.Get(where.URL + "/readyz")
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// TestEachComponentRunsAloneInItsProcess runs every component of the binary in a process of its own against a NATS server (those
// that share a file in one), sees each ready and all of them in `naru status`, and has messages cross from process to process.
func TestEachComponentRunsAloneInItsProcess(t *testing.T) {
	bus := &node{Name: "bus", Dir: t.TempDir(), Port: port(t)}
	bus.start(t)
	t.Cleanup(bus.kill)
	all := map[string]*platform{}
	names := components(t)
	// The CA first: its process makes the certificate that the broker's is given.
	const ca, door = "service_platform.x509", "service_platform.broker"
	// A file of DuckDB has one process, so who fills it is in the process that has it open.
	const rows, file = "data_platform.etl", "data_platform.storage"
	if !slices.Contains(names, rows) || !slices.Contains(names, file) {
		t.Fatalf("there is no %s or no %s among %q", rows, file, names)
	}
	const pump = "data_platform.pump" // is there where a stream is configured; TestEachMessageIsOnceInKinesis has one
	names = slices.DeleteFunc(names, func(name string) bool { return name == rows || name == pump })
	if !slices.Contains(names, ca) {
		t.Fatalf("there is no %s among %q", ca, names)
	}
	names = append([]string{ca}, slices.DeleteFunc(names, func(name string) bool { return name == ca })...)
	for _, name := range names {
		p := newPlatform(t, "--bus", bus.url())
		p.run = []string{"run", name}
		if name == file {
			p.run = append(p.run, rows)
		}
		if name == door {
			conf := filepath.Join(p.data, "naru.yaml")
			made := filepath.Join(all[ca].data, ca)
			if err := os.WriteFile(conf, fmt.Appendf(nil, "server_cert: %s/server.crt\nserver_key: %s/server.key\n", made, made), 0o600); err != nil {
				t.Fatal(err)
			}
			p.args = append(p.args, "--config", conf)
		}
		p.start()
		all[name] = p
	}
	until := time.Now().Add(3 * time.Minute)
	for name, p := range all {
		for said := p.ready(); said != "ready"; said = p.ready() {
			if time.Now().After(until) {
				t.Fatalf("%s alone says: %s\n%s", name, said, p.out)
			}
		}
	}
	var st struct {
		Components []struct{ Name, Node, State, Fault string }
	}
	for {
		all["operator.status"].json(&st, "status")
		nodes, running := map[string]bool{}, map[string]bool{}
		for _, c := range st.Components {
			nodes[c.Node] = true
			running[c.Name] = c.State == "running"
		}
		missing := slices.DeleteFunc(append(slices.Clone(names), rows), func(name string) bool { return running[name] })
		if len(missing) == 0 && len(nodes) == len(names) {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("`naru status` does not see %q running, each on a node of its own: %+v", missing, st.Components)
		}
	}
	s := newSender("d-1", all[door].plain)
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() { s.run(stop) })
	for {
		if out, code := all["operator.journal"].naru("messages", "--device", "d-1"); code == 0 && strings.Contains(out, "d-1") {
			break
		}
		if time.Now().After(until.Add(time.Minute)) {
			t.Fatal("nothing of what a device says at the broker's process reaches the journal's")
		}
	}
	close(stop)
	group.Wait()
	for _, l := range all["operator.ledger"].settled(uint64(len(s.acked))) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	for _, p := range all {
		p.stop()
	}
}
