// Package serviceplatform is what the service platform says, under the namespace `service_platform.`.
package serviceplatform

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/naru-platform/naru/message"
)

// The changes that DeviceChanged tells of.
const (
	Registered = "registered"
	Issued     = "issued"
	Revoked    = "revoked"
	Disabled   = "disabled"
	Enabled    = "enabled"
	Deleted    = "deleted"
	Changed    = "changed" // its attributes, groups, policy or template
)

// DeviceChanged is a fact about a device's admission.
type DeviceChanged struct {
	Device      string    `json:"device"`
	Change      string    `json:"change"`
	Fingerprint string    `json:"fingerprint,omitempty"` // SHA-256 of the certificate, hexadecimal
	NotAfter    time.Time `json:"not_after,omitzero"`
	By          string    `json:"by"`
	Reason      string    `json:"reason,omitempty"` // as whoever did it gave it
	// Fields says what changed of what describes the device, with the change "changed".
	Fields []FieldChange `json:"fields,omitempty"`
}

// FieldChange is what a field was and is; long texts are cut, and end in an ellipsis.
type FieldChange struct {
	Field string `json:"field"` // groups, policy, template, or attribute and its name behind a dot
	Was   string `json:"was,omitempty"`
	Is    string `json:"is,omitempty"`
}

// DeviceChangedSubject is where such facts go.
func DeviceChangedSubject(device string) message.Subject {
	return message.NewSubject(message.ServicePlatform, "x509", "device", device)
}

// Contracts lists what the service platform says.
func Contracts() []message.Contract {
	return append(slices.Concat(ruleContracts(), commandContracts(), webhookContracts(), bridgeContracts()), []message.Contract{
		sessionState(),
		{
			Subjects: "service_platform.x509.device.*", Type: "service_platform.x509.device_changed.v1", Owner: "service_platform",
			Route: message.ByLog,
			Doc:   "What changed of a device's registration, and by whom. With `deleted` its session, retained messages and twin go too.",
			Says:  []string{"service_platform.x509"}, Hears: []string{"operator.journal", "service_platform.twin", "service_platform.command"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["device","change","by"],
"properties":{"device":{"type":"string"},"change":{"enum":["registered","issued","revoked","disabled","enabled","deleted","changed"]},
"fingerprint":{"type":"string"},"not_after":{"type":"string","format":"date-time"},"by":{"type":"string"},"reason":{"type":"string"},
"fields":{"type":"array","items":{"type":"object","required":["field"],"properties":{"field":{"type":"string"},"was":{"type":"string"},"is":{"type":"string"}}}}}}`),
			Example: json.RawMessage(`{"device":"d-17","change":"issued","fingerprint":"9f86d081884c7d65","not_after":"2027-11-23T03:00:00Z","by":"operator"}`),
		},
	}...)
}
