// Package shadow is a twin's document as a pure function: AWS IoT's Device Shadow protocol without its service. It does
// no I/O and knows no clock but an argument, so the same requests give the same documents, bytes and answers.
//
// The protocol is that of https://docs.aws.amazon.com/iot/latest/developerguide/device-shadow-document.html and of the
// pages beside it. Where they leave something open, this package decides:
//
//   - Names are kept sorted by their bytes, also within arrays. Of a name that comes twice the last one counts.
//   - Numbers are compared as numbers: 1, 1.0 and 10e-1 are equal, of any size, and are kept as they were written.
//   - An object that loses its last field is removed with it; an empty object that was written as such is a value.
//   - null removes what is there. Where there is nothing, or something that has no fields, it does nothing.
//   - "state": null removes both sections. The document stays, and its version rises as with each update.
//   - A node of state beside desired and reported is refused as AWS does; other fields of the request are ignored.
//   - Levels are counted within a section: each object or array in another one is a level.
//   - A field is stamped with the time its message was accepted; an answer with the time it is given.
//
// Beside what AWS keeps, a document knows for each of its values which message wrote it last and which one changed it.
package shadow

import (
	"slices"
	"time"

	"github.com/naru-platform/naru/message"
)

// VersionKept is how long a deleted shadow's version is remembered: one that is made anew in that time goes on from it.
const VersionKept = 48 * time.Hour

// TokenMax is the longest client token, in bytes.
const TokenMax = 64

// NameMax is the longest name of a shadow, in bytes.
const NameMax = 64

// sourceMax bounds what is kept of a message's source, in bytes.
const sourceMax = 128

// CutSource is what is kept of a message's source.
func CutSource(s string) string { return s[:min(len(s), sourceMax)] }

// Limits are what a request and the document that follows from it must keep.
type Limits struct {
	// Request is how many bytes a request may have.
	Request int
	// State is how many bytes desired and reported may have together, as JSON without space; metadata does not count.
	State int
	// Depth is how many levels a section may have below itself.
	Depth int
}

// Defaults are AWS's limits; of the two depths it names, 6 in an error and 8 in a quota, the wider one.
var Defaults = Limits{Request: 128 << 10, State: 8 << 10, Depth: 8}

// Cause is a message that wrote something.
type Cause struct {
	// ID is the message's; it says when that was, too.
	ID message.ID `json:"message"`
	// Source is who said it; what is beyond 128 bytes is cut off.
	Source string `json:"source"`
}

// At is when the platform accepted the message.
func (c Cause) At() time.Time { return c.ID.Time() }

// Doc is a document at a version. It does not change: an update gives another one. The zero Doc is that of a shadow that
// never was.
type Doc struct {
	// Version rises by one with each update; 0 where there was none.
	Version uint64
	// Deleted is when the shadow was deleted; zero where it was not. Of a deleted one only Version and Changes are left.
	Deleted time.Time
	// Changes counts the updates and deletions that changed the state. It numbers the records of its history.
	Changes uint64
	// Drift is since when something desired is not reported, the oldest such field; zero where there is none. Whole seconds.
	Drift time.Time

	desired, reported []node
	causes            []Cause
	last              int32 // the cause of the last update
}

// Exists says whether there is a shadow.
func (d *Doc) Exists() bool { return d.Version > 0 && d.Deleted.IsZero() }

// Last is the message that updated it last.
func (d *Doc) Last() Cause {
	if !d.Exists() {
		return Cause{}
	}
	return d.causes[d.last]
}

// at is the document as it is at a time: a deletion long ago is as if there had never been a shadow.
func (d *Doc) at(now time.Time) *Doc {
	if !d.Deleted.IsZero() && now.Sub(d.Deleted) >= VersionKept {
		return &Doc{Changes: d.Changes}
	}
	return d
}

// node is a field. One with a text is a value: a scalar, an array, or the object without fields; else it is an object,
// and has fields, in the order of their names.
type node struct {
	key    string
	text   string // canonical JSON; "null" in requests only
	fields []node
	wrote  int32 // of a value: the cause that wrote it last,
	change int32 // and the one that made it what it is
}

const (
	null        = "null"
	emptyObject = "{}"
)

func (n *node) value() bool  { return n.text != "" }
func (n *node) null() bool   { return n.text == null }
func (n *node) object() bool { return n.text == "" || n.text == emptyObject }
func (n *node) array() bool  { return n.text != "" && n.text[0] == '[' }

// find gives the field of a name; nil where there is none.
func find(fields []node, key string) *node {
	i, ok := slices.BinarySearchFunc(fields, key, func(n node, key string) int { return compare(n.key, key) })
	if !ok {
		return nil
	}
	return &fields[i]
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
