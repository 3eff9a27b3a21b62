package x509

import (
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
	"time"

	"github.com/naru-platform/naru/bus"
)

const (
	tokenPrefix   = "token."
	tokenValidity = 24 * time.Hour
	tokenLongest  = 90 * 24 * time.Hour
)

// enrolmentToken lets a device enrol once, under the hash of the token: 260 random bits want no slow hash.
type enrolmentToken struct {
	Device   string    `json:"device"`
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
	Expires  Duration `json:"expires,omitzero"`  // from now; 24h where missing, 90d at most
	Validity Duration `json:"validity,omitzero"` // of the certificate
	By       string   `json:"by,omitempty"`
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
	if err := firstOf(CheckDevice(id), checkText("by", in.By)); err != nil {
		return bad(err)
	}
	lasts := time.Duration(in.Expires)
	if lasts == 0 {
		lasts = tokenValidity
	}
	if lasts < 0 || lasts > tokenLongest {
		return bad(fmt.Errorf("a token that expires in %s: up to 90d are allowed", lasts))
	}
	if in.Validity != 0 && time.Duration(in.Validity) < time.Minute { // said now, and not when the device has used the token
		return bad(fmt.Errorf("a validity of %s is too short; a minute is the least", time.Duration(in.Validity)))
	}
	t := enrolmentToken{Device: id, Expires: s.env.Now().Add(lasts).UTC(), Validity: in.Validity, By: by(in.By)}
	raw, err := json.Marshal(t)
	if err != nil {
		return err
	}
	token := rand.Text() + rand.Text()
	if _, err := o.trust.Update(r.Context(), tokenKey(tokenPrefix, token), raw, 0); err != nil {
		return fmt.Errorf("keep an enrolment token: %w", err)
	}
	s.env.Log.Info("an enrolment token was given out", "device", id, "expires", t.Expires, "by", t.By)
	w.Header().Set("Cache-Control", "no-store")
	return answer(w, http.StatusCreated, TokenGiven{id, token, t.Expires})
}

// errToken says that a token lets nobody in; why is for the record, not for who sent it.
var errToken = errors.New("user or token is wrong")

// checkToken says whether a token is good for a device.
func (o *opened) checkToken(ctx context.Context, device, token string, now time.Time) (t enrolmentToken, revision uint64, err error) {
	e, err := o.trust.Get(ctx, tokenKey(tokenPrefix, token))
	if errors.Is(err, bus.ErrNotFound) {
		return t, 0, fmt.Errorf("%w: no such token", errToken)
	}
	if err == nil {
		err = json.Unmarshal(e.Value, &t)
	}
	switch {
	case err != nil:
		return t, 0, fmt.Errorf("look up an enrolment token: %w", err)
	case t.Device != device:
		return t, 0, fmt.Errorf("%w: the token is for another device", errToken)
	case now.After(t.Expires):
		return t, 0, fmt.Errorf("%w: the token expired %s", errToken, stamp(t.Expires))
	}
	return t, e.Revision, nil
}

// bindToken uses a token up for all keys but this one, before anything is issued by it. A device that comes again is
// refused where what it was given was withdrawn, and the device deleted perhaps.
func (o *opened) bindToken(ctx context.Context, t *shownToken, csr *stdx509.CertificateRequest) error {
	h := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	key := hex.EncodeToString(h[:])
	switch {
	case t.is.Key == "":
		t.is.Key = key
		return o.keepToken(ctx, t)
	case t.is.Key != key:
		return fmt.Errorf("%w: the token was used with another key", errToken)
	case t.is.Issued == "":
		return nil
	}
	d, err := o.registry.Get(ctx, t.is.Device)
	if err != nil && !errors.Is(err, ErrUnknownDevice) {
		return err
	}
	err = checkWithdrawn(ctx, o.trust, t.is.Issued)
	if slices.ContainsFunc(d.Certs, func(c Certificate) bool { return c.Fingerprint == t.is.Issued && c.Revoked() }) || errors.Is(err, ErrRefused) {
		return fmt.Errorf("%w: the certificate that was issued by the token was withdrawn", errToken)
	}
	return err
}

// keepToken writes a token as it is now.
func (o *opened) keepToken(ctx context.Context, t *shownToken) error {
	raw, err := json.Marshal(t.is)
	if err != nil {
		return err
	}
	t.revision, err = o.trust.Update(ctx, tokenKey(tokenPrefix, t.text), raw, t.revision)
	if errors.Is(err, bus.ErrConflict) {
		return fmt.Errorf("%w: the token is being used at this moment", errToken)
	}
	return err
}
