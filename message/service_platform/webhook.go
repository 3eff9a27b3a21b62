package serviceplatform

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/naru-platform/naru/message"
)

// The properties of what is sent to a destination. What it is of is there for who is told when it fails.
const (
	SendRule    = "rule"    // name@version
	SendAction  = "action"  // its number; error for an error action
	SendPath    = "path"    // below the destination's URL
	SendHeader  = "header:" // and a header's name
	SendTopic   = "topic"   // of the message that the rule took
	SendClient  = "client"
	SendPayload = "payload" // of that message, Base64; where the rule has an error action
)

// WebhookFailed says that a destination will not be given a message any more. Its cause is what was to be sent.
type WebhookFailed struct {
	Destination string         `json:"destination"`
	Reason      message.Reason `json:"reason"`
	Error       string         `json:"error"`
	Attempts    int            `json:"attempts"`
	Rule        string         `json:"rule,omitempty"`
	Action      string         `json:"action,omitempty"`
	Topic       string         `json:"topic,omitempty"`
	Client      string         `json:"client,omitempty"`
	Payload     []byte         `json:"payload,omitempty"`
}

// SendSubject is where a destination is given what goes to it.
func SendSubject(destination string) message.Subject {
	return message.NewSubject(message.ServicePlatform, "webhook", destination, "send")
}

// WebhookFailedSubject is where is told what a destination was not given.
func WebhookFailedSubject(destination string) message.Subject {
	return message.NewSubject(message.ServicePlatform, "webhook", destination, "failed")
}

// IsWebhookFailed says whether a subject is one of those.
func IsWebhookFailed(s message.Subject) bool {
	return strings.HasPrefix(string(s), "service_platform.webhook.") && strings.HasSuffix(string(s), ".failed") && strings.Count(string(s), ".") == 3
}

// webhookContracts lists what goes to HTTP servers elsewhere, and what did not come there.
func webhookContracts() []message.Contract {
	return []message.Contract{
		{
			Subjects: "service_platform.webhook.*.send", Type: "service_platform.webhook.v1", Owner: "service_platform", Route: message.ByLog,
			Doc: "What a rule sends to a destination, an HTTP server elsewhere: the rule's output. Properties tell the rule, the action and what the rule took. " +
				"Not said: no rule with such an action took the message.",
			Says: []string{"service_platform.rule"}, Hears: []string{"service_platform.webhook"},
		},
		{
			Subjects: "service_platform.webhook.*.failed", Type: "service_platform.webhook_failed.v1", Owner: "service_platform", Route: message.ByLog,
			Doc:  "A destination was not given a message, and will not be: it is dead. The rule's error action follows from this. Not said: it was taken, or is still tried.",
			Says: []string{"service_platform.webhook"}, Hears: []string{"service_platform.rule", "operator.journal"}, ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["destination","reason","error","attempts"],
"properties":{"destination":{"type":"string"},"reason":{"type":"string"},"error":{"type":"string"},"attempts":{"type":"integer"},
"rule":{"type":"string"},"action":{"type":"string"},"topic":{"type":"string"},"client":{"type":"string"},"payload":{"type":"string"}}}`),
			Example: json.RawMessage(`{"destination":"pager","reason":"receiver_refused","error":"https://pager.example/hook answered 410","attempts":1,
"rule":"hot@7","action":"0","topic":"device/d-17/telemetry","client":"d-17"}`),
		},
	}
}

// JSON is the data of the message that tells it; payload is in Base64, and left out where it is none.
func (f WebhookFailed) JSON(payload string) []byte {
	if raw, err := base64.StdEncoding.DecodeString(payload); err == nil && payload != "" {
		f.Payload = raw
	}
	data, err := json.Marshal(f)
	if err != nil {
		return nil // texts can be written
	}
	return data
}
