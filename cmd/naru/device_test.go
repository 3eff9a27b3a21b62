package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	add := func(w http.ResponseWriter, r *http.Request) {
		var in map[string]any
		_ = json.NewDecoder(r.Body).Decode(&in)
		asks = append(asks, in)
		if in["new"] == true {
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
	// A command that was cut off left a key: the platform may have registered it, so it goes on.
	cut := filepath.Join(t.TempDir(), "d-1")
	if err := os.MkdirAll(cut, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := keyIn(cut); err != nil {
		t.Fatal(err)
	}
	if _, _, err := asked(t, ways, "device", "add", "d-1", "--out", cut); err != nil {
		t.Error(err)
	}
	if len(asks) != 4 || asks[2]["new"] != false || asks[3]["new"] != false {
		t.Errorf("asked %v", asks)
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
