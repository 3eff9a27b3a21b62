package x509

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
)

// casShown is how many CAs are told apart: strangers come with as many as they like. The rest is one line.
const casShown = 100

// CAAttempts is what came of a CA's certificates at the doors, of a day at most: the answer of GET /api/v1/admissions/by-ca
// is a list of them, those that are known here first, then by how many were refused.
type CAAttempts struct {
	CA         string         `json:"ca"` // its key identifier, hexadecimal; empty for attempts without a certificate
	Name       string         `json:"name"`
	Known      bool           `json:"known"` // the platform's own, or a registered one
	Standing   Standing       `json:"standing,omitempty"`
	Others     int            `json:"others,omitempty"` // this line is of so many CAs together
	Admitted   int            `json:"admitted"`
	Refused    int            `json:"refused"`
	Reasons    map[string]int `json:"reasons,omitempty"`
	Devices    int            `json:"devices"`               // names that came with it
	Last       time.Time      `json:"last"`                  // somebody came
	LastReason string         `json:"last_reason,omitempty"` // of the newest refusal
	LastDetail string         `json:"last_detail,omitempty"`
	LastDevice string         `json:"last_device,omitempty"`

	refusedAt time.Time
	names     map[string]struct{}
}

func (c *CAAttempts) add(a *Attempt) {
	if a.Admitted {
		c.Admitted += a.Count
	} else {
		c.Refused += a.Count
		c.Reasons[a.Reason] += a.Count
		if a.Last.After(c.refusedAt) {
			c.refusedAt, c.LastReason, c.LastDetail, c.LastDevice = a.Last, a.Reason, a.Detail, a.Device
		}
	}
	if a.Last.After(c.Last) {
		c.Last = a.Last
	}
	c.names[a.Device] = struct{}{}
}

// attemptsByCA sums what every node recorded up by the CA whose certificate was shown.
func attemptsByCA(ctx context.Context, b bus.Bus, known map[string]Standing) ([]CAAttempts, error) {
	all := map[[2]string]*CAAttempts{} // a stranger's key identifier may be another's, so the name counts too
	err := eachAttempt(ctx, b, func(a *Attempt) {
		key := [2]string{a.CA, a.Issuer}
		c := all[key]
		if c == nil {
			c = &CAAttempts{CA: a.CA, Name: a.Issuer, Known: known[a.CA] != "", Standing: known[a.CA], Reasons: map[string]int{}, names: map[string]struct{}{}}
			all[key] = c
		}
		c.add(a)
	})
	if err != nil {
		return nil, err
	}
	list := make([]CAAttempts, 0, len(all))
	for _, c := range all {
		c.Devices = len(c.names)
		list = append(list, *c)
	}
	slices.SortFunc(list, func(a, b CAAttempts) int {
		if a.Known != b.Known {
			return map[bool]int{true: -1, false: 1}[a.Known]
		}
		return cmp.Or(cmp.Compare(b.Refused, a.Refused), cmp.Compare(a.Name, b.Name), cmp.Compare(a.CA, b.CA))
	})
	if len(list) <= casShown {
		return list, nil
	}
	rest := CAAttempts{Name: "others", Reasons: map[string]int{}}
	for _, c := range list[casShown-1:] {
		rest.Others++
		rest.Admitted, rest.Refused, rest.Devices = rest.Admitted+c.Admitted, rest.Refused+c.Refused, rest.Devices+c.Devices
		for r, n := range c.Reasons {
			rest.Reasons[r] += n
		}
		if c.Last.After(rest.Last) {
			rest.Last = c.Last
		}
	}
	return append(list[:casShown-1], rest), nil
}

func (s *service) admissionsByCA(o *opened, w http.ResponseWriter, r *http.Request) error {
	known, err := o.standings(r.Context())
	if err != nil {
		return err
	}
	list, err := attemptsByCA(r.Context(), s.env.Bus, known)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"cas": list})
}

// caNamed gives which attempts somebody means who names a CA: by its name, its key identifier, its certificate's fingerprint, or
// the first digits of one of these. It refuses what names neither a CA that is known here nor one whose certificate was shown.
func (s *service) caNamed(ctx context.Context, o *opened, given string) (func(*Attempt) bool, error) {
	keys, err := o.keysOf(ctx, given)
	if err != nil {
		return nil, err
	}
	is := func(a *Attempt) bool { return a.Issuer == given || keys[a.CA] || a.CA != "" && Means(given, a.CA) }
	shown := map[string]bool{} // a CA that begins so
	err = eachAttempt(ctx, s.env.Bus, func(a *Attempt) {
		if is(a) {
			shown[a.CA] = true
		}
	})
	if err == nil && len(shown)+len(keys) == 0 {
		err = fmt.Errorf("%w, and nobody came with a certificate of one within a day: %q is neither the name nor the beginning of a key identifier or a fingerprint; `naru why device --by-ca` lists whose certificates were shown", ErrUnknownCA, short(given))
	}
	return is, err
}

// keysOf gives the key identifiers of the CAs known here that somebody means; of a root, those of the CAs below it.
func (o *opened) keysOf(ctx context.Context, given string) (map[string]bool, error) {
	keys := map[string]bool{}
	all, err := o.trusted(ctx)
	if err != nil {
		return nil, err
	}
	registered, err := o.cas.List(ctx)
	if err != nil {
		return nil, err
	}
	note := func(key, called, fingerprint string) {
		if called == given || Means(given, fingerprint) || Means(given, key) {
			keys[key] = true
		}
	}
	for _, c := range all.Issuing {
		note(keyIDOf(c), name(c), authority.Fingerprint(c.Raw))
		for _, root := range all.Roots {
			if (name(root) == given || Means(given, authority.Fingerprint(root.Raw))) && c.CheckSignatureFrom(root) == nil {
				keys[keyIDOf(c)] = true
			}
		}
	}
	for _, r := range registered {
		note(r.KeyID(), r.Name, r.Fingerprint)
	}
	return keys, nil
}

