package etl

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// twinStub answers wishes for twins in the place of service_platform.twin.
func twinStub(answers map[string]string) component.Spec {
	return component.Define(component.Spec{Name: "service_platform.twin", Doc: "a stand-in", Hears: []message.Pattern{serviceplatform.TwinWanted},
		Says: []message.Pattern{"device.*.twin.read"}, State: component.Local}, struct{}{}, func(component.Env, struct{}) (*component.Part, error) {
		return &component.Part{Handle: func(_ context.Context, tx component.Tx, m *message.Message) error {
			var ref device.TwinRef
			if err := json.Unmarshal(m.Data, &ref); err != nil {
				return err
			}
			raw, err := json.Marshal(device.TwinRead{Shadow: ref.Shadow, Document: json.RawMessage(answers[ref.Device])})
			if err != nil {
				return err
			}
			return tx.Say(&message.Message{Subject: device.TwinReadSubject(ref.Device), Device: ref.Device, Data: raw})
		}}, nil
	})
}

const enriched = rooms + `---
pipeline: sited
dataset: rooms
enrich: {twin: [/reported/site, /desired/limits/0/max, /version]}
steps:
  - sql: SELECT * EXCLUDE (twin_site, twin_max, twin_version) REPLACE (twin_site->>'$' AS label, CAST(twin_max AS DOUBLE) AS celsius, CAST(twin_version AS BIGINT) AS seq) FROM input
`

func document(site string, limit, version string) string {
	return `{"state":{"reported":{"site":` + site + `},"desired":{"limits":[{"max":` + limit + `}]}},"metadata":{},"version":` + version + `,"timestamp":1}`
}

// TestRowsAreEnrichedByTheTwinsOfTheirDevices: the first row waits for the answer, later ones see what the twin says of its
// changes, and a twin that is not there gives nulls.
func TestRowsAreEnrichedByTheTwinsOfTheirDevices(t *testing.T) {
	l := newLab(t)
	l.put(strings.Replace(enriched, "max: 150, required: true", "max: 150", 1))
	l.Start(With(l.hub), twinStub(map[string]string{"d-1": document(`"hall"`, "20", "4"), "d-2": `{"state":{},"version":1}`}))
	say := func(device string) {
		l.Say(componenttest.Message(message.NewSubject("data_platform", "rooms", device), device, `{}`))
	}
	for _, d := range []string{"d-1", "d-2", "none", "d-1"} {
		say(d)
	}
	l.Settled(Name+"/rooms", "data_platform")
	l.want("SELECT device, label, celsius, seq FROM rooms ORDER BY message_id", "d-1 hall 20 4\nd-2 <nil> <nil> 1\nnone <nil> <nil> <nil>\nd-1 hall 20 4")
	wishes := len(l.Read("service_platform"))
	l.Say(componenttest.Message("device.d-1.twin.update.documents", "d-1", `{"previous":{},"current":{"state":{"reported":{"site":"yard"}},"metadata":{},"version":5},"timestamp":2}`))
	l.Until(func() bool {
		say("d-1")
		l.Settled(Name+"/rooms", "data_platform")
		return l.query("SELECT label FROM rooms ORDER BY message_id DESC LIMIT 1") == "yard"
	}, func() string { return "the change is not seen" })
	if n := len(l.Read("service_platform")); n != wishes {
		t.Errorf("%d more wishes for what was known", n-wishes)
	}
}

// TestADatasetWaitsForATwinThatNobodyTells: it stands still, and no message is blamed.
func TestADatasetWaitsForATwinThatNobodyTells(t *testing.T) {
	l := newLab(t)
	l.put(strings.Replace(enriched, "max: 150, required: true", "max: 150", 1))
	l.start()
	l.say("rooms", `{}`)
	l.stands("rooms", "pipeline sited: enrich: the twin of d-1 is not known here yet: service_platform.twin has not told it; is it running?")
	l.Stop()
	l.Start(With(l.hub), twinStub(map[string]string{"d-1": document(`"hall"`, "20", "4")}))
	l.Settled(Name+"/rooms", "data_platform")
	l.want("SELECT label FROM rooms", "hall")
}

func (l *lab) try(query, body string) (t Trial, code int, text string) {
	l.t.Helper()
	r := httptest.NewRequestWithContext(l.t.Context(), http.MethodPost, "/api/v1/data/etl/test?"+query, strings.NewReader(body))
	w := httptest.NewRecorder()
	l.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, r)
	_ = json.Unmarshal(w.Body.Bytes(), &t) // the test looks at it
	return t, w.Code, w.Body.String()
}

