package x509

import (
	"context"
	stdx509 "crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

const (
	bodyMax    = 64 << 10 // a request with an RSA 8192 csr and full attributes takes a quarter of it
	listMax    = 1000
	textMax    = 200
	defaultBy  = "operator"
	retryAfter = "1"
	storageLow = "storage_low: the bus's disk is nearly full; free some space or shorten retention, and do it again"
)

func (s *service) routes() []component.Route {
	with := func(f func(*opened, http.ResponseWriter, *http.Request) error) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			o := s.open.Load()
			if o == nil {
				w.Header().Set("Retry-After", retryAfter)
				problem(w, http.StatusServiceUnavailable, "the CA is starting")
				return
			}
			if err := f(o, w, r); err != nil {
				s.refuse(w, r, err)
			}
		})
	}
	return []component.Route{
		{Pattern: "POST /api/v1/devices", Handler: with(s.enrol)},
		{Pattern: "GET /api/v1/devices", Handler: with(s.list)},
		{Pattern: "GET /api/v1/devices/{id}", Handler: with(s.show)},
		{Pattern: "PUT /api/v1/devices/{id}", Handler: with(s.put)},
		{Pattern: "PATCH /api/v1/devices/{id}", Handler: with(s.patch)},
		{Pattern: "POST /api/v1/devices/{id}/rotate", Handler: with(s.rotate)},
		{Pattern: "GET /api/v1/ca/crl", Handler: with(s.crl), Public: true},
		{Pattern: "DELETE /api/v1/devices/{id}", Handler: with(s.remove)},
		{Pattern: "POST /api/v1/devices/{id}/revoke", Handler: with(s.revoke)},
		{Pattern: "POST /api/v1/devices/{id}/disable", Handler: with(s.disable(true))},
		{Pattern: "POST /api/v1/devices/{id}/enable", Handler: with(s.disable(false))},
		{Pattern: "GET /api/v1/ca", Handler: with(s.ca), Public: true},
		{Pattern: "POST /api/v1/devices/{id}/token", Handler: with(s.addToken)},
		{Pattern: "POST /api/v1/claims", Handler: with(s.addClaim)},
		{Pattern: "GET /api/v1/claims", Handler: with(s.claims)},
		{Pattern: "POST /api/v1/claims/{claim}/revoke", Handler: with(s.revokeClaim)},
		{Pattern: "GET /api/v1/admissions", Handler: with(s.admissions)},
		{Pattern: "GET /api/v1/admissions/by-ca", Handler: with(s.admissionsByCA)},
		{Pattern: "GET /api/v1/ca/status", Handler: with(s.caStatus)},
		{Pattern: "GET /api/v1/ca/dependents", Handler: with(s.dependents)},
		{Pattern: "POST /api/v1/ca/root/export", Handler: with(s.exportRoot)},
		{Pattern: "POST /api/v1/ca/root/remove", Handler: with(s.removeRoot)},
		{Pattern: "POST /api/v1/ca/root/restore", Handler: with(s.restoreRoot)},
		{Pattern: "POST /api/v1/ca/rollover", Handler: with(s.rollover)},
		{Pattern: "POST /api/v1/ca/retire", Handler: with(s.retireRoot)},
		{Pattern: "POST /api/v1/ca/registration-code", Handler: with(s.registrationCode)},
		{Pattern: "GET /api/v1/ca/registered", Handler: with(s.registeredCAs)},
		{Pattern: "POST /api/v1/ca/registered", Handler: with(s.registerCA)},
		{Pattern: "POST /api/v1/ca/registered/{fingerprint}/disable", Handler: with(s.disableCA(true))},
		{Pattern: "POST /api/v1/ca/registered/{fingerprint}/enable", Handler: with(s.disableCA(false))},
		{Pattern: "DELETE /api/v1/ca/registered/{fingerprint}", Handler: with(s.removeCA)},
	}
}

// Enrolment is the request of POST /api/v1/devices. For a device that is registered already it adds a certificate to
// those it has, so that a device can change over before the old one is revoked. Where a certificate is in force that was
// issued to it for the same key, that one is the answer.
type Enrolment struct {
	ID         string            `json:"id"`
	CSR        string            `json:"csr,omitempty"`      // PEM; without it the key pair is made here
	Validity   Duration          `json:"validity,omitempty"` // such as "90d"; the configured one where missing
	Attributes map[string]string `json:"attributes,omitempty"`
	Groups     []string          `json:"groups,omitempty"`
	Policy     string            `json:"policy,omitempty"`
	By         string            `json:"by,omitempty"` // who asks, for the record
	// New refuses a device that has, or had, a certificate with another key: it would get a second one, and nobody may have
	// meant that.
	New bool `json:"new,omitempty"`
}

