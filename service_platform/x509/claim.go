package x509

import (
	"context"
	"crypto"
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
	// Certificate is the certificate itself, DER, for a request that is repeated; what is shown leaves it out.
	Certificate []byte `json:"certificate,omitempty"`
}

// InForce says whether it is good for anything.
func (c Claim) InForce(now time.Time) bool { return c.RevokedAt.IsZero() && now.Before(c.NotAfter) }

func (a *Admission) applyClaim(e bus.Entry) {
	var fp fingerprint
	if n, err := hex.Decode(fp[:], []byte(strings.TrimPrefix(e.Key, claimPrefix))); err != nil || n != len(fp) {
		return
	}
	var c Claim
	ok := !e.Deleted && json.Unmarshal(e.Value, &c) == nil
	c.Certificate = nil // the door has no use for it
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

// checkClaimKey refuses the key of a claim certificate.
func (a *Admission) checkClaimKey(key string) error {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, c := range a.claims {
		if err := c.checkKey(key); err != nil {
			return err
		}
	}
	return nil
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
	// Another makes one more of a name that a claim certificate in force has already.
	Another bool `json:"another,omitempty"`
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
	req := authority.Request{Device: in.Name, Kind: authority.KindClaim, Validity: time.Duration(in.Validity)}
	if req.Validity == 0 {
		req.Validity = claimValidity
	}
	if in.CSR != "" {
		csr, err := authority.ParseRequest(in.Name, []byte(in.CSR))
		if err != nil {
			return bad(err)
		}
		req.Key = csr.PublicKey
	}
	turn := o.asking.turn(claimPeer + in.Name)
	turn.Lock()
	defer turn.Unlock()
	if given, err := o.claimedBefore(r.Context(), in, req.Key, s.env.Now()); err != nil {
		return err
	} else if given != nil {
		return o.enrolled(w, http.StatusOK, Enrolled{ID: in.Name}, given)
	}
	issued, err := o.issue(r.Context(), req)
	if errors.Is(err, ErrRefused) || errors.Is(err, errAway) {
		return err
	}
	if err != nil {
		return bad(err)
	}
	cert := recordOf(issued.Certificate, s.env.Now())
	c := Claim{Fingerprint: cert.Fingerprint, Name: in.Name, Templates: in.Templates, Serial: cert.Serial, Issuer: cert.Issuer, Key: cert.Key, NotAfter: cert.NotAfter,
		CreatedAt: s.env.Now().UTC(), By: by(in.By), Certificate: issued.Certificate.Raw}
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if _, err := o.trust.Put(r.Context(), claimPrefix+c.Fingerprint, raw); err != nil {
		return fmt.Errorf("register the claim certificate %s: %w", c.Name, err)
	}
	o.claimKeys.apply(bus.Entry{Key: claimPrefix + c.Fingerprint, Value: raw})
	s.env.Log.Info("a claim certificate was issued", "claim", c.Name, "fingerprint", c.Fingerprint, "templates", c.Templates, "by", c.By)
	return o.enrolled(w, http.StatusCreated, Enrolled{ID: c.Name, Created: true}, issued)
}

// claimedBefore is the certificate in force that was issued under a claim's name for this very key; nil where none has the
// name. It gives ErrRefused where another has it, unless that is meant: nobody could tell the two apart.
func (o *opened) claimedBefore(ctx context.Context, in ClaimRequest, key crypto.PublicKey, now time.Time) (*authority.Issued, error) {
	list, err := o.claimList(ctx)
	if err != nil {
		return nil, err
	}
	sum := ""
	if key != nil {
		if sum, err = keyHash(key); err != nil {
			return nil, bad(err)
		}
	}
	var others []Claim
	for _, c := range list {
		if c.Name != in.Name || !c.InForce(now) {
			continue
		}
		if sum != "" && c.Key == sum && slices.Equal(slices.Sorted(slices.Values(c.Templates)), slices.Sorted(slices.Values(in.Templates))) {
			if given, err := o.chained(c.Certificate); given != nil || err != nil {
				return given, err
			}
		}
		others = append(others, c)
	}
	if len(others) > 0 && !in.Another {
		return nil, fmt.Errorf("%w: there is a claim certificate %s already: %s; withdraw that with `naru ca claim revoke`, choose another name, or make one more with --another",
			ErrRefused, in.Name, words(others))
	}
	return nil, nil
}

// words names claim certificates whose name is known.
func words(claims []Claim) string {
	var b strings.Builder
	for i, c := range claims {
		if i > 0 {
			b.WriteString(", and ")
		}
		fmt.Fprintf(&b, "%s (made %s, valid until %s)", c.Fingerprint, c.CreatedAt.Format(time.DateOnly), c.NotAfter.Format(time.DateOnly))
	}
	return b.String()
}

func (s *service) claims(o *opened, w http.ResponseWriter, r *http.Request) error {
	list, err := o.claimList(r.Context())
	if err != nil {
		return err
	}
	for i := range list {
		list[i].Certificate = nil
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
			o.unread.tell("a claim certificate cannot be read; it is not listed, and admits nobody", e, err)
			continue
		}
		list = append(list, c)
	}
	return list, nil
}

