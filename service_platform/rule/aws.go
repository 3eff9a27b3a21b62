package rule

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/naru-platform/naru/service_platform/rule/sql"
)

// awsRule is the topicRulePayload of AWS IoT's CreateTopicRule.
type awsRule struct {
	SQL         string                       `json:"sql"`
	Description string                       `json:"description"`
	Version     *string                      `json:"awsIotSqlVersion"`
	Disabled    bool                         `json:"ruleDisabled"`
	Actions     []map[string]json.RawMessage `json:"actions"`
	Error       map[string]json.RawMessage   `json:"errorAction"`
	Name        string                       `json:"ruleName"`
}

// ImportAWS makes a document of the JSON of CreateTopicRule, of its topicRulePayload alone, or of what GetTopicRule answers.
// name is what the rule is to be called; its own name where empty. What naru has not is refused, with its JSON pointer; warnings tell what is read otherwise.
func ImportAWS(raw []byte, name string) (d *Document, warnings []string, err error) {
	var outer struct {
		Name    string          `json:"ruleName"`
		Payload json.RawMessage `json:"topicRulePayload"`
		Rule    json.RawMessage `json:"rule"`
	}
	if !json.Valid(raw) {
		return nil, nil, fmt.Errorf("no JSON of CreateTopicRule: %w", json.Unmarshal(raw, new(any)))
	}
	if err := read(raw, "", &outer); err != nil {
		return nil, nil, err
	}
	at := ""
	switch {
	case outer.Payload != nil:
		raw, at = outer.Payload, "/topicRulePayload"
	case outer.Rule != nil:
		raw, at = outer.Rule, "/rule"
	}
	var a awsRule
	if err := read(raw, at, &a); err != nil {
		return nil, nil, err
	}
	if a.SQL == "" {
		return nil, nil, fmt.Errorf("%s/sql is missing: this is no rule of AWS IoT", at)
	}
	if name = cmp.Or(name, outer.Name, a.Name); name == "" {
		return nil, nil, errors.New("the rule has no name: give one with --name")
	}
	switch {
	case a.Version == nil:
		warnings = append(warnings, fmt.Sprintf("%s/awsIotSqlVersion is missing: AWS reads such a rule as version 2015-10-08, naru as %s; try it with `naru rule test`", at, sql.Version))
	case *a.Version == "beta":
		warnings = append(warnings, fmt.Sprintf("%s/awsIotSqlVersion is beta; it is read as %s", at, sql.Version))
	case *a.Version != sql.Version:
		return nil, nil, fmt.Errorf("%s/awsIotSqlVersion is %q; naru speaks %s: write that there, and try the rule with `naru rule test`", at, *a.Version, sql.Version)
	}
	on := !a.Disabled
	d = &Document{Name: name, Description: a.Description, SQL: a.SQL, Enabled: &on, Actions: []Action{}}
	var faults []string // all of them: who moves in wants to know what has to change
	for i, one := range a.Actions {
		c, warned, err := importAction(one, fmt.Sprintf("%s/actions/%d", at, i))
		if err != nil {
			faults = append(faults, err.Error())
			continue
		}
		d.Actions, warnings = append(d.Actions, *c), append(warnings, warned...)
	}
	if a.Error != nil {
		c, warned, err := importAction(a.Error, at+"/errorAction")
		if err != nil {
			faults = append(faults, err.Error())
		}
		d.ErrorAction, warnings = c, append(warnings, warned...)
	}
	if len(faults) > 0 {
		return nil, nil, errors.New(strings.Join(faults, "; "))
	}
	return d, warnings, nil
}

// read reads JSON that is valid, and names the place and what is there where it is something else than AWS IoT has.
func read(raw []byte, at string, into any) error {
	err := json.Unmarshal(raw, into)
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return err
	}
	if wrong.Field != "" {
		at += "/" + strings.ReplaceAll(wrong.Field, ".", "/")
	}
	want := "an object"
	switch wrong.Type.Kind() {
	case reflect.String:
		want = "a text"
	case reflect.Bool:
		want = "true or false"
	case reflect.Int:
		want = "a whole number"
	case reflect.Slice:
		want = "a list"
	}
	return fmt.Errorf("%s is a JSON %s; AWS IoT has %s there", cmp.Or(at, "the document"), wrong.Value, want)
}

func importAction(one map[string]json.RawMessage, at string) (*Action, []string, error) {
	kinds := slices.Sorted(maps.Keys(one))
	if len(kinds) != 1 {
		return nil, nil, fmt.Errorf("%s: want exactly one action, here are %d (%s)", at, len(kinds), strings.Join(kinds, ", "))
	}
	kind := kinds[0]
	at += "/" + kind
	switch kind {
	case "republish":
		return importRepublish(one[kind], at)
	case "lambda":
		var l struct {
			ARN string `json:"functionArn"`
		}
		if err := read(one[kind], at, &l); err != nil {
			return nil, nil, err
		}
		_, name, ok := strings.Cut(l.ARN, ":function:")
		if name, _, _ = strings.Cut(name, ":"); !ok || name == "" {
			return nil, nil, fmt.Errorf("%s/functionArn %q names no function", at, l.ARN)
		}
		return &Action{Worker: &Worker{Name: name}}, []string{fmt.Sprintf("%s becomes an action for a worker of the name %s, which is yours to run", at, name)}, nil
	case "kinesis":
		return importKinesis(one[kind], at)
	case "http":
		return importHTTP(one[kind], at)
	}
	return nil, nil, fmt.Errorf("%s: naru has no such action; it reads republish, lambda (as a worker's), kinesis (as data_bridge) and http", at)
}

