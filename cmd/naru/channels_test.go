package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

const engineChannel = `channels:
  - subject: device.*.telemetry.engine
    type: com.example.engine.v1
    doc: What the engine measures, every second while it runs. Not said, the engine is off.
    owner: engine team
    schema:
      type: object
      required: [celsius]
      properties:
        celsius: {type: number, maximum: 1200}
    says: [device]
    hears: [dashboard]
    example: {celsius: 81.5}
`

// load reads a configuration file of that text, beside the files named.
func load(t *testing.T, text string, files ...string) (*config, error) {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i+1 < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "naru.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return loadConfig(&start{config: file})
}

func TestChannelJoinsTheCatalog(t *testing.T) {
	c, err := load(t, engineChannel)
	if err != nil {
		t.Fatal(err)
	}
	k := c.Catalog.Find("device.d-17.telemetry.engine")
	if k == nil || k.Type != "com.example.engine.v1" || k.ContentType != "application/json" || k.Route != message.ByLog || k.Owner != "engine team" {
		t.Fatalf("found is %+v", k)
	}
	if k := c.Catalog.Find("device.d-17.telemetry.brake"); k == nil || k.Type != "device.telemetry_channel.v1" {
		t.Errorf("the platform's own is found as %+v", k)
	}
	check, err := component.NewChecker(c.Catalog)
	if err != nil {
		t.Fatal(err)
	}
	err = check.Check(&message.Message{Subject: "device.d-17.telemetry.engine", Data: []byte(`{"celsius":1200.01}`)})
	if want := "schema_mismatch: /celsius: got 1200.01, want at most 1200 (contract com.example.engine.v1)"; err == nil || err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
	doc, err := catalog.AsyncAPI(c.Catalog, "1")
	if err != nil || !bytes.Contains(doc, []byte(`"maximum": 1200`)) || !bytes.Contains(doc, []byte("dashboard receives com.example.engine.v1")) {
		t.Errorf("AsyncAPI lacks it (%v)", err)
	}
	if none, err := load(t, "http: 127.0.0.1:1\n"); err != nil || len(none.Catalog.Contracts()) != len(catalog.Default().Contracts()) {
		t.Errorf("without channels: %v", err)
	}
}

func TestSchemaFileIsReadBesideTheConfiguration(t *testing.T) {
	text := strings.Replace(engineChannel, `    schema:
      type: object
      required: [celsius]
      properties:
        celsius: {type: number, maximum: 1200}
`, "    schema_file: engine.NAME\n", 1)
	for name, content := range map[string]string{
		"json": "{\n \"properties\": {\"celsius\": {\"maximum\": 123456789012345678901234567890}}\n}\n",
		"yaml": "properties:\n  celsius: {maximum: 1200}\n",
	} {
		c, err := load(t, strings.Replace(text, "NAME", name, 1), "engine."+name, content)
		if err != nil {
			t.Fatal(err)
		}
		k := c.Catalog.Find("device.d-17.telemetry.engine")
		if name == "json" && string(k.Schema) != `{"properties":{"celsius":{"maximum":123456789012345678901234567890}}}` {
			t.Errorf("the schema is %s", k.Schema)
		}
	}
}

// TestConfigShowOfChannelsCanBeLoaded since that is how a configuration is written down.
func TestConfigShowOfChannelsCanBeLoaded(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "naru.yaml")
	text := strings.Replace(engineChannel, "    schema:\n", "    schema: # as agreed\n", 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	show := configCommand(&options{})
	show.SetArgs([]string{"diff", "--config", file})
	show.SetOut(&shown)
	if err := show.Execute(); err != nil {
		t.Fatal(err)
	}
	before, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	after, err := load(t, shown.String())
	if err != nil {
		t.Fatalf("%v in\n%s", err, shown.String())
	}
	a, _ := json.Marshal(before.Catalog.Contracts())
	b, _ := json.Marshal(after.Catalog.Contracts())
	if !bytes.Equal(a, b) {
		t.Errorf("it is another configuration:\n%s", shown.String())
	}
}

