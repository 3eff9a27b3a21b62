package broker

import (
	"slices"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// envelope adds what the platform knows of a message to the publisher's own properties, behind them: the attributes of
// CloudEvents in the binary mode of its MQTT binding (§3.1), and the trace. What the publisher has said itself under such
// a name stays, and is not said again.
func (e *entrance) envelope(user []packet.UserProperty, m *message.Message, aws bool) []packet.UserProperty {
	own := len(user)
	add := func(key, value string) {
		if value != "" && !slices.ContainsFunc(user[:own], func(u packet.UserProperty) bool { return u.Key == key }) {
			user = append(user, packet.UserProperty{Key: key, Value: value})
		}
	}
	add("specversion", "1.0")
	add("id", m.ID.String())
	add("source", m.Source)
	add("type", m.Type)
	add("subject", string(e.viewOf(m.Subject, aws)))
	add("time", m.Happened().UTC().Format(time.RFC3339Nano))
	add("dataschema", m.Schema)
	add("traceparent", m.Trace.Traceparent())
	return user
}
