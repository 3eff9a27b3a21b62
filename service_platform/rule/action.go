package rule

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

// errorAction is the number of an error action in what it says.
const errorAction = -1

// action is one action, compiled.
type action struct {
	kind   string // as in the document
	index  int
	source string // of what it says
	rule   *Rule

	texts []text // in the order in which build takes them
	build func(values []string, out *message.Message, now time.Time) error
	tell  func(in *sql.Input, out *message.Message) // adds what the message is of; nil where nobody needs it
	to    []message.Pattern                         // where what it says goes, as far as it is known beforehand
}

// text is a template by the name of its field.
type text struct {
	field string
	of    *sql.Template
}

func (r *Rule) compile(a *Action, index int, node string) (*action, error) {
	kind, err := a.only()
	if err != nil {
		return nil, err
	}
	c := &action{kind: kind, index: index, rule: r}
	c.source = fmt.Sprintf("//naru/%s/%s?rule=%s@%d&action=", node, Name, r.Name, r.Version)
	if index == errorAction {
		c.source += "error"
	} else {
		c.source += strconv.Itoa(index)
	}
	switch kind {
	case "republish":
		err = c.republish(a.Republish)
	case "twin":
		err = c.twin(a.Twin)
	case "command":
		err = c.command(a.Command)
	case "worker":
		err = c.worker(a.Worker)
	case "http":
		err = c.http(a.HTTP)
	case "data_bridge":
		err = c.dataBridge(a.DataBridge)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return c, nil
}

// template reads a text of the action. An empty one that is wanted is an error.
func (c *action) template(field, s string, wanted bool) error {
	if s == "" && wanted {
		return fmt.Errorf("%s is wanted", field)
	}
	t, err := c.rule.statement.Template(s)
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	if t.Looks() {
		if c.index == errorAction {
			return fmt.Errorf("%s: get_thing_shadow cannot be used in an error action, which is there for when something cannot be had", field)
		}
		c.rule.looks = true
	}
	c.texts = append(c.texts, text{field, t})
	return nil
}

// name reads a text that becomes one token of a subject.
func (c *action) name(field, s string, wanted bool) error {
	if err := c.template(field, s, wanted); err != nil {
		return err
	}
	if s != "" && c.last() {
		_, err := token(field, s)
		return err
	}
	return nil
}

// last says whether the text read last has no expressions.
func (c *action) last() bool { return c.texts[len(c.texts)-1].of.Constant() }

func (c *action) republish(a *Republish) error {
	qos := 1
	if a.QoS != nil {
		qos = *a.QoS
	}
	if qos < 0 || qos > 2 {
		return fmt.Errorf("qos %d; there are 0, 1 and 2", qos)
	}
	topic := a.Topic
	if strings.HasPrefix(topic, "$$") { // as AWS wants it, since a dollar begins an expression
		topic = topic[1:]
	}
	if err := c.template("topic", topic, true); err != nil {
		return err
	}
	if c.last() {
		s, err := subjectOf(topic, c.rule.Name)
		if err != nil {
			return err
		}
		c.to = []message.Pattern{message.Pattern(s)}
	} else {
		c.to = roughly(topic)
	}
	for _, t := range []text{{field: "content_type"}, {field: "response_topic"}, {field: "correlation_data"}, {field: "message_expiry"}} {
		s := map[string]string{"content_type": a.ContentType, "response_topic": a.ResponseTopic, "correlation_data": a.CorrelationData, "message_expiry": a.MessageExpiry}[t.field]
		if err := c.template(t.field, s, false); err != nil {
			return err
		}
		if s == "" || !c.last() {
			continue
		}
		var err error // of a text that is the same for all messages
		switch t.field {
		case "response_topic":
			_, err = replyTo(s)
		case "correlation_data":
			_, err = correlation(s)
		case "message_expiry":
			_, err = expiry(s)
		}
		if err != nil {
			return err
		}
	}
	for i, p := range a.UserProperties {
		if err := errors.Join(c.template(fmt.Sprintf("user_properties[%d].name", i), p.Name, true), c.template(fmt.Sprintf("user_properties[%d].value", i), p.Value, false)); err != nil {
			return err
		}
	}
	rule := c.rule.Name
	c.build = func(v []string, m *message.Message, now time.Time) error {
		var err error
		if m.Subject, err = subjectOf(v[0], rule); err != nil {
			return err
		}
		m.QoS, m.Retain, m.ContentType = uint8(qos), a.Retain, v[1]
		if v[2] != "" {
			if m.ReplyTo, err = replyTo(v[2]); err != nil {
				return err
			}
		}
		if m.Correlation, err = correlation(v[3]); err != nil {
			return err
		}
		if v[4] != "" {
			d, err := expiry(v[4])
			if err != nil {
				return err
			}
			m.Expires = now.Add(d)
		}
		for i := 5; i < len(v); i += 2 {
			m.Properties = m.Properties.Add(v[i], v[i+1])
		}
		return nil
	}
	return nil
}

func replyTo(v string) (message.Subject, error) {
	s, err := message.FromTopic(v)
	if err != nil {
		return "", fmt.Errorf("response_topic: %w", err)
	}
	return s, nil
}

func expiry(v string) (time.Duration, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("message_expiry %q: want a whole number of seconds", v)
	}
	return time.Duration(n) * time.Second, nil
}

