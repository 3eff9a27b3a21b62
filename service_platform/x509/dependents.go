package x509

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"
)

// Dependents is who holds certificates of a CA: what is to be known before it is trusted no more. It is the answer of GET
// /api/v1/ca/dependents?fingerprint=, of a root of the platform's own or of a registered CA.
type Dependents struct {
	Fingerprint string    `json:"fingerprint"`
	Name        string    `json:"name"`
	Devices     int       `json:"devices"`  // with a certificate in force below it
	ShutOut     int       `json:"shut_out"` // of these, those with no other that is in force: they will not get in
	Seen        int       `json:"seen"`     // devices that came in with a certificate of it within a day
	LastSeen    time.Time `json:"last_seen,omitzero"`
	Claims      int       `json:"claims"`             // claim certificates in force below it
	Examples    []string  `json:"examples,omitempty"` // some of those that will not get in
}

// examplesMax is enough to see which lot it is.
const examplesMax = 10

func (s *service) dependents(o *opened, w http.ResponseWriter, r *http.Request) error {
	d, ids, err := o.dependentsOf(r.Context(), r.URL.Query().Get("fingerprint"))
	if err != nil {
		return err
	}
	now := s.env.Now()
	below := func(c Certificate, ca string) bool { return ids[c.Issuer] || c.Issuer == "" && ca == d.Fingerprint }
	o.index.each(func(dev *Device) {
		if dev.Disabled {
			return
		}
		of, others := 0, 0
		for _, c := range dev.Certs {
			switch {
			case c.Revoked() || !now.Before(c.NotAfter) || !c.EndsAt.IsZero() && !now.Before(c.EndsAt):
			case below(c, dev.CA):
				of++
			default:
				others++
			}
		}
		if of == 0 {
			return
		}
		if d.Devices++; others == 0 {
			d.ShutOut++
			d.Examples = append(d.Examples, dev.ID)
		}
	})
	slices.Sort(d.Examples)
	d.Examples = d.Examples[:min(examplesMax, len(d.Examples))]
	seen := map[string]bool{}
	if err := eachAttempt(r.Context(), s.env.Bus, func(a *Attempt) {
		if a.Admitted && a.Fingerprint != "" && ids[a.CA] && !a.Claim {
			seen[a.Device] = true
			if a.Last.After(d.LastSeen) {
				d.LastSeen = a.Last
			}
		}
	}); err != nil {
		return err
	}
	d.Seen = len(seen)
	claims, err := o.claimList(r.Context())
	if err != nil {
		return err
	}
	for _, c := range claims {
		if ids[c.Issuer] && c.RevokedAt.IsZero() && now.Before(c.NotAfter) {
			d.Claims++
		}
	}
	return answer(w, http.StatusOK, d)
}

// dependentsOf finds a CA by its fingerprint, or the beginning of it, and gives the key identifiers of those that sign below it.
func (o *opened) dependentsOf(ctx context.Context, given string) (d Dependents, ids map[string]bool, err error) {
	all, err := o.trusted(ctx)
	if err != nil {
		return d, nil, err
	}
	registered, err := o.cas.List(ctx)
	if err != nil {
		return d, nil, err
	}
	known := fingerprints(all.Roots)
	for _, r := range registered {
		known = append(known, r.Fingerprint)
	}
	if d.Fingerprint, err = complete(given, known, ErrUnknownCA); err != nil {
		return d, nil, err
	}
	ids = map[string]bool{}
	for _, root := range all.Roots {
		if authority.Fingerprint(root.Raw) != d.Fingerprint {
			continue
		}
		if err := o.authority.MayRetire(d.Fingerprint); err != nil {
			return d, nil, err
		}
		d.Name = name(root)
		for _, c := range all.Issuing {
			if c.CheckSignatureFrom(root) == nil {
				ids[hex.EncodeToString(c.SubjectKeyId)] = true
			}
		}
		return d, ids, nil
	}
	for _, r := range registered {
		if r.Fingerprint == d.Fingerprint {
			d.Name = r.Name
			ids[r.KeyID()] = true
			return d, ids, nil
		}
	}
	return d, nil, fmt.Errorf("%w, and no root of the platform has the fingerprint %s; `naru ca status` lists them", ErrUnknownCA, d.Fingerprint)
}
