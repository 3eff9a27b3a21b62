package shadow

import (
	"strings"
	"testing"
)

// The pages of AWS's documentation that the cases are from.
const (
	guide     = "https://docs.aws.amazon.com/iot/latest/developerguide/"
	documents = guide + "device-shadow-document.html"
	dataFlow  = guide + "device-shadow-data-flow.html"
	topics    = guide + "device-shadow-mqtt.html"
	devices   = guide + "device-shadow-comms-device.html"
	apps      = guide + "device-shadow-comms-app.html"
	simulate  = guide + "using-device-shadows.html"
	errorList = guide + "device-shadow-error-messages.html"
	restAPI   = guide + "device-shadow-rest-api.html"
)

// The examples of the documentation. Where a page shows a form (`"attribute1": integer2`), a case fills it in.
func TestDocumentedExamples(t *testing.T) {
	playAll(t, []script{
		{name: "a client asks for a state", url: topics, steps: []step{{
			ask:      `{"state":{"desired":{"color":"red","power":"on"}}}`,
			accepted: `{"state":{"desired":{"color":"red","power":"on"}},"metadata":{"desired":{"color":{"timestamp":1591140517},"power":{"timestamp":1591140517}}},"version":1,"timestamp":1591140517}`,
			delta:    `{"version":1,"timestamp":1591140517,"state":{"color":"red","power":"on"},"metadata":{"color":{"timestamp":1591140517},"power":{"timestamp":1591140517}}}`,
		}}},
		{name: "a device reports its state", url: topics, steps: []step{{
			ask:      `{"state":{"reported":{"color":"red","power":"on"}}}`,
			accepted: `{"state":{"reported":{"color":"red","power":"on"}},"metadata":{"reported":{"color":{"timestamp":1591140517},"power":{"timestamp":1591140517}}},"version":1,"timestamp":1591140517}`,
			delta:    none,
		}}},
		{name: "the delta has all that differs, whether it is in this update or not", url: topics + "#update-delta-pub-sub-topic",
			state: `{"desired":{"a":1,"b":2,"same":3},"reported":{"same":3,"extra":4}}`, version: 4, steps: []step{
				{ask: `{"state":{"desired":{"c":5}}}`, delta: `{"version":5,"timestamp":1591140517,"state":{"a":1,"b":2,"c":5},"metadata":{"a":{"timestamp":1591140517},"b":{"timestamp":1591140517},"c":{"timestamp":1591140517}}}`},
				{ask: `{"state":{"reported":{"same":null}}}`, delta: `{"version":6,"timestamp":1591140517,"state":{"a":1,"b":2,"c":5,"same":3},"metadata":{"a":{"timestamp":1591140517},"b":{"timestamp":1591140517},"c":{"timestamp":1591140517},"same":{"timestamp":1591140517}}}`},
			}},
		{name: "/accepted response state document", url: documents + "#device-shadow-example-response-json-accepted",
			state: `{"desired":{"attribute1":1,"attribute3":true},"reported":{"attribute1":1}}`, steps: []step{{
				at: 1591141596, ask: `{"state":{"desired":{"attribute1":2,"attribute2":"string2"}},"clientToken":"token","version":1}`,
				accepted: `{"state":{"desired":{"attribute1":2,"attribute2":"string2"}},"metadata":{"desired":{"attribute1":{"timestamp":1591141596},"attribute2":{"timestamp":1591141596}}},"timestamp":1591141596,"clientToken":"token","version":2}`,
			}}},
		{name: "/delta response state document", url: documents + "#device-shadow-example-response-json-delta",
			state: `{"reported":{"attribute1":1,"attribute2":"string1"}}`, steps: []step{{
				at: 1591141596, ask: `{"state":{"desired":{"attribute1":2,"attribute2":"string2","attributeN":false}},"clientToken":"token"}`,
				delta: `{"state":{"attribute1":2,"attribute2":"string2","attributeN":false},"metadata":{"attribute1":{"timestamp":1591141596},"attribute2":{"timestamp":1591141596},"attributeN":{"timestamp":1591141596}},"timestamp":1591141596,"clientToken":"token","version":2}`,
			}}},
		{name: "/documents response state document", url: documents + "#device-shadow-example-response-json-documents",
			state: `{"desired":{"attribute1":2},"reported":{"attribute1":1}}`, version: 7, steps: []step{{
				at: 1591141596, ask: `{"state":{"reported":{"attribute1":2}},"clientToken":"token"}`,
				docs: `{"previous":{"state":{"desired":{"attribute1":2},"reported":{"attribute1":1}},"metadata":{"desired":{"attribute1":{"timestamp":1591140517}},"reported":{"attribute1":{"timestamp":1591140517}}},"version":7},
"current":{"state":{"desired":{"attribute1":2},"reported":{"attribute1":2}},"metadata":{"desired":{"attribute1":{"timestamp":1591140517}},"reported":{"attribute1":{"timestamp":1591141596}}},"version":8},"timestamp":1591141596,"clientToken":"token"}`,
				delta: none,
			}}},
		{name: "request state document", url: documents + "#device-shadow-example-request-json", state: `{"reported":{"other":1}}`, version: 4, steps: []step{{
			ask:      `{"state":{"desired":{"attribute1":2,"attribute2":"string2","attributeN":true},"reported":{"attribute1":1,"attribute2":"string1","attributeN":false}},"clientToken":"token","version":4}`,
			state:    `{"desired":{"attribute1":2,"attribute2":"string2","attributeN":true},"reported":{"other":1,"attribute1":1,"attribute2":"string1","attributeN":false}}`,
			accepted: `{"state":{"desired":{"attribute1":2,"attribute2":"string2","attributeN":true},"reported":{"attribute1":1,"attribute2":"string1","attributeN":false}},"metadata":{"desired":{"attribute1":{"timestamp":1591140517},"attribute2":{"timestamp":1591140517},"attributeN":{"timestamp":1591140517}},"reported":{"attribute1":{"timestamp":1591140517},"attribute2":{"timestamp":1591140517},"attributeN":{"timestamp":1591140517}}},"timestamp":1591140517,"clientToken":"token","version":5}`,
		}}},
		{name: "error response document", url: documents + "#device-shadow-example-error-json", steps: []step{{
			ask: `{"clientToken":"token"}`, rejected: `{"code":400,"message":"Missing required node: state","timestamp":1591140517,"clientToken":"token"}`}}},
		{name: "delta state", url: documents + "#delta-state", version: 17,
			state: `{"desired":{"color":"RED","state":"STOP"},"reported":{"color":"GREEN","engine":"ON"}}`, steps: []step{{
				op: "get", at: 1591141596,
				accepted: `{"state":{"desired":{"color":"RED","state":"STOP"},"reported":{"color":"GREEN","engine":"ON"},"delta":{"color":"RED","state":"STOP"}},
"metadata":{"desired":{"color":{"timestamp":1591140517},"state":{"timestamp":1591140517}},"reported":{"color":{"timestamp":1591140517},"engine":{"timestamp":1591140517}},"delta":{"color":{"timestamp":1591140517},"state":{"timestamp":1591140517}}},
"version":17,"timestamp":1591141596}`,
			}}},
		{name: "a nested delta has the path to the root", url: documents + "#delta-state", version: 17,
			state: `{"desired":{"lights":{"color":{"r":255,"g":255,"b":255}}},"reported":{"lights":{"color":{"r":255,"b":255}}}}`, steps: []step{{
				ask:   `{"state":{"reported":{"lights":{"color":{"g":0}}}}}`,
				delta: `{"version":18,"timestamp":1591140517,"state":{"lights":{"color":{"g":255}}},"metadata":{"lights":{"color":{"g":{"timestamp":1591140517}}}}}`,
			}}},
		{name: "arrays that differ are in the delta whole", url: documents + "#delta-state", state: `{"reported":{"list":[1,2,3]}}`, steps: []step{{
			ask:   `{"state":{"desired":{"list":[1,2,4]}}}`,
			delta: `{"version":2,"timestamp":1591140517,"state":{"list":[1,2,4]},"metadata":{"list":[{"timestamp":1591140517},{"timestamp":1591140517},{"timestamp":1591140517}]}}`}}},
		{name: "each update has the next version", url: documents + "#versioning", state: `{"reported":{"a":1}}`, version: 9, steps: []step{
			{ask: `{"state":{"reported":{"a":1}}}`, accepted: `{"state":{"reported":{"a":1}},"metadata":{"reported":{"a":{"timestamp":1591140517}}},"version":10,"timestamp":1591140517}`},
			{ask: `{"state":{"reported":{"a":2}}}`, accepted: `{"state":{"reported":{"a":2}},"metadata":{"reported":{"a":{"timestamp":1591140517}}},"version":11,"timestamp":1591140517}`},
		}},
		{name: "a client token of 64 bytes is taken", url: documents + "#client-token", steps: []step{{
			ask:      `{"state":{},"clientToken":"` + strings.Repeat("t", 64) + `"}`,
			accepted: `{"state":{},"metadata":{},"version":1,"timestamp":1591140517,"clientToken":"` + strings.Repeat("t", 64) + `"}`}}},
		{name: "a client token of 65 bytes is not", url: documents + "#client-token", steps: []step{{
			ask: `{"state":{},"clientToken":"` + strings.Repeat("t", 65) + `"}`, rejected: `{"code":400,"message":"Invalid clientToken","timestamp":1591140517}`}}},
		{name: "a document without desired", url: documents + "#device-shadow-empty-fields", steps: []step{{
			ask: `{"state":{"reported":{"temp":55}}}`, state: `{"reported":{"temp":55}}`}}},
		{name: "a document without reported", url: documents + "#device-shadow-empty-fields", steps: []step{{
			ask: `{"state":{"desired":{"color":"RED"}}}`, state: `{"desired":{"color":"RED"}}`}}},
		{name: "desired is removed by null", url: documents + "#device-shadow-empty-fields", state: `{"desired":{"color":"red"},"reported":{"color":"blue"}}`, steps: []step{{
			ask: `{"state":{"reported":{"color":"red"},"desired":null}}`, state: `{"reported":{"color":"red"}}`,
			accepted: `{"state":{"reported":{"color":"red"},"desired":null},"metadata":{"reported":{"color":{"timestamp":1591140517}}},"version":2,"timestamp":1591140517}`,
			delta:    none}}},
		{name: "an empty document", url: documents + "#device-shadow-empty-fields", state: `{"desired":{"a":1},"reported":{"a":1}}`, steps: []step{
			{ask: `{"state":{"desired":null,"reported":null}}`, state: `{}`},
			{op: "get", accepted: `{"state":{},"metadata":{},"version":2,"timestamp":1591140517}`},
		}},
		{name: "an array is replaced whole", url: documents + "#device-shadow-arrays", state: `{"desired":{"colors":["RED","GREEN","BLUE"]}}`, steps: []step{{
			ask: `{"state":{"desired":{"colors":["RED"]}}}`, state: `{"desired":{"colors":["RED"]}}`}}},
		{name: "an array with null is refused", url: documents + "#device-shadow-arrays", state: `{"desired":{"colors":["RED"]}}`, steps: []step{{
			ask: `{"state":{"desired":{"colors":[null,"RED","GREEN"]}}}`, state: `{"desired":{"colors":["RED"]}}`,
			rejected: `{"code":400,"message":"State contains an invalid node: 'colors'","timestamp":1591140517}`}}},

		{name: "a client requests a state change", url: dataFlow + "#update-pub-sub-topic-client", state: `{"reported":{"color":{"r":255,"g":255,"b":0}}}`, steps: []step{
			{ask: `{"state":{"desired":{"color":{"r":10},"engine":"ON"}}}`, delta: `{"version":2,"timestamp":1591140517,"state":{"color":{"r":10},"engine":"ON"},"metadata":{"color":{"r":{"timestamp":1591140517}},"engine":{"timestamp":1591140517}}}`},
			{ask: `{"state":{"reported":{"color":{"r":10},"engine":"ON"}}}`, state: `{"desired":{"color":{"r":10},"engine":"ON"},"reported":{"color":{"r":10,"g":255,"b":0},"engine":"ON"}}`, delta: none},
		}},
		{name: "a device reports its current state", url: dataFlow + "#update-pub-sub-topic-device", steps: []step{
			{ask: `{"state":{"reported":{"color":{"r":10},"engine":"ON"}}}`, state: `{"reported":{"color":{"r":10},"engine":"ON"}}`, delta: none},
		}},
		{name: "optimistic locking", url: dataFlow + "#optimistic-locking", state: `{"desired":{"colors":["RED","GREEN","BLUE"]}}`, version: 10, steps: []step{
			{ask: `{"state":{"desired":{"colors":["BLUE"]}},"version":9,"clientToken":"426bfd96-e720-46d3-95cd-014e3ef12bb6"}`,
				rejected: `{"code":409,"message":"Version conflict","clientToken":"426bfd96-e720-46d3-95cd-014e3ef12bb6","timestamp":1591140517}`, state: `{"desired":{"colors":["RED","GREEN","BLUE"]}}`},
			{ask: `{"state":{"desired":{"colors":["BLUE"]}},"version":10}`, state: `{"desired":{"colors":["BLUE"]}}`,
				accepted: `{"state":{"desired":{"colors":["BLUE"]}},"metadata":{"desired":{"colors":[{"timestamp":1591140517}]}},"version":11,"timestamp":1591140517}`},
		}},
		{name: "retrieving a document", url: dataFlow + "#retrieving-device-shadow", version: 10,
			state: `{"desired":{"lights":{"color":"RED"},"engine":"ON"},"reported":{"lights":{"color":"GREEN"},"engine":"ON"}}`, steps: []step{{op: "get", at: 1591141596,
				accepted: `{"state":{"desired":{"lights":{"color":"RED"},"engine":"ON"},"reported":{"lights":{"color":"GREEN"},"engine":"ON"},"delta":{"lights":{"color":"RED"}}},
"metadata":{"desired":{"lights":{"color":{"timestamp":1591140517}},"engine":{"timestamp":1591140517}},"reported":{"lights":{"color":{"timestamp":1591140517}},"engine":{"timestamp":1591140517}},"delta":{"lights":{"color":{"timestamp":1591140517}}}},"version":10,"timestamp":1591141596}`}}},
		{name: "deleting a property", url: dataFlow + "#deleting-shadow-property", state: `{"desired":{"engine":"ON","lights":1}}`, steps: []step{{
			ask: `{"state":{"desired":{"engine":null}}}`, state: `{"desired":{"lights":1}}`,
			accepted: `{"state":{"desired":{"engine":null}},"metadata":{"desired":{}},"version":2,"timestamp":1591140517}`}}},
		{name: "deleting data", url: dataFlow + "#deleting-thing-data",
			state: `{"desired":{"lights":{"color":"RED"},"engine":"ON"},"reported":{"lights":{"color":"GREEN"},"engine":"OFF"}}`, steps: []step{{
				ask: `{"state":{"desired":null,"reported":{"engine":null}}}`, state: `{"reported":{"lights":{"color":"GREEN"}}}`}}},
		{name: "state null removes all and leaves the shadow", url: dataFlow + "#deleting-device-shadow", state: `{"desired":{"a":1},"reported":{"b":2}}`, version: 3, steps: []step{
			{ask: `{"state":null}`, state: `{}`, accepted: `{"state":null,"metadata":{},"version":4,"timestamp":1591140517}`},
			{op: "get", accepted: `{"state":{},"metadata":{},"version":4,"timestamp":1591140517}`},
			{ask: `{"state":{"desired":{"a":1}}}`, accepted: `{"state":{"desired":{"a":1}},"metadata":{"desired":{"a":{"timestamp":1591140517}}},"version":5,"timestamp":1591140517}`},
		}},
		{name: "deleting a shadow", url: dataFlow + "#deleting-device-shadow", shadow: "simShadow1",
			state: `{"desired":{"lights":{"color":"RED"},"engine":"ON"},"reported":{"lights":{"color":"GREEN"},"engine":"OFF"}}`, version: 4, steps: []step{
				{op: "delete", at: 1591057529 + 100000, accepted: `{"version":4,"timestamp":1591157529}`},
				{op: "get", rejected: `{"code":404,"message":"No shadow exists with name: 'simShadow1'","timestamp":1591157529}`},
				{op: "delete", rejected: `{"code":404,"message":"No shadow exists with name: 'simShadow1'","timestamp":1591157529}`},
			}},
		{name: "a shadow made again within 48 hours goes on from its version", url: dataFlow + "#delete", state: `{"desired":{"a":1}}`, version: 4, steps: []step{
			{op: "delete"},
			{at: begins + 48*3600 - 1, ask: `{"state":{"reported":{"b":2}}}`, state: `{"reported":{"b":2}}`, accepted: `{"state":{"reported":{"b":2}},"metadata":{"reported":{"b":{"timestamp":1591313316}}},"version":5,"timestamp":1591313316}`},
		}},
		{name: "a shadow made again after 48 hours begins anew", url: dataFlow + "#delete", state: `{"desired":{"a":1}}`, version: 4, steps: []step{
			{op: "delete"},
			{at: begins + 48*3600, ask: `{"state":{"reported":{"b":2}},"version":0}`, accepted: `{"state":{"reported":{"b":2}},"metadata":{"reported":{"b":{"timestamp":1591313317}}},"version":1,"timestamp":1591313317}`},
		}},
		// The page has the document at version 9, and updates that state 10 and 11; stated versions are those before an update.
		{name: "versions tell which delta is newer", url: guide + "iot-device-shadows.html#message-ordering", state: `{"reported":{"color":"blue"}}`, version: 10, steps: []step{
			{ask: `{"state":{"desired":{"color":"RED"}},"version":10}`, delta: `{"state":{"color":"RED"},"metadata":{"color":{"timestamp":1591140517}},"version":11,"timestamp":1591140517}`},
			{at: begins + 1, ask: `{"state":{"desired":{"color":"GREEN"}},"version":11}`, delta: `{"state":{"color":"GREEN"},"metadata":{"color":{"timestamp":1591140518}},"version":12,"timestamp":1591140518}`},
		}},

		{name: "a device finds no shadow and makes one", url: devices + "#device-shadow-comms-device-first-connect", shadow: "My_IoT_Thing", steps: []step{
			{op: "get", rejected: `{"code":404,"message":"No shadow exists with name: 'My_IoT_Thing'","timestamp":1591140517}`},
			{ask: `{"state":{"reported":{"welcome":"aws-iot","color":"yellow"}}}`, state: `{"reported":{"welcome":"aws-iot","color":"yellow"}}`},
			{op: "get", accepted: `{"state":{"reported":{"welcome":"aws-iot","color":"yellow"}},"metadata":{"reported":{"welcome":{"timestamp":1591140517},"color":{"timestamp":1591140517}}},"version":1,"timestamp":1591140517}`},
		}},
		{name: "what the page prints without its first brace is not JSON", url: devices + "#device-shadow-comms-device-first-connect", steps: []step{{
			ask: `"state":{"reported":{"welcome":"aws-iot","color":"yellow"}}}`, rejected: `{"code":400,"message":"Invalid JSON","timestamp":1591140517}`}}},
		{name: "connected, and no more", url: apps + "#thing-connection", steps: []step{
			{ask: `{"state":{"reported":{"connected":"true"}}}`, state: `{"reported":{"connected":"true"}}`},
			{ask: `{"state":{"reported":{"connected":"false"}}}`, state: `{"reported":{"connected":"false"}}`, docs: `{"previous":{"state":{"reported":{"connected":"true"}},"metadata":{"reported":{"connected":{"timestamp":1591140517}}},"version":1},"current":{"state":{"reported":{"connected":"false"}},"metadata":{"reported":{"connected":{"timestamp":1591140517}}},"version":2},"timestamp":1591140517}`},
		}},
		{name: "the simulation from its first request to its last", url: simulate, shadow: "simShadow1", version: 2, state: `{}`, steps: []step{
			{ask: `{"state":{"reported":{"ID":"SmartLamp21","ColorRGB":[128,128,128]}},"clientToken":"426bfd96-e720-46d3-95cd-014e3ef12bb6"}`,
				accepted: `{"state":{"reported":{"ID":"SmartLamp21","ColorRGB":[128,128,128]}},"metadata":{"reported":{"ID":{"timestamp":1591140517},"ColorRGB":[{"timestamp":1591140517},{"timestamp":1591140517},{"timestamp":1591140517}]}},"version":3,"timestamp":1591140517,"clientToken":"426bfd96-e720-46d3-95cd-014e3ef12bb6"}`},
			{op: "get", at: 1591141111, accepted: `{"state":{"reported":{"ID":"SmartLamp21","ColorRGB":[128,128,128]}},"metadata":{"reported":{"ID":{"timestamp":1591140517},"ColorRGB":[{"timestamp":1591140517},{"timestamp":1591140517},{"timestamp":1591140517}]}},"version":3,"timestamp":1591141111}`},
			{at: 1591141596, ask: `{"state":{"desired":{"ColorRGB":[255,255,0]}},"clientToken":"21b21b21-bfd2-4279-8c65-e2f697ff4fab"}`,
				accepted: `{"state":{"desired":{"ColorRGB":[255,255,0]}},"metadata":{"desired":{"ColorRGB":[{"timestamp":1591141596},{"timestamp":1591141596},{"timestamp":1591141596}]}},"version":4,"timestamp":1591141596,"clientToken":"21b21b21-bfd2-4279-8c65-e2f697ff4fab"}`,
				delta:    `{"version":4,"timestamp":1591141596,"state":{"ColorRGB":[255,255,0]},"metadata":{"ColorRGB":[{"timestamp":1591141596},{"timestamp":1591141596},{"timestamp":1591141596}]},"clientToken":"21b21b21-bfd2-4279-8c65-e2f697ff4fab"}`},
			{at: 1591142747, ask: `{"state":{"reported":{"ColorRGB":[255,255,0]}},"clientToken":"a4dc2227-9213-4c6a-a6a5-053304f60258"}`,
				accepted: `{"state":{"reported":{"ColorRGB":[255,255,0]}},"metadata":{"reported":{"ColorRGB":[{"timestamp":1591142747},{"timestamp":1591142747},{"timestamp":1591142747}]}},"version":5,"timestamp":1591142747,"clientToken":"a4dc2227-9213-4c6a-a6a5-053304f60258"}`,
				docs: `{"previous":{"state":{"desired":{"ColorRGB":[255,255,0]},"reported":{"ID":"SmartLamp21","ColorRGB":[128,128,128]}},
"metadata":{"desired":{"ColorRGB":[{"timestamp":1591141596},{"timestamp":1591141596},{"timestamp":1591141596}]},"reported":{"ID":{"timestamp":1591140517},"ColorRGB":[{"timestamp":1591140517},{"timestamp":1591140517},{"timestamp":1591140517}]}},"version":4},
"current":{"state":{"desired":{"ColorRGB":[255,255,0]},"reported":{"ID":"SmartLamp21","ColorRGB":[255,255,0]}},
"metadata":{"desired":{"ColorRGB":[{"timestamp":1591141596},{"timestamp":1591141596},{"timestamp":1591141596}]},"reported":{"ID":{"timestamp":1591140517},"ColorRGB":[{"timestamp":1591142747},{"timestamp":1591142747},{"timestamp":1591142747}]}},"version":5},
"timestamp":1591142747,"clientToken":"a4dc2227-9213-4c6a-a6a5-053304f60258"}`, delta: none},
			{op: "get", at: 1591143269, accepted: `{"state":{"desired":{"ColorRGB":[255,255,0]},"reported":{"ID":"SmartLamp21","ColorRGB":[255,255,0]}},
"metadata":{"desired":{"ColorRGB":[{"timestamp":1591141596},{"timestamp":1591141596},{"timestamp":1591141596}]},"reported":{"ID":{"timestamp":1591140517},"ColorRGB":[{"timestamp":1591142747},{"timestamp":1591142747},{"timestamp":1591142747}]}},"version":5,"timestamp":1591143269}`},
		}},
		{name: "the simulation asks for a shadow before it is there", url: simulate, shadow: "simShadow1", steps: []step{{
			op: "get", rejected: `{"code":404,"message":"No shadow exists with name: 'simShadow1'","timestamp":1591140517}`}}},
		{name: "a shadow is made by an update, whatever the request says of its version but 0", url: restAPI, steps: []step{
			{ask: `{"state":{"desired":{"a":1}},"version":1}`, rejected: `{"code":409,"message":"Version conflict","timestamp":1591140517}`},
			{ask: `{"state":{"desired":{"a":1}},"version":0}`, state: `{"desired":{"a":1}}`},
		}},
	})
}

