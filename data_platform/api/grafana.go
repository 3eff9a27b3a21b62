package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/internal/answer"
)

// What Grafana's JSON data source (simpod) asks for. A metric is a column of a dataset, `telemetry.celsius`, drawn as a line
// for each device, or `sql`, whose answer is a table. Grafana's Infinity data source needs nothing of this: it reads the rows
// of the other paths.

func (a *api) grafana() []component.Route {
	return []component.Route{
		{Pattern: "GET /api/v1/data/grafana", Handler: answer.Func(a.grafanaTest)},
		{Pattern: "GET /api/v1/data/grafana/{$}", Handler: answer.Func(a.grafanaTest)},
		{Pattern: "POST /api/v1/data/grafana/metrics", Handler: answer.Func(a.grafanaMetrics)},
		{Pattern: "POST /api/v1/data/grafana/metric-payload-options", Handler: answer.Func(a.grafanaOptions)},
		{Pattern: "POST /api/v1/data/grafana/query", Handler: answer.Func(a.grafanaQuery)},
		{Pattern: "POST /api/v1/data/grafana/variable", Handler: answer.Func(a.grafanaVariable)},
		{Pattern: "POST /api/v1/data/grafana/tag-keys", Handler: answer.Func(a.grafanaTagKeys)},
		{Pattern: "POST /api/v1/data/grafana/tag-values", Handler: answer.Func(a.grafanaTagValues)},
	}
}

const (
	grafanaSQL = "sql" // the metric
	// pointsMax bounds the points of one panel; a screen shows a few thousand.
	pointsMax = 200_000
	// choices bounds lists to choose from.
	choices = 10_000
)

func (a *api) grafanaTest(_ http.ResponseWriter, r *http.Request) (any, error) {
	s, err := a.store(r)
	if err != nil {
		return nil, err
	}
	return map[string]string{"database": s.Engine()}, nil
}

type choice struct {
	Label string `json:"label"`
	Value string `json:"value"`
}

type metric struct {
	choice
	Payloads []payload `json:"payloads"`
}

type payload struct {
	Label       string   `json:"label"`
	Name        string   `json:"name"`
	Type        string   `json:"type"`
	Placeholder string   `json:"placeholder,omitempty"`
	Width       int      `json:"width,omitempty"`
	Options     []choice `json:"options,omitempty"`
}

func (a *api) grafanaMetrics(_ http.ResponseWriter, r *http.Request) (any, error) {
	s, err := a.store(r)
	if err != nil {
		return nil, err
	}
	tables, err := s.Tables(r.Context())
	if err != nil {
		return nil, err
	}
	list := []metric{{choice{"SQL", grafanaSQL}, []payload{{Label: "SQL", Name: "sql", Type: "textarea", Placeholder: "SELECT time, device, celsius FROM telemetry WHERE time >= $1 AND time < $2"}}}}
	set := a.book.Set()
	for _, t := range tables {
		for _, c := range t.Columns {
			if c.Type != storage.Int && c.Type != storage.Double && c.Type != storage.Bool {
				continue
			}
			label := t.Name + "." + c.Name
			if set != nil {
				if d := set.Datasets[t.Name]; d != nil && d.Column(c.Name) != nil && d.Column(c.Name).Unit != "" {
					label += " (" + d.Column(c.Name).Unit + ")"
				}
			}
			functions := []choice{{"average", "avg"}, {"least", "min"}, {"most", "max"}, {"sum", "sum"}, {"count", "count"}}
			if c.Type == storage.Bool {
				functions = functions[4:]
			}
			list = append(list, metric{choice{label, t.Name + "." + c.Name}, []payload{
				{Label: "Function", Name: "function", Type: "select", Options: functions},
				{Label: "Lines", Name: "by", Type: "select", Options: []choice{{"one for each device", "device"}, {"one", "none"}}},
				{Label: "Device", Name: "device", Type: "select", Placeholder: "all"},
			}})
		}
	}
	return list, nil
}

func (a *api) grafanaOptions(w http.ResponseWriter, r *http.Request) (any, error) {
	var in struct {
		Metric string `json:"metric"`
		Name   string `json:"name"`
	}
	if err := lenient(w, r, &in); err != nil {
		return nil, err
	}
	table, _, _ := strings.Cut(in.Metric, ".")
	if in.Name != "device" {
		return []choice{}, nil
	}
	devices, err := a.devices(w, r, table)
	if err != nil {
		return nil, err
	}
	list := []choice{{"all", ""}}
	for _, d := range devices {
		list = append(list, choice{d, d})
	}
	return list, nil
}

// lenient decodes what Grafana sends: more than is looked at.
func lenient(w http.ResponseWriter, r *http.Request, v any) error {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMax)).Decode(v); err != nil {
		return answer.Bad(fmt.Errorf("read what Grafana asks: %w", err))
	}
	return nil
}

