package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/naru-platform/naru/data_platform/etl"
	"github.com/naru-platform/naru/message"
)

// TestPipelinesAreTriedWithoutAPlatform on payloads and message records, with the twins that are given.
func TestPipelinesAreTriedWithoutAPlatform(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	engine := file("engine.yaml", `
dataset: engine
version: 1
owner: us
doc: Engines.
fields: [{name: celsius, type: double, max: 150}, {name: site, type: text}]
---
pipeline: clean
dataset: engine
enrich: {twin: [/reported/site]}
steps:
  - sql: SELECT * FROM input WHERE celsius IS NOT NULL
  - sql: SELECT * EXCLUDE (twin_site) REPLACE (twin_site->>'$' AS site, CAST(100 / CAST(celsius AS DECIMAL(4,1)) AS DOUBLE) AS celsius) FROM input
`)
	twin := file("twin.json", `{"state":{"reported":{"site":"hall"}}}`)
	lines := `{"celsius": 50}

{"x": 1}
{"subject":"device.d-9.telemetry.engine","data":"{\"celsius\": 10}"}
{"subject":"x", "data": "not a record", "celsius": 5}
{"celsius": 5000}
nope
{"celsius": 0.1}
`
	out, err := naruWith(t, lines, "data", "etl", "test", engine, "--input", "-", "--twin", "d-9="+twin, "-o", "json", "--data", dir)
	if err != nil {
		t.Fatal(err)
	}
	var got etl.Trial
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got.Messages != 7 || got.Rows != 3 || got.Dropped != 1 || got.Dead != 3 || got.Read != 6 || got.Steps[0].Rows != 5 || got.Steps[1].Rows != 4 {
		t.Errorf("%s", out)
	}
	var row struct{ Device, Subject, Site string }
	if err := json.Unmarshal(got.Out[1], &row); err != nil || row.Device != "d-9" || row.Subject != "data_platform.engine.d-9.telemetry.engine" || row.Site != "hall" {
		t.Errorf("%+v, %v", row, err)
	}
	why := map[string]etl.Letter{}
	for _, l := range got.Letters {
		why[l.Where] = l
	}
	if why["-:6"].Reason != message.ETLError || !strings.Contains(why["-:6"].Detail, "step 2: celsius is 5000") || why["-:7"].Reason != message.NotDecodable || why["-:8"].Reason != message.SchemaMismatch || got.Left[0].Where != "-:3" {
		t.Errorf("%s", out)
	}
	if text, err := naruWith(t, lines, "data", "etl", "test", "telemetry", "--input", "-", "--show", "1", "--data", dir); err != nil || !strings.Contains(text, "7 messages 7 rows, 0 dropped, 0 dead") || !strings.Contains(text, "and 6 more") {
		t.Errorf("%v: %s", err, text)
	}
	wrong := file("wrong.yaml", "pipeline: wrong\ndataset: telemetry\nsteps: [{sql: SELECT heat FROM input}]\n")
	if text, err := naruWith(t, lines, "data", "etl", "test", wrong, "--input", "-", "--data", dir); err != errFault || !strings.Contains(text, "would stand still: pipeline wrong: step 1") {
		t.Errorf("%v: %s", err, text)
	}
	if _, err := naruWith(t, lines, "data", "etl", "test", "nobody", "--input", "-", "--data", dir); err == nil || !strings.Contains(err.Error(), "no pipeline and no dataset nobody") {
		t.Errorf("%v", err)
	}
	if _, err := naruWith(t, "", "data", "etl", "test", engine, "--input", "-", "--data", dir); err == nil || !strings.Contains(err.Error(), "no message in it") {
		t.Errorf("%v", err)
	}
}