// Enrolled is its answer. Key is there only where no CSR was, and nowhere else than here.
type Enrolled struct {
	ID          string    `json:"id"`
	Certificate string    `json:"certificate"` // PEM, with its issuer
	Key         string    `json:"key,omitempty"`
	CA          string    `json:"ca"` // PEM of the roots: what a device trusts a server by
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
	Created     bool      `json:"created"` // the device is new
	// Warning says what may keep the device out all the same; empty where nothing is known to.
	Warning string `json:"warning,omitempty"`
}

func (s *service) enrol(o *opened, w http.ResponseWriter, r *http.Request) error {
	var e Enrolment
	if err := read(w, r, &e); err != nil {
		return err
	}
	return s.issue(o, w, r, e, nil)
}

// issue answers with a new certificate for a device. With an overlap it takes the place of those before.
func (s *service) issue(o *opened, w http.ResponseWriter, r *http.Request, e Enrolment, overlap *time.Duration) error {
	if err := firstOf(authority.CheckDevice(e.ID), checkText("by", e.By), checkText("policy", e.Policy), checkDescription(e.Groups, e.Attributes)); err != nil {
		return bad(err)
	}
	g := Registration{ID: e.ID, Attributes: e.Attributes, Groups: e.Groups, Policy: e.Policy, By: by(e.By), First: e.New, Overlap: overlap}
	req := authority.Request{Device: e.ID, Validity: time.Duration(e.Validity)}
	key := ""
	if e.CSR != "" {
		csr, err := authority.ParseRequest(e.ID, []byte(e.CSR))
		if err != nil {
			return bad(err)
		}
		req.Key = csr.PublicKey
		if key, err = keyHash(req.Key); err != nil {
			return bad(err)
		}
	}
	warning, err := s.checkPolicy(r.Context(), o, e.Policy)
	if err != nil {
		return err
	}
	if req.Validity != 0 && req.Validity < time.Minute {
		return bad(fmt.Errorf("a validity of %s is too short; a minute is the least", req.Validity))
	}
	if key != "" && overlap == nil {
		turn := o.asking.turn(key)
		turn.Lock()
		defer turn.Unlock()
		if given, err := o.givenBefore(r.Context(), g, key, s.env.Now()); err != nil {
			return err
		} else if given != nil {
			s.tell(r, o, e.ID) // it may have been described anew
			return o.enrolled(w, http.StatusOK, Enrolled{ID: e.ID, Warning: warning}, given)
		}
	}
	if req.Validity == 0 {
		if req.Validity, err = o.validityOf(r.Context(), e.ID); err != nil {
			return err
		}
	}
	issued, err := o.issue(r.Context(), req)
	if err != nil {
		return err
	}
	g.Certificate = recordOf(issued.Certificate, s.env.Now())
	g.Certificate.der = issued.Certificate.Raw
	_, created, err := o.registry.Add(r.Context(), g)
	if err != nil {
		return err
	}
	s.metrics.issued.Inc()
	s.tell(r, o, e.ID)
	return o.enrolled(w, http.StatusCreated, Enrolled{ID: e.ID, Created: created, Warning: warning}, issued)
}

// enrolled answers with a certificate.
func (o *opened) enrolled(w http.ResponseWriter, status int, e Enrolled, issued *authority.Issued) error {
	e.Certificate, e.Key, e.CA = string(issued.Chain), string(issued.Key), string(authority.CertPEM(o.authority.Bundle().Roots...))
	e.Fingerprint, e.NotAfter = authority.Fingerprint(issued.Certificate.Raw), issued.Certificate.NotAfter
	w.Header().Set("Cache-Control", "no-store")
	return answer(w, status, e)
}

// tell says what was just changed. What cannot be said now is kept with the device, and said later.
func (s *service) tell(r *http.Request, o *opened, id string) {
	if err := o.teller.tell(said(r), id); err != nil {
		s.env.Log.Error("a change of a device could not be said; trying again", "device", id, "error", err)
		o.teller.later(id)
	}
}

// recordOf is what is registered of a certificate.
func recordOf(c *stdx509.Certificate, now time.Time) *Certificate {
	key, _ := keyHash(c.PublicKey) // which was read from a certificate, and so can be written
	return &Certificate{
		Key: key, Fingerprint: authority.Fingerprint(c.Raw), Serial: fmt.Sprintf("%x", c.SerialNumber), Issuer: hex.EncodeToString(c.AuthorityKeyId),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, IssuedAt: now.UTC(),
	}
}