// devices are those of a table.
func (a *api) devices(w http.ResponseWriter, r *http.Request, table string) (list []string, err error) {
	rows, err := a.few(w, r, func(s storage.Store) (*storage.Result, error) {
		return s.Aggregate(r.Context(), table, storage.Aggregation{By: []string{"device"}, Values: []storage.RollupValue{{Column: "device", Functions: []string{"count"}}}, Span: storage.Span{Limit: choices}})
	})
	if err != nil {
		return nil, err
	}
	for _, row := range rows.list {
		if d, ok := row[0].(string); ok {
			list = append(list, d)
		}
	}
	slices.Sort(list)
	return list, nil
}

// answered are rows in memory.
type answered struct {
	columns   []storage.Column
	list      [][]any
	truncated bool
}

// few asks for rows that are not too many to be held.
func (a *api) few(w http.ResponseWriter, r *http.Request, f func(s storage.Store) (*storage.Result, error)) (*answered, error) {
	s, end, err := a.open(w, r, a.heavy)
	if err != nil {
		return nil, err
	}
	defer end()
	result, err := f(s)
	if err != nil {
		return nil, a.fault(w, r, s, err)
	}
	out := &answered{columns: result.Columns}
	left := a.held()
	for row, err := range result.Rows() {
		if left -= weight(row); err == nil && left < 0 {
			err = &tooLarge{a.held()}
		}
		if err != nil {
			return nil, a.fault(w, r, s, err)
		}
		out.list = append(out.list, slices.Clone(row))
	}
	out.truncated = result.Truncated
	return out, nil
}

type timeRange struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

