package api

import (
	"net/http"
	"strings"
	"testing"
)

// TestGrafanaFindsWhatItsJSONDataSourceAsksFor sends what the data source sends, and reads its answers as it does.
func TestGrafanaFindsWhatItsJSONDataSourceAsksFor(t *testing.T) {
	a := newAsked(t, 30)
	const span = `"range":{"from":"2026-11-28T12:00:00Z","to":"2026-11-28T12:00:10Z","raw":{"from":"now-6h","to":"now"}},"intervalMs":4500,"maxDataPoints":550`
	for _, c := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"metrics", `{}`, 200, `{"label":"telemetry.celsius (°C)","value":"telemetry.celsius","payloads":[{"label":"Function","name":"function","type":"select"`},
		{"metrics", `{"metric":"telemetry.celsius","payload":{}}`, 200, `"value":"sql"`},
		{"metric-payload-options", `{"metric":"telemetry.celsius","payload":{},"name":"device"}`, 200, `[{"label":"all","value":""},{"label":"d-0","value":"d-0"},{"label":"d-1","value":"d-1"},{"label":"d-2","value":"d-2"}]`},
		{"query", `{` + span + `,"targets":[{"refId":"A","target":"telemetry.celsius","payload":{"function":"max","device":"d-0"}}]}`, 200,
			`[{"target":"d-0","datapoints":[[3,1795867200000],[6.75,1795867205000]]}]`},
		{"query", `{` + span + `,"targets":[{"refId":"A","target":"telemetry.celsius","payload":{"by":"none","function":"count"}}],"adhocFilters":[{"key":"device","operator":"=","value":"d-2"}]}`, 200,
			`[{"target":"telemetry.celsius","datapoints":[[5,1795867200000],[5,1795867205000]]}]`},
		{"query", `{` + span + `,"targets":[{"refId":"A","target":"telemetry.celsius"},{"refId":"B","target":"telemetry.seq","hide":true}]}`, 200, `{"target":"d-2","datapoints":[[`},
		{"query", `{` + span + `,"targets":[{"refId":"A","target":"sql","payload":{"sql":"SELECT time, device, seq, rest->'big' AS big FROM telemetry WHERE time >= $1 AND time < $2 AND device = 'd-0' ORDER BY time LIMIT 1"}}]}`, 200,
			`[{"type":"table","columns":[{"text":"time","type":"time"},{"text":"device","type":"string"},{"text":"seq","type":"number"},{"text":"big","type":"string"}],"rows":[[1795867200000,"d-0",1152921504606846976,"9007199254740993"]]}]`},
		{"query", `{` + span + `,"targets":[{"refId":"A","target":"telemetry.nothing"}]}`, 400, "no column nothing"},
		{"query", `{` + span + `,"targets":[{"refId":"A","target":"telemetry.kind"}]}`, 400, "no number"},
		{"query", `{` + span + `,"targets":[{"refId":"A","target":"sql","payload":{"sql":"DROP TABLE telemetry"}}]}`, 400, "only SELECT"},
		{"query", `{` + span + `,"targets":[{"refId":"A","target":"telemetry.celsius"}],"adhocFilters":[{"key":"device","operator":"!=","value":"d-2"}]}`, 400, "only device = "},
		{"query", `{` + span + `,"targets":[]}`, 200, "[]"},
		{"query", `nonsense`, 400, "read what Grafana asks"},
		{"variable", `{"payload":{"target":"telemetry"},` + span + `}`, 200, `[{"__text":"d-0","__value":"d-0"},{"__text":"d-1","__value":"d-1"},{"__text":"d-2","__value":"d-2"}]`},
		{"variable", `{"payload":{"target":"SELECT DISTINCT upper(device), device FROM telemetry ORDER BY 1 LIMIT 1"}}`, 200, `[{"__text":"D-0","__value":"d-0"}]`},
		{"variable", `{"payload":{"target":"SELECT unnest([NULL, 1.5, 'NaN'::DOUBLE])"}}`, 200, `[{"__text":"1.5","__value":"1.5"},{"__text":"\"NaN\"","__value":"\"NaN\""}]`},
		{"variable", `{"payload":{"target":"SELECT time, [seq] FROM telemetry ORDER BY seq LIMIT 1"}}`, 200, `[{"__text":"2026-11-28T12:00:00Z","__value":"[1152921504606846976]"}]`},
		{"tag-keys", `{}`, 200, `"text":"device"`},
		{"tag-values", `{"key":"device"}`, 200, `[{"text":"d-0"},{"text":"d-1"},{"text":"d-2"}]`},
	} {
		w := a.do(http.MethodPost, "grafana/"+c.path, c.body)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s %s: %d %s; want %d and %s", c.path, c.body, w.Code, w.Body, c.status, c.want)
		}
	}
	for _, path := range []string{"grafana", "grafana/"} {
		if w := a.get(path); w.Code != 200 || !strings.Contains(w.Body.String(), "duckdb") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}
