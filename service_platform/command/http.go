package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

const (
	listMost = 1000
	// looked is how many commands a page looks at, at most.
	looked = 50_000
	// aheadMost is how many commands before another one are counted.
	aheadMost = 100
	// sendMax is how large a request may be.
	sendMax = 1 << 20
	// patience is how long it is waited for a command to be kept, and waitMost how long for its end.
	patience = 10 * time.Second
	waitMost = 50 * time.Second
)

func (c *Commands) routes() []component.Route {
	return []component.Route{
		{Pattern: "GET /api/v1/commands", Handler: answer.Func(c.serveList)},
		{Pattern: "POST /api/v1/commands", Handler: answer.Func(c.serveSend)},
		{Pattern: "GET /api/v1/commands/{device}/{id}", Handler: answer.Func(c.serveShow)},
		{Pattern: "DELETE /api/v1/commands/{device}/{id}", Handler: answer.Func(c.serveCancel)},
	}
}

// Shown is a command with its data, and why it is where it is.
type Shown struct {
	Command
	Data string `json:"data,omitempty"` // nothing of data that is no text; the log has it
	// Why is what the command waits for; nothing of one that has ended.
	Why string `json:"why,omitempty"`
	// Look is what to do about that.
	Look string `json:"look,omitempty"`
}

// Send is a command to be said.
type Send struct {
	Device string `json:"device"`
	Name   string `json:"name"`
	// ID is made where it is empty.
	ID          string          `json:"id,omitempty"`
	Data        json.RawMessage `json:"data,omitempty"` // JSON; or Text
	Text        string          `json:"text,omitempty"`
	ContentType string          `json:"content_type,omitempty"`
	TTL         string          `json:"ttl,omitempty"`
	QoS         *byte           `json:"qos,omitempty"` // 1 where nothing is said
	By          string          `json:"by,omitempty"`
}

func (s *Send) message(now time.Time) (*message.Message, error) {
	for _, f := range []struct{ field, v string }{{"device", s.Device}, {"name", s.Name}, {"id", s.ID}} {
		if f.v == "" && f.field != "id" || strings.ContainsAny(f.v, "/+#\x00") || !utf8.ValidString(f.v) {
			return nil, fmt.Errorf("%s %q: want a name without / + #", f.field, f.v)
		}
	}
	m := &message.Message{ID: message.NewID(now), Device: s.Device, ContentType: s.ContentType, QoS: 1, Data: []byte(s.Text)}
	if s.Data != nil {
		if s.Text != "" {
			return nil, fmt.Errorf("data and text: want one of them")
		}
		m.Data = s.Data
		if m.ContentType == "" {
			m.ContentType = "application/json"
		}
	}
	if s.ID == "" {
		s.ID = m.ID.String()
	}
	if s.QoS != nil {
		if m.QoS = *s.QoS; m.QoS > 2 {
			return nil, fmt.Errorf("qos %d; there are 0, 1 and 2", m.QoS)
		}
	}
	if s.TTL != "" {
		ttl, err := time.ParseDuration(s.TTL)
		if err != nil || ttl <= 0 {
			return nil, fmt.Errorf("ttl %q: want a duration such as 10m", s.TTL)
		}
		m.Expires = now.Add(ttl)
	}
	m.Subject = device.CommandSubject(s.Device, s.Name, s.ID)
	return m, m.Subject.Valid()
}

// serveSend says a command as an app does, and shows it once it is kept.
func (c *Commands) serveSend(_ http.ResponseWriter, r *http.Request) (any, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, sendMax))
	var s Send
	if err == nil {
		d := json.NewDecoder(strings.NewReader(string(raw)))
		d.DisallowUnknownFields()
		err = d.Decode(&s)
	}
	if err != nil {
		return nil, answer.Bad(fmt.Errorf("read the request: %w; want {\"device\":…,\"name\":…,\"data\":…} of up to %d bytes", err, sendMax))
	}
	m, err := s.message(c.env.Now())
	if err != nil {
		return nil, answer.Bad(err)
	}
	c.env.Mint(m)
	if s.By != "" {
		m.Source += "?by=" + url.QueryEscape(s.By)
	}
	var was *Shown
	if err := c.env.View(func(v component.View) error {
		x, err := find(v, s.Device, s.Name, s.ID)
		if x != nil {
			was, err = c.show(v, x)
		}
		return err
	}); err != nil || was != nil {
		return was, err // said again, it is the same command
	}
	if err := c.env.Say(r.Context(), m); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	shown, err := c.await(ctx, s.Device, func(v component.View) (*Command, error) { return find(v, s.Device, s.Name, s.ID) }, func(*Command) bool { return true })
	if err == nil && shown == nil {
		err = answer.Unavailable("the command is stored as message %s, and was not taken within %s; `naru messages %s` tells its fate", m.ID, patience, m.ID)
	}
	return shown, err
}

