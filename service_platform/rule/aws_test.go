package rule

import (
	"encoding/json"
	"strings"
	"testing"
)

const awsHot = `{"ruleName": "hot", "topicRulePayload": {"sql": "SELECT celsius FROM 'device/+/telemetry' WHERE celsius > 30", "description": "too hot",
	"awsIotSqlVersion": "2016-03-23", "ruleDisabled": true,
	"actions": [
		{"republish": {"roleArn": "arn:aws:iam::1:role/r", "topic": "$$aws/things/${topic(2)}/shadow/update", "qos": 1,
			"headers": {"contentType": "application/json", "payloadFormatIndicator": "UTF8_DATA", "responseTopic": "answers/${topic(2)}", "correlationData": "c",
				"messageExpiry": "60", "userProperties": [{"key": "k", "value": "v"}]}}},
		{"lambda": {"functionArn": "arn:aws:lambda:us-east-1:1:function:pager:3"}}],
	"errorAction": {"republish": {"roleArn": "x", "topic": "errors"}}}}`

func TestRuleOfAWSIsReadWhole(t *testing.T) {
	d, warnings, err := ImportAWS([]byte(awsHot), "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	const whole = `{"name":"hot","description":"too hot","sql":"SELECT celsius FROM 'device/+/telemetry' WHERE celsius \u003e 30",` +
		`"actions":[{"republish":{"topic":"$$aws/things/${topic(2)}/shadow/update","qos":1,"content_type":"application/json","response_topic":"answers/${topic(2)}",` +
		`"correlation_data":"c","message_expiry":"60","user_properties":[{"name":"k","value":"v"}]}},{"worker":{"name":"pager"}}],` +
		`"error_action":{"republish":{"topic":"errors","qos":0}},"enabled":false}`
	if string(got) != whole {
		t.Errorf("it is read as\n%s\nwant\n%s", got, whole)
	}
	if all := strings.Join(warnings, "\n"); len(warnings) != 2 || !strings.Contains(all, "/topicRulePayload/actions/0/republish/headers/payloadFormatIndicator is left out") ||
		!strings.Contains(all, "/topicRulePayload/actions/1/lambda becomes an action for a worker of the name pager") {
		t.Errorf("warnings are %q", warnings)
	}
	if _, err := Compile(d, 1, "n1"); err != nil {
		t.Errorf("it does not compile: %v", err)
	}
	renamed, _, err := ImportAWS([]byte(awsHot), "other")
	if err != nil || renamed.Name != "other" {
		t.Errorf("under another name it is %v, %v", renamed, err)
	}
}

func TestRuleOfAWSComesInThreeForms(t *testing.T) {
	const payload = `{"sql": "SELECT a FROM 'x'", "awsIotSqlVersion": "2016-03-23", "actions": []}`
	for form, raw := range map[string]string{
		"CreateTopicRule":  `{"ruleName": "r", "topicRulePayload": ` + payload + `}`,
		"its payload":      payload,
		"GetTopicRule's":   `{"ruleArn": "arn", "rule": {"ruleName": "r", ` + payload[1:] + `}`,
		"with another one": `{"rule": ` + payload + `}`,
	} {
		d, warnings, err := ImportAWS([]byte(raw), "r")
		if err != nil || d.Name != "r" || d.SQL != "SELECT a FROM 'x'" || len(warnings) != 0 || !*d.Enabled {
			t.Errorf("%s: %+v, %q, %v", form, d, warnings, err)
		}
	}
}

func TestRuleOfAWSThatNaruHasNotIsRefusedWithItsPlace(t *testing.T) {
	const some = `"sql": "SELECT a FROM 'x'", "awsIotSqlVersion": "2016-03-23"`
	for raw, want := range map[string]string{
		`nothing`:                       "no JSON",
		`{"topicRulePayload": []}`:      "/topicRulePayload",
		`{"actions": []}`:               "/sql is missing",
		`{` + some + `, "actions": []}`: "no name",
		`{"ruleName": "r", "sql": "SELECT a FROM 'x'", "awsIotSqlVersion": "2015-10-08"}`:                       `/awsIotSqlVersion is "2015-10-08"; naru speaks 2016-03-23`,
		`{"ruleName": "r", ` + some + `, "actions": [{"s3": {}}]}`:                                              "/actions/0/s3: naru has no such action",
		`{"ruleName": "r", ` + some + `, "actions": [{"republish": {"topic": "t"}, "lambda": {}}]}`:             "/actions/0: want exactly one action, here are 2 (lambda, republish)",
		`{"ruleName": "r", ` + some + `, "actions": [{"lambda": {"functionArn": "arn:aws:lambda:us-east-1"}}]}`: "/actions/0/lambda/functionArn",
		`{"ruleName": "r", ` + some + `, "actions": [{"republish": {"topic": "t", "qos": 2}}]}`:                 "/actions/0/republish/qos is 2",
		`{"rule": {"ruleName": "r", ` + some + `, "actions": [], "errorAction": {"dynamoDBv2": {}}}}`:           "/rule/errorAction/dynamoDBv2",
	} {
		if _, _, err := ImportAWS([]byte(raw), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v; want %s", raw, err, want)
		}
	}
	for version, want := range map[string]string{`null`: "AWS reads such a rule as version 2015-10-08", `"beta"`: "is beta"} {
		_, warnings, err := ImportAWS([]byte(`{"ruleName": "r", "sql": "SELECT a FROM 'x'", "awsIotSqlVersion": `+version+`, "actions": []}`), "")
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], want) {
			t.Errorf("version %s gives %q, %v", version, warnings, err)
		}
	}
}

