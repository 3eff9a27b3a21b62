package device

import (
	"strings"

	"github.com/naru-platform/naru/message"
)

// CommandSubject is where a command is said, and its topic at the device: `device.<id>.command.<name>.<command-id>`.
func CommandSubject(device, name, id string) message.Subject {
	return message.NewSubject(message.Device, device, "command", name, id)
}

// ReplySubject is where the device answers it.
func ReplySubject(device, name, id string) message.Subject {
	return CommandSubject(device, name, id) + ".reply"
}

// commands and replies are what the subjects look like.
const (
	commands = message.Pattern("device.*.command.*.*")
	replies  = message.Pattern("device.*.command.*.*.reply")
)

// Command reads the subject of a command, or of the reply to one.
func Command(s message.Subject) (device, name, id string, reply, ok bool) {
	if !strings.HasPrefix(string(s), "device.") {
		return
	}
	reply = replies.Matches(s)
	if ok = reply || commands.Matches(s); !ok {
		return "", "", "", false, false
	}
	return s.Token(1), s.Token(3), s.Token(4), reply, true
}

func commandContracts() []message.Contract {
	return []message.Contract{
		{
			Subjects: commands, Type: "device.command.v1", Owner: "service_platform", Route: message.ByLog,
			Doc: "A wish to a device: name and command id are the last tokens. service_platform.command keeps it until it is answered, and has the device " +
				"get it, one at a time; it expires with the message, or after a day. What is said again under one command id is the same command.",
			Says: []string{"service_platform.gateway", "service_platform.rule", "service_platform.worker", "service_platform.command"}, Hears: []string{"service_platform.command", "device"},
		},
		{
			Subjects: replies, Type: "device.command_reply.v1", Owner: "device", Route: message.ByLog,
			Doc:  "A device's answer to a command; of JSON with \"ok\": false, a no. Not said: the device does not know the command, or is away.",
			Says: []string{"device"}, Hears: []string{"service_platform.command", "service_platform.gateway", "service_platform.worker"},
		},
	}
}
