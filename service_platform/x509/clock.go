package x509

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
)

const (
	clockKey = "clock.seen" // in the trust table
	// clockLeap is how far the clock may get ahead of the one that was believed last: the sweep looks every hour.
	clockLeap = 24 * time.Hour
	// clockProof is how long this process must have run with a clock that leapt before that is believed: the machine was
	// off perhaps, and a clock that is wrong is noticed and put right meanwhile.
	clockProof = 24 * time.Hour
)

// clockSeen is the entry of the time that was believed last. It follows the clock back, so that a clock that was ahead
// for longer than the proof takes is not believed at once when it is ahead again.
type clockSeen struct {
	At time.Time `json:"at"`
}

// ahead is since when this process sees the clock ahead of the one that was believed last.
type ahead struct {
	is    bool
	since time.Duration // as service.uptime
}

// believeClock says whether what keeps somebody out may be forgotten by the clock, and remembers the time if so.
func (s *service) believeClock(ctx context.Context, o *opened) (bool, error) {
	now := s.env.Now().UTC()
	var seen clockSeen
	e, err := o.trust.Get(ctx, clockKey)
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return false, fmt.Errorf("read the time that was seen last: %w", err)
	}
	_ = json.Unmarshal(e.Value, &seen) // none, or one that cannot be read: the clock proves itself
	if now.After(seen.At.Add(clockLeap)) {
		if !o.ahead.is {
			o.ahead = ahead{true, s.uptime()}
			s.env.Log.Warn("the clock is far ahead of when it was looked at last; nothing that keeps a device out is forgotten by it until it has been so for a while; is it right?",
				"clock", stamp(now), "seen", stamp(seen.At), "until", clockProof)
		}
		if s.uptime()-o.ahead.since < clockProof {
			return false, nil
		}
	}
	o.ahead = ahead{}
	raw, err := json.Marshal(clockSeen{now})
	if err != nil {
		return false, err
	}
	if _, err := o.trust.Update(ctx, clockKey, raw, e.Revision); errors.Is(err, bus.ErrConflict) {
		return false, nil // another looks too, and sweeps
	} else if err != nil {
		return false, fmt.Errorf("remember the time: %w", err)
	}
	return true, nil
}
