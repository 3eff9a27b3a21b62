package catalog

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/naru-platform/naru/message"
)

var update = flag.Bool("update", false, "write the golden file anew")

func TestAsyncAPIIsCurrent(t *testing.T) {
	got, err := AsyncAPI(Default(), "1")
	if err != nil {
		t.Fatal(err)
	}
	const file = "testdata/asyncapi.json"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("the catalog has changed; look at the change and run `go test ./message/catalog -update`")
	}
}

func TestEveryReferenceInAsyncAPIResolves(t *testing.T) {
	b, err := AsyncAPI(Default(), "1")
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				at := doc
				for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
					m, _ := at.(map[string]any)
					if at = m[part]; at == nil {
						t.Errorf("%s leads nowhere", ref)
						break
					}
				}
			}
			for _, e := range v {
				walk(e)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(doc)
}

func TestEveryContractNamesItsParties(t *testing.T) {
	for _, k := range Default().Contracts() {
		if len(k.Says) == 0 {
			t.Errorf("%s: nobody says it", k.Type)
		}
		if (k.Schema == nil) != (k.Example == nil) {
			t.Errorf("%s: a schema has an example, and an example a schema", k.Type)
		}
		if k.Schema != nil && k.ContentType != "application/json" {
			t.Errorf("%s: has a JSON schema and the content type %q", k.Type, k.ContentType)
		}
	}
}

func TestCatalogFindsTheMostParticularContract(t *testing.T) {
	for subject, want := range map[message.Subject]string{
		"device.d-17.telemetry":                 "device.telemetry.v1",
		"device.d-17.telemetry.room.3":          "device.telemetry_channel.v1",
		"device.d-17.command.reboot.c1":         "device.command.v1",
		"device.d-17.command.reboot.c1.reply":   "device.command_reply.v1",
		"device.d-17.twin.update.accepted":      "device.twin.v1",
		"operator.dead.service_platform.broker": "operator.dead.v1",
		"home.kitchen":                          "",
	} {
		got := ""
		if k := Default().Find(subject); k != nil {
			got = k.Type
		}
		if got != want {
			t.Errorf("%s is found as %q; want %q", subject, got, want)
		}
	}
}
