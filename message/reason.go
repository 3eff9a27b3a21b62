package message

import (
	"errors"
	"fmt"
)

// Reason is why a message, a connection or a request was refused, is being retried, or died. The list is closed, so
// that a person, a rule and a dashboard can rely on it; [Reasons] has it all, and docs/reasons.md a page for each.
type Reason uint16

// The numbers are for ever. A new reason takes the next free number of its hundred.
const (
	// At the door: who may come in.
	CertExpired      Reason = 101
	CertUnknownCA    Reason = 102
	CertRevoked      Reason = 103
	CertNotYetValid  Reason = 104
	CertUnregistered Reason = 105
	CertWrongUsage   Reason = 106
	CertMissing      Reason = 107
	ClientIDMismatch Reason = 108
	HandshakeFailed  Reason = 109
	DeviceDisabled   Reason = 110
	SlowHandshake    Reason = 111
	TokenInvalid     Reason = 112
	ConnectionLimit  Reason = 113
	KeyRevoked       Reason = 114
	CSRInvalid       Reason = 115

	// At the door: what may be said.
	ACLDenied        Reason = 201
	TopicInvalid     Reason = 202
	MessageTooLarge  Reason = 203
	MalformedPacket  Reason = 204
	ProtocolError    Reason = 205
	ReceiveMaximum   Reason = 206
	KeepAliveTimeout Reason = 207
	TakenOver        Reason = 208
	Unsupported      Reason = 209
	SlowConsumer     Reason = 210
	ServerStopping   Reason = 211
	ConnectionLost   Reason = 212
	RateLimited      Reason = 213

	// The bus.
	StorageLow        Reason = 301
	BusUnavailable    Reason = 302
	Fenced            Reason = 303
	CorruptBatch      Reason = 304
	LogTruncated      Reason = 305
	RetentionExceeded Reason = 306
	QoS0NotStored     Reason = 307

	// In a component.
	SchemaMismatch   Reason = 401
	HandlerError     Reason = 402
	HandlerPanic     Reason = 403
	RetriesExhausted Reason = 404
	Loop             Reason = 405
	Expired          Reason = 406
	Undeclared       Reason = 407
	SessionLimit     Reason = 408
	NotDecodable     Reason = 409
	RuleError        Reason = 410
	ReceiverRefused  Reason = 411
	CommandLimit     Reason = 412
	DatasetUnknown   Reason = 413
	ETLError         Reason = 414
	SessionExpired   Reason = 415
)

// ReasonInfo is what a person is told about a reason.
type ReasonInfo struct {
	Reason Reason `json:"-"`
	Code   string `json:"code"`  // "NARU-201"
	Name   string `json:"name"`  // "acl_denied", the label in metrics and lists
	Means  string `json:"means"` // what it means, in a sentence
	Look   string `json:"look"`  // what to look at first
}

// Reasons lists all of them, by number.
func Reasons() []ReasonInfo {
	list := make([]ReasonInfo, len(reasons))
	for i, r := range reasons {
		r.Code = r.Reason.Code()
		list[i] = r
	}
	return list
}

// Code is the stable code, `NARU-201`.
func (r Reason) Code() string { return fmt.Sprintf("NARU-%03d", uint16(r)) }

// String is the name, `acl_denied`.
func (r Reason) String() string {
	for i := range reasons {
		if reasons[i].Reason == r {
			return reasons[i].Name
		}
	}
	return r.Code()
}

// MarshalText writes the name.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a name or a code.
func (r *Reason) UnmarshalText(b []byte) (err error) {
	*r, err = ParseReason(string(b))
	return err
}

// ParseReason reads a name or a code.
func ParseReason(s string) (Reason, error) {
	for _, i := range reasons {
		if s == i.Name || s == i.Reason.Code() {
			return i.Reason, nil
		}
	}
	return 0, fmt.Errorf("%q is not a reason of naru; `naru reasons` lists them", short(s))
}

// Info is what a person is told about the reason.
func (r Reason) Info() ReasonInfo {
	for _, i := range reasons {
		if i.Reason == r {
			i.Code = r.Code()
			return i
		}
	}
	return ReasonInfo{Reason: r, Code: r.Code(), Name: r.Code()}
}

// Rejection is an error that is a message's fate: dead now, for this reason. Trying again would not help.
type Rejection struct {
	Reason Reason
	Err    error // the particulars; may be nil
}

// Reject makes an error the fate of a message: whoever returns it says that it will never succeed.
func Reject(r Reason, err error) error { return &Rejection{Reason: r, Err: err} }

