// Package status shows the platform as it stands: the bus, the logs, every component with its lag, and how they hang
// together.
package status

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name: "operator.status",
	Doc:  "shows the bus, the logs and every component with its lag, and how they hang together",
}, struct{}{}, New)

// Status is the platform at a moment.
type Status struct {
	Healthy    bool        `json:"healthy"`
	Starting   bool        `json:"starting,omitempty"` // the process began some seconds ago, and what is not well may be no more than that
	Faults     []string    `json:"faults"`             // each a sentence with its remedy
	Node       string      `json:"node"`
	At         time.Time   `json:"at"`
	Machine    Machine     `json:"machine"`
	Bus        bus.Status  `json:"bus"`
	Logs       []Log       `json:"logs"`
	Components []Component `json:"components"`
}

// Log is a log at a moment.
type Log struct {
	Name       string `json:"name"`
	Partitions int    `json:"partitions"`
	Generation uint32 `json:"generation"`
	Batches    uint64 `json:"batches"`
	Bytes      uint64 `json:"bytes"`
}

// Component is a component on a node, with what it still has before it.
type Component struct {
	component.Health
	Lag []Lag `json:"lag,omitempty"`
}

// Lag is how far a consumer is behind in a log.
type Lag struct {
	Log     string `json:"log"`
	Batches uint64 `json:"batches"`
	Parked  uint64 `json:"parked"`
	// Oldest is when the oldest of what it has not finished was accepted, as far as that can be read.
	Oldest time.Time `json:"oldest,omitzero"`
	Fault  string    `json:"fault,omitempty"`
}

// Graph is how components hang together: who says what, who hears it.
type Graph struct {
	Nodes []Node `json:"nodes"`
	Edges []Edge `json:"edges"`
}

// Node is a component, or `device` for the fleet.
type Node struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Doc       string `json:"doc,omitempty"`
	State     string `json:"state"`
	Fault     string `json:"fault,omitempty"`
}

// Edge is a kind of message from who says it to who hears it.
type Edge struct {
	From     string          `json:"from"`
	To       string          `json:"to"`
	Subjects message.Pattern `json:"subjects"`
}

type status struct {
	env   component.Env
	began time.Time
	late  lateness
}

// New builds the component.
func New(env component.Env, _ struct{}) (*component.Part, error) {
	s := &status{env: env, began: env.Now()}
	if err := s.late.register(env.Metrics); err != nil {
		return nil, err
	}
	run := func(ctx context.Context, ready func()) error {
		ready()
		s.late.run(ctx)
		return nil
	}
	return &component.Part{Run: run, Routes: []component.Route{
		{Pattern: "GET /api/v1/status", Handler: answer.Func(s.serveStatus)},
		{Pattern: "GET /api/v1/graph", Handler: answer.Func(s.serveGraph)},
		{Pattern: "GET /api/v1/reasons", Handler: answer.Func(func(http.ResponseWriter, *http.Request) (any, error) {
			return message.Reasons(), nil
		})},
		{Pattern: "GET /asyncapi.json", Handler: http.HandlerFunc(s.serveAsyncAPI)},
	}}, nil
}

