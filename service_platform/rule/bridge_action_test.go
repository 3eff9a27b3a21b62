package rule

import (
	"fmt"
	"strings"
	"testing"
)

func TestDataBridgePutsTheOutputIntoADataset(t *testing.T) {
	r := running(t, "hot", `{"sql": "SELECT celsius, 'hot' AS kind FROM 'device/+/telemetry' WHERE celsius > 30",
		"actions": [{"data_bridge": {"dataset": "alarms"}}, {"data_bridge": {"dataset": "alarms_${level}", "device": "site-${topic(2)}"}}]}`)
	m, bad := say("device.d-1.telemetry", `{"celsius":31,"level":"high"}`), say("device.d-1.telemetry", `{"celsius":31,"level":"No such"}`)
	r.Say(m, bad)
	r.Settled(Name, "device")
	var got []string
	for _, s := range r.Read("service_platform") {
		if s.Cause != m.ID || s.Subject.Token(1) != "bridge" {
			continue
		}
		got = append(got, fmt.Sprintf("%s of %s: %s", s.Subject, s.Device, s.Data))
		rule, _ := s.Properties.Get("rule")
		if rule != "hot@1" || s.ContentType != "application/json" || !s.Time.Equal(m.Recorded()) || s.Trace.ID != m.Trace.ID {
			t.Errorf("put is %+v", s)
		}
	}
	want := "service_platform.bridge.alarms.put of d-1: {\"celsius\":31,\"kind\":\"hot\"}\nservice_platform.bridge.alarms_high.put of site-d-1: {\"celsius\":31,\"kind\":\"hot\"}"
	if strings.Join(got, "\n") != want {
		t.Errorf("put is\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if got := strings.Join(said(r, bad), "\n"); !strings.Contains(got, `alarms_No such`) || !strings.Contains(got, `"kind":"data_bridge"`) {
		t.Errorf("of a name that cannot be is said\n%s", got)
	}
}

func TestDataBridgeThatCannotBeIsRefused(t *testing.T) {
	for action, want := range map[string]string{
		`{}`:                                   "dataset is wanted",
		`{"dataset": "A-b"}`:                   "naru data models",
		`{"dataset": "a", "device": "${a +}"}`: "device: sql: line 1",
	} {
		d, err := Parse(fmt.Appendf(nil, `{"name": "x", "sql": "SELECT a FROM 'x'", "actions": [{"data_bridge": %s}]}`, action))
		if err == nil {
			_, err = Compile(d, 1, "n1")
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v; want %q", action, err, want)
		}
	}
}

func TestKinesisOfAWSBecomesADatasetWithWarnings(t *testing.T) {
	d, warnings, err := ImportAWS([]byte(`{"ruleName": "r", "sql": "SELECT * FROM 'device/+/telemetry'", "awsIotSqlVersion": "2016-03-23",
		"actions": [{"kinesis": {"streamName": "Raw-Readings", "partitionKey": "${topic(2)}", "roleArn": "arn:aws:iam::1:role/x"}}]}`), "")
	if err != nil || len(d.Actions) != 1 || d.Actions[0].DataBridge == nil || d.Actions[0].DataBridge.Dataset != "raw_readings" {
		t.Fatalf("%+v, %v", d, err)
	}
	if all := strings.Join(warnings, "\n"); len(warnings) != 2 || !strings.Contains(all, "/actions/0/kinesis becomes data_bridge into the dataset raw_readings") || !strings.Contains(all, "partitionKey") || !strings.Contains(all, "the role is not used") {
		t.Errorf("warnings are %q", warnings)
	}
	if _, err := Compile(d, 1, "n1"); err != nil {
		t.Error(err)
	}
	if _, _, err := ImportAWS([]byte(`{"ruleName": "r", "sql": "SELECT * FROM 'x'", "actions": [{"kinesis": {"streamName": "7"}}]}`), ""); err == nil || !strings.Contains(err.Error(), "/actions/0/kinesis/streamName") {
		t.Errorf("a stream that cannot be a dataset: %v", err)
	}
}
