//go:build long

package e2e

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
)

// TestAGroupLosesAndDoublesNothingThoughItsNodesDie kills and stops each of two brokers in turn while three members of one
// group, some at each, take what is said at QoS 2: each message comes to one of them, once.
func TestAGroupLosesAndDoublesNothingThoughItsNodesDie(t *testing.T) {
	n := &node{Name: "bus", Dir: t.TempDir(), Port: port(t)}
	n.start(t)
	t.Cleanup(n.kill)
	url := fmt.Sprintf("nats://127.0.0.1:%d", n.Port)
	var brokers []*platform
	var addrs []string
	for range 2 {
		p := configured(t, url, "bus:\n  replicas: 1\nservice_platform.broker:\n  cluster: auto\n  listen: ''\n  listeners:\n"+
			"    - {name: open, address: '127.0.0.1:1883', protocol: mqtt, auth: none, policy: open, mount: 3rd_party.town}\n", "service_platform.broker")
		p.start()
		brokers, addrs = append(brokers, p), append(addrs, p.mqtt)
	}
	defer func() {
		if t.Failed() {
			t.Logf("first:\n%s\nsecond:\n%s", brokers[0].out, brokers[1].out)
		}
	}()

	stop, silent := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	var members []*once
	join := func(id string, at int) *once {
		m := newOnce(t, id, addrs)
		m.at = at
		m.reaches()
		m.subscribe("$share/workers/a/#")
		members = append(members, m)
		return m
	}
	home := []int{0, 1, 1}
	for i, at := range home {
		m := join(fmt.Sprint("member-", i), at)
		group.Go(func() { m.run(stop, nil) })
	}
	away := join("away", 0) // and one that is there at the end only: nothing waits for it while others are there
	away.conn.Close()
	mouth := newOnce(t, "mouth", addrs)
	mouth.reaches()
	group.Go(func() { mouth.run(stop, silent) })
	goesOn := func() {
		t.Helper()
		mouth.mu.Lock()
		want := mouth.done + 40
		mouth.mu.Unlock()
		mouth.await("more is said", func() bool { return mouth.done >= want })
	}
	const rounds = 4
	for round := range rounds {
		victim, stopped := round%2, round >= 2
		mouth.move(1 - victim)
		goesOn()
		if stopped {
			if err := brokers[victim].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		} else {
			brokers[victim].kill()
		}
		goesOn()
		for i, at := range home {
			if at == victim {
				members[i].move(1 - victim)
			}
		}
		goesOn()
		if stopped {
			if err := brokers[victim].cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		} else {
			brokers[victim].start()
		}
		probe := newOnce(t, fmt.Sprint("probe-", round), addrs)
		probe.at = victim
		probe.reaches()
		probe.conn.Close()
		for i, at := range home {
			members[i].move(at)
		}
		goesOn()
	}
	close(silent)
	mouth.await("all is done", func() bool { return len(mouth.out) == 0 })
	group.Go(func() { away.run(stop, nil) })
	all := mouth.next
	sum := func() map[string]int {
		got := map[string]int{}
		for _, m := range members {
			m.mu.Lock()
			for k, n := range m.got {
				got[k] += n
			}
			m.mu.Unlock()
		}
		return got
	}
	mouth.await("all that was said is heard", func() bool { return len(sum()) == all })
	close(stop)
	for _, c := range append(members, mouth) {
		c.move(0)
	}
	group.Wait()
	for k, n := range sum() {
		if n != 1 {
			t.Errorf("%q came %d times", k, n)
		}
	}
	for _, m := range members {
		t.Logf("%s got %d of %d messages of QoS 2", m.id, len(m.got), all)
	}
}
