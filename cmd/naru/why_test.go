package main

import (
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509"
)

func TestWhyDeviceNamesTheCauseAndTheRemedy(t *testing.T) {
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	good := x509.Device{ID: "d-1", Certs: []x509.Certificate{{Fingerprint: "f", NotAfter: now.Add(90 * 24 * time.Hour)}}}
	with := func(change func(*x509.Device)) x509.Device {
		d := good
		d.Certs = append([]x509.Certificate{}, good.Certs...)
		change(&d)
		return d
	}
	refused := func(reason, step string, change func(*x509.Attempt)) []x509.Attempt {
		a := x509.Attempt{Last: now, Count: 1, Reason: reason, Device: "d-1", Fingerprint: "f", Detail: "particulars", Issuer: "Factory CA",
			Steps: []x509.Step{{Name: "certificate", OK: true}, {Name: step}}}
		if change != nil {
			change(&a)
		}
		return []x509.Attempt{a}
	}
	cas := []x509.RegisteredCA{{Name: "Lazy CA", Fingerprint: "ab12", Disabled: true}}
	for name, c := range map[string]struct {
		device   x509.Device
		known    bool
		attempts []x509.Attempt
		well     bool
		says     []string
	}{
		"admitted":     {good, true, []x509.Attempt{{Admitted: true, Fingerprint: "f", Last: now}}, true, []string{"Nothing keeps it out", "last got in"}},
		"never seen":   {good, true, nil, true, []string{"did not try", "firewall"}},
		"nobody":       {x509.Device{}, false, nil, false, []string{"No device of that id", "device add"}},
		"expired":      {good, true, refused("cert_expired", "time", func(a *x509.Attempt) { a.NotAfter = now.Add(-48 * time.Hour) }), false, []string{"expired certificate", "rotate"}},
		"clock behind": {good, true, refused("cert_not_yet_valid", "time", nil), false, []string{"clock is wrong", "time server"}},
		"just expired": {good, true, refused("cert_expired", "time", func(a *x509.Attempt) { a.NotAfter = now.Add(-time.Minute) }), false, []string{"less than an hour", "clock"}},
		"unknown CA":   {x509.Device{}, false, refused("cert_unknown_ca", "signature", nil), false, []string{`"Factory CA"`, "naru ca register"}},
		"wrong usage":  {good, true, refused("cert_wrong_usage", "usage", nil), false, []string{"particulars", "extendedKeyUsage clientAuth"}},
		"retired":      {good, true, refused("cert_unknown_ca", "signature", nil), false, []string{"below a root that was retired", "rotate d-1"}},
		"removed CA":   {with(func(d *x509.Device) { d.CA = "ab12" }), true, refused("cert_unknown_ca", "signature", nil), false, []string{"registered here and removed", "ca register"}},
		"switched off": {with(func(d *x509.Device) { d.CA = "ab12" }), true, refused("cert_unknown_ca", "signature", func(a *x509.Attempt) { a.Issuer = "Lazy CA" }), false, []string{"switched off", "naru ca enable ab12"}},
		"a stranger, and the device is in": {good, true, append(refused("cert_unknown_ca", "signature", func(a *x509.Attempt) { a.Fingerprint = "g" }), x509.Attempt{Admitted: true, Fingerprint: "f", Last: now}), true,
			[]string{"Nothing keeps it out", "Someone else claimed this name"}},
		"a stranger alone": {good, true, refused("cert_unknown_ca", "signature", func(a *x509.Attempt) { a.Fingerprint = "g" }), true,
			[]string{"did not try", "Someone else claimed this name", "If that is the device itself: naru ca status"}},
		"no such policy": {with(func(d *x509.Device) { d.Policy = "pump" }), true, refused("acl_denied", "connect", func(a *x509.Attempt) {
			a.Detail = `policy "pump" is named for device "d-1", and there is none; there are device`
		}), false,
			[]string{"a policy that is not configured", "device set d-1 --policy"}},
		"its own policy": {with(func(d *x509.Device) { d.Policy = "pump" }), true, refused("acl_denied", "connect", nil), false, []string{"as it connected", `policy "pump"`, "naru mqtt may"}},
		"revoked":        {with(func(d *x509.Device) { d.Certs[0].RevokedAt = now }), true, nil, false, []string{"revoked", "rotate"}},
		"disabled": {with(func(d *x509.Device) { d.Disabled, d.DisabledBy, d.DisabledReason = true, "jun", "floods" }), true, refused("device_disabled", "registration", nil),
			false, []string{"by jun: floods", "device enable"}},
		"disabled for no reason": {with(func(d *x509.Device) { d.Disabled, d.DisabledBy = true, "jun" }), true, nil, false, []string{"by jun.", "device enable"}},
		"enabled since":          {good, true, refused("device_disabled", "registration", nil), true, []string{"Nothing keeps it out now", "while it was disabled"}},
		"revoked since it was disabled": {with(func(d *x509.Device) { d.Certs[0].RevokedAt = now }), true, refused("device_disabled", "registration", nil), false,
			[]string{"All its certificates are revoked"}},
		"deleted since it was disabled": {x509.Device{}, false, refused("device_disabled", "registration", nil), false, []string{"deleted since it last came", "device add d-1"}},
		"deleted since it was in":       {x509.Device{}, false, []x509.Attempt{{Admitted: true, Fingerprint: "f", Last: now}}, false, []string{"deleted since it last came", "device add d-1"}},
		"CN mismatch":                   {good, true, refused("client_id_mismatch", "client_id", nil), false, []string{"client id", "Set the client id to d-1"}},
		"policy":                        {good, true, refused("acl_denied", "connect", nil), false, []string{"Policy", "particulars", "device/d-1/"}},
		"refused a topic":               {good, true, refused("acl_denied", "policy", nil), true, []string{"gets in", "by policy", "particulars"}},
		"rate limit":                    {good, true, refused("receive_maximum_exceeded", "rate_limit", nil), false, []string{"rate limit", "loop"}},
		"old certificate":               {good, true, refused("cert_unregistered", "registration", func(a *x509.Attempt) { a.Fingerprint = "g" }), true, []string{"Someone else claimed this name", "If that is the device itself"}},
		"connect rate":                  {good, true, refused("connection_limit", "rate_limit", nil), false, []string{"rate limit", "particulars"}},
		"read slowly":                   {good, true, refused("rate_limited", "rate_limit", nil), true, []string{"gets in", "holds it back", "publish_rate"}},
		"claim's rate":                  {x509.Device{}, false, refused("rate_limited", "throttle", func(a *x509.Attempt) { a.Door = "claim" }), false, []string{"rate limit on certificates", "ca claim list"}},
		"hook":                          {x509.Device{}, false, refused("cert_unregistered", "hook", func(a *x509.Attempt) { a.Door = "jit" }), false, []string{"not approved", "approval hook"}},
		"template":                      {x509.Device{}, false, refused("acl_denied", "template", func(a *x509.Attempt) { a.Door = "claim" }), false, []string{"template does not fit", "config show"}},
		"template's policy":             {x509.Device{}, false, refused("acl_denied", "template", func(a *x509.Attempt) { a.Door, a.Detail = "claim", `there is no policy "pmup"` }), false, []string{"no broker has", "config show"}},
		"revoked now":                   {with(func(d *x509.Device) { d.Certs[0].RevokedAt = now }), true, refused("cert_revoked", "registration", nil), false, []string{"naru device show d-1"}},
		"ownership token":               {x509.Device{}, false, refused("token_invalid", "token", func(a *x509.Attempt) { a.Door = "claim" }), false, []string{"ownership token", "anew"}},
		"EST token":                     {x509.Device{}, false, refused("token_invalid", "token", func(a *x509.Attempt) { a.Door, a.Fingerprint = "est", "" }), false, []string{"enrolment token", "naru device token d-1"}},
		"EST csr":                       {x509.Device{}, false, refused("acl_denied", "csr", func(a *x509.Attempt) { a.Door, a.Fingerprint = "est", "" }), false, []string{"signing request", "P-256"}},
		"another's claim":               {x509.Device{}, false, refused("acl_denied", "claim", func(a *x509.Attempt) { a.Door = "claim" }), false, []string{"claim certificate", "ca claim list"}},
		"no renewal": {good, true, append(refused("token_invalid", "token", func(a *x509.Attempt) { a.Door, a.Fingerprint = "est", "" }), x509.Attempt{Admitted: true, Fingerprint: "f", Last: now.Add(-time.Hour)}),
			true, []string{"last got in", "refused another certificate", "naru device token d-1"}},
		"expired, and no renewal": {with(func(d *x509.Device) { d.Certs[0].NotAfter = now.Add(-time.Hour) }), true, refused("token_invalid", "token", func(a *x509.Attempt) { a.Door, a.Fingerprint = "est", "" }),
			false, []string{"enrolment token"}},
		"fought for": {good, true, append([]x509.Attempt{{Admitted: true, Fingerprint: "f", Last: now}}, refused("taken_over", "turns", nil)...), false,
			[]string{"two clients have its certificate", "Particulars", "device rotate d-1"}},
		"fought for once": {good, true, append([]x509.Attempt{{Admitted: true, Fingerprint: "f", Last: now}}, refused("taken_over", "turns", func(a *x509.Attempt) { a.Last = now.Add(-time.Hour) })...), true,
			[]string{"Nothing keeps it out"}},
		"handshake": {good, true, refused("handshake_failed", "handshake", nil), false, []string{"particulars", "TLS version"}},
	} {
		b := explain("d-1", x509.Shown{Device: c.device}, c.known, c.attempts, cas, now)
		for _, want := range c.says {
			if !strings.Contains(b.Cause+b.Remedy, want) {
				t.Errorf("%s: says %q, %q; want %q", name, b.Cause, b.Remedy, want)
			}
		}
		if b.Well != c.well || b.Well == (b.Reason != "") {
			t.Errorf("%s: well %v, reason %q", name, b.Well, b.Reason)
		}
	}
}