func TestChannelMistakesAreTold(t *testing.T) {
	with := func(old, new string) string {
		if !strings.Contains(engineChannel, old) {
			t.Fatalf("%q is not there to be replaced", old)
		}
		return strings.Replace(engineChannel, old, new, 1)
	}
	second := func(subject, typ string) string {
		return engineChannel + "  - {subject: " + subject + ", type: " + typ + ", doc: d, owner: o}\n"
	}
	const one = "channel 1 (device.*.telemetry.engine): "
	for _, c := range []struct{ name, text, want string }{
		{"no list", "channels: {subject: a}", "channels: want a list"},
		{"no settings", "channels: [a]", "channel 1: want settings"},
		{"unknown setting", with("schema:", "shema:"), one + `there is no setting "shema"; did you mean "schema"?`},
		{"wrong kind", with("owner: engine team", "owner: 7"), one + "owner: got a number, want a text in quotes"},
		{"wrong kind of list", with("says: [device]", "says: device"), one + "says: got a string, want a list of names in [ ]"},
		{"no subject", with("subject: device.*.telemetry.engine\n    ", ""), "channel 1: subject is missing: where"},
		{"malformed subject", with("device.*.telemetry.engine", "device..engine"), `channel 1 (device..engine): pattern "device..engine": an empty token`},
		{"an MQTT filter", with("device.*.telemetry.engine", "device/+/telemetry/engine"), `is written as an MQTT filter; as a subject it is device.*.telemetry.engine`},
		{"no type", with("type: com.example.engine.v1", `type: ""`), one + "type is missing: a name with its version"},
		{"malformed type", with("com.example.engine.v1", "engine v1"), one + `type "engine v1": want letters`},
		{"no doc", with("doc: What", "doc: '' #"), one + "doc is missing: a sentence"},
		{"no owner", with("owner: engine team", "owner: ''"), one + "owner is missing: the team"},
		{"the platform's pattern", with("device.*.telemetry.engine", "device.*.telemetry"), "device.*.telemetry is the platform's already (device.telemetry.v1); take a more particular pattern, such as device.*.telemetry.engine"},
		{"the platform's type", with("com.example.engine.v1", "device.telemetry.v1"), one + "type device.telemetry.v1 is the platform's, on device.*.telemetry; take"},
		{"the platform's namespace", with("device.*.telemetry.engine", "operator.mine"), "subjects under operator. are the platform's own"},
		{"within a schema of the platform", with("device.*.telemetry.engine", "device.d-1.presence"), "it overlaps device.*.presence, where the platform's schema of device.presence.v1 holds"},
		{"beside a schema of the platform", with("device.*.telemetry.engine", "device.d-1.*"), "it overlaps device.*.presence, where"},
		{"twice the subject", second("device.*.telemetry.engine", "a.v1"), "channel 2 (device.*.telemetry.engine): the same subject as " + one[:len(one)-2] + ";"},
		{"twice the type", second("device.*.telemetry.b", "com.example.engine.v1"), "channel 2 (device.*.telemetry.b): type com.example.engine.v1 is channel 1 (device.*.telemetry.engine)'s as well"},
		{"twice the key", second("device.*.telemetry.b", "com_example.engine.v1"), "is the same as com.example.engine.v1 of channel 1 (device.*.telemetry.engine) once dots are underscores"},
		{"unknown speaker", with("says: [device]", "says: [devise]"), one + `says "devise": there is no component "devise"; did you mean "device"?`},
		{"a device elsewhere", with("device.*.telemetry.engine", "house.engine"), "says device, and a device speaks on device.<its id>.> only"},
		{"a nameless hearer", with("hears: [dashboard]", "hears: ['']"), one + "hears has an empty name"},
		{"a schema that is none", with("type: number", "type: numbr"), one + `schema: /properties/celsius/type: got "numbr", want one of`},
		{"a reference elsewhere", with("{type: number, maximum: 1200}", "{$ref: 'https://example.com/n'}"), one + `schema: it refers to "https://example.com/n", and nothing is loaded`},
		{"a number that is none", with("maximum: 1200", "maximum: .inf"), one[:len(one)-2] + " cannot be written as JSON"},
		{"an example that breaks it", with("celsius: 81.5", "celsius: hot"), one + "its example does not keep its schema: /celsius: got string, want number; change the one or the other"},
		{"another content type", with("owner:", "content_type: text/csv\n    owner:"), one + `content_type is "text/csv", and a schema is for JSON`},
		{"two schemas", with("schema:", "schema_file: engine.json\n    schema:"), one + "has both schema and schema_file"},
		{"no such file", "channels: [{subject: device.*.a, type: a.v1, doc: d, owner: o, schema_file: no.json}]", "no such file or directory; its path is taken from the folder"},
		{"a folder", "channels: [{subject: device.*.a, type: a.v1, doc: d, owner: o, schema_file: .}]", "is no file"},
		{"a file that is no JSON", "channels: [{subject: device.*.a, type: a.v1, doc: d, owner: o, schema_file: bad.json}]", "schema in bad.json: not JSON at byte 8: it ends there"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, c.text, "bad.json", `{"type":`)
			if err == nil {
				t.Fatal("it is taken")
			}
			msg := err.Error()
			if !strings.Contains(msg, c.want) || !strings.HasPrefix(msg, "configuration /") || !strings.Contains(msg, "naru.yaml: channel") || strings.Contains(msg, "\n") {
				t.Errorf("\n got: %s\nwant: %s", msg, c.want)
			}
		})
	}
}

func TestEveryMistakenChannelHasItsLine(t *testing.T) {
	_, err := load(t, "channels:\n  - {subject: device.*.a, type: a.v1, doc: d}\n  - {subject: device.*.b, type: b.v1, owner: o}\n")
	if err == nil || strings.Count(err.Error(), "configuration /") != 2 || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("got %v", err)
	}
}

func TestChannelStandsBesideThePlatformsContract(t *testing.T) {
	c, err := load(t, "channels:\n  - {subject: device.*.command.reboot.*, type: reboot.v1, doc: d, owner: o, says: ['*']}\n  - {subject: '*.note', type: note.v1, doc: d, owner: o, says: ['*']}\n")
	if err != nil {
		t.Fatal(err)
	}
	if k := c.Catalog.Find("device.d-1.command.reboot.7"); k.Type != "reboot.v1" || k.Route != message.ByLog {
		t.Errorf("a command is %+v", k)
	}
	if k := c.Catalog.Find("house.note"); k.Type != "note.v1" || k.Route != message.ByLog {
		t.Errorf("a note is %+v", k)
	}
}
