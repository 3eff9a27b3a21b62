// Package topic is the operator's way to listen and to speak: what is being said, where, how often; a live echo of it;
// and a message sent by hand. Its commands have the names that people who come from ROS know.
package topic

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
)

// Config is the component's configuration.
type Config struct {
	// UncataloguedMax is how many subjects without a contract are told apart.
	UncataloguedMax int `json:"uncatalogued_max"`
}

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name:  "operator.topic",
	Doc:   "shows what is said where and how often, echoes it live, and lets an operator say something",
	Hears: []message.Pattern{">"},
	Says:  []message.Pattern{">"},
	State: component.Local,
	Lazy:  true,
}, Config{UncataloguedMax: 1000}, New)

// Topic counts what is said. It is safe for concurrent use.
type Topic struct {
	env  component.Env
	conf Config

	mu    sync.Mutex
	lines map[string]*Line
}

// Line is one kind of message.
type Line struct {
	Subjects message.Pattern `json:"subjects"`
	Type     string          `json:"type,omitempty"` // empty where there is no contract
	Route    message.Route   `json:"route,omitempty"`
	Doc      string          `json:"doc,omitempty"`
	Owner    string          `json:"owner,omitempty"`
	Says     []string        `json:"says,omitempty"`
	Hears    []string        `json:"hears,omitempty"`  // by contract, and by what is running
	Schema   json.RawMessage `json:"schema,omitempty"` // JSON Schema that its data keeps
	Example  json.RawMessage `json:"example,omitempty"`
	Messages uint64          `json:"messages"`
	Bytes    uint64          `json:"bytes"`
	PerSec   float64         `json:"messages_per_second"` // over the last ten seconds
	Last     time.Time       `json:"last,omitzero"`
	Orphan   bool            `json:"orphan,omitempty"` // said, and heard by nobody

	window [10]uint64 // messages by second
	second int64
}

// New builds the component.
func New(env component.Env, c Config) (*component.Part, error) {
	t := &Topic{env: env, conf: c, lines: map[string]*Line{}}
	return &component.Part{
		HandleBatch: t.count,
		Routes: []component.Route{
			{Pattern: "GET /api/v1/topics", Handler: answer.Func(t.serveList)},
			{Pattern: "GET /api/v1/echo", Handler: http.HandlerFunc(t.serveEcho)},
			{Pattern: "POST /api/v1/publish", Handler: answer.Func(t.servePublish)},
		},
	}, nil
}

// count counts by type, since that is one look into a small map; a message without one is counted by its subject.
func (t *Topic) count(_ context.Context, tx component.Tx, _ string, s bus.Stored) error {
	if s.Err != nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	touched := map[string]*Line{}
	var m message.Message
	var key string
	var line *Line
	cursor := s.Batch.Cursor()
	for cursor.Next(&m) {
		k := m.Type
		if k == "" {
			k = string(m.Subject)
		}
		if k != key || line == nil {
			key = string([]byte(k))
			line = t.line(tx, key, &m)
			touched[key] = line
		}
		line.count(m.Recorded(), len(m.Data))
	}
	for k, l := range touched {
		v, err := json.Marshal(l)
		if err != nil {
			return err
		}
		tx.Set([]byte("t"+k), v)
	}
	return cursor.Err()
}

// line finds or begins a line; what was counted before the process started is read back.
func (t *Topic) line(tx component.Tx, key string, m *message.Message) *Line {
	if l := t.lines[key]; l != nil {
		return l
	}
	l := &Line{Subjects: message.Pattern(string([]byte(m.Subject))), Type: string([]byte(m.Type))}
	if m.Type == "" && len(t.lines) >= t.conf.UncataloguedMax {
		key, l.Subjects = ">", ">"
		if l := t.lines[key]; l != nil {
			return l
		}
	}
	if v, err := tx.Get([]byte("t" + key)); err == nil && v != nil {
		_ = json.Unmarshal(v, l) // a line that cannot be read counts from now
	}
	if c := t.env.Catalog.Find(m.Subject); c != nil && c.Type == m.Type {
		l.Subjects = c.Subjects
	}
	t.lines[key] = l
	return l
}