// A device's own provisioning is done with a claim certificate, and is no stranger's for that; what such a one was refused
// may be.
func TestWhyTakesItsOwnProvisioningForTheDevices(t *testing.T) {
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	d := x509.Device{ID: "pump-1", CA: "claim:pumps", Certs: []x509.Certificate{{Fingerprint: "f", Name: "provisioned-1", NotAfter: now.Add(time.Hour)}}}
	made := x509.Attempt{Door: "claim", Device: "lot-7", Becomes: "pump-1", Fingerprint: "c", Admitted: true, Last: now}
	refused := made
	refused.Admitted, refused.Reason = false, "acl_denied"
	b := explain("pump-1", x509.Shown{Device: d}, true, []x509.Attempt{made}, nil, now)
	if !b.Well || len(b.Others) != 0 || len(b.Attempts) != 1 {
		t.Errorf("its own provisioning: %+v", b)
	}
	if b = explain("pump-1", x509.Shown{Device: d}, true, []x509.Attempt{refused}, nil, now); len(b.Others) != 1 {
		t.Errorf("another try to take its name: %+v", b)
	}
	// It asked with a token, and showed what it had of before.
	shown := x509.Attempt{Door: "est", Device: "pump-1", Fingerprint: "g", Admitted: true, Last: now, Steps: []x509.Step{{Name: "time"}, {Name: "token", OK: true}}}
	if b = explain("pump-1", x509.Shown{Device: d}, true, []x509.Attempt{shown}, nil, now); len(b.Others) != 0 {
		t.Errorf("its own enrolment: %+v", b)
	}
	ended := x509.Attempt{Door: "mqtt", Device: "pump-1", Fingerprint: "f", Reason: "cert_revoked", Ended: true, Last: now, Steps: []x509.Step{{Name: "connected", OK: true}, {Name: "registration"}}}
	if b = explain("pump-1", x509.Shown{Device: d}, true, []x509.Attempt{ended}, nil, now); b.Well || !strings.HasPrefix(b.Cause, "Its connection was ended") {
		t.Errorf("a connection that was ended: %+v", b)
	}
}

