package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// answersMax is how many answers are remembered for commands that come again.
const answersMax = 128

// Message is what the platform sent.
type Message struct {
	Topic       string
	Data        []byte
	ContentType string
	Correlation []byte
	Trace       message.Trace // zero where the message had none
	Repeated    bool          // it may have come before
	Retained    bool
}

// Command is a wish to the device.
type Command struct {
	Name string
	ID   string
	Message
}

type subscription struct {
	filter string
	handle func(context.Context, Message)
	now    bool       // handle is called by the reader, and does not wait
	id     uint16     // of the SUBSCRIBE under way; 0 for none
	done   chan error // told once
}

func (s *subscription) finish(err error) {
	select {
	case s.done <- err:
	default:
	}
}

type incoming struct {
	Message
	id  uint16 // 0 for QoS 0
	era int
}

type reply struct {
	data  []byte
	trace message.Trace
}

// Subscribe hears `device/<id>/<filter>` from now on, through all reconnects, and returns when the platform has agreed.
// Messages are handled one at a time, in order, and acknowledged when the handler has returned; after a break one may
// come twice. The handler's context ends with the client. A panic in it is logged, and the message is done.
func (c *Client) Subscribe(ctx context.Context, filter string, handle func(context.Context, Message)) error {
	return c.subscribe(ctx, &subscription{filter: filter, handle: handle})
}

func (c *Client) subscribe(ctx context.Context, s *subscription) error {
	s.filter, s.done = "device/"+c.o.Device+"/"+s.filter, make(chan error, 1)
	if err := packet.ValidTopicFilter(s.filter); err != nil {
		return fmt.Errorf("subscribe to %s: %w", s.filter, err)
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	if !s.now {
		c.serve()
	}
	c.subs = append(c.subs, s)
	c.sendSubscribe(s)
	c.mu.Unlock()
	select {
	case err := <-s.done:
		if err == nil {
			return nil
		}
		c.forget(s)
		return fmt.Errorf("subscribe to %s: %w", s.filter, err)
	case <-ctx.Done():
		c.forget(s)
		return fmt.Errorf("subscribe to %s: %w", s.filter, context.Cause(ctx))
	}
}

// OnCommand carries out the commands of that name: topics `device/<id>/command/<name>/<command-id>`. What f gives is
// published as JSON on `…/reply`, {"ok":true,"result":…} or {"ok":false,"error":"…"}, under the command's trace; only
// then the command is acknowledged. A command that comes again is answered again and not carried out again, unless the
// process has been restarted or 128 others have been in between.
func (c *Client) OnCommand(ctx context.Context, name string, f func(context.Context, Command) (any, error)) error {
	if name == "" || strings.ContainsAny(name, "/+#") {
		return fmt.Errorf("command name %q is not one level of a topic", name)
	}
	return c.commands(ctx, name, f)
}

// Commands carries out the commands of every name, as OnCommand does those of one. A client has the one or the other: with both,
// a command is carried out by the one that comes first, and answered twice.
func (c *Client) Commands(ctx context.Context, f func(context.Context, Command) (any, error)) error {
	return c.commands(ctx, "+", f)
}

func (c *Client) commands(ctx context.Context, names string, f func(context.Context, Command) (any, error)) error {
	return c.Subscribe(ctx, "command/"+names+"/+", func(ctx context.Context, m Message) {
		level := strings.Split(m.Topic, "/") // device, its id, command, name, the command's id
		cmd := Command{Name: level[3], ID: level[4], Message: m}
		c.mu.Lock()
		r, again := c.done[m.Topic]
		c.mu.Unlock()
		if !again {
			r = reply{carryOut(ctx, cmd, f), m.Trace}
			c.remember(m.Topic, r)
		}
		suffix := strings.TrimPrefix(m.Topic, "device/"+c.o.Device+"/") + "/reply"
		if _, err := c.Publish(ctx, suffix, r.data, PublishOptions{ContentType: "application/json", Trace: r.trace, Correlation: m.Correlation}); err != nil {
			c.o.Log.Error("the answer to a command was not taken", "device", c.o.Device, "command", cmd.Name, "id", cmd.ID, "error", err)
		}
	})
}

func carryOut(ctx context.Context, cmd Command, f func(context.Context, Command) (any, error)) (data []byte) {
	type answer struct {
		OK     bool   `json:"ok"`
		Result any    `json:"result,omitempty"`
		Error  string `json:"error,omitempty"`
	}
	failed := func(text string) []byte {
		b, _ := json.Marshal(answer{Error: text}) // two plain fields
		return b
	}
	defer func() {
		if p := recover(); p != nil {
			data = failed(fmt.Sprintf("panic: %v", p))
		}
	}()
	result, err := f(ctx, cmd)
	if err != nil {
		return failed(err.Error())
	}
	if data, err = json.Marshal(answer{OK: true, Result: result}); err != nil {
		return failed(err.Error())
	}
	return data
}

func (c *Client) remember(topic string, r reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[topic] = r
	if c.order = append(c.order, topic); len(c.order) > answersMax {
		delete(c.done, c.order[0])
		c.order = slices.Delete(c.order, 0, 1)
	}
}

// sendSubscribe asks for s if there is a connection; c.mu is held. Retained messages come only the first time.
func (c *Client) sendSubscribe(s *subscription) {
	if !c.ready {
		return
	}
	s.id = 0
	s.id = c.nextID()
	p := packet.Subscribe{ID: s.id, Subscriptions: []packet.Subscription{{Filter: s.filter, QoS: 1, RetainHandling: 1}}}
	_ = c.write(p.Append(c.buf[:0], packet.V5)) // where it fails, the next connection asks again
}

func (c *Client) subscribed(a *packet.SubAnswer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.subs {
		if s.id != a.ID || s.id == 0 || len(a.Codes) != 1 {
			continue
		}
		s.id = 0
		if code := a.Codes[0]; code.Failed() {
			err := &RefusedError{"subscribe", code, strings.Clone(a.Properties.ReasonString)}
			c.o.Log.Warn("subscription refused", "device", c.o.Device, "filter", s.filter, "error", err)
			s.finish(err)
		} else {
			s.finish(nil)
		}
		return
	}
}

func (c *Client) forget(s *subscription) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs = slices.DeleteFunc(c.subs, func(o *subscription) bool { return o == s })
}

