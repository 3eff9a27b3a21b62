package main

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/x509"
)

// asked gives a command to a platform that answers as the handlers say, and gives what it wrote.
func asked(t *testing.T, ways map[string]http.HandlerFunc, args ...string) (out, hints string, err error) {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, f := range ways {
		mux.HandleFunc(pattern, f)
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	root := newRoot()
	var o, e strings.Builder
	root.SetOut(&o)
	root.SetErr(&e)
	root.SetArgs(append([]string{"--server", server.URL, "--token", "t"}, args...))
	err = root.ExecuteContext(t.Context())
	return o.String(), e.String(), err
}

func says(status int, v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
}

// What a pipe takes is the thing itself; the hints are for who looks.
func TestStandardOutputHasOnlyWhatWasAskedFor(t *testing.T) {
	ways := map[string]http.HandlerFunc{
		"POST /api/v1/devices/d-1/token":    says(201, x509.TokenGiven{Device: "d-1", Token: "TOKEN"}),
		"POST /api/v1/ca/registration-code": says(201, map[string]string{"code": "CODE", "expires": "then"}),
	}
	for _, c := range []struct{ want, hint, args string }{
		{"TOKEN\n", "good for one key of d-1", "device token d-1"}, {"CODE\n", "/CN=CODE", "ca registration-code"},
	} {
		out, hints, err := asked(t, ways, strings.Fields(c.args)...)
		if err != nil || out != c.want || !strings.Contains(hints, c.hint) {
			t.Errorf("%s: %v, says %q, hints %q", c.args, err, out, hints)
		}
		out, hints, err = asked(t, ways, append(strings.Fields(c.args), "-o", "json")...)
		if err != nil || !json.Valid([]byte(out)) || hints != "" {
			t.Errorf("%s -o json: %v, says %q, hints %q", c.args, err, out, hints)
		}
	}
}

// A device that is there does not get another certificate by the way, and no key of a refused command stays behind.
func TestDeviceThatIsThereIsNotAddedAgain(t *testing.T) {
	has := x509.Shown{Device: x509.Device{ID: "d-1", Certs: []x509.Certificate{{}}}, State: "active"}
	var asks []map[string]any
	var known crypto.Signer // its certificate was answered to nobody
	add := func(w http.ResponseWriter, r *http.Request) {
		var in map[string]any
		_ = json.NewDecoder(r.Body).Decode(&in)
		asks = append(asks, in)
		csr, err := authority.ParseRequest("d-1", []byte(fmt.Sprint(in["csr"])))
		if err != nil {
			t.Error(err)
		}
		if same := err == nil && known != nil && known.Public().(*ecdsa.PublicKey).Equal(csr.PublicKey); in["new"] == true && !same {
			says(409, map[string]any{"detail": "refused: device d-1 is registered already, with 1 certificates"})(w, r)
			return
		}
		says(201, map[string]any{"id": "d-1", "certificate": "C", "ca": "CA"})(w, r)
	}
	ways := map[string]http.HandlerFunc{"POST /api/v1/devices": add, "GET /api/v1/devices/d-1": says(200, has)}
	dir := filepath.Join(t.TempDir(), "d-1")
	for range 2 { // the second time as well
		_, _, err := asked(t, ways, "device", "add", "d-1", "--out", dir)
		if err == nil || !strings.Contains(err.Error(), "device rotate d-1") || !strings.Contains(err.Error(), "device token d-1") || !strings.Contains(err.Error(), "--another") {
			t.Errorf("it says %v", err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("what was refused left a directory behind")
		}
	}
	if _, _, err := asked(t, ways, "device", "add", "d-1", "--out", dir, "--another"); err != nil {
		t.Error(err)
	}
	// A command that was cut off left a key: the platform has registered it, so it goes on.
	cut := filepath.Join(t.TempDir(), "d-1")
	if err := os.MkdirAll(cut, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if known, _, err = keyIn(cut); err != nil {
		t.Fatal(err)
	}
	if _, _, err := asked(t, ways, "device", "add", "d-1", "--out", cut); err != nil {
		t.Error(err)
	}
	if len(asks) != 4 || asks[2]["new"] != false || asks[3]["new"] != true {
		t.Errorf("asked %v", asks)
	}
}

// A device of a fleet that has a certificate gets no other, and that is told; where a key is left of an import that was cut
// off, it goes on.
func TestImportLeavesAloneWhatHasACertificate(t *testing.T) {
	keys := t.TempDir()
	has := x509.Shown{Device: x509.Device{ID: "x", Certs: []x509.Certificate{{}}}, State: "active"}
	var asks []string
	var mu sync.Mutex
	ways := map[string]http.HandlerFunc{
		"PUT /api/v1/devices/has": says(200, has), "PUT /api/v1/devices/cut": says(200, has),
		"PUT /api/v1/devices/new": says(201, map[string]any{"id": "new", "warning": "no broker runs"}), "PUT /api/v1/devices/other": says(200, has),
		"POST /api/v1/devices": func(w http.ResponseWriter, r *http.Request) {
			var in struct {
				ID  string
				New bool
			}
			_ = json.NewDecoder(r.Body).Decode(&in)
			mu.Lock()
			asks = append(asks, fmt.Sprint(in.ID, in.New))
			mu.Unlock()
			if in.ID == "other" { // its key is none that the platform knows
				says(409, map[string]string{"detail": "it has another"})(w, r)
				return
			}
			says(201, map[string]any{"id": in.ID, "certificate": "C", "ca": "CA"})(w, r)
		},
	}
	for _, id := range []string{"cut", "other"} {
		if err := os.Mkdir(filepath.Join(keys, id), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, _, err := keyIn(filepath.Join(keys, id)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "fleet.csv")
	if err := os.WriteFile(file, []byte("id\nhas\ncut\nnew\nother\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, hints, err := asked(t, ways, "device", "import", file, "--issue", keys)
	if err == nil || !strings.Contains(hints, "line 2: has has a certificate already") || !strings.Contains(hints, "1 of them had a certificate already") ||
		!strings.Contains(hints, "line 5: it has another") || !strings.Contains(hints, "warning: line 4: no broker runs") {
		t.Errorf("%v: %s", err, hints)
	}
	if slices.Sort(asks); fmt.Sprint(asks) != "[cuttrue newtrue othertrue]" {
		t.Errorf("asked for %v", asks)
	}
	if _, err := os.Stat(filepath.Join(keys, "has")); err == nil {
		t.Error("a key was made for who got no certificate")
	}
	asks = nil
	if _, _, err := asked(t, ways, "device", "import", file, "--issue", t.TempDir(), "--another"); err == nil || len(asks) != 4 || !slices.Contains(asks, "hasfalse") {
		t.Errorf("%v, asked for %v", err, asks)
	}
	out, _, err := asked(t, ways, "device", "import", file, "--issue", keys, "-o", "json")
	if err == nil || !strings.Contains(out, `{"disabled":0,"imported":3,"left_alone":1,"refused":1}`) {
		t.Errorf("%v: %s", err, out)
	}
}

// Who asks for JSON gets JSON of an import and an export too, and lines are told by their numbers.
func TestFleetIsMovedInJSON(t *testing.T) {
	ways := map[string]http.HandlerFunc{
		"PUT /api/v1/devices/{id}": func(w http.ResponseWriter, r *http.Request) {
			if raw, _ := io.ReadAll(r.Body); strings.Contains(string(raw), "no") {
				says(400, map[string]string{"detail": "no"})(w, r)
				return
			}
			says(200, map[string]string{})(w, r)
		},
		"GET /api/v1/devices": says(200, map[string]any{"devices": []x509.Shown{{Device: x509.Device{ID: "d-1"}, State: "pending"}}, "total": 1}),
	}
	file := filepath.Join(t.TempDir(), "fleet.jsonl")
	text := `{"id":"d-1","created_at":"2026-11-01T00:00:00Z","state":"active"}` + "\n" + `{"id":"d-2","group":["a"]}` + "\n" + `{"id":"d-3","policy":"no"}` + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, hints, err := asked(t, ways, "device", "import", file, "-o", "json")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err == nil || len(lines) != 3 || hints != "" {
		t.Fatalf("%v, says %q, hints %q", err, out, hints)
	}
	for i, want := range []string{`{"line":2,"id":"d-2","error":"there is no field \"group\"; did you mean \"groups\"?`, `{"line":3,"id":"d-3","error":"no"}`, `{"imported":1,"refused":2}`} {
		if i < 2 { // in any order
			if !strings.Contains(out, want) {
				t.Errorf("%q is missing from %s", want, out)
			}
		} else if lines[2] != want {
			t.Errorf("it ends with %s", lines[2])
		}
	}
	if out, _, err := asked(t, ways, "device", "export", "-o", "json"); err != nil || !strings.HasPrefix(out, `{"id":"d-1"`) || !json.Valid([]byte(out)) {
		t.Errorf("export: %v, %q", err, out)
	}
	if out, _, err := asked(t, ways, "device", "export", "-o", "json", "--out", file); err != nil || !strings.Contains(out, `"exported": 1`) {
		t.Errorf("export to a file: %v, %q", err, out)
	}
	if _, _, err := asked(t, ways, "device", "export", "-o", "json", "--format", "csv"); err == nil {
		t.Error("CSV is JSON")
	}
}

func TestFieldThatIsNotKnownIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		`{"id":"d","Colour":"red"}`: "there are id, attributes, groups", `{"id":"d","certs":[{"fingerprnt":"x"}]}`: `did you mean "fingerprint"?`,
		`{"id":"d","groups":"a"}`: "groups cannot be a string", `[]`: "a JSON object is wanted", `{"id":`: "it is no JSON",
	} {
		if _, err := readLine([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	err := eachLine(strings.NewReader("id,group\nd-1,a\n"), "csv", func(int, x509.Import, error) error { return nil })
	if want := `line 1: there is no column "group"; did you mean "groups"?`; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v", err)
	}
	whole, err := json.Marshal(x509.Shown{Device: x509.Device{ID: "d", Certs: []x509.Certificate{{Fingerprint: "f", EndsAt: time.Unix(1, 0)}}, DisabledBy: "x", CA: "c"}})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := readLine(whole); err != nil || d.ID != "d" || len(d.Certs) != 1 {
		t.Errorf("what an answer shows of a device: %v, %s", err, fmt.Sprint(d))
	}
}

// A CA does not end by the way: first who depends on it, then a yes.
func TestCAEndsOnlyWhereThatIsConfirmed(t *testing.T) {
	ended := 0
	end := func(w http.ResponseWriter, r *http.Request) { ended++; says(200, x509.CAStatus{})(w, r) }
	ways := map[string]http.HandlerFunc{
		"GET /api/v1/ca/dependents":           says(200, x509.Dependents{Fingerprint: "ab12", Name: "old", Devices: 7, ShutOut: 3, Seen: 2, Examples: []string{"d-1", "d-2"}}),
		"POST /api/v1/ca/retire":              end,
		"DELETE /api/v1/ca/registered/{hash}": end,
	}
	for _, verb := range []string{"retire", "remove"} {
		ended = 0
		_, hints, err := asked(t, ways, "ca", verb, "ab12")
		for _, want := range []string{"7 devices hold", "3 of them", "d-1, d-2, and 1 more", "2 devices came"} {
			if !strings.Contains(hints, want) {
				t.Errorf("%s: %q does not say %q", verb, hints, want)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "nothing was changed: 3 devices") || ended != 0 {
			t.Errorf("%s: %v, ended %d", verb, err, ended)
		}
		out, hints, err := asked(t, ways, "ca", verb, "ab12", "-o", "json")
		if err == nil || ended != 0 || hints != "" || !json.Valid([]byte(out)) || !strings.Contains(out, `"shut_out": 3`) {
			t.Errorf("%s -o json: %v, ended %d, %s", verb, err, ended, out)
		}
		if out, _, err := asked(t, ways, "ca", verb, "ab12", "--yes", "-o", "json"); err != nil || ended != 1 || !json.Valid([]byte(out)) {
			t.Errorf("%s --yes: %v, ended %d, %s", verb, err, ended, out)
		}
	}
}

func TestTimeThatIsTooLongIsNamedByItsFlag(t *testing.T) {
	for _, args := range []string{"device token d --expires", "device add d --validity", "device rotate d --overlap", "device expiring --within", "ca claim add l --template t --validity"} {
		_, _, err := asked(t, nil, append(strings.Fields(args), "100000d")...)
		flag := args[strings.LastIndex(args, "--"):]
		if err == nil || !strings.Contains(err.Error(), flag) || !strings.Contains(err.Error(), "too long; 73000d") {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestDeviceSetChangesWhatIsNamed(t *testing.T) {
	var got string
	ways := map[string]http.HandlerFunc{"PATCH /api/v1/devices/d-1": func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		got = strings.TrimSpace(string(raw))
		says(200, x509.Shown{Device: x509.Device{ID: "d-1", Attributes: map[string]string{"site": "busan"}}, State: "active", Warning: "no broker runs"})(w, r)
	}}
	for args, want := range map[string]string{
		"site=busan line- a=b=c --policy pump --reason moved": `{"attributes":{"a":"b=c","line":null,"site":"busan"},"policy":"pump","reason":"moved"}`,
		"--group a,b --add-group c --remove-group d":          `{"groups":["a","b"],"add_groups":["c"],"remove_groups":["d"]}`,
		"--group= --policy= --template=":                      `{"groups":[],"policy":"","template":""}`,
	} {
		out, hints, err := asked(t, ways, append([]string{"device", "set", "d-1"}, strings.Fields(args)...)...)
		if err != nil || got != want || !strings.Contains(out, "attribute site") || !strings.Contains(hints, "warning: no broker runs") {
			t.Errorf("%s: %v, asked %s, says %q, hints %q", args, err, got, out, hints)
		}
	}
	for args, want := range map[string]string{"": "say what is to change", "site": "NAME=VALUE", "=x": "NAME=VALUE", "-- -": "NAME=VALUE", "a=1 a-": "twice"} {
		if _, _, err := asked(t, ways, append([]string{"device", "set", "d-1"}, strings.Fields(args)...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestDeviceShowTellsWhatWasChanged(t *testing.T) {
	at := time.Date(2026, 11, 1, 3, 0, 0, 0, time.UTC)
	data := `{"device":"d-1","change":"changed","by":"mina","reason":"moved","fields":[{"field":"attribute.site","was":"seoul","is":"busan"}]}`
	var asks string
	ways := map[string]http.HandlerFunc{
		"GET /api/v1/devices/d-1": says(200, x509.Shown{Device: x509.Device{ID: "d-1"}, State: "active"}),
		"GET /api/v1/messages": func(w http.ResponseWriter, r *http.Request) {
			asks = r.URL.Query().Get("device") + " " + r.URL.Query().Get("subject") + " " + r.URL.Query().Get("limit")
			says(200, map[string]any{"messages": []any{
				map[string]any{"id": message.NewID(at), "time": at, "data": data[:20], "truncated": true}, map[string]any{"time": at, "data": `{"device":"d-1","change":"registered","by":"operator"}`}}})(w, r)
		},
		"GET /api/v1/messages/{id}": says(200, map[string]any{"time": at, "data": data}),
	}
	out, _, err := asked(t, ways, "device", "show", "d-1")
	if err != nil || !strings.Contains(out, `changed by mina, attribute.site "seoul" -> "busan": moved`) || !strings.Contains(out, "registered by operator") || asks != "d-1 service_platform.x509.device.d-1 20" {
		t.Errorf("%v, asked %s:\n%s", err, asks, out)
	}
	out, _, err = asked(t, ways, "device", "show", "d-1", "-o", "json", "--history", "5")
	if err != nil || !strings.Contains(out, `"history": [`) || !strings.HasSuffix(asks, " 5") {
		t.Errorf("%v: %s", err, out)
	}
	delete(ways, "GET /api/v1/messages")
	if out, hints, err := asked(t, ways, "device", "show", "d-1"); err != nil || !strings.Contains(out, "d-1") || !strings.Contains(hints, "history cannot be read") {
		t.Errorf("without a log: %v, says %q, hints %q", err, out, hints)
	}
}

func TestRootKeyThatIsNowhereElseIsRemovedOnlyWhereThatIsConfirmed(t *testing.T) {
	for _, c := range []struct {
		exported bool
		args     string
		removes  bool
	}{{false, "", false}, {false, " -o json", false}, {false, " --yes", true}, {true, "", true}} {
		var in x509.RootKey
		st := x509.CAStatus{Root: x509.CACert{Fingerprint: strings.Repeat("ab", 32)}, RootKey: true, Exported: c.exported}
		_, _, err := asked(t, map[string]http.HandlerFunc{
			"GET /api/v1/ca/status": says(200, st),
			"POST /api/v1/ca/root/remove": func(w http.ResponseWriter, r *http.Request) {
				_ = json.NewDecoder(r.Body).Decode(&in)
				says(200, st)(w, r)
			},
		}, strings.Fields("ca remove-root-key abababab"+c.args)...)
		if (err == nil) != c.removes || (in.Fingerprint == "abababab") != c.removes || in.ForGood != (c.removes && !c.exported) {
			t.Errorf("exported %v, %q: %v, asked %+v", c.exported, c.args, err, in)
		}
		if err != nil && !strings.Contains(err.Error(), "export-root") {
			t.Errorf("%v", err)
		}
	}
}

// A device that is disabled in the file is imported: it only gets no certificate.
func TestImportOfADisabledDeviceIsNoRefusal(t *testing.T) {
	file, keys := filepath.Join(t.TempDir(), "fleet.jsonl"), t.TempDir()
	if err := os.WriteFile(file, []byte(`{"id":"f-9","disabled":true}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ways := map[string]http.HandlerFunc{
		"PUT /api/v1/devices/f-9": says(201, x509.Shown{Device: x509.Device{ID: "f-9", Disabled: true}, State: "disabled"}),
		"POST /api/v1/devices":    says(409, map[string]string{"detail": "f-9 is disabled"}),
	}
	if _, hints, err := asked(t, ways, "device", "import", file, "--issue", keys); err != nil || !strings.Contains(hints, "f-9 is disabled: no certificate") || !strings.Contains(hints, "1 devices imported, 0 refused") {
		t.Errorf("%v: %s", err, hints)
	}
	out, _, err := asked(t, ways, "device", "import", file, "--issue", keys, "-o", "json")
	if left, _ := os.ReadDir(keys); err != nil || !strings.Contains(out, `{"disabled":1,"imported":1,"left_alone":0,"refused":0}`) || len(left) > 0 {
		t.Errorf("%v: %s, left %v", err, out, left)
	}
}

// What was done is said as the state that was reached.
func TestStateThatWasReachedIsSaid(t *testing.T) {
	gone, good := x509.Certificate{RevokedAt: time.Unix(1, 0)}, x509.Certificate{}
	shown := func(state string, certs ...x509.Certificate) http.HandlerFunc {
		return says(200, x509.Shown{Device: x509.Device{ID: "d-17", Certs: certs}, State: state})
	}
	const at = "POST /api/v1/devices/d-17/"
	for _, c := range []struct {
		args, way string
		says      http.HandlerFunc
		want      string
	}{
		{"device enable d-17", at + "enable", shown("revoked", gone, gone), "d-17 is enabled, but all its certificates are revoked: naru device rotate d-17\n"},
		{"device enable d-17", at + "enable", shown("pending"), "d-17 is enabled, but has no certificate: naru device rotate d-17\n"},
		{"device enable d-17", at + "enable", shown("expired", good), "d-17 is enabled, but its state is expired: naru device show d-17\n"},
		{"device enable d-17", at + "enable", shown("active", gone, good), "d-17 is enabled\n"},
		{"device disable d-17", at + "disable", shown("disabled", good), "d-17 is disabled: it gets in no more until naru device enable d-17\n"},
		{"device revoke d-17", at + "revoke", shown("revoked", gone, gone, gone), "d-17, revoked: 3 certificates; it gets in no more; a new one: naru device rotate d-17\n"},
		{"device revoke d-17 --fingerprint aa", at + "revoke", shown("active", gone, good), "d-17, revoked: 1 certificate of 2\n"},
		{"device delete d-17", "DELETE /api/v1/devices/d-17", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, "d-17 is deleted, and its certificates admit nobody\n"},
		{"ca disable aa", "POST /api/v1/ca/registered/aa/disable", says(200, x509.RegisteredCA{Name: "lot", Fingerprint: "aa", Disabled: true}), "lot is disabled: its certificates admit nobody until naru ca enable aa\n"},
		{"ca enable aa", "POST /api/v1/ca/registered/aa/enable", says(200, x509.RegisteredCA{Name: "lot", Fingerprint: "aa"}), "lot is enabled: its certificates count again\n"},
	} {
		if out, _, err := asked(t, map[string]http.HandlerFunc{c.way: c.says}, strings.Fields(c.args)...); err != nil || out != c.want {
			t.Errorf("%s: %v, %q, want %q", c.args, err, out, c.want)
		}
	}
}