// await gives a command as soon as enough says so, or as it is when ctx ends; nil where there is none by then.
func (c *Commands) await(ctx context.Context, of string, get func(v component.View) (*Command, error), enough func(*Command) bool) (*Shown, error) {
	for {
		changed := c.hub.watch(of)
		var s *Shown
		err := c.env.View(func(v component.View) error {
			x, err := get(v)
			if x != nil && err == nil {
				s, err = c.show(v, x)
			}
			return err
		})
		if err != nil || s != nil && enough(&s.Command) {
			c.hub.leave(of)
			return s, err
		}
		select {
		case <-changed:
			c.hub.leave(of)
		case <-ctx.Done():
			c.hub.leave(of)
			return s, nil
		}
	}
}

// named finds a device's command by its id; by its name too, where that is said or there are several of one id.
func named(v component.View, of, name, id string) (found *Command, err error) {
	if name != "" {
		found, err = find(v, of, name, id)
	} else {
		var names []string
		var bad error
		err = v.Range(deviceKey(kindIndex, of), append(deviceKey(kindIndex, of), 0xff), false, func(k, n []byte) bool {
			called, is, _ := strings.Cut(string(k[len(of)+2:]), "\x00")
			if is == id {
				names = append(names, called)
				found, bad = find(v, of, called, id)
			}
			return bad == nil
		})
		if err == nil {
			err = bad
		}
		if len(names) > 1 {
			return nil, answer.Conflict("%s has commands of the id %s by the names %s; say which with name=", of, id, strings.Join(names, ", "))
		}
	}
	if err == nil && found == nil {
		return nil, answer.Missing("%s has no command %s, or not any more; `naru command list --device %s` shows those there are", of, id, of)
	}
	return found, err
}

func (c *Commands) serveShow(_ http.ResponseWriter, r *http.Request) (any, error) {
	of, id, name := r.PathValue("device"), r.PathValue("id"), r.URL.Query().Get("name")
	ctx, enough := r.Context(), func(*Command) bool { return true }
	if w := r.URL.Query().Get("wait"); w != "" {
		d, err := time.ParseDuration(w)
		if err != nil || d < 0 || d > waitMost {
			return nil, answer.Bad(fmt.Errorf("wait=%s: want a duration of up to %s", w, waitMost))
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
		enough = (*Command).Ended
	}
	return c.await(ctx, of, func(v component.View) (*Command, error) { return named(v, of, name, id) }, enough)
}

// show adds what is not stored with a command.
func (c *Commands) show(v component.View, x *Command) (*Shown, error) {
	s := &Shown{Command: *x}
	m, err := request(v, x)
	var no *message.Rejection
	if err != nil && !errors.As(err, &no) {
		return nil, err
	}
	if err == nil && utf8.Valid(m.Data) {
		s.Data = string(m.Data)
	}
	c.explain(v, s)
	return s, nil
}

// explain adds what a command waits for that has not ended.
func (c *Commands) explain(v component.View, s *Shown) {
	if s.Ended() {
		return
	}
	var err error
	if s.Why, s.Look, err = c.why(v, &s.Command); err != nil {
		s.Why = "what it waits for cannot be told: " + err.Error()
	}
}

// why says what a command waits for, and what to do about it.
func (c *Commands) why(v component.View, x *Command) (why, look string, err error) {
	t, err := loadTarget(v, x.Device)
	if err != nil {
		return "", "", err
	}
	until := "; it lives until " + x.Expires.Format(time.RFC3339)
	switch x.State {
	case serviceplatform.CommandDelivered:
		return "the device has acknowledged it, and has not answered yet" + until, "what the device does with it; it answers on " + device.ReplySubject(x.Device, x.Name, x.ID).Topic(), nil
	case serviceplatform.CommandSent:
		return "it was sent with QoS 0, so nobody knows whether it arrived; no answer has come yet" + until, "have the device subscribe with QoS 1", nil
	case serviceplatform.CommandReleased:
		return fmt.Sprintf("the broker of %s has it for the device, which has not acknowledged it yet (%s)", t.Node, times(x.Attempts)) + until,
			"whether the device acknowledges what it gets: `naru mqtt connections`", nil
	}
	if !t.Online {
		return "the device is away" + since(t) + until, "naru why device " + x.Device, nil
	}
	if t.Deaf != "" {
		return "the device is connected, and gets nothing: " + t.Deaf + until, "have it subscribe to device/" + x.Device + "/command/+/+; `naru mqtt sessions` shows what it did", nil
	}
	ahead, first := 0, uint64(0)
	if err := v.Range(deviceKey(kindWaiting, x.Device), numberKey(kindWaiting, x.Device, x.number), false, func(k, _ []byte) bool {
		if ahead++; first == 0 {
			_, first = place(k)
		}
		return ahead < aheadMost
	}); err != nil || ahead == 0 {
		return "its turn has come" + until, "", err
	}
	before, err := load(v, x.Device, first)
	if err != nil || before == nil {
		return "", "", err
	}
	many := fmt.Sprintf("%d other commands are before it, the first of them", ahead)
	switch ahead {
	case 1:
		many = "another command is before it,"
	case aheadMost:
		many = "at least " + many
	}
	return fmt.Sprintf("%s %s (%s), which is %s", many, before.ID, before.Name, before.State) + until,
		fmt.Sprintf("naru command show %s %s", x.Device, before.ID), nil
}

// List is a page of commands, the newest first.
type List struct {
	Commands []Shown          `json:"commands"`       // without their data
	Next     string           `json:"next,omitempty"` // what to ask for as before, for what comes behind
	Counts   map[string]int64 `json:"counts"`         // of all that are kept, by state
}

func (c *Commands) serveList(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := r.URL.Query()
	of, state, name := q.Get("device"), q.Get("state"), q.Get("name")
	if state != "" && state != "open" && !slices.Contains(states, state) {
		return nil, answer.Bad(fmt.Errorf("state=%s: there are %s; and open, for those that have not ended", state, strings.Join(states, ", ")))
	}
	limit := 100
	if s := q.Get("limit"); s != "" {
		var err error
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > listMost {
			return nil, answer.Bad(fmt.Errorf("limit=%s: want 1 to %d", s, listMost))
		}
	}
	from, to := []byte{kindTime}, []byte{kindTime + 1}
	if of != "" {
		from, to = deviceKey(kindCommand, of), append(deviceKey(kindCommand, of), 0xff)
	}
	if s := q.Get("before"); s != "" {
		if of != "" {
			n, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				return nil, answer.Bad(fmt.Errorf("before=%s: want what the page before it said comes next", s))
			}
			to = numberKey(kindCommand, of, n)
		} else {
			id, err := message.ParseID(s)
			if err != nil {
				return nil, answer.Bad(fmt.Errorf("before=%s: %w", s, err))
			}
			to = append([]byte{kindTime}, id[:]...)
		}
	}
	out := List{Commands: []Shown{}}
	return &out, c.env.View(func(v component.View) error {
		var err error
		if out.Counts, err = loadCounts(v); err != nil {
			return err
		}
		n := 0
		err = v.Range(from, to, true, func(k, val []byte) bool {
			device, number := "", uint64(0)
			if of != "" {
				device, number = place(k[1:])
			} else {
				device, number = place(val)
			}
			if n++; n > looked || len(out.Commands) == limit {
				return false
			}
			x, bad := load(v, device, number)
			if bad != nil && state == "" && name == "" { // the others are shown all the same
				out.Commands = append(out.Commands, Shown{Command: Command{Device: device, Detail: "it cannot be shown: " + bad.Error()}})
			}
			if x == nil {
				return true
			}
			if out.Next = x.Message.String(); of != "" {
				out.Next = strconv.FormatUint(number, 10)
			}
			if (state == "" || x.State == state || state == "open" && !x.Ended()) && (name == "" || x.Name == name) {
				s := Shown{Command: *x}
				c.explain(v, &s)
				out.Commands = append(out.Commands, s)
			}
			return true
		})
		if n <= looked && len(out.Commands) < limit {
			out.Next = ""
		}
		return err
	})
}

