package x509

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	stdx509 "crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// problemOf gives what an answer that is a problem says.
func (a *api) problemOf(method, path string, body any) (status int, detail string) {
	a.Helper()
	var p struct{ Detail string }
	status = a.do(method, path, body, &p)
	return status, p.Detail
}

// Two claim certificates of one name are made only where that was said, and told apart afterwards.
func TestSecondClaimOfANameIsMadeOnlyWhereMeant(t *testing.T) {
	a := newArena(t)
	first := a.claim.Fingerprint
	if status, why := a.problemOf("POST", "/api/v1/claims", ClaimRequest{Name: "lot-7", Templates: []string{"lot"}}); status != 409 || !strings.Contains(why, first) {
		t.Errorf("a second one is answered %d: %s", status, why)
	}
	var second Enrolled
	a.must(a.do("POST", "/api/v1/claims", ClaimRequest{Name: "lot-7", Templates: []string{"lot"}, Another: true}, &second), 201)
	if status, why := a.problemOf("POST", "/api/v1/claims/lot-7/revoke", struct{}{}); status != 409 || !strings.Contains(why, first) || !strings.Contains(why, second.Fingerprint) {
		t.Errorf("one of two is revoked by the name: %d %s", status, why)
	}
	var done RevokedClaim
	a.must(a.do("POST", "/api/v1/claims/"+first[:prefixMin]+"/revoke", struct{}{}, &done), 200)
	if done.Fingerprint != first || len(done.Others) != 1 || done.Others[0].Fingerprint != second.Fingerprint || done.Certificate != nil {
		t.Errorf("revoked %+v", done)
	}
	done = RevokedClaim{}
	a.must(a.do("POST", "/api/v1/claims/lot-7/revoke", struct{}{}, &done), 200) // the one that is left
	if done.Fingerprint != second.Fingerprint || len(done.Others) > 0 {
		t.Errorf("then %+v", done)
	}
	a.must(a.do("POST", "/api/v1/claims", ClaimRequest{Name: "lot-7", Templates: []string{"lot"}}, nil), 201) // those of before are over
	if status, _ := a.problemOf("POST", "/api/v1/claims/"+strings.Repeat("0", 64)+"/revoke", struct{}{}); status != 404 {
		t.Errorf("one that there is not is answered %d", status)
	}
	var list []Claim
	a.must(a.do("GET", "/api/v1/claims", nil, &list), 200)
	if len(list) != 3 || list[0].Certificate != nil {
		t.Errorf("listed %+v", list)
	}
}

// An answer that was lost is given once more to who has the key, and two at once are one.
func TestClaimIsGivenAgainToWhoHasItsKey(t *testing.T) {
	a := newArena(t)
	request := string(csr(t, ecKey(t, elliptic.P256()), "lot-8"))
	var got [4]Enrolled
	var all sync.WaitGroup
	for i := range got {
		all.Go(func() {
			a.do("POST", "/api/v1/claims", ClaimRequest{Name: "lot-8", Templates: []string{"lot", "other"}, CSR: request}, &got[i])
		})
	}
	all.Wait()
	for _, g := range got {
		if g.Certificate != got[0].Certificate || g.Fingerprint == "" {
			t.Fatal("asked again, it gets another certificate")
		}
	}
	if status, why := a.problemOf("POST", "/api/v1/claims", ClaimRequest{Name: "lot-8", Templates: []string{"lot"}, CSR: request}); status != 409 {
		t.Errorf("for other templates: %d %s", status, why)
	}
}

// A name that is written like the beginning of another's fingerprint is not taken for either.
func TestClaimMeantIsNeverGuessed(t *testing.T) {
	now := newClock().Now()
	claim := func(name, fingerprint string) Claim {
		return Claim{Name: name, Fingerprint: fingerprint + strings.Repeat("0", 64-len(fingerprint)), NotAfter: now.Add(day)}
	}
	list := []Claim{claim("cafecafe", "01"), claim("other", "cafecafe"), claim("a", "0102030405"), claim("b", "0102030406")}
	for given, want := range map[string]string{
		"other": list[1].Fingerprint, "cafecafe0": list[1].Fingerprint, "CA:FE:CA:FE:00": list[1].Fingerprint, "0102030405…": list[2].Fingerprint,
		"cafecafe": "", "01020304": "", "0102030": "", "deadbeef": "", "x": "",
	} {
		if got, err := claimMeant(given, list, now); got != want || (err == nil) != (want != "") {
			t.Errorf("%q is taken for %q, %v; want %q", given, got, err, want)
		}
	}
}

