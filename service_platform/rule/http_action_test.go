package rule

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

const paging = `{"sql": "SELECT celsius FROM 'device/+/telemetry' WHERE celsius > 30", "actions": [{"http": {"destination": "pager", "path": "alarms/${topic(2)}",
	"headers": [{"name": "X-Level", "value": "${level}"}], "ttl": "10m"}}], "error_action": {"republish": {"topic": "errors/${topic(2)}"}}}`

// sent gives what a rule sends of a message.
func sent(r *componenttest.Rig, of *message.Message) (list []*message.Message) {
	for _, m := range r.Read("service_platform") {
		if m.Cause == of.ID && m.Subject.Token(1) == "webhook" {
			list = append(list, m)
		}
	}
	return list
}

func TestHTTPActionSaysWhatGoesToItsDestination(t *testing.T) {
	r := running(t, "hot", paging)
	m := say("device.d-1.telemetry", `{"celsius":31,"level":"high"}`)
	r.Say(m)
	r.Settled(Name, "device")
	list := sent(r, m)
	if len(list) != 1 {
		t.Fatalf("%d messages are sent", len(list))
	}
	s := list[0]
	if s.Subject != "service_platform.webhook.pager.send" || string(s.Data) != `{"celsius":31}` || s.ContentType != "application/json" || s.Device != "d-1" || s.Expires.Sub(s.Recorded()).Minutes() < 9 {
		t.Errorf("sent is %s %s, %s, of %s, until %s", s.Subject, s.Data, s.ContentType, s.Device, s.Expires)
	}
	for name, want := range map[string]string{serviceplatform.SendRule: "hot@1", serviceplatform.SendAction: "0", serviceplatform.SendPath: "alarms/d-1", serviceplatform.SendHeader + "x-level": "high",
		serviceplatform.SendTopic: "device/d-1/telemetry", serviceplatform.SendClient: "d-1", serviceplatform.SendPayload: base64.StdEncoding.EncodeToString(m.Data)} {
		if got, _ := s.Properties.Get(name); got != want {
			t.Errorf("%s is %q; want %q", name, got, want)
		}
	}
	// A path that would lead elsewhere is a failure of the action.
	put(t, r, "hot", strings.Replace(paging, "alarms/${topic(2)}", "alarms/${name}", 1))
	bad := say("device.d-1.telemetry", `{"celsius":31,"level":"high","name":"../admin"}`)
	r.Say(bad)
	r.Settled(Name, "device")
	if list := sent(r, bad); len(list) != 0 {
		t.Errorf("sent is %s", list[0].Properties)
	}
	if got := strings.Join(said(r, bad), "\n"); !strings.Contains(got, "errors/d-1") || !strings.Contains(got, "want levels between /") {
		t.Errorf("said is\n%s", got)
	}
}

func TestWhatADestinationWillNotHaveGoesToTheErrorAction(t *testing.T) {
	r := running(t, "hot", paging, "other", `{"sql": "SELECT 1 AS a FROM 'device/+/telemetry'", "actions": [{"worker": {"name": "w"}}]}`)
	fails := func(rule, action string) *message.Message {
		f := serviceplatform.WebhookFailed{Destination: "pager", Reason: message.ReceiverRefused, Error: "https://pager answered 410", Attempts: 1, Rule: rule, Action: action,
			Topic: "device/d-7/telemetry", Client: "c-7", Payload: []byte(`{"celsius":31}`)}
		return componenttest.Message(serviceplatform.WebhookFailedSubject("pager"), "d-7", string(f.JSON("")))
	}
	m, own, gone, none := fails("hot@1", "0"), fails("hot@1", "error"), fails("nobody@1", "0"), fails("other@1", "0")
	r.Say(m, own, gone, none)
	r.Settled(Name, "service_platform")
	list := said(r, m)
	if len(list) != 2 || !strings.HasPrefix(list[0], "errors/d-7 ") || !strings.HasPrefix(list[1], "service_platform/rule/hot/failed ") {
		t.Fatalf("said is\n%s", strings.Join(list, "\n"))
	}
	var doc struct {
		RuleName, Topic, ClientID, Base64OriginalPayload string
		Failures                                         []struct{ FailedAction, ErrorMessage string }
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(list[0], "errors/d-7 ")), &doc); err != nil || doc.RuleName != "hot" || doc.ClientID != "c-7" ||
		doc.Base64OriginalPayload != base64.StdEncoding.EncodeToString([]byte(`{"celsius":31}`)) || len(doc.Failures) != 1 || doc.Failures[0].FailedAction != "HttpAction" ||
		!strings.Contains(doc.Failures[0].ErrorMessage, "destination pager: receiver_refused: https://pager answered 410") {
		t.Errorf("the error action gets %+v (%v)", doc, err)
	}
	// What an error action has sent, and what is of a rule without one, is only told; what is of no rule is nobody's.
	for what, m := range map[string]*message.Message{"an error action's": own, "without an error action": none} {
		if got := said(r, m); len(got) != 1 || !strings.Contains(got[0], `"kind":"http"`) {
			t.Errorf("%s: said is %q", what, got)
		}
	}
	if got := said(r, gone); len(got) != 0 {
		t.Errorf("of a rule that is gone is said %q", got)
	}
}