// TestATrialTellsWhatWouldBecomeOfRecordedMessages, of the pipeline in force and of another one, and writes nothing.
func TestATrialTellsWhatWouldBecomeOfRecordedMessages(t *testing.T) {
	l := newLab(t)
	l.put(rooms)
	l.start()
	ms := l.say("rooms", `{"celsius": 1, "label": "7"}`, `{"celsius": 2, "label": "x"}`, `{"celsius": 3, "label": "8"}`, `{"celsius": 90, "label": "9"}`, `nonsense`)
	l.Settled(Name+"/rooms", "data_platform")
	rows := l.query("SELECT count(*) FROM rooms")
	now, _, text := l.try("dataset=rooms&since=1h", "")
	if now.Messages != 5 || now.Rows != 4 || now.Dead != 1 || now.Dropped != 0 || now.Pipeline != "" || now.Letters[0].Message != ms[4].ID || now.Letters[0].Reason != message.NotDecodable {
		t.Errorf("as it is: %s", text)
	}
	other := `
pipeline: other
dataset: rooms
steps:
  - {sql: SELECT * FROM input WHERE celsius <> 3, doc: not the third}
  - {sql: "SELECT * REPLACE (celsius * 2 AS celsius, CAST(CAST(label AS INT) + 1 AS TEXT) AS label) FROM input"}
`
	got, _, text := l.try("since=1h", other)
	if got.Messages != 5 || got.Rows != 1 || got.Dropped != 1 || got.Dead != 3 || got.Read != 4 || got.Steps[0].Rows != 3 || got.Steps[1].Rows != 2 || got.Steps[0].Doc != "not the third" {
		t.Errorf("another pipeline: %s", text)
	}
	var row map[string]any
	if err := json.Unmarshal(got.Out[0], &row); err != nil || row["celsius"] != 2.0 || row["label"] != "8" || row["message_id"] != ms[0].ID.String() || row["seq"] != nil {
		t.Errorf("row %v, %v", row, err)
	}
	reasons := map[message.ID]string{}
	for _, d := range got.Letters {
		reasons[d.Message] = d.Reason.String() + " " + d.Detail
	}
	if !strings.HasPrefix(reasons[ms[1].ID], "etl_error pipeline other, step 2: label is 'x'") || !strings.HasPrefix(reasons[ms[3].ID], "schema_mismatch") || got.Left[0].Message != ms[2].ID {
		t.Errorf("%v, %v", reasons, got.Left)
	}
	if wrong, _, text := l.try("", strings.Replace(other, "celsius <> 3", "heat <> 3", 1)); wrong.Fault == "" || !strings.Contains(wrong.Fault, "step 1") || wrong.Messages != 0 {
		t.Errorf("a wrong one: %s", text)
	}
	if cut, _, text := l.try("dataset=rooms&limit=2", ""); cut.Messages != 2 || !strings.Contains(cut.Stopped, "2 messages") {
		t.Errorf("with a limit: %s", text)
	}
	for query, want := range map[string]string{"": "say what is to be tried", "name=nobody": "no pipeline and no dataset nobody", "dataset=rooms&since=x": "since=x", "dataset=rooms&limit=0": "limit=0"} {
		if _, code, text := l.try(query, ""); code != 400 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", query, code, text)
		}
	}
	l.want("SELECT count(*) FROM rooms", rows)
	if _, dead := l.Buried(Name+"/rooms", 1); len(dead) != 1 {
		t.Errorf("a trial has made dead letters: %+v", dead)
	}
}

// TestATrialTakesAndGivesNoMoreBytesThanItMayHold as with a large limit and large messages.
func TestATrialTakesAndGivesNoMoreBytesThanItMayHold(t *testing.T) {
	l := newLab(t)
	l.put(rooms)
	l.start()
	for range 60 { // 54 MB
		l.say("rooms", `{"celsius": 1, "label": "`+strings.Repeat("x", 900<<10)+`"}`)
	}
	l.Settled(Name+"/rooms", "data_platform")
	got, _, _ := l.try("dataset=rooms&since=1h&limit=100000", "")
	if most := trialBytes / (900 << 10); got.Messages < most-1 || got.Messages > most || !strings.Contains(got.Stopped, "there are more") || got.Rows != got.Messages {
		t.Errorf("%d messages of %d bytes were tried, %d rows: %s", got.Messages, 900<<10, got.Rows, got.Stopped)
	}
	var many []Sample
	for range 3 * trialGroup {
		many = append(many, Sample{Message: componenttest.Message("data_platform.rooms.d-7.telemetry.engine", "d-7", `{"celsius": 1, "label": "`+strings.Repeat("x", 6<<10)+`"}`)})
	}
	docs, err := model.Parse("test", []byte(rooms))
	if err != nil {
		t.Fatal(err)
	}
	p := NewPipe(docs[0].Dataset, nil, nil)
	if got, err := p.Try(t.Context(), many); err != nil || got.Messages != 2*trialGroup || got.Rows != got.Messages || got.Stopped == "" {
		t.Errorf("of %d messages %d were tried, %d rows, %s, %v", len(many), got.Messages, got.Rows, got.Stopped, err)
	}
}

// TestATrialOfANewDatasetTakesWhatItWouldTake from the logs of devices.
func TestATrialOfANewDatasetTakesWhatItWouldTake(t *testing.T) {
	l := newLab(t)
	l.start()
	l.Say(componenttest.Message("device.d-7.telemetry.engine", "d-7", `{"celsius": 5}`), componenttest.Message("device.d-7.event", "d-7", `{"celsius": 6}`))
	l.Running(Name)
	var got Trial
	var text string
	l.Until(func() bool {
		var code int
		got, code, text = l.try("", strings.Replace(rooms, "doc: Rooms.", `doc: Rooms.
from: ["device.*.telemetry.engine"]`, 1))
		return code == 200
	}, func() string { return text })
	if got.Messages != 1 || got.Rows != 1 || !strings.Contains(string(got.Out[0]), `"subject":"data_platform.rooms.d-7.telemetry.engine"`) {
		t.Errorf("%s", text)
	}
}

func TestAPipelineIsTriedBeforeItIsInForce(t *testing.T) {
	for sql, want := range map[string]string{"SELECT * FROM input": "", "SELECT * REPLACE (CAST(label AS INT) AS label) FROM input": "", "SELECT heat FROM input": "step 1"} {
		docs, err := model.Parse("test", []byte(rooms+"---\npipeline: p\ndataset: rooms\nsteps:\n  - sql: "+sql+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		var no *model.Fault
		if err := Tried(t.Context(), docs[0].Dataset, docs[1].Pipeline); (err != nil) != (want != "") || err != nil && (!errors.As(err, &no) || !strings.Contains(err.Error(), want) || !strings.HasSuffix(err.Error(), "; dataset rooms would stand still")) {
			t.Errorf("%s: %v", sql, err)
		}
	}
}