// Each error of the list, with its code and text.
func TestDocumentedErrors(t *testing.T) {
	refuse := func(name, ask, message string, code string) script {
		return script{name: name, url: errorList, state: `{"reported":{"a":1}}`, steps: []step{{ask: ask, state: `{"reported":{"a":1}}`,
			rejected: `{"code":` + code + `,"message":"` + message + `","timestamp":1591140517}`}}}
	}
	deep := func(levels int) string {
		return `{"state":{"desired":` + strings.Repeat(`{"a":`, levels+1) + "1" + strings.Repeat("}", levels+1) + `}}`
	}
	playAll(t, []script{
		refuse("nothing is not JSON", ``, "Invalid JSON", "400"),
		refuse("half is not JSON", `{"state":{"desired":{"a":1}`, "Invalid JSON", "400"),
		refuse("two are not JSON", `{"state":{}} {}`, "Invalid JSON", "400"),
		refuse("a word is not JSON", `{"state":{"desired":{"a":yes}}}`, "Invalid JSON", "400"),
		refuse("a number with a zero in front is not JSON", `{"state":{"desired":{"a":01}}}`, "Invalid JSON", "400"),
		refuse("a trailing comma is not JSON", `{"state":{"desired":{"a":1,}}}`, "Invalid JSON", "400"),
		refuse("a raw line break in a string is not JSON", "{\"state\":{\"desired\":{\"a\":\"x\ny\"}}}", "Invalid JSON", "400"),
		refuse("an unknown escape is not JSON", `{"state":{"desired":{"a":"\x"}}}`, "Invalid JSON", "400"),
		refuse("no state", `{}`, "Missing required node: state", "400"),
		// A number is JSON: https://github.com/aws/aws-iot-device-sdk-js/issues/22
		refuse("JSON that is no object", `66`, "Missing required node: state", "400"),
		refuse("state is a text", `{"state":"on"}`, "State node must be an object", "400"),
		refuse("state is an array", `{"state":[]}`, "State node must be an object", "400"),
		refuse("desired is a number", `{"state":{"desired":1}}`, "Desired node must be an object", "400"),
		refuse("desired is an array", `{"state":{"desired":[]}}`, "Desired node must be an object", "400"),
		refuse("reported is a text", `{"state":{"reported":"x"}}`, "Reported node must be an object", "400"),
		refuse("version is a text", `{"state":{},"version":"1"}`, "Invalid version", "400"),
		refuse("version is negative", `{"state":{},"version":-1}`, "Invalid version", "400"),
		refuse("version is a fraction", `{"state":{},"version":1.5}`, "Invalid version", "400"),
		refuse("version is beyond 63 bits", `{"state":{},"version":9223372036854775808}`, "Invalid version", "400"),
		refuse("client token is a number", `{"state":{},"clientToken":5}`, "Invalid clientToken", "400"),
		refuse("client token of 66 bytes in 22 characters", `{"state":{},"clientToken":"`+strings.Repeat("나", 22)+`"}`, "Invalid clientToken", "400"),
		refuse("nine levels", deep(9), "JSON contains too many levels of nesting; maximum is 8", "400"),
		refuse("nine levels of arrays", `{"state":{"desired":{"a":[[[[[[[[[]]]]]]]]]}}}`, "JSON contains too many levels of nesting; maximum is 8", "400"),
		refuse("a thousand levels", deep(1000), "JSON contains too many levels of nesting; maximum is 8", "400"),
		// https://github.com/aws-greengrass/aws-greengrass-shadow-manager/pull/178 quotes the service, and so does
		// https://github.com/getmoto/moto/blob/5.0.0/docs/docs/services/iot-data.rst: not ignored, as some pages have it.
		refuse("a node beside desired and reported", `{"state":{"delta":{"a":1}}}`, "State contains an invalid node: 'delta'", "400"),
		refuse("null deep in an array", `{"state":{"desired":{"a":[{"b":[1,null]}]}}}`, "State contains an invalid node: 'a'", "400"),
		refuse("not UTF-8", "{\"state\":{\"desired\":{\"a\":\"\xff\"}}}", "Unsupported documented encoding; supported encoding is UTF-8", "415"),
		refuse("a state of 8 KB and more", `{"state":{"desired":{"a":"`+strings.Repeat("x", 8<<10)+`"}}}`, "The payload exceeds the maximum size allowed", "413"),
		refuse("a request beyond what a message may be", `{"state":{}`+strings.Repeat(" ", 128<<10)+`}`, "The payload exceeds the maximum size allowed", "413"),
		{name: "eight levels are taken", url: errorList, steps: []step{{ask: deep(8), accepted: `{"state":{"desired":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":1}}}}}}}}}},"metadata":{"desired":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"timestamp":1591140517}}}}}}}}}}},"version":1,"timestamp":1591140517}`}}},
		{name: "space does not count for the size", url: documents + "#metadata", steps: []step{{
			ask: `{"state":{"desired":{"a":` + strings.Repeat(" ", 8<<10) + `1}}}`, state: `{"desired":{"a":1}}`}}},
	})
	if p := string(ThingNotFound().Payload(docTime)); p != `{"code":404,"message":"Thing not found","timestamp":1591140517}` {
		t.Errorf("a device that is not there is answered with %s", p)
	}
}

