package main

import (
	"net/http"
	"strings"
	"testing"
)

func TestTwinRequestIsMadeOfFields(t *testing.T) {
	for fields, want := range map[string]string{
		"mode=eco limits.celsius=21.5":       `{"state":{"desired":{"limits":{"celsius":21.5},"mode":"eco"}}}`,
		"a.b=1 a.c=null d=":                  `{"state":{"desired":{"a":{"b":1,"c":null},"d":""}}}`,
		`list=[1,2] text="1" eq=a=b on=true`: `{"state":{"desired":{"eq":"a=b","list":[1,2],"on":true,"text":"1"}}}`,
	} {
		if got, err := twinRequest(nil, strings.Fields(fields), "", 0); err != nil || string(got) != want {
			t.Errorf("%s makes %s, %v; want %s", fields, got, err, want)
		}
	}
	if got, err := twinRequest(nil, []string{"a=1"}, "", 7); err != nil || string(got) != `{"state":{"desired":{"a":1}},"version":7}` {
		t.Errorf("%s, %v", got, err)
	}
	if got, err := twinRequest(strings.NewReader(`{"state":{}}`), nil, "-", 0); err != nil || string(got) != `{"state":{}}` {
		t.Errorf("%s, %v", got, err)
	}
}

func TestWrongFieldsOfATwinAreNamed(t *testing.T) {
	for fields, want := range map[string]string{
		"": "nothing to set", "x": `"x": want FIELD=VALUE`, "=1": "want FIELD=VALUE", ".a=1": "want FIELD=VALUE", "a.=1": "want FIELD=VALUE",
		"a..b=1": "want FIELD=VALUE", "a=1 a.b=2": "a has a value already",
	} {
		if _, err := twinRequest(nil, strings.Fields(fields), "", 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %v; want %s", fields, err, want)
		}
	}
	if _, err := twinRequest(strings.NewReader("{"), nil, "-", 0); err == nil || !strings.Contains(err.Error(), "no JSON") {
		t.Errorf("half a request gives %v", err)
	}
}

// A time to look back is written alike everywhere: 7d is one for messages, so it is for twins.
func TestDaysAreDurationsEverywhere(t *testing.T) {
	for args, want := range map[string]string{"twin get d --at 7d": "at=168h0m0s", "twin drift --older 1w": "older=168h0m0s", "rule backtest r --since 2d": "since=48h0m0s",
		"twin get d --at 2026-11-23T03:00:00Z": "at=2026-11-23T03%3A00%3A00Z"} {
		asks := ""
		note := func(w http.ResponseWriter, r *http.Request) {
			asks = r.URL.RawQuery
			says(http.StatusNotFound, map[string]string{"detail": "not there"})(w, r)
		}
		_, _, err := asked(t, map[string]http.HandlerFunc{"/": note}, strings.Fields(args)...)
		if err == nil || !strings.Contains(asks, want) {
			t.Errorf("%s asks for %s (%v); want %s", args, asks, err, want)
		}
	}
}
