package session

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// Will is what is said when a client is gone without a good-bye.
type Will struct {
	Session message.ID
	// Due is when it is to be said; zero while its connection lives.
	Due     time.Time
	Delay   time.Duration
	Message *message.Message
}

// KeepWill writes a will down before its connection is answered, so that it outlives the node.
func (s *Store) KeepWill(ctx context.Context, w Will) error {
	return s.change(ctx, func(tx component.Tx) error {
		tx.Set(key(kindWill, w.Session), w.encode())
		return nil
	})
}

// DropWill forgets a will.
func (s *Store) DropWill(ctx context.Context, session message.ID) error {
	return s.change(ctx, func(tx component.Tx) error {
		tx.Delete(key(kindWill, session))
		return nil
	})
}

// Wills are those that are written down.
func (s *Store) Wills() (list []Will, err error) {
	var bad error
	err = s.env.View(func(v component.View) error {
		return v.Range([]byte{kindWill}, []byte{kindWill + 1}, false, func(k, val []byte) bool {
			var w Will
			if w, bad = parseWill(val); bad != nil || len(k) != 17 {
				return false
			}
			w.Session = message.ID(k[1:])
			list = append(list, w)
			return true
		})
	})
	return list, errors.Join(err, bad)
}

// encode writes when it is due (8 bytes, Unix milliseconds, 0 for not yet), its delay (8, ms) and its record.
func (w *Will) encode() []byte {
	var due uint64
	if !w.Due.IsZero() {
		due = uint64(w.Due.UnixMilli())
	}
	b := binary.BigEndian.AppendUint64(nil, due)
	b = binary.BigEndian.AppendUint64(b, uint64(w.Delay/time.Millisecond))
	return message.AppendRecord(b, w.Message)
}

func parseWill(v []byte) (w Will, err error) {
	if len(v) < 16 {
		return w, errors.New("a will in the store is cut short")
	}
	if due := binary.BigEndian.Uint64(v); due > 0 {
		w.Due = time.UnixMilli(int64(due))
	}
	w.Delay = time.Duration(binary.BigEndian.Uint64(v[8:])) * time.Millisecond
	var m message.Message
	if _, err = message.DecodeRecord(v[16:], &m); err != nil {
		return w, fmt.Errorf("a will in the store: %w", err)
	}
	w.Message = m.Clone()
	return w, nil
}