// importHTTP makes the place of an http action a destination, which is named after its host and to be registered by who imports.
func importHTTP(raw json.RawMessage, at string) (*Action, []string, error) {
	var h struct {
		URL     string `json:"url"`
		Headers []struct {
			Key   string `json:"key"`
			Value string `json:"value"`
		} `json:"headers"`
		Auth     json.RawMessage `json:"auth"`
		Batching bool            `json:"enableBatching"`
	}
	if err := read(raw, at, &h); err != nil {
		return nil, nil, err
	}
	rest, secure := strings.CutPrefix(h.URL, "https://")
	host, path, _ := strings.Cut(rest, "/")
	if !secure || host == "" || strings.ContainsAny(host, "${}@?#") {
		// The URL is not shown: it may have a password in it.
		return nil, nil, fmt.Errorf("%s/url: want https:// and a host without a user and without expressions, which becomes a destination; what follows the host may have them", at)
	}
	if strings.ContainsAny(path, "?#") {
		return nil, nil, fmt.Errorf("%s/url has a query, and a path of naru's has none: put what it says into a header or the output", at)
	}
	out := &HTTP{Destination: placeName(host), Path: path}
	warnings := []string{fmt.Sprintf("%s sends to destination %s, which is yours to register: `naru destination add %s --url https://%s`; each message is a CloudEvent there, with the output as its data", at, out.Destination, out.Destination, host)}
	for i, x := range h.Headers {
		switch name := strings.ToLower(x.Key); {
		case name == "content-type":
			out.ContentType = x.Value
		case headerName(name):
			out.Headers = append(out.Headers, HTTPHeader{x.Key, x.Value})
		default:
			warnings = append(warnings, fmt.Sprintf("%s/headers/%d is left out: %s is the destination's (`naru destination add --header-file` or `--header-env`), or set by naru", at, i, x.Key))
		}
	}
	if len(h.Auth) > 0 {
		warnings = append(warnings, at+"/auth is left out: naru does not sign requests for AWS")
	}
	if h.Batching {
		warnings = append(warnings, at+"/enableBatching is left out: each message is sent by itself")
	}
	return &Action{HTTP: out}, warnings, nil
}

// placeName is a host as a destination's name.
func placeName(host string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, strings.ToLower(host))
	return name[:min(len(name), 64)]
}

func importRepublish(raw json.RawMessage, at string) (*Action, []string, error) {
	var r struct {
		Topic   string `json:"topic"`
		QoS     int    `json:"qos"`
		Headers struct {
			Format      string `json:"payloadFormatIndicator"`
			ContentType string `json:"contentType"`
			Response    string `json:"responseTopic"`
			Correlation string `json:"correlationData"`
			Expiry      string `json:"messageExpiry"`
			User        []struct {
				Key   string `json:"key"`
				Value string `json:"value"`
			} `json:"userProperties"`
		} `json:"headers"`
	}
	if err := read(raw, at, &r); err != nil {
		return nil, nil, err
	}
	if r.QoS != 0 && r.QoS != 1 {
		return nil, nil, fmt.Errorf("%s/qos is %d; AWS IoT has 0 and 1", at, r.QoS)
	}
	out := &Republish{Topic: r.Topic, QoS: &r.QoS, ContentType: r.Headers.ContentType, ResponseTopic: r.Headers.Response, CorrelationData: r.Headers.Correlation, MessageExpiry: r.Headers.Expiry}
	for _, p := range r.Headers.User {
		out.UserProperties = append(out.UserProperties, UserProperty{Name: p.Key, Value: p.Value})
	}
	var warnings []string
	if r.Headers.Format != "" {
		warnings = append(warnings, at+"/headers/payloadFormatIndicator is left out: naru does not set it")
	}
	return &Action{Republish: out}, warnings, nil
}

// importKinesis makes of a stream the dataset of its name: where the bus is configured to go through Kinesis, what is put there
// goes through that.
func importKinesis(raw json.RawMessage, at string) (*Action, []string, error) {
	var k struct {
		Stream string `json:"streamName"`
		Key    string `json:"partitionKey"`
	}
	if err := read(raw, at, &k); err != nil {
		return nil, nil, err
	}
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r == '-' || r == '.':
			return '_'
		}
		return r
	}, k.Stream)
	if !datasetName(name) {
		return nil, nil, fmt.Errorf("%s/streamName %q cannot be a dataset's name: want a letter, then letters, digits, dots, - and _", at, k.Stream)
	}
	warnings := []string{fmt.Sprintf("%s becomes data_bridge into the dataset %s, which is yours to describe (`naru data apply`); it goes through Kinesis where bus.kinesis is configured, and the role is not used", at, name)}
	if k.Key != "" {
		warnings = append(warnings, fmt.Sprintf("%s/partitionKey %q is left out: the order is kept by device", at, k.Key))
	}
	return &Action{DataBridge: &DataBridge{Dataset: name}}, warnings, nil
}
