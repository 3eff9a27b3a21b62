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
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"golang.org/x/time/rate"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// The topics are those of AWS IoT's fleet provisioning, so that its device SDKs work unchanged.
const (
	topicCreate    = "$aws/certificates/create/json"
	topicCSR       = "$aws/certificates/create-from-csr/json"
	topicProvision = "$aws/provisioning-templates/"
	provisionEnd   = "/provision/json"
)

const (
	ownershipPrefix   = "own."
	ownershipValidity = time.Hour
	claimRate         = 10 // certificates a second by one claim certificate; a production line is slower
	claimBurst        = 50
	limitersMax       = 1024
	payloadMax        = 16 << 10
)

// Provisioner answers what holders of claim certificates ask for. It runs where the CA is.
type Provisioner interface {
	// Provision answers a payload published on a topic by who came in as c. It must be handed to that connection alone,
	// and neither logged nor kept: it may hold a private key or an ownership token.
	Provision(ctx context.Context, c Client, topic string, payload []byte) Answer
}

// Answer is what is published to the one connection that asked.
type Answer struct {
	Topic    string           // the asked one and `/accepted` or `/rejected`
	Payload  authority.Secret // JSON
	Accepted bool
}

// ClaimMayPublish says whether a topic is one that holders of claim certificates may publish on; they may on no other.
func ClaimMayPublish(topic string) bool {
	if topic == topicCreate || topic == topicCSR {
		return true
	}
	_, ok := templateOf(topic)
	return ok
}

// ClaimMaySubscribe says whether a filter is one that holders of claim certificates may subscribe to: an answer's topic,
// without wildcards. Nothing is ever published on those by others, so the filter itself delivers nothing.
func ClaimMaySubscribe(filter string) bool {
	topic, ok := strings.CutSuffix(filter, "/accepted")
	if !ok {
		topic, ok = strings.CutSuffix(filter, "/rejected")
	}
	return ok && ClaimMayPublish(topic)
}

// templateOf is the template that a topic names.
func templateOf(topic string) (string, bool) {
	rest, ok := strings.CutPrefix(topic, topicProvision)
	if !ok {
		return "", false
	}
	t, ok := strings.CutSuffix(rest, provisionEnd)
	return t, ok && checkPlain("template", t) == nil
}

// Provision hands a claim certificate's request to the CA, of this process or over the bus of another (sealed, see
// afar.go), and has it recorded.
func (a *Admission) Provision(ctx context.Context, c Client, topic string, payload []byte) Answer {
	c.Door = doorClaim
	if c.Leaf != nil {
		if claim, _, _ := a.claimed(sha256.Sum256(c.Leaf.Raw)); !a.provisions.allow(authority.Fingerprint(c.Leaf.Raw), a.o.Now()) {
			return a.throttled(c, topic, claim.Claim)
		}
	}
	if p := a.provisioner.Load(); p != nil {
		return (*p).Provision(ctx, c, topic, payload)
	}
	answer, err := a.provisionAfar(ctx, c, topic, payload)
	if err != nil {
		return a.refusedAfar(c, topic, err)
	}
	return answer
}

// throttled refuses at the door who asks too often, so that a flood neither reaches the bus nor takes the CA's time from other
// doors.
func (a *Admission) throttled(c Client, topic, claim string) Answer {
	at := a.attempt(c)
	at.Known, at.Claim = true, true
	err := tooOften(claim)
	_ = at.fail(stepThrottle, message.Reject(message.RateLimited, err)) // the same error
	a.recorder.record(*at)
	return rejected(topic, err)
}

func tooOften(claim string) error {
	return awsRefuse(stepThrottle, http.StatusTooManyRequests, "Throttled", "claim certificate %s asks more than %d times a second", claim, claimRate)
}

// provisioning is the Provisioner of a running CA.
type provisioning struct {
	s    *service
	o    *opened
	door *Admission

	asked claimLimits // at all doors together
}

// claimLimits are how often each claim certificate may ask. The zero value is ready.
type claimLimits struct {
	mu sync.Mutex
	of map[string]*rate.Limiter // by fingerprint
}

// allow counts a request, and says whether it is not one too many.
func (l *claimLimits) allow(claim string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.of[claim]
	if r == nil {
		if l.of == nil || len(l.of) >= limitersMax {
			l.of = map[string]*rate.Limiter{}
		}
		r = rate.NewLimiter(claimRate, claimBurst)
		l.of[claim] = r
	}
	return r.AllowN(now, 1)
}

// awsError is an error as AWS IoT tells it: statusCode, errorCode, errorMessage.
type awsError struct {
	status int
	code   string
	err    error
}

func (r *awsError) Error() string { return r.err.Error() }
func (r *awsError) Unwrap() error { return r.err }

