package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// tell has the platform say something to the device, and takes the acknowledgement.
func (l *line) tell(id uint16, topic, data string, correlation []byte, trace *message.Trace) {
	l.Helper()
	p := packet.Publish{QoS: 1, ID: id, Topic: topic, Payload: []byte(data)}
	if correlation != nil {
		p.Properties.Set(packet.CorrelationData, 1)
		p.Properties.CorrelationData = correlation
	}
	if trace != nil {
		p.Properties.Set(packet.UserPropertyID, 1)
		p.Properties.User = []packet.UserProperty{{Key: "traceparent", Value: trace.Traceparent()}}
	}
	l.write(p.Append(nil, packet.V5))
	l.acked(id)
}

// asked takes a request to a twin, and answers it.
func (l *line) asked(topic, data, word, answer string) {
	l.Helper()
	p := l.publish()
	if p.Topic != topic || string(p.Payload) != data || len(p.Properties.CorrelationData) == 0 {
		l.Errorf("asked %s %s, correlation %x; want %s %s", p.Topic, p.Payload, p.Properties.CorrelationData, topic, data)
	}
	l.ack(p.ID)
	l.tell(1, topic+"/"+word, answer, p.Properties.CorrelationData, nil)
}

func ask[T any](f func() (T, error)) func() (T, error) {
	type answer struct {
		v   T
		err error
	}
	done := make(chan answer, 1)
	go func() {
		v, err := f()
		done <- answer{v, err}
	}()
	return func() (T, error) {
		a := <-done
		return a.v, a.err
	}
}

func TestTwinIsAskedReportedAndRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newPlatform(t).connect()
		twin := c.Twin("config")
		got := ask(func() (TwinDocument, error) { return twin.Get(t.Context()) })
		l.subscribe() // accepted
		l.subscribe() // rejected
		l.asked("device/d-17/twin/name/config/get", "", "accepted",
			`{"state":{"desired":{"a":2},"reported":{"a":1},"delta":{"a":2}},"metadata":{"desired":{"a":{"timestamp":5}}},"version":7,"timestamp":1591140517}`)
		d, err := got()
		if err != nil || d.Version != 7 || string(d.Desired) != `{"a":2}` || string(d.Reported) != `{"a":1}` || string(d.Delta) != `{"a":2}` ||
			d.At.Unix() != 1591140517 || len(d.Metadata) == 0 {
			t.Errorf("%+v, %v", d, err)
		}
		reported := ask(func() (int, error) { return 0, twin.Report(t.Context(), map[string]int{"a": 2}) })
		l.asked("device/d-17/twin/name/config/update", `{"state":{"reported":{"a":2}}}`, "accepted", `{"state":{"reported":{"a":2}},"version":8,"timestamp":1591140518}`)
		if _, err := reported(); err != nil {
			t.Error(err)
		}
		updated := ask(func() (uint64, error) {
			return twin.Update(t.Context(), TwinUpdate{Desired: json.RawMessage("null"), Reported: struct{ B int }{3}, Version: 4})
		})
		l.asked("device/d-17/twin/name/config/update", `{"state":{"desired":null,"reported":{"B":3}},"version":4}`, "rejected", `{"code":409,"message":"Version conflict","timestamp":1591140518}`)
		_, err = updated()
		if no := (*TwinError)(nil); !errors.As(err, &no) || *no != (TwinError{"update", 409, "Version conflict"}) || !strings.Contains(err.Error(), "the twin config of d-17") {
			t.Errorf("got %v", err)
		}
		deleted := ask(func() (int, error) { return 0, twin.Delete(t.Context()) })
		l.asked("device/d-17/twin/name/config/delete", "", "accepted", `{"version":8,"timestamp":1591140518}`)
		if _, err := deleted(); err != nil {
			t.Error(err)
		}
		l.end(c)
	})
}

