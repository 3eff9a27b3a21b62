package command

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// hear takes a command, an answer, or what is told of a device.
func (c *Commands) hear(_ context.Context, tx component.Tx, m *message.Message) error {
	if of, name, id, reply, ok := device.Command(m.Subject); ok {
		if reply {
			return c.reply(tx, m, of, name, id)
		}
		return c.request(tx, m, of, name, id)
	}
	if m.Subject.Namespace() == message.Device {
		return c.presence(tx, m)
	}
	if m.Subject.Token(1) == "broker" {
		return c.receipt(tx, m)
	}
	return c.deleted(tx, m)
}

// request keeps a command. One whose id is known is the same command, said again.
func (c *Commands) request(tx component.Tx, m *message.Message, of, name, id string) error {
	if of == "" || name == "" || id == "" {
		return message.Rejectf(message.TopicInvalid, "%s names no device, no command, or no id", m.Subject)
	}
	switch v, err := tx.Get(indexKey(of, name, id)); {
	case err != nil:
		return err
	case v != nil:
		return nil
	}
	t, err := loadTarget(tx, of)
	if err != nil {
		return err
	}
	if t.Waiting >= c.waitingMax {
		return message.Rejectf(message.CommandLimit, "%d commands wait for %s, which is the limit", t.Waiting, of)
	}
	queued := m.Recorded()
	expires := queued.Add(c.ttl)
	if !m.Expires.IsZero() {
		expires = m.Expires
	}
	if last := queued.Add(c.most); expires.After(last) {
		expires = last
	} else if expires.Before(queued) { // keys of times begin with 1970, and one before it would never come
		expires = queued
	}
	t.Last++
	x := &Command{number: t.Last, Device: of, Name: name, ID: id, State: serviceplatform.CommandQueued, Message: m.ID, Trace: m.Trace.ID, Source: m.Source,
		Depth: m.Depth, QoS: m.QoS, Bytes: len(m.Data), Expires: expires.UTC(), Times: Times{Queued: queued.UTC()}}
	number := binary.BigEndian.AppendUint64(nil, x.number)
	tx.Set(indexKey(of, name, id), number)
	tx.Set(append([]byte{kindTime}, m.ID[:]...), append(deviceKey(kindTime, of)[1:], number...))
	kept := *m
	kept.Client, kept.Packet, kept.Retain = "", 0, false
	tx.Set(numberKey(kindRequest, of, x.number), message.AppendRecord(nil, &kept))
	tx.Set(numberKey(kindWaiting, of, x.number), there)
	tx.Set(timeKey(kindExpiry, x.Expires, of, x.number), there)
	t.Waiting++
	if err := c.count(tx, "", x.State); err != nil {
		return err
	}
	c.ready(tx, t)
	c.changed(tx, x)
	if err := x.save(tx); err != nil {
		return err
	}
	return t.save(tx)
}

// ready notes that a command of the device may be released.
func (c *Commands) ready(tx component.Tx, t *target) {
	if t.Online && t.Deaf == "" && t.Flight == 0 && t.Waiting > 0 {
		tx.Set(deviceKey(kindReady, t.device), there)
		tx.After(c.rouse)
	}
}

// presence notes whether the device is connected. What was under way to it goes back into the row: its session may still
// have it, and then the broker does not deliver it twice.
func (c *Commands) presence(tx component.Tx, m *message.Message) error {
	var p device.Presence
	if err := json.Unmarshal(m.Data, &p); err != nil {
		return message.Reject(message.NotDecodable, err)
	}
	of := m.Subject.Token(1)
	t, err := loadTarget(tx, of)
	if err != nil {
		return err
	}
	if p.Version <= t.Version {
		return component.ErrNotMatched // a later one was heard
	}
	t.Online, t.Since, t.Session, t.Node, t.Version, t.Deaf = p.Online, p.Since.UTC(), p.Session, p.Node, p.Version, ""
	if err := c.back(tx, t); err != nil {
		return err
	}
	c.ready(tx, t)
	return t.save(tx)
}

// back puts what is under way to a device back into its row, at the front.
func (c *Commands) back(tx component.Tx, t *target) error {
	if t.Flight == 0 {
		return nil
	}
	x, err := load(tx, t.device, t.Flight)
	c.landed(tx, t)
	if err != nil || x == nil || x.State != serviceplatform.CommandReleased {
		return err
	}
	if err := c.become(tx, x, serviceplatform.CommandQueued); err != nil {
		return err
	}
	return x.save(tx)
}

// landed notes that nothing is under way to a device.
func (c *Commands) landed(tx component.Tx, t *target) {
	tx.Delete(timeKey(kindAgain, t.Again, t.device, 0))
	t.Flight, t.Again = 0, time.Time{}
}

// receipt notes how far a command came.
func (c *Commands) receipt(tx component.Tx, m *message.Message) error {
	var r serviceplatform.Receipt
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return message.Reject(message.NotDecodable, err)
	}
	t, err := loadTarget(tx, r.Device)
	if err != nil {
		return err
	}
	if r.Result == serviceplatform.ReceiptSubscribed {
		t.Subscribed, t.Deaf = max(t.Subscribed, r.Version), ""
		c.ready(tx, t)
		return t.save(tx)
	}
	x, err := find(tx, r.Device, r.Name, r.ID)
	if err != nil {
		return err
	}
	if x == nil {
		return component.ErrNotMatched // it ended, and was forgotten
	}
	at := m.Recorded().UTC()
	switch r.Result {
	case serviceplatform.ReceiptDelivered:
		x.Times.Delivered, x.Client = at, r.Client
		err = c.arrived(tx, t, x, serviceplatform.CommandDelivered)
	case serviceplatform.ReceiptSent:
		x.Times.Sent, x.Client = at, r.Client
		if x.State != serviceplatform.CommandDelivered { // by another session of the device
			err = c.arrived(tx, t, x, serviceplatform.CommandSent)
		}
	case serviceplatform.ReceiptRefused, serviceplatform.ReceiptWithheld:
		if !x.Ended() {
			x.Reason = r.Reason
			err = c.end(tx, t, x, serviceplatform.CommandFailed, r.Detail, nil)
		}
	default:
		if t.Flight != x.number || x.Release != r.Release {
			return component.ErrNotMatched // of a release before the last one
		}
		if err = c.back(tx, t); err != nil {
			return err
		}
		if r.Version > t.Subscribed { // else it has subscribed meanwhile
			t.Deaf = r.Detail
		}
		c.ready(tx, t)
		return t.save(tx)
	}
	if err != nil {
		return err
	}
	c.changed(tx, x)
	if err := x.save(tx); err != nil {
		return err
	}
	return t.save(tx)
}

