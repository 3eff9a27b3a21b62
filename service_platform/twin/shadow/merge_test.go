package shadow

import "testing"

// TestMergesLeaveWhatTheyDoNotName plays lives of shadows through several updates.
func TestMergesLeaveWhatTheyDoNotName(t *testing.T) {
	const stamp = `{"timestamp":1591140517}`
	playAll(t, []script{
		{name: "an update of another version changes nothing", url: documents + "#versioning", state: `{"desired":{"a":1}}`, version: 5, steps: []step{
			{ask: `{"state":{"desired":{"a":2}},"version":4}`, rejected: `{"code":409,"message":"Version conflict","timestamp":1591140517}`, state: `{"desired":{"a":1}}`},
			{ask: `{"state":{"desired":{"a":2}},"version":5}`, state: `{"desired":{"a":2}}`},
			{ask: `{"state":{"desired":{"a":3}},"version":5}`, rejected: `{"code":409,"message":"Version conflict","timestamp":1591140517}`, state: `{"desired":{"a":2}}`},
		}},
		{name: "desired goes, reported stays, and no delta is left", state: `{"desired":{"a":1},"reported":{"a":2,"b":3}}`, steps: []step{{ask: `{"state":{"desired":null}}`, delta: none, state: `{"reported":{"a":2,"b":3}}`}}},
		{name: "both sections in one update", steps: []step{{ask: `{"state":{"desired":{"a":1,"b":{"c":2}},"reported":{"a":1,"b":{"c":2}}}}`, delta: none, state: `{"desired":{"a":1,"b":{"c":2}},"reported":{"a":1,"b":{"c":2}}}`}}},
		{name: "a delta goes field by field", url: documents + "#delta-state", state: `{"desired":{"a":1,"b":2,"c":3}}`, steps: []step{
			{ask: `{"state":{"reported":{"a":1}}}`, delta: `{"version":2,"timestamp":1591140517,"state":{"b":2,"c":3},"metadata":{"b":` + stamp + `,"c":` + stamp + `}}`},
			{ask: `{"state":{"reported":{"c":3}}}`, delta: `{"version":3,"timestamp":1591140517,"state":{"b":2},"metadata":{"b":` + stamp + `}}`},
			{ask: `{"state":{"reported":{"b":2}}}`, delta: none},
		}},
		{name: "what is no longer reported is in the delta again", state: `{"desired":{"a":{"b":1,"c":2}},"reported":{"a":{"b":1,"c":2}}}`, steps: []step{{ask: `{"state":{"reported":{"a":{"c":null}}}}`,
			delta: `{"version":2,"timestamp":1591140517,"state":{"a":{"c":2}},"metadata":{"a":{"c":` + stamp + `}}}`, state: `{"desired":{"a":{"b":1,"c":2}},"reported":{"a":{"b":1}}}`}}},
		{name: "reported alone never makes a delta", url: documents + "#delta-state", state: `{"reported":{"a":1}}`, steps: []step{{ask: `{"state":{"reported":{"b":2,"a":3}}}`, delta: none}}},
		{name: "an array within an object is replaced whole", url: documents + "#device-shadow-arrays", state: `{"desired":{"a":{"list":[1,2,3],"x":1}}}`, steps: []step{{ask: `{"state":{"desired":{"a":{"list":[4]}}}}`, state: `{"desired":{"a":{"list":[4],"x":1}}}`}}},
		{name: "large numbers come through exactly", state: `{"desired":{"a":9007199254740993}}`, steps: []step{{ask: `{"state":{"reported":{"a":9007199254740992}}}`,
			delta: `{"version":2,"timestamp":1591140517,"state":{"a":9007199254740993},"metadata":{"a":` + stamp + `}}`}}},
		{name: "false, zero and the empty text are values", state: `{"desired":{"a":true,"b":1,"c":"x"}}`, steps: []step{{ask: `{"state":{"desired":{"a":false,"b":0,"c":""}}}`, state: `{"desired":{"a":false,"b":0,"c":""}}`}}},
		{name: "the same again raises the version", url: documents + "#versioning", state: `{"desired":{"a":1}}`, steps: []step{
			{ask: `{"state":{"desired":{"a":1}}}`, accepted: `{"state":{"desired":{"a":1}},"metadata":{"desired":{"a":` + stamp + `}},"version":2,"timestamp":1591140517}`, state: `{"desired":{"a":1}}`},
			{ask: `{"state":{"desired":{"a":1}},"version":2}`, accepted: `{"state":{"desired":{"a":1}},"metadata":{"desired":{"a":` + stamp + `}},"version":3,"timestamp":1591140517}`},
		}},
		{name: "names that are no ASCII", state: `{"desired":{"温度":{"ä b":1}}}`, steps: []step{{ask: `{"state":{"reported":{"温度":{"ä b":1,"ß":2}}}}`, delta: none, state: `{"desired":{"温度":{"ä b":1}},"reported":{"温度":{"ä b":1,"ß":2}}}`}}},
		{name: "a reported field below a desired value is another value", state: `{"desired":{"a":1}}`, steps: []step{{ask: `{"state":{"reported":{"a":{"b":1}}}}`,
			delta: `{"version":2,"timestamp":1591140517,"state":{"a":1},"metadata":{"a":` + stamp + `}}`}}},
	})
}
