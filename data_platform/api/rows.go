package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/internal/when"
	"github.com/naru-platform/naru/message"
)

func (a *api) rows() []component.Route {
	return []component.Route{
		{Pattern: "GET /api/v1/data/datasets", Handler: answer.Func(a.datasets)},
		{Pattern: "GET /api/v1/data/datasets/{name}", Handler: answer.Func(a.dataset)},
		{Pattern: "GET /api/v1/data/datasets/{name}/latest", Handler: answer.Func(a.latest)},
		{Pattern: "GET /api/v1/data/datasets/{name}/rows", Handler: answer.Func(a.page)},
		{Pattern: "GET /api/v1/data/datasets/{name}/aggregate", Handler: answer.Func(a.aggregate)},
		{Pattern: "GET /api/v1/data/datasets/{name}/export", Handler: answer.Func(a.export)},
		{Pattern: "GET /api/v1/data/query", Handler: answer.Func(a.query)},
		{Pattern: "POST /api/v1/data/query", Handler: answer.Func(a.query)},
		{Pattern: "GET /api/v1/data/traces/{trace}", Handler: answer.Func(a.trace)},
	}
}

// number reads a number of the request, from 1 to most; otherwise where it does not say.
func number(r *http.Request, name string, otherwise, most int) (int, error) {
	s := r.FormValue(name)
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most {
		return 0, answer.Bad(fmt.Errorf("%s=%s: want a number from 1 to %d", name, s, most))
	}
	return n, nil
}

func yes(r *http.Request, name string) (bool, error) {
	switch s := r.FormValue(name); s {
	case "", "0", "false":
		return false, nil
	case "1", "true":
		return true, nil
	default:
		return false, answer.Bad(fmt.Errorf("%s=%s: want true or false", name, s))
	}
}

// list reads names that stand behind commas.
func list(r *http.Request, name string) (names []string) {
	for _, s := range r.Form[name] {
		for _, n := range strings.Split(s, ",") {
			if n = strings.TrimSpace(n); n != "" {
				names = append(names, n)
			}
		}
	}
	return names
}

// span reads device, from, to, newest and limit.
func (a *api) span(r *http.Request, limit, most int) (s storage.Span, err error) {
	if err := r.ParseForm(); err != nil {
		return s, answer.Bad(err)
	}
	now := a.env.Now()
	s.Device = r.FormValue("device")
	for name, into := range map[string]*time.Time{"from": &s.From, "to": &s.To} {
		if *into, err = when.Parse(r.FormValue(name), now); err != nil {
			return s, answer.Bad(fmt.Errorf("%s=%s: %w", name, r.FormValue(name), err))
		}
	}
	if !s.From.IsZero() && !s.To.IsZero() && !s.From.Before(s.To) {
		return s, answer.Bad(fmt.Errorf("from=%s is not before to=%s", s.From.Format(time.RFC3339), s.To.Format(time.RFC3339)))
	}
	if s.Newest, err = yes(r, "newest"); err != nil {
		return s, err
	}
	s.Limit, err = number(r, "limit", limit, most)
	return s, err
}

func (a *api) latest(w http.ResponseWriter, r *http.Request) (any, error) {
	return nil, a.ask(w, r, a.light, func(s storage.Store) (*storage.Result, error) {
		return s.Latest(r.Context(), r.PathValue("name"), r.FormValue("device"))
	})
}

const (
	pageRows = 1000
	pageMax  = 10_000
)

// page answers with rows by time, and says in a Link where the next ones are.
func (a *api) page(w http.ResponseWriter, r *http.Request) (any, error) {
	span, err := a.span(r, pageRows, pageMax)
	if err != nil {
		return nil, err
	}
	if span.After, err = placeOf(r.FormValue("page")); err != nil {
		return nil, err
	}
	columns := list(r, "columns")
	format, err := formatOf(r)
	if err != nil {
		return nil, err
	}
	s, end, err := a.open(w, r, a.light)
	if err != nil {
		return nil, err
	}
	defer end()
	p, err := read(r.Context(), s, r.PathValue("name"), span, columns, a.held()/2) // half, since names and what is between take their part
	if err != nil {
		return nil, a.fault(w, r, s, err)
	}
	out := a.spool()
	defer out.close()
	e, err := format.begin(out, p.columns)
	if err != nil {
		return nil, err
	}
	for _, row := range p.rows {
		if err := e.row(row); err != nil {
			return nil, a.fault(w, r, s, err)
		}
	}
	if err := e.end(); err != nil {
		return nil, a.fault(w, r, s, err)
	}
	if !p.next.IsZero() {
		q := r.URL.Query()
		q.Set("page", fmt.Sprintf("%d.%s", p.next.Time.UnixMicro(), p.next.Message))
		for name, at := range map[string]time.Time{"from": span.From, "to": span.To} {
			if !at.IsZero() { // the next page must not have moved on with the clock
				q.Set(name, at.UTC().Format(time.RFC3339Nano))
			}
		}
		w.Header().Set("Link", "<"+(&url.URL{Path: r.URL.Path, RawQuery: q.Encode()}).String()+`>; rel="next"`)
	}
	a.send(w, out, format, len(p.rows), !p.next.IsZero())
	return nil, nil
}