// Of claim certificates of one name it is explained the one that came, else one in force.
func TestWhyKnowsClaimsOfOneNameApart(t *testing.T) {
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	claims := []x509.Claim{{Name: "lot", Fingerprint: "a", NotAfter: now.Add(time.Hour), RevokedAt: now}, {Name: "lot", Fingerprint: "b", NotAfter: now.Add(time.Hour)}, {Name: "other", Fingerprint: "c"}}
	for came, want := range map[string]string{"": "b", "a": "a"} {
		if got := claimNamed("lot", claims, []x509.Attempt{{Fingerprint: came}}, now); got == nil || got.Fingerprint != want {
			t.Errorf("%q came: %+v", came, got)
		}
	}
	if got := claimNamed("none", claims, nil, now); got != nil {
		t.Error(got)
	}
}

// A device whose CA is trusted no more is kept out, whether it has come since or not.
func TestWhySaysThatTheCAIsTrustedNoMore(t *testing.T) {
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	d := x509.Device{ID: "d-1", CA: "ab12", Certs: []x509.Certificate{{Fingerprint: "f", NotAfter: now.Add(time.Hour)}}}
	cas := []x509.RegisteredCA{{Name: "Lazy CA", Fingerprint: "ab12", Disabled: true}}
	before := []x509.Attempt{{Admitted: true, Fingerprint: "f", Last: now.Add(-time.Hour)}}
	for why, remedy := range map[x509.Standing]string{x509.Disabled: "naru ca enable ab12", x509.Retired: "naru device rotate d-1", x509.Removed: "naru ca registration-code"} {
		for _, attempts := range [][]x509.Attempt{nil, before} {
			b := explain("d-1", x509.Shown{Device: d, Untrusted: why}, true, attempts, cas, now)
			if b.Well || b.State != "untrusted" || b.Reason != "cert_unknown_ca" || !strings.Contains(b.Cause, "Its CA is not trusted ("+string(why)+")") || !strings.HasPrefix(b.Remedy, remedy) {
				t.Errorf("%s: %+v", why, b)
			}
		}
	}
	for want, a := range map[string]x509.CAAttempts{"no": {}, "yes": {Known: true, Standing: x509.Trusted}, "retired": {Known: true, Standing: x509.Retired}, "disabled": {Known: true, Standing: x509.Disabled}, "removed": {Known: true, Standing: x509.Removed}} {
		if got := standing(a); got != want {
			t.Errorf("%+v is %q", a, got)
		}
	}
}