// Others ask the same twin, and their answers come on the same topics.
func TestAnswersToOthersAreNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newPlatform(t).connect()
		got := ask(func() (TwinDocument, error) { return c.Twin("").Get(t.Context()) })
		l.subscribe()
		l.subscribe()
		p := l.publish()
		l.ack(p.ID)
		l.tell(1, "device/d-17/twin/get/accepted", `{"state":{},"version":1}`, nil, nil)
		l.tell(2, "device/d-17/twin/get/rejected", `{"code":404,"message":"no"}`, []byte("another's"), nil)
		l.tell(3, "device/d-17/twin/get/accepted", `{"state":{},"version":2}`, p.Properties.CorrelationData, nil)
		l.tell(4, "device/d-17/twin/get/accepted", `{"state":{},"version":3}`, p.Properties.CorrelationData, nil) // told twice
		if d, err := got(); err != nil || d.Version != 2 {
			t.Errorf("%+v, %v", d, err)
		}
		l.end(c)
	})
}

// watched gives a client whose unnamed twin is watched, and what its handler is given, one at a time.
func watched(t *testing.T, p *platform, state string) (*Client, *line, chan Delta, chan any) {
	t.Helper()
	c, l := p.connect()
	came, give := make(chan Delta), make(chan any)
	agreed := ask(func() (int, error) {
		return 0, c.Twin("").OnDelta(t.Context(), func(ctx context.Context, d Delta) (any, error) {
			select {
			case came <- d:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			switch v := (<-give).(type) {
			case error:
				return nil, v
			case func():
				v()
				return nil, nil
			default:
				return v, nil
			}
		})
	})
	l.subscribe()
	l.subscribe()
	l.subscribe()
	if state == "" {
		l.asked("device/d-17/twin/get", "", "rejected", `{"code":404,"message":"No shadow exists with name: 'd-17'"}`)
	} else {
		l.asked("device/d-17/twin/get", "", "accepted", state)
	}
	if _, err := agreed(); err != nil {
		t.Fatal(err)
	}
	return c, l, came, give
}

func TestDeltaIsHeardFromTheStartAndWhatItGivesIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l, came, give := watched(t, newPlatform(t), `{"state":{"desired":{"interval":5},"delta":{"interval":5}},"version":3,"timestamp":100}`)
		if d := <-came; d.Version != 3 || string(d.State) != `{"interval":5}` {
			t.Errorf("first %+v", d)
		}
		give <- map[string]int{"interval": 5}
		l.asked("device/d-17/twin/update", `{"state":{"reported":{"interval":5}}}`, "accepted", `{"version":4}`)
		trace := message.NewTrace(time.Now())
		l.tell(1, "device/d-17/twin/update/delta", `{"version":5,"timestamp":101,"state":{"interval":9}}`, nil, &trace)
		var v struct{ Interval int }
		if d := <-came; d.Decode(&v) != nil || v.Interval != 9 || d.Trace.ID != trace.ID {
			t.Errorf("then %+v", d)
		}
		give <- v
		p := l.publish()
		if string(p.Payload) != `{"state":{"reported":{"Interval":9}}}` || !strings.Contains(p.Properties.User[0].Value, trace.ID.String()) {
			t.Errorf("reported %s, %v", p.Payload, p.Properties.User)
		}
		l.ack(p.ID)
		l.tell(2, "device/d-17/twin/update/accepted", `{"version":6}`, p.Properties.CorrelationData, nil)
		l.end(c)
	})
}

func TestOnlyTheNewestDeltaWaitsAndOldOnesAreNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l, came, give := watched(t, newPlatform(t), "")
		delta := func(id uint16, version, at int) {
			l.tell(id, "device/d-17/twin/update/delta", fmt.Sprintf(`{"version":%d,"timestamp":%d,"state":{"a":%d}}`, version, at, version), nil, nil)
		}
		delta(1, 5, 100)
		<-came // and is busy
		delta(2, 6, 100)
		delta(3, 7, 100)
		delta(4, 6, 100) // comes again
		give <- errors.New("no")
		if d := <-came; d.Version != 7 {
			t.Errorf("got version %d", d.Version)
		}
		delta(5, 1, 200) // the twin was deleted long ago, and begins again
		give <- func() { panic("handler") }
		if d := <-came; d.Version != 1 {
			t.Errorf("got version %d", d.Version)
		}
		give <- nil // nothing to report
		synctest.Wait()
		if len(l.came)+len(l.said) > 0 {
			t.Error("something was reported")
		}
		l.end(c)
	})
}