func placeOf(s string) (p storage.Place, err error) {
	if s == "" {
		return p, nil
	}
	micro, id, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(micro, 10, 64)
	if err == nil {
		p.Time = time.UnixMicro(n).UTC()
		p.Message, err = message.ParseID(id)
	}
	if err != nil {
		return p, answer.Bad(fmt.Errorf("page=%s: want what the Link of the page before says", s))
	}
	return p, nil
}

// paged are the rows of one page.
type paged struct {
	columns []storage.Column
	rows    [][]any
	next    storage.Place // behind which the next page begins; zero where there is none
}

// read reads a page, which has about so many bytes at most. Rows that one message was made share a place, and stand on one page, since the
// next one begins behind a place: a page may so have a few rows less than its limit, or more where one message was made more than that.
func read(ctx context.Context, s storage.Store, dataset string, span storage.Span, columns []string, bytes int64) (*paged, error) {
	span.Columns = columns
	place := []int{0, 4} // of time and message_id among storage.System
	if len(columns) > 0 {
		span.Columns = append(slices.Clone(columns), "time", "message_id")
		place = []int{len(columns), len(columns) + 1}
	}
	limit := span.Limit
	for most := limit; most <= 64*pageMax; most *= 2 {
		span.Limit = most + 1 // one more, to see whether the last place has ended
		result, err := s.Range(ctx, dataset, span)
		if err != nil {
			return nil, err
		}
		p := &paged{columns: result.Columns}
		if len(columns) > 0 {
			p.columns = p.columns[:len(columns)]
		}
		var places []storage.Place
		left, full := bytes, false
		for row, err := range result.Rows() {
			if err != nil {
				return nil, err
			}
			id, err := message.ParseID(fmt.Sprint(row[place[1]]))
			if err != nil {
				return nil, fmt.Errorf("message_id of a row: %w", err)
			}
			places = append(places, storage.Place{Time: row[place[0]].(time.Time), Message: id})
			p.rows = append(p.rows, slices.Clone(row[:len(p.columns)]))
			if left -= weight(row); left < 0 {
				full = true
				break
			}
		}
		end := most // where another place begins
		if full {
			end = min(end, len(p.rows)-1)
		} else if len(p.rows) <= most {
			return p, nil
		}
		for end > 0 && places[end] == places[end-1] {
			end--
		}
		if end > 0 {
			p.rows, p.next = p.rows[:end], places[end-1]
			return p, nil
		}
		if full {
			return nil, &tooLarge{bytes}
		}
	}
	return nil, &storage.RefusedError{Why: fmt.Sprintf("one message was made more than %d rows; ask for them by SQL", 64*pageMax)}
}

// aggregateRows is how many rows an aggregate gives where nobody says, and rowsMax how many any answer may have.
const (
	aggregateRows = 10_000
	queryRows     = 10_000
	rowsMax       = 1_000_000
)

func (a *api) aggregate(w http.ResponseWriter, r *http.Request) (any, error) {
	span, err := a.span(r, aggregateRows, rowsMax)
	if err != nil {
		return nil, err
	}
	g := storage.Aggregation{Span: span, By: list(r, "by")}
	if s := r.FormValue("every"); s != "" {
		if g.Every, err = time.ParseDuration(s); err != nil || g.Every < time.Second {
			return nil, answer.Bad(fmt.Errorf("every=%s: want a time of whole seconds such as 5m", s))
		}
	}
	if g.Values, err = valuesOf(r.Form["value"]); err != nil {
		return nil, err
	}
	return nil, a.ask(w, r, a.heavy, func(s storage.Store) (*storage.Result, error) {
		return s.Aggregate(r.Context(), r.PathValue("name"), g)
	})
}

// valuesOf reads what is computed: `celsius:avg,max`, as often as there are columns.
func valuesOf(list []string) (values []storage.RollupValue, err error) {
	for _, s := range list {
		column, functions, ok := strings.Cut(s, ":")
		if !ok || column == "" || functions == "" {
			return nil, answer.Bad(fmt.Errorf("value=%s: want a column and functions, such as celsius:avg,max", s))
		}
		values = append(values, storage.RollupValue{Column: column, Functions: strings.Split(functions, ",")})
	}
	if values == nil {
		return nil, answer.Bad(errors.New("value is missing: want a column and functions, such as value=celsius:avg,max"))
	}
	return values, nil
}