// told is what the device hears: what the hook's trouble is, and where it is, is the operator's to know.
func (r *awsError) told() string {
	if r.code == notApproved {
		return "it was not approved; `naru why` has the reason"
	}
	return r.Error()
}

const notApproved = "NotApproved"

// The steps that have a reason of their own.
const (
	stepThrottle = "throttle"
	stepToken    = "token"
)

// awsRefuse refuses at a step, as the recorder names it.
func awsRefuse(step string, status int, code, format string, args ...any) error {
	return &awsError{status, code, inStep(step, fmt.Errorf(format, args...))}
}

func rejected(topic string, err error) Answer {
	r := &awsError{http.StatusInternalServerError, "InternalError", errors.New("the request was not done; try again")}
	if errors.Is(err, errAway) {
		r = &awsError{http.StatusServiceUnavailable, "ServiceUnavailable", errors.New("the platform cannot look that up now; try again")}
	}
	errors.As(err, &r)
	raw, _ := json.Marshal(map[string]any{"statusCode": r.status, "errorCode": r.code, "errorMessage": r.told()}) // plain data
	return Answer{Topic: topic + "/rejected", Payload: raw}
}

// Provision answers; see Provisioner.
func (p *provisioning) Provision(ctx context.Context, c Client, topic string, payload []byte) Answer {
	at := p.door.attempt(c)
	answer, err := p.answer(ctx, c, topic, payload, at)
	at.Known, at.Claim = true, true // the certificate was admitted: nobody else gets here
	if err != nil {
		var r *awsError
		if !errors.As(err, &r) {
			p.s.env.Log.Error("a provisioning request was not done", "claim", at.Device, "address", at.Address, "error", err)
		}
		step, reason := stepOf(err, "provision"), message.ReasonOf(err, message.ACLDenied)
		switch {
		case errors.Is(err, errAway):
			reason = awayReason(ctx, p.s.env.Bus)
		case r == nil:
			reason = message.HandlerError
		case step == stepThrottle:
			reason = message.RateLimited
		case step == stepToken:
			reason = message.TokenInvalid
		case step == "csr" && r.status == http.StatusBadRequest:
			reason = message.CSRInvalid
		case r.status == http.StatusRequestEntityTooLarge:
			reason = message.MessageTooLarge
		}
		_ = at.fail(step, message.Reject(reason, err)) // the same error
		p.door.recorder.record(*at)
		return rejected(topic, err)
	}
	at.Admitted = true
	p.door.recorder.record(*at)
	raw, err := json.Marshal(answer)
	if err != nil {
		return rejected(topic, err)
	}
	return Answer{Topic: topic + "/accepted", Payload: raw, Accepted: true}
}

func (p *provisioning) answer(ctx context.Context, c Client, topic string, payload []byte, at *Attempt) (any, error) {
	template, provision := templateOf(topic)
	if !provision && topic != topicCreate && topic != topicCSR {
		return nil, awsRefuse("topic", http.StatusNotFound, "UnknownTopic", "there is nothing at topic %q", short(topic))
	}
	if len(payload) > payloadMax {
		return nil, awsRefuse("payload", http.StatusRequestEntityTooLarge, "PayloadTooLarge", "the payload has %d bytes; %d is the most", len(payload), payloadMax)
	}
	if c.Leaf == nil {
		return nil, awsRefuse("claim", http.StatusForbidden, "Forbidden", "a claim certificate is wanted")
	}
	claim, err := p.o.may(ctx, c.Leaf, template)
	if errors.Is(err, ErrRefused) || errors.Is(err, ErrUnknownClaim) {
		return nil, &awsError{http.StatusForbidden, "Forbidden", inStep("claim", err)}
	}
	if err != nil {
		return nil, err
	}
	at.pass("claim", "%q", claim.Name)
	if !p.asked.allow(claim.Fingerprint, p.s.env.Now()) {
		return nil, tooOften(claim.Name)
	}
	if provision {
		return p.provision(ctx, claim, template, payload, at)
	}
	return p.create(ctx, claim, topic == topicCSR, payload, at)
}

// ownership is a certificate that waits for its owner to provision himself, under the hash of his token. It admits
// nobody until then.
type ownership struct {
	Claim       string    `json:"claim"` // fingerprint
	Certificate string    `json:"certificate"`
	Expires     time.Time `json:"expires"`
	Template    string    `json:"template,omitempty"` // these two from the first use on; another is refused then
	Device      string    `json:"device,omitempty"`
	Done        bool      `json:"done,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"` // these two of the certificate, once it is registered
	Name        string    `json:"name,omitempty"`
}

// created is the answer of create and create-from-csr.
type created struct {
	ID    string `json:"certificateId"`
	PEM   string `json:"certificatePem"`
	Key   string `json:"privateKey,omitempty"`
	Token string `json:"certificateOwnershipToken"`
}