// serveCancel takes a command back.
func (c *Commands) serveCancel(_ http.ResponseWriter, r *http.Request) (any, error) {
	of, id := r.PathValue("device"), r.PathValue("id")
	by := r.URL.Query().Get("by")
	if by == "" {
		return nil, answer.Bad(fmt.Errorf("by is wanted: who takes it back"))
	}
	var at *Command
	if err := c.env.View(func(v component.View) (err error) {
		at, err = named(v, of, r.URL.Query().Get("name"), id)
		return err
	}); err != nil {
		return nil, err
	}
	var refused error
	err := c.env.Change(r.Context(), func(tx component.Tx) error {
		refused = nil
		x, err := load(tx, of, at.number)
		if err != nil {
			return err
		}
		if x == nil || x.Ended() {
			refused = answer.Conflict("command %s of %s has ended; `naru command show %s %s` shows how", id, of, of, id)
			return nil
		}
		t, err := loadTarget(tx, of)
		if err != nil {
			return err
		}
		detail := "taken back by " + by
		if x.State != serviceplatform.CommandQueued {
			detail += "; it was " + x.State + " already, and the device may do it all the same"
		}
		if err := c.end(tx, t, x, serviceplatform.CommandCancelled, detail, nil); err != nil {
			return err
		}
		c.changed(tx, x)
		at = x
		if err := x.save(tx); err != nil {
			return err
		}
		return t.save(tx)
	})
	if err != nil || refused != nil {
		return nil, firstError(err, refused)
	}
	var s *Shown
	return &s, c.env.View(func(v component.View) (err error) {
		x, err := load(v, of, at.number)
		if err == nil && x != nil {
			s, err = c.show(v, x)
		}
		return err
	})
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