// The handlers of messages and of deltas may wait for the twin: its answers do not come through them.
func TestHandlersMayAskTheTwin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l, came, give := watched(t, newPlatform(t), "")
		agreed := ask(func() (int, error) {
			return 0, c.OnCommand(t.Context(), "look", func(ctx context.Context, _ Command) (any, error) {
				d, err := c.Twin("").Get(ctx)
				return d.Version, err
			})
		})
		l.subscribe()
		if _, err := agreed(); err != nil {
			t.Fatal(err)
		}
		l.tell(9, "device/d-17/twin/update/delta", `{"version":5,"timestamp":100,"state":{"a":1}}`, nil, nil)
		<-came // is busy
		cmd := packet.Publish{QoS: 1, ID: 10, Topic: "device/d-17/command/look/c1"}
		l.write(cmd.Append(nil, packet.V5))
		l.asked("device/d-17/twin/get", "", "accepted", `{"state":{},"version":5}`)
		if r := l.publish(); string(r.Payload) != `{"ok":true,"result":5}` {
			t.Errorf("%s", r.Payload)
		} else {
			l.ack(r.ID)
		}
		l.acked(10)
		asked := make(chan uint64, 1)
		give <- func() {
			d, err := c.Twin("").Get(c.ctx)
			if err != nil {
				t.Error(err)
			}
			asked <- d.Version
		}
		l.asked("device/d-17/twin/get", "", "accepted", `{"state":{},"version":6}`)
		if v := <-asked; v != 6 {
			t.Errorf("version %d", v)
		}
		l.end(c)
	})
}

// A session that the platform has forgotten may have missed deltas; one that it knows has not.
func TestDeltaIsAskedForWhenTheSessionWasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform(t)
		p.keepAlive = time.Hour // longer than the answers are waited for
		c, l, came, give := watched(t, p, "")
		for _, present := range []bool{true, false} {
			_ = l.conn.Close()
			l = p.accept()
			l.write((&packet.Connack{SessionPresent: present}).Append(nil, packet.V5))
			l.subscribe()
			l.subscribe()
			l.subscribe()
			synctest.Wait()
			if present && len(l.came) > 0 {
				t.Error("asked in a session that was kept")
			}
		}
		p1 := l.publish()
		l.ack(p1.ID)
		start := time.Now()
		again := l.publish() // no answer comes
		if d := time.Since(start); d != lookPatience {
			t.Errorf("asked again after %s", d)
		}
		l.ack(again.ID)
		l.tell(1, "device/d-17/twin/get/accepted", `{"state":{"delta":{"a":1}},"version":9,"timestamp":5}`, again.Properties.CorrelationData, nil)
		if d := <-came; d.Version != 9 {
			t.Errorf("%+v", d)
		}
		give <- nil
		l.end(c)
	})
}

// An earlier process's answers lie in the session. They must not fill what may be under way to the device.
func TestAnswersNobodyWaitsForAreDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newPlatform(t).connect()
		for id, topic := range []string{"twin/get/accepted", "twin/update/delta", "twin/name/a/update/rejected"} {
			l.tell(uint16(id+1), "device/d-17/"+topic, `{}`, nil, nil)
		}
		l.end(c)
	})
}

func TestTwinCallsEndWithTheirContextAndTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newPlatform(t).connect()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got := ask(func() (TwinDocument, error) { return c.Twin("").Get(ctx) })
		l.subscribe()
		l.subscribe()
		l.ack(l.publish().ID)
		if _, err := got(); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stored, and not answered") {
			t.Errorf("got %v", err)
		}
		got = ask(func() (TwinDocument, error) { return c.Twin("").Get(t.Context()) })
		l.ack(l.publish().ID)
		synctest.Wait()
		l.end(c)
		if _, err := got(); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
		if _, err := c.Twin("a/b").Get(t.Context()); err == nil {
			t.Error("a name of two levels is taken")
		}
	})
}