func (s *status) serveAsyncAPI(w http.ResponseWriter, _ *http.Request) {
	b, err := catalog.AsyncAPI(s.env.Catalog, "1")
	if err != nil {
		answer.Error(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.aai.asyncapi+json;version=3.0.0")
	_, _ = w.Write(b) // the client went; there is nobody to tell
}

func (s *status) serveStatus(_ http.ResponseWriter, r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	st := Status{Node: s.env.Node, At: s.env.Now(), Machine: s.late.machine(), Bus: s.env.Bus.Status(ctx), Faults: []string{}, Logs: []Log{}, Components: []Component{}}
	ends, logs := map[string]map[[2]uint32]uint64{}, map[string]bus.Log{}
	for _, name := range message.Namespaces() {
		log, err := s.env.Bus.Log(ctx, name, bus.LogOptions{})
		if err != nil {
			st.Faults = append(st.Faults, "log "+name+" cannot be opened: "+err.Error())
			continue
		}
		info, err := log.Info(ctx)
		if err != nil {
			st.Faults = append(st.Faults, "log "+name+" does not answer: "+err.Error())
			continue
		}
		logs[name] = log
		l := Log{Name: name}
		ends[name] = map[[2]uint32]uint64{}
		for _, g := range info.Generations {
			l.Generation, l.Partitions = g.Number, len(g.Partitions)
			for _, p := range g.Partitions {
				l.Batches += p.Last + 1 - p.First
				l.Bytes += p.Bytes
				ends[name][[2]uint32{g.Number, p.Number}] = p.Last
			}
		}
		st.Logs = append(st.Logs, l)
	}
	reports, all := s.env.Peers.Reports(), s.env.Peers.Components()
	away, noted, faults := s.away(ctx, all, reports)
	st.Faults = append(st.Faults, faults...)
	reports = append(reports, noted...)
	excused := len(st.Faults) == 0 && s.env.Now().Sub(s.began) < lookAfter
	for _, h := range append(all, away...) {
		gone := h.State == "stopped" || h.State == "away"
		if h.State == "stopped" && slices.ContainsFunc(away, func(a component.Health) bool { return a.Name == h.Name }) {
			continue // it is told of as away
		}
		c := Component{Health: h}
		for _, rep := range reports {
			if rep.Consumer != h.Name && rep.Consumer != own(&h) {
				continue
			}
			end := ends[rep.Log][[2]uint32{rep.Position.Generation, rep.Position.Partition}]
			lag := Lag{Log: rep.Log, Parked: rep.Waiting.Count, Fault: rep.Fault}
			if end > rep.Position.Sequence {
				lag.Batches = end - rep.Position.Sequence
				lag.Oldest = accepted(ctx, logs[rep.Log], rep.Position)
			}
			if len(rep.Exceptions) > 0 && rep.Waiting.Count > 0 {
				if parked := rep.Exceptions[0].ID.Time(); lag.Oldest.IsZero() || parked.Before(lag.Oldest) {
					lag.Oldest = parked
				}
			}
			c.Lag = append(c.Lag, lag)
			if rep.Fault != "" && !gone { // what it stood still for before it went is over
				if text := h.Name + " on log " + rep.Log + ": " + rep.Fault; !slices.Contains(st.Faults, text) { // said once, of however many partitions
					st.Faults = append(st.Faults, text)
				}
			}
		}
		slices.SortFunc(c.Lag, func(a, b Lag) int { return cmp.Compare(a.Log, b.Log) })
		if h.State == "failed" {
			st.Faults = append(st.Faults, h.Name+" on "+h.Node+" failed: "+h.Fault)
			excused = false
		} else if h.Fault != "" {
			st.Faults = append(st.Faults, h.Name+" on "+h.Node+": "+h.Fault)
		}
		st.Components = append(st.Components, c)
	}
	slices.SortFunc(st.Components, func(a, b Component) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node, b.Node))
	})
	known := len(st.Faults)
	st.Faults = append(st.Faults, strangers(st.Components, s.env.Catalog.Fingerprint())...)
	if !st.Bus.Up {
		st.Faults = append(st.Faults, "the bus is down: "+st.Bus.Fault)
	}
	if st.Bus.Space.Shut {
		st.Faults = append(st.Faults, "the disk is nearly full and the doors are shut: free space, or shorten operator.retention's max_age")
	}
	st.Healthy = len(st.Faults) == 0
	st.Starting = excused && !st.Healthy && len(st.Faults) == known
	st.Faults = behind(st.Machine.cause(st.Node), st.Faults)
	return st, nil
}

// accepted is when the first batch behind a position was, zero where it cannot be read.
func accepted(ctx context.Context, log bus.Log, at bus.Position) time.Time {
	at.Sequence++
	s, err := log.Fetch(ctx, at)
	if err != nil || s.Err != nil || s.Batch.Count == 0 {
		return time.Time{}
	}
	return s.Batch.First
}

// own is the consumer of a component that each node has one of.
func own(h *component.Health) string { return h.Name + "/" + h.Node }

// lookAfter is how long after its start a process tells of what runs nowhere: others that start with it are given time.
const lookAfter = 15 * time.Second

