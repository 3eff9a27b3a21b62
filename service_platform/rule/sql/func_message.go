package sql

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	randv2 "math/rand/v2"
	"strings"
)

// Functions over what came with the message.
var messageFunctions = []function{
	{name: "topic", min: 0, max: 1, call: topic},
	{name: "clientid", call: func(e *env, _ *call, _ []value) value {
		if e.in.ClientID == "" {
			return text("n/a")
		}
		return text(e.in.ClientID)
	}},
	{name: "principal", call: given(func(in *Input) string { return in.Principal })},
	{name: "sourceip", call: given(func(in *Input) string { return in.SourceIP })},
	{name: "traceid", call: given(func(in *Input) string { return in.TraceID })},
	{name: "accountid", call: given(func(in *Input) string { return in.AccountID })},
	{name: "sql_version", call: func(*env, *call, []value) value { return text(Version) }},
	{name: "timestamp", call: func(e *env, _ *call, _ []value) value {
		return number(whole(e.in.Time.UnixMilli()), !e.in.Time.IsZero())
	}},
	{name: "newuuid", call: newUUID},
	{name: "rand", call: func(e *env, _ *call, _ []value) value {
		if e.in.Rand != nil {
			return float(e.in.Rand())
		}
		return float(randv2.Float64())
	}},
	{name: "get_mqtt_property", min: 1, max: 1, call: mqttProperty, prepare: knowProperty},
	{name: "get_user_properties", min: 0, max: 1, call: userProperties},
	{name: "get_thing_shadow", min: 1, max: 3, call: thingShadow, prepare: markShadow},
}

// given is a function of the message that is Undefined where the message has no such thing.
func given(of func(*Input) string) func(*env, *call, []value) value {
	return func(e *env, _ *call, _ []value) value {
		s := of(e.in)
		if s == "" {
			return undefined
		}
		return text(s)
	}
}

// basicIngest begins the topics that lead straight to a rule; the rule does not see it.
const basicIngest = "$aws/rules/"

func topic(e *env, _ *call, a []value) value {
	t := e.in.Topic
	if rest, ok := strings.CutPrefix(t, basicIngest); ok {
		_, t, _ = strings.Cut(rest, "/")
	}
	if len(a) == 0 {
		return text(t)
	}
	d, ok := a[0].toDecimal()
	if !ok {
		return undefined
	}
	for n := d.round(0, towardFloor).int(); n >= 1; n-- {
		level, rest, more := strings.Cut(t, "/")
		if n == 1 {
			return text(level)
		}
		if !more {
			break
		}
		t = rest
	}
	return undefined
}

func newUUID(e *env, _ *call, _ []value) value {
	if e.in.NewUUID != nil {
		return text(e.in.NewUUID())
	}
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return text(fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
}

// properties of MQTT 5 by the names that get_mqtt_property() takes. message_expiry is an extension.
var properties = map[string]func(*Properties) value{
	"content_type":     func(p *Properties) value { return some(p.ContentType) },
	"response_topic":   func(p *Properties) value { return some(p.ResponseTopic) },
	"correlation_data": func(p *Properties) value { return some(base64.StdEncoding.EncodeToString(p.CorrelationData)) },
	"format_indicator": func(p *Properties) value {
		if p.UTF8 {
			return text("UTF8_DATA")
		}
		return text("UNSPECIFIED_BYTES")
	},
	"message_expiry": func(p *Properties) value {
		if p.MessageExpiry == nil {
			return undefined
		}
		return number(whole(int64(*p.MessageExpiry)), true)
	},
}

func some(s string) value {
	if s == "" {
		return undefined
	}
	return text(s)
}

func mqttProperty(e *env, _ *call, a []value) value {
	if a[0].kind != String {
		return undefined
	}
	if f := properties[string(a[0].b)]; f != nil {
		return f(&e.in.Properties)
	}
	return undefined
}

func knowProperty(p *parser, c *call) {
	l, ok := c.args[0].(*literal)
	if !ok || l.v.kind != String {
		return
	}
	switch name := string(l.v.b); {
	case name == "message_expiry":
		p.extension("get_mqtt_property('message_expiry')")
	case properties[name] == nil:
		p.failAt(l.from, "'content_type', 'format_indicator', 'response_topic', 'correlation_data' or 'message_expiry'", "the string "+cut(name), "")
	}
}

// userProperties gives all values of a name, or without a name all properties in their order.
func userProperties(e *env, _ *call, a []value) value {
	var out []value
	for _, p := range e.in.User {
		switch {
		case len(a) == 0:
			out = append(out, value{kind: Object, node: &node{names: [][]byte{[]byte(p.Name)}, items: []value{text(p.Value)}}})
		case a[0].isText(p.Name):
			out = append(out, text(p.Value))
		}
	}
	if len(out) == 0 {
		return undefined
	}
	return array(out)
}

// markShadow reports the forms that AWS has not: there, a role is always last.
func markShadow(p *parser, c *call) {
	p.looks = true
	if last, ok := c.args[len(c.args)-1].(*literal); !ok || !isRole(last.v) {
		if len(c.args) == 1 || ok {
			p.extension("get_thing_shadow() without a role")
		}
	}
}

func isRole(v value) bool { return v.kind == String && bytes.HasPrefix(v.b, []byte("arn:")) }

// thingShadow takes the thing, the shadow's name where it is a named one, and a role, which means nothing here.
func thingShadow(e *env, _ *call, a []value) value {
	if len(a) == 3 || len(a) == 2 && isRole(a[1]) {
		a = a[:len(a)-1]
	}
	thing, ok := e.toText(a[0])
	var name []byte
	if len(a) == 2 {
		var both bool
		name, both = e.toText(a[1])
		ok = ok && both
	}
	if !ok || e.in.Lookup == nil {
		return undefined
	}
	document, err := e.in.Lookup.ThingShadow(string(thing), string(name))
	if err != nil {
		e.fail(fmt.Errorf("look up the shadow %q of %q: %w", name, thing, err))
		return undefined
	}
	document = bytes.TrimSpace(document)
	if c := (checker{b: document}); len(document) == 0 || !c.check() {
		return undefined
	}
	return fromJSON(document)
}