func (p *provisioning) create(ctx context.Context, claim Claim, byCSR bool, payload []byte, at *Attempt) (any, error) {
	var in struct {
		CSR string `json:"certificateSigningRequest"`
	}
	if err := strict(payload, &in, !byCSR); err != nil {
		return nil, awsRefuse("payload", http.StatusBadRequest, "InvalidPayload", "%w", err)
	}
	req := authority.Request{Device: "provisioned-" + strings.ToLower(rand.Text()[:12]), Kind: authority.KindProvisioned, Validity: p.o.shortest(claim.Templates)}
	if byCSR {
		csr, err := authority.ParseRequest("", []byte(in.CSR))
		if err != nil {
			return nil, awsRefuse("csr", http.StatusBadRequest, "InvalidCertificateSigningRequest", "%w", err)
		}
		req.Key = csr.PublicKey
		at.pass("csr", "its key is good")
	} else if in.CSR != "" {
		return nil, awsRefuse("payload", http.StatusBadRequest, "InvalidPayload", "a request with a csr goes to %s", topicCSR)
	}
	if n := p.o.waiting.of(claim.Fingerprint); n >= waitingMax {
		return nil, awsRefuse(stepThrottle, http.StatusTooManyRequests, "Throttled", "%d certificates of claim certificate %s wait for somebody to provision himself with; "+
			"none is made until some are taken or have ended, an hour after they were made", n, claim.Name)
	}
	issued, err := p.o.issue(ctx, req)
	if errors.Is(err, ErrRefused) {
		return nil, &awsError{http.StatusForbidden, "Forbidden", inStep("csr", err)}
	}
	if err != nil {
		return nil, err
	}
	token := rand.Text() + rand.Text()
	if err := p.keep(ctx, tokenKey(ownershipPrefix, token), ownership{Claim: claim.Fingerprint, Certificate: string(issued.Chain),
		Expires: p.s.env.Now().Add(ownershipValidity).UTC()}, 0); err != nil {
		return nil, err
	}
	p.s.metrics.issued.Inc()
	at.pass("issued", "certificate %x waits to be provisioned", issued.Certificate.SerialNumber)
	return created{ID: authority.Fingerprint(issued.Certificate.Raw), PEM: string(issued.Chain), Key: string(issued.Key), Token: token}, nil
}

func (p *provisioning) keep(ctx context.Context, key string, own ownership, revision uint64) error {
	raw, err := json.Marshal(own)
	if err != nil {
		return err
	}
	if revision, err = p.o.trust.Update(ctx, key, raw, revision); err == nil {
		p.o.waiting.apply(bus.Entry{Key: key, Value: raw, Revision: revision})
	}
	return err
}

// provisioned is the answer of provision.
type provisioned struct {
	Configuration map[string]string `json:"deviceConfiguration"`
	Thing         string            `json:"thingName"`
}