// away are the consumers that messages wait for and that run in no process, each as a component in that state; what is noted
// of how far they had come, beyond their own reports; and what a person is told of them. The children of one that is away are
// not told of apart.
func (s *status) away(ctx context.Context, all []component.Health, reports []component.Report) (list []component.Health, noted []component.Report, faults []string) {
	if s.env.Now().Sub(s.began) < lookAfter {
		return nil, nil, nil
	}
	last := map[string]component.Report{} // by consumer
	for _, r := range reports {
		if have, ok := last[r.Consumer]; !ok || r.At.After(have.At) {
			last[r.Consumer] = r
		}
	}
	owed, err := component.Owed(ctx, s.env.Bus)
	if err != nil {
		faults = append(faults, "it is not known for whom the logs keep messages: "+err.Error())
	}
	forgotten := s.env.Peers.Forgotten()
	for _, r := range owed {
		if have, ok := last[r.Consumer]; ok && !have.At.IsZero() || !forgotten[r.Consumer].IsZero() {
			continue
		}
		last[r.Consumer] = r
		noted = append(noted, r)
	}
	for _, h := range all {
		if h.State != "stopped" {
			delete(last, h.Name)
			delete(last, own(&h))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(last)) {
		r := last[name]
		h := component.Health{Name: name, State: "away", Since: r.At, At: r.At}
		heard := ""
		if !r.At.IsZero() {
			heard = ", last heard of at " + r.At.UTC().Format(time.RFC3339)
		}
		parent, node, divided := strings.Cut(name, "/")
		switch _, too := last[parent]; {
		case divided && !r.Child:
			h.Name, h.Node = parent, node
			faults = append(faults, "node "+node+" is away"+heard+": what waits for its "+parent+" is kept until the node is back, or taken for gone for good")
		case divided && slices.ContainsFunc(all, func(h component.Health) bool { return h.Name == parent && h.State != "stopped" }):
			faults = append(faults, parent+" does not run "+name+" any more"+heard+", and messages wait for it: bring back what it was for, or if that went for good, `naru ledger forget "+name+"`")
		case !divided || !too:
			faults = append(faults, name+" runs in no process"+heard+", and messages wait for it: start it (`naru run "+parent+"`), or if it went for good, `naru ledger forget "+name+"`")
		}
		list = append(list, h)
	}
	return list, noted, faults
}

// strangers tells of processes that hold messages to other contracts than this one does.
func strangers(all []Component, own string) (faults []string) {
	told := map[string]bool{}
	for _, c := range all {
		if c.Contracts == "" || c.Contracts == own || told[c.Node] || c.State == "stopped" {
			continue
		}
		told[c.Node] = true
		faults = append(faults, "node "+c.Node+" has other contracts than this one: give every process the same channels in its configuration file, and the same version")
	}
	return faults
}

func (s *status) serveGraph(_ http.ResponseWriter, r *http.Request) (any, error) {
	g := Graph{Nodes: []Node{{Name: "device", Namespace: message.Device, Doc: "the fleet", State: "running"}}, Edges: []Edge{}}
	all := s.env.Peers.Components()
	away, _, _ := s.away(r.Context(), all, s.env.Peers.Reports())
	all = append(all, away...)
	seen := map[string]bool{}
	for _, h := range all {
		if seen[h.Name] {
			continue // one node of the picture, however many processes
		}
		seen[h.Name] = true
		namespace, _, _ := strings.Cut(h.Name, ".")
		g.Nodes = append(g.Nodes, Node{Name: h.Name, Namespace: namespace, Doc: h.Doc, State: h.State, Fault: h.Fault})
	}
	edges := map[Edge]bool{}
	for _, k := range s.env.Catalog.Contracts() {
		for _, from := range k.Says {
			if from != "device" && !seen[from] {
				continue
			}
			for _, h := range all {
				for _, p := range append(slices.Clone(h.Hears), h.Takes...) {
					if p == ">" && !strings.HasPrefix(h.Name, message.Operator) || p != ">" && (p.Covers(k.Subjects) || k.Subjects.Covers(p)) {
						edges[Edge{from, h.Name, k.Subjects}] = true
					}
				}
			}
			if slices.Contains(k.Hears, "device") {
				edges[Edge{from, "device", k.Subjects}] = true
			}
		}
	}
	for e := range edges {
		g.Edges = append(g.Edges, e)
	}
	slices.SortFunc(g.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(g.Edges, func(a, b Edge) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Subjects, b.Subjects))
	})
	return g, nil
}
