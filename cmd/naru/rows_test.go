package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// A table is for who looks at what was measured; programs get what there is.
func TestTableOfRowsBeginsWithWhatWasMeasured(t *testing.T) {
	const csv = "time,device,subject,trace_id,message_id,recorded,celsius\r\n2026-11-28T11:00:00Z,d-1,s,t1,m1,r,21.5\r\n"
	rows := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, csv) }
	ways := map[string]http.HandlerFunc{"GET /api/v1/data/datasets/telemetry/latest": rows, "GET /api/v1/data/datasets/telemetry/rows": rows, "POST /api/v1/data/query": rows}
	const brief = "TIME                  DEVICE  CELSIUS  TRACE_ID\n2026-11-28T11:00:00Z  d-1     21.5     t1\n"
	for args, want := range map[string]string{
		"data show telemetry":                  brief,
		"data latest telemetry":                brief,
		"data latest telemetry --device d-1":   brief,
		"data show telemetry --columns time,x": "TIME                  DEVICE  SUBJECT  TRACE_ID  MESSAGE_ID  RECORDED  CELSIUS\n",
		"data query SELECT":                    "TIME                  DEVICE  SUBJECT  TRACE_ID  MESSAGE_ID  RECORDED  CELSIUS\n",
		"data latest telemetry -o csv":         csv,
	} {
		if out, _, err := asked(t, ways, strings.Fields(args)...); err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("naru %s: %v\n%s\nwant\n%s", args, err, out, want)
		}
	}
}

// The platform is well, and messages wait for a worker that nobody has started: that is seen where one looks first.
func TestStatusPointsToWhatIsNotThePlatforms(t *testing.T) {
	ways := map[string]http.HandlerFunc{
		"GET /api/v1/status": says(http.StatusOK, map[string]any{"healthy": true}),
		"GET /api/v1/workers": says(http.StatusOK, map[string]any{"workers": []map[string]any{
			{"name": "hot", "state": "no_instances", "lag_messages": 7}, {"name": "cold", "state": "running"}}}),
		"GET /api/v1/dead/groups": says(http.StatusOK, map[string]any{"total_letters": 2}),
	}
	out, _, err := asked(t, ways, "status")
	if err != nil || !strings.Contains(out, "  ! worker hot: no instances, 7 messages before it: naru worker show hot\n  ! 2 dead letters: naru dead groups\n") || strings.Contains(out, "cold") {
		t.Errorf("%v:\n%s", err, out)
	}
	if !strings.Contains(out, "nothing appended yet") {
		t.Errorf("where nothing was appended yet it says\n%s", out)
	}
	ways["GET /api/v1/status"] = says(http.StatusOK, map[string]any{"healthy": false, "starting": true, "faults": []string{"x is opened"}})
	if out, _, err = asked(t, ways, "status"); err != nil || !strings.HasPrefix(out, "starting") || !strings.Contains(out, "… x is opened") {
		t.Errorf("at first: %v:\n%s", err, out)
	}
}

func TestConfigurationIsShownAsItIsWritten(t *testing.T) {
	out, _, err := asked(t, nil, "config", "show")
	if err != nil || !strings.Contains(out, "workers_max: 500\n") || strings.Contains(out, ".0\n") {
		t.Errorf("%v:\n%s", err, out)
	}
}
