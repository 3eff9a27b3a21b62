//go:build long

package e2e

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// guest is a device's connection with a session that outlives it.
type guest struct {
	*claimant
	resumed bool // the session was there before
}

func comeAgain(t *testing.T, addr string, conf *tls.Config, id string) *guest {
	t.Helper()
	nc, err := (&tls.Dialer{Config: conf}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{claimant: &claimant{visitor: &visitor{Conn: nc.(*tls.Conn)}}}
	t.Cleanup(func() { _ = g.Close() })
	connect := packet.Connect{Version: packet.V5, ClientID: id, KeepAlive: 60}
	connect.Properties.Set(packet.SessionExpiry, 3600)
	if _, err := g.Write(connect.Append(nil)); err != nil {
		t.Fatal(err)
	}
	var a packet.Connack
	h, body, err := g.next()
	if err == nil {
		err = a.Decode(h, body, packet.V5)
	}
	if err != nil || a.Code.Failed() {
		t.Fatalf("%s: %s %s, %v", id, a.Code, a.Properties.ReasonString, err)
	}
	g.resumed = a.SessionPresent
	return g
}

// hears subscribes, and says what retained messages come of it.
func (g *guest) hears(t *testing.T, filter string) (topics []string) {
	t.Helper()
	sub := packet.Subscribe{ID: g.next16(), Subscriptions: []packet.Subscription{{Filter: filter, QoS: 0}}}
	if _, err := g.Write(append(sub.Append(nil, packet.V5), byte(packet.PINGREQ)<<4, 0)); err != nil {
		t.Fatal(err)
	}
	for subscribed, ponged := false, false; !subscribed || !ponged; {
		h, body, err := g.next()
		if err != nil {
			t.Fatal(err)
		}
		switch h.Type {
		case packet.SUBACK:
			subscribed = true
		case packet.PINGRESP:
			ponged = true
		case packet.PUBLISH:
			var p packet.Publish
			if err := p.Decode(h, body, packet.V5); err != nil {
				t.Fatal(err)
			}
			topics = append(topics, strings.Clone(p.Topic))
		}
	}
	return topics
}

// TestDeletedDeviceLeavesNothing deletes a device that has a session, a retained message and a twin, by one command; one of
// another name keeps all of it, and who gets the name next begins with nothing, also after a kill.
func TestDeletedDeviceLeavesNothing(t *testing.T) {
	p := newPlatform(t)
	p.start()
	state := func(id string) string { return "device/" + id + "/telemetry" }
	confs := map[string]*tls.Config{}
	for _, id := range []string{"gone", "kept"} {
		confs[id] = credentials(t, p.add(id))
		g := comeAgain(t, p.mqtt, confs[id], id)
		retained := packet.Publish{QoS: 1, ID: 7, Retain: true, Topic: state(id), Payload: []byte(`{"on":true}`)}
		if _, err := g.Write(retained.Append(nil, packet.V5)); err != nil {
			t.Fatal(err)
		}
		if h, body, err := g.next(); err != nil || h.Type != packet.PUBACK || len(body) > 2 && packet.ReasonCode(body[2]).Failed() {
			t.Fatal(h.Type, body, err)
		}
		for late := time.Now().Add(time.Minute); !slices.Contains(g.hears(t, state(id)), state(id)); {
			if time.Now().After(late) {
				t.Fatalf("nothing of %s is retained", id)
			}
		}
		_ = g.Close()
		p.ok("twin", "set", id, "interval=5")
	}
	left := func(id string) (what []string) {
		var sessions []struct{ ClientID string }
		if p.json(&sessions, "mqtt", "sessions", "--client", id); len(sessions) > 0 {
			what = append(what, "session")
		}
		if _, code := p.naru("twin", "get", id); code == 0 {
			what = append(what, "twin")
		}
		return what
	}
	until := func(id string, want ...string) {
		t.Helper()
		for late := time.Now().Add(time.Minute); ; {
			got := left(id)
			if slices.Equal(got, want) {
				return
			}
			if time.Now().After(late) {
				t.Fatalf("of %s there is %q; want %q", id, got, want)
			}
		}
	}
	until("gone", "session", "twin")
	until("kept", "session", "twin")
	p.ok("device", "delete", "gone")
	until("gone")
	until("kept", "session", "twin")
	p.settled(0)
	p.kill()
	p.start()
	until("gone")
	until("kept", "session", "twin")
	if g := comeAgain(t, p.mqtt, confs["kept"], "kept"); !g.resumed || !slices.Contains(g.hears(t, state("kept")), state("kept")) {
		t.Errorf("the other device lost something; its session was there: %v", g.resumed)
	}
	next := comeAgain(t, p.mqtt, credentials(t, p.add("gone")), "gone")
	if heard := next.hears(t, "device/gone/#"); next.resumed || len(heard) > 0 {
		t.Errorf("who is called so next has a session: %v, and hears %q", next.resumed, heard)
	}
	if answer := p.comes("gone", confs["gone"]); !strings.Contains(answer, "cert_unregistered") {
		t.Errorf("the deleted device comes back: %q", answer)
	}
}

// comes gives the platform's reason not to let a device in, or nothing.
func (p *platform) comes(id string, conf *tls.Config) string {
	p.t.Helper()
	v, answer, err := tryVisit(p.t.Context(), p.mqtt, conf, id)
	if err != nil {
		p.t.Fatalf("%s: %v", id, err)
	}
	_ = v.Close()
	if answer.Code.Failed() {
		return answer.Code.String() + " " + answer.Properties.ReasonString
	}
	return ""
}

// TestHookThatDoesNotAnswerIsANo has an approval hook that never answers. The device is told no when five seconds have
// passed, nothing is registered, and an operator sees where it ended.
func TestHookThatDoesNotAnswerIsANo(t *testing.T) {
	stop := make(chan struct{})
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	}))
	defer hook.Close()
	defer close(stop)
	config := filepath.Join(t.TempDir(), "naru.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "service_platform.x509:\n  templates:\n    pumps: {name: \"pump-${SerialNumber}\", parameters: [SerialNumber], hook: %q}\n", hook.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t, "--config", config)
	p.start()
	k, err := claim(t.Context(), p.mqtt, p.claimCertificate("lot", "pumps"), "line", topicCreate, topicProvision("pumps"))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	var made provisionedWith
	if err := k.ask(topicCreate, struct{}{}, &made); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err = k.ask(topicProvision("pumps"), provisionRequest(made.Token, "1"), &struct{}{})
	if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "NotApproved") || took < 4*time.Second {
		t.Errorf("after %s: %v", took, err)
	}
	if out, code := p.naru("device", "show", "pump-1"); code != 1 || !strings.Contains(out, "not registered") {
		t.Errorf("it is registered: %s", out)
	}
	var why because
	for late := time.Now().Add(time.Minute); !strings.Contains(why.Cause, "not approved"); {
		if p.json(&why, "why", "device", "pump-1"); time.Now().After(late) {
			t.Fatalf("why: %+v", why)
		}
	}
}
