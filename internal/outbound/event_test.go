package outbound

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/message"
)

func sample() *message.Message {
	return &message.Message{ID: message.NewID(noon), Trace: message.NewTrace(noon), Cause: message.NewID(noon), Subject: "device.d-1.telemetry", Device: "d-1",
		Source: "//naru/n1/x", Type: "device.telemetry.v1", ContentType: "application/json", Data: []byte(`{"celsius":31}`), Time: noon}
}

func TestAMessageIsACloudEventInEitherMode(t *testing.T) {
	var got http.Header
	var body []byte
	c, to := other(t, func(_ http.ResponseWriter, r *http.Request) {
		got = r.Header
		body = make([]byte, r.ContentLength)
		_, _ = r.Body.Read(body)
	})
	to.Header = Header{"Authorization": "Bearer hush"}
	m := sample()
	if _, err := c.Send(t.Context(), to, Binary(m, Attempt{N: 3, Deadline: noon.Add(time.Second)})); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"ce-specversion": "1.0", "ce-id": m.ID.String(), "ce-source": "//naru/n1/x", "ce-type": "device.telemetry.v1", "ce-subject": "device.d-1.telemetry",
		"ce-time": "2026-11-23T12:00:00Z", "ce-naruattempt": "3", "ce-narudevice": "d-1", "ce-narucause": m.Cause.String(), "ce-narudeadline": "2026-11-23T12:00:01Z",
		"ce-traceparent": m.Trace.Traceparent(), "traceparent": m.Trace.Traceparent(), "content-type": "application/json", "idempotency-key": m.ID.String(), "authorization": "Bearer hush"} {
		if got.Get(name) != want {
			t.Errorf("binary: %s is %q; want %q", name, got.Get(name), want)
		}
	}
	if string(body) != string(m.Data) {
		t.Errorf("binary: the body is %q", body)
	}
	r := Structured(m, Attempt{N: 2})
	var doc map[string]any
	if err := json.Unmarshal(r.Body, &doc); err != nil {
		t.Fatal(err)
	}
	if doc["specversion"] != "1.0" || doc["id"] != m.ID.String() || doc["naruattempt"] != 2.0 || doc["data"].(map[string]any)["celsius"] != 31.0 || doc["datacontenttype"] != "application/json" ||
		r.Header.Get("Content-Type") != "application/cloudevents+json; charset=utf-8" || r.Header.Get("Idempotency-Key") != m.ID.String() {
		t.Errorf("structured: %s with %v", r.Body, r.Header)
	}
}

func TestDataComesThroughTheStructuredModeUnaltered(t *testing.T) {
	for contentType, data := range map[string]string{"application/json": `{"a":[1,2.50,"ü"]}`, "text/plain": "grüß Gott\n", "application/octet-stream": "\x00\xff\xfe", "": `{"a":1}`, "application/vnd.x+json": `"s"`} {
		m := sample()
		m.ContentType, m.Data = contentType, []byte(data)
		r := Structured(m, Attempt{N: 1})
		back, err := (&Answer{Status: 200, Header: r.Header, Body: r.Body}).Events()
		if err != nil || len(back) != 1 || string(back[0].Data) != data || back[0].Subject != m.Subject || back[0].Device != m.Device || !back[0].Time.Equal(noon) {
			t.Errorf("%s %q comes back as %+v (%v)", contentType, data, back, err)
		}
	}
}

func TestHeadersHoldAnyText(t *testing.T) {
	for _, s := range []string{"plain", "Euro € 😀", `say "50%"`, "a b\tc\r\nInjected: yes", ""} {
		coded := percent(s)
		if strings.ContainsAny(coded, " \r\n\"") || unpercent(coded) != s {
			t.Errorf("%q is written %q and read %q", s, coded, unpercent(coded))
		}
	}
	m := sample()
	m.Subject, m.Device = "device.küche.x", "küche"
	r := Binary(m, Attempt{})
	back, err := (&Answer{Header: r.Header, Body: r.Body}).Events()
	if err != nil || back[0].Subject != m.Subject || back[0].Device != "küche" {
		t.Errorf("it comes back as %+v (%v)", back, err)
	}
}

