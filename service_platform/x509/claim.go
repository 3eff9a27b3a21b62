package x509

import (
	"context"
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

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	claimPrefix   = "claim."
	claimPeer     = "claim/"                 // in front of its name, where a listener is told of it
	claimValidity = 2 * 365 * 24 * time.Hour // a claim certificate is built into a production lot
)

// Claim is a claim certificate: a whole production lot carries the same, and it is good for nothing but asking for a
// certificate of one's own by one of its templates.
type Claim struct {
	Fingerprint string    `json:"fingerprint"`
	Name        string    `json:"name"`
	Templates   []string  `json:"templates"`
	Serial      string    `json:"serial"`
	Issuer      string    `json:"issuer"`        // its key identifier
	Key         string    `json:"key,omitempty"` // as Certificate.Key
	NotAfter    time.Time `json:"not_after"`
	CreatedAt   time.Time `json:"created_at"`
	By          string    `json:"by"`
	RevokedAt   time.Time `json:"revoked_at,omitzero"`
}

func (a *Admission) applyClaim(e bus.Entry) {
	var fp fingerprint
	if n, err := hex.Decode(fp[:], []byte(strings.TrimPrefix(e.Key, claimPrefix))); err != nil || n != len(fp) {
		return
	}
	var c Claim
	ok := !e.Deleted && json.Unmarshal(e.Value, &c) == nil
	a.mu.Lock()
	was, known := a.claims[fp]
	if ok {
		a.claims[fp] = c
	} else {
		delete(a.claims, fp)
	}
	a.mu.Unlock()
	if known && was.RevokedAt.IsZero() && (!ok || !c.RevokedAt.IsZero()) {
		a.tell(claimPeer + was.Name)
	}
}

// claimed looks a claim certificate up.
func (a *Admission) claimed(fp fingerprint) (who Admitted, known bool, err error) {
	a.mu.RLock()
	c, known := a.claims[fp]
	a.mu.RUnlock()
	if known && !c.RevokedAt.IsZero() {
		return who, true, message.Rejectf(message.CertRevoked, "claim certificate %q was revoked %s", c.Name, stamp(c.RevokedAt))
	}
	return Admitted{Claim: c.Name}, known, nil
}

// ClaimRequest is the request of POST /api/v1/claims.
type ClaimRequest struct {
	Name      string   `json:"name"`
	Templates []string `json:"templates"`
	Validity  Duration `json:"validity,omitzero"`
	CSR       string   `json:"csr,omitempty"`
	By        string   `json:"by,omitempty"`
}

// CheckClaim says whether a claim certificate may have this name.
func CheckClaim(name string) error { return checkPlain("claim name", name) }

func (s *service) addClaim(o *opened, w http.ResponseWriter, r *http.Request) error {
	var in ClaimRequest
	if err := read(w, r, &in); err != nil {
		return err
	}
	if err := firstOf(CheckClaim(in.Name), checkText("by", in.By)); err != nil {
		return bad(err)
	}
	if len(in.Templates) == 0 || len(in.Templates) > parametersMax {
		return bad(fmt.Errorf("a claim certificate is for one template at least, and %d at most", parametersMax))
	}
	for _, t := range in.Templates {
		if t == "" {
			return bad(errors.New("a template has no name"))
		}
		if err := o.checkTemplate(t); err != nil {
			return bad(err)
		}
		if err := s.checkTemplatePolicy(r.Context(), o, t); err != nil {
			return err
		}
	}
	req := Request{Device: in.Name, Kind: kindClaim, Validity: time.Duration(in.Validity)}
	if req.Validity == 0 {
		req.Validity = claimValidity
	}
	if in.CSR != "" {
		csr, err := ParseRequest(in.Name, []byte(in.CSR))
		if err != nil {
			return bad(err)
		}
		req.Key = csr.PublicKey
	}
	issued, err := o.issue(r.Context(), req)
	if errors.Is(err, ErrRefused) || errors.Is(err, errAway) {
		return err
	}
	if err != nil {
		return bad(err)
	}
	cert := issued.record(s.env.Now())
	c := Claim{Fingerprint: cert.Fingerprint, Name: in.Name, Templates: in.Templates, Serial: cert.Serial, Issuer: cert.Issuer, Key: cert.Key, NotAfter: cert.NotAfter,
		CreatedAt: s.env.Now().UTC(), By: by(in.By)}
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if _, err := o.trust.Put(r.Context(), claimPrefix+c.Fingerprint, raw); err != nil {
		return fmt.Errorf("register the claim certificate %s: %w", c.Name, err)
	}
	s.env.Log.Info("a claim certificate was issued", "claim", c.Name, "fingerprint", c.Fingerprint, "templates", c.Templates, "by", c.By)
	return o.enrolled(w, http.StatusCreated, Enrolled{ID: c.Name, Created: true}, issued)
}

