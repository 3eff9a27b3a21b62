package serviceplatform

import (
	"encoding/json"

	"github.com/naru-platform/naru/message"
)

// RuleFailed is what a rule could not do for a message. Its cause is that message.
type RuleFailed struct {
	Rule     string         `json:"rule"`
	Version  int            `json:"version"`
	Reason   message.Reason `json:"reason"` // rule_error
	Failures []RuleFailure  `json:"failures"`
}

// RuleFailure is one thing that failed.
type RuleFailure struct {
	// Action is its number in the rule from 0, -1 for the error action; nil where the SQL itself failed.
	Action *int   `json:"action,omitempty"`
	Kind   string `json:"kind"` // sql, republish, twin, command, worker, http or data_bridge
	Error  string `json:"error"`
}

// RuleFailedSubject is where a rule's failures are told.
func RuleFailedSubject(rule string) message.Subject {
	return message.NewSubject(message.ServicePlatform, "rule", rule, "failed")
}

// TwinWanted is where a twin is wished for by those inside who want to read it; the data is a device.TwinRef.
const TwinWanted = "service_platform.twin.wanted"

// WorkSubject is where a worker is given work.
func WorkSubject(worker string) message.Subject {
	return message.NewSubject(message.ServicePlatform, "worker", worker, "invoke")
}

// ruleContracts lists what rules say.
func ruleContracts() []message.Contract {
	return []message.Contract{
		{
			Subjects: "service_platform.rule.*.failed", Type: "service_platform.rule_failed.v1", Owner: "service_platform", Route: message.ByLog,
			Doc:  "A rule took a message and could not do all that it does with it. The message is its cause. Not said: all was done, or the rule did not take the message.",
			Says: []string{"service_platform.rule"}, Hears: []string{"operator.journal"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["rule","version","reason","failures"],
"properties":{"rule":{"type":"string"},"version":{"type":"integer"},"reason":{"type":"string"},
"failures":{"type":"array","items":{"type":"object","required":["kind","error"],
"properties":{"action":{"type":"integer"},"kind":{"type":"string"},"error":{"type":"string"}}}}}}`),
			Example: json.RawMessage(`{"rule":"hot","version":7,"reason":"rule_error",
"failures":[{"action":0,"kind":"twin","error":"device: \"${deviceId}\" is Undefined for this message"}]}`),
		},
		{
			Subjects: TwinWanted, Type: "service_platform.twin_wanted.v1", Owner: "service_platform", Route: message.ByLog,
			Doc:  "A rule asks for a twin with get_thing_shadow(), or a pipeline enriches rows with it, and its process does not know it yet. The twin is told on device.<id>.twin.read; after that the process follows what the twin says of its changes.",
			Says: []string{"data_platform.etl", "service_platform.rule"}, Hears: []string{"service_platform.twin"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["device"],"properties":{"device":{"type":"string","minLength":1},"shadow":{"type":"string"}}}`),
			Example: json.RawMessage(`{"device":"d-17","shadow":"config"}`),
		},
		{
			Subjects: "service_platform.worker.*.invoke", Type: "service_platform.work.v1", Owner: "service_platform", Route: message.ByLog,
			Doc:  "Work for a worker: the output of a rule. Which rule and action it comes from stands in the properties `rule` and `action`. Not said: no rule took the message.",
			Says: []string{"service_platform.rule", "service_platform.worker"}, Hears: []string{"service_platform.worker"},
		},
	}
}
