package rule

import (
	"fmt"
	"strings"
	"testing"
)

func TestCirclesAreWarnedOf(t *testing.T) {
	const doc = `{"sql": "SELECT * FROM '%s'", "actions": [%s]}`
	republish := func(topic string) string { return fmt.Sprintf(`{"republish": {"topic": %q}}`, topic) }
	for name, c := range map[string]struct {
		others       [][2]string // FROM and action
		from, action string
		way          string // "" where there is none
	}{
		"through itself":              {nil, "ring/#", republish("ring/a"), "x → x"},
		"through another":             {[][2]string{{"b", republish("a")}}, "a", republish("b"), "x → r0 → x"},
		"through two others":          {[][2]string{{"b", republish("c")}, {"c", republish("a/z")}}, "a/+", republish("b"), "x → r0 → r1 → x"},
		"by a topic with expressions": {nil, "up/+/value", republish("up/${topic(2)}/value"), "x → x"},
		"by the answers of a twin":    {nil, "device/+/twin/update/accepted", `{"twin": {"device": "${topic(2)}"}}`, "x → x"},
		"by a twin's change":          {nil, "device/+/twin/changed", `{"twin": {"device": "d-1"}}`, "x → x"},
		"by AWS's spelling":           {nil, "$aws/things/+/shadow/update/documents", `{"twin": {"device": "d-1"}}`, "x → x"},
		"by a worker's work":          {nil, "service_platform/worker/+/invoke", `{"worker": {"name": "w"}}`, "x → x"},

		"by a dataset":   {nil, "data_platform/doors/+", `{"data_bridge": {"dataset": "doors"}}`, "x → x"},
		"by any dataset": {nil, "data_platform/doors/+", `{"data_bridge": {"dataset": "${kind}"}}`, "x → x"},

		"another dataset only":       {nil, "data_platform/doors/+", `{"data_bridge": {"dataset": "windows"}}`, ""},
		"another device's twin only": {nil, "device/d-2/twin/update/accepted", `{"twin": {"device": "d-1"}}`, ""},
		"a named twin only":          {nil, "device/+/twin/name/a/update/accepted", `{"twin": {"device": "d-1", "shadow": "b"}}`, ""},
		"a chain with an end":        {[][2]string{{"b", republish("c")}, {"c", republish("d")}}, "a", republish("b"), ""},
		"a circle it is not in":      {[][2]string{{"b", republish("c")}, {"c", republish("b")}}, "a", republish("b"), ""},
		"a longer topic":             {nil, "a/+", republish("a/b/c"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := running(t)
			for i, o := range c.others {
				put(t, r, fmt.Sprintf("r%d", i), fmt.Sprintf(doc, o[0], o[1]))
			}
			got := strings.Join(put(t, r, "x", fmt.Sprintf(doc, c.from, c.action)).Warnings, "\n")
			if c.way == "" && got != "" || !strings.Contains(got, c.way) {
				t.Errorf("warned of %q; want %q", got, c.way)
			}
		})
	}
}
