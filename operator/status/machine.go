package status

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	beatEvery  = 200 * time.Millisecond
	beatsFor   = time.Minute      // how far back the latest is told of
	beatBucket = 10 * time.Second // which beatsFor is divided into
	// lateTold is how late the process must have been to be named as what may lie behind other faults: what it waits for
	// on the bus has seconds, and takes several turns.
	lateTold = 500 * time.Millisecond
)

// Machine is what the process has to run on.
type Machine struct {
	Cores int     `json:"cores"`
	Load  float64 `json:"load,omitempty"` // how many wanted a core, on average over a minute; 0 where the system does not say
	// Late is how long the process had to wait at most, in the last minute, until it was given a core or had its turn.
	Late time.Duration `json:"late_ns"`
}

// lateness measures how late the process comes to run: it wishes to be woken at a time, and looks when it was. It sees what
// other processes take, a container's limit, a virtual machine that stood still and the process's own work alike, on any system.
type lateness struct {
	mu   sync.Mutex
	most map[int64]time.Duration // by bucket of time
}

func (l *lateness) note(now time.Time, late time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.most == nil {
		l.most = map[int64]time.Duration{}
	}
	b := now.UnixNano() / int64(beatBucket)
	for old := range l.most {
		if old <= b-int64(beatsFor/beatBucket) || old > b { // or the clock went back
			delete(l.most, old)
		}
	}
	l.most[b] = max(l.most[b], late)
}

// latest is the most of the last minute.
func (l *lateness) latest() (late time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.most {
		late = max(late, m)
	}
	return late
}

// run measures until ctx is done.
func (l *lateness) run(ctx context.Context) {
	t := time.NewTicker(beatEvery)
	defer t.Stop()
	due := time.Now().Add(beatEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := time.Now()
		l.note(now, max(0, now.Sub(due)))
		due = now.Add(beatEvery)
	}
}

func (l *lateness) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	return r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "naru_process_late_seconds", Help: "How long the process had to wait at most, in the last minute, until it was given a core.",
	}, func() float64 { return l.latest().Seconds() }))
}

// machine is what there is to run on now.
func (l *lateness) machine() Machine {
	return Machine{Cores: runtime.GOMAXPROCS(0), Load: load("/proc/loadavg"), Late: l.latest()}
}

// load reads the first number of Linux's load averages; 0 elsewhere.
func load(file string) float64 {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(raw), " ")
	n, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return n
}

// cause says that the process is starved, in the words of a fault; empty where it is not.
func (m Machine) cause(node string) string {
	if m.Late < lateTold {
		return ""
	}
	return "the process on " + node + " " + m.Waited() + ": what does not answer in time, and leases that are lost, may come of that; give it cores of its own, or end what takes them"
}

// Waited says in words how long the process had to wait.
func (m Machine) Waited() string {
	s := fmt.Sprintf("had to wait %s for a core within the last minute", m.Late.Round(100*time.Millisecond))
	if m.Load > 0 {
		s += fmt.Sprintf(" (load %.1f on %d cores)", m.Load, m.Cores)
	}
	return s
}

// behind puts what lies behind faults before them. By itself it is none: who is late and keeps up is well.
func behind(cause string, faults []string) []string {
	if cause == "" || len(faults) == 0 {
		return faults
	}
	return append([]string{cause}, faults...)
}