func TestHTTPActionThatCannotBeIsRefused(t *testing.T) {
	for action, want := range map[string]string{
		`{}`:                                  "destination",
		`{"destination": "A.b"}`:              "naru destination list",
		`{"destination": "p", "ttl": "soon"}`: "ttl",
		`{"destination": "p", "headers": [{"name": "Authorization", "value": "x"}]}`:                "headers[0].name",
		`{"destination": "p", "headers": [{"name": "Ce-Id", "value": "x"}]}`:                        "headers[0].name",
		`{"destination": "p", "headers": [{"name": "a", "value": ""}, {"name": "A", "value": ""}]}`: "headers[1].name",
		`{"destination": "p", "path": "${a +}"}`:                                                    "path: sql: line 1",
	} {
		d, err := Parse(fmt.Appendf(nil, `{"name": "x", "sql": "SELECT a FROM 'x'", "actions": [{"http": %s}]}`, action))
		if err == nil {
			_, err = Compile(d, 1, "n1")
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v; want %q", action, err, want)
		}
	}
	for p, ok := range map[string]bool{"": true, "a": true, "/a/b": true, "a/../b": false, "..": false, "a//b": false, "a?b": false, "a%2e": false, "a b": false, "a#": false, "a/": false, `a\b`: false, strings.Repeat("a", 2000): false} {
		if err := safePath(p); (err == nil) != ok {
			t.Errorf("path %q gives %v", p, err)
		}
	}
}

// A name that no destination has is told to who writes the rule, which is added all the same: the destination may come later.
func TestADestinationThatNobodyHasIsWarnedOf(t *testing.T) {
	r := running(t)
	const doc = `{"sql": "SELECT n FROM 'a'", "actions": [{"republish": {"topic": "b"}}, {"http": {"destination": "pagr"}}], "error_action": {"http": {"destination": "pager"}}}`
	if got := put(t, r, "x", doc).Warnings; len(got) != 2 || !strings.Contains(got[0], "actions[1].http") || !strings.Contains(got[1], "error_action.http") || !strings.Contains(got[0], "naru destination add pagr") {
		t.Errorf("where there is no destination, it warns %q", got)
	}
	if err := names.Tell(t.Context(), r.Bus, names.Destinations, "n2", []string{"pager"}); err != nil {
		t.Fatal(err)
	}
	if got := put(t, r, "y", doc).Warnings; len(got) != 1 || !strings.Contains(got[0], `did you mean "pager"`) {
		t.Errorf("where another name is meant, it warns %q", got)
	}
	// So is a worker's name; one that a message gives is not known before.
	const work = `{"sql": "SELECT n FROM 'a'", "actions": [{"worker": {"name": "press"}}, {"worker": {"name": "${kind}"}}]}`
	if got := put(t, r, "z", work).Warnings; len(got) != 1 || !strings.Contains(got[0], "actions[0].worker: there is no worker yet; nobody does what is given to press until `naru worker add press`") {
		t.Errorf("where there is no worker, it warns %q", got)
	}
	if err := names.Tell(t.Context(), r.Bus, names.Workers, "n2", []string{"press"}); err != nil {
		t.Fatal(err)
	}
	if got := put(t, r, "z", work).Warnings; len(got) != 0 {
		t.Errorf("where there is one, it warns %q", got)
	}
}