func (l *Line) count(at time.Time, size int) {
	l.Messages++
	l.Bytes += uint64(size)
	if at.After(l.Last) {
		l.Last = at
	}
	l.forward(at.Unix())
	if back := l.second - at.Unix(); back < int64(len(l.window)) {
		l.window[uint64(at.Unix())%uint64(len(l.window))]++
	}
}

// forward moves the window on to a second.
func (l *Line) forward(to int64) {
	n := int64(len(l.window))
	if to <= l.second {
		return
	}
	for s := max(l.second+1, to-n+1); s <= to; s++ {
		l.window[uint64(s)%uint64(n)] = 0
	}
	l.second = to
}

func (l *Line) rate(now time.Time) float64 {
	l.forward(now.Unix())
	sum := uint64(0)
	for _, n := range l.window {
		sum += n
	}
	return float64(sum) / float64(len(l.window))
}

func (t *Topic) serveList(http.ResponseWriter, *http.Request) (any, error) {
	now := t.env.Now()
	running := t.env.Peers.Components()
	t.mu.Lock()
	defer t.mu.Unlock()
	list := []Line{}
	for _, l := range t.lines {
		c := *l
		c.PerSec = l.rate(now)
		list = append(list, c)
	}
	for _, k := range t.env.Catalog.Contracts() {
		i := slices.IndexFunc(list, func(l Line) bool { return l.Type == k.Type })
		if i < 0 {
			list = append(list, Line{Type: k.Type})
			i = len(list) - 1
		}
		l := &list[i]
		l.Subjects, l.Route, l.Doc, l.Owner, l.Says = k.Subjects, k.Route, k.Doc, k.Owner, k.Says
		l.Hears, l.Schema, l.Example = slices.Clone(k.Hears), k.Schema, k.Example
	}
	for i := range list {
		l := &list[i]
		live := l.Route == message.ByQueue
		for _, h := range running {
			for _, p := range h.Hears {
				if p == ">" || !p.Covers(l.Subjects) && !l.Subjects.Covers(p) {
					continue // who hears everything is no reason for a message to be said
				}
				if live = true; !slices.Contains(l.Hears, h.Name) {
					l.Hears = append(l.Hears, h.Name)
				}
			}
		}
		l.Orphan = l.Messages > 0 && !live
	}
	slices.SortFunc(list, func(a, b Line) int { return cmp.Compare(a.Subjects, b.Subjects) })
	return list, nil
}

// Heard is a message of an echo.
type Heard struct {
	ID       message.ID      `json:"id"`
	Trace    message.TraceID `json:"trace"`
	Cause    message.ID      `json:"cause,omitzero"`
	Subject  message.Subject `json:"subject"`
	Type     string          `json:"type,omitempty"`
	Device   string          `json:"device,omitempty"`
	Source   string          `json:"source,omitempty"`
	Recorded time.Time       `json:"recorded"`
	Time     time.Time       `json:"time,omitzero"`
	Size     int             `json:"size"`
	Text     string          `json:"data,omitempty"`
	Binary   []byte          `json:"data_base64,omitempty"`
}

// servePublish says a message for an operator: {"subject": …, "data": … | "data_base64": …, "content_type": …}.
func (t *Topic) servePublish(_ http.ResponseWriter, r *http.Request) (any, error) {
	var in struct {
		Subject     message.Subject `json:"subject"`
		Data        string          `json:"data"`
		Binary      []byte          `json:"data_base64"`
		ContentType string          `json:"content_type"`
		Device      string          `json:"device"`
		Traceparent string          `json:"traceparent"`
	}
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 16<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, answer.Bad(fmt.Errorf("request: %w", err))
	}
	if err := in.Subject.Valid(); err != nil {
		return nil, answer.Bad(err)
	}
	m := &message.Message{Subject: in.Subject, ContentType: in.ContentType, Data: []byte(in.Data), Device: in.Device}
	if in.Binary != nil {
		m.Data = in.Binary
	}
	if m.Device == "" && in.Subject.Namespace() == message.Device {
		m.Device = in.Subject.Token(1)
	}
	if in.Traceparent != "" {
		tp, err := message.ParseTraceparent(in.Traceparent)
		if err != nil {
			return nil, answer.Bad(err)
		}
		m.Trace = tp
	}
	t.env.Mint(m)
	if err := t.env.Say(r.Context(), m); err != nil {
		return nil, err
	}
	t.env.Log.Info("an operator said a message", "subject", m.Subject, "id", m.ID, "trace", m.Trace.ID)
	return map[string]any{"id": m.ID, "trace": m.Trace.ID, "subject": m.Subject}, nil
}