// list gives devices by id: `?after=<id>&limit=<n>`; `next` is the after of the page that follows. `group`, `state` and
// `expiring` (within that time) select.
func (s *service) list(o *opened, w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	limit := listMax
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > listMax {
			return bad(fmt.Errorf("limit %q is not a number from 1 to %d", short(v), listMax))
		}
		limit = n
	}
	sel := selection{group: q.Get("group"), state: q.Get("state")}
	if v := q.Get("expiring"); v != "" {
		var within Duration
		if err := within.UnmarshalText([]byte(v)); err != nil {
			return bad(err)
		}
		sel.expiring, sel.within = true, time.Duration(within)
	}
	if err := sel.check(); err != nil {
		return bad(err)
	}
	of, err := o.standings(r.Context())
	if err != nil {
		return err
	}
	devices, more := o.index.page(q.Get("after"), limit, sel.keeps(of, s.env.Now()))
	page := struct {
		Devices []Shown `json:"devices"`
		Next    string  `json:"next,omitempty"`
		Total   int     `json:"total"` // registered devices, selected or not
	}{Devices: make([]Shown, 0, len(devices)), Total: o.index.size()}
	for _, d := range devices {
		page.Devices = append(page.Devices, s.shown(d, of))
	}
	if more {
		page.Next = devices[len(devices)-1].ID
	}
	return answer(w, http.StatusOK, page)
}

// Shown is a device as answers show it: with its state in a word, and without what is the registry's own affair.
type Shown struct {
	Device
	State string `json:"state"` // as Device.State; untrusted where it would be active, were its certificates' CA trusted
	// Untrusted is what became of that CA: Disabled, Retired or Removed.
	Untrusted Standing `json:"untrusted,omitempty"`
	Warning   string   `json:"warning,omitempty"` // as Enrolled.Warning, of what was just changed
}

func (s *service) shown(d Device, of map[string]Standing) Shown {
	d.Unsaid, d.Gone = nil, false
	state, why := d.stateOf(of, s.env.Now())
	return Shown{Device: d, State: state, Untrusted: why}
}

// changed is a device that was just changed. That is done, whether or not its CA's standing can be read.
func (s *service) changed(r *http.Request, o *opened, d Device) Shown {
	of, _ := o.standings(r.Context())
	return s.shown(d, of)
}

func (s *service) show(o *opened, w http.ResponseWriter, r *http.Request) error {
	d, err := o.registry.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	of, err := o.standings(r.Context())
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, s.shown(d, of))
}

func (s *service) remove(o *opened, w http.ResponseWriter, r *http.Request) error {
	id, who := r.PathValue("id"), r.URL.Query().Get("by")
	if err := checkText("by", who); err != nil {
		return bad(err)
	}
	if _, err := o.registry.Remove(r.Context(), id, by(who)); err != nil {
		return err
	}
	s.tell(r, o, id)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// Change is the request of revoke, disable and enable; all of it may be left out.
type Change struct {
	Fingerprint string `json:"fingerprint,omitempty"` // revoke: this certificate, or the first digits of it; all of the device's where missing
	Reason      string `json:"reason,omitempty"`
	By          string `json:"by,omitempty"`
}

func readChange(w http.ResponseWriter, r *http.Request) (c Change, err error) {
	if r.ContentLength != 0 {
		if err := read(w, r, &c); err != nil {
			return c, err
		}
	}
	if err := firstOf(checkText("by", c.By), checkText("reason", c.Reason)); err != nil {
		return c, bad(err)
	}
	c.By = by(c.By)
	return c, nil
}

// RevokedDevice is the answer of POST /api/v1/devices/{id}/revoke.
type RevokedDevice struct {
	Shown
	// SameKey are other devices with a certificate in force for a key that was revoked with this one's certificates: that
	// is not withdrawn. Sorted.
	SameKey []string `json:"same_key,omitempty"`
}

func (s *service) revoke(o *opened, w http.ResponseWriter, r *http.Request) error {
	c, err := readChange(w, r)
	if err != nil {
		return err
	}
	d, revoked, err := o.registry.Revoke(r.Context(), r.PathValue("id"), c.Fingerprint, c.By, c.Reason)
	if err != nil {
		return err
	}
	s.metrics.revoked.Add(float64(len(revoked)))
	s.tell(r, o, d.ID)
	done := RevokedDevice{Shown: s.changed(r, o, d)}
	for _, c := range d.Certs {
		if c.Revoked() && !c.replaced() {
			done.SameKey = append(done.SameKey, o.index.holders(c.Key)...)
		}
	}
	slices.Sort(done.SameKey)
	done.SameKey = slices.DeleteFunc(slices.Compact(done.SameKey), func(id string) bool { return id == d.ID })
	return answer(w, http.StatusOK, done)
}

func (s *service) disable(off bool) func(*opened, http.ResponseWriter, *http.Request) error {
	return func(o *opened, w http.ResponseWriter, r *http.Request) error {
		c, err := readChange(w, r)
		if err != nil {
			return err
		}
		d, _, err := o.registry.Disable(r.Context(), r.PathValue("id"), off, c.By, c.Reason)
		if err != nil {
			return err
		}
		s.tell(r, o, d.ID)
		return answer(w, http.StatusOK, s.changed(r, o, d))
	}
}

// ca gives the trusted certificates, those of other CAs of this platform among them.
func (s *service) ca(o *opened, w http.ResponseWriter, r *http.Request) error {
	b, err := o.trusted(r.Context())
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, err = w.Write(b.PEM())
	return err
}

// admissions gives the recorded attempts to get in, newest first: `device`, `address`, `ca` (key identifier, fingerprint, the first digits of either, or name),
// `step` (where it ended) and `refused=true` select.
func (s *service) admissions(o *opened, w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	limit := 100
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > listMax {
			return bad(fmt.Errorf("limit %q is not a number from 1 to %d", short(v), listMax))
		}
		limit = n
	}
	f := attemptFilter{device: q.Get("device"), address: q.Get("address"), step: q.Get("step"), refused: q.Get("refused") == "true"}
	if given := q.Get("ca"); given != "" {
		var err error
		if f.ca, err = s.caNamed(r.Context(), o, given); err != nil {
			return err
		}
	}
	list, err := attempts(r.Context(), s.env.Bus, f, limit)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"attempts": list})
}