// What others saw at the service: tests of getmoto/moto that are marked aws_verified,
// https://github.com/getmoto/moto/blob/master/tests/test_iotdata/test_iotdata.py.
func TestObservedBehaviour(t *testing.T) {
	const url = "https://github.com/getmoto/moto/blob/master/tests/test_iotdata/test_iotdata.py"
	two := func(name, first, seen, second, then string) script {
		return script{name: name, url: url, steps: []step{{ask: `{"state":` + first + `}`}, {op: "seen", state: seen}, {ask: `{"state":` + second + `}`}, {op: "seen", state: then}}}
	}
	for _, s := range []script{
		two("boolean flip", `{"desired":{"online":true}}`, `{"desired":{"online":true},"delta":{"online":true}}`, `{"reported":{"online":false}}`, `{"desired":{"online":true},"reported":{"online":false},"delta":{"online":true}}`),
		two("reported beside", `{"desired":{"enabled":true}}`, `{"desired":{"enabled":true},"delta":{"enabled":true}}`, `{"reported":{"online":false,"enabled":true}}`, `{"desired":{"enabled":true},"reported":{"online":false,"enabled":true}}`),
		two("nothing first", `{}`, `{}`, `{"reported":{"online":false}}`, `{"reported":{"online":false}}`),
		two("null first", `{}`, `{}`, `{"reported":{"online":null}}`, `{}`),
		two("an empty section", `{"desired":{}}`, `{}`, `{"reported":{"online":false}}`, `{"reported":{"online":false}}`),
		two("an empty report", `{"desired":{"enabled":true}}`, `{"desired":{"enabled":true},"delta":{"enabled":true}}`, `{"reported":{}}`, `{"desired":{"enabled":true},"delta":{"enabled":true}}`),
		two("another key", `{"desired":{"enabled":true}}`, `{"desired":{"enabled":true},"delta":{"enabled":true}}`, `{"reported":{"online":true}}`, `{"desired":{"enabled":true},"reported":{"online":true},"delta":{"enabled":true}}`),
		two("remove from a list", `{"reported":{"list":["value_1","value_2"]}}`, `{"reported":{"list":["value_1","value_2"]}}`, `{"desired":{"list":["value_1"]}}`, `{"desired":{"list":["value_1"]},"reported":{"list":["value_1","value_2"]},"delta":{"list":["value_1"]}}`),
		two("remove and update in a list", `{"reported":{"list":["value_1","value_2"]}}`, ``, `{"desired":{"list":["value_1","value_3"]}}`, `{"desired":{"list":["value_1","value_3"]},"reported":{"list":["value_1","value_2"]},"delta":{"list":["value_1","value_3"]}}`),
		two("remove from nested lists", `{"reported":{"list":[["value_1"],["value_2"]]}}`, ``, `{"desired":{"list":[["value_1"]]}}`, `{"desired":{"list":[["value_1"]]},"reported":{"list":[["value_1"],["value_2"]]},"delta":{"list":[["value_1"]]}}`),
		two("append to a nested list", `{"reported":{"a":{"b":["d"]}}}`, ``, `{"desired":{"a":{"b":["c","d"]}}}`, `{"delta":{"a":{"b":["c","d"]}},"desired":{"a":{"b":["c","d"]}},"reported":{"a":{"b":["d"]}}}`),
		two("update a nested object", `{"reported":{"a":{"b":{"c":"d","e":"f"}}}}`, ``, `{"desired":{"a":{"b":{"c":"d2"}}}}`, `{"delta":{"a":{"b":{"c":"d2"}}},"desired":{"a":{"b":{"c":"d2"}}},"reported":{"a":{"b":{"c":"d","e":"f"}}}}`),
		two("another object", `{"reported":{"a1":{"b1":{"c":"d"}}}}`, ``, `{"desired":{"a1":{"b1":{"c":"d"}},"a2":{"b2":"sth"}}}`, `{"delta":{"a2":{"b2":"sth"}},"desired":{"a1":{"b1":{"c":"d"}},"a2":{"b2":"sth"}},"reported":{"a1":{"b1":{"c":"d"}}}}`),
		two("another field", `{"reported":{"a":{"b1":{"c":"d"}}}}`, ``, `{"desired":{"a":{"b1":{"c":"d"},"b2":"sth"}}}`, `{"delta":{"a":{"b2":"sth"}},"desired":{"a":{"b1":{"c":"d"},"b2":"sth"}},"reported":{"a":{"b1":{"c":"d"}}}}`),
		two("insert an empty object", `{"desired":{"a":1,"b":{"c":3}}}`, ``, `{"desired":{"a":1,"b":{"c":3},"d":{}}}`, `{"desired":{"a":1,"b":{"c":3},"d":{}},"delta":{"a":1,"b":{"c":3},"d":{}}}`),
		two("an empty object over a value", `{"desired":{"a":1,"b":{"c":3},"d":{}}}`, ``, `{"desired":{"a":1,"b":{"c":{}},"d":{}}}`, `{"desired":{"a":1,"b":{"c":{}},"d":{}},"delta":{"a":1,"b":{"c":{}},"d":{}}}`),
		two("an object over a value", `{"desired":{"a":1,"b":{"c":3}}}`, ``, `{"desired":{"a":1,"b":{"c":{"d":3}}}}`, `{"desired":{"a":1,"b":{"c":{"d":3}}},"delta":{"a":1,"b":{"c":{"d":3}}}}`),
		two("the last field goes, and its section", `{"desired":{"state1":1,"state2":2}}`, ``, `{"desired":{"state1":null,"state2":null}}`, `{}`),
	} {
		t.Run(s.name, func(t *testing.T) {
			d := &Doc{}
			for i, st := range s.steps {
				if st.op == "" {
					u, refused := d.Update([]byte(st.ask), by(begins, byte(i), "//naru/test"), docTime, Defaults)
					if refused != nil {
						t.Fatal(refused)
					}
					d = u.After
					continue
				}
				b, refused := d.Get(nil, "", docTime)
				if refused != nil {
					t.Fatal(refused)
				}
				if got := loose(t, b).(map[string]any)["state"]; st.state != "" {
					if want := loose(t, []byte(st.state)); !equal(got, want) {
						t.Errorf("state is %v; want %v", got, want)
					}
				}
			}
		})
	}
}
