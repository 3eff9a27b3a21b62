package x509

import (
	"context"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
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

// issue has a certificate signed, unless its key was revoked.
func (o *opened) issue(ctx context.Context, r authority.Request) (*authority.Issued, error) {
	if r.Key != nil {
		if err := o.checkKey(ctx, r.Key); err != nil {
			return nil, err
		}
	}
	return o.authority.Issue(r)
}

// checkKey refuses a public key that was revoked.
func (o *opened) checkKey(ctx context.Context, public any) error {
	key, err := keyHash(public)
	if err != nil {
		return err
	}
	return checkRevokedKey(ctx, o.trust, key)
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
