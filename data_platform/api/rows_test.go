package api

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/message"
)

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

const trace = "0193d5a07b2c1a2b5d2f8a6b1c4e7f90"

// asked is the component on a database with rows: of d-0, d-1 and d-2 one each second from noon on.
type asked struct {
	t     *testing.T
	rig   *componenttest.Rig
	store storage.Store
}

func newAsked(t *testing.T, rows int) *asked {
	t.Helper()
	store, err := storage.OpenDuck(t.Context(), filepath.Join(t.TempDir(), "data.duckdb"), storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	hub := storage.NewHub()
	hub.Set(store, nil)
	a := &asked{t, componenttest.New(t), store}
	a.rig.Start(With(hub, sceptic))
	a.rig.Running(Name)
	t.Cleanup(func() {
		a.rig.Stop()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	table := storage.Table{Name: "telemetry", Columns: []storage.Column{{Name: "seq", Type: storage.Int}, {Name: "celsius", Type: storage.Double}, {Name: "kind", Type: storage.Text}, {Name: "rest", Type: storage.JSON}, {Name: "raw", Type: storage.Bytes}},
		Rollups: []storage.Rollup{{Name: "telemetry_1m", Every: time.Minute, Values: []storage.RollupValue{{Column: "celsius", Functions: []string{"avg"}}}}}}
	if err := store.Ensure(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	a.load(rows)
	return a
}

func (a *asked) load(rows int) {
	a.t.Helper()
	var list []storage.Row
	for i := range rows {
		at := noon.Add(time.Duration(i/3) * time.Second)
		r := storage.Row{Time: at, Device: fmt.Sprintf("d-%d", i%3), Subject: "device.d.telemetry", Trace: trace, Message: message.NewID(at), Recorded: at, Position: bus.Position{Sequence: uint64(i)},
			Values: []any{int64(1)<<60 + int64(i), float64(i) / 4, "a \"b\", c\r\nd", json.RawMessage(`{"big":9007199254740993,"list":[9223372036854775807]}`), []byte{0, 255}}}
		if i == 1 {
			r.Values = []any{nil, nil, "", nil, nil}
		}
		if i > 2 {
			r.Trace = ""
		}
		list = append(list, r)
	}
	if _, err := a.store.Load(a.t.Context(), &storage.Batch{Table: "telemetry", Rows: list}); err != nil {
		a.t.Fatal(err)
	}
}

// get asks for a path, and gives the answer.
func (a *asked) get(path string, header ...string) *httptest.ResponseRecorder {
	return a.do(http.MethodGet, path, "", header...)
}

func (a *asked) do(method, path, body string, header ...string) *httptest.ResponseRecorder {
	a.t.Helper()
	r := httptest.NewRequest(method, "/api/v1/data/"+path, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	a.rig.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, r)
	return w
}

func sql(s string) string { return "query?sql=" + url.QueryEscape(s) }

func TestRowsAreAskedFor(t *testing.T) {
	a := newAsked(t, 30)
	for _, c := range []struct {
		path   string
		status int
		want   string // is the body
	}{
		{sql("SELECT count(*) AS n FROM telemetry"), 200, `[{"n":30}]` + "\n"},
		{sql("SELECT seq FROM telemetry WHERE device = $1 ORDER BY seq DESC LIMIT 2") + "&arg=d-2", 200, "[{\"seq\":1152921504606847005},\n{\"seq\":1152921504606847002}]\n"},
		{sql("SELECT 1 AS b, 2 AS a, 3 AS b WHERE false"), 200, "[]\n"},
		{sql("SELECT 1 AS b, 'x' AS a, 3 AS b"), 200, "[{\"b\":1,\"a\":\"x\",\"b_1\":3}]\n"},
		{sql("SELECT rest FROM telemetry LIMIT 1"), 200, "[{\"rest\":{\"big\":9007199254740993,\"list\":[9223372036854775807]}}]\n"},
		{sql("SELECT [rest] AS r, {'a': rest} AS s FROM telemetry LIMIT 1"), 200, "[{\"r\":[{\"big\":9007199254740993,\"list\":[9223372036854775807]}],\"s\":{\"a\":{\"big\":9007199254740993,\"list\":[9223372036854775807]}}}]\n"},
		{sql("SELECT 9223372036854775807::HUGEINT * 2 AS h, 'NaN'::DOUBLE AS d, '\"x\"'::JSON AS j, NULL::JSON AS z"), 200, "[{\"h\":18446744073709551614,\"d\":\"NaN\",\"j\":\"x\",\"z\":null}]\n"},
		{sql("SELECT 1 -- what a comment hides ; SELECT 2"), 200, "[{\"1\":1}]\n"},
		{sql("SELECT nothing\nFROM telemetry"), 400, `"line":1,"column":8`},
		{sql("SELECT 1\n  FROM nowhere"), 400, `there is no dataset nowhere; there are telemetry, telemetry_1m","line":2,"column":8`},
		{sql("SELECT 1 FROM"), 400, `"line":1,"column":14`},
		{sql("SELECT 1; SELECT 2"), 400, "2 statements"},
		{sql(""), 400, "sql is missing"},
		{sql("SELECT 1") + "&limit=0", 400, "want a number from 1"},
		{sql("SELECT 1") + "&timeout=1h", 400, "5m0s at most"},
		{sql("SELECT 1") + "&format=xml", 400, "there are json, ndjson, csv and arrow"},
		{"datasets/telemetry/latest?device=d-1&format=ndjson", 200, `"seq":1152921504606847004`},
		{"datasets/telemetry/latest?format=csv", 200, "1152921504606847003,6.75"},
		{"datasets/telemetry/rows?columns=seq&device=d-0&from=2026-11-28T12:00:02Z&to=2026-11-28T12:00:04Z", 200, "[{\"seq\":1152921504606846982},\n{\"seq\":1152921504606846985}]\n"},
		{fmt.Sprintf("datasets/telemetry/rows?columns=seq&device=d-0&from=%d&newest=true&limit=1", noon.UnixMilli()), 200, "[{\"seq\":1152921504606847003}]\n"},
		{"datasets/telemetry/rows?columns=nothing", 400, "no column nothing"},
		{"datasets/telemetry/rows?from=yesterday", 400, "want a time such as"},
		{"datasets/telemetry/rows?from=1h&to=2h", 400, "is not before"},
		{"datasets/telemetry/rows?page=x", 400, "Link"},
		{"datasets/nothing/rows", 404, "there are telemetry"},
		{"datasets/telemetry_1m/rows", 404, "is a roll-up of dataset telemetry"},
		{"datasets/telemetry/aggregate?every=5s&by=device&value=celsius:max,count&device=d-0&value=seq:min", 200, `[{"time":"2026-11-28T12:00:00Z","device":"d-0","celsius_max":3,"celsius_count":5,"seq_min":1152921504606846976},` + "\n" + `{"time":"2026-11-28T12:00:05Z","device":"d-0","celsius_max":6.75,"celsius_count":5,"seq_min":1152921504606846991}]` + "\n"},
		{"datasets/telemetry/aggregate?value=kind:avg", 400, "which is no number"},
		{"datasets/telemetry/aggregate", 400, "value is missing"},
		{"datasets/telemetry/aggregate?every=1ms&value=celsius:avg", 400, "whole seconds"},
		{"datasets/telemetry", 200, `"rows":30`},
		{"datasets", 200, `"rollups":["telemetry_1m"]`},
		{"datasets/nothing", 404, "no dataset nothing"},
		{"traces/" + trace, 200, `"dataset":"telemetry"`},
		{"traces/" + strings.Repeat("ab", 16), 200, "[]\n"},
		{"traces/x", 400, ""},
	} {
		w := a.get(c.path)
		body := w.Body.String()
		if whole := strings.HasPrefix(c.want, "["); w.Code != c.status || whole && body != c.want || !whole && !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s; want %d and %s", c.path, w.Code, body, c.status, c.want)
		}
		if kind := w.Header().Get("Content-Type"); c.status >= 400 && kind != "application/problem+json" {
			t.Errorf("%s: a problem of type %s", c.path, kind)
		}
	}
}

func TestAQueryIsPosted(t *testing.T) {
	a := newAsked(t, 9)
	for _, c := range []struct {
		body   string
		status int
		want   string
	}{
		{`{"sql": "SELECT count(*) AS n FROM telemetry WHERE seq > $1 AND celsius <= $2 AND device <> $3", "args": [1152921504606846978, 1.75, "d-1"]}`, 200, `[{"n":3}]` + "\n"},
		{`{"sql": "SELECT $1::BOOLEAN AS b, $2::VARCHAR AS n", "args": [true, null]}`, 200, `[{"b":true,"n":null}]` + "\n"},
		{`{"sql": "SELECT $1", "args": [[1]]}`, 400, "args: 1: want a text"},
		{`{"sql": "SELECT $1 AS a"}`, 400, "1 parameters ($1, $2, …), and 0 arguments came"},
		{`{"sql": "SELECT 1 AS a", "args": [1]}`, 400, "0 parameters"},
		{`{"sgl": "SELECT 1"}`, 400, "sgl"},
		{`{"sql": "SELECT 1", "limit": -1}`, 400, "want 1 to"},
		{`{`, 400, "read the query"},
	} {
		w := a.do(http.MethodPost, "query", c.body)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: %d %s; want %d and %s", c.body, w.Code, w.Body, c.status, c.want)
		}
	}
}

func TestWhatIsLeftOutIsTold(t *testing.T) {
	a := newAsked(t, 30)
	for path, want := range map[string][2]string{
		sql("SELECT 1 FROM telemetry") + "&limit=29":                  {"29", "true"},
		sql("SELECT 1 FROM telemetry") + "&limit=30":                  {"30", ""},
		"datasets/telemetry/aggregate?value=seq:max&every=1s&limit=9": {"9", "true"},
		"datasets/telemetry/rows?limit=29&format=csv":                 {"29", "true"},
		"datasets/telemetry/rows?limit=30&format=arrow":               {"30", ""},
	} {
		w := a.get(path)
		if got := [2]string{w.Header().Get(rowsHeader), w.Header().Get(truncatedHeader)}; w.Code != 200 || got != want {
			t.Errorf("%s: %d, rows and truncated %v; want %v", path, w.Code, got, want)
		}
	}
}

func TestPagesFollowTheirLink(t *testing.T) {
	a := newAsked(t, 30)
	for _, newest := range []string{"", "&newest=true"} {
		path, seen := "datasets/telemetry/rows?columns=seq&format=csv&from=2026-11-28&limit=7"+newest, map[string]bool{}
		for pages := 0; path != ""; pages++ {
			w := a.get(path)
			if w.Code != 200 || pages > 30 {
				t.Fatalf("%s: %d %s", path, w.Code, w.Body)
			}
			list, err := csv.NewReader(w.Body).ReadAll()
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range list[1:] {
				if seen[row[0]] {
					t.Errorf("row %s comes twice", row[0])
				}
				seen[row[0]] = true
			}
			link := w.Header().Get("Link")
			path = ""
			if link != "" {
				target, rel, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
				if rel != `; rel="next"` {
					t.Fatalf("link %s", link)
				}
				path = strings.TrimPrefix(target, "/api/v1/data/")
			}
		}
		if len(seen) != 30 {
			t.Errorf("%d rows on the pages, want 30", len(seen))
		}
	}
}

// TestRowsOfOneMessageStandOnOnePage loads messages that a pipeline has made several rows each.
func TestRowsOfOneMessageStandOnOnePage(t *testing.T) {
	a := newAsked(t, 0)
	var list []storage.Row
	for m := range 4 {
		id := message.NewID(noon)
		for i := range 5 {
			list = append(list, storage.Row{Time: noon, Device: "d", Subject: "s", Message: id, Recorded: noon, Values: []any{int64(m*5 + i), nil, nil, nil, nil}})
		}
	}
	if _, err := a.store.Load(t.Context(), &storage.Batch{Table: "telemetry", Rows: list}); err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{1, 5, 7, 12} { // fewer than one message's, the same, more
		seen := map[any]bool{}
		span := storage.Span{Limit: limit}
		for pages := 0; ; pages++ {
			p, err := read(t.Context(), a.store, "telemetry", span, []string{"seq"}, heldMax)
			if err != nil || pages > 20 {
				t.Fatal(err, pages)
			}
			for _, row := range p.rows {
				if seen[row[0]] {
					t.Errorf("limit %d: row %v comes twice", limit, row)
				}
				seen[row[0]] = true
			}
			if p.next.IsZero() {
				break
			}
			span.After = p.next
		}
		if len(seen) != 20 {
			t.Errorf("limit %d: %d rows, want 20", limit, len(seen))
		}
	}
}

func TestEachFormatIsReadByOthers(t *testing.T) {
	a := newAsked(t, 3)
	const path = "datasets/telemetry/rows"
	for accept, media := range map[string]string{
		"":                     "application/json",
		"text/html, */*;q=0.8": "application/json",
		"application/x-ndjson": "application/x-ndjson",
		"application/jsonl, application/json;q=0.5": "application/x-ndjson",
		"text/csv": "text/csv; charset=utf-8",
		"text/csv;q=0.1, application/vnd.apache.arrow.stream": "application/vnd.apache.arrow.stream",
	} {
		if w := a.get(path, "Accept", accept); w.Header().Get("Content-Type") != media {
			t.Errorf("accept %q: %s, want %s", accept, w.Header().Get("Content-Type"), media)
		}
	}
	csvs, err := csv.NewReader(a.get(path + "?format=csv").Body).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(csvs[0]), "[time device subject trace_id message_id recorded seq celsius kind rest raw]"; got != want {
		t.Errorf("names %s, want %s", got, want)
	}
	for _, got := range csvs[1:] { // ids of one moment have no order
		if got[1] == "d-0" {
			csvs[1] = got
		}
	}
	if got := csvs[1]; got[0] != "2026-11-28T12:00:00Z" || got[6] != "1152921504606846976" || got[8] != "a \"b\", c\nd" || got[9] != `{"big":9007199254740993,"list":[9223372036854775807]}` || got[10] != "AP8=" {
		t.Errorf("row %q", got) // Go's reader makes CRLF within a field LF
	}
	raw := a.get(path + "?format=csv").Body.String()
	if !strings.Contains(raw, "\"a \"\"b\"\", c\r\nd\"") || !strings.Contains(raw, ",,,\"\",,\r\n") {
		t.Errorf("a text with all that is special, an empty one, and null: %q", raw)
	}
	var rows []map[string]any
	if err := json.Unmarshal(a.get(path).Body.Bytes(), &rows); err != nil || len(rows) != 3 {
		t.Errorf("%d objects of JSON: %v", len(rows), err)
	}
	r, err := ipc.NewReader(bytes.NewReader(a.get(path + "?format=arrow").Body.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	n := 0
	for r.Next() {
		b := r.RecordBatch()
		for i := range int(b.NumRows()) {
			seq := b.Column(6).(*array.Int64)
			if n++; b.Column(1).(*array.String).Value(i) == "d-2" && (seq.Value(i) != 1<<60+2 || b.Column(0).(*array.Timestamp).Value(i).ToTime(arrow.Microsecond) != noon) {
				t.Errorf("row of d-2: %v", b)
			}
			if b.Column(1).(*array.String).Value(i) == "d-1" != seq.IsNull(i) {
				t.Errorf("nulls: %v", b)
			}
		}
	}
	if r.Err() != nil || n != 3 {
		t.Errorf("%d rows of Arrow: %v", n, r.Err())
	}
}

func TestALargeAnswerIsWholeOrRefused(t *testing.T) {
	a := newAsked(t, 3)
	w := a.get(sql("SELECT i, repeat('x', 1000) AS x FROM range(5000) AS r(i) ORDER BY i") + "&format=ndjson") // by way of a file
	lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n")
	if len(lines) != 5000 || !strings.HasPrefix(lines[4999], `{"i":4999,"x":"xxx`) || w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
		t.Errorf("%d lines, %d bytes, Content-Length %s", len(lines), w.Body.Len(), w.Header().Get("Content-Length"))
	}
	a.rig.Stop()
	a.rig.Config[Name] = json.RawMessage(`{"answer_max": 1048576}`)
	hub := storage.NewHub()
	hub.Set(a.store, nil)
	a.rig.Start(With(hub, sceptic))
	a.rig.Running(Name)
	if w := a.get(sql("SELECT i, repeat('x', 1000) AS x FROM range(5000) AS r(i)")); w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), "1048576") {
		t.Errorf("an answer beyond the limit: %d %.200s", w.Code, w.Body)
	}
}

// TestWhatIsHeldInMemoryIsBounded asks for few rows that are large.
func TestWhatIsHeldInMemoryIsBounded(t *testing.T) {
	a := newAsked(t, 0)
	var list []storage.Row
	for i := range 40 {
		list = append(list, storage.Row{Time: noon, Device: "d", Subject: "s", Message: message.NewID(noon), Recorded: noon, Values: []any{int64(i), nil, strings.Repeat("x", 100_000), nil, nil}})
	}
	if _, err := a.store.Load(t.Context(), &storage.Batch{Table: "telemetry", Rows: list}); err != nil {
		t.Fatal(err)
	}
	a.rig.Stop()
	a.rig.Config[Name] = json.RawMessage(`{"answer_max": 1048576}`)
	hub := storage.NewHub()
	hub.Set(a.store, nil)
	a.rig.Start(With(hub, sceptic))
	a.rig.Running(Name)
	for _, body := range []string{`{"targets":[{"refId":"A","target":"sql","payload":{"sql":"SELECT kind FROM telemetry"}}]}`, `{"payload":{"target":"SELECT kind FROM telemetry"}}`} {
		path := "grafana/query"
		if strings.HasPrefix(body, `{"payload`) {
			path = "grafana/variable"
		}
		if w := a.do(http.MethodPost, path, body); w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), "more than 1048576 bytes") {
			t.Errorf("%s answers %d with %d bytes: %.200s", path, w.Code, w.Body.Len(), w.Body)
		}
	}
	seen := map[string]bool{}
	pages := 0
	for path := "datasets/telemetry/rows?format=csv&columns=seq,kind"; path != ""; pages++ { // a page has what fits
		w := a.get(path)
		if w.Code != 200 || pages > 40 {
			t.Fatalf("page %d: %d %.200s", pages, w.Code, w.Body)
		}
		rows, err := csv.NewReader(w.Body).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows[1:] {
			seen[row[0]] = true
		}
		next, _, _ := strings.Cut(strings.TrimPrefix(w.Header().Get("Link"), "<"), ">")
		path = strings.TrimPrefix(next, "/api/v1/data/")
	}
	if len(seen) != 40 || pages < 8 {
		t.Errorf("%d rows on %d pages; want 40, on more than 7", len(seen), pages)
	}
}

