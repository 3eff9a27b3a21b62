// What an ad-hoc query may be: one SELECT over datasets and their roll-ups, by functions that compute. What a pipeline's step may be: one
// over its input, by functions that compute as well, for however long.

package storage

import (
	"bytes"
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/naru-platform/naru/internal/near"
)

const (
	// queryMax is how long a query may be. People write a few hundred bytes; DuckDB's parser and binder call themselves.
	queryMax = 64 << 10
	// nestedMax is how deep brackets may stand in each other, since a stack that overflows in C++ takes the process along.
	nestedMax = 100
	// repeatedMax bounds how often the parts of a query are said again by names for them (WITH): each level may double the
	// one before, and the planner would write them all out.
	repeatedMax = 1000
	// joinedMax is how many tables one query may name. The planner's time grows faster than their number.
	joinedMax = 100
)

// computing are the functions that a query may call: those of DuckDB that compute something from their arguments. A test
// holds it to what the engine has, so that a new version's functions are looked at.
var computing = sync.OnceValue(func() map[string]bool {
	m := map[string]bool{}
	for _, name := range strings.Fields(functionNames) {
		m[name] = true
	}
	return m
})

//go:embed functions.txt
var functionNames string

// giving are the functions that may stand where a table does.
var giving = []string{"generate_series", "json_each", "json_tree", "range", "regexp_split_to_table", "unnest"}

// slow are functions whose time grows faster than their input, or that work on for as long as they like, in one step that
// nobody can stop.
var slow = map[string]bool{
	"levenshtein": true, "damerau_levenshtein": true, "editdist3": true, "jaccard": true, "jaro_similarity": true, "jaro_winkler_similarity": true,
	"list_transform": true, "array_transform": true, "list_apply": true, "array_apply": true, "apply": true, "list_filter": true, "array_filter": true, "filter": true,
	"list_reduce": true, "array_reduce": true, "reduce": true, "sleep_ms": true, "pg_sleep": true,
}

// sleeping are those of them that do nothing else.
var sleeping = map[string]bool{"sleep_ms": true, "pg_sleep": true}

// sized are functions whose result is as large as an argument says, and which argument that is.
var sized = map[string]int{"repeat": 1, "lpad": 1, "rpad": 1, "bitstring": 1, "list_resize": 1, "array_resize": 1, "bar": 3}

// sizeMax bounds that argument.
const sizeMax = 10_000

// replacedMax bounds what a text is replaced by.
const replacedMax = 1000

// patterns are the functions behind LIKE, ILIKE and GLOB, and what stands for any text in their patterns. DuckDB tries all
// ways to divide a text among these.
var patterns = map[string]string{"~~": "%", "!~~": "%", "~~*": "%", "!~~*": "%", "like_escape": "%", "not_like_escape": "%", "ilike_escape": "%", "not_ilike_escape": "%", "~~~": "*"}

// wildMax is how many may stand in one.
const wildMax = 2

// inspect refuses a query that is not one SELECT over the tables that there are. DuckDB's own parser says what it is; behind
// it stand a transaction that only reads, and a database without access to files and network.
func inspect(ctx context.Context, c *sql.Conn, statement string, tables []string, args []any) error {
	i := &inspector{statement: statement, tables: tables, args: args}
	return i.inspect(ctx, c)
}

// inspectStep refuses a step of a pipeline that is not one SELECT over its input. Who writes one may take time and memory, which are bounded
// otherwise; but no function that does more than to compute: one that sets something sets it for all pipelines, and
// what DuckDB then fails with has been seen to end the process.
func inspectStep(ctx context.Context, c *sql.Conn, statement string) error {
	i := &inspector{statement: statement, tables: []string{"input"}, step: true}
	return i.inspect(ctx, c)
}

