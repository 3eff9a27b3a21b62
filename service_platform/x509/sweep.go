package x509

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
)

// sweepGrace is how long withdrawn certificates are remembered beyond their end. One that is forgotten lets a device that was
// deleted come back, if the clock that said so was ahead.
const sweepGrace = 30 * 24 * time.Hour

// sweep forgets what has ended by itself: withdrawn certificates, registration codes and tokens, and what was left behind.
// What keeps somebody out goes only by a clock that can be believed.
func (s *service) sweep(ctx context.Context, o *opened) error {
	now := s.env.Now()
	believed, err := s.believeClock(ctx, o)
	if err != nil {
		return err
	}
	if believed {
		for _, key := range o.withdrawn.ended(now.Add(-sweepGrace)) {
			if err := o.trust.Delete(ctx, key, 0); err != nil && !errors.Is(err, bus.ErrNotFound) {
				return fmt.Errorf("forget what has ended: %w", err)
			}
		}
		if err := s.sweepKeys(ctx, o); err != nil {
			return err
		}
	}
	for prefix, ended := range map[string]func([]byte) (bool, error){
		codePrefix: func(raw []byte) (bool, error) {
			var c registrationCode
			return json.Unmarshal(raw, &c) == nil && now.After(c.Expires), nil
		},
		tokenPrefix: func(raw []byte) (bool, error) {
			var t deviceTokens
			return json.Unmarshal(raw, &t) == nil && !slices.ContainsFunc(t.Tokens, func(t enrolmentToken) bool { return !now.After(t.Expires) }), nil
		},
	} {
		entries, err := bus.Entries(ctx, o.trust, prefix)
		if err != nil {
			return fmt.Errorf("forget what has ended: %w", err)
		}
		for _, e := range entries {
			over, err := ended(e.Value)
			if err != nil {
				return err
			}
			if !over {
				continue
			}
			if err := o.trust.Delete(ctx, e.Key, e.Revision); err != nil && !errors.Is(err, bus.ErrConflict) && !errors.Is(err, bus.ErrNotFound) {
				return fmt.Errorf("forget what has ended: %w", err)
			}
		}
	}
	if err := s.sweepOwners(ctx, o); err != nil {
		return err
	}
	return s.sweepWaiting(ctx, o)
}

// sweepWaiting forgets ownership tokens that have ended. A certificate that was given out to be provisioned, and was not, is
// withdrawn with its token.
func (s *service) sweepWaiting(ctx context.Context, o *opened) error {
	left := 0
	for _, key := range o.waiting.ended(s.env.Now()) {
		e, err := o.trust.Get(ctx, key)
		if errors.Is(err, bus.ErrNotFound) {
			o.waiting.apply(bus.Entry{Key: key, Deleted: true})
			continue
		}
		if err != nil {
			return fmt.Errorf("forget what has ended: %w", err)
		}
		var own ownership
		if json.Unmarshal(e.Value, &own) == nil {
			kept, err := s.withdrawUnclaimed(ctx, o, own, s.env.Now())
			if err != nil {
				return err
			}
			if !kept {
				left++
			}
		}
		switch err := o.trust.Delete(ctx, key, e.Revision); {
		case err == nil, errors.Is(err, bus.ErrNotFound):
			o.waiting.apply(bus.Entry{Key: key, Deleted: true})
		case !errors.Is(err, bus.ErrConflict):
			return fmt.Errorf("forget what has ended: %w", err)
		}
	}
	if left > 0 {
		s.env.Log.Warn("certificates were given out that nobody provisioned himself with, more than are kept for the revocation list; is a claim certificate in wrong hands?",
			"left_out", left, "kept", unclaimedMax)
	}
	return nil
}

// withdrawUnclaimed withdraws the certificate of an ownership token that has expired, unless it is a device's by now; it
// says whether there was room for it.
func (s *service) withdrawUnclaimed(ctx context.Context, o *opened, own ownership, now time.Time) (kept bool, err error) {
	if own.Done || own.Certificate == "" {
		return true, nil
	}
	certs, err := authority.ParseCerts([]byte(own.Certificate))
	if err != nil {
		return true, nil // not even its holder has it
	}
	c := recordOf(certs[0], now)
	if o.index.owner(c.Fingerprint) != "" { // registered, and the token could not be closed
		return true, nil
	}
	if !o.withdrawn.room() {
		return false, nil
	}
	err = o.registry.withdraw(ctx, c.Fingerprint, revokedCert{Device: name(certs[0]), Serial: c.Serial, Issuer: c.Issuer, NotAfter: c.NotAfter, At: now.UTC(), Unclaimed: true})
	return true, err
}
