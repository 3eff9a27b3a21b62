package answer

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/naru-platform/naru/message"
)

func TestEveryErrorIsAProblemWithItsStatus(t *testing.T) {
	for want, err := range map[int]error{
		http.StatusBadRequest:          Bad(errors.New("ask differently")),
		http.StatusNotFound:            Missing("no %s", "lamp"),
		http.StatusConflict:            Conflict("it is there"),
		http.StatusServiceUnavailable:  Unavailable("later"),
		http.StatusUnprocessableEntity: message.Rejectf(message.SchemaMismatch, "/celsius"),
		http.StatusInternalServerError: errors.New("a bug"),
	} {
		w := httptest.NewRecorder()
		Func(func(http.ResponseWriter, *http.Request) (any, error) { return nil, err }).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		var p Problem
		if jerr := json.Unmarshal(w.Body.Bytes(), &p); jerr != nil || w.Code != want || p.Status != want || p.Detail == "" || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%v is answered with %d %s (%v)", err, w.Code, w.Body, jerr)
		}
		if reject := want == http.StatusUnprocessableEntity; reject != (p.Reason == "schema_mismatch") || reject != (p.Code != "") {
			t.Errorf("%v has reason %q, code %q", err, p.Reason, p.Code)
		}
	}
}

func TestAnAnswerIsJSONUnlessTheHandlerWroteItself(t *testing.T) {
	w := httptest.NewRecorder()
	Func(func(http.ResponseWriter, *http.Request) (any, error) { return map[string]int{"n": 1}, nil }).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != 200 || w.Body.String() != "{\"n\":1}\n" {
		t.Errorf("answered %d %q", w.Code, w.Body)
	}
	w = httptest.NewRecorder()
	Func(func(w http.ResponseWriter, _ *http.Request) (any, error) {
		w.WriteHeader(http.StatusNoContent)
		return nil, nil
	}).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != http.StatusNoContent || w.Body.Len() > 0 {
		t.Errorf("answered %d %q", w.Code, w.Body)
	}
}
