package session

import (
	"encoding/json"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
)

// presences are where it is told whether devices are connected.
const presences = message.Pattern("device.*.presence")

// Version is larger than that of every presence that was told by any node, as far as this one has heard: it grows also
// where a node's clock is behind another's, or is set back.
func (s *Store) Version() uint64 {
	for {
		last := s.clock.Load()
		next := max(last+1, uint64(s.env.Now().UnixNano()))
		if s.clock.CompareAndSwap(last, next) {
			return next
		}
	}
}

// observe notes what another node's clock has shown.
func (s *Store) observe(version uint64) {
	for {
		last := s.clock.Load()
		if version <= last || s.clock.CompareAndSwap(last, version) {
			return
		}
	}
}

// hearPresence notes which node has told last that a device is connected: when that node is gone, another one tells that
// the device is not.
func (s *Store) hearPresence(tx component.Tx, m *message.Message) error {
	var p device.Presence
	if json.Unmarshal(m.Data, &p) != nil {
		return nil // it is kept to its contract where it is said
	}
	s.observe(p.Version)
	if s.cluster == nil || m.Device == "" {
		return nil
	}
	k := append([]byte{kindPresence}, m.Device...)
	v, err := tx.Get(k)
	if err != nil {
		return err
	}
	var last device.Presence
	if v != nil && json.Unmarshal(v, &last) == nil && last.Version >= p.Version {
		return nil
	}
	tx.Set(k, m.Data)
	return nil
}
