package x509

import (
	"context"
	stdx509 "crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
)

// What is withdrawn stays so until it ends by itself, whatever becomes of the device: in a device's entry while there is
// room, and here afterwards, in the trust table under the certificate's fingerprint.
const (
	revokedPrefix = "revoked."
	// unclaimedMax is how many certificates are kept that were given out to be provisioned and were not. They admit
	// nobody anyway; beyond it they are left out of the revocation list, so that a claim certificate in wrong hands does
	// not fill the bus.
	unclaimedMax = 100_000
)

// revokedCert is a certificate that was withdrawn and is in no device's entry.
type revokedCert struct {
	Device    string    `json:"device"`
	Serial    string    `json:"serial"`
	Issuer    string    `json:"issuer,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	NotAfter  time.Time `json:"not_after"`
	At        time.Time `json:"at"`
	Unclaimed bool      `json:"unclaimed,omitempty"` // nobody provisioned himself with it
}

// keepRevoked remembers certificates of a device until they end, before they go from its entry. One that has ended by this
// clock is remembered too, until sweep believes that.
func (r *Registry) keepRevoked(ctx context.Context, device string, certs []Certificate) error {
	now := r.now()
	for _, c := range certs {
		at := c.RevokedAt
		if at.IsZero() {
			at = now.UTC()
		}
		if err := r.withdraw(ctx, c.Fingerprint, revokedCert{Device: device, Serial: c.Serial, Issuer: c.Issuer, Reason: c.Reason, NotAfter: c.NotAfter, At: at}); err != nil {
			return fmt.Errorf("withdraw the certificates of device %s: %w", device, err)
		}
	}
	return nil
}

func (r *Registry) withdraw(ctx context.Context, fingerprint string, c revokedCert) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	revision, err := r.trust.Put(ctx, revokedPrefix+fingerprint, raw)
	if err == nil && r.withdrew != nil {
		r.withdrew(bus.Entry{Key: revokedPrefix + fingerprint, Value: raw, Revision: revision})
	}
	return err
}

// checkWithdrawn gives ErrRefused for a certificate that was withdrawn: it does not come back.
func checkWithdrawn(ctx context.Context, t bus.Table, fingerprint string) error {
	switch _, err := t.Get(ctx, revokedPrefix+fingerprint); {
	case err == nil:
		return fmt.Errorf("%w: the certificate %s was withdrawn, and stays so; issue another", ErrRefused, fingerprint)
	case errors.Is(err, bus.ErrNotFound):
		return nil
	default:
		return fmt.Errorf("look for a withdrawn certificate: %w", err)
	}
}

// withdrawals holds them in memory, as small as they are for a revocation list, and follows the table. Claim
// certificates that were revoked are among them.
type withdrawals struct {
	mu        sync.RWMutex
	certs     map[fingerprint]withdrawal
	issuers   []string // key identifiers
	unclaimed int
	version   uint64
}

type withdrawal struct {
	serial    [20]byte // which RFC 5280 says is the longest
	length    uint8    // of it
	issuer    uint16   // in issuers
	reason    uint8    // RFC 5280, section 5.3.1
	claim     bool     // it is a claim certificate, which has an entry of its own
	unclaimed bool
	at, ends  int64 // Unix seconds
}

// apply takes an entry of the trust table over. What cannot be read is no certificate of a list.
func (x *withdrawals) apply(e bus.Entry) {
	prefix, sum, _ := strings.Cut(e.Key, ".")
	var fp fingerprint
	if n, err := hex.Decode(fp[:], []byte(sum)); err != nil || n != len(fp) {
		return
	}
	var c revokedCert
	ok, claim := !e.Deleted, prefix+"." == claimPrefix
	if claim {
		var k Claim
		ok = ok && json.Unmarshal(e.Value, &k) == nil && !k.RevokedAt.IsZero()
		c = revokedCert{Serial: k.Serial, Issuer: k.Issuer, NotAfter: k.NotAfter, At: k.RevokedAt}
	} else {
		ok = ok && json.Unmarshal(e.Value, &c) == nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	was, known := x.certs[fp]
	if known && was.unclaimed {
		x.unclaimed--
	}
	if !ok {
		if known {
			delete(x.certs, fp)
			x.version++
		}
		return
	}
	w := withdrawal{reason: crlReason(c.Reason), claim: claim, unclaimed: c.Unclaimed, at: c.At.Unix(), ends: c.NotAfter.Unix()}
	n, valid := new(big.Int).SetString(c.Serial, 16)
	if !valid || n.Sign() <= 0 || n.BitLen() > 8*len(w.serial) {
		w.length = 0 // withdrawn all the same
	} else {
		w.length = uint8(copy(w.serial[:], n.Bytes()))
	}
	i := slices.Index(x.issuers, c.Issuer)
	if i < 0 {
		if i = len(x.issuers); i > 1<<16-1 {
			return
		}
		x.issuers = append(x.issuers, c.Issuer)
	}
	w.issuer = uint16(i)
	if x.certs == nil {
		x.certs = map[fingerprint]withdrawal{}
	}
	if w.unclaimed {
		x.unclaimed++
	}
	if x.certs[fp] = w; w != was {
		x.version++
	}
}

// each calls f for each that has a serial number and has not ended.
func (x *withdrawals) each(now time.Time, f func(issuer string, e stdx509.RevocationListEntry)) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, w := range x.certs {
		if w.length > 0 && now.Unix() <= w.ends {
			f(x.issuers[w.issuer], stdx509.RevocationListEntry{SerialNumber: new(big.Int).SetBytes(w.serial[:w.length]),
				RevocationTime: time.Unix(w.at, 0).UTC(), ReasonCode: int(w.reason)})
		}
	}
}

// ended gives the keys of those that have ended by themselves. Claim certificates stay listed.
func (x *withdrawals) ended(now time.Time) (keys []string) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for fp, w := range x.certs {
		if now.Unix() > w.ends && !w.claim {
			keys = append(keys, revokedPrefix+hex.EncodeToString(fp[:]))
		}
	}
	return keys
}

func (x *withdrawals) state() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.version
}

// room says whether one more may be kept that nobody provisioned himself with.
func (x *withdrawals) room() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.unclaimed < unclaimedMax
}