func (a *api) grafanaQuery(w http.ResponseWriter, r *http.Request) (any, error) {
	var in struct {
		Range    timeRange `json:"range"`
		Interval int64     `json:"intervalMs"`
		Targets  []struct {
			RefID   string          `json:"refId"`
			Target  string          `json:"target"`
			Hide    bool            `json:"hide"`
			Payload json.RawMessage `json:"payload"`
		} `json:"targets"`
		Filters []struct {
			Key      string `json:"key"`
			Operator string `json:"operator"`
			Value    string `json:"value"`
		} `json:"adhocFilters"`
	}
	if err := lenient(w, r, &in); err != nil {
		return nil, err
	}
	device := ""
	for _, f := range in.Filters {
		if f.Key != "device" || f.Operator != "=" {
			return nil, answer.Bad(fmt.Errorf("filter %s %s %s: only device = … is known here; ask by SQL for others", f.Key, f.Operator, f.Value))
		}
		device = f.Value
	}
	out := []any{}
	for _, t := range in.Targets {
		if t.Hide || t.Target == "" {
			continue
		}
		p := drawn{Function: "avg", By: "device", Device: device}
		if len(t.Payload) > 0 && string(t.Payload) != `""` {
			if err := json.Unmarshal(t.Payload, &p); err != nil {
				return nil, answer.Bad(fmt.Errorf("payload of %s: %w", t.Target, err))
			}
		}
		var list []any
		var err error
		if t.Target == grafanaSQL {
			list, err = a.grafanaTable(w, r, t.RefID, in.Range, &p)
		} else {
			list, err = a.grafanaSeries(w, r, t.Target, in.Range, in.Interval, &p)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// drawn is a target's payload.
type drawn struct {
	SQL      string `json:"sql"`
	Function string `json:"function"`
	By       string `json:"by"`
	Device   string `json:"device"`
}

type series struct {
	Target string   `json:"target"`
	Points [][2]any `json:"datapoints"`
}

func (a *api) grafanaSeries(w http.ResponseWriter, r *http.Request, target string, span timeRange, interval int64, p *drawn) ([]any, error) {
	table, column, ok := strings.Cut(target, ".")
	if !ok {
		return nil, answer.Bad(fmt.Errorf("metric %s: want dataset.column, such as telemetry.celsius, or sql", target))
	}
	every := max((time.Duration(interval)*time.Millisecond + time.Second - 1).Truncate(time.Second), time.Second)
	g := storage.Aggregation{Every: every, Values: []storage.RollupValue{{Column: column, Functions: []string{p.Function}}},
		Span: storage.Span{Device: p.Device, From: span.From, To: span.To, Limit: pointsMax}}
	switch p.By {
	case "device":
		g.By = []string{"device"}
	case "none", "":
	default:
		return nil, answer.Bad(fmt.Errorf("by: %q: want device or none", p.By))
	}
	rows, err := a.few(w, r, func(s storage.Store) (*storage.Result, error) { return s.Aggregate(r.Context(), table, g) })
	if err != nil {
		return nil, err
	}
	if rows.truncated {
		return nil, answer.Bad(fmt.Errorf("%s has more than %d points; narrow the time, or name a device", target, pointsMax))
	}
	list, of := []any{}, map[string]*series{}
	for _, row := range rows.list {
		name := target
		if len(g.By) > 0 {
			name = fmt.Sprint(row[1])
			if row[1] == nil {
				name = "(no device)"
			}
		}
		s := of[name]
		if s == nil {
			s = &series{Target: name}
			of[name] = s
			list = append(list, s)
		}
		value, err := appendJSON(nil, row[len(row)-1])
		if err != nil {
			return nil, err
		}
		s.Points = append(s.Points, [2]any{json.RawMessage(value), row[0].(time.Time).UnixMilli()})
	}
	return list, nil
}

// grafanaTypes are Grafana's words for what a column is.
var grafanaTypes = map[storage.Type]string{storage.Time: "time", storage.Int: "number", storage.Double: "number", storage.Bool: "boolean"}

func (a *api) grafanaTable(w http.ResponseWriter, r *http.Request, ref string, span timeRange, p *drawn) ([]any, error) {
	q := queried{SQL: p.SQL, Limit: queryRows}
	for n, at := range map[int]time.Time{1: span.From, 2: span.To} { // $1 is from, $2 is to, where the query asks for them
		if strings.Contains(p.SQL, "$"+strconv.Itoa(n)) {
			for len(q.Args) < n {
				q.Args = append(q.Args, nil)
			}
			q.Args[n-1] = at.UTC().Format(time.RFC3339Nano)
		}
	}
	if len(q.Args) == 2 && q.Args[0] == nil {
		return nil, answer.Bad(errors.New("the query has $2, the end of the time shown, and not $1, its beginning; name both"))
	}
	l, err := a.limits(&q)
	if err != nil {
		return nil, err
	}
	rows, err := a.few(w, r, func(s storage.Store) (*storage.Result, error) { return s.Query(r.Context(), q.SQL, q.Args, l) })
	if err != nil {
		return nil, err
	}
	if rows.truncated {
		return nil, answer.Bad(fmt.Errorf("the query of %s gives more than %d rows; ask for less, or say LIMIT", ref, queryRows))
	}
	type column struct {
		Text string `json:"text"`
		Type string `json:"type"`
	}
	table := struct {
		Type    string   `json:"type"`
		Columns []column `json:"columns"`
		Rows    [][]any  `json:"rows"`
	}{Type: "table", Rows: [][]any{}}
	for _, c := range rows.columns {
		kind := grafanaTypes[c.Type]
		if kind == "" {
			kind = "string"
		}
		table.Columns = append(table.Columns, column{c.Name, kind})
	}
	for _, row := range rows.list {
		for i, v := range row {
			if at, ok := v.(time.Time); ok {
				row[i] = at.UnixMilli()
				continue
			}
			raw, err := appendJSON(nil, v)
			if err != nil {
				return nil, err
			}
			if rows.columns[i].Type == storage.JSON && v != nil { // Grafana shows texts
				raw = appendText(nil, string(raw))
			}
			row[i] = json.RawMessage(raw)
		}
		table.Rows = append(table.Rows, row)
	}
	return []any{table}, nil
}

// grafanaVariable gives the devices of a dataset that is named, or the first column of a query.
func (a *api) grafanaVariable(w http.ResponseWriter, r *http.Request) (any, error) {
	var in struct {
		Payload struct {
			Target string `json:"target"`
		} `json:"payload"`
	}
	if err := lenient(w, r, &in); err != nil {
		return nil, err
	}
	type variable struct {
		Text  string `json:"__text"`
		Value string `json:"__value"`
	}
	list := []variable{}
	if words := strings.Fields(in.Payload.Target); len(words) == 1 {
		devices, err := a.devices(w, r, words[0])
		if err != nil {
			return nil, err
		}
		for _, d := range devices {
			list = append(list, variable{d, d})
		}
		return list, nil
	}
	rows, err := a.few(w, r, func(s storage.Store) (*storage.Result, error) {
		return s.Query(r.Context(), in.Payload.Target, nil, storage.Limits{Rows: choices, Timeout: a.timeout})
	})
	if err != nil {
		return nil, err
	}
	for _, row := range rows.list {
		if row[0] == nil { // nothing to choose
			continue
		}
		v := variable{spoken(row[0]), spoken(row[0])}
		if len(row) > 1 && row[1] != nil {
			v.Value = spoken(row[1])
		}
		list = append(list, v)
	}
	return list, nil
}

// spoken is a value as a person chooses it: as in JSON, and a text or a time without its quotes.
func spoken(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	}
	raw, err := appendJSON(nil, v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(raw)
}

func (a *api) grafanaTagKeys(http.ResponseWriter, *http.Request) (any, error) {
	return []map[string]string{{"type": "string", "text": "device"}}, nil
}

// grafanaTagValues gives the devices of all datasets.
func (a *api) grafanaTagValues(w http.ResponseWriter, r *http.Request) (any, error) {
	var in struct {
		Key string `json:"key"`
	}
	if err := lenient(w, r, &in); err != nil {
		return nil, err
	}
	list := []map[string]string{}
	if in.Key != "device" {
		return list, nil
	}
	s, err := a.store(r)
	if err != nil {
		return nil, err
	}
	tables, err := s.Tables(r.Context())
	if err != nil {
		return nil, err
	}
	all := map[string]bool{}
	for _, t := range tables {
		devices, err := a.devices(w, r, t.Name)
		if err != nil {
			return nil, err
		}
		for _, d := range devices {
			if !all[d] && len(list) < choices {
				list = append(list, map[string]string{"text": d})
			}
			all[d] = true
		}
	}
	return list, nil
}