// correlation reads correlation data, which are bytes, and so in base64 in a text, as get_mqtt_property() gives them.
func correlation(v string) ([]byte, error) {
	if v == "" {
		return nil, nil
	}
	b, err := base64.StdEncoding.DecodeString(v)
	if err != nil {
		return nil, fmt.Errorf("correlation_data %q: want base64, such as ${get_mqtt_property('correlation_data')} or ${encode(id, 'base64')}", v)
	}
	return b, nil
}

// roughly gives the pattern of a topic with expressions: a level with one may be anything, and perhaps several levels.
func roughly(topic string) []message.Pattern {
	var tokens []string
	for rest := topic; ; {
		before, after, more := strings.Cut(rest, "${")
		levels := strings.Split(before, "/")
		for i, l := range levels {
			if l != "" && !(more && i == len(levels)-1) && !(len(tokens) > 0 && i == 0 && rest != topic) {
				tokens = append(tokens, message.Escape(l))
			}
		}
		if !more {
			break
		}
		tokens = append(tokens, "*")
		_, rest, more = strings.Cut(after, "}")
		if !more {
			break
		}
	}
	p := message.Pattern(strings.Join(tokens, "."))
	if p.Valid() != nil {
		return nil
	}
	return []message.Pattern{p}
}

// subjectOf is where a rule says something, by the topic.
func subjectOf(topic, rule string) (message.Subject, error) {
	if s, ok := device.FromShadowTopic(topic); ok {
		return s, mayReach(s, rule)
	}
	if strings.HasPrefix(topic, "$") && !strings.HasPrefix(topic, basicIngest) {
		return "", fmt.Errorf("topic %q: of those that begin with $ there are $$aws/things/<thing>/shadow/… and $$aws/rules/<rule>/…", topic)
	}
	s, err := message.FromTopic(topic)
	if err != nil {
		return "", err
	}
	return s, mayReach(s, rule)
}

// mayReach says what only the platform says, and a rule does not say in its place.
func mayReach(s message.Subject, rule string) error {
	first, rest, _ := strings.Cut(string(s), ".")
	forbidden := false
	switch first {
	case message.Operator:
		forbidden = true
	case message.ServicePlatform:
		forbidden = !strings.HasPrefix(rest, "rule."+rule+".") || s == serviceplatform.RuleFailedSubject(rule)
	case message.Device:
		_, of, _ := strings.Cut(rest, ".")
		_, _, _, request := device.TwinRequest(s)
		forbidden = of == "presence" || strings.HasPrefix(of, "twin.") && !request
	}
	if forbidden {
		return fmt.Errorf("%s is said by the platform alone; a rule says %s.rule.%s.<…>, device.<…>, data_platform.<…>, 3rd_party.<…>, or topics of its own", s, message.ServicePlatform, rule)
	}
	return nil
}

// token makes a template's value one token of a subject.
func token(field, v string) (string, error) {
	if v == "" || strings.ContainsAny(v, "/+#\x00") {
		return "", fmt.Errorf("%s %q: want a name without / + #", field, v)
	}
	return v, nil
}

// star is what a token can be, as far as it is known beforehand.
func star(s string) message.Pattern {
	if strings.Contains(s, "${") {
		return "*"
	}
	return message.Pattern(message.Escape(s))
}

func (c *action) twin(a *Twin) error {
	if err := errors.Join(c.name("device", a.Device, true), c.name("shadow", a.Shadow, false)); err != nil {
		return err
	}
	to := message.Pattern("device.") + star(a.Device) + ".twin."
	if a.Shadow != "" {
		to += "name." + star(a.Shadow) + "."
	}
	c.to = []message.Pattern{to + "update"}
	c.build = func(v []string, m *message.Message, _ time.Time) error {
		id, err := token("device", v[0])
		if err != nil {
			return err
		}
		if v[1] != "" {
			if _, err := token("shadow", v[1]); err != nil {
				return err
			}
		}
		// A twin would reject it where nobody looks; here it is a failure of the rule.
		var update struct {
			State json.RawMessage `json:"state"`
		}
		if json.Unmarshal(m.Data, &update) != nil || update.State == nil {
			return errNoState
		}
		m.Subject, m.Device, m.QoS, m.ContentType = device.TwinSubject(id, v[1], "update"), id, 1, "application/json"
		return nil
	}
	return nil
}

var errNoState = errors.New(`the output has no "state", and so updates no twin; name what it sets: SELECT … AS state.desired.<field>, or AS state.reported.<field>`)

