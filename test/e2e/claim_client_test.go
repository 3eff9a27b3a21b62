package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// The topics of AWS IoT's fleet provisioning.
const (
	topicCreate = "$aws/certificates/create/json"
	topicCSR    = "$aws/certificates/create-from-csr/json"
)

func topicProvision(template string) string {
	return "$aws/provisioning-templates/" + template + "/provision/json"
}

// claimant is a connection of the holder of a claim certificate.
type claimant struct {
	*visitor
	id uint16
}

// claimCertificate has one issued for a template, and gives what its holders connect with.
func (p *platform) claimCertificate(name, template string) *tls.Config {
	p.t.Helper()
	dir := filepath.Join(p.t.TempDir(), name)
	p.ok("ca", "claim", "add", name, "--template", template, "--out", dir)
	return credentials(p.t, dir)
}

// claim connects, and subscribes to both answers of each topic.
func claim(ctx context.Context, addr string, conf *tls.Config, id string, topics ...string) (*claimant, error) {
	v, answer, err := tryVisit(ctx, addr, conf, id)
	if err != nil {
		return nil, err
	}
	if answer.Code.Failed() {
		return nil, fmt.Errorf("%s: %s", answer.Code, answer.Properties.ReasonString)
	}
	c := &claimant{v, 0}
	if len(topics) == 0 {
		return c, nil
	}
	sub := packet.Subscribe{ID: c.next16()}
	for _, topic := range topics {
		for _, end := range []string{"/accepted", "/rejected"} {
			sub.Subscriptions = append(sub.Subscriptions, packet.Subscription{Filter: topic + end, QoS: 1})
		}
	}
	if _, err := c.Write(sub.Append(nil, packet.V5)); err != nil {
		return c, err
	}
	h, _, err := c.next()
	if err == nil && h.Type != packet.SUBACK {
		err = fmt.Errorf("%s came, and SUBACK was due", h.Type)
	}
	return c, err
}

func (c *claimant) next16() uint16 {
	c.id++
	return c.id
}

// errRejected is that an answer came at …/rejected.
var errRejected = errors.New("rejected")

// ask publishes a request and reads its answer.
func (c *claimant) ask(topic string, request, answer any) error {
	if err := c.send(topic, request); err != nil {
		return err
	}
	for {
		h, body, err := c.next()
		if err != nil {
			return err
		}
		if h.Type != packet.PUBLISH {
			continue
		}
		var p packet.Publish
		if err := p.Decode(h, body, packet.V5); err != nil {
			return err
		}
		if p.Topic == topic+"/rejected" {
			return fmt.Errorf("%w: %s", errRejected, p.Payload)
		}
		return json.Unmarshal(p.Payload, answer)
	}
}

func (c *claimant) send(topic string, request any) error {
	raw, err := json.Marshal(request)
	if err != nil {
		return err
	}
	p := packet.Publish{QoS: 1, ID: c.next16(), Topic: topic, Payload: raw}
	_, err = c.Write(p.Append(nil, packet.V5))
	return err
}

// quiet says that nothing is published to the connection: it asks for PINGRESP, and that is what comes.
func (c *claimant) quiet(t *testing.T, who string) {
	t.Helper()
	if _, err := c.Write([]byte{byte(packet.PINGREQ) << 4, 0}); err != nil {
		t.Fatal(err)
	}
	for {
		h, body, err := c.next()
		if err != nil {
			t.Fatalf("%s: %v", who, err)
		}
		switch h.Type {
		case packet.PINGRESP:
			return
		case packet.PUBLISH:
			t.Errorf("%s hears %q", who, strings.ToValidUTF8(string(body), "?"))
		}
	}
}

// provisionedWith is what a claim certificate's holder gets for a device.
type provisionedWith struct {
	PEM   string `json:"certificatePem"`
	Key   string `json:"privateKey"`
	Token string `json:"certificateOwnershipToken"`
}

func (w provisionedWith) pair(t *testing.T) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(w.PEM), []byte(w.Key))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func provisionRequest(token, serial string) map[string]any {
	return map[string]any{"certificateOwnershipToken": token, "parameters": map[string]string{"SerialNumber": serial}}
}