func (i *inspector) inspect(ctx context.Context, c *sql.Conn) error {
	if err := shallow(i.statement); err != nil {
		return err
	}
	node, err := parseSelect(ctx, c, i.statement)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(node))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return fmt.Errorf("read what DuckDB makes of the query: %w", err)
	}
	if _, err = i.walk(tree, nil); err != nil {
		return err
	}
	top, _ := tree.(map[string]any)
	wants, _ := top["named_param_map"].([]any)
	switch {
	case i.step && len(wants) > 0:
		return refuse("a step has no parameters ($1, $2, …); write the value")
	case len(wants) != len(i.args):
		return refuse("the query has %d parameters ($1, $2, …), and %d arguments came", len(wants), len(i.args))
	}
	return nil
}

// shallow refuses what the parser must not see.
func shallow(statement string) error {
	if len(statement) > queryMax {
		return refuse("the query has %d bytes; at most %d are answered", len(statement), queryMax)
	}
	if !utf8.ValidString(statement) {
		return refuse("the query is no text in UTF-8")
	}
	depth, run := 0, 0
	for i, c := range []byte(statement) {
		switch c {
		case 0:
			return refusedAt(statement, i, "a byte 0 in the query")
		case '(', '[', '{':
			depth++
		case ')', ']', '}':
			depth--
		}
		// Operators before an operand stand in each other as well, and so do casts and CASE.
		switch {
		case strings.IndexByte("-+~!", c) >= 0:
			run++
		case c != ' ' && c != '\n' && c != '\t' && c != '\r':
			run = 0
		}
		if depth > nestedMax || run > nestedMax {
			return refusedAt(statement, i, "brackets or signs stand more than %d deep in each other", nestedMax)
		}
	}
	upper := strings.ToUpper(statement)
	for _, word := range []string{"CASE", "NOT", "UNION", "EXCEPT", "INTERSECT", "::"} {
		if n := strings.Count(upper, word); n > 5*nestedMax {
			return refuse("%s stands %d times in the query; at most %d are answered", word, n, 5*nestedMax)
		}
	}
	return nil
}

// readable refuses arguments that are no texts of a database.
func readable(args []any) error {
	for _, a := range args {
		if s, ok := a.(string); ok && (!utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0) {
			return refuse("what is asked for, %.40q, is no text in UTF-8 without a byte 0", s)
		}
	}
	return nil
}

// inspector walks the tree of one statement.
type inspector struct {
	statement string
	tables    []string
	args      []any
	step      bool // of a pipeline
	named     int  // tables that stand in it
}

// scope are the names that WITH has given, and how much each stands for.
type scope struct {
	name   string
	weight int
	outer  *scope
}

func (s *scope) find(name string) *scope {
	for ; s != nil; s = s.outer {
		if strings.EqualFold(s.name, name) {
			return s
		}
	}
	return nil
}

// walk looks at a part, and gives how many parts it is once the names for them are written out.
func (i *inspector) walk(part any, s *scope) (weight int, err error) {
	switch p := part.(type) {
	case []any:
		for _, e := range p {
			w, err := i.walk(e, s)
			if err != nil {
				return 0, err
			}
			weight += w
		}
		return weight, nil
	case map[string]any:
		return i.part(p, s)
	}
	return 0, nil
}

