package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A slip is told in the words in which it was made, and before anything comes of it.
func TestSlipIsToldInTheWordsItWasMadeIn(t *testing.T) {
	untouched := map[string]http.HandlerFunc{"/": func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s %s is asked for", r.Method, r.URL) }}
	for args, want := range map[string]string{
		"data show telemetry --since foo":                "--since foo: want a time such as ",
		"data show telemetry --until foo":                "--until foo: want a time such as ",
		"data show telemetry --since 1h --until 2h":      "--since 1h is not before --until 2h",
		"data export telemetry t.parquet --since foo":    "--since foo: want a time such as ",
		"data export telemetry nowhere/there/t.parquet":  "nowhere/there/t.parquet: there is no directory nowhere/there",
		"data remove oven x":                             `"oven": want dataset or pipeline, and then its name`,
		"dead retry --all --device d-1":                  "naru dead retry: --all is every letter there is, and some are named",
		"dead discard --all 01a221ee-8dfd-7412-9e46-c3a": "naru dead discard: --all is every letter there is, and some are named",
		"device add d-1 --validity -5d":                  "--validity: -5d is over before it begins; want such as 30d",
		"dead show nope":                                 `"nope" is no letter; `,
		"dead edit nope --file x":                        `"nope" is no letter; `,
		"dead job nope":                                  `"nope" is no job; `,
		"dead cancel nope":                               `"nope" is no job; `,
		"worker add x --concurrency 0":                   "--concurrency 0: want a number from 1",
		"rule explain hot --message x":                   `--message "x": it is neither a message's id, `,
		"worker add x --attempts -1":                     "--attempts -1: want a number from 1",
	} {
		if _, _, err := asked(t, untouched, strings.Fields(args)...); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("naru %s: %v; want %s", args, err, want)
		}
	}
}

// What is for a device that there is not may be meant so. Who has mistyped it hears of it now, and not when its time is over.
func TestDeviceThatIsNotRegisteredIsPointedOut(t *testing.T) {
	ways := map[string]http.HandlerFunc{
		"GET /api/v1/devices/d-1":          says(http.StatusOK, map[string]any{"id": "d-1"}),
		"GET /api/v1/devices/d-l":          says(http.StatusNotFound, map[string]any{"detail": "there is no device d-l"}),
		"POST /api/v1/devices/{id}/token":  says(http.StatusOK, map[string]any{"token": "T"}),
		"POST /api/v1/commands":            says(http.StatusOK, map[string]any{"device": "d-l", "name": "ping", "id": "c1", "state": "queued"}),
		"GET /api/v1/devices/d-1/commands": says(http.StatusOK, nil),
	}
	for args, want := range map[string]bool{"device token d-1": false, "device token d-l": true, "command send d-l ping": true} {
		_, hints, err := asked(t, ways, strings.Fields(args)...)
		if err != nil || strings.Contains(hints, "no device d-l is registered") != want {
			t.Errorf("naru %s: %v, %q", args, err, hints)
		}
	}
	ways["POST /api/v1/commands"] = says(http.StatusOK, map[string]any{"device": "d-1", "name": "ping", "id": "c1", "state": "queued"})
	if _, hints, err := asked(t, ways, "command", "send", "d-1", "ping", `{"a":`); err != nil || !strings.Contains(hints, "begins as JSON does and is none") || strings.Contains(hints, "registered") {
		t.Errorf("half a JSON for a device that there is: %v, %q", err, hints)
	}
}

// A pipeline that can do no row would hold its dataset up from the moment on in which it is in force.
func TestPipelineThatCanDoNoRowIsNotBroughtInForce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "oven.yaml")
	write := func(sql string) {
		text := "dataset: oven\nversion: 1\nowner: us\ndoc: Ovens.\nfields: [{name: celsius, type: double, required: true}]\n---\npipeline: oven\ndataset: oven\nsteps:\n  - sql: " + sql + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	applied := 0
	ways := map[string]http.HandlerFunc{"PUT /api/v1/data/models": func(w http.ResponseWriter, r *http.Request) { applied++; says(http.StatusOK, []any{})(w, r) }}
	write("SELECT * REPLACE (celsus * 2 AS celsius) FROM input")
	for _, verb := range []string{"check", "apply"} {
		if _, _, err := asked(t, ways, "data", verb, file); err == nil || !strings.HasPrefix(err.Error(), file+":7: ") || !strings.Contains(err.Error(), "celsus") || applied != 0 {
			t.Errorf("%s of a pipeline with a slip: %v; applied %d times", verb, err, applied)
		}
	}
	write("SELECT * REPLACE (celsius * 2 AS celsius) FROM input WHERE celsius IS NOT NULL")
	for _, verb := range []string{"check", "apply"} {
		if _, _, err := asked(t, ways, "data", verb, file); err != nil {
			t.Errorf("%s of one that is right: %v", verb, err)
		}
	}
	if applied != 1 {
		t.Errorf("it was applied %d times", applied)
	}
}

// One that was killed is not gone at once, and who starts it anew in that moment has nothing to stop.
func TestStartWaitsForTheProcessThatWasKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		before, err := lock(dir)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(lockPatience / 2)
			before()
		}()
		now, err := lock(dir)
		if err != nil {
			t.Fatalf("when the one before is gone: %v", err)
		}
		defer now()
		if _, err := lock(dir); err == nil || !strings.Contains(err.Error(), "another naru runs on "+dir) {
			t.Errorf("while another runs: %v", err)
		}
	})
}