// queried is a query as it is posted.
type queried struct {
	SQL     string `json:"sql"`
	Args    []any  `json:"args"`
	Limit   int    `json:"limit"`
	Timeout string `json:"timeout"`
}

func (a *api) query(w http.ResponseWriter, r *http.Request) (any, error) {
	q := queried{Limit: queryRows}
	if r.Method == http.MethodPost {
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMax))
		d.DisallowUnknownFields()
		d.UseNumber()
		if err := d.Decode(&q); err != nil {
			return nil, answer.Bad(fmt.Errorf("read the query: %w; want {\"sql\": …, \"args\": […], \"limit\": 1000, \"timeout\": \"30s\"}", err))
		}
	} else {
		if err := r.ParseForm(); err != nil {
			return nil, answer.Bad(err)
		}
		var err error
		if q.Limit, err = number(r, "limit", queryRows, rowsMax); err != nil {
			return nil, err
		}
		q.SQL, q.Timeout = r.FormValue("sql"), r.FormValue("timeout")
		for _, s := range r.Form["arg"] {
			q.Args = append(q.Args, s)
		}
	}
	l, err := a.limits(&q)
	if err != nil {
		return nil, err
	}
	return nil, a.ask(w, r, a.heavy, func(s storage.Store) (*storage.Result, error) {
		return s.Query(r.Context(), q.SQL, q.Args, l)
	})
}

// limits reads the limits of a query, and makes its arguments what the database takes.
func (a *api) limits(q *queried) (l storage.Limits, err error) {
	if strings.TrimSpace(q.SQL) == "" {
		return l, answer.Bad(errors.New("sql is missing"))
	}
	if q.Limit < 1 || q.Limit > rowsMax {
		return l, answer.Bad(fmt.Errorf("limit: %d: want 1 to %d", q.Limit, rowsMax))
	}
	l = storage.Limits{Rows: q.Limit, Timeout: a.timeout}
	if q.Timeout != "" {
		if l.Timeout, err = time.ParseDuration(q.Timeout); err != nil || l.Timeout <= 0 || l.Timeout > a.timeoutMax {
			return l, answer.Bad(fmt.Errorf("timeout: %q: want a time such as 10s, %v at most (timeout_max of %s)", q.Timeout, a.timeoutMax, Name))
		}
	}
	for i, v := range q.Args {
		switch x := v.(type) {
		case nil, bool, string:
		case json.Number:
			if n, err := x.Int64(); err == nil {
				q.Args[i] = n
			} else if f, err := x.Float64(); err == nil {
				q.Args[i] = f
			} else {
				return l, answer.Bad(fmt.Errorf("args: %d: %s is no number of 64 bits", i+1, x))
			}
		default:
			return l, answer.Bad(fmt.Errorf("args: %d: want a text, a number, true, false or null", i+1))
		}
	}
	return l, nil
}

func (a *api) trace(w http.ResponseWriter, r *http.Request) (any, error) {
	id, err := message.ParseTraceID(r.PathValue("trace"))
	if err != nil {
		return nil, answer.Bad(err)
	}
	s, end, err := a.open(w, r, a.light)
	if err != nil {
		return nil, err
	}
	defer end()
	rows, err := s.ByTrace(r.Context(), id.String())
	if err != nil {
		return nil, a.fault(w, r, s, err)
	}
	if rows == nil {
		rows = []storage.Traced{}
	}
	return rows, nil
}

const exportDir = "export-*" // for a file, until it is sent

// export makes a file of Parquet, and sends it once it is whole.
func (a *api) export(w http.ResponseWriter, r *http.Request) (any, error) {
	span, err := a.span(r, 1, 1)
	if err != nil {
		return nil, err
	}
	if span.Device != "" {
		return nil, answer.Bad(errors.New("device: an export has all devices; ask for rows of one"))
	}
	s, end, err := a.open(w, r, a.files)
	if err != nil {
		return nil, err
	}
	defer end()
	dir, err := a.env.Dir()
	if err != nil {
		return nil, err
	}
	dir, err = os.MkdirTemp(dir, exportDir)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file, name := filepath.Join(dir, "rows.parquet"), r.PathValue("name")
	n, err := s.Export(r.Context(), name, span.From, span.To, file)
	if err != nil {
		return nil, a.fault(w, r, s, err)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Remove(file); err != nil {
		return nil, err
	}
	end() // what is left is the client's time
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	h := w.Header()
	h.Set("Content-Type", "application/vnd.apache.parquet")
	h.Set("Content-Length", strconv.FormatInt(info.Size(), 10))
	h.Set("Content-Disposition", `attachment; filename="`+name+`.parquet"`) // the table is there, so its name is small letters
	h.Set(rowsHeader, strconv.FormatInt(n, 10))
	_, _ = io.Copy(w, f) // the client went; it sees that bytes are missing
	return nil, nil
}