func (i *inspector) part(p map[string]any, s *scope) (weight int, err error) {
	kind, _ := p["type"].(string)
	_, expression := p["class"]
	_, query := p["cte_map"]
	_, from := p["sample"]
	switch {
	case query && !slices.Contains([]string{"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}, kind):
		return 0, i.refuse(p, "only SELECT is answered here")
	case query:
		if s, err = i.with(p, s); err != nil {
			return 0, err
		}
		weight = 1
	case expression:
		if err := i.expression(p); err != nil {
			return 0, err
		}
	case from:
		w, err := i.table(kind, p, s)
		if err != nil {
			return 0, err
		}
		weight = w
	}
	own, _ := p["cte_name"].(string)
	for name, e := range p {
		if name == "cte_map" && query || name == "value" && kind == "VALUE_CONSTANT" || name == "function" && kind == "TABLE_FUNCTION" {
			continue // looked at above, or nothing but data
		}
		sees := s
		if kind == "RECURSIVE_CTE_NODE" && name == "right" || kind == "CTE_NODE" && name == "child" {
			sees = &scope{own, 1, s} // only there: elsewhere in it the name is another table's
		}
		w, err := i.walk(e, sees)
		if err != nil {
			return 0, err
		}
		weight += w
	}
	if weight > repeatedMax {
		return 0, refuse("the query says its parts more than %d times, once the names of WITH are written out; say less", repeatedMax)
	}
	return weight, nil
}

// with gives the scope that the names of a query's WITH make; each sees those before it.
func (i *inspector) with(p map[string]any, s *scope) (*scope, error) {
	ctes, _ := p["cte_map"].(map[string]any)
	list, _ := ctes["map"].([]any)
	for _, e := range list {
		entry, _ := e.(map[string]any)
		name, _ := entry["key"].(string)
		weight, err := i.walk(entry["value"], s)
		if err != nil {
			return nil, err
		}
		s = &scope{name, weight, s}
	}
	return s, nil
}

func (i *inspector) expression(p map[string]any) error {
	name, ok := p["function_name"].(string)
	if !ok {
		return nil
	}
	catalog, _ := p["catalog"].(string)
	if schema, _ := p["schema"].(string); catalog != "" || schema != "" && schema != "main" { // main is what the parser says of [a, b]
		return i.refuse(p, "%s: functions are called by their names alone", strings.Trim(catalog+"."+schema+"."+name, "."))
	}
	name = strings.ToLower(name)
	if i.step && (computing()[name] || slow[name] && !sleeping[name] || name == "replace") {
		return nil
	}
	if computing()[name] {
		children, _ := p["children"].([]any)
		return i.arguments(p, name, children)
	}
	if sleeping[name] && i.step {
		return i.refuse(p, "%s computes nothing, and is not answered here", name)
	}
	if name == "replace" { // moves all that follows at each place
		return i.refuse(p, "replace may take as long as it likes, and cannot be stopped meanwhile; regexp_replace(…, 'g') does the same")
	}
	if slow[name] {
		return i.refuse(p, "%s may take as long as it likes, and cannot be stopped meanwhile; it is not answered here", name)
	}
	if slices.Contains(giving, name) {
		return i.refuse(p, "%s stands where tables do", name)
	}
	if meant := near.Within(name, strings.Fields(functionNames), 2); meant != "" {
		return i.refuse(p, "there is no function %s here; did you mean %s?", name, meant)
	}
	return i.refuse(p, "there is no function %s here", name)
}

// arguments refuses what would make a function's result, or its time, as large as the asker likes.
func (i *inspector) arguments(p map[string]any, name string, children []any) error {
	if at, ok := sized[name]; ok && at < len(children) {
		n, _ := i.constant(children[at]).(json.Number)
		if size, err := n.Int64(); err != nil || size > sizeMax {
			return i.refuse(p, "%s: how large its result is must be written out as a number, and at most %d", name, sizeMax)
		}
	}
	if (name == "printf" || name == "format") && len(children) > 0 {
		if s, ok := i.constant(children[0]).(string); !ok || wide.MatchString(s) {
			return i.refuse(p, "%s: the format must be written out, with widths of at most 3 digits", name)
		}
	}
	if name == "regexp_replace" && len(children) > 2 {
		if s, ok := i.constant(children[2]).(string); !ok || len(s) > replacedMax {
			return i.refuse(p, "%s: what comes in must be written out or be an argument, with %d bytes at most", name, replacedMax)
		}
	}
	if wild, ok := patterns[name]; ok && len(children) > 1 {
		s, ok := i.constant(children[1]).(string)
		simple := (name == "~~" || name == "!~~") && !strings.ContainsAny(s, `_\`) // DuckDB looks for its parts one after the other
		if !ok || !simple && strings.Count(s, wild) > wildMax {
			return i.refuse(p, "the pattern must be written out or be an argument, and %s stand in it %d times at most; regexp_matches takes any", wild, wildMax)
		}
	}
	return nil
}

var wide = regexp.MustCompile(`[0-9]{4}|\*|\{[^}]*\{`)

// constant is the value of an expression that is written out, or an argument of the query; nil for any other.
func (i *inspector) constant(part any) any {
	p, _ := part.(map[string]any)
	switch kind, _ := p["type"].(string); kind {
	case "VALUE_CONSTANT":
		v, _ := p["value"].(map[string]any)
		return v["value"]
	case "VALUE_PARAMETER":
		name, _ := p["identifier"].(string)
		if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= len(i.args) {
			if n, ok := i.args[n-1].(int64); ok {
				return json.Number(strconv.FormatInt(n, 10))
			}
			return i.args[n-1]
		}
	}
	return nil
}

func (i *inspector) table(kind string, p map[string]any, s *scope) (weight int, err error) {
	switch kind {
	case "BASE_TABLE":
		if i.named++; i.named > joinedMax {
			return 0, i.refuse(p, "the query names more than %d tables", joinedMax)
		}
		name, _ := p["table_name"].(string)
		schema, _ := p["schema_name"].(string)
		catalog, _ := p["catalog_name"].(string)
		if p["at_clause"] != nil {
			return 0, i.refuse(p, "%s AT: datasets have no versions to ask for", name)
		}
		if schema != "" || catalog != "" {
			return 0, i.refuse(p, "%s: datasets are asked for by their names alone", strings.Trim(catalog+"."+schema+"."+name, "."))
		}
		if cte := s.find(name); cte != nil {
			return cte.weight, nil
		}
		if !slices.ContainsFunc(i.tables, func(t string) bool { return strings.EqualFold(t, name) }) {
			if i.step {
				return 0, i.refuse(p, "there is no table %s here; a step reads input, the rows of the step before", name)
			}
			there := "there is none yet"
			if len(i.tables) > 0 {
				there = "there are " + strings.Join(i.tables[:min(len(i.tables), 20)], ", ")
			}
			return 0, i.refuse(p, "there is no dataset %s; %s", name, there)
		}
		return 1, nil
	case "TABLE_FUNCTION":
		if i.named++; i.named > joinedMax {
			return 0, i.refuse(p, "the query names more than %d tables", joinedMax)
		}
		f, _ := p["function"].(map[string]any)
		name, _ := f["function_name"].(string)
		schema, _ := f["schema"].(string)
		catalog, _ := f["catalog"].(string)
		if schema != "" || catalog != "" || !slices.Contains(giving, strings.ToLower(name)) {
			return 0, i.refuse(f, "there is no table function %s here; there are %s", strings.Trim(catalog+"."+schema+"."+name, "."), strings.Join(giving, ", "))
		}
		delete(f, "function_name") // it was looked at; its arguments come now
		return i.walk(f, s)
	case "SHOW_REF":
		if show, _ := p["show_type"].(string); p["query"] == nil || show != "DESCRIBE" && show != "SUMMARY" {
			return 0, i.refuse(p, "want DESCRIBE or SUMMARIZE of a dataset; which there are says `naru data stats`, or GET /api/v1/data/datasets")
		}
		return 1, nil
	case "SUBQUERY", "JOIN", "EXPRESSION_LIST", "EMPTY", "PIVOT":
		return 1, nil
	}
	return 0, i.refuse(p, "%s is not answered here", strings.ToLower(kind))
}

// refuse tells where in the statement the part stands.
func (i *inspector) refuse(p map[string]any, format string, args ...any) error {
	n, _ := p["query_location"].(json.Number)
	at, err := n.Int64()
	if err != nil || at < 0 || at > int64(len(i.statement)) { // it has none
		return refuse(format, args...)
	}
	return refusedAt(i.statement, int(at), format, args...)
}

// refusedAt says where, counted from 1, in characters.
func refusedAt(statement string, at int, format string, args ...any) error {
	before := statement[:at]
	start := strings.LastIndexByte(before, '\n') + 1
	return &RefusedError{Why: fmt.Sprintf(format, args...), Line: strings.Count(before, "\n") + 1, Column: len([]rune(before[start:])) + 1}
}
