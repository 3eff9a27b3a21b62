package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// work does what is due, a part of it, and says whether there is more.
func (c *Commands) work(ctx context.Context) (more bool, err error) {
	now := c.env.Now()
	released, rerr := c.release(ctx)
	expired, eerr := c.each(ctx, kindExpiry, now, c.expire)
	again, forgotten := 0, 0
	var aerr, ferr error
	if now.Sub(c.began) >= c.again { // what was said while the process was away is heard first
		again, aerr = c.each(ctx, kindAgain, now, c.once)
	}
	if now.Sub(c.ahead) >= houseEvery {
		if forgotten, ferr = c.each(ctx, kindEnded, now.Add(-c.age), c.sweep); forgotten < atOnce {
			c.ahead = now
		}
	}
	return max(released, expired, again, forgotten) == atOnce, errors.Join(rerr, eerr, aerr, ferr)
}

// release gives the devices that are ready their next commands.
func (c *Commands) release(ctx context.Context) (n int, err error) {
	keys, err := c.due([]byte{kindReady}, []byte{kindReady + 1})
	if err != nil {
		return 0, err
	}
	return len(keys), c.all(ctx, keys, func(tx component.Tx, key []byte) error {
		tx.Delete(key)
		return c.next(tx, string(key[1:len(key)-1]))
	})
}

// next releases a device's oldest command that waits, if it may have one.
func (c *Commands) next(tx component.Tx, of string) error {
	t, err := loadTarget(tx, of)
	if err != nil {
		return err
	}
	for t.Online && t.Deaf == "" && t.Flight == 0 && t.Waiting > 0 {
		n, ok, err := oldest(tx, kindWaiting, of)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%d commands wait, and none is there", t.Waiting)
		}
		x, err := load(tx, of, n)
		if err != nil {
			return err
		}
		if x == nil {
			return fmt.Errorf("command %d waits, and is not there", n)
		}
		if now := tx.Now(); !now.Before(x.Expires) {
			err = c.expired(tx, t, x)
		} else {
			err = c.hand(tx, t, x, now)
		}
		if err != nil {
			return err
		}
		c.changed(tx, x)
		if err := x.save(tx); err != nil {
			return err
		}
	}
	return t.save(tx)
}

// hand hands a command to the broker of the node where the device is. What cannot be handed over has failed.
func (c *Commands) hand(tx component.Tx, t *target, x *Command, now time.Time) error {
	out, err := release(tx, t, x, now)
	if err == nil {
		err = tx.Say(out)
	}
	var no *message.Rejection
	if errors.As(err, &no) {
		x.Reason = no.Reason
		return c.end(tx, t, x, serviceplatform.CommandFailed, "it cannot be handed to the broker: "+no.Error(), nil)
	}
	if err != nil {
		return err
	}
	x.Attempts++
	x.Release, x.Times.Released = out.ID, now.UTC()
	t.Flight, t.Again = x.number, now.Add(c.again)
	tx.Set(timeKey(kindAgain, t.Again, t.device, 0), there)
	return c.become(tx, x, serviceplatform.CommandReleased)
}

// release is the message that hands a command over.
func release(g getter, t *target, x *Command, now time.Time) (*message.Message, error) {
	m, err := request(g, x)
	if err != nil {
		return nil, err
	}
	out := &message.Message{
		ID: message.NewID(now), Subject: serviceplatform.CommandReleaseSubject(t.Node, x.Device, x.Name, x.ID), Type: m.Type, Device: x.Device, Trace: m.Trace,
		Time: m.Time, ContentType: m.ContentType, Schema: m.Schema, Expires: x.Expires, QoS: m.QoS, Text: m.Text,
		ReplyTo: device.ReplySubject(x.Device, x.Name, x.ID), Correlation: m.Correlation, Properties: m.Properties, Data: m.Data,
	}
	if len(out.Correlation) == 0 {
		out.Correlation = []byte(x.ID)
	}
	return out, out.Follow(m)
}

// request reads the message that a command is. One that cannot be decoded is a *message.Rejection.
func request(g getter, x *Command) (*message.Message, error) {
	raw, err := g.Get(numberKey(kindRequest, x.Device, x.number))
	if err != nil {
		return nil, err
	}
	m := new(message.Message)
	if _, err := message.DecodeRecord(slices.Clone(raw), m); err != nil {
		return nil, message.Rejectf(message.NotDecodable, "the message of command %s of %s as it is kept: %w", x.ID, x.Device, err)
	}
	return m, nil
}

// once has a command released once more of which nothing was heard.
func (c *Commands) once(tx component.Tx, key []byte) error {
	tx.Delete(key)
	of, _ := place(key[9:])
	t, err := loadTarget(tx, of)
	if err != nil || string(timeKey(kindAgain, t.Again, of, 0)) != string(key) {
		return err
	}
	if err := c.back(tx, t); err != nil {
		return err
	}
	c.ready(tx, t)
	return t.save(tx)
}

// each calls f for what is due of a kind.
func (c *Commands) each(ctx context.Context, kind byte, until time.Time, f func(tx component.Tx, key []byte) error) (n int, err error) {
	keys, err := c.due([]byte{kind}, atKey(kind, until))
	if err != nil {
		return 0, err
	}
	return len(keys), c.all(ctx, keys, f)
}

// all calls f for keys, in one commit. One that fails holds up no other: it is put aside, and told of.
func (c *Commands) all(ctx context.Context, keys [][]byte, f func(tx component.Tx, key []byte) error) error {
	change := func(keys [][]byte) error {
		if len(keys) == 0 {
			return nil
		}
		return c.env.Change(ctx, func(tx component.Tx) error {
			for _, k := range keys {
				if err := f(tx, k); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := change(keys)
	if err == nil || ctx.Err() != nil {
		return err
	}
	failed := map[string]error{}
	for _, k := range keys {
		if e := change([][]byte{k}); e != nil {
			failed[string(k)] = e
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if len(failed) == len(keys) && len(keys) > 1 {
		return err // it is not they
	}
	for k, e := range failed {
		c.aside[k] = c.env.Now().Add(asideFor)
		c.env.Log.Error("what is kept of a command or its device is of no use, and it stands still; the others go on", "key", fmt.Sprintf("%q", k), "again", asideFor, "error", e)
	}
	return nil
}
