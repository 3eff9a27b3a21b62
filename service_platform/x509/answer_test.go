package x509

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// Answers show a device with its state, and nothing of what the registry keeps for itself.
func TestAnswersShowNoInnerField(t *testing.T) {
	a := startAPI(t)
	a.must201(Enrolment{ID: "d-1"})
	a.mu.Lock()
	a.deaf = true // so that what is to be said stays unsaid
	a.mu.Unlock()
	for _, c := range [][2]string{
		{"POST", "/api/v1/devices/d-1/disable"}, {"POST", "/api/v1/devices/d-1/enable"}, {"PUT", "/api/v1/devices/d-1"},
		{"GET", "/api/v1/devices/d-1"}, {"GET", "/api/v1/devices"}, {"POST", "/api/v1/devices/d-1/revoke"},
	} {
		var text string
		a.do(c[0], c[1], map[string]any{}, &text)
		if strings.Contains(text, "unsaid") || !strings.Contains(text, `"state":`) || strings.Contains(text, `"gone"`) {
			t.Errorf("%s %s: %s", c[0], c[1], text)
		}
	}
}

func TestDeviceIsAddedOnceWhereThatIsAsked(t *testing.T) {
	a := startAPI(t)
	if got := a.do("PUT", "/api/v1/devices/d-1", Import{}, nil); got != 201 {
		t.Fatal(got)
	}
	a.must201(Enrolment{ID: "d-1", New: true}) // it had no certificate
	if got := a.do("POST", "/api/v1/devices", Enrolment{ID: "d-1", New: true}, nil); got != 409 {
		t.Errorf("once more: %d", got)
	}
	a.must201(Enrolment{ID: "d-1"})
	var d Device
	if a.do("GET", "/api/v1/devices/d-1", nil, &d); len(d.Certs) != 2 {
		t.Errorf("%d certificates", len(d.Certs))
	}
}

// A device that has as many certificates as may be is rotated all the same where the old ones end at once.
func TestRotationWithoutOverlapMakesRoom(t *testing.T) {
	a := startAPI(t)
	for range certsMax {
		a.must201(Enrolment{ID: "d-1"})
	}
	longer, none := Duration(day), Duration(0)
	if got := a.do("POST", "/api/v1/devices/d-1/rotate", Rotation{Overlap: &longer}, nil); got != 409 {
		t.Errorf("with an overlap: %d", got)
	}
	var e Enrolled
	if got := a.do("POST", "/api/v1/devices/d-1/rotate", Rotation{Overlap: &none}, &e); got != 201 {
		t.Fatal(got)
	}
	var d Device
	a.do("GET", "/api/v1/devices/d-1", nil, &d)
	for _, c := range d.Certs {
		if c.Revoked() == (c.Fingerprint == e.Fingerprint) {
			t.Errorf("%s: revoked is %v", c.Fingerprint, c.Revoked())
		}
	}
	if d.State(a.clock.Now()) != "active" || len(d.Certs) != certsMax {
		t.Errorf("it is %s, with %d certificates", d.State(a.clock.Now()), len(d.Certs))
	}
	a.listed(func() bool { return len(a.crl("").RevokedCertificateEntries) == certsMax }, "the list has forgotten one")
}

func TestDurationIsReadOrRefusedInWords(t *testing.T) {
	for text, want := range map[string]string{
		"365d": "", "73000d": "", "-1h": "", "0s": "", "1752000h": "", "100000d": "too long", "1752001h": "too long", "9999999999999h": "too long",
		"99999999999999999999d": "too long", "-100000d": "too long", "soon": "not a duration", "d": "not a duration", "365": "not a duration", "1y": "not a duration",
	} {
		var d Duration
		err := json.Unmarshal([]byte(`"`+text+`"`), &d)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %q", text, d, err, want)
		}
		if err == nil && strings.HasSuffix(text, "d") && time.Duration(d)%(24*time.Hour) != 0 {
			t.Errorf("%s is %v", text, d)
		}
	}
}
