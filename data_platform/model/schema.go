package model

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/naru-platform/naru/message"
)

// JSONSchema is the dataset as a JSON Schema (2020-12) of the payloads that become its rows. Other members may be there; they
// go to the rest, where there is one.
func (d *Dataset) JSONSchema() json.RawMessage {
	root := map[string]any{}
	for i := range d.Fields {
		f := &d.Fields[i]
		if f.Rest || f.Raw {
			continue
		}
		tokens, err := pointer(f.pointer())
		if err != nil {
			continue
		}
		at := root
		for _, t := range tokens {
			object(at, t, f.Required)
			at = at["properties"].(map[string]any)[t].(map[string]any)
		}
		f.schema(at)
	}
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"], root["description"] = fmt.Sprintf("%s.v%d", d.Name, d.Version), d.Doc
	root["type"] = "object"
	raw, err := json.Marshal(root)
	if err != nil {
		panic(err) // it is made of texts and numbers that were JSON
	}
	return raw
}

// elementsMost is up to which number a token of a pointer is told to be an array's element, too.
const elementsMost = 1000

// object makes a schema one of an object with a member, or where it is named by a number, of an array with that element. What is
// no such thing has no such member: only where that is required must it be one.
func object(at map[string]any, member string, required bool) {
	if at["properties"] == nil {
		at["properties"] = map[string]any{}
	}
	of := at["properties"].(map[string]any)
	if of[member] == nil {
		of[member] = map[string]any{}
	}
	n, err := strconv.Atoi(member)
	element := err == nil && 0 <= n && n < elementsMost && strconv.Itoa(n) == member
	if element {
		list, _ := at["prefixItems"].([]any)
		for len(list) <= n {
			list = append(list, true)
		}
		list[n] = of[member]
		at["prefixItems"] = list
	}
	if !required {
		return
	}
	if at["type"] = "object"; element {
		at["type"] = []string{"object", "array"}
		least, _ := at["minItems"].(int)
		at["minItems"] = max(least, n+1)
	}
	if list, _ := at["required"].([]string); !slices.Contains(list, member) {
		at["required"] = append(list, member)
	}
}

// base64Form is what bytes are written as.
const base64Form = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

// re2Only finds what RE2 knows in a pattern, and ECMA-262 does not, or differently.
var re2Only = regexp.MustCompile(`\(\?[^:]|\\[AzQEpPCaG]|\[\[:`)

func (f *Field) schema(at map[string]any) {
	names := map[Type]string{Bool: "boolean", Int: "integer", Double: "number", Text: "string", Bytes: "string"}
	if name := names[f.Type]; name != "" {
		at["type"] = []string{name, "null"}
		if f.Required {
			at["type"] = name
		}
	}
	switch f.Type {
	case Time:
		at["anyOf"] = []any{map[string]any{"type": "string", "format": "date-time"}, map[string]any{"type": "number"}, map[string]any{"type": "null"}}
		if f.Required {
			at["anyOf"] = at["anyOf"].([]any)[:2]
		}
	case Bytes:
		at["contentEncoding"], at["pattern"] = "base64", base64Form
		if f.MaxLength > 0 { // up to two bytes more have as many letters
			at["maxLength"] = (f.MaxLength + 2) / 3 * 4
		}
	case JSON:
		if f.Required {
			at["not"] = map[string]any{"type": "null"}
		}
	}
	if f.Min != nil {
		at["minimum"] = *f.Min
	}
	if f.Max != nil {
		at["maximum"] = *f.Max
	}
	if f.Enum != nil {
		values := []any{}
		for _, v := range f.Enum {
			values = append(values, v)
		}
		if !f.Required {
			values = append(values, nil)
		}
		at["enum"] = values
	}
	switch {
	case f.Pattern == "":
	case re2Only.MatchString(f.Pattern):
		at["x-pattern-re2"] = f.Pattern // not everybody's validator could read it
	default:
		at["pattern"] = f.Pattern
	}
	if f.MaxLength > 0 && f.Type == Text {
		at["maxLength"] = f.MaxLength
	}
	if doc := strings.TrimSpace(f.Doc + " " + bracket(f.Unit)); doc != "" {
		at["description"] = doc
	}
	if f.Unit != "" {
		at["x-unit"] = f.Unit
	}
}

func bracket(unit string) string {
	if unit == "" {
		return ""
	}
	return "[" + unit + "]"
}

// Contract is the dataset as a contract of its messages, for catalog.AsyncAPI.
func (d *Dataset) Contract() message.Contract {
	return message.Contract{
		Subjects: d.Subjects(), Type: fmt.Sprintf("data_platform.%s.v%d", d.Name, d.Version), Doc: d.Doc, Owner: d.Owner, Route: message.ByLog,
		Says: []string{"data_platform.bridge"}, Hears: []string{"data_platform.etl"}, ContentType: "application/json", Schema: d.JSONSchema(),
	}
}
