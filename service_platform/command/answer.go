package command

import (
	"errors"
	"fmt"
	"strings"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// answer says the device's answer on the response topic that the command's sender has named, with his correlation data. What
// keeps it from being said is noted with the command: the answer itself is on the command's own reply topic.
func (c *Commands) answer(tx component.Tx, x *Command, m *message.Message) error {
	asked, err := request(tx, x)
	if err != nil || asked.ReplyTo == "" || asked.ReplyTo == m.Subject {
		return err
	}
	if err = mayAnswer(asked.ReplyTo); err == nil {
		err = tx.Say(&message.Message{Subject: asked.ReplyTo, Correlation: asked.Correlation, Device: x.Device, ContentType: m.ContentType, Text: m.Text, Schema: m.Schema,
			Properties: m.Properties, Time: m.Time, Expires: m.Expires, QoS: 1, Data: m.Data})
	}
	var no *message.Rejection
	if errors.As(err, &no) {
		x.Unsaid, err = fmt.Sprintf("%s: %s", asked.ReplyTo, no), nil
	}
	return err
}

// mayAnswer says what the platform alone says, whoever wants answers there. What a client may say the broker has asked before
// it took the command.
func mayAnswer(s message.Subject) error {
	first, rest, _ := strings.Cut(string(s), ".")
	switch first {
	case message.Operator, message.ServicePlatform, message.DataPlatform:
	case message.Device:
		_, of, _ := strings.Cut(rest, ".")
		if of != "presence" && of != "twin" && !strings.HasPrefix(of, "twin.") {
			return nil
		}
	default:
		if !strings.HasPrefix(first, "$") {
			return nil
		}
	}
	return message.Rejectf(message.Undeclared, "%s is said by the platform alone: a command's answer goes below device/<id>/, or to a topic of your own", s)
}
