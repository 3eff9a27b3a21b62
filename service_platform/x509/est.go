package x509

import (
	"bytes"
	"context"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/smallstep/pkcs7"

	"github.com/naru-platform/naru/message"
)

// The paths of RFC 7030, section 3.2.2. There is one CA, and no label.
const (
	estCACerts  = "/.well-known/est/cacerts"
	estEnroll   = "/.well-known/est/simpleenroll"
	estReenroll = "/.well-known/est/simplereenroll"
	estAttrs    = "/.well-known/est/csrattrs"
	estBodyMax  = 16 << 10
	estCerts    = "application/pkcs7-mime"
)

// est answers devices by RFC 7030 (Enrollment over Secure Transport). A device enrols with a one-time token by HTTP
// Basic, its id being the user, or with the certificate that it has; it renews that with itself.
type est struct {
	s    *service
	o    *opened
	door *Admission
}

// handler takes a path as it is written, or refuses it: none is cleaned, unescaped or redirected.
func (e *est) handler() http.Handler {
	post := map[string]http.HandlerFunc{
		estEnroll:   func(w http.ResponseWriter, r *http.Request) { e.enrol(w, r, false) },
		estReenroll: func(w http.ResponseWriter, r *http.Request) { e.enrol(w, r, true) },
	}
	get := map[string]http.HandlerFunc{estCACerts: e.cacerts, estAttrs: e.csrattrs}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ways, other, allow := get, post, http.MethodPost
		switch r.Method {
		case http.MethodGet, http.MethodHead:
		case http.MethodPost:
			ways, other, allow = post, get, http.MethodGet
		default:
			ways = nil
		}
		path := r.URL.EscapedPath()
		if f := ways[path]; f != nil {
			f(w, r)
			return
		}
		if other[path] != nil {
			w.Header().Set("Allow", allow)
			e.elsewhere(w, r, http.StatusMethodNotAllowed)
			return
		}
		e.elsewhere(w, r, http.StatusNotFound)
	})
}

// elsewhere refuses and records what is no request of EST as it is spoken here.
func (e *est) elsewhere(w http.ResponseWriter, r *http.Request, status int) {
	at := e.door.attempt(estClient(r))
	_ = at.fail("path", message.Rejectf(message.Unsupported, "%s %q; there are GET %s and %s, POST %s and %s, and no label before them", // the same error
		short(r.Method), shortPath(r.URL.EscapedPath()), estCACerts, estAttrs, estEnroll, estReenroll))
	e.door.recorder.record(*at)
	estProblem(w, status, http.StatusText(status))
}

// shortPath is a path as it may be recorded: without what is so long that it may be a token that somebody put there.
func shortPath(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if len(p) > 32 {
			parts[i] = "…"
		}
	}
	return short(strings.Join(parts, "/"))
}

func estClient(r *http.Request) Client {
	c := Client{Address: r.RemoteAddr}
	if r.TLS != nil {
		c = ClientOf(r.RemoteAddr, *r.TLS)
	}
	c.Door = DoorEST
	return c
}

// cacerts is section 4.1: the roots, and the issuing CAs below them.
func (e *est) cacerts(w http.ResponseWriter, _ *http.Request) {
	b := e.o.authority.Bundle()
	certs := append(append([]*stdx509.Certificate{}, b.Roots...), b.Issuing...)
	e.send(w, estCerts, certsOnly(append(certs, e.o.authority.CrossCerts()...)))
}

// csrattrs is section 4.5: a P-256 key, and a request signed with SHA-256.
func (e *est) csrattrs(w http.ResponseWriter, _ *http.Request) {
	type attribute struct {
		Type   asn1.ObjectIdentifier
		Values []asn1.ObjectIdentifier `asn1:"set"`
	}
	key, err := asn1.Marshal(attribute{asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, []asn1.ObjectIdentifier{{1, 2, 840, 10045, 3, 1, 7}}})
	if err == nil {
		var sig, all []byte
		if sig, err = asn1.Marshal(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}); err == nil {
			all, err = asn1.Marshal([]asn1.RawValue{{FullBytes: key}, {FullBytes: sig}})
			if err == nil {
				e.send(w, "application/csrattrs", func() ([]byte, error) { return all, nil })
				return
			}
		}
	}
	estProblem(w, http.StatusInternalServerError, err.Error())
}

