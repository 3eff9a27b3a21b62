package x509

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
)

const (
	tokenPrefix   = "tokens." // and the device, as deviceKey writes it
	tokensMax     = 16        // of a device at once: more is a mistake that repeats itself
	tokenValidity = 24 * time.Hour
	tokenLongest  = 90 * 24 * time.Hour
)

// deviceTokens are a device's enrolment tokens, in one entry: whatever voids them voids all at once.
type deviceTokens struct {
	Device string           `json:"device"`
	Tokens []enrolmentToken `json:"tokens"`
}

// enrolmentToken lets a device enrol once. It is known by the hash of the token: 260 random bits want no slow hash. It is over
// when it expires, once the device has come in with what it was issued, and once the device is deleted or a certificate of
// it revoked (Device.TokensVoid).
type enrolmentToken struct {
	Hash     string    `json:"hash"`
	Made     time.Time `json:"made"`
	Expires  time.Time `json:"expires"`
	Validity Duration  `json:"validity,omitzero"`
	By       string    `json:"by"`
	// Key is the hash of the public key that it was used with. A device whose answer was lost may come again with the
	// same key; another key is refused.
	Key string `json:"key,omitempty"`
	// Issued is the fingerprint of the certificate that was issued last. Where that was withdrawn, the token is over.
	Issued string `json:"issued,omitempty"`
}

// TokenRequest is the request of POST /api/v1/devices/{id}/token.
type TokenRequest struct {
	Expires  *Duration `json:"expires,omitempty"` // from now; 24h where missing, 90d at most
	Validity Duration  `json:"validity,omitzero"` // of the certificate
	By       string    `json:"by,omitempty"`
}

