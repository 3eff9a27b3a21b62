package command

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// become changes a command's state, and the counts with it.
func (c *Commands) become(tx component.Tx, x *Command, state string) error {
	was := x.State
	x.State = state
	return c.count(tx, was, state)
}

// end is a command's last state. The caller saves both.
func (c *Commands) end(tx component.Tx, t *target, x *Command, state, detail string, reply *Reply) error {
	open, err := tx.Get(numberKey(kindOpen, x.Device, x.number))
	if err != nil {
		return err
	}
	if open != nil {
		t.Open--
	} else {
		t.Waiting--
	}
	x.Times.Ended, x.Detail = tx.Now().UTC(), detail
	tx.Delete(numberKey(kindWaiting, x.Device, x.number))
	tx.Delete(numberKey(kindOpen, x.Device, x.number))
	tx.Delete(timeKey(kindExpiry, x.Expires, x.Device, x.number))
	tx.Set(numberKey(kindOver, x.Device, x.number), there)
	tx.Set(timeKey(kindEnded, x.Times.Ended, x.Device, x.number), there)
	t.Over++
	if err := c.become(tx, x, state); err != nil {
		return err
	}
	if t.Flight == x.number {
		c.landed(tx, t)
	}
	c.ready(tx, t)
	c.metrics.ended(state)
	if err := c.tell(tx, x, reply, false); err != nil {
		return err
	}
	for t.Over > c.endKept {
		n, ok, err := oldest(tx, kindOver, t.device)
		if err != nil || !ok || n == x.number { // the newest is kept until the next one ends: it was just saved
			return err
		}
		if err := c.lose(tx, t, n); err != nil {
			return err
		}
	}
	return nil
}

// lose forgets a command that has ended.
func (c *Commands) lose(tx component.Tx, t *target, n uint64) error {
	x, err := load(tx, t.device, n)
	if err != nil {
		return err
	}
	t.Over--
	if x == nil {
		tx.Delete(numberKey(kindOver, t.device, n))
		return nil
	}
	forget(tx, x)
	return c.count(tx, x.State, "")
}

// tell says what became of a command.
func (c *Commands) tell(tx component.Tx, x *Command, r *Reply, late bool) error {
	e := serviceplatform.CommandEnded{Device: x.Device, Name: x.Name, ID: x.ID, Message: x.Message, State: x.State, Reason: x.Reason, Detail: x.Detail, Late: late}
	if r != nil {
		e.Reply = r.Message
	}
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	m := &message.Message{Subject: serviceplatform.CommandEndedSubject(x.Device), Device: x.Device, ContentType: "application/json", Data: data, QoS: 1, Time: x.Times.Ended,
		Trace: message.Trace{ID: x.Trace}, Cause: x.Message, Depth: min(x.Depth+1, message.DepthMax)}
	return tx.Say(m)
}

// expire ends a command whose time is over.
func (c *Commands) expire(tx component.Tx, key []byte) error {
	of, n := place(key[9:])
	x, err := load(tx, of, n)
	if err != nil {
		return err
	}
	if x == nil || x.Ended() {
		tx.Delete(key)
		return nil
	}
	t, err := loadTarget(tx, of)
	if err != nil {
		return err
	}
	if err := c.expired(tx, t, x); err != nil {
		return err
	}
	c.changed(tx, x)
	if err := x.save(tx); err != nil {
		return err
	}
	return t.save(tx)
}

func (c *Commands) expired(tx component.Tx, t *target, x *Command) error {
	x.Reason = message.Expired
	return c.end(tx, t, x, serviceplatform.CommandExpired, soFar(t, x), nil)
}

// soFar is how far a command had come when its time was over.
func soFar(t *target, x *Command) string {
	switch {
	case x.State == serviceplatform.CommandDelivered:
		return "the device had acknowledged it, and did not answer"
	case x.State == serviceplatform.CommandSent:
		return "it was sent with QoS 0, and no answer came"
	case x.State == serviceplatform.CommandReleased:
		return fmt.Sprintf("it was with the broker, and the device had not acknowledged it (%s)", times(x.Attempts))
	case !t.Online:
		return "the device was away" + since(t)
	case t.Deaf != "":
		return t.Deaf
	}
	return "another command was under way"
}

func since(t *target) string {
	if t.Since.IsZero() {
		return ", and never seen"
	}
	return " since " + t.Since.Format(time.RFC3339)
}

func times(n int) string {
	if n == 1 {
		return "released once"
	}
	return fmt.Sprintf("released %d times", n)
}

// sweep forgets a command that ended long ago.
func (c *Commands) sweep(tx component.Tx, key []byte) error {
	tx.Delete(key)
	of, n := place(key[9:])
	over, err := tx.Get(numberKey(kindOver, of, n))
	if err != nil || over == nil {
		return err
	}
	t, err := loadTarget(tx, of)
	if err != nil {
		return err
	}
	if err := c.lose(tx, t, n); err != nil {
		return err
	}
	return t.save(tx)
}
