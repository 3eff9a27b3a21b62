package catalog

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/naru-platform/naru/message"
)

// AsyncAPI writes the catalog as an AsyncAPI 3.0.0 document: a channel per contract, with its wildcards as parameters,
// a message with its schema, and an operation for each who says or hears it. version is the document's own.
func AsyncAPI(c *message.Catalog, version string) ([]byte, error) {
	channels, operations, messages := object{}, object{}, object{}
	for _, k := range c.Contracts() {
		name := strings.ReplaceAll(k.Type, ".", "_")
		msg := object{
			"name": k.Type, "title": k.Type, "summary": k.Doc,
			"headers": object{"$ref": "#/components/schemas/CloudEvent"},
		}
		if k.ContentType != "" {
			msg["contentType"] = k.ContentType
		}
		if k.Schema != nil {
			msg["payload"] = object{"schemaFormat": "application/schema+json;version=draft-2020-12", "schema": k.Schema}
		}
		if k.Example != nil {
			msg["examples"] = []any{object{"payload": k.Example}}
		}
		messages[name] = msg
		address, parameters := address(k.Subjects)
		channel := object{
			"address": address, "summary": k.Doc,
			"messages": object{name: object{"$ref": "#/components/messages/" + name}},
			"x-owner":  k.Owner, "x-route": k.Route,
		}
		if len(parameters) > 0 {
			channel["parameters"] = parameters
		}
		channels[name] = channel
		operation := func(who, action string) {
			operations[strings.NewReplacer(".", "_", "*", "any").Replace(who)+"_"+action+"_"+name] = object{
				"action": action, "title": who + " " + action + "s " + k.Type,
				"channel": object{"$ref": "#/channels/" + name},
			}
		}
		for _, who := range k.Says {
			operation(who, "send")
		}
		for _, who := range k.Hears {
			operation(who, "receive")
		}
	}
	return json.MarshalIndent(object{
		"asyncapi": "3.0.0",
		"info": object{
			"title": "naru", "version": version,
			"description": "Every kind of message on this platform, who says it and who hears it.",
		},
		"defaultContentType": "application/json",
		"channels":           channels,
		"operations":         operations,
		"components": object{
			"messages": messages,
			"schemas":  object{"CloudEvent": cloudEvent},
		},
	}, "", "  ")
}

type object = map[string]any

// address gives a pattern's wildcards names, since AsyncAPI has parameters where naru has wildcards.
func address(p message.Pattern) (string, object) {
	tokens := strings.Split(string(p), ".")
	parameters := object{}
	n := 0
	for i, t := range tokens {
		var name, doc string
		switch {
		case t == "*" && i == 1 && tokens[0] == message.Device:
			name, doc = "device", "The device's id."
		case t == "*":
			n++
			name, doc = fmt.Sprintf("name%d", n), "One token."
		case t == ">":
			name, doc = "rest", "One token or more."
		default:
			continue
		}
		tokens[i] = "{" + name + "}"
		parameters[name] = object{"description": doc}
	}
	return strings.Join(tokens, "."), parameters
}

var cloudEvent = json.RawMessage(`{"type":"object","description":"CloudEvents 1.0 attributes, with W3C trace context and the id of the message's cause.",
"required":["specversion","id","source","type","subject"],
"properties":{"specversion":{"const":"1.0"},"id":{"type":"string","format":"uuid"},"source":{"type":"string"},
"type":{"type":"string"},"subject":{"type":"string"},"time":{"type":"string","format":"date-time"},
"datacontenttype":{"type":"string"},"dataschema":{"type":"string"},"traceparent":{"type":"string"},
"cause":{"type":"string","format":"uuid"},"device":{"type":"string"},"recorded":{"type":"string","format":"date-time"}}}`)
