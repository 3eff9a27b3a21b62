// Package device is what devices say and hear, each on its own subtree `device.<id>.`.
package device

import (
	"encoding/json"
	"time"

	"github.com/naru-platform/naru/message"
)

// Presence is whether a device is connected.
type Presence struct {
	Online  bool           `json:"online"`
	Since   time.Time      `json:"since"`
	Reason  message.Reason `json:"reason,omitempty"` // why it went; nothing when it said goodbye
	Session message.ID     `json:"session"`          // of this connection
	Client  string         `json:"client_id,omitempty"`
	Version uint64         `json:"version"` // rises with each change
	Node    string         `json:"node"`    // of the broker
}

// PresenceSubject is where a device's presence is told.
func PresenceSubject(id string) message.Subject {
	return message.NewSubject(message.Device, id, "presence")
}

// Contracts lists what devices say and hear.
func Contracts() []message.Contract {
	return append(commandContracts(), []message.Contract{
		{
			Subjects: "device.*.telemetry", Type: "device.telemetry.v1", Owner: "device", Route: message.ByLog,
			Doc:  "What a device measures. Not said for longer than its interval: the device is off, cut off, or silent; see presence.",
			Says: []string{"device"}, Hears: []string{"service_platform.rule", "data_platform.bridge"},
		},
		{
			Subjects: "device.*.telemetry.>", Type: "device.telemetry_channel.v1", Owner: "device", Route: message.ByLog,
			Doc:  "What a device measures, on one of several channels.",
			Says: []string{"device"}, Hears: []string{"service_platform.rule", "data_platform.bridge"},
		},
		{
			Subjects: "device.*.event.*", Type: "device.event.v1", Owner: "device", Route: message.ByLog,
			Doc:  "Something happened at a device: a door opened, a pump stalled. Its name is the last token.",
			Says: []string{"device"}, Hears: []string{"service_platform.rule", "data_platform.bridge"},
		},
		{
			Subjects: "device.*.presence", Type: "device.presence.v1", Owner: "service_platform", Route: message.ByLog,
			Doc:  "A device connected or went, and why. The broker says it; a device cannot.",
			Says: []string{"service_platform.broker"}, Hears: []string{"service_platform.rule", "data_platform.bridge"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["online","since","session","version","node"],
"properties":{"online":{"type":"boolean"},"since":{"type":"string","format":"date-time"},"reason":{"type":"string"},
"session":{"type":"string"},"client_id":{"type":"string"},"version":{"type":"integer","minimum":1},"node":{"type":"string"}}}`),
			Example: json.RawMessage(`{"online":false,"since":"2026-11-23T03:00:00Z","reason":"keep_alive_timeout",
"session":"0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e","client_id":"d-17","version":7,"node":"n1"}`),
		},
		{
			Subjects: "device.*.twin.>", Type: "device.twin.v1", Owner: "service_platform", Route: message.ByLog,
			Doc:   "A request to a device's twin (get, update, delete) and the twin's answers (accepted, rejected, delta, documents; read, to those inside who wished for it), in the documents of AWS IoT's Device Shadow. No answer: service_platform.twin is behind or away.",
			Says:  []string{"device", "service_platform.gateway", "service_platform.rule", "service_platform.worker", "service_platform.twin"},
			Hears: []string{"service_platform.twin", "device"},
		},
		{
			Subjects: "device.*.twin.changed", Type: "device.twin_changed.v1", Owner: "service_platform", Route: message.ByLog,
			Doc:  "The state of one of a device's twins became another one: what it was, what it is, which values changed. Not said where an update repeats what was there.",
			Says: []string{"service_platform.twin"}, Hears: []string{"service_platform.rule", "data_platform.bridge"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["device","change","version","at","source","paths"],
"properties":{"device":{"type":"string"},"shadow":{"type":"string"},"change":{"enum":["created","updated","deleted"]},
"version":{"type":"integer","minimum":1},"at":{"type":"string","format":"date-time"},"source":{"type":"string"},
"paths":{"type":"array","items":{"type":"string"}},"previous":{"type":"object"},"current":{"type":"object"}}}`),
			Example: json.RawMessage(`{"device":"d-17","change":"updated","version":8,"at":"2026-11-23T03:00:00Z","source":"//naru/device/d-17",
"paths":["/reported/color"],"previous":{"desired":{"color":"red"},"reported":{"color":"green"}},
"current":{"desired":{"color":"red"},"reported":{"color":"red"}}}`),
		},
	}...)
}