// A device that was given a new certificate and comes with the one of before wants no other, but that one put on it.
func TestWhySaysThatADeviceUsesItsOldCertificate(t *testing.T) {
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	old := x509.Certificate{Fingerprint: strings.Repeat("a", 64), Issuer: "i1", IssuedAt: now.Add(-2 * time.Hour), NotAfter: now.Add(time.Hour)}
	newer := x509.Certificate{Fingerprint: strings.Repeat("b", 64), Issuer: "i1", IssuedAt: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	revoked, expired, replaced, other := old, old, old, newer
	revoked.RevokedAt, expired.NotAfter, replaced.EndsAt, other.Issuer = now, now.Add(-time.Minute), now, "i2"
	for name, c := range map[string]struct {
		old, newer x509.Certificate
		reason     string
		says       bool
	}{
		"revoked": {revoked, newer, "cert_revoked", true}, "expired": {expired, newer, "cert_expired", true}, "replaced": {replaced, newer, "cert_revoked", true},
		"of a retired root": {old, other, "cert_unknown_ca", true}, "both of a retired root": {old, newer, "cert_unknown_ca", false},
		"the newer is no good": {newer, revoked, "cert_revoked", false}, "another fault": {old, newer, "client_id_mismatch", false},
	} {
		d := x509.Shown{Device: x509.Device{ID: "d-1", Certs: []x509.Certificate{c.old, c.newer}}}
		a := x509.Attempt{Reason: c.reason, Fingerprint: c.old.Fingerprint, Last: now, NotAfter: c.old.NotAfter, Detail: "particulars", Steps: []x509.Step{{Name: "registration"}}}
		b := explain("d-1", d, true, []x509.Attempt{a}, nil, now)
		if b.Well || b.Reason != c.reason {
			t.Errorf("%s: %+v", name, b)
		}
		if got := strings.HasPrefix(b.Cause, "It uses the old certificate aaaaaaaaaaaaaaaa; bbbbbbbbbbbbbbbb is in force: put it on the device."); got != c.says {
			t.Errorf("%s: says %q", name, b.Cause)
		}
	}
}

func TestWhyExplainsAClaimCertificate(t *testing.T) {
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	good := x509.Claim{Name: "lot-7", Templates: []string{"pumps"}, NotAfter: now.Add(time.Hour)}
	revoked, ended := good, good
	revoked.RevokedAt, ended.NotAfter = now, now
	refused := []x509.Attempt{{Last: now, Reason: "rate_limited", Detail: "particulars", Door: "claim", Steps: []x509.Step{{Name: "throttle"}}}}
	for _, c := range []struct {
		claim    x509.Claim
		attempts []x509.Attempt
		reason   string
		says     string
	}{
		{good, nil, "", "Nobody came with it"}, {good, []x509.Attempt{{Admitted: true, Last: now, Becomes: "pump-1"}}, "", "naru why device pump-1"},
		{good, []x509.Attempt{{Last: now, Reason: "acl_denied", Detail: "particulars", Steps: []x509.Step{{Name: "policy"}}}}, "", "may do nothing else"},
		{good, refused, "rate_limited", "particulars"}, {revoked, nil, "cert_revoked", "naru ca claim add"}, {ended, nil, "cert_expired", "It ended"},
	} {
		b := explainClaim(c.claim, c.attempts, nil, now)
		if b.Reason != c.reason || b.Well != (c.reason == "") || !strings.Contains(b.Cause+b.Remedy, c.says) || b.State != "a claim certificate" {
			t.Errorf("want %q, %q: %+v", c.reason, c.says, b)
		}
	}
}

// A file of any spreadsheet is read, and a line that is wrong does not stop the others.
func TestFleetIsReadFromCSVAndJSONLines(t *testing.T) {
	for format, text := range map[string]string{
		"csv":   "\ufeffID,Groups,attributes,disabled\nd-1,\"a; b\",\"{\"\"x\"\":\"\"y\"\"}\",yes\n,,,\nd-2,,[1],\nd-3,,,\n",
		"jsonl": `{"id":"d-1","groups":["a","b"],"attributes":{"x":"y"},"disabled":true}` + "\n{}\n\nx\n" + `{"id":"d-3"}`,
	} {
		var ids []string
		bad := 0
		err := eachLine(strings.NewReader(text), format, func(line int, d x509.Import, err error) error {
			switch {
			case err != nil:
				bad++
			case d.ID == "d-1" && (len(d.Groups) != 2 || d.Groups[1] != "b" || d.Attributes["x"] != "y" || !d.Disabled):
				t.Errorf("%s: read %+v", format, d)
			}
			if err == nil {
				ids = append(ids, d.ID)
			}
			return nil
		})
		if err != nil || bad != 2 || strings.Join(ids, " ") != "d-1 d-3" {
			t.Errorf("%s: %v, %d wrong, %v", format, ids, bad, err)
		}
	}
	for format, text := range map[string]string{"csv": "name\nd-1\n", "xml": "<d/>", "jsonl": strings.Repeat("x", lineMax+1)} {
		if err := eachLine(strings.NewReader(text), format, func(int, x509.Import, error) error { return nil }); err == nil {
			t.Errorf("%s is read", format)
		}
	}
}

// A client that does not trust the platform never says who it is; whoever looks for a device hears of it, with the remedy.
func TestWhyKnowsOfClientsThatDoNotTrustThePlatform(t *testing.T) {
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	d := x509.Device{ID: "d-1", Certs: []x509.Certificate{{Fingerprint: "f", NotAfter: now.Add(time.Hour)}}}
	shy := x509.Attempt{Address: "192.0.2.7", Reason: "handshake_failed", Detail: "the client refuses this server's certificate", Count: 3, Last: now.Add(-time.Minute), Steps: []x509.Step{{Name: x509.StepServer}}}
	in := x509.Attempt{Address: "192.0.2.7", Admitted: true, Fingerprint: "f", Last: now.Add(-time.Hour)}
	elsewhere, later := shy, in
	elsewhere.Address, later.Last = "192.0.2.8", now
	for name, c := range map[string]struct {
		own  []x509.Attempt
		shy  x509.Attempt
		well bool
		says bool
	}{
		"it never came": {nil, shy, true, true}, "it came before, from there": {[]x509.Attempt{in}, shy, false, true},
		"it came before, from elsewhere": {[]x509.Attempt{in}, elsewhere, true, false}, "it has come since": {[]x509.Attempt{later}, shy, true, false},
	} {
		b := explain("d-1", x509.Shown{Device: d}, true, c.own, nil, now)
		b.distrusted([]x509.Attempt{c.shy}, now)
		if b.Well != c.well || strings.Contains(b.Cause, c.shy.Detail) != c.says || strings.Contains(b.Remedy, "ca.crt") != c.says {
			t.Errorf("%s: %+v", name, b)
		}
	}
	if b := explain("d-1", x509.Shown{}, false, []x509.Attempt{shy}, nil, now); b.Well || b.Reason != "handshake_failed" || !strings.Contains(b.Remedy, "ca.crt") { // by --address
		t.Errorf("by its address: %+v", b)
	}
}
