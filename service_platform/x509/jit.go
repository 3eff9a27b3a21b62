package x509

import (
	"bytes"
	"context"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	neturl "net/url"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	hookPatience = 5 * time.Second
	hookMax      = 64 << 10
	// refusedFor is how long a certificate that was refused just in time is refused without looking again: a device in
	// a loop costs the hook nothing.
	refusedFor = 10 * time.Second
	refusedMax = 4096
)

// refusals remembers for a while what was refused just in time.
type refusals struct {
	mu   sync.Mutex
	list map[fingerprint]refusal
}

type refusal struct {
	until   time.Time
	becomes string // as Attempt.Becomes
	err     error
}

// get gives the zero value where nothing is remembered.
func (r *refusals) get(fp fingerprint, now time.Time) refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f, ok := r.list[fp]; ok && now.Before(f.until) {
		return f
	}
	return refusal{}
}

func (r *refusals) put(fp fingerprint, f refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.list == nil || len(r.list) >= refusedMax {
		r.list = map[fingerprint]refusal{}
	}
	r.list[fp] = f
}

// justInTime registers the device of a registered CA's certificate as the CA's template says. It never touches a device
// that came another way, nor takes a certificate that was withdrawn.
func (a *Admission) justInTime(ctx context.Context, leaf *stdx509.Certificate, ca *registeredCA, at *Attempt) error {
	fp, sum := fingerprint(sha256.Sum256(leaf.Raw)), authority.Fingerprint(leaf.Raw)
	now := a.o.Now()
	at.Door = doorJIT
	if was := a.refused.get(fp, now); was.err != nil {
		at.Becomes = was.becomes
		return was.err
	}
	err := a.registerNow(ctx, leaf, sum, ca, at)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errAway), ctx.Err() != nil: // no verdict on the device, and not remembered
		return message.Rejectf(message.BusUnavailable, "device %q of the registered CA %q could not be registered: %w", called(leaf), ca.Name, err)
	}
	err = message.Rejectf(message.ReasonOf(err, message.CertUnregistered), "certificate %s of %q by the registered CA %q: %w", sum, called(leaf), ca.Name, err)
	a.refused.put(fp, refusal{now.Add(refusedFor), at.Becomes, err})
	return err
}

func (a *Admission) registerNow(ctx context.Context, leaf *stdx509.Certificate, sum string, ca *registeredCA, at *Attempt) error {
	a.mu.RLock()
	tmpl, ok := a.templates[ca.Template]
	table := a.registry
	a.mu.RUnlock()
	if table == nil {
		return awayError{errors.New("the registry has not been opened yet")}
	}
	if !ok {
		return inStep("template", fmt.Errorf("its template %q is not configured", ca.Template))
	}
	trust, err := openStore(ctx, a.bus, trustTable, bus.TableOptions{})
	if err != nil {
		return err
	}
	if err := checkWithdrawn(ctx, trust, sum); err != nil {
		return err
	}
	p, err := tmpl.plan(nil, parametersOf(leaf))
	if err != nil {
		return inStep("template", fmt.Errorf("template %s: %w", ca.Template, err))
	}
	at.Becomes = p.device
	at.pass("template", "%s makes it device %q", ca.Template, p.device)
	if _, err := checkPolicy(ctx, a.policies, p.policy); errors.Is(err, errPolicy) {
		return inStep("template", fmt.Errorf("template %s: %w", ca.Template, err))
	} else if err != nil {
		return err
	}
	if tmpl.Hook != "" {
		if err := askHook(ctx, tmpl.Hook, hookRequest{Template: ca.Template, Device: p.device, Fingerprint: sum, Certificate: parametersOf(leaf)}); err != nil {
			return inStep("hook", err)
		}
		at.pass("hook", "approved")
	}
	c := recordOf(leaf, a.o.Now())
	c.Issuer = keyIDOf(ca.cert) // whatever it says itself, and what may stand between: who depends on that CA is to be known
	if name(leaf) != p.device {
		c.Name = name(leaf)
	}
	r := &Registry{table: store{table}, trust: trust, now: a.o.Now, wrote: a.applyDevice, claimKey: a.checkClaimKey}
	_, _, err = r.Add(ctx, Registration{ID: p.device, Certificate: c, Attributes: p.attributes, Groups: p.groups, Policy: p.policy,
		CA: ca.Fingerprint, Fresh: !tmpl.Replace, By: "ca:" + ca.Name})
	return err
}

// parametersOf is what a certificate says of a device. An absent field is no parameter, so a template that wants it
// refuses.
func parametersOf(c *stdx509.Certificate) map[string]string {
	p := map[string]string{"Certificate.Id": authority.Fingerprint(c.Raw)}
	for key, values := range map[string][]string{
		"Certificate.CommonName": {c.Subject.CommonName}, "Certificate.SerialNumber": {c.Subject.SerialNumber},
		"Certificate.Organization": c.Subject.Organization, "Certificate.OrganizationalUnit": c.Subject.OrganizationalUnit,
		"Certificate.Country": c.Subject.Country,
	} {
		if len(values) == 1 && checkValue(values[0]) == nil {
			p[key] = values[0]
		}
	}
	return p
}

// hookRequest is what an approval hook is asked.
type hookRequest struct {
	Template    string            `json:"templateName"`
	Device      string            `json:"device"`
	Fingerprint string            `json:"certificateId"`
	Claim       string            `json:"claimCertificateId,omitempty"`
	Parameters  map[string]string `json:"parameters,omitempty"`
	Certificate map[string]string `json:"certificate,omitempty"`
}

var hookClient = &http.Client{
	Timeout:       hookPatience,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// askHook asks whether a device may be registered: `{"allowProvisioning": true}` within five seconds says that it may.
func askHook(ctx context.Context, url string, q hookRequest) error {
	body, err := json.Marshal(q)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, hookPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := hookClient.Do(req)
	var u *neturl.Error
	if errors.As(err, &u) {
		err = u.Err // its URL may have a secret in it
	}
	if err != nil {
		return fmt.Errorf("the approval hook does not answer: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, hookMax))
	if err != nil {
		return fmt.Errorf("the approval hook does not answer: %w", err)
	}
	var said struct {
		Allow bool `json:"allowProvisioning"`
	}
	switch {
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the approval hook answers %s", resp.Status)
	case !strings.Contains(resp.Header.Get("Content-Type"), "json") || json.Unmarshal(raw, &said) != nil:
		return errors.New("the approval hook's answer is not JSON with allowProvisioning")
	case !said.Allow:
		return errors.New("the approval hook does not allow it")
	}
	return nil
}
