package serviceplatform

import (
	"encoding/json"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
)

// releases are what the subjects look like by which a command is given to the brokers.
const releases = message.Pattern("service_platform.command.release.*.*.*.*")

// CommandReleaseSubject is where a command is handed to the broker of a node, for the device that is connected there.
func CommandReleaseSubject(node, of, name, id string) message.Subject {
	return message.NewSubject(message.ServicePlatform, "command", "release", node, of, name, id)
}

// CommandRelease reads such a subject: the node, and the topic at the device.
func CommandRelease(s message.Subject) (node string, topic message.Subject, ok bool) {
	if !releases.Matches(s) {
		return "", "", false
	}
	return s.Token(3), device.CommandSubject(s.Token(4), s.Token(5), s.Token(6)), true
}

// The states of a command.
const (
	CommandQueued    = "queued"    // it waits: for the device, for a subscription, or behind another one
	CommandReleased  = "released"  // it is with the broker, and not acknowledged
	CommandSent      = "sent"      // by QoS 0: whether it arrived is not known
	CommandDelivered = "delivered" // the device has acknowledged it
	CommandReplied   = "replied"   // the device has answered
	CommandFailed    = "failed"    // the device has answered that it did not do it, or would not have it
	CommandExpired   = "expired"   // its time was over before an answer came
	CommandCancelled = "cancelled" // somebody has taken it back
)

// CommandEnded is what became of a command; its message's time is when.
type CommandEnded struct {
	Device  string         `json:"device"`
	Name    string         `json:"name"`
	ID      string         `json:"id"`
	Message message.ID     `json:"message"` // the command
	State   string         `json:"state"`   // replied, failed, expired or cancelled
	Reason  message.Reason `json:"reason,omitempty"`
	Detail  string         `json:"detail,omitempty"`
	Reply   message.ID     `json:"reply,omitzero"` // the device's answer
	// Late says that the answer came when the command had ended.
	Late bool `json:"late,omitempty"`
}

// CommandEndedSubject is where it is told what became of a device's commands.
func CommandEndedSubject(device string) message.Subject {
	return message.NewSubject(message.ServicePlatform, "command", "ended", device)
}

// The results of a receipt.
const (
	ReceiptDelivered    = "delivered"    // the device has acknowledged the command
	ReceiptSent         = "sent"         // it went out with QoS 0
	ReceiptRefused      = "refused"      // the device has refused it, with a reason code of MQTT 5
	ReceiptUnsubscribed = "unsubscribed" // no session of the device wants it
	ReceiptWithheld     = "withheld"     // the device cannot have it: policy, or it takes nothing so large
	ReceiptSubscribed   = "subscribed"   // a device of which one of the two was said has subscribed to something since
)

// Receipt is what a broker tells of a command on its way to a device.
type Receipt struct {
	Device  string         `json:"device"`
	Release message.ID     `json:"release,omitzero"` // the message that handed it over; nothing with subscribed
	Name    string         `json:"name,omitempty"`
	ID      string         `json:"id,omitempty"`
	Result  string         `json:"result"`
	Reason  message.Reason `json:"reason,omitempty"`
	Detail  string         `json:"detail,omitempty"`
	QoS     byte           `json:"qos"`
	Client  string         `json:"client_id,omitempty"`
	Node    string         `json:"node"`
	// Version rises from receipt to receipt of a node, by when it was known; it is of one clock with presence.
	Version uint64 `json:"version"`
}

// ReceiptSubject is where a broker tells of commands to a device.
func ReceiptSubject(device string) message.Subject {
	return message.NewSubject(message.ServicePlatform, "broker", "receipt", device)
}

// commandContracts lists what is said of commands.
func commandContracts() []message.Contract {
	return []message.Contract{
		{
			Subjects: releases, Type: "service_platform.command_release.v1", Owner: "service_platform", Route: message.ByLog,
			Doc: "A command goes to its device, connected at the node of the fourth token: the brokers deliver it on the device's topic. " +
				"Said again where the device came back before it had acknowledged. Not said: the device is away, or has another command in hand.",
			Says: []string{"service_platform.command"}, Hears: []string{"service_platform.broker"},
		},
		{
			Subjects: "service_platform.command.ended.*", Type: "service_platform.command_ended.v1", Owner: "service_platform", Route: message.ByLog,
			Doc:  "What became of a command; and once more, with late, when an answer comes after that. Not said: it waits, or is under way.",
			Says: []string{"service_platform.command"}, Hears: []string{"service_platform.rule", "service_platform.worker", "service_platform.gateway"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["device","name","id","message","state"],
"properties":{"device":{"type":"string"},"name":{"type":"string"},"id":{"type":"string"},"message":{"type":"string"},
"state":{"enum":["replied","failed","expired","cancelled"]},"reason":{"type":"string"},"detail":{"type":"string"},
"reply":{"type":"string"},"late":{"type":"boolean"}}}`),
			Example: json.RawMessage(`{"device":"d-17","name":"reboot","id":"c1","message":"0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e","state":"expired",
"reason":"expired","detail":"the device was away"}`),
		},
		{
			Subjects: "service_platform.broker.receipt.*", Type: "service_platform.broker.receipt.v1", Owner: "service_platform", Route: message.ByLog,
			Doc:  "How far a command came on its way from the broker to the device. Not said: the device has not acknowledged it yet.",
			Says: []string{"service_platform.broker"}, Hears: []string{"service_platform.command"},
			ContentType: "application/json",
			Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["device","result","qos","node","version"],
"properties":{"device":{"type":"string"},"release":{"type":"string"},"name":{"type":"string"},"id":{"type":"string"},
"result":{"enum":["delivered","sent","refused","unsubscribed","withheld","subscribed"]},"reason":{"type":"string"},"detail":{"type":"string"},
"qos":{"type":"integer","minimum":0,"maximum":2},"client_id":{"type":"string"},"node":{"type":"string"},"version":{"type":"integer","minimum":1}}}`),
			Example: json.RawMessage(`{"device":"d-17","release":"0193d5a1-7b2c-7e41-9c3f-5d2f8a6b1c4e","name":"reboot","id":"c1","result":"delivered",
"qos":1,"client_id":"d-17","node":"n1","version":8}`),
		},
	}
}
