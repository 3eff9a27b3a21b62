package device

import (
	"slices"
	"testing"

	"github.com/naru-platform/naru/message"
)

// The topics of https://docs.aws.amazon.com/iot/latest/developerguide/device-shadow-mqtt.html, and others.
func TestShadowTopicsAndSubjectsAreTwoSpellingsOfOne(t *testing.T) {
	for topic, subject := range map[string]message.Subject{
		"$aws/things/d-17/shadow/get":                             "device.d-17.twin.get",
		"$aws/things/d-17/shadow/get/accepted":                    "device.d-17.twin.get.accepted",
		"$aws/things/d-17/shadow/get/rejected":                    "device.d-17.twin.get.rejected",
		"$aws/things/d-17/shadow/update":                          "device.d-17.twin.update",
		"$aws/things/d-17/shadow/update/delta":                    "device.d-17.twin.update.delta",
		"$aws/things/d-17/shadow/update/accepted":                 "device.d-17.twin.update.accepted",
		"$aws/things/d-17/shadow/update/documents":                "device.d-17.twin.update.documents",
		"$aws/things/d-17/shadow/update/rejected":                 "device.d-17.twin.update.rejected",
		"$aws/things/d-17/shadow/delete":                          "device.d-17.twin.delete",
		"$aws/things/d-17/shadow/delete/accepted":                 "device.d-17.twin.delete.accepted",
		"$aws/things/d-17/shadow/delete/rejected":                 "device.d-17.twin.delete.rejected",
		"$aws/things/d-17/shadow/name/config/update":              "device.d-17.twin.name.config.update",
		"$aws/things/d-17/shadow/name/config/update/delta":        "device.d-17.twin.name.config.update.delta",
		"$aws/things/my thing.1/shadow/name/get/get":              "device.my%20thing%2E1.twin.name.get.get",
		"$aws/things/mySimulatedThing/shadow/name/a:b/delete":     "device.mySimulatedThing.twin.name.a:b.delete",
		"$aws/things/shadow/shadow/name/name/update/documents":    "device.shadow.twin.name.name.update.documents",
		"$aws/things/d-17/shadow/name/update/get/accepted":        "device.d-17.twin.name.update.get.accepted",
		"$aws/things/d-17/shadow/name/delta/update/rejected":      "device.d-17.twin.name.delta.update.rejected",
		"$aws/things/100%25/shadow/get":                           "device.100%2525.twin.get",
		"$aws/things/기기/shadow/update":                            "device.기기.twin.update",
		"$aws/things/d-17/shadow/name/simShadow1/delete/accepted": "device.d-17.twin.name.simShadow1.delete.accepted",
	} {
		if got, ok := FromShadowTopic(topic); !ok || got != subject {
			t.Errorf("%s is %q, %v; want %s", topic, got, ok, subject)
		}
		if got, ok := ShadowTopic(subject); !ok || got != topic {
			t.Errorf("%s is %q, %v; want %s", subject, got, ok, topic)
		}
	}
}

func TestWhatIsNotOfTheShadowProtocolHasOneSpelling(t *testing.T) {
	for _, topic := range []string{"", "$aws", "$aws/things/d/shadow", "$aws/things//shadow/get", "$aws/things/d/shadow/changed", "$aws/things/d/shadow/get/delta",
		"$aws/things/d/shadow/name/get", "$aws/things/d/shadow/name//get", "$aws/things/d/shadow/update/delta/more", "$aws/things/d/jobs/get",
		"aws/things/d/shadow/get", "device/d/twin/get", "$aws/things/+/shadow/get", "$aws/things/d/shadow/#", "$aws/things/d\x00/shadow/get"} {
		if s, ok := FromShadowTopic(topic); ok {
			t.Errorf("%q is %s", topic, s)
		}
	}
	for _, s := range []message.Subject{"device.d.twin", "device.d.twin.changed", "device.d.twin.get.delta", "device.d.telemetry.get", "service_platform.d.twin.get",
		"device.d.twin.name.get", "device.d.twin.name.%.get"} {
		if topic, ok := ShadowTopic(s); ok {
			t.Errorf("%s is %s", s, topic)
		}
	}
}

func TestShadowFiltersSelectWhatTheirTopicsAre(t *testing.T) {
	for filter, want := range map[string][]message.Pattern{
		"$aws/things/d-17/shadow/update/delta": {"device.d-17.twin.update.delta"},
		"$aws/things/+/shadow/update/delta":    {"device.*.twin.update.delta"},
		"$aws/things/d-17/shadow/+/accepted":   {"device.d-17.twin.*.accepted"},
		"$aws/things/d-17/shadow/#":            {"device.d-17.twin", "device.d-17.twin.>"},
		"$aws/things/d-17/shadow/name/+/get/#": {"device.d-17.twin.name.*.get", "device.d-17.twin.name.*.get.>"},
	} {
		if got, ok := FromShadowFilter(filter); !ok || !slices.Equal(got, want) {
			t.Errorf("%s is %q, %v; want %q", filter, got, ok, want)
		}
	}
	for _, filter := range []string{"#", "$aws/#", "$aws/things/#", "$aws/things/d/#", "$aws/things/d/+/get", "+/things/d/shadow/get", "$aws/things/d/shadow/#/x", "device/d/twin/get"} {
		if got, ok := FromShadowFilter(filter); ok {
			t.Errorf("%s is %q", filter, got)
		}
	}
}

func TestRequestsToTwinsAreKnownByTheirSubjects(t *testing.T) {
	for subject, want := range map[message.Subject][3]string{
		"device.d%2E1.twin.get":         {"d.1", "", "get"},
		"device.d.twin.name.get.update": {"d", "get", "update"},
		"device.d.twin.name.a%20b.get":  {"d", "a b", "get"},
	} {
		device, shadow, request, ok := TwinRequest(subject)
		if got := [3]string{device, shadow, request}; !ok || got != want {
			t.Errorf("%s is %q, %v; want %q", subject, got, ok, want)
		}
		if got := TwinSubject(device, shadow, request); got != subject {
			t.Errorf("%s is written as %s", subject, got)
		}
	}
	for _, s := range []message.Subject{"device.d.twin.get.accepted", "device.d.twin.changed", "device.d.twin.name.get", "device.d.twin.name.%.get", "device.d.twin.name.a.get.accepted", "device.d.telemetry", "3rd_party.d.twin.get"} {
		if _, _, _, ok := TwinRequest(s); ok {
			t.Errorf("%s is taken for a request", s)
		}
	}
}