// RevokedClaim is the answer of POST /api/v1/claims/{claim}/revoke.
type RevokedClaim struct {
	Claim
	// Others of the same name are in force still.
	Others []Claim `json:"others,omitempty"`
}

// revokeClaim withdraws a claim certificate, by its fingerprint, the beginning of that, or its name.
func (s *service) revokeClaim(o *opened, w http.ResponseWriter, r *http.Request) error {
	list, err := o.claimList(r.Context())
	if err != nil {
		return err
	}
	fingerprint, err := claimMeant(r.PathValue("claim"), list, s.env.Now())
	if err != nil {
		return err
	}
	for {
		c, revision, err := o.claim(r.Context(), fingerprint)
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
		key := claimPrefix + c.Fingerprint
		if _, err = o.trust.Update(r.Context(), key, raw, revision); errors.Is(err, bus.ErrConflict) {
			continue
		} else if err != nil {
			return err
		}
		o.withdrawn.apply(bus.Entry{Key: key, Value: raw})
		s.env.Log.Info("a claim certificate was revoked", "claim", c.Name, "fingerprint", c.Fingerprint)
		done := RevokedClaim{Claim: c}
		done.Certificate = nil
		for _, other := range list {
			if other.Name == c.Name && other.Fingerprint != c.Fingerprint && other.InForce(s.env.Now()) {
				other.Certificate = nil
				done.Others = append(done.Others, other)
			}
		}
		return answer(w, http.StatusOK, done)
	}
}

// claimMeant is the fingerprint of the claim certificate that somebody names: by its name, its fingerprint, or the beginning
// of that. Of a name that several have it is the one in force; where several are, he has to say which.
func claimMeant(given string, list []Claim, now time.Time) (string, error) {
	var all []string
	var named, inForce []Claim
	for _, c := range list {
		all = append(all, c.Fingerprint)
		if c.Name != given {
			continue
		}
		if named = append(named, c); c.InForce(now) {
			inForce = append(inForce, c)
		}
	}
	if len(named) == 0 {
		return complete(given, all, ErrUnknownClaim)
	}
	if f, err := complete(given, all, ErrUnknownClaim); err == nil && !slices.ContainsFunc(named, func(c Claim) bool { return c.Fingerprint == f }) {
		return "", fmt.Errorf("%w: %s is a name, and the beginning of the fingerprint %s of another claim certificate; write more of the fingerprint: %s", ErrRefused, given, f, words(named))
	}
	if len(inForce) == 0 {
		inForce = named
	}
	if len(inForce) > 1 {
		return "", fmt.Errorf("%w: %d claim certificates are named %s; say by its fingerprint which: %s", ErrRefused, len(inForce), given, words(inForce))
	}
	return inForce[0].Fingerprint, nil
}

// ErrUnknownClaim says that there is no such claim certificate.
var ErrUnknownClaim = errors.New("no such claim certificate")

// claim reads a claim certificate's entry, by the whole fingerprint.
func (o *opened) claim(ctx context.Context, fingerprint string) (c Claim, revision uint64, err error) {
	e, err := o.trust.Get(ctx, claimPrefix+fingerprint)
	if errors.Is(err, bus.ErrNotFound) {
		return c, 0, fmt.Errorf("%w: %s", ErrUnknownClaim, fingerprint)
	}
	if err == nil {
		err = json.Unmarshal(e.Value, &c)
	}
	return c, e.Revision, err
}

// may says whether the claim certificate of a client is still good for a template; any where that is empty.
func (o *opened) may(ctx context.Context, leaf *stdx509.Certificate, template string) (Claim, error) {
	c, _, err := o.claim(ctx, authority.Fingerprint(leaf.Raw))
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
