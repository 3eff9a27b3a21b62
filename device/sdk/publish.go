package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// PublishOptions are what is said beside the data. The zero value is QoS 1, a new trace, no media type.
type PublishOptions struct {
	// AtMostOnce sends with QoS 0: Publish returns once it is written, and the message may be lost.
	AtMostOnce bool
	// Retain has the platform keep the message for later subscribers.
	Retain bool
	// ContentType is the media type of the data.
	ContentType string
	// Expiry is after how long the message loses its worth, in whole seconds; zero for never.
	Expiry time.Duration
	// Trace is what this message belongs to; a new trace begins where its ID is zero.
	Trace message.Trace
	// Correlation is returned with an answer.
	Correlation []byte
	// Properties are the device's own.
	Properties []packet.UserProperty
}

// outgoing is a message on its way; it stays in the queue until it is acknowledged.
type outgoing struct {
	packet packet.Publish
	done   chan error // told once
	flying bool       // written to the present connection
	tried  int        // refusals that pass by themselves
	resume time.Time  // not before
}

func (m *outgoing) finish(err error) {
	select {
	case m.done <- err:
	default:
	}
}

// Publish sends data on `device/<id>/<suffix>` and returns when the platform has it on disk. It gives the trace that
// the message travels under, also with an error. A *RefusedError is final. When ctx ends first, a message that was
// never written is taken back; one that was written is still tried until it is acknowledged, and may be stored.
//
// Messages are sent in the order of their calls; one that the platform put off (its disk is full, its bus away) is
// sent again after a while, behind later ones.
func (c *Client) Publish(ctx context.Context, suffix string, data []byte, o PublishOptions) (message.Trace, error) {
	trace := o.Trace
	if trace.ID.IsZero() {
		trace = message.NewTrace(time.Now())
	} else {
		trace.Span = message.NewSpan()
	}
	topic := "device/" + c.o.Device + "/" + suffix
	if err := packet.ValidTopicName(topic); err != nil {
		return trace, fmt.Errorf("publish on %s: %w", topic, err)
	}
	p := packet.Publish{QoS: 1, Retain: o.Retain, Topic: topic, Payload: data}
	if o.AtMostOnce {
		p.QoS = 0
	}
	if o.ContentType != "" {
		p.Properties.SetString(packet.ContentType, o.ContentType)
	}
	if o.Expiry > 0 {
		p.Properties.Set(packet.MessageExpiry, uint32(max(o.Expiry/time.Second, 1)))
	}
	if o.Correlation != nil {
		p.Properties.Set(packet.CorrelationData, 1)
		p.Properties.CorrelationData = o.Correlation
	}
	p.Properties.Set(packet.UserPropertyID, 1)
	p.Properties.User = append([]packet.UserProperty{{Key: "traceparent", Value: trace.Traceparent()}}, o.Properties...)
	if err := c.publish(ctx, p); err != nil {
		return trace, fmt.Errorf("publish on %s: %w", topic, err)
	}
	return trace, nil
}

// Telemetry publishes v as JSON on `device/<id>/telemetry`, or on its channel where that is not empty.
func (c *Client) Telemetry(ctx context.Context, channel string, v any) (message.Trace, error) {
	suffix := "telemetry"
	if channel != "" {
		suffix += "/" + channel
	}
	return c.publishJSON(ctx, suffix, v)
}

// Event publishes v as JSON on `device/<id>/event/<name>`.
func (c *Client) Event(ctx context.Context, name string, v any) (message.Trace, error) {
	return c.publishJSON(ctx, "event/"+name, v)
}

func (c *Client) publishJSON(ctx context.Context, suffix string, v any) (message.Trace, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return message.Trace{}, fmt.Errorf("publish on %s: %w", suffix, err)
	}
	return c.Publish(ctx, suffix, data, PublishOptions{ContentType: "application/json"})
}

func (c *Client) publish(ctx context.Context, p packet.Publish) error {
	if p.QoS == 0 {
		return c.publishOnce(p)
	}
	select {
	case c.window <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("not sent: %w", context.Cause(ctx))
	case <-c.ctx.Done():
		return ErrClosed
	}
	m := &outgoing{packet: p, done: make(chan error, 1)}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		<-c.window
		return ErrClosed
	}
	m.packet.ID = c.nextID()
	c.ids[m.packet.ID] = m
	c.queue = append(c.queue, m)
	c.pump()
	c.mu.Unlock()
	select {
	case err := <-m.done:
		return err
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !m.packet.Dup && c.ids[m.packet.ID] == m {
		c.remove(m)
		return fmt.Errorf("not sent: %w", context.Cause(ctx))
	}
	return fmt.Errorf("not acknowledged yet, and still tried: %w", context.Cause(ctx))
}

func (c *Client) publishOnce(p packet.Publish) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return ErrClosed
	case !c.ready:
		return fmt.Errorf("not sent: %s is not connected", c.o.Device)
	}
	c.sent.Add(1)
	return c.write(p.Append(c.buf[:0], packet.V5))
}

// pump writes what may be under way and is not; c.mu is held. Whatever was written once is a repetition the next time
// (MQTT-3.3.1-1).
func (c *Client) pump() {
	if !c.ready {
		return
	}
	now := time.Now()
	for _, m := range c.queue {
		if c.flying >= c.max {
			return
		}
		if m.flying || now.Before(m.resume) {
			continue
		}
		m.flying = true
		c.flying++
		c.sent.Add(1)
		b := m.packet.Append(c.buf[:0], packet.V5)
		m.packet.Dup = true
		if c.write(b) != nil {
			return
		}
	}
}

// answered is the platform's word on a message.
func (c *Client) answered(id uint16, code packet.ReasonCode, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.ids[id]
	if m == nil || !m.flying {
		return // of a message that was given up
	}
	c.flying--
	m.flying = false
	switch {
	case !code.Failed():
		c.acked.Add(1)
		c.remove(m)
		m.finish(nil)
	case transient(code):
		c.putOff(m)
	default:
		c.remove(m)
		m.finish(&RefusedError{"publish", code, text})
	}
	c.pump()
}

// putOff sends m again after a while, under a new id: the exchange under the old one is over (§4.3.2).
func (c *Client) putOff(m *outgoing) {
	delete(c.ids, m.packet.ID)
	m.packet.ID, m.packet.Dup = c.nextID(), false
	c.ids[m.packet.ID] = m
	wait := min(backoffFirst<<min(m.tried, 10), backoffMost)
	m.tried++
	m.resume = time.Now().Add(wait)
	time.AfterFunc(wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pump()
	})
}

// remove takes m out of the queue and frees its place in the window; c.mu is held.
func (c *Client) remove(m *outgoing) {
	delete(c.ids, m.packet.ID)
	if i := slices.Index(c.queue, m); i >= 0 {
		c.queue = slices.Delete(c.queue, i, i+1)
		<-c.window
	}
	if len(c.queue) == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}
