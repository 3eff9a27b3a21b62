package x509

import (
	"strings"

	"github.com/naru-platform/naru/message"
)

// StepServer is the step of a handshake that the client ended over the server's certificate: not the platform keeps it out,
// it does not trust the platform.
const StepServer = "server_certificate"

// alerts are what a client may say of the server's certificate (RFC 8446, section 6.2, in the words of crypto/tls), and what
// is likely then.
var alerts = []struct{ says, why string }{
	{"unknown certificate authority", "its ca.crt does not have this platform's root: that is of another platform, or from before the root was changed"},
	{"expired certificate", "its clock is ahead, or the server's certificate has ended"},
	{"bad certificate", distrusted}, {"unknown certificate", distrusted}, {"unsupported certificate", distrusted}, {"revoked certificate", distrusted},
}

const distrusted = "its ca.crt does not have this platform's root, or it connects by a name or address that is not in `service_platform.x509.hosts`"

// inTheClear is what crypto/tls says of a client that speaks in the clear where the handshake is encrypted already. So does
// OpenSSL with its alert where it refuses the server's certificate in TLS 1.3, before it has changed to its keys.
const inTheClear = "local error: tls: bad record MAC"

// distrusts gives the step and the reason of a handshake that a client ended over the server's certificate; another fault is
// given back as it is.
func distrusts(step string, err error) (string, error) {
	if step != "handshake" {
		return step, err
	}
	if strings.HasSuffix(err.Error(), inTheClear) {
		return StepServer, message.Rejectf(message.HandshakeFailed,
			"the client broke off in the clear, as OpenSSL does where it refuses this server's certificate: %s (%s)", distrusted, inTheClear)
	}
	_, alert, ok := strings.Cut(err.Error(), "remote error: tls: ")
	if !ok {
		return step, err
	}
	for _, a := range alerts {
		if alert == a.says {
			return StepServer, message.Rejectf(message.HandshakeFailed, "the client refuses this server's certificate (%s): %s", a.says, a.why)
		}
	}
	return step, err
}
