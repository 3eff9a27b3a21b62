package x509

import (
	"context"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	keyPrefix = "key." // and the hash of a public key
	// revokedKeyKept is how long a key is refused after the end of the certificate that it was revoked with: a key that
	// somebody else has does not become good by time, and a device lives ten years.
	revokedKeyKept = 10 * 365 * 24 * time.Hour
	keysSweptEvery = 24 * time.Hour // there may be a million
)

// revokedKey is a public key whose certificate an operator revoked: it is certified no more, in no way in.
type revokedKey struct {
	Device      string    `json:"device"` // or claim certificate
	Fingerprint string    `json:"fingerprint"`
	At          time.Time `json:"at"`
	Until       time.Time `json:"until"`
}

// keyHash names a public key: SHA-256 over its SubjectPublicKeyInfo, in lower-case hexadecimal digits.
func keyHash(key any) (string, error) {
	der, err := stdx509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("encode a public key: %w", err)
	}
	h := sha256.Sum256(der)
	return hex.EncodeToString(h[:]), nil
}

// condemn has a key refused from now on; twice is the same as once. An empty one is unknown, and nothing.
func condemn(ctx context.Context, t bus.Table, key string, k revokedKey) error {
	if key == "" {
		return nil
	}
	raw, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if _, err := t.Update(ctx, keyPrefix+key, raw, 0); err != nil && !errors.Is(err, bus.ErrConflict) {
		return fmt.Errorf("revoke a key: %w", err)
	}
	return nil
}

// checkRevokedKey refuses a key that was revoked.
func checkRevokedKey(ctx context.Context, t bus.Table, key string) error {
	if key == "" {
		return nil
	}
	e, err := t.Get(ctx, keyPrefix+key)
	if errors.Is(err, bus.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a revoked key: %w", err)
	}
	var k revokedKey
	_ = json.Unmarshal(e.Value, &k) // it is refused all the same
	return message.Reject(message.KeyRevoked, fmt.Errorf("%w: the key of this request is that of the certificate %s of %s, which was revoked %s; make a new key",
		ErrRefused, short(k.Fingerprint), k.Device, stamp(k.At)))
}

// issue has a certificate signed, unless its key was revoked, is a claim certificate's, or another device's. Whose device one
// is for that is to be provisioned is not known yet: that is looked at when it is registered.
func (o *opened) issue(ctx context.Context, r authority.Request) (*authority.Issued, error) {
	if r.Key != nil {
		if err := o.checkKey(ctx, r.Key, r.Kind, r.Device); err != nil {
			return nil, err
		}
	}
	return o.authority.Issue(r)
}

// checkKey refuses a public key that was revoked or is somebody else's.
func (o *opened) checkKey(ctx context.Context, public any, kind, device string) error {
	key, err := keyHash(public)
	if err != nil {
		return err
	}
	if err := checkRevokedKey(ctx, o.trust, key); err != nil {
		return err
	}
	switch kind {
	case authority.KindClaim: // of its own name perhaps, for other templates
		return o.otherDevices(key, "")
	case authority.KindProvisioned:
		return o.claimKeys.check(key)
	}
	return firstOf(o.claimKeys.check(key), o.otherDevices(key, device))
}

// otherDevices refuses the key of another device's certificate, which is not revoked.
func (o *opened) otherDevices(key, device string) error {
	for _, other := range o.index.holders(key) {
		if other != device {
			return fmt.Errorf("%w: the key of this request is that of device %s; make a new key, or delete that device first if this is the same one", ErrRefused, other)
		}
	}
	return nil
}

// claimKeys are the keys of claim certificates, which a whole lot has: none of them is a device's own. It follows the trust
// table, and hears of this process's own writes at once. The zero value is empty.
type claimKeys struct {
	mu  sync.RWMutex
	all map[string]Claim // by entry; few, one for a lot
}

func (k *claimKeys) apply(e bus.Entry) {
	var c Claim
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.Deleted || json.Unmarshal(e.Value, &c) != nil {
		delete(k.all, e.Key)
		return
	}
	if k.all == nil {
		k.all = map[string]Claim{}
	}
	k.all[e.Key] = Claim{Name: c.Name, Key: c.Key}
}

func (k *claimKeys) check(key string) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, c := range k.all {
		if err := c.checkKey(key); err != nil {
			return err
		}
	}
	return nil
}

// checkKey refuses the claim certificate's own key.
func (c Claim) checkKey(key string) error {
	if key == "" || c.Key != key {
		return nil
	}
	return fmt.Errorf("%w: the key is that of the claim certificate %s, which a whole lot has; make a key of the device's own", ErrRefused, c.Name)
}

// sweepKeys forgets revoked keys whose time is over, once in a while.
func (s *service) sweepKeys(ctx context.Context, o *opened) error {
	now := s.env.Now()
	if now.Before(o.keysSwept.Add(keysSweptEvery)) {
		return nil
	}
	entries, err := bus.Entries(ctx, o.trust, keyPrefix)
	if err != nil {
		return fmt.Errorf("forget revoked keys: %w", err)
	}
	for _, e := range entries {
		var k revokedKey
		if json.Unmarshal(e.Value, &k) != nil || !now.After(k.Until) {
			continue
		}
		if err := o.trust.Delete(ctx, e.Key, e.Revision); err != nil && !errors.Is(err, bus.ErrConflict) && !errors.Is(err, bus.ErrNotFound) {
			return fmt.Errorf("forget revoked keys: %w", err)
		}
	}
	o.keysSwept = now
	return nil
}