// provision registers the device and its certificate. The token is bound to the device before, and used up after: cut
// off in between, or its answer lost, the same device may ask again, and nobody else.
func (p *provisioning) provision(ctx context.Context, claim Claim, template string, payload []byte, at *Attempt) (any, error) {
	var in struct {
		Token      string            `json:"certificateOwnershipToken"`
		Parameters map[string]string `json:"parameters"`
	}
	if err := strict(payload, &in, false); err != nil {
		return nil, awsRefuse("payload", http.StatusBadRequest, "InvalidPayload", "%w", err)
	}
	key := tokenKey(ownershipPrefix, in.Token)
	own, revision, err := p.owned(ctx, key, claim)
	if err != nil {
		return nil, err
	}
	at.pass("token", "good until %s", stamp(own.Expires))
	tmpl, ok := p.o.templates[template]
	if !ok {
		return nil, awsRefuse("template", http.StatusForbidden, "Forbidden", "no template %q is configured", template)
	}
	var certs []*stdx509.Certificate
	if !own.Done {
		if certs, err = authority.ParseCerts([]byte(own.Certificate)); err != nil {
			return nil, fmt.Errorf("read a certificate that was issued: %w", err)
		}
		own.Fingerprint, own.Name = authority.Fingerprint(certs[0].Raw), name(certs[0])
	}
	pl, err := tmpl.plan(in.Parameters, map[string]string{"Certificate.Id": own.Fingerprint, "Certificate.CommonName": own.Name})
	if err != nil {
		return nil, awsRefuse("template", http.StatusBadRequest, "InvalidParameters", "template %s: %w", template, err)
	}
	at.Becomes = pl.device
	if own.Device != "" && (own.Device != pl.device || own.Template != template) {
		return nil, wrongOwner("is bound to another device")
	}
	if own.Done {
		return p.again(ctx, own, pl, at)
	}
	at.pass("template", "%s makes it device %q", template, pl.device)
	if _, err := p.s.checkPolicy(ctx, p.o, pl.policy); errors.As(err, new(badRequest)) {
		return nil, awsRefuse("template", http.StatusForbidden, "Forbidden", "template %s: %w", template, err)
	} else if err != nil {
		return nil, err
	}
	if tmpl.Hook != "" {
		if err := askHook(ctx, tmpl.Hook, hookRequest{Template: template, Device: pl.device, Fingerprint: own.Fingerprint,
			Claim: claim.Fingerprint, Parameters: in.Parameters}); err != nil {
			return nil, awsRefuse("hook", http.StatusForbidden, notApproved, "%w", err)
		}
		at.pass("hook", "approved")
	}
	own.Template, own.Device = template, pl.device
	if err := p.keep(ctx, key, own, revision); errors.Is(err, bus.ErrConflict) {
		return nil, awsRefuse(stepToken, http.StatusConflict, "Conflict", "the token is being used at this moment")
	} else if err != nil {
		return nil, err
	}
	c := recordOf(certs[0], p.s.env.Now())
	c.Name, c.Awaited = own.Name, true
	_, _, err = p.o.registry.Add(ctx, Registration{ID: pl.device, Certificate: c, Attributes: pl.attributes, Groups: pl.groups, Policy: pl.policy,
		CA: claimedBy + template, Fresh: !tmpl.Replace, By: "claim:" + claim.Name})
	if errors.Is(err, ErrRefused) {
		return nil, &awsError{http.StatusConflict, "Conflict", inStep("registration", err)}
	}
	if err != nil {
		return nil, err
	}
	p.o.teller.later(pl.device)
	at.pass("registration", "as device %q", pl.device)
	own.Done, own.Certificate = true, ""
	if _, revision, err = p.read(ctx, key); err == nil {
		err = p.keep(ctx, key, own, revision)
	}
	if err != nil { // bound to this device and certificate: using it again changes nothing
		p.s.env.Log.Warn("an ownership token could not be closed; it expires within the hour", "device", pl.device, "error", err)
	}
	return provisioned{Configuration: pl.configuration, Thing: pl.device}, nil
}

// again gives the answer to a request that was done, and changes nothing: that answer may have been lost. Once the device
// has come in with the certificate it was not, and who asks then replays a token; so does who asks for a certificate
// that is not in force any more.
func (p *provisioning) again(ctx context.Context, own ownership, pl plan, at *Attempt) (any, error) {
	d, err := p.o.registry.Get(ctx, own.Device)
	if err != nil && !errors.Is(err, ErrUnknownDevice) {
		return nil, err
	}
	awaited := slices.ContainsFunc(d.Certs, func(c Certificate) bool { return c.Fingerprint == own.Fingerprint && !c.Revoked() && c.Awaited })
	if err != nil || d.Disabled || !awaited {
		return nil, wrongOwner("was used already")
	}
	at.pass("registration", "as device %q, before", pl.device)
	return provisioned{Configuration: pl.configuration, Thing: pl.device}, nil
}

func wrongOwner(why string) error {
	return awsRefuse(stepToken, http.StatusForbidden, "InvalidCertificateOwnershipToken", "the ownership token %s", why)
}

func (p *provisioning) owned(ctx context.Context, key string, claim Claim) (ownership, uint64, error) {
	own, revision, err := p.read(ctx, key)
	switch {
	case errors.Is(err, bus.ErrNotFound):
		return own, 0, wrongOwner("is none of this platform")
	case err != nil:
		return own, 0, err
	case own.Claim != claim.Fingerprint:
		return own, 0, wrongOwner("was given to another claim certificate")
	case p.s.env.Now().After(own.Expires):
		return own, 0, wrongOwner("has expired")
	}
	return own, revision, nil
}

func (p *provisioning) read(ctx context.Context, key string) (own ownership, revision uint64, err error) {
	e, err := p.o.trust.Get(ctx, key)
	if err != nil {
		return own, 0, err
	}
	return own, e.Revision, json.Unmarshal(e.Value, &own)
}

// tokenKey is where a token's entry is: under its hash, so that whoever reads the table has no token.
func tokenKey(prefix, token string) string {
	h := sha256.Sum256([]byte(token))
	return prefix + hex.EncodeToString(h[:])
}

// strict reads JSON without fields that nobody knows; an empty payload is one without fields, where that may be.
func strict(payload []byte, into any, empty bool) error {
	if len(payload) == 0 && empty {
		return nil
	}
	d := json.NewDecoder(strings.NewReader(string(payload)))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return errors.New("the payload is not JSON")
		}
		return fmt.Errorf("the payload: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if d.More() {
		return errors.New("the payload has something behind its end")
	}
	return nil
}