const commandTTL = 24 * time.Hour // as long as the SDK's sessions live

func (c *action) command(a *Command) error {
	ttl := commandTTL
	if a.TTL != "" {
		var err error
		if ttl, err = time.ParseDuration(a.TTL); err != nil || ttl <= 0 {
			return fmt.Errorf("ttl %q: want a duration such as 10m", a.TTL)
		}
	}
	if err := errors.Join(c.name("device", a.Device, true), c.name("name", a.Name, true)); err != nil {
		return err
	}
	c.to = []message.Pattern{message.Pattern("device.") + star(a.Device) + ".command." + star(a.Name) + ".*"}
	c.build = func(v []string, m *message.Message, now time.Time) error {
		id, err := token("device", v[0])
		if err != nil {
			return err
		}
		name, err := token("name", v[1])
		if err != nil {
			return err
		}
		m.ID = message.NewID(now)
		m.Subject = device.CommandSubject(id, name, m.ID.String())
		m.Device, m.QoS, m.Expires = id, 1, now.Add(ttl)
		return nil
	}
	return nil
}

func (c *action) worker(a *Worker) error {
	if err := c.name("name", a.Name, true); err != nil {
		return err
	}
	if c.last() {
		c.to = []message.Pattern{message.Pattern(serviceplatform.WorkSubject(a.Name))}
	}
	label, index := c.rule.Label(), strconv.Itoa(c.index)
	c.build = func(v []string, m *message.Message, _ time.Time) error {
		name, err := token("name", v[0])
		if err != nil {
			return err
		}
		m.Subject, m.QoS = serviceplatform.WorkSubject(name), 1
		m.Properties = m.Properties.Add("rule", label).Add("action", index)
		return nil
	}
	return nil
}

func (c *action) dataBridge(a *DataBridge) error {
	if err := errors.Join(c.template("dataset", a.Dataset, true), c.name("device", a.Device, false)); err != nil {
		return err
	}
	if !strings.Contains(a.Dataset, "${") && !datasetName(a.Dataset) {
		return fmt.Errorf("dataset %q: want the name of one, of small letters, digits and _; `naru data models` shows them", a.Dataset)
	}
	c.to = []message.Pattern{message.Pattern("service_platform.bridge.") + star(a.Dataset) + ".put"}
	label, index := c.rule.Label(), strconv.Itoa(c.index)
	c.build = func(v []string, m *message.Message, _ time.Time) error {
		if !datasetName(v[0]) {
			return fmt.Errorf("dataset %q: want the name of one, of small letters, digits and _", v[0])
		}
		if v[1] != "" {
			id, err := token("device", v[1])
			if err != nil {
				return err
			}
			m.Device = id
		}
		m.Subject, m.QoS, m.ContentType = serviceplatform.BridgeSubject(v[0]), 1, "application/json"
		m.Properties = m.Properties.Add("rule", label).Add("action", index)
		return nil
	}
	c.tell = func(in *sql.Input, m *message.Message) { m.Time = in.Time } // the row is of when it happened, not of when the rule ran
	return nil
}

func datasetName(s string) bool {
	return s != "" && len(s) <= 63 && s[0] >= 'a' && s[0] <= 'z' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// say makes what the action says of an output.
func (c *action) say(in *sql.Input, out sql.Output, now time.Time) (*message.Message, error) {
	var room [8]string
	values := room[:0]
	for _, t := range c.texts {
		v, defined, err := t.of.Eval(in, out.Variables)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.field, err)
		}
		if !defined {
			return nil, fmt.Errorf("%s: %q is Undefined for this message; get_or_default() gives another value", t.field, t.of)
		}
		values = append(values, v)
	}
	m := &message.Message{Source: c.source, Data: out.Payload}
	if err := c.build(values, m, now); err != nil {
		return nil, err
	}
	if c.tell != nil {
		c.tell(in, m)
	}
	if m.Device == "" && strings.HasPrefix(string(m.Subject), "device.") {
		m.Device = m.Subject.Token(1)
	}
	return m, nil
}

// resource is what an error says that the action was for.
func (c *action) resource() string {
	if len(c.texts) == 0 {
		return ""
	}
	return c.texts[0].of.String()
}

// awsName is the action's name in the document that an error action gets.
func (c *action) awsName() string {
	name := ""
	for word := range strings.SplitSeq(c.kind, "_") {
		name += strings.ToUpper(word[:1]) + word[1:]
	}
	return name + "Action"
}

// RuleOf reads the version of a rule from the source of what it said.
func RuleOf(source string) (rule, version string, ok bool) {
	u, err := url.Parse(source)
	if err != nil || !strings.HasSuffix(u.Path, "/"+Name) {
		return "", "", false
	}
	rule, version, ok = strings.Cut(u.Query().Get("rule"), "@")
	return rule, version, ok
}