func (s *service) claims(o *opened, w http.ResponseWriter, r *http.Request) error {
	list, err := o.claimList(r.Context())
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, list)
}

func (o *opened) claimList(ctx context.Context) ([]Claim, error) {
	entries, err := bus.Entries(ctx, o.trust, claimPrefix)
	if err != nil {
		return nil, fmt.Errorf("list the claim certificates: %w", err)
	}
	list := []Claim{}
	for _, e := range entries {
		var c Claim
		if err := json.Unmarshal(e.Value, &c); err != nil {
			return nil, fmt.Errorf("the claim certificate %s cannot be read: %w", e.Key, err)
		}
		list = append(list, c)
	}
	return list, nil
}

func (s *service) revokeClaim(o *opened, w http.ResponseWriter, r *http.Request) error {
	key := claimPrefix + r.PathValue("fingerprint")
	for {
		c, revision, err := o.claim(r.Context(), r.PathValue("fingerprint"))
		if err != nil {
			return err
		}
		if c.RevokedAt.IsZero() {
			c.RevokedAt = s.env.Now().UTC()
		}
		if err := condemn(r.Context(), o.trust, c.Key, revokedKey{claimPeer + c.Name, c.Fingerprint, c.RevokedAt, c.NotAfter.Add(revokedKeyKept)}); err != nil {
			return err
		}
		raw, err := json.Marshal(c)
		if err != nil {
			return err
		}
		if _, err = o.trust.Update(r.Context(), key, raw, revision); errors.Is(err, bus.ErrConflict) {
			continue
		} else if err != nil {
			return err
		}
		o.withdrawn.apply(bus.Entry{Key: key, Value: raw})
		s.env.Log.Info("a claim certificate was revoked", "claim", c.Name, "fingerprint", c.Fingerprint)
		return answer(w, http.StatusOK, c)
	}
}

// claim reads a claim certificate's entry.
func (o *opened) claim(ctx context.Context, fingerprint string) (c Claim, revision uint64, err error) {
	if len(fingerprint) != 2*sha256.Size || strings.Trim(fingerprint, "0123456789abcdef") != "" {
		return c, 0, fmt.Errorf("%w: %q is no fingerprint of a claim certificate", ErrUnknownDevice, short(fingerprint))
	}
	e, err := o.trust.Get(ctx, claimPrefix+fingerprint)
	if errors.Is(err, bus.ErrNotFound) {
		return c, 0, fmt.Errorf("%w: no claim certificate %s", ErrUnknownDevice, fingerprint)
	}
	if err == nil {
		err = json.Unmarshal(e.Value, &c)
	}
	return c, e.Revision, err
}

// may says whether the claim certificate of a client is still good for a template; any where that is empty.
func (o *opened) may(ctx context.Context, leaf *stdx509.Certificate, template string) (Claim, error) {
	c, _, err := o.claim(ctx, Fingerprint(leaf.Raw))
	switch {
	case err != nil:
		return c, err
	case !c.RevokedAt.IsZero():
		return c, fmt.Errorf("%w: claim certificate %s was revoked", ErrRefused, c.Name)
	case template != "" && !slices.Contains(c.Templates, template):
		return c, fmt.Errorf("%w: claim certificate %s is not for template %q", ErrRefused, c.Name, short(template))
	}
	return c, nil
}
