package twin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// aws asks as a client of AWS's API does, and gives the status, the name of the exception, and the body.
func aws(d *desk, method, path, body string) (code int, exception, text string) {
	d.t.Helper()
	w := httptest.NewRecorder()
	d.h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, w.Header().Get("x-amzn-ErrorType"), strings.TrimSpace(w.Body.String())
}

// https://docs.aws.amazon.com/iot/latest/developerguide/device-shadow-rest-api.html
func TestAWSClientsReadAndWriteTwinsOverHTTP(t *testing.T) {
	d := open(t, "")
	for _, query := range []string{"", "?name=config"} {
		path := "/things/d-1/shadow" + query
		if code, _, body := aws(d, "POST", path, `{"state":{"desired":{"a":2},"reported":{"a":1}},"clientToken":"t"}`); code != 200 ||
			!strings.HasPrefix(body, `{"state":{"desired":{"a":2},"reported":{"a":1}},"metadata":`) || !strings.Contains(body, `"version":1`) || !strings.Contains(body, `"clientToken":"t"`) {
			t.Errorf("POST %s: %d %s", path, code, body)
		}
		if code, _, body := aws(d, "GET", path, ""); code != 200 || !strings.HasPrefix(body, `{"state":{"desired":{"a":2},"reported":{"a":1},"delta":{"a":2}},"metadata":`) {
			t.Errorf("GET %s: %d %s", path, code, body)
		}
		if code, _, body := aws(d, "DELETE", path, ""); code != 200 || !strings.HasPrefix(body, `{"version":1,"timestamp":`) {
			t.Errorf("DELETE %s: %d %s", path, code, body)
		}
	}
	// A twin is one, whatever it is asked by.
	aws(d, "POST", "/things/d-1/shadow", `{"state":{"desired":{"a":3}}}`)
	var s Shown
	if d.get("/api/v1/twins/d-1", &s); s.Version != 2 {
		t.Errorf("the twin has version %d", s.Version)
	}
}

// https://docs.aws.amazon.com/iot/latest/apireference/API_iotdata_UpdateThingShadow.html
func TestAWSClientsAreToldErrorsAsAWSDoes(t *testing.T) {
	d := open(t, "")
	aws(d, "POST", "/things/d-1/shadow", `{"state":{}}`)
	for _, c := range []struct {
		method, path, body string
		code               int
		exception, message string
	}{
		{"GET", "/things/d-2/shadow", "", 404, "ResourceNotFoundException", "No shadow exists with name: 'd-2'"},
		{"GET", "/things/d-1/shadow?name=x", "", 404, "ResourceNotFoundException", "No shadow exists with name: 'x'"},
		{"DELETE", "/things/d-1/shadow?name=x", "", 404, "ResourceNotFoundException", "No shadow exists with name: 'x'"},
		{"GET", "/things/d-1/shadow?name=a.b", "", 400, "InvalidRequestException", "Invalid shadow name"},
		{"GET", "/things/d-1/shadow?name=", "", 400, "InvalidRequestException", "Invalid shadow name"},
		{"POST", "/things/d-1/shadow", `{"state":{},"version":7}`, 409, "ConflictException", "Version conflict"},
		{"POST", "/things/d-1/shadow", `{`, 400, "InvalidRequestException", "Invalid JSON"},
		{"POST", "/things/d-1/shadow", `{}`, 400, "InvalidRequestException", "Missing required node: state"},
		{"POST", "/things/d-1/shadow", `{"state":{"foo":1}}`, 400, "InvalidRequestException", "State contains an invalid node: 'foo'"},
		{"POST", "/things/d-1/shadow", "{\"state\":{\"desired\":{\"a\":\"\xff\"}}}", 415, "UnsupportedDocumentEncodingException", "Unsupported documented encoding; supported encoding is UTF-8"},
		{"POST", "/things/d-1/shadow", `{"state":{"desired":{"a":"` + strings.Repeat("x", 9000) + `"}}}`, 413, "RequestEntityTooLargeException", "The payload exceeds the maximum size allowed"},
		{"POST", "/things/d-1/shadow", strings.Repeat(" ", 200<<10), 413, "RequestEntityTooLargeException", "The payload exceeds the maximum size allowed"},
		{"GET", "/api/things/shadow/ListNamedShadowsForThing/d-1?pageSize=101", "", 400, "InvalidRequestException", "pageSize=101: want 1 to 100"},
		{"GET", "/api/things/shadow/ListNamedShadowsForThing/d-1?nextToken=*", "", 400, "InvalidRequestException", "nextToken: want what the answer before said"},
	} {
		code, exception, text := aws(d, c.method, c.path, c.body)
		var body struct{ Message string }
		if err := json.Unmarshal([]byte(text), &body); err != nil || code != c.code || exception != c.exception || body.Message != c.message {
			t.Errorf("%s %s %.40s: %d %s %s; want %d %s %s", c.method, c.path, c.body, code, exception, text, c.code, c.exception, c.message)
		}
	}
}

// https://docs.aws.amazon.com/iot/latest/apireference/API_iotdata_ListNamedShadowsForThing.html
func TestAWSClientsListNamedTwinsByPages(t *testing.T) {
	d := open(t, "")
	for _, name := range []string{"", "?name=c", "?name=a", "?name=b"} {
		aws(d, "POST", "/things/d-1/shadow"+name, `{"state":{}}`)
	}
	aws(d, "POST", "/things/d-10/shadow?name=other", `{"state":{}}`)
	type page struct {
		Results   []string
		NextToken string
		Timestamp int64
	}
	list := func(device, query string) (p page) {
		d.get("/api/things/shadow/ListNamedShadowsForThing/"+device+query, &p)
		if p.Timestamp == 0 {
			t.Error("it says not when")
		}
		return p
	}
	first := list("d-1", "?pageSize=2")
	second := list("d-1", "?pageSize=2&nextToken="+first.NextToken)
	if strings.Join(first.Results, ",") != "a,b" || strings.Join(second.Results, ",") != "c" || second.NextToken != "" {
		t.Errorf("got %+v, then %+v", first, second)
	}
	if p := list("d-9", ""); p.Results == nil || len(p.Results) != 0 {
		t.Errorf("a device without twins has %+v", p)
	}
}

func TestAWSClientsNeedTheToken(t *testing.T) {
	d := open(t, "")
	h := d.r.Host.Handler(func(*http.Request) bool { return false })
	for _, c := range [][2]string{{"GET", "/things/d-1/shadow"}, {"POST", "/things/d-1/shadow"}, {"DELETE", "/things/d-1/shadow"}, {"GET", "/api/things/shadow/ListNamedShadowsForThing/d-1"}} {
		if code := ask(t, h, c[0], c[1], `{"state":{}}`, nil); code != http.StatusUnauthorized {
			t.Errorf("%s %s without a token: %d", c[0], c[1], code)
		}
	}
}