// TokenGiven is its answer; the token is in it and nowhere else.
type TokenGiven struct {
	Device  string    `json:"device"`
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

func (s *service) addToken(o *opened, w http.ResponseWriter, r *http.Request) error {
	var in TokenRequest
	if err := read(w, r, &in); err != nil {
		return err
	}
	id := r.PathValue("id")
	if err := firstOf(authority.CheckDevice(id), checkText("by", in.By)); err != nil {
		return bad(err)
	}
	lasts := tokenValidity
	if in.Expires != nil {
		lasts = time.Duration(*in.Expires)
	}
	if lasts <= 0 || lasts > tokenLongest {
		return bad(fmt.Errorf("a token that expires in %s: more than nothing is wanted, and up to 90d are allowed", lasts))
	}
	if in.Validity != 0 && time.Duration(in.Validity) < time.Minute { // said now, and not when the device has used the token
		return bad(fmt.Errorf("a validity of %s is too short; a minute is the least", time.Duration(in.Validity)))
	}
	token := rand.Text() + rand.Text()
	t := enrolmentToken{Hash: tokenKey("", token), Expires: s.env.Now().Add(lasts).UTC(), Validity: in.Validity, By: by(in.By)}
	if err := o.giveToken(r.Context(), id, t, s.env.Now().UTC()); err != nil {
		return err
	}
	s.env.Log.Info("an enrolment token was given out", "device", id, "expires", t.Expires, "by", t.By)
	w.Header().Set("Cache-Control", "no-store")
	return answer(w, http.StatusCreated, TokenGiven{id, token, t.Expires})
}

// errToken says that a token lets nobody in; why is for the record, not for who sent it.
var errToken = errors.New("user or token is wrong")

// tokensKey is where a device's tokens are.
func tokensKey(device string) string {
	return tokenPrefix + strings.TrimPrefix(deviceKey(device), devicePrefix)
}

// readTokens gives none, at revision 0, where there is no entry.
func readTokens(ctx context.Context, t bus.Table, device string) (all deviceTokens, revision uint64, err error) {
	all.Device = device
	e, err := t.Get(ctx, tokensKey(device))
	if errors.Is(err, bus.ErrNotFound) {
		return all, 0, nil
	}
	if err == nil {
		err = json.Unmarshal(e.Value, &all)
	}
	if err != nil {
		return all, 0, fmt.Errorf("read the enrolment tokens of device %s: %w", device, err)
	}
	return all, e.Revision, nil
}

// changeTokens reads, changes and writes until nobody came between.
func changeTokens(ctx context.Context, t bus.Table, device string, f func(*deviceTokens) error) error {
	for {
		all, revision, err := readTokens(ctx, t, device)
		if err != nil {
			return err
		}
		before, err := json.Marshal(all)
		if err != nil {
			return err
		}
		if err := f(&all); err != nil {
			return err
		}
		raw, err := json.Marshal(all)
		if err != nil {
			return err
		}
		switch {
		case bytes.Equal(before, raw):
			return nil
		case len(all.Tokens) == 0:
			err = t.Delete(ctx, tokensKey(device), revision)
		default:
			_, err = t.Update(ctx, tokensKey(device), raw, revision)
		}
		if errors.Is(err, bus.ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("keep the enrolment tokens of device %s: %w", device, err)
		}
		return nil
	}
}

// voidUntil is when the tokens of a device were voided last, one that was deleted a moment ago among them; zero for never.
func (r *Registry) voidUntil(ctx context.Context, device string) (time.Time, error) {
	d, _, err := r.load(ctx, device)
	if errors.Is(err, ErrUnknownDevice) {
		err = nil
	}
	return d.TokensVoid, err
}

// giveToken keeps a new token, in the place of those that are over.
func (o *opened) giveToken(ctx context.Context, device string, t enrolmentToken, now time.Time) error {
	return changeTokens(ctx, o.trust, device, func(all *deviceTokens) error {
		void, err := o.registry.voidUntil(ctx, device)
		if err != nil {
			return err
		}
		all.Tokens = slices.DeleteFunc(all.Tokens, func(t enrolmentToken) bool { return now.After(t.Expires) || !t.Made.After(void) })
		if len(all.Tokens) >= tokensMax {
			first := slices.MinFunc(all.Tokens, func(a, b enrolmentToken) int { return a.Expires.Compare(b.Expires) })
			return fmt.Errorf("%w: device %s has %d enrolment tokens that are good; the first of them ends %s, and revoking the device's certificates voids all",
				ErrRefused, device, len(all.Tokens), stamp(first.Expires))
		}
		if t.Made = now; !t.Made.After(void) { // the clock went back since
			t.Made = void.Add(1)
		}
		all.Tokens = append(all.Tokens, t)
		return nil
	})
}

// dropTokens forgets a device's tokens that were made until then.
func (r *Registry) dropTokens(ctx context.Context, device string, until time.Time) error {
	return changeTokens(ctx, r.trust, device, func(all *deviceTokens) error {
		all.Tokens = slices.DeleteFunc(all.Tokens, func(t enrolmentToken) bool { return !t.Made.After(until) })
		return nil
	})
}

// checkToken says whether a token is good for a device.
func (o *opened) checkToken(ctx context.Context, device, token string, now time.Time) (t enrolmentToken, err error) {
	if authority.CheckDevice(device) != nil { // it has none, and no table is asked for whatever a stranger sends
		return t, fmt.Errorf("%w: the device has no such token", errToken)
	}
	all, _, err := readTokens(ctx, o.trust, device)
	if err != nil {
		return t, err
	}
	i := slices.IndexFunc(all.Tokens, func(t enrolmentToken) bool { return t.Hash == tokenKey("", token) })
	if i < 0 {
		return t, fmt.Errorf("%w: the device has no such token", errToken)
	}
	t = all.Tokens[i]
	if now.After(t.Expires) {
		return t, fmt.Errorf("%w: the token expired %s", errToken, stamp(t.Expires))
	}
	return t, o.tokenStands(ctx, device, t)
}

// tokenStands says whether what has become of the device leaves its token good.
func (o *opened) tokenStands(ctx context.Context, device string, t enrolmentToken) error {
	d, _, err := o.registry.load(ctx, device)
	switch {
	case errors.Is(err, ErrUnknownDevice): // not yet registered
		return nil
	case err != nil:
		return err
	case !t.Made.After(d.TokensVoid):
		return fmt.Errorf("%w: the device was deleted or a certificate of it revoked %s, which voids the tokens of before", errToken, stamp(d.TokensVoid))
	}
	for _, c := range d.Certs {
		switch {
		case t.Issued == "" || c.Fingerprint != t.Issued:
		case c.Revoked():
			return fmt.Errorf("%w: the certificate that was issued by the token was withdrawn", errToken)
		case !c.Awaited:
			return fmt.Errorf("%w: the device has come in with the certificate that was issued by the token", errToken)
		}
	}
	return nil
}

// bindToken uses a token up for all keys but this one, before anything is issued by it.
func (o *opened) bindToken(ctx context.Context, t *shownToken, csr *stdx509.CertificateRequest) error {
	h := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	key := hex.EncodeToString(h[:])
	return o.keepToken(ctx, t, func(t *enrolmentToken) error {
		if t.Key != "" && t.Key != key {
			return fmt.Errorf("%w: the token was used with another key", errToken)
		}
		t.Key = key
		return nil
	})
}

// keepToken changes a token that is still there.
func (o *opened) keepToken(ctx context.Context, t *shownToken, f func(*enrolmentToken) error) error {
	return changeTokens(ctx, o.trust, t.device, func(all *deviceTokens) error {
		i := slices.IndexFunc(all.Tokens, func(k enrolmentToken) bool { return k.Hash == t.is.Hash })
		if i < 0 {
			return fmt.Errorf("%w: the token was voided a moment ago", errToken)
		}
		if err := f(&all.Tokens[i]); err != nil {
			return err
		}
		t.is = all.Tokens[i]
		return nil
	})
}