// counted counts what is asked of a bus.
type counted struct {
	*tables
	asked atomic.Int64
}

func (c *counted) Table(ctx context.Context, name string, o bus.TableOptions) (bus.Table, error) {
	c.asked.Add(1)
	return c.tables.Table(ctx, name, o)
}

// However much the holder of a claim certificate asks for at a door without a CA, the bus is asked as often as he may.
func TestFloodOfAClaimEndsAtTheDoor(t *testing.T) {
	a := newArena(t)
	b := &counted{tables: a.bus.(*tables)}
	door := NewAdmission(b, AdmissionOptions{Now: a.clock.Now, Node: "n-2"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nobody waits for an answer
	answered := map[string]int{}
	for range 10 * claimBurst {
		var no struct{ ErrorCode string }
		if err := json.Unmarshal(door.Provision(ctx, a.claimClient(), topicCreate, []byte("{}")).Payload, &no); err != nil {
			t.Fatal(err)
		}
		answered[no.ErrorCode]++
	}
	if asked := b.asked.Load(); answered["Throttled"] != 9*claimBurst || asked == 0 || asked > 3*claimBurst {
		t.Errorf("answered %v; the bus was asked %d times", answered, asked)
	}
	table := admissionsIn(t, a.bus)
	if err := door.recorder.flush(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	limited := 0
	for _, at := range recorded(t, a.bus, attemptFilter{}) {
		if at.Reason == message.RateLimited.String() && at.Claim && at.Node == "n-2" {
			limited += at.Count
		}
	}
	if limited != 9*claimBurst {
		t.Errorf("%d are recorded as rate_limited", limited)
	}
}

// A change of what is trusted has every connection looked at again. That is no attempt to get in, and leaves no trace but of
// those that must end.
func TestLookingAtConnectionsAgainLeavesNoTrace(t *testing.T) {
	a := newArena(t)
	inside := map[string]tls.ConnectionState{}
	for i := range 2 * attemptsPerChunk {
		id := fmt.Sprintf("c-%d", i)
		var e Enrolled
		a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: id}, &e), 201)
		inside[id] = tls.ConnectionState{PeerCertificates: []*stdx509.Certificate{certOf(t, e)}}
	}
	a.settle()
	before := len(a.attempts(attemptFilter{}))
	ended := map[string]int{}
	a.gate.OnChange(func(who string) {
		s, ok := inside[who]
		if !ok {
			return
		}
		if err := a.gate.RecheckPeer(t.Context(), "192.0.2.7:4711", who, s); err != nil {
			ended[who]++
		}
	})
	a.gate.tellAll()
	if got := a.attempts(attemptFilter{}); len(got) != before || len(ended) > 0 {
		t.Fatalf("%d attempts are recorded of nobody's coming; %v were ended", len(got)-before, ended)
	}
	a.must(a.do("POST", "/api/v1/devices/c-3/disable", Change{Reason: "stolen"}, nil), 200)
	a.settle()
	got := a.attempts(attemptFilter{})
	if len(got) != before+1 || got[0].Device != "c-3" || got[0].Reason != "device_disabled" || !got[0].Ended || got[0].Count != 1 || got[0].ClientID != "c-3" || got[0].Steps[0].Name != "connected" {
		t.Errorf("recorded %+v; ended %v", got[0], ended)
	}
}

// A device that was deleted does not register itself anew by being connected.
func TestLookingAgainRegistersNobody(t *testing.T) {
	a := newArena(t)
	c := Client{Leaf: leafBy(t, a.clock, a.factory, "meter-1", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} })}
	if err := a.gate.Recheck(t.Context(), c); message.ReasonOf(err, 0) != message.CertUnregistered {
		t.Errorf("it may stay: %v", err)
	}
	if got := a.attempts(attemptFilter{}); got[0].Becomes != "" || !got[0].Ended {
		t.Errorf("recorded %+v", got[0])
	}
}
