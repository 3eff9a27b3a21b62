package command

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// The keys of the store. A device's name ends with a zero byte, which no name has; numbers are of a device's commands, from 1.
const (
	kindDevice  = 'd' // device: a target
	kindCommand = 'c' // device, number: a Command
	kindRequest = 'm' // device, number: the message that it is, a record
	kindIndex   = 'i' // device, name, command id: the number
	kindTime    = 'l' // id of the message: device and number, the newest last
	kindWaiting = 'w' // device, number: is to be delivered
	kindOpen    = 'o' // device, number: delivered and not answered
	kindOver    = 'x' // device, number: has ended
	kindExpiry  = 'e' // time, device, number: lives until then
	kindEnded   = 'h' // time, device, number: has ended then
	kindAgain   = 't' // time, device: is released once more then, if nothing is heard
	kindReady   = 'r' // device: something may be released
	kindCounts  = 'N' // counts by state
)

// there is the value of a key that says all by itself.
var there = []byte{1}

func deviceKey(kind byte, device string) []byte {
	k := make([]byte, 0, 1+len(device)+1+8)
	return append(append(append(k, kind), device...), 0)
}

func numberKey(kind byte, device string, n uint64) []byte {
	return binary.BigEndian.AppendUint64(deviceKey(kind, device), n)
}

func indexKey(device, name, id string) []byte {
	return append(append(append(deviceKey(kindIndex, device), name...), 0), id...)
}

func timeKey(kind byte, at time.Time, device string, n uint64) []byte {
	return append(atKey(kind, at), numberKey(kind, device, n)[1:]...)
}

// atKey is before all keys of the kind that are of this time or later.
func atKey(kind byte, at time.Time) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, uint64(at.UnixNano()))
}

// place reads device and number at the end of a key.
func place(k []byte) (device string, n uint64) {
	return string(k[:len(k)-9]), binary.BigEndian.Uint64(k[len(k)-8:])
}

// target is a device, as far as commands go.
type target struct {
	device string

	Online  bool       `json:"online,omitempty"`
	Since   time.Time  `json:"since,omitzero"` // it is so
	Session message.ID `json:"session,omitzero"`
	Node    string     `json:"node,omitempty"`
	Version uint64     `json:"version,omitempty"` // of the last presence
	// Deaf is why it gets nothing although it is there.
	Deaf       string `json:"deaf,omitempty"`
	Subscribed uint64 `json:"subscribed,omitempty"` // version of the last receipt that it has subscribed to something
	Last       uint64 `json:"last,omitempty"`       // number of its newest command
	Waiting    int    `json:"waiting,omitempty"`
	Open       int    `json:"open,omitempty"`
	Over       int    `json:"over,omitempty"`
	// Flight is the number of the command that is released and not acknowledged; zero for none. Again is when it is released
	// once more.
	Flight uint64    `json:"flight,omitempty"`
	Again  time.Time `json:"again,omitzero"`
}

// Command is a command as it is kept, and shown.
type Command struct {
	number uint64

	Device   string          `json:"device"`
	Name     string          `json:"name"`
	ID       string          `json:"id"`
	State    string          `json:"state"`
	Reason   message.Reason  `json:"reason,omitempty"`
	Detail   string          `json:"detail,omitempty"`
	Message  message.ID      `json:"message"` // that it is
	Trace    message.TraceID `json:"trace"`
	Source   string          `json:"source"`
	Depth    uint8           `json:"depth,omitempty"`
	QoS      byte            `json:"qos"`
	Bytes    int             `json:"bytes"`
	Expires  time.Time       `json:"expires"`
	Times    Times           `json:"times"`
	Attempts int             `json:"attempts"`            // how often it was released
	Release  message.ID      `json:"release,omitzero"`    // the message that released it last
	Client   string          `json:"client,omitempty"`    // that acknowledged it
	Reply    *Reply          `json:"reply,omitempty"`     // the device's answer
	Late     []Reply         `json:"late,omitempty"`      // answers that came after the end, the first ones
	LateMore int             `json:"late_more,omitempty"` // beyond those
	Unsaid   string          `json:"unsaid,omitempty"`    // why the answer is not on the response topic that the sender has named
}

