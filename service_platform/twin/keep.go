package twin

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/service_platform/twin/shadow"
)

// The kinds of keys. A twin is named by its device, a zero byte and its shadow, neither of which can hold a zero byte.
const (
	kindTwin       = 't' // twin: its document
	kindRecord     = 'h' // twin, zero, number: a record of its history
	kindConflicts  = 'c' // twin: its refused updates, JSON
	kindDrift      = 'd' // twin: since when it drifts
	kindExpiry     = 'x' // time, twin: when it was deleted
	kindGone       = 'g' // device: when it was deleted
	kindGoneExpiry = 'y' // time, device
	kindCounts     = 'n' // how many twins there are, and how many drift
)

func (r ref) append(k []byte) []byte { return append(append(append(k, r.device...), 0), r.shadow...) }

func twinKey(r ref) []byte         { return r.append(append(make([]byte, 0, 32), kindTwin)) }
func conflictKey(r ref) []byte     { return r.append([]byte{kindConflicts}) }
func driftKey(r ref) []byte        { return r.append([]byte{kindDrift}) }
func goneKey(dev string) []byte    { return append([]byte{kindGone}, dev...) }
func recordPrefix(r ref) []byte    { return append(r.append([]byte{kindRecord}), 0) }
func devicePrefix(d string) []byte { return append(append([]byte{kindTwin}, d...), 0) }

func recordKey(r ref, number uint64) []byte {
	return binary.BigEndian.AppendUint64(recordPrefix(r), number)
}

func expiryKey(at time.Time, r ref) []byte { return r.append(appendTime([]byte{kindExpiry}, at)) }

func goneExpiryKey(at time.Time, dev string) []byte {
	return append(appendTime([]byte{kindGoneExpiry}, at), dev...)
}

// parseTwinKey reads the twin behind a key's first byte.
func parseTwinKey(k []byte) ref {
	device, name, _ := strings.Cut(string(k[1:]), "\x00")
	return ref{device, name}
}

// parseRecordKey reads a record's twin and number.
func parseRecordKey(k []byte) (ref, uint64) {
	n := len(k) - 9
	return parseTwinKey(k[:n]), binary.BigEndian.Uint64(k[n+1:])
}

func appendTime(b []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(t.UnixNano()))
}

func timeOf(b []byte) time.Time { return time.Unix(0, int64(binary.BigEndian.Uint64(b))) }

// getter is what a Tx and a View have in common.
type getter interface {
	Get(key []byte) ([]byte, error)
}

func load(g getter, r ref) (*shadow.Doc, error) {
	v, err := g.Get(twinKey(r))
	if err != nil {
		return nil, err
	}
	return decode(r, v)
}

func decode(r ref, v []byte) (*shadow.Doc, error) {
	d, err := shadow.Decode(v)
	if err != nil {
		return nil, fmt.Errorf("read the twin %s of %s: %w", r.called(), r.device, err)
	}
	return d, nil
}

// store writes a document in place of another one, and what is known beside it.
func (t *Twins) store(tx component.Tx, r ref, was, is *shadow.Doc) error {
	k, v := twinKey(r), is.Append(make([]byte, 0, 512))
	t.cache.wrote(string(k), v)
	tx.Set(k, v)
	if !was.Deleted.IsZero() {
		tx.Delete(expiryKey(was.Deleted, r))
	}
	if !is.Deleted.IsZero() {
		tx.Set(expiryKey(is.Deleted, r), nil)
	}
	if !was.Drift.Equal(is.Drift) {
		if is.Drift.IsZero() {
			tx.Delete(driftKey(r))
		} else {
			tx.Set(driftKey(r), appendTime(nil, is.Drift))
		}
	}
	return addCounts(tx, one(is.Exists())-one(was.Exists()), one(!is.Drift.IsZero())-one(!was.Drift.IsZero()))
}

func one(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// counts is how many twins there are, and how many drift.
func counts(g getter) (twins, drifting int64, err error) {
	v, err := g.Get([]byte{kindCounts})
	if len(v) == 16 {
		twins, drifting = int64(binary.BigEndian.Uint64(v)), int64(binary.BigEndian.Uint64(v[8:]))
	}
	return twins, drifting, err
}

func addCounts(tx component.Tx, twins, drifting int64) error {
	if twins == 0 && drifting == 0 {
		return nil
	}
	t, d, err := counts(tx)
	if err != nil {
		return err
	}
	tx.Set([]byte{kindCounts}, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(t+twins)), uint64(d+drifting)))
	return nil
}

func conflicts(g getter, r ref) ([]Conflict, error) {
	v, err := g.Get(conflictKey(r))
	if err != nil || v == nil {
		return nil, err
	}
	var list []Conflict
	if err := json.Unmarshal(v, &list); err != nil {
		return nil, fmt.Errorf("read the conflicts of the twin %s of %s: %w", r.called(), r.device, err)
	}
	return list, nil
}