// serveEcho streams what is said from now on, a JSON object a line, until the client goes or has `n` of them. A client
// that reads slowly is skipped over, and told how many it missed.
func (t *Topic) serveEcho(w http.ResponseWriter, r *http.Request) {
	var patterns []message.Pattern
	for _, s := range r.URL.Query()["subject"] {
		p := message.Pattern(s)
		if err := p.Valid(); err != nil {
			answer.Error(w, answer.Bad(err))
			return
		}
		patterns = append(patterns, p)
	}
	if patterns == nil {
		patterns = []message.Pattern{">"}
	}
	head := r.URL.Query().Has("head") // without data
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	heard := make(chan []byte, 1024)
	var missed counter
	ready := make(chan error, len(message.Namespaces()))
	var group sync.WaitGroup
	logs := 0
	for _, ns := range message.Namespaces() {
		if !slices.ContainsFunc(patterns, func(p message.Pattern) bool { return wild(p) || message.Subject(p).Namespace() == ns }) {
			continue
		}
		logs++
		group.Go(func() {
			t.follow(ctx, ns, ready, func(m *message.Message) {
				if !slices.ContainsFunc(patterns, func(p message.Pattern) bool { return p.Matches(m.Subject) }) {
					return
				}
				h := Heard{ID: m.ID, Trace: m.Trace.ID, Cause: m.Cause, Subject: m.Subject, Type: m.Type, Device: m.Device,
					Source: m.Source, Recorded: m.Recorded(), Time: m.Time, Size: len(m.Data)}
				if !head {
					h.Text, h.Binary = textOrBinary(m.Data)
				}
				line, err := json.Marshal(h)
				if err != nil {
					return
				}
				select {
				case heard <- line:
				default:
					missed.add(1)
				}
			})
		})
	}
	defer group.Wait()
	defer cancel()
	for range logs {
		select {
		case err := <-ready:
			if err != nil {
				answer.Error(w, err)
				return
			}
		case <-ctx.Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	_ = out.Flush()
	for {
		select {
		case <-ctx.Done():
			return
		case line := <-heard:
			if _, err := w.Write(append(line, '\n')); err != nil {
				return
			}
			if n := missed.take(); n > 0 {
				if _, err := fmt.Fprintf(w, "{\"missed\":%d}\n", n); err != nil {
					return
				}
			}
			if len(heard) == 0 && out.Flush() != nil {
				return
			}
		}
	}
}

// follow reads a log from its end on, all partitions of the open generation and of those that come.
func (t *Topic) follow(ctx context.Context, name string, ready chan<- error, f func(*message.Message)) {
	told := false
	tell := func(err error) {
		if !told {
			told = true
			ready <- err
		}
	}
	log, err := t.env.Bus.Log(ctx, name, bus.LogOptions{})
	if err != nil {
		tell(err)
		return
	}
	info, err := log.Info(ctx)
	if err != nil {
		tell(err)
		return
	}
	tail := true
	for ctx.Err() == nil {
		g := info.Generations[len(info.Generations)-1]
		var group sync.WaitGroup
		var sealed counter
		for _, p := range g.Partitions {
			from := bus.Position{Log: log.ID(), Generation: g.Number, Partition: p.Number}
			if tail {
				from.Sequence = p.Last
			}
			reader, err := log.Reader(ctx, from)
			if err != nil {
				tell(err)
				continue
			}
			group.Go(func() {
				defer reader.Close()
				var m message.Message
				for {
					s, err := reader.Next(ctx)
					if err != nil {
						if errors.Is(err, bus.ErrSealed) {
							sealed.add(1)
						}
						return
					}
					if s.Err != nil {
						continue
					}
					for c := s.Batch.Cursor(); c.Next(&m); {
						f(&m)
					}
				}
			})
		}
		tell(nil)
		group.Wait()
		if sealed.take() == 0 {
			return
		}
		tail = false
		if info, err = log.Info(ctx); err != nil {
			return
		}
	}
}

func wild(p message.Pattern) bool { return p[0] == '*' || p[0] == '>' }