// said outlives a client that has gone: what was done is said.
func said(r *http.Request) context.Context { return context.WithoutCancel(r.Context()) }

func by(who string) string {
	if who == "" {
		return defaultBy
	}
	return who
}

func checkText(what, s string) error {
	if len(s) > textMax {
		return fmt.Errorf("%s has %d bytes; %d is the most", what, len(s), textMax)
	}
	if !printable(s) {
		return fmt.Errorf("%s %q holds characters that cannot be printed", what, short(s))
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// checkDescription says what is wrong with a device's groups and attributes. A semicolon separates groups in a fleet's CSV.
func checkDescription(groups []string, attributes map[string]string) error {
	for _, g := range groups {
		if err := checkText("group", g); err != nil {
			return err
		}
		if g == "" || strings.TrimSpace(g) != g || strings.Contains(g, ";") {
			return fmt.Errorf("group %q: a name is wanted, without a semicolon and without spaces around it", g)
		}
	}
	for k, v := range attributes {
		if k == "" {
			return errors.New("an attribute has no name")
		}
		if err := checkText("attribute", k); err != nil {
			return err
		}
		if !printable(v) {
			return fmt.Errorf("attribute %s: it holds characters that cannot be printed", k)
		}
	}
	return nil
}

// firstOf gives the first fault: one is enough to mend at a time, and an answer is a line.
func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// badRequest is an error that is the client's.
type badRequest struct{ error }

func bad(err error) error { return badRequest{err} }

func read(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMax))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return bad(fmt.Errorf("read the request: %w", err))
	}
	if d.More() {
		return bad(errors.New("read the request: there is something behind its end"))
	}
	return nil
}

func answer(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}

func (s *service) refuse(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.As(err, new(badRequest)):
		problem(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, ErrUnknownDevice), errors.Is(err, ErrUnknownCA), errors.Is(err, authority.ErrUnknownIssuer), errors.Is(err, ErrUnknownClaim), errors.Is(err, errUnknownCert):
		problem(w, http.StatusNotFound, err.Error())
	case errors.Is(err, errAway):
		s.env.Log.Warn("request about a device not done", "method", r.Method, "path", r.URL.Path, "error", err)
		if awayReason(r.Context(), s.env.Bus) == message.StorageLow {
			problem(w, http.StatusInsufficientStorage, storageLow+" ("+err.Error()+")")
			return
		}
		w.Header().Set("Retry-After", retryAfter)
		problem(w, http.StatusServiceUnavailable, "the bus is away, try again in a moment: "+err.Error())
	case errors.Is(err, ErrRefused), errors.Is(err, authority.ErrRootKey):
		problem(w, http.StatusConflict, err.Error())
	default:
		s.env.Log.Error("request about a device not done", "method", r.Method, "path", r.URL.Path, "error", err)
		problem(w, http.StatusInternalServerError, err.Error())
	}
}

// problem answers as RFC 9457 says.
func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": detail})
}
