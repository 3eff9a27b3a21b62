package x509

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"
)

// overlapDefault is how long the certificate of before is accepted after a rotation where a request does not say: a
// device that sleeps through a week is still let in.
const overlapDefault = 7 * 24 * time.Hour

// Rotation is the request of POST /api/v1/devices/{id}/rotate: a new certificate beside the old one, which is accepted
// until the overlap has passed and then revoked.
type Rotation struct {
	CSR      string    `json:"csr,omitempty"` // PEM; without it the key pair is made here
	Validity Duration  `json:"validity,omitzero"`
	Overlap  *Duration `json:"overlap,omitempty"` // 7d where missing; 0s ends the old one at once
	By       string    `json:"by,omitempty"`
}

func (s *service) rotate(o *opened, w http.ResponseWriter, r *http.Request) error {
	var in Rotation
	if err := read(w, r, &in); err != nil {
		return err
	}
	overlap := overlapDefault
	if in.Overlap != nil {
		overlap = time.Duration(*in.Overlap)
	}
	if overlap < 0 || overlap > 366*24*time.Hour {
		return bad(fmt.Errorf("an overlap of %s is not between 0 and 366d", overlap))
	}
	id := r.PathValue("id")
	if _, err := o.registry.Get(r.Context(), id); err != nil {
		return err
	}
	return s.issue(o, w, r, Enrolment{ID: id, CSR: in.CSR, Validity: in.Validity, By: in.By}, &overlap)
}

// Import is the request of PUT /api/v1/devices/{id}: what an export gave. The device is registered where it is not, and
// its attributes, groups, policy and certificates added to what is there; the same import again changes nothing.
type Import struct {
	ID         string            `json:"id,omitempty"` // may be left out, or the path's
	Attributes map[string]string `json:"attributes,omitempty"`
	Groups     []string          `json:"groups,omitempty"`
	Policy     string            `json:"policy,omitempty"`
	Disabled   bool              `json:"disabled,omitempty"`
	Certs      []Certificate     `json:"certs,omitempty"`
	// CA and CreatedAt are how and since when it is registered, as Device has them: taken over where the device is new.
	CA        string    `json:"ca,omitempty"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	By        string    `json:"by,omitempty"`
}

func (s *service) put(o *opened, w http.ResponseWriter, r *http.Request) error {
	var in Import
	if err := read(w, r, &in); err != nil {
		return err
	}
	id := r.PathValue("id")
	if in.ID != "" && in.ID != id {
		return bad(fmt.Errorf("the path names device %q, the request %q", short(id), short(in.ID)))
	}
	if err := firstOf(authority.CheckDevice(id), checkText("by", in.By), checkText("policy", in.Policy), checkDescription(in.Groups, in.Attributes)); err != nil {
		return bad(err)
	}
	if err := checkOrigin(in.CA); err != nil {
		return bad(err)
	}
	if in.CreatedAt.After(s.env.Now().Add(24 * time.Hour)) { // another clock may be a little ahead
		return bad(fmt.Errorf("created_at %s is in the future", stamp(in.CreatedAt)))
	}
	if len(in.Certs) > certsMax {
		return bad(fmt.Errorf("device %s has %d certificates; %d is the most", id, len(in.Certs), certsMax))
	}
	for _, c := range in.Certs {
		if !isSum(c.Fingerprint) || authority.Fingerprint(nil) == c.Fingerprint {
			return bad(fmt.Errorf("fingerprint %q is not SHA-256 in lower-case hexadecimal digits", short(c.Fingerprint)))
		}
		if err := c.check(); err != nil {
			return bad(fmt.Errorf("the certificate %s %w", c.Fingerprint, err))
		}
		if of := o.index.owner(c.Fingerprint); of != "" && of != id {
			return fmt.Errorf("%w: the certificate %s is registered for device %s", ErrRefused, c.Fingerprint, of)
		}
	}
	warning, err := s.checkPolicy(r.Context(), o, in.Policy)
	if err != nil {
		return err
	}
	d, created, err := o.registry.Import(r.Context(), Registration{ID: id, Attributes: in.Attributes, Groups: in.Groups, Policy: in.Policy, By: by(in.By),
		CA: in.CA, CreatedAt: in.CreatedAt}, in.Certs, in.Disabled)
	if err != nil {
		return err
	}
	s.tell(r, o, id)
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	shown := s.changed(r, o, d)
	shown.Warning = warning
	return answer(w, status, shown)
}

// checkOrigin says what is wrong with a Device.CA of an import.
func checkOrigin(ca string) error {
	if template, ok := strings.CutPrefix(ca, claimedBy); ok {
		return checkPlain("ca: template", template)
	}
	if ca != "" && !isSum(ca) {
		return fmt.Errorf("ca %q is neither a CA's fingerprint nor claim: and a template", short(ca))
	}
	return nil
}

func isSum(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == 32 && hex.EncodeToString(raw) == s
}

// check says what is wrong with what an import states of a certificate, beside its fingerprint.
func (c Certificate) check() error {
	switch {
	case c.NotAfter.IsZero():
		return errors.New("has no not_after, which an export writes")
	case len(c.Serial) > 40 || strings.Trim(c.Serial, "0123456789abcdefABCDEF") != "":
		return fmt.Errorf("has the serial number %q, which is not one of up to 20 bytes in hexadecimal digits", short(c.Serial))
	case len(c.Issuer) > 128 || strings.Trim(c.Issuer, "0123456789abcdef") != "":
		return fmt.Errorf("has the issuer %q, which is no key identifier in hexadecimal digits", short(c.Issuer))
	case c.Key != "" && !isSum(c.Key):
		return fmt.Errorf("has the key %q, which is not SHA-256 in lower-case hexadecimal digits", short(c.Key))
	}
	return firstOf(checkText("name", c.Name), checkText("revoked_by", c.RevokedBy), checkText("reason", c.Reason))
}