func TestHTTPOfAWSBecomesADestinationWithWarnings(t *testing.T) {
	rule := func(action string) ([]byte, string) {
		return []byte(`{"ruleName": "r", "topicRulePayload": {"sql": "SELECT a FROM 'x/+'", "awsIotSqlVersion": "2016-03-23", "actions": [{"http": ` + action + `}]}}`), ""
	}
	raw, name := rule(`{"url": "https://Pager.example:8443/in/${topic(2)}", "confirmationUrl": "https://Pager.example:8443/confirm", "enableBatching": true,
		"headers": [{"key": "X-Level", "value": "${level}"}, {"key": "Content-Type", "value": "text/plain"}, {"key": "Authorization", "value": "Bearer x"}],
		"auth": {"sigv4": {"signingRegion": "us-east-1", "serviceName": "execute-api", "roleArn": "r"}}}`)
	d, warnings, err := ImportAWS(raw, name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(d.Actions)
	if err != nil {
		t.Fatal(err)
	}
	if want := `[{"http":{"destination":"pager-example-8443","path":"in/${topic(2)}","headers":[{"name":"X-Level","value":"${level}"}],"content_type":"text/plain"}}]`; string(got) != want {
		t.Errorf("it becomes %s", got)
	}
	all := strings.Join(warnings, "\n")
	for _, want := range []string{"naru destination add pager-example-8443 --url https://Pager.example:8443", "headers/2 is left out: Authorization", "/auth is left out", "/enableBatching is left out"} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing warns of %q:\n%s", want, all)
		}
	}
	if len(warnings) != 4 || strings.Contains(all, "Bearer x") {
		t.Errorf("warnings are\n%s", all)
	}
	if _, err := Compile(d, 1, "n1"); err != nil {
		t.Errorf("it does not compile: %v", err)
	}
	for url, want := range map[string]string{"https://${host}/x": "without expressions", "http://pager/x": "https://", "https://pager/x?token=1": "has a query"} {
		raw, name := rule(`{"url": "` + url + `"}`)
		if _, _, err := ImportAWS(raw, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v; want %q", url, err, want)
		}
	}
}
