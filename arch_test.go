package naru

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/naru-platform/naru/"

// rules is a statement of policy: code under the folder on the left may import, of naru, what stands on its right, and
// its own subfolders. A folder that is not named here may import nothing of naru. The longest folder counts.
const rules = `
message           message
internal          message internal
bus               message bus
component         message bus component internal
device            message bus component internal
device/sdk        message internal
service_platform  message bus component internal
service_platform/x509/authority  internal
data_platform     message bus component internal
3rd_party         message bus component internal
operator          message bus component internal
cmd               *
test              *
`

// doors are the exceptions. A door without a reason is no door, and one that nobody uses is walled up.
const doors = `
device/sdk        service_platform/broker/packet  one MQTT codec, strict, fuzzed and shared; it is a leaf
device/simulator  device/sdk                      the simulator is a fleet of SDKs
service_platform/worker/sdk  bus/nats/ask  instances of a worker ask over NATS, and are no platform: of the engine it knows how to ask, and no more
examples          service_platform/worker/sdk   an example worker shows how the SDK is used
data_platform/etl     data_platform/model       what a row is, and how its documents are followed, is said once; a library that opens nothing
data_platform/etl     data_platform/storage     it loads by the interface of the store that the component of that name opens
data_platform/bridge  data_platform/model       what a dataset takes, and how its documents are followed, is said once; a library that opens nothing
data_platform/api     data_platform/model       it shows and changes the documents that the others follow
data_platform/api     data_platform/storage     it asks by the interface of the store that the component of that name opens
component/componenttest  bus/mem                  the rig of every component's tests runs on the engine for tests
`

// outside says where modules may be known that the rest of the house must not depend on.
const outside = `
github.com/nats-io                bus/nats
github.com/synadia-io             bus/nats
github.com/aws                    bus/kinesis
github.com/duckdb                 data_platform/storage
github.com/apache/arrow-go       data_platform/api
github.com/jackc                  data_platform/storage
github.com/cockroachdb/pebble     component
github.com/spf13/cobra            cmd
github.com/santhosh-tekuri        internal/schema
`

// peers may be imported by anybody's tests: they are made for that.
var peers = []string{"bus/mem", "bus/nats", "bus/bustest", "component/componenttest"}

// TestArchitectureHolds walks and parses the files itself: the test cache only notices files that the test process opens.
func TestArchitectureHolds(t *testing.T) {
	used := map[string]bool{}
	walkImports(t, func(file, folder, imported string) {
		if fault := judge(file, folder, imported, used); fault != "" {
			t.Error(fault)
		}
	})
	for _, d := range table(doors) {
		if !used[d[0]+" "+d[1]] {
			t.Errorf("the door %s -> %s is used by nobody; wall it up", d[0], d[1])
		}
		if len(d) < 3 {
			t.Errorf("the door %s -> %s has no reason", d[0], d[1])
		}
	}
}

func TestArchitectureTestSeesForbiddenImports(t *testing.T) {
	for _, c := range []struct{ file, folder, imported, want string }{
		{"service_platform/rule/rule.go", "service_platform/rule", module + "service_platform/twin", "speak to it by message"},
		{"message/x.go", "message", "github.com/spf13/cobra", "standard library"},
		{"operator/why/why.go", "operator/why", "github.com/nats-io/nats.go", "may be known only in bus/nats"},
		{"device/sdk/sdk.go", "device/sdk", module + "component", "speak to it by message"},
		{"bus/nats/log.go", "bus/nats", "github.com/nats-io/nats.go/jetstream", ""},
		{"service_platform/broker/broker.go", "service_platform/broker", module + "service_platform/broker/packet", ""},
		{"service_platform/broker/x_test.go", "service_platform/broker", module + "bus/mem", ""},
	} {
		got := judge(c.file, c.folder, c.imported, map[string]bool{})
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s imports %s: judged %q; want it to say %q", c.file, c.imported, got, c.want)
		}
	}
}

// judge gives the fault of one import, or nothing.
func judge(file, folder, imported string, used map[string]bool) string {
	inTest := strings.HasSuffix(file, "_test.go")
	of, ours := strings.CutPrefix(imported, module)
	if !ours {
		if top, _, _ := strings.Cut(folder, "/"); top == "message" && !inTest && strings.Contains(strings.Split(imported, "/")[0], ".") {
			return fmt.Sprintf("%s imports %s: message/ stands on the standard library alone", file, imported)
		}
		for _, o := range table(outside) {
			if within(imported, o[0]) && !within(folder, o[1]) && !within(folder, "test") && !inTest {
				return fmt.Sprintf("%s imports %s, which may be known only in %s", file, imported, o[1])
			}
		}
		return ""
	}
	if within(of, folder) || inTest && slices.ContainsFunc(peers, func(p string) bool { return of == p }) {
		return ""
	}
	var rule []string
	for _, r := range table(rules) {
		if within(folder, r[0]) && (rule == nil || len(r[0]) > len(rule[0])) {
			rule = r
		}
	}
	if rule != nil {
		for _, may := range rule[1:] {
			if may == "*" || within(of, may) && !(may == "bus" && strings.Contains(of, "/") && folder != "bus" && !within(folder, "bus")) {
				return ""
			}
		}
	}
	for _, d := range table(doors) {
		if within(folder, d[0]) && of == d[1] {
			used[d[0]+" "+d[1]] = true
			return ""
		}
	}
	return fmt.Sprintf("%s imports %s: speak to it by message, or name a door and its reason", file, of)
}

func within(p, folder string) bool { return p == folder || strings.HasPrefix(p, folder+"/") }

func table(text string) (rows [][]string) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 {
			rows = append(rows, f)
		}
	}
	return rows
}

// walkImports calls f for each import of each Go file of the house.
func walkImports(t *testing.T, f func(file, folder, imported string)) {
	t.Helper()
	walkFiles(t, func(file string) {
		if !strings.HasSuffix(file, ".go") {
			return
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range parsed.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			f(file, path.Dir(file), p)
		}
	})
}

func walkFiles(t *testing.T, f func(file string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != "." && (strings.HasPrefix(name, ".") || name == "naru-data" || name == "bin" || name == "node_modules" || name == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		f(filepath.ToSlash(p))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
