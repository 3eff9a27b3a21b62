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
	ID      message.ID
	Session message.ID
	Delay   time.Duration
	Life    time.Duration // its message expiry, from when it is said; zero for none
	Message *message.Message
}

// KeepWill writes a will down before its connection is answered, so that it outlives the node.
func (s *Store) KeepWill(ctx context.Context, w Will) error {
	return s.change(ctx, func(tx component.Tx) error {
		tx.Set(key(kindWill, w.ID), w.encode())
		return nil
	})
}

// DropWill forgets a will.
func (s *Store) DropWill(ctx context.Context, id message.ID) error {
	return s.changeSoon(ctx, func(tx component.Tx) error {
		tx.Delete(key(kindWill, id))
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
			w.ID = message.ID(k[1:])
			list = append(list, w)
			return true
		})
	})
	return list, errors.Join(err, bad)
}

// hasLife is a bit of the delay: the life follows.
const hasLife = 1 << 63

// encode writes its session (16 bytes), its delay (8, ms), its life (8, ms) where it has one, and its record.
func (w *Will) encode() []byte {
	b := append([]byte{}, w.Session[:]...)
	delay := uint64(w.Delay / time.Millisecond)
	if w.Life > 0 {
		b = binary.BigEndian.AppendUint64(b, delay|hasLife)
		b = binary.BigEndian.AppendUint64(b, uint64(w.Life/time.Millisecond))
	} else {
		b = binary.BigEndian.AppendUint64(b, delay)
	}
	return message.AppendRecord(b, w.Message)
}

func parseWill(v []byte) (w Will, err error) {
	if len(v) < 24 {
		return w, errors.New("a will in the store is cut short")
	}
	w.Session = message.ID(v[:16])
	delay, rest := binary.BigEndian.Uint64(v[16:]), v[24:]
	if delay&hasLife != 0 {
		if len(rest) < 8 {
			return w, errors.New("a will in the store is cut short")
		}
		w.Life, rest = time.Duration(binary.BigEndian.Uint64(rest))*time.Millisecond, rest[8:]
	}
	w.Delay = time.Duration(delay&^hasLife) * time.Millisecond
	var m message.Message
	if _, err = message.DecodeRecord(rest, &m); err != nil {
		return w, fmt.Errorf("a will in the store: %w", err)
	}
	w.Message = m.Clone()
	return w, nil
}

// MarkOnline writes down which devices are connected, and which are not any more.
func (s *Store) MarkOnline(ctx context.Context, marks map[string]bool) error {
	return s.changeSoon(ctx, func(tx component.Tx) error {
		for device, on := range marks {
			k := append([]byte{kindOnline}, device...)
			if on {
				tx.Set(k, []byte{1})
			} else {
				tx.Delete(k)
			}
		}
		return nil
	})
}

// Online are the devices that are written down as connected.
func (s *Store) Online() (list []string, err error) {
	err = s.env.View(func(v component.View) error {
		return v.Range([]byte{kindOnline}, []byte{kindOnline + 1}, false, func(k, _ []byte) bool {
			list = append(list, string(k[1:]))
			return true
		})
	})
	return list, err
}