// Standing is whether a CA that is known here may let anybody in; empty for one that is not known.
type Standing string

// The standings of a CA.
const (
	Trusted  Standing = "trusted"
	Disabled Standing = "disabled" // a registered one that is switched off
	Retired  Standing = "retired"  // below a root of the platform's own that was retired
	Removed  Standing = "removed"  // a registered one that was removed
)

// stateUntrusted is the state of a device that would be active, were its certificates' CA trusted.
const stateUntrusted = "untrusted"

// standings are those of the CAs that are known here, by key identifier: the platform's own, and those registered.
func (o *opened) standings(ctx context.Context) (map[string]Standing, error) {
	of := map[string]Standing{}
	all, err := o.trusted(ctx)
	if err != nil {
		return nil, err
	}
	registered, err := o.cas.List(ctx)
	if err != nil {
		return nil, err
	}
	removed, err := o.cas.removed(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range removed {
		of[r.Key] = Removed
	}
	for _, id := range all.RetiredKeys {
		of[id] = Retired
	}
	for _, r := range registered {
		if id := r.KeyID(); id != "" && r.Disabled {
			of[id] = Disabled
		}
	}
	for _, r := range registered { // of two by one key, one is enough
		if id := r.KeyID(); id != "" && !r.Disabled {
			of[id] = Trusted
		}
	}
	for _, c := range append(all.Issuing, all.Roots...) {
		of[hex.EncodeToString(c.SubjectKeyId)] = Trusted
	}
	return of, nil
}

// untrusted says why none of a device's certificates that are in force will be taken, where it is for their CA: Disabled,
// Retired or Removed. It is empty where one will be, where a certificate's CA is not known, and where none is in force.
func (d *Device) untrusted(of map[string]Standing, now time.Time) (why Standing) {
	for _, c := range d.Certs {
		if !c.InForce(now) {
			continue
		}
		if why = of[c.Issuer]; why == "" || why == Trusted {
			return ""
		}
	}
	return why
}

// stateOf is the device's state as it is felt at the door: State, or stateUntrusted with what became of the CA.
func (d *Device) stateOf(of map[string]Standing, now time.Time) (state string, why Standing) {
	if state = d.State(now); state == "active" {
		if why = d.untrusted(of, now); why != "" {
			state = stateUntrusted
		}
	}
	return state, why
}

// keyIDOf names a CA by its key: the key identifier in its certificate, else the beginning of the key's hash.
func keyIDOf(ca *stdx509.Certificate) string {
	if len(ca.SubjectKeyId) > 0 {
		return hex.EncodeToString(ca.SubjectKeyId)
	}
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:20])
}

// issuerChecksMax is how many signatures are checked to name a CA: strangers show certificates as they like.
const issuerChecksMax = 16

// issuerOf names the CA of a certificate: a registered one by whose key it was signed, itself or what was presented between;
// else by the key identifier that the certificate has of its issuer, or by the issuer's own certificate where that was
// presented. It is empty where nothing says it, and the issuer's name is all there is.
func (a *Admission) issuerOf(leaf *stdx509.Certificate, presented []*stdx509.Certificate) string {
	presented = presented[:min(len(presented), intermediatesMax)]
	checks := 0
	signed := func(c, by *stdx509.Certificate) bool {
		if !bytes.Equal(c.RawIssuer, by.RawSubject) || checks == issuerChecksMax {
			return false
		}
		checks++
		return c.CheckSignatureFrom(by) == nil
	}
	a.mu.RLock()
	cas, t := slices.Collect(maps.Values(a.cas)), a.trust
	a.mu.RUnlock()
	own := func(c *stdx509.Certificate) bool { return bytes.Equal(c.SubjectKeyId, leaf.AuthorityKeyId) }
	if len(leaf.AuthorityKeyId) > 0 && (len(cas) == 0 || t != nil && slices.ContainsFunc(t.bundle.Issuing, own)) {
		return hex.EncodeToString(leaf.AuthorityKeyId) // as nearly all do, and without a signature to be checked
	}
	between := func(c *stdx509.Certificate) *stdx509.Certificate {
		if i := slices.IndexFunc(presented, func(by *stdx509.Certificate) bool { return by != c && signed(c, by) }); i >= 0 {
			return presented[i]
		}
		return nil
	}
	c := leaf
	for range 1 + len(presented) {
		if i := slices.IndexFunc(cas, func(ca *registeredCA) bool { return signed(c, ca.cert) }); i >= 0 {
			return keyIDOf(cas[i].cert)
		}
		if len(cas) == 0 || len(presented) == 0 {
			break
		}
		if c = between(c); c == nil {
			break
		}
	}
	if len(leaf.AuthorityKeyId) > 0 {
		return hex.EncodeToString(leaf.AuthorityKeyId)
	}
	if by := between(leaf); by != nil {
		return keyIDOf(by)
	}
	return ""
}

// KeyID names the CA as Attempt.CA does; empty where its certificate cannot be read.
func (r RegisteredCA) KeyID() string {
	certs, err := authority.ParseCerts([]byte(r.Certificate))
	if err != nil {
		return ""
	}
	return keyIDOf(certs[0])
}