// arrived notes that the device has a command, so that it may have the next one.
func (c *Commands) arrived(tx component.Tx, t *target, x *Command, state string) error {
	if x.Ended() {
		return nil
	}
	waiting, err := tx.Get(numberKey(kindWaiting, x.Device, x.number))
	if err != nil {
		return err
	}
	if waiting != nil {
		tx.Delete(numberKey(kindWaiting, x.Device, x.number))
		tx.Set(numberKey(kindOpen, x.Device, x.number), there)
		t.Waiting--
		t.Open++
	}
	if err := c.become(tx, x, state); err != nil {
		return err
	}
	if t.Flight == x.number {
		c.landed(tx, t)
		c.ready(tx, t)
	}
	if t.Open <= c.waitingMax {
		return nil
	}
	n, ok, err := oldest(tx, kindOpen, t.device)
	if err != nil || !ok || n == x.number {
		return err
	}
	old, err := load(tx, t.device, n)
	if err != nil || old == nil {
		return err
	}
	old.Reason = message.CommandLimit
	if err := c.end(tx, t, old, serviceplatform.CommandExpired, fmt.Sprintf("delivered, and not answered, as %d others after it", c.waitingMax), nil); err != nil {
		return err
	}
	return old.save(tx)
}

// reply ends the command that it answers. What comes after the end is kept with it.
func (c *Commands) reply(tx component.Tx, m *message.Message, of, name, id string) error {
	x, err := find(tx, of, name, id)
	if err != nil {
		return err
	}
	if x == nil {
		return component.ErrNotMatched // no command, or one that ended long ago
	}
	r := &Reply{Message: m.ID, At: m.Recorded().UTC(), ContentType: m.ContentType, Bytes: len(m.Data)}
	if len(m.Data) <= replyMax && utf8.Valid(m.Data) {
		r.Data = string(m.Data)
	}
	if x.Ended() {
		if x.Reply != nil { // a device that got it twice answers twice
			return nil
		}
		if len(x.Late) < lateMax {
			x.Late = append(x.Late, *r)
		} else {
			x.LateMore++
		}
		if err := c.answer(tx, x, m); err != nil {
			return err
		}
		c.changed(tx, x)
		if err := x.save(tx); err != nil {
			return err
		}
		return c.tell(tx, x, r, true)
	}
	t, err := loadTarget(tx, of)
	if err != nil {
		return err
	}
	x.Reply, x.Times.Replied = r, r.At
	state, detail := verdict(m.Data)
	if err := c.answer(tx, x, m); err != nil {
		return err
	}
	if err := c.end(tx, t, x, state, detail, r); err != nil {
		return err
	}
	c.changed(tx, x)
	if err := x.save(tx); err != nil {
		return err
	}
	return t.save(tx)
}

// detailMax is how much of what a device says of a failure is kept as the detail.
const detailMax = 300

// verdict reads whether an answer is a no.
func verdict(data []byte) (state, detail string) {
	var a struct {
		OK    *bool           `json:"ok"`
		Error json.RawMessage `json:"error"`
	}
	if !bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{")) || json.Unmarshal(data, &a) != nil || a.OK == nil || *a.OK {
		return serviceplatform.CommandReplied, ""
	}
	detail = "the device says no"
	var text string
	if json.Unmarshal(a.Error, &text) == nil && text != "" {
		if len(text) > detailMax {
			text = string(bytes.ToValidUTF8([]byte(text[:detailMax]), nil)) + "…"
		}
		detail += ": " + text
	}
	return serviceplatform.CommandFailed, detail
}

// deleted ends the commands of a device that is no more.
func (c *Commands) deleted(tx component.Tx, m *message.Message) error {
	var d serviceplatform.DeviceChanged
	if err := json.Unmarshal(m.Data, &d); err != nil {
		return message.Reject(message.NotDecodable, err)
	}
	if d.Change != serviceplatform.Deleted || d.Device == "" {
		return component.ErrNotMatched
	}
	t, err := loadTarget(tx, d.Device)
	if err != nil {
		return err
	}
	var live []uint64
	for _, kind := range []byte{kindWaiting, kindOpen} {
		if err := tx.Scan(deviceKey(kind, d.Device), func(k, _ []byte) bool {
			_, n := place(k)
			live = append(live, n)
			return true
		}); err != nil {
			return err
		}
	}
	for _, n := range live {
		x, err := load(tx, d.Device, n)
		if err != nil {
			return err
		}
		if x == nil || x.Ended() {
			continue
		}
		if err := c.end(tx, t, x, serviceplatform.CommandCancelled, "the device was deleted by "+d.By, nil); err != nil {
			return err
		}
		c.changed(tx, x)
		if err := x.save(tx); err != nil {
			return err
		}
	}
	t.Online, t.Deaf, t.Since = false, "", m.Recorded().UTC()
	return t.save(tx)
}
