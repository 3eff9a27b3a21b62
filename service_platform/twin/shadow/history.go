package shadow

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
)

// The kinds of records.
const (
	Created = "created"
	Updated = "updated"
	Deleted = "deleted"
)

var kinds = []string{Created, Updated, Deleted}

// Record is what a message changed: one of a shadow's history.
type Record struct {
	// Number counts the records of a shadow from 1; Version is the document's after it.
	Number  uint64
	Version uint64
	Kind    string
	By      Cause
	Trace   message.TraceID
	Changes []Change
}

// At is when the platform accepted the message.
func (r *Record) At() time.Time { return r.By.At() }

// Record is the update's record; nil where it changed nothing.
func (u *Update) Record(trace message.TraceID) *Record {
	if u.After.Changes == u.Before.Changes {
		return nil
	}
	r := &Record{Number: u.After.Changes, Version: u.After.Version, Kind: Updated, By: u.After.Last(), Trace: trace, Changes: u.Changes}
	if !u.Before.Exists() {
		r.Kind = Created
	}
	return r
}

// Removal is the record of the shadow's deletion, with all that it was.
func (d *Doc) Removal(by Cause, trace message.TraceID) *Record {
	by.Source = CutSource(by.Source)
	m := merger{}
	m.section("/desired", d.desired, true, nil)
	m.section("/reported", d.reported, true, nil)
	return &Record{Number: d.Changes + 1, Version: d.Version, Kind: Deleted, By: by, Trace: trace, Changes: m.changes}
}

// Paths are those of the changes.
func (r *Record) Paths() []string {
	paths := make([]string, len(r.Changes))
	for i, c := range r.Changes {
		paths[i] = c.Path
	}
	return paths
}

// A record is kept as one value:
//
//	1 byte   format, 1
//	16 bytes id of the message, which also says when it was
//	16 bytes id of its trace
//	uvarint  version
//	1 byte   kind: 0 created, 1 updated, 2 deleted
//	text     source
//	uvarint  number of changes; each path, before and after, as texts
//
// Its number is in its key.
const recordFormat = 1

// Append writes the record behind b.
func (r *Record) Append(b []byte) []byte {
	b = append(b, recordFormat)
	b = append(b, r.By.ID[:]...)
	b = append(b, r.Trace[:]...)
	b = binary.AppendUvarint(b, r.Version)
	b = append(b, byte(slices.Index(kinds, r.Kind)))
	b = appendText(b, r.By.Source)
	b = binary.AppendUvarint(b, uint64(len(r.Changes)))
	for _, c := range r.Changes {
		b = appendText(appendText(appendText(b, c.Path), c.Before), c.After)
	}
	return b
}

// DecodeRecord reads a record.
func DecodeRecord(number uint64, b []byte) (*Record, error) {
	p := reader{s: string(b)}
	if f := p.byte(); f != recordFormat {
		return nil, fmt.Errorf("shadow record of format %d; this program knows %d", f, recordFormat)
	}
	r := &Record{Number: number}
	copy(r.By.ID[:], p.text(16))
	copy(r.Trace[:], p.text(16))
	r.Version = p.uvarint()
	kind := int(p.byte())
	if kind >= len(kinds) {
		return nil, errCorrupt
	}
	r.Kind = kinds[kind]
	r.By.Source = p.text(p.uvarint())
	r.Changes = make([]Change, p.count(3))
	for i := range r.Changes {
		r.Changes[i] = Change{p.text(p.uvarint()), p.text(p.uvarint()), p.text(p.uvarint())}
	}
	return r, p.end()
}

// RecordTime is when the message of a record was accepted; it reads no more than that of it.
func RecordTime(b []byte) time.Time {
	var id message.ID
	if len(b) <= len(id) {
		return time.Time{}
	}
	copy(id[:], b[1:])
	return id.Time()
}

// Past is a shadow's state as it was: what is left of a document when its history is walked backwards.
type Past struct {
	Exists            bool
	desired, reported []node
}

// Past begins with the document as it is.
func (d *Doc) Past() *Past {
	return &Past{Exists: d.Exists(), desired: d.desired, reported: d.reported}
}

// Undo goes to where the state was before a record. The records must come newest first, none left out.
func (p *Past) Undo(r *Record) error {
	for _, c := range r.Changes {
		if c.After != "" {
			if err := p.set(c.Path, ""); err != nil {
				return err
			}
		}
	}
	for _, c := range r.Changes {
		if c.Before != "" {
			if err := p.set(c.Path, c.Before); err != nil {
				return err
			}
		}
	}
	p.Exists = r.Kind != Created
	return nil
}

// State is desired and reported, as JSON.
func (p *Past) State() []byte {
	return (&Doc{desired: p.desired, reported: p.reported}).State()
}

func (p *Past) set(path, text string) error {
	names := strings.Split(path, "/")
	if len(names) < 3 || names[0] != "" {
		return fmt.Errorf("%q is no path in a shadow's state", path)
	}
	for i := range names {
		names[i] = strings.ReplaceAll(strings.ReplaceAll(names[i], "~1", "/"), "~0", "~")
	}
	section := &p.desired
	if names[1] == "reported" {
		section = &p.reported
	}
	*section = put(*section, names[2:], text)
	return nil
}

// put gives the fields with a value set, or removed where the text is empty. What it does not touch it shares.
func put(fields []node, names []string, text string) []node {
	i, there := slices.BinarySearchFunc(fields, names[0], func(n node, key string) int { return compare(n.key, key) })
	n := node{key: names[0], text: text}
	if len(names) > 1 {
		var under []node
		if there {
			under = fields[i].fields
		}
		n = node{key: names[0], fields: put(under, names[1:], text)}
	}
	if n.text == "" && len(n.fields) == 0 {
		if !there {
			return fields
		}
		return slices.Delete(slices.Clone(fields), i, i+1)
	}
	if there {
		fields = slices.Clone(fields)
		fields[i] = n
		return fields
	}
	return slices.Insert(slices.Clone(fields), i, n)
}