func TestAnExportIsAFileOfParquet(t *testing.T) {
	a := newAsked(t, 30)
	w := a.get("datasets/telemetry/export?from=2026-11-28T12:00:05Z")
	b := w.Body.Bytes()
	if w.Code != 200 || len(b) < 8 || string(b[:4]) != "PAR1" || string(b[len(b)-4:]) != "PAR1" || w.Header().Get(rowsHeader) != "15" {
		t.Errorf("%d, %d bytes, %v", w.Code, len(b), w.Header())
	}
	left, err := filepath.Glob(filepath.Join(a.rig.Dir, Name, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("an export leaves %v, %v", left, err)
	}
	if w := a.get("datasets/nothing/export"); w.Code != 404 {
		t.Errorf("export of no dataset: %d", w.Code)
	}
	if err := os.MkdirAll(filepath.Join(a.rig.Dir, Name, "export-1"), 0o700); err != nil { // as a killed process leaves it
		t.Fatal(err)
	}
	a.rig.Stop()
	a.rig.Start(With(storage.NewHub(), sceptic))
	a.rig.Running(Name)
	if left, _ := filepath.Glob(filepath.Join(a.rig.Dir, Name, "*")); len(left) > 0 {
		t.Errorf("what a killed one left stays: %v", left)
	}
}

func TestWithoutADatabaseItSaysSo(t *testing.T) {
	r := componenttest.New(t)
	hub := storage.NewHub()
	hub.Set(nil, fmt.Errorf("the disk is on fire"))
	r.Start(With(hub, sceptic))
	r.Running(Name)
	w := httptest.NewRecorder()
	r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/data/traces/"+trace, nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "the disk is on fire") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