// Times are when a command came to its states, the last time where more than once.
type Times struct {
	Queued    time.Time `json:"queued"`
	Released  time.Time `json:"released,omitzero"`
	Sent      time.Time `json:"sent,omitzero"`
	Delivered time.Time `json:"delivered,omitzero"`
	Replied   time.Time `json:"replied,omitzero"`
	Ended     time.Time `json:"ended,omitzero"`
}

// Reply is a device's answer.
type Reply struct {
	Message     message.ID `json:"message"`
	At          time.Time  `json:"at"`
	ContentType string     `json:"content_type,omitempty"`
	Bytes       int        `json:"bytes"`
	Data        string     `json:"data,omitempty"` // nothing of one that is no text, or too large; the log has it
}

const (
	replyMax = 16 << 10 // bytes of an answer that are kept with its command
	lateMax  = 4        // answers after the end
)

// Ended says that the command's state does not change any more.
func (x *Command) Ended() bool { return !x.Times.Ended.IsZero() }

// getter reads: a transaction, or a view.
type getter interface {
	Get(key []byte) ([]byte, error)
}

func loadTarget(g getter, device string) (*target, error) {
	t := &target{}
	v, err := g.Get(deviceKey(kindDevice, device))
	if err == nil && v != nil {
		err = json.Unmarshal(v, t)
	}
	if err != nil {
		return nil, fmt.Errorf("read what is known of %s: %w", device, err)
	}
	t.device = strings.Clone(device)
	return t, nil
}

func (t *target) save(tx component.Tx) error {
	v, err := json.Marshal(t)
	if err == nil {
		tx.Set(deviceKey(kindDevice, t.device), v)
	}
	return err
}

// load gives nil where there is no such command.
func load(g getter, device string, n uint64) (*Command, error) {
	v, err := g.Get(numberKey(kindCommand, device, n))
	if v == nil || err != nil {
		return nil, err
	}
	x := &Command{number: n}
	if err := json.Unmarshal(v, x); err != nil {
		return nil, fmt.Errorf("read command %d of %s: %w", n, device, err)
	}
	return x, nil
}

func (x *Command) save(tx component.Tx) error {
	v, err := json.Marshal(x)
	if err == nil {
		tx.Set(numberKey(kindCommand, x.Device, x.number), v)
	}
	return err
}

// find looks a command up by its subject; nil where it is not known, or not any more.
func find(g getter, device, name, id string) (*Command, error) {
	v, err := g.Get(indexKey(device, name, id))
	if len(v) != 8 || err != nil {
		return nil, err
	}
	return load(g, device, binary.BigEndian.Uint64(v))
}

// forget deletes all that is stored of a command.
func forget(tx component.Tx, x *Command) {
	for _, kind := range []byte{kindCommand, kindRequest, kindWaiting, kindOpen, kindOver} {
		tx.Delete(numberKey(kind, x.Device, x.number))
	}
	tx.Delete(indexKey(x.Device, x.Name, x.ID))
	tx.Delete(append([]byte{kindTime}, x.Message[:]...))
	tx.Delete(timeKey(kindExpiry, x.Expires, x.Device, x.number))
	tx.Delete(timeKey(kindEnded, x.Times.Ended, x.Device, x.number))
}

// oldest gives the lowest number that a device has of a kind.
func oldest(tx component.Tx, kind byte, device string) (n uint64, ok bool, err error) {
	err = tx.Scan(deviceKey(kind, device), func(k, _ []byte) bool {
		_, n = place(k)
		ok = true
		return false
	})
	return n, ok, err
}

// due gives the first keys of a range, without those that are put aside.
func (c *Commands) due(from, to []byte) (keys [][]byte, err error) {
	now := c.env.Now()
	maps.DeleteFunc(c.aside, func(_ string, until time.Time) bool { return !now.Before(until) })
	err = c.env.View(func(v component.View) error {
		return v.Range(from, to, false, func(k, _ []byte) bool {
			if _, is := c.aside[string(k)]; !is {
				keys = append(keys, slices.Clone(k))
			}
			return len(keys) < atOnce
		})
	})
	return keys, err
}
