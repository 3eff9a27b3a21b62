package x509

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	stdx509 "crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/message"
)

// The doors that an attempt is recorded for.
const (
	DoorMQTT  = "mqtt"
	DoorEST   = "est"
	doorClaim = "claim"
	doorJIT   = "jit" // whatever the listener was, the device was to be registered when it came
)

// Client is who wants in, as a listener sees him. What a listener does not know stays empty.
type Client struct {
	Leaf     *stdx509.Certificate   // nil where none was presented; the handshake has proved that the client has its key
	Chain    []*stdx509.Certificate // what else was presented
	Address  string                 // host:port or host
	ClientID string                 // as MQTT's CONNECT has it, where that has been read
	Door     string                 // DoorMQTT where empty
	Version  uint16                 // of TLS, as crypto/tls numbers it
	Resumed  bool                   // the TLS session was

	inside bool // has come in before; see Recheck
}

// ClientOf takes from a connection what an Admission wants to know.
func ClientOf(address string, s tls.ConnectionState) Client {
	c := Client{Address: address, Version: s.Version, Resumed: s.DidResume}
	if len(s.PeerCertificates) > 0 {
		c.Leaf, c.Chain = s.PeerCertificates[0], s.PeerCertificates[1:]
	}
	return c
}

// Admitted is who came in: a device, or the holder of a claim certificate, who may use any client id and may do nothing
// but ask Provision.
type Admitted struct {
	Device      string
	Claim       string // the claim certificate's name; empty for a device
	Fingerprint string // of the certificate
	Policy      string // of the device
	Groups      []string
	Attributes  map[string]string // must not be changed
}

// AdmitClient decides as Admit does, lets in holders of claim certificates too, registers devices of a registered CA
// with a template just in time, and records the attempt step by step. A listener that calls it tells what came after, if
// it refused the client all the same, by Refused.
func (a *Admission) AdmitClient(ctx context.Context, c Client) (Admitted, error) {
	at := a.attempt(c)
	who, err := a.admit(ctx, c, at)
	at.Admitted = err == nil
	a.recorder.record(*at)
	return who, err
}

// Recheck decides whether a client that is connected may stay, as AdmitClient does, but registers nobody. It is no attempt to
// get in: one that may stay leaves no trace, and one that may not is recorded as a connection that was ended.
func (a *Admission) Recheck(ctx context.Context, c Client) error {
	c.inside = true
	at := a.attempt(c)
	at.Ended = true
	at.pass("connected", "looked at again, since what is registered or trusted has changed")
	_, err := a.admit(ctx, c, at)
	if err != nil {
		a.recorder.record(*at)
	}
	return err
}

// Refused records that a client was refused for something that an Admission does not look at: its handshake, client id,
// a policy, a rate limit. step names it in a word; err is why, a *message.Rejection or what crypto/tls said.
func (a *Admission) Refused(c Client, step string, err error) {
	step, err = distrusts(step, err)
	at := a.attempt(c)
	if c.Leaf != nil {
		at.pass("certificate", "of %q", called(c.Leaf))
		fp := fingerprint(sha256.Sum256(c.Leaf.Raw))
		a.mu.RLock()
		at.of(a.certs[fp])
		_, at.Claim = a.claims[fp]
		a.mu.RUnlock()
	}
	_ = at.fail(step, err) // the same error
	a.recorder.record(*at)
}

func (a *Admission) attempt(c Client) *Attempt {
	at := &Attempt{At: a.o.Now().UTC(), Door: c.Door, Address: c.Address, ClientID: c.ClientID}
	if at.Door == "" {
		at.Door = DoorMQTT
	}
	if c.Version != 0 {
		at.TLS = tls.VersionName(c.Version)
		if c.Resumed {
			at.TLS += ", resumed"
		}
	}
	if l := c.Leaf; l != nil {
		at.Device, at.Fingerprint, at.Serial = name(l), authority.Fingerprint(l.Raw), fmt.Sprintf("%x", l.SerialNumber)
		at.Issuer, at.CA, at.NotBefore, at.NotAfter = l.Issuer.CommonName, a.issuerOf(l, c.Chain), l.NotBefore, l.NotAfter
	}
	return at
}

// of says whose attempt it is, where its certificate is registered for a device: the common name may be another. The
// caller holds the lock.
func (at *Attempt) of(d *admitted) {
	if d != nil {
		at.Known, at.Device = true, d.id
	}
}

// Admit decides whether the client with this certificate may come in, and as which device. A refusal is a
// *message.Rejection: CertMissing, CertUnknownCA, CertWrongUsage, CertNotYetValid, CertExpired, CertUnregistered,
// CertRevoked, DeviceDisabled, looked at in this order; BusUnavailable while the registry has not been read yet when
// ctx ends. The handshake must have proved that the client holds the leaf's key. A claim certificate is CertUnregistered
// here. The attempt is recorded.
func (a *Admission) Admit(ctx context.Context, leaf *stdx509.Certificate, intermediates []*stdx509.Certificate) (device string, err error) {
	c := Client{Leaf: leaf, Chain: intermediates}
	at := a.attempt(c)
	who, err := a.admit(ctx, c, at)
	if err == nil && who.Claim != "" {
		err = at.fail("registration", message.Rejectf(message.CertUnregistered, "certificate of %q is a claim certificate, which is for provisioning only", who.Claim))
	}
	at.Admitted = err == nil
	a.recorder.record(*at)
	if err != nil {
		return "", err
	}
	return who.Device, nil
}

