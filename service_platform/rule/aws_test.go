package rule

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/rule/sql"
)

const awsHot = `{"ruleName": "hot", "topicRulePayload": {"sql": "SELECT celsius FROM 'device/+/telemetry' WHERE celsius > 30", "description": "too hot",
	"awsIotSqlVersion": "2016-03-23", "ruleDisabled": true,
	"actions": [
		{"republish": {"roleArn": "arn:aws:iam::1:role/r", "topic": "$$aws/things/${topic(2)}/shadow/update", "qos": 1,
			"headers": {"contentType": "application/json", "payloadFormatIndicator": "UTF8_DATA", "responseTopic": "answers/${topic(2)}", "correlationData": "Yw==",
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
		`"correlation_data":"Yw==","message_expiry":"60","user_properties":[{"name":"k","value":"v"}]}},{"worker":{"name":"pager"}}],` +
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
		`nothing`:                     "no JSON of CreateTopicRule: invalid character",
		``:                            "no JSON of CreateTopicRule: unexpected end",
		`[]`:                          "the document is a JSON array; AWS IoT has an object there",
		`{"rule": "x"}`:               "/rule is a JSON string; AWS IoT has an object there",
		`{"ruleName": "r", "sql": 5}`: "/sql is a JSON number; AWS IoT has a text there",
		`{"ruleName": "r", ` + some + `, "ruleDisabled": "no"}`:                                                         "/ruleDisabled is a JSON string; AWS IoT has true or false there",
		`{"ruleName": "r", ` + some + `, "actions": {"republish": {}}}`:                                                 "/actions is a JSON object; AWS IoT has a list there",
		`{"ruleName": "r", ` + some + `, "actions": [{"republish": {"topic": "t", "headers": {"userProperties": 1}}}]}`: "/actions/0/republish/headers/userProperties is a JSON number; AWS IoT has a list there",
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
	for url, want := range map[string]string{"https://${host}/x": "without expressions", "http://pager/x": "https://", "https://pager/x?token=s3cret": "has a query", "https://user:s3cret@pager/x": "without a user"} {
		raw, name := rule(`{"url": "` + url + `"}`)
		if _, _, err := ImportAWS(raw, name); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s gives %v; want %q", url, err, want)
		}
	}
}

// TestDocumentedRulesOfAWS are the documents of rules that AWS's developer guide shows, whole or with a statement where it shows
// the word expression. What naru has not is refused by its name.
func TestDocumentedRulesOfAWS(t *testing.T) {
	const guide = "https://docs.aws.amazon.com/iot/latest/developerguide/"
	const some = `"sql": "SELECT * FROM 'iot/test'", "ruleDisabled": false, "awsIotSqlVersion": "2016-03-23"`
	for _, c := range []struct{ url, raw, actions, warned, refused string }{
		{url: "republish-rule-action.html", raw: `{"topicRulePayload": {"sql": "SELECT * FROM 'some/topic'", "ruleDisabled": false, "awsIotSqlVersion": "2016-03-23",
			"actions": [{"republish": {"topic": "another/topic", "qos": 1, "roleArn": "arn:aws:iam::123456789012:role/aws_iot_republish"}}]}}`,
			actions: `[{"republish":{"topic":"another/topic","qos":1}}]`},
		{url: "republish-rule-action.html", raw: `{"topicRulePayload": {"sql": "SELECT * FROM 'some/topic'", "ruleDisabled": false, "awsIotSqlVersion": "2016-03-23",
			"actions": [{"republish": {"topic": "${topic()}/republish", "roleArn": "arn:aws:iam::123456789012:role/aws_iot_republish"}}]}}`,
			actions: `[{"republish":{"topic":"${topic()}/republish","qos":0}}]`},
		{url: "republish-rule-action.html", raw: `{"topicRulePayload": {"sql": "SELECT * FROM 'some/topic'", "ruleDisabled": false, "awsIotSqlVersion": "2016-03-23",
			"actions": [{"republish": {"topic": "${topic()}/republish", "roleArn": "arn:aws:iam::123456789012:role/aws_iot_republish",
				"headers": {"payloadFormatIndicator": "UTF8_DATA", "contentType": "rule/contentType", "correlationData": "cnVsZSBjb3JyZWxhdGlvbiBkYXRh",
					"userProperties": [{"key": "ruleKey1", "value": "ruleValue1"}, {"key": "ruleKey2", "value": "ruleValue2"}]}}}]}}`,
			actions: `[{"republish":{"topic":"${topic()}/republish","qos":0,"content_type":"rule/contentType","correlation_data":"cnVsZSBjb3JyZWxhdGlvbiBkYXRh",` +
				`"user_properties":[{"name":"ruleKey1","value":"ruleValue1"},{"name":"ruleKey2","value":"ruleValue2"}]}}]`,
			warned: "payloadFormatIndicator is left out"},
		{url: "iot-create-rule.html", raw: `{` + some + `, "actions": [{"republish": {"topic": "my-mqtt-topic", "roleArn": "arn:aws:iam::123456789012:role/my-iot-role"}}]}`,
			actions: `[{"republish":{"topic":"my-mqtt-topic","qos":0}}]`},
		{url: "iot-create-rule.html", raw: `{` + some + `, "actions": [{"lambda": {"functionArn": "arn:aws:lambda:us-west-2:123456789012:function:my-lambda-function"}}]}`,
			actions: `[{"worker":{"name":"my-lambda-function"}}]`, warned: "a worker of the name my-lambda-function"},
		{url: "iot-create-rule.html", raw: `{` + some + `, "actions": [{"dynamoDB": {"tableName": "my-dynamodb-table", "roleArn": "arn:aws:iam::123456789012:role/my-iot-role",
			"hashKeyField": "topic", "hashKeyValue": "${topic(2)}", "rangeKeyField": "timestamp", "rangeKeyValue": "${timestamp()}"}}]}`, refused: "/actions/0/dynamoDB: naru has no such action"},
		{url: "iot-create-rule.html", raw: `{` + some + `, "actions": [{"s3": {"roleArn": "arn:aws:iam::123456789012:role/aws_iot_s3", "bucketName": "my-bucket", "key": "myS3Key"}}]}`,
			refused: "/actions/0/s3: naru has no such action"},
		{url: "iot-create-rule.html", raw: `{"sql":"SELECT *, timestamp() as timestamp FROM 'iot/test'", "ruleDisabled":false, "awsIotSqlVersion": "2016-03-23", "actions":[{"elasticsearch":{
			"roleArn":"arn:aws:iam::123456789012:role/aws_iot_es", "endpoint":"https://my-endpoint", "index":"my-index", "type":"my-type", "id":"${newuuid()}"}}]}`,
			refused: "/actions/0/elasticsearch: naru has no such action"},
		{url: "iot-create-rule.html", raw: `{` + some + `, "actions": [{"sns": {"targetArn": "arn:aws:sns:us-west-2:123456789012:my-sns-topic", "roleArn": "arn:aws:iam::123456789012:role/my-iot-role"}}]}`,
			refused: "/actions/0/sns: naru has no such action"},
		{url: "iot-create-rule.html", raw: `{` + some + `, "actions": [{"firehose": {"roleArn": "arn:aws:iam::123456789012:role/my-iot-role", "deliveryStreamName": "my-stream-name"}}]}`,
			refused: "/actions/0/firehose: naru has no such action"},
		{url: "iot-create-rule.html", raw: `{` + some + `, "actions": [{"salesforce": {"token": "x", "url": "https://ingestion-cluster-id.my-env.sfdcnow.com/streams/stream-id/connection-id/my-event"}}]}`,
			refused: "/actions/0/salesforce: naru has no such action"},
		{url: "iot-create-rule.html", raw: `{` + some + `, "actions": [{"stepFunctions": {"stateMachineName": "myCoolStateMachine", "executionNamePrefix": "coolRunning", "roleArn": "r"}}]}`,
			refused: "/actions/0/stepFunctions: naru has no such action"},
		{url: "iot-rule-sql-version.html", raw: `{` + some + `, "actions": [{"republish": {"topic": "my-mqtt-topic", "roleArn": "arn:aws:iam::123456789012:role/my-iot-role"}}]}`,
			actions: `[{"republish":{"topic":"my-mqtt-topic","qos":0}}]`},
		{url: "iot-substitution-templates.html", raw: `{"sql": "SELECT *, timestamp() AS timestamp FROM 'my/iot/topic'", "ruleDisabled": false,
			"actions": [{"republish": {"topic": "${topic()}/republish", "roleArn": "arn:aws:iam::123456789012:role/my-iot-role"}}]}`,
			actions: `[{"republish":{"topic":"${topic()}/republish","qos":0}}]`, warned: "AWS reads such a rule as version 2015-10-08"},
		{url: "binary-payloads.html", raw: `{"sql": "SELECT * FROM 'topic/subtopic'", "actions": [{"republish": {"topic": "device/${device_id}"}}]}`,
			actions: `[{"republish":{"topic":"device/${device_id}","qos":0}}]`, warned: "AWS reads such a rule as version 2015-10-08"},
		{url: "device-shadow-comms-app.html#thing-connection", raw: `{"rule": {"ruleDisabled": false, "sql": "SELECT * FROM 'my/things/myLightBulb/update'", "description": "Turn my/things/ into $aws/things/",
			"actions": [{"republish": {"topic": "$$aws/things/myLightBulb/shadow/update", "roleArn": "arn:aws:iam:123456789012:role/aws_iot_republish"}}]}}`,
			actions: `[{"republish":{"topic":"$$aws/things/myLightBulb/shadow/update","qos":0}}]`, warned: "AWS reads such a rule as version 2015-10-08"},
		{url: "iot-device-shadows.html#device-shadow-trim-messages", raw: `{"sql": "SELECT state, version FROM '$aws/things/+/shadow/update/delta'", "ruleDisabled": false,
			"actions": [{"republish": {"topic": "${topic(3)}/delta", "roleArn": "arn:aws:iam:123456789012:role/my-iot-role"}}]}`,
			actions: `[{"republish":{"topic":"${topic(3)}/delta","qos":0}}]`, warned: "AWS reads such a rule as version 2015-10-08"},
		{url: "rule-error-handling.html#rule-error-example", raw: `{` + some + `, "actions": [{"republish": {"topic": "t"}}], "errorAction": {"s3": {"roleArn": "arn:aws:iam::123456789012:role/aws_iot_s3",
			"bucketName": "message-processing-errors", "key": "${replace(topic(), '/', '-') + '-' + timestamp() + '-' + newuuid()}"}}}`, refused: "/errorAction/s3: naru has no such action"},
	} {
		d, warnings, err := ImportAWS([]byte(c.raw), "r")
		if c.refused != "" {
			if err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v; want %s\n%s", guide+c.url, err, c.refused, c.raw)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", guide+c.url, err, c.raw)
			continue
		}
		if got, err := json.Marshal(d.Actions); err != nil || string(got) != c.actions {
			t.Errorf("%s: it becomes %s (%v)\nwant %s", guide+c.url, got, err, c.actions)
		}
		if all := strings.Join(warnings, "\n"); c.warned == "" && all != "" || !strings.Contains(all, c.warned) {
			t.Errorf("%s: warnings are %q; want %q", guide+c.url, warnings, c.warned)
		}
		if _, err := Compile(d, 1, "n1"); err != nil {
			t.Errorf("%s: it does not compile: %v", guide+c.url, err)
		}
	}
}

func TestCorrelationDataIsBase64(t *testing.T) {
	of := func(v string) (string, error) {
		d, err := Parse([]byte(`{"name": "r", "sql": "SELECT * FROM 'in'", "actions": [{"republish": {"topic": "out", "correlation_data": "` + v + `"}}]}`))
		if err != nil {
			t.Fatal(err)
		}
		r, err := Compile(d, 1, "n1")
		if err != nil {
			return "", err
		}
		in := &sql.Input{Topic: "in", Payload: []byte(`{"id":7}`), Properties: sql.Properties{CorrelationData: []byte("a\x00\xff")}}
		m, err := r.actions[0].say(in, sql.Output{Payload: in.Payload}, time.Now())
		if err != nil {
			return "", err
		}
		return string(m.Correlation), nil
	}
	for v, want := range map[string]string{"cnVsZSBjb3JyZWxhdGlvbiBkYXRh": "rule correlation data", "${get_mqtt_property('correlation_data')}": "a\x00\xff", "${encode(id, 'base64')}": "7", "": ""} {
		if got, err := of(v); err != nil || got != want {
			t.Errorf("%s gives %q, %v; want %q", v, got, err, want)
		}
	}
	for _, v := range []string{"c", "not base64", "x${id}"} {
		if got, err := of(v); err == nil || !strings.Contains(err.Error(), "want base64, such as") {
			t.Errorf("%s gives %q, %v", v, got, err)
		}
	}
}

// Who moves in is told all that has to change, at once.
func TestImportNamesAllThatNaruHasNot(t *testing.T) {
	_, _, err := ImportAWS([]byte(`{"sql": "SELECT * FROM 'a'", "awsIotSqlVersion": "2016-03-23", "actions": [{"s3": {}}, {"republish": {"topic": "b"}}, {"sqs": {}}], "errorAction": {"sns": {}}}`), "r")
	for _, want := range []string{"/actions/0/s3: naru has no such action", "; /actions/2/sqs: ", "; /errorAction/sns: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want in it %q", err, want)
		}
	}
}
