package x509

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	stdx509 "crypto/x509"

	"github.com/naru-platform/naru/service_platform/x509/authority"
)

// What follows is the door for a listener in another component: it names types of the standard library alone, since
// components do not import each other, so the listener declares what it needs of it as an interface of its own.
//
// A listener calls AdmitPeer once the handshake is done, RecheckPeer when OnChange tells of the device, and RefusePeer for
// what it refuses itself. Where claim is not empty, the client may use any client id, publish where ClaimMayPublish and
// subscribe where ClaimMaySubscribe, and nothing else: what it publishes goes to ProvisionPeer in a goroutine of its
// own (an approval hook may take five seconds), and the answer to that one connection, if it subscribed to its topic.
// Neither is ever appended to a log, matched with others' subscriptions, retained, traced or printed.

// AdmitPeer is AdmitClient: one of device and claim is not empty where err is nil.
func (a *Admission) AdmitPeer(ctx context.Context, address string, s tls.ConnectionState) (device, claim string, err error) {
	who, err := a.AdmitClient(ctx, ClientOf(address, s))
	return who.Device, who.Claim, err
}

// RecheckPeer is Recheck: it gives an error where the connection must end.
func (a *Admission) RecheckPeer(ctx context.Context, address, clientID string, s tls.ConnectionState) error {
	c := ClientOf(address, s)
	c.ClientID = clientID
	return a.Recheck(ctx, c)
}

// RefusePeer is Refused; s is the zero value where the handshake did not end. step is `handshake`, `client_id`,
// `policy`, `rate_limit` or another word.
func (a *Admission) RefusePeer(address, clientID string, s tls.ConnectionState, step string, err error) {
	c := ClientOf(address, s)
	c.ClientID = clientID
	a.Refused(c, step, err)
}

// ClaimMayPublish is the function of that name.
func (a *Admission) ClaimMayPublish(topic string) bool { return ClaimMayPublish(topic) }

// ClaimMaySubscribe is the function of that name.
func (a *Admission) ClaimMaySubscribe(filter string) bool { return ClaimMaySubscribe(filter) }

// ProvisionPeer is Provision for the holder of a claim certificate: what to publish to that connection, and where. The
// answer holds secrets.
func (a *Admission) ProvisionPeer(ctx context.Context, address, clientID string, leaf *stdx509.Certificate, topic string, payload []byte) (answerTopic string, answer []byte) {
	got := a.Provision(ctx, Client{Leaf: leaf, Address: address, ClientID: clientID}, topic, payload)
	return got.Topic, got.Payload
}

// DeviceOf says what the registry holds of the device of a certificate, for policies: known is false where it admits
// nobody any more. What it gives must not be changed.
func (a *Admission) DeviceOf(leaf *stdx509.Certificate) (policy string, groups []string, attributes map[string]string, known bool) {
	who, err, known := a.lookup(sha256.Sum256(leaf.Raw))
	return who.Policy, who.Groups, who.Attributes, known && err == nil
}

// RegisteredDevice is DeviceOf by the device's name, whatever certificates it has.
func (a *Admission) RegisteredDevice(name string) (policy string, groups []string, attributes map[string]string, known bool) {
	if authority.CheckDevice(name) != nil {
		return "", nil, nil, false
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	d := a.devices[deviceKey(name)]
	if d == nil || d.disabled {
		return "", nil, nil, false
	}
	return d.policy, d.groups, d.attributes, true
}