func (a *Admission) admit(ctx context.Context, c Client, at *Attempt) (Admitted, error) {
	none, leaf := Admitted{}, c.Leaf
	if leaf == nil {
		return none, at.fail("certificate", message.Rejectf(message.CertMissing, "no client certificate"))
	}
	at.pass("certificate", "of %q by %q", called(leaf), short(leaf.Issuer.CommonName))
	select {
	case <-a.synced:
	default:
		select {
		case <-a.synced:
		case <-ctx.Done():
			return none, at.fail("registration", message.Rejectf(message.BusUnavailable, "the device registry has not been read yet: %w", context.Cause(ctx)))
		}
	}
	fp := fingerprint(sha256.Sum256(leaf.Raw))
	a.mu.RLock()
	at.of(a.certs[fp])
	t, named := a.trust, a.devices[deviceKey(name(leaf))] != nil
	a.mu.RUnlock()
	at.Known = at.Known || named && t.signed(leaf)
	now := a.o.Now()
	by, err := a.verify(leaf, c.Chain, now)
	if err != nil {
		return none, at.fail("signature", message.Rejectf(message.CertUnknownCA, "certificate of %q by %q: %w", called(leaf), short(leaf.Issuer.CommonName), err))
	}
	if by.ca != nil {
		at.CA = keyIDOf(by.ca.cert)
		at.pass("signature", "by the registered CA %q", by.ca.Name)
	} else {
		at.pass("signature", "by the platform's CA")
	}
	if err := checkUsage(leaf); err != nil {
		return none, at.fail("usage", message.Rejectf(message.CertWrongUsage, "certificate of %q: %w", called(leaf), err))
	}
	if by.barred != "" {
		return none, at.fail("usage", message.Rejectf(message.CertWrongUsage, "certificate of %q: the CA %q that it hangs on may vouch for no clients (extended key usage); issue it by another", called(leaf), by.barred))
	}
	at.pass("usage", "for a client")
	switch {
	case now.Before(leaf.NotBefore):
		return none, at.fail("time", message.Rejectf(message.CertNotYetValid, "certificate of %q begins %s, here it is %s",
			called(leaf), stamp(leaf.NotBefore), stamp(now)))
	case now.After(leaf.NotAfter):
		return none, at.fail("time", message.Rejectf(message.CertExpired, "certificate of %q ended %s, here it is %s",
			called(leaf), stamp(leaf.NotAfter), stamp(now)))
	}
	at.pass("time", "until %s", stamp(leaf.NotAfter))
	who, err := a.registered(ctx, c, fp, by, at)
	if err != nil {
		return none, at.fail(stepOf(err, "registration"), err)
	}
	who.Fingerprint = hex.EncodeToString(fp[:])
	at.Known, at.Claim = true, who.Claim != ""
	return who, nil
}

// signed says whether an issuing CA of the platform's own signed a certificate: enough to believe whose attempts an operator
// will look for, never to let anybody in.
func (t *trust) signed(leaf *stdx509.Certificate) bool {
	return t != nil && slices.ContainsFunc(t.bundle.Issuing, func(c *stdx509.Certificate) bool {
		return bytes.Equal(c.RawSubject, leaf.RawIssuer) && leaf.CheckSignatureFrom(c) == nil
	})
}

// registered looks the certificate up. What is not known here may have been registered a moment ago, so the table is
// asked before a device is refused; only holders of a certificate from a trusted CA get so far.
func (a *Admission) registered(ctx context.Context, c Client, fp fingerprint, by anchor, at *Attempt) (Admitted, error) {
	leaf := c.Leaf
	who, err, known := a.lookup(fp)
	if !known {
		if claim, ok, err := a.claimed(fp); ok {
			if at.Claim = true; err == nil {
				at.pass("registration", "as claim certificate %q", claim.Claim)
			}
			return claim, err
		}
		if err := a.ask(ctx, fp); err != nil {
			return Admitted{}, err
		}
		who, err, known = a.lookup(fp)
	}
	if !known && !c.inside && by.ca != nil && by.ca.Template != "" {
		if err := a.justInTime(ctx, leaf, by.ca, at); err != nil {
			return Admitted{}, err
		}
		who, err, known = a.lookup(fp)
	}
	switch {
	case !known:
		return Admitted{}, message.Rejectf(message.CertUnregistered, "certificate %x of %q is registered for no device", fp, called(leaf))
	case err != nil:
		return Admitted{}, err
	}
	if want := a.nameOf(fp, who.Device); want != name(leaf) {
		return Admitted{}, message.Rejectf(message.CertUnregistered, "certificate %x is registered for device %q and names %q", fp, who.Device, called(leaf))
	}
	a.came(ctx, who.Device, fp)
	at.Device = who.Device
	at.pass("registration", "as device %q", who.Device)
	return who, nil
}