func certsOnly(certs []*stdx509.Certificate) func() ([]byte, error) {
	return func() ([]byte, error) {
		var raw []byte
		for _, c := range certs {
			raw = append(raw, c.Raw...)
		}
		return pkcs7.DegenerateCertificate(raw)
	}
}

// send answers base64 in lines, as RFC 7030 section 4.1.3 and RFC 2045 want it.
func (e *est) send(w http.ResponseWriter, contentType string, make func() ([]byte, error)) {
	der, err := make()
	if err != nil {
		e.s.env.Log.Error("an EST answer cannot be encoded", "error", err)
		estProblem(w, http.StatusInternalServerError, "the answer cannot be encoded")
		return
	}
	if contentType == estCerts {
		contentType += "; smime-type=certs-only"
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Transfer-Encoding", "base64")
	text := base64.StdEncoding.EncodeToString(der)
	for len(text) > 0 {
		n := min(76, len(text))
		_, _ = io.WriteString(w, text[:n]+"\r\n") // the client went; there is nobody to tell
		text = text[n:]
	}
}

// estRefusal is an answer to a device that gets no certificate.
type estRefusal struct {
	status int
	step   string
	err    error
}

func (r *estRefusal) Error() string { return r.err.Error() }
func (r *estRefusal) Unwrap() error { return r.err }

func estBad(step, format string, args ...any) error {
	return &estRefusal{http.StatusBadRequest, step, fmt.Errorf(format, args...)}
}

// enrol is sections 4.2.1 and 4.2.2.
func (e *est) enrol(w http.ResponseWriter, r *http.Request, again bool) {
	c := estClient(r)
	at := e.door.attempt(c)
	cert, err := e.issue(w, r, c, again, at)
	if err == nil {
		at.Admitted = true
		e.door.recorder.record(*at)
		e.send(w, estCerts, certsOnly([]*stdx509.Certificate{cert}))
		return
	}
	refusal := &estRefusal{http.StatusInternalServerError, "enrolment", errors.New("the request was not done; try again")}
	otherwise := message.HandlerError
	switch {
	case errors.Is(err, errAway), message.ReasonOf(err, 0) == message.BusUnavailable: // whatever step it came from
		refusal = &estRefusal{http.StatusServiceUnavailable, "enrolment", errors.New("the platform cannot look that up now; try again")}
		otherwise = awayReason(r.Context(), e.s.env.Bus)
		w.Header().Set("Retry-After", retryAfter)
		e.s.env.Log.Warn("a device was not enrolled, since the bus is away or its disk is full", "reason", otherwise, "device", at.Device, "address", at.Address, "error", err)
	case !errors.As(err, &refusal):
		e.s.env.Log.Error("a device was not enrolled", "device", at.Device, "address", at.Address, "error", err)
	case refusal.status == http.StatusRequestTimeout:
		otherwise = message.SlowHandshake
	case refusal.status == http.StatusRequestEntityTooLarge:
		otherwise = message.MessageTooLarge
	case refusal.status == http.StatusUnsupportedMediaType:
		otherwise = message.Unsupported
	case refusal.status == http.StatusBadRequest && refusal.step == "csr":
		otherwise = message.CSRInvalid
	case refusal.status == http.StatusBadRequest || refusal.status == http.StatusForbidden:
		otherwise = message.ACLDenied
	default:
		otherwise = message.TokenInvalid
	}
	reason := message.ReasonOf(err, otherwise)
	_ = at.fail(refusal.step, message.Reject(reason, err)) // the same error
	e.door.recorder.record(*at)
	text := refusal.Error()
	if errors.Is(err, errToken) {
		text = errToken.Error() // not why: whoever guesses learns nothing
	}
	if refusal.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="naru enrolment", charset="UTF-8"`)
	}
	estProblem(w, refusal.status, text)
}

func estProblem(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // the client went; there is nobody to tell
}

// issue decides who asks, reads what he asks for, and registers the certificate before it is handed out.
func (e *est) issue(w http.ResponseWriter, r *http.Request, c Client, again bool, at *Attempt) (*stdx509.Certificate, error) {
	device, token, err := e.who(r, c, again, at)
	if err != nil {
		return nil, err
	}
	at.Device = device
	csr, err := readCSR(w, r)
	if err != nil {
		return nil, err
	}
	switch cn := csr.Subject.CommonName; {
	case cn == device:
	case token == nil && cn == name(c.Leaf): // one that was provisioned before its device had an id
	case again:
		return nil, estBad("csr", "simplereenroll: the csr is for %q; its subject must be the certificate's, %q", short(cn), called(c.Leaf))
	case cn != "":
		return nil, estBad("csr", "the csr is for %q, the request for device %q", short(cn), device)
	}
	at.pass("csr", "its key is good")
	g := Registration{ID: device, By: "est"}
	req := authority.Request{Device: device, Key: csr.PublicKey}
	if token != nil {
		req.Validity = time.Duration(token.is.Validity)
		if err := e.o.checkKey(r.Context(), csr.PublicKey, req.Kind, device); errors.Is(err, ErrRefused) { // before the token is bound to it: with a new key it is good
			return nil, &estRefusal{http.StatusForbidden, "csr", err}
		} else if err != nil {
			return nil, err
		}
		if err := e.o.bindToken(r.Context(), token, csr); err != nil {
			return nil, wrongToken(err)
		}
		at.pass("token", "used up")
	} else {
		overlap := overlapDefault
		g.Overlap = &overlap
	}
	if req.Validity == 0 {
		if req.Validity, err = e.o.validityOf(r.Context(), device); err != nil {
			return nil, err
		}
	}
	issued, err := e.o.issue(r.Context(), req)
	if errors.Is(err, ErrRefused) {
		return nil, &estRefusal{http.StatusForbidden, "csr", err}
	}
	if errors.Is(err, errAway) {
		return nil, err
	}
	if err != nil {
		return nil, estBad("issued", "%w", err)
	}
	g.Certificate = recordOf(issued.Certificate, e.s.env.Now())
	if token != nil { // before it is registered: one that is withdrawn ends the token, whenever that comes
		g.Certificate.Awaited, g.Token = true, token.is.Made
		if err := e.o.keepToken(r.Context(), token, func(t *enrolmentToken) error { t.Issued = g.Certificate.Fingerprint; return nil }); err != nil {
			return nil, wrongToken(err)
		}
	}
	if _, _, err := e.o.registry.Add(r.Context(), g); errors.Is(err, ErrRefused) {
		return nil, &estRefusal{http.StatusForbidden, "registration", err}
	} else if err != nil {
		return nil, err
	}
	if token != nil { // a deletion that ended in the meantime has left nothing else to see
		if err := e.o.keepToken(r.Context(), token, func(*enrolmentToken) error { return nil }); errors.Is(err, errToken) {
			_, _, undo := e.o.registry.Revoke(context.WithoutCancel(r.Context()), device, g.Certificate.Fingerprint, "est", "the device was deleted")
			e.o.teller.later(device)
			return nil, errors.Join(wrongToken(err), undo)
		}
	}
	e.s.metrics.issued.Inc()
	e.o.teller.later(device)
	at.Known = true
	at.pass("registration", "as device %q", device)
	return issued.Certificate, nil
}

// shownToken is a token that a device showed, and how it stands.
type shownToken struct {
	device string
	is     enrolmentToken
}

// wrongToken refuses who showed a token, unless it is the bus that is away.
func wrongToken(err error) error {
	if errors.Is(err, errToken) {
		return &estRefusal{http.StatusUnauthorized, "token", err}
	}
	return err
}

// who says which device asks: by its certificate, else by a token, which does not renew. A certificate that does not admit
// it is no reason to pass over a token that was sent as well (RFC 7030, section 3.2.3): a device shows what it has of before.
func (e *est) who(r *http.Request, c Client, again bool, at *Attempt) (device string, token *shownToken, err error) {
	user, text, sent := r.BasicAuth()
	sent = sent && user != "" && text != ""
	if c.Leaf == nil && again {
		return "", nil, &estRefusal{http.StatusForbidden, "certificate", message.Rejectf(message.CertMissing, "simplereenroll wants the certificate that is to be renewed")}
	}
	var shown error // why the certificate that was shown does not admit
	if c.Leaf != nil {
		who, err := e.door.admit(r.Context(), c, at)
		if err == nil && who.Device == "" {
			err = at.fail("certificate", message.Rejectf(message.CertUnregistered, "claim certificate %q is not for EST", who.Claim))
		}
		if err == nil {
			return who.Device, nil, nil
		}
		if again || !sent || message.ReasonOf(err, 0) == message.BusUnavailable {
			at.Steps = at.Steps[:max(0, len(at.Steps)-1)] // told once, with the answer
			return "", nil, &estRefusal{http.StatusForbidden, "certificate", err}
		}
		shown, at.Reason, at.Detail, at.Claim = err, "", "", false
	}
	if !sent {
		return "", nil, &estRefusal{http.StatusUnauthorized, "token", errors.New("a client certificate, or an enrolment token by HTTP Basic, is wanted")}
	}
	device, token, err = e.byToken(r, user, text, at)
	if shown != nil && errors.Is(err, errToken) { // which of the two was to do, nobody here knows
		err = wrongToken(fmt.Errorf("%w; the certificate that was shown as well does not admit it either: %s", errors.Unwrap(err), shown.Error())) // the reason is the token's
	}
	return device, token, err
}

// byToken says which device asks by HTTP Basic.
func (e *est) byToken(r *http.Request, user, text string, at *Attempt) (device string, token *shownToken, err error) {
	at.Device = hiddenUser(user) // until it is known to be no secret: who mixes the two up sends the token in its place
	if authority.CheckDevice(user) != nil {
		return "", nil, &estRefusal{http.StatusUnauthorized, "token", fmt.Errorf("%w: the user is no device id", errToken)}
	}
	is, err := e.o.checkToken(r.Context(), user, text, e.s.env.Now())
	if err != nil {
		err = e.named(r.Context(), at, user, text, is, err)
	}
	if err != nil {
		return "", nil, wrongToken(err)
	}
	at.Device = user
	at.pass("token", "for device %q, good until %s", user, stamp(is.Expires))
	return user, &shownToken{user, is}, nil
}

// named gives a refused attempt the name of its device where that is one, and says where user and token are mixed up.
func (e *est) named(ctx context.Context, at *Attempt, user, text string, is enrolmentToken, err error) error {
	if _, e := e.o.registry.Get(ctx, user); e == nil || is.Hash != "" {
		at.Device = user
		return err
	}
	if mixed, e := e.o.checkToken(ctx, text, user, at.At); mixed.Hash != "" {
		at.Device = text
		if e == nil {
			err = fmt.Errorf("%w: the token was sent as the user; the device's id is the user, and the token the password", errToken)
		}
	}
	return err
}

// hiddenUser stands for a user's name that may be a secret. Who knows the name finds it by this; nobody finds the name.
func hiddenUser(user string) string {
	sum := sha256.Sum256([]byte(user))
	return "user sha256:" + hex.EncodeToString(sum[:4]) // the space: no device is called so
}

// readCSR reads section 4.2.1's body: PKCS #10 in base64.
func readCSR(w http.ResponseWriter, r *http.Request) (*stdx509.CertificateRequest, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/pkcs10" {
		return nil, &estRefusal{http.StatusUnsupportedMediaType, "csr", fmt.Errorf("Content-Type %q: application/pkcs10 is wanted", short(r.Header.Get("Content-Type")))}
	}
	if enc := r.Header.Get("Content-Transfer-Encoding"); enc != "" && !strings.EqualFold(enc, "base64") {
		return nil, estBad("csr", "Content-Transfer-Encoding %q: base64 is wanted", short(enc))
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, estBodyMax))
	if err != nil {
		if errors.As(err, new(*http.MaxBytesError)) {
			return nil, &estRefusal{http.StatusRequestEntityTooLarge, "csr", fmt.Errorf("the request has more than %d bytes", estBodyMax)}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, &estRefusal{http.StatusRequestTimeout, "body", fmt.Errorf("the request did not come within %s; the link is too slow or broke off", estPatience)}
		}
		return nil, estBad("csr", "read the request: %w", err)
	}
	switch {
	case bytes.Contains(body, []byte("-----BEGIN")):
		return nil, estBad("csr", "the request is PEM; EST wants base64 of DER, without the lines BEGIN and END: openssl req -outform DER … | openssl base64")
	case len(body) > 1 && body[0] == 0x30 && body[1] >= 0x80: // an ASN.1 sequence of some length
		return nil, estBad("csr", "the request is DER itself; EST wants base64 of it: openssl req -outform DER … | openssl base64")
	}
	der := make([]byte, base64.StdEncoding.DecodedLen(len(body)))
	n, err := base64.StdEncoding.Decode(der, bytes.Join(bytes.Fields(body), nil))
	if err != nil {
		return nil, estBad("csr", "the request is not base64 of PKCS #10")
	}
	csr, err := authority.ParseRequestDER("", der[:n])
	if err != nil {
		return nil, estBad("csr", "%w", err)
	}
	return csr, nil
}
