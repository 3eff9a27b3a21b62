package model

import (
	"encoding/json"
	"fmt"
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

// object makes a schema one of an object with a member.
func object(at map[string]any, member string, required bool) {
	if at["properties"] == nil {
		at["properties"] = map[string]any{}
	}
	if required {
		at["type"] = "object"
	} else if at["type"] == nil {
		at["type"] = []string{"object", "null"}
	}
	if of := at["properties"].(map[string]any); of[member] == nil {
		of[member] = map[string]any{}
	}
	if required {
		list, _ := at["required"].([]string)
		for _, name := range list {
			if name == member {
				return
			}
		}
		at["required"] = append(list, member)
	}
}

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
		at["contentEncoding"] = "base64"
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
	if f.Pattern != "" {
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