func (c *Client) arrived(h packet.Header, body []byte) error {
	var p packet.Publish
	if err := p.Decode(h, body, packet.V5); err != nil {
		return err
	}
	if p.QoS > 1 {
		return fmt.Errorf("the platform sent QoS %d; 1 was asked for", p.QoS)
	}
	m := incoming{id: p.ID, Message: Message{
		Topic: strings.Clone(p.Topic), Data: bytes.Clone(p.Payload), ContentType: strings.Clone(p.Properties.ContentType),
		Correlation: bytes.Clone(p.Properties.CorrelationData), Repeated: p.Dup, Retained: p.Retain,
	}}
	for _, u := range p.Properties.User {
		if u.Key == "traceparent" {
			if t, err := message.ParseTraceparent(u.Value); err == nil {
				m.Trace = t
			}
		}
	}
	c.mu.Lock()
	m.era = c.era
	var now []*subscription
	waits := false
	for _, s := range c.subs {
		if matches(s.filter, m.Topic) {
			if s.now {
				now = append(now, s)
			} else {
				waits = true
			}
		}
	}
	c.mu.Unlock()
	for _, s := range now {
		s.handle(c.ctx, m.Message)
	}
	// What nobody hears yet was left in the session by an earlier process, and waits for its handler. A twin's answer
	// does not: who asked is no more, and what is desired will be asked for.
	if !waits && (len(now) > 0 || c.twinAnswer(m.Topic)) {
		c.ack(m)
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.id == 0 && len(c.inbox) >= inboxMax {
		c.o.Log.Warn("a QoS 0 message was dropped; the handlers are behind", "device", c.o.Device, "topic", m.Topic)
		return nil
	}
	c.serve()
	c.inbox = append(c.inbox, m)
	c.rouse()
	return nil
}

// serve starts the dispatcher; c.mu is held.
func (c *Client) serve() {
	if !c.serving {
		c.serving = true
		c.all.Go(c.dispatch)
	}
}

func (c *Client) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// dispatch hands messages to their handlers, outside the reader: a handler may publish and wait.
func (c *Client) dispatch() {
	for {
		c.mu.Lock()
		var m incoming
		some := len(c.inbox) > 0
		if some {
			m = c.inbox[0]
			c.inbox = slices.Delete(c.inbox, 0, 1)
		}
		subs := slices.Clone(c.subs)
		c.mu.Unlock()
		if !some {
			select {
			case <-c.wake:
				continue
			case <-c.ctx.Done():
				return
			}
		}
		handled := false
		for _, s := range subs {
			if !s.now && matches(s.filter, m.Topic) {
				handled = true
				c.handle(s, m.Message)
			}
		}
		if !handled {
			// Not acknowledged: the session keeps it for the handler that is not there yet, until the next connection.
			c.o.Log.Debug("nobody here hears this", "device", c.o.Device, "topic", m.Topic)
			continue
		}
		c.ack(m)
	}
}

func (c *Client) handle(s *subscription, m Message) {
	defer func() {
		if p := recover(); p != nil {
			c.o.Log.Error("a handler panicked", "device", c.o.Device, "topic", m.Topic, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	s.handle(c.ctx, m)
}

// ack acknowledges on the connection that the message came by, and on no other: there its id may mean another one.
func (c *Client) ack(m incoming) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.id != 0 && m.era == c.era && c.ready && c.ctx.Err() == nil {
		_ = c.write(packet.AppendPuback(c.buf[:0], m.id))
	}
}

func matches(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i, l := range f {
		if l == "#" {
			return true
		}
		if i >= len(t) || l != "+" && l != t[i] {
			return false
		}
	}
	return len(f) == len(t)
}