// Rejectf is Reject with particulars.
func Rejectf(r Reason, format string, args ...any) error {
	return &Rejection{Reason: r, Err: fmt.Errorf(format, args...)}
}

// Error is the name of the reason and the particulars.
func (r *Rejection) Error() string {
	if r.Err == nil {
		return r.Reason.String()
	}
	return r.Reason.String() + ": " + r.Err.Error()
}

// Unwrap gives the particulars.
func (r *Rejection) Unwrap() error { return r.Err }

// ReasonOf is the reason in an error, and otherwise where it holds none.
func ReasonOf(err error, otherwise Reason) Reason {
	var r *Rejection
	if errors.As(err, &r) {
		return r.Reason
	}
	return otherwise
}

var reasons = []ReasonInfo{
	{CertExpired, "", "cert_expired", "The client's certificate is past its end.", "`naru device show <id>` for its dates; renew it. If many fail at once, look at the CA and at the device's clock."},
	{CertUnknownCA, "", "cert_unknown_ca", "The client's certificate was not signed by a CA that this platform trusts.", "The issuer in the refusal. Was the device made for another platform, or is its CA not registered here?"},
	{CertRevoked, "", "cert_revoked", "The client's certificate was withdrawn.", "`naru device show <id>` says when. If the device is to come back, give it a new certificate."},
	{CertNotYetValid, "", "cert_not_yet_valid", "The client's certificate begins in the future.", "The clocks of this machine and of whoever issued it."},
	{CertUnregistered, "", "cert_unregistered", "The certificate is signed by a trusted CA, but no device is registered with it.", "`naru device list`. Was the device deleted, or its registration restored from an older copy?"},
	{CertWrongUsage, "", "cert_wrong_usage", "The certificate is not one for a client (extended key usage clientAuth), is itself a CA, or hangs on a CA that may vouch for no clients.", "How the certificate was issued."},
	{CertMissing, "", "cert_missing", "The client offered no certificate where one is wanted.", "The client's TLS settings: certificate and key file."},
	{ClientIDMismatch, "", "client_id_mismatch", "The MQTT client id is not the name in the client's certificate.", "The client id in the device's settings; it must be the device's name, or empty."},
	{HandshakeFailed, "", "handshake_failed", "The TLS handshake did not come to an end.", "The particulars: TLS version, cipher, or something that does not speak TLS."},
	{DeviceDisabled, "", "device_disabled", "The device is switched off by an operator.", "`naru device show <id>` says by whom."},
	{SlowHandshake, "", "slow_handshake", "The client took too long to say CONNECT, or to send its request.", "Network to the device; or somebody is probing the port."},
	{TokenInvalid, "", "token_invalid", "The token of a request is missing or wrong.", "The token file in the platform's data directory, or NARU_TOKEN."},
	{ConnectionLimit, "", "connection_limit", "More clients came than the broker takes, or takes at once.", "The limit named in the refusal. If all of a fleet comes at once, what it lost before: network, power, this platform. Clients try again by themselves."},
	{KeyRevoked, "", "key_revoked", "A certificate was asked for, for a key whose certificate was revoked.", "The particulars name that certificate. Whoever has the key of a revoked certificate may be anybody: have the device make a new one."},
	{CSRInvalid, "", "csr_invalid", "A certificate was asked for with a request that is not one that is signed here.", "The particulars: its form (PKCS #10, in base64 of DER for EST), its signature, the name in it, the kind and length of its key."},

	{ACLDenied, "", "acl_denied", "Policy does not let this client publish or subscribe there.", "Subject and device in the refusal. A device speaks on device.<its own id>.> and hears device.<its own id>.>."},
	{TopicInvalid, "", "topic_invalid", "The topic is not a legal MQTT topic name or filter.", "The client's code: wildcards in a topic name, NUL, malformed UTF-8."},
	{MessageTooLarge, "", "message_too_large", "The message is larger than the limit.", "Both sizes are in the refusal; send less, or raise the limit (`max_message_bytes`)."},
	{MalformedPacket, "", "malformed_packet", "What came is not MQTT, or breaks its format.", "The client library and its version; or something else talks to this port."},
	{ProtocolError, "", "protocol_error", "The client broke the MQTT protocol.", "The statement named in the refusal, and the client library."},
	{ReceiveMaximum, "", "receive_maximum_exceeded", "The client had more QoS 1 or 2 messages under way than was agreed.", "The client library: it must keep to Receive Maximum."},
	{KeepAliveTimeout, "", "keep_alive_timeout", "Nothing came from the client for one and a half times its keep alive.", "Power and network of the device; its neighbours."},
	{TakenOver, "", "taken_over", "Another connection with the same client id took this one's place.", "Whether two devices share one certificate and id; else it is a device that reconnected."},
	{Unsupported, "", "unsupported", "The client asked for something this platform does not do.", "What is named in the refusal."},
	{SlowConsumer, "", "slow_consumer", "The client took what was sent to it too slowly, and its buffer is full.", "Network to the client, and how much it subscribed to."},
	{ServerStopping, "", "server_stopping", "The platform is stopping.", "Nothing; clients connect again by themselves."},
	{ConnectionLost, "", "connection_lost", "The connection ended without a word.", "Network and power of the device."},
	{RateLimited, "", "rate_limited", "The client publishes faster than it may, and is read more slowly; nothing is refused.", "What made the device talk so much; or `publish_rate` is too low for it."},

	{StorageLow, "", "storage_low", "The disk is nearly full; the doors are shut so that what is inside can be finished.", "`naru status` shows space. Free some, or shorten retention; the doors open by themselves."},
	{BusUnavailable, "", "bus_unavailable", "The bus did not confirm the message in time. It may be stored, but was not acknowledged.", "`naru status`: the bus, its nodes, its disk."},
	{Fenced, "", "fenced", "Another process has taken over this work; this one stands down.", "Whether two processes run under one node name, or this one was paused."},
	{CorruptBatch, "", "corrupt_batch", "A batch in the log cannot be read; its messages are counted as dead.", "Disk and memory of the machine; the position is in the exception."},
	{LogTruncated, "", "log_truncated", "The log ends before the position that was reached in it.", "Whether the log was restored from an older copy, or its disk lost writes."},
	{RetentionExceeded, "", "retention_exceeded", "The message was kept as long as was agreed, and nobody took it.", "The consumer named with it: why was it away?"},
	{QoS0NotStored, "", "qos0_not_stored", "A QoS 0 message could not be stored and was dropped, as QoS 0 allows.", "`naru status`: space, the bus."},

	{SchemaMismatch, "", "schema_mismatch", "The message does not keep its contract.", "The path of the field in the particulars, and the firmware of the devices concerned."},
	{HandlerError, "", "handler_error", "The component could not handle the message; it is tried again.", "The particulars, and what the component depends on."},
	{HandlerPanic, "", "handler_panic", "The component's code failed on this message.", "The stack in the particulars: a bug. The message is kept."},
	{RetriesExhausted, "", "retries_exhausted", "The message was tried as often as was agreed and failed each time.", "The last error in the particulars, in `naru messages --outcome dead`; when it is mended, `naru dead retry`."},
	{Loop, "", "loop", "The message has too many causes behind it: messages make each other.", "`naru trace <id>`: where the circle closes."},
	{Expired, "", "expired", "The message lost its worth before it could be delivered.", "Why its receiver was away, and its time to live."},
	{Undeclared, "", "undeclared", "A component tried to say what it does not declare.", "The subject in the particulars. Of a worker or a rule: where it may say something (docs/workers.md, docs/rules.md). Of a component: its Spec.Says."},
	{SessionLimit, "", "session_limit", "More was waiting for a client than its session may hold; the oldest went.", "Why the client was away, and the session's limits."},
	{SessionExpired, "", "session_expired", "A client's session ended with messages waiting: it stayed away for longer than its session lasts, or began a new one.", "Why the client was away, its session's expiry (`session_expiry_max` bounds it), and whether it means to start clean."},
	{NotDecodable, "", "not_decodable", "The message's data is not what its type says.", "The sender's encoding."},
	{RuleError, "", "rule_error", "A rule took the message, and its SQL or one of its actions could not be done with it.", "`naru rule show <rule>`, and the error in the rule's `failed` message in `naru trace <id>`; `naru rule test` shows each step."},
	{ReceiverRefused, "", "receiver_refused", "What was called from here, a worker or a destination, will not have the message.", "Its answer in the particulars, and what it logs; when it is mended, `naru dead retry`."},
	{CommandLimit, "", "command_limit", "More commands wait for a device, or wait for its answer, than are kept.", "`naru command list --device <id>`: is the device away, or does nothing answer there? Then who says so many."},
	{DatasetUnknown, "", "dataset_unknown", "A rule put something into a dataset that is not there.", "`naru data models`, and the rule's action data_bridge; `naru data apply` adds a dataset, for what comes next."},
	{ETLError, "", "etl_error", "A step of a dataset's pipeline could not be done with the message's row; with others it can.", "Step, field and value in the particulars; `naru data etl test` shows what each step makes of a message. When the pipeline is mended, `naru dead retry`."},
}