func TestWhatFollowsIsReadOrRefusedWhole(t *testing.T) {
	event := func(subject string) string {
		return fmt.Sprintf(`{"specversion":"1.0","id":"1","source":"s","type":"t","subject":%q,"data":{"n":1}}`, subject)
	}
	for _, x := range []struct {
		name, contentType, ce, body string
		want                        int
		fault                       string
	}{
		{name: "nothing"},
		{name: "white space", contentType: "text/plain", body: " \n"},
		{name: "an event", contentType: "application/cloudevents+json; charset=utf-8", body: event("device.d.x"), want: 1},
		{name: "a batch", contentType: "application/cloudevents-batch+json", body: "[" + event("device.d.x") + "," + event("device.e.x") + "]", want: 2},
		{name: "an empty batch", contentType: "application/cloudevents-batch+json", body: "[]"},
		{name: "binary", contentType: "application/json", ce: "device.d.x", body: `{"n":1}`, want: 1},
		{name: "a page", contentType: "text/html", body: "<html>502</html>", fault: "no CloudEvent"},
		{name: "JSON of its own", contentType: "application/json", body: `{"ok":true}`, fault: "no CloudEvent"},
		{name: "half a document", contentType: "application/cloudevents+json", body: `{"specversion":`, fault: "cannot be read"},
		{name: "no subject", contentType: "application/cloudevents+json", body: `{"specversion":"1.0","id":"1","source":"s","type":"t"}`, fault: "subject is wanted"},
		{name: "another version", contentType: "application/cloudevents+json", body: `{"specversion":"0.3"}`, fault: "want 1.0"},
		{name: "a wildcard", contentType: "application/cloudevents+json", body: event("device.*.x"), fault: "wildcard"},
		{name: "one bad of two", contentType: "application/cloudevents-batch+json", body: "[" + event("device.d.x") + "," + event("device..x") + "]", fault: "event 1"},
		{name: "a bad time", contentType: "application/cloudevents+json", body: `{"specversion":"1.0","subject":"device.d.x","time":"noon"}`, fault: "want a time"},
		{name: "data twice", contentType: "application/cloudevents+json", body: `{"specversion":"1.0","subject":"device.d.x","data":1,"data_base64":"AA=="}`, fault: "data and data_base64"},
		{name: "too many", contentType: "application/cloudevents-batch+json", body: "[" + strings.Repeat(event("device.d.x")+",", EventsMax) + event("device.d.x") + "]", fault: "up to 1000"},
	} {
		h := http.Header{}
		if x.contentType != "" {
			h.Set("Content-Type", x.contentType)
		}
		if x.ce != "" {
			for name, v := range map[string]string{"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "s", "Ce-Type": "t", "Ce-Subject": x.ce} {
				h.Set(name, v)
			}
		}
		list, err := (&Answer{Status: 200, Header: h, Body: []byte(x.body)}).Events()
		switch {
		case x.fault != "":
			if message.ReasonOf(err, 0) != message.NotDecodable || !strings.Contains(err.Error(), x.fault) || list != nil {
				t.Errorf("%s: %d events, %v; want %q", x.name, len(list), err, x.fault)
			}
		case err != nil || len(list) != x.want:
			t.Errorf("%s: %d events, %v; want %d", x.name, len(list), err, x.want)
		case x.want > 0 && string(list[0].Data) != `{"n":1}`:
			t.Errorf("%s: the data is %q", x.name, list[0].Data)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add("application/cloudevents+json", []byte(`{"specversion":"1.0","subject":"device.d.x","data":1}`))
	f.Add("application/cloudevents-batch+json", []byte(`[{"specversion":"1.0","subject":"device.d.x","data_base64":"AA=="}]`))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		list, err := (&Answer{Status: 200, Header: http.Header{"Content-Type": {contentType}}, Body: body}).Events()
		for _, m := range list {
			if err != nil || m.Subject.Valid() != nil {
				t.Errorf("%q gives %+v, %v", body, m, err)
			}
		}
	})
}
