package x509

import (
	stdx509 "crypto/x509"
	"strings"
	"testing"

	"github.com/naru-platform/naru/component/names"
)

// Every way in is held to the policies that brokers have, and a refusal tells their names and leaves nothing behind.
func TestUnknownPolicyIsRefusedInEveryWayIn(t *testing.T) {
	a := newArena(t) // nobody tells of policies yet, so that its templates and their claim certificate could be made
	tell := func(all ...string) {
		t.Helper()
		if err := names.Tell(t.Context(), a.bus, names.Policies, "n-1", all); err != nil {
			t.Fatal(err)
		}
	}
	tell("device", "open", "pumps", "meters")
	before := a.fleet()
	refused := func(what string, status, want int, text string) {
		t.Helper()
		if status != want || !strings.Contains(text, "did you mean") || !strings.Contains(text, "device, meters, open, pumps") {
			t.Errorf("%s: answered %d %s", what, status, text)
		}
	}
	var problem struct{ Detail string }
	refused("add", a.do("POST", "/api/v1/devices", Enrolment{ID: "d-2", Policy: "pump"}, &problem), 400, problem.Detail)
	refused("import", a.do("PUT", "/api/v1/devices/d-2", Import{Policy: "pump"}, &problem), 400, problem.Detail)
	refused("change by import", a.do("PUT", "/api/v1/devices/d-1", Import{Policy: "pump"}, &problem), 400, problem.Detail)
	refused("claim certificate", a.do("POST", "/api/v1/claims", ClaimRequest{Name: "lot-8", Templates: []string{"other", "lot"}}, &problem), 400, problem.Detail)
	refused("registered CA", a.do("POST", "/api/v1/ca/registered", CARegistration{Template: "factory"}, &problem), 400, problem.Detail)

	a.hookAllows.Store(false) // it is not even asked
	asked := a.asked.Load()
	made := a.ownership()
	var says struct {
		Code    string `json:"errorCode"`
		Message string `json:"errorMessage"`
	}
	if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": "7"}), &says); got.Accepted || says.Code != "Forbidden" {
		t.Errorf("by claim: %s", string(got.Payload))
	}
	refused("claim", 400, 400, says.Message)
	came := Client{Leaf: leafBy(t, a.clock, a.factory, "m-1", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} })}
	_, err := a.gate.AdmitClient(t.Context(), came)
	if err == nil {
		t.Fatal("just in time it is let in")
	}
	refused("just in time", 400, 400, err.Error())
	if a.asked.Load() != asked {
		t.Error("a hook was asked for a device that cannot be registered")
	}
	for _, device := range []string{"pump-7", "m-1"} {
		if got := a.attempts(attemptFilter{device: device}); len(got) != 1 || got[0].Steps[len(got[0].Steps)-1].Name != "template" || !strings.Contains(got[0].Detail, "did you mean") {
			t.Errorf("%s is recorded as %+v", device, got)
		}
	}
	a.s.look(t.Context(), a.s.open.Load())
	a.s.look(t.Context(), a.s.open.Load())
	if n := strings.Count(a.logs.String(), "names a policy that no broker has"); n != 2 { // lot and factory, each once
		t.Errorf("%d templates are told of:\n%s", n, a.logs)
	}
	if is := a.fleet(); is != before {
		t.Errorf("what was refused changed\n%s to\n%s", before, is)
	}

	// Once the policies are there the same token, and the same device, get in.
	tell("device", "pump", "meter")
	a.hookAllows.Store(true)
	a.clock.move(refusedFor)
	if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": "7"}), nil); !got.Accepted {
		t.Errorf("by claim: %s", string(got.Payload))
	}
	if _, err := a.gate.AdmitClient(t.Context(), came); err != nil {
		t.Errorf("just in time: %v", err)
	}
	var e Enrolled
	if status := a.do("POST", "/api/v1/devices", Enrolment{ID: "d-2", Policy: "pump"}, &e); status != 201 || e.Warning != "" {
		t.Errorf("answered %d %q", status, e.Warning)
	}
}

func TestPolicyIsTakenWithAWarningWhereNoBrokerRuns(t *testing.T) {
	a := startAPI(t)
	var e Enrolled
	if status := a.do("POST", "/api/v1/devices", Enrolment{ID: "d-1", Policy: "pump"}, &e); status != 201 || !strings.Contains(e.Warning, `policy "pump"`) {
		t.Errorf("answered %d %q", status, e.Warning)
	}
	var d Shown
	if status := a.do("PUT", "/api/v1/devices/d-2", Import{Policy: "pump"}, &d); status != 201 || d.Warning == "" || d.Policy != "pump" {
		t.Errorf("answered %d %+v", status, d)
	}
	if !strings.Contains(a.logs.String(), "no broker runs") {
		t.Error("it is not logged")
	}
	a.bus.(*tables).open[names.Table].gone.Store(true)
	if status := a.do("POST", "/api/v1/devices", Enrolment{ID: "d-3", Policy: "pump"}, nil); status != 503 {
		t.Errorf("while the bus is away: answered %d", status)
	}
}
