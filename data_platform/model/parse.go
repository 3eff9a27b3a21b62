package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/naru-platform/naru/component"
)

const (
	fileMax     = 1 << 20
	documentMax = 64 << 10 // a dataset of some hundred fields, each with a sentence
	nestingMax  = 16       // twice what any document needs
	faultsMax   = 20       // of a document that are told at once
	// documentsMax is how many documents of a file are told to be wrong.
	documentsMax = 100
)

// Parse reads a file of datasets and pipelines, YAML documents (JSON is YAML too) separated by `---`. What it does not know
// is an error that names file, line and the nearest that is known. All mistakes of the file are told at once, one a line.
func Parse(file string, b []byte) ([]Document, error) {
	if len(b) > fileMax {
		return nil, fmt.Errorf("%s: %d bytes; a file of datasets may have %d", file, len(b), fileMax)
	}
	if line := tooDeep(b); line > 0 {
		return nil, fmt.Errorf("%s:%d: nested more than %d deep; no dataset or pipeline is", file, line, nestingMax)
	}
	lines := strings.SplitAfter(string(b), "\n")
	var docs []Document
	var errs []error
	for from := 1; from <= len(lines); {
		to := documentEnd(lines, from)
		text := strings.Join(lines[from-1:to-1], "")
		part, err := parsePart(file, from, text)
		if wrong := (*notYAML)(nil); errors.As(err, &wrong) {
			return nil, err
		}
		if err != nil {
			errs = append(errs, err)
		}
		for _, d := range part {
			for _, other := range docs {
				if other.Kind() == d.Kind() && other.Name() == d.Name() {
					errs = append(errs, fmt.Errorf("%s:%d: %s %s is at line %d already", file, d.Line, d.Kind(), d.Name(), other.Line))
				}
			}
			docs = append(docs, d)
		}
		if from = to; len(errs) >= documentsMax {
			errs = append(errs, fmt.Errorf("%s:%d: it is read no further", file, from))
			break
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("%s: there is no dataset and no pipeline in it; a document begins with `dataset: <name>` or `pipeline: <name>`", file)
	}
	return docs, nil
}

// documentEnd is the line at which the document that begins at a line is followed by another: one that begins with ---, but not the one behind
// nothing but comments and directives. Lines count from 1.
func documentEnd(lines []string, from int) int {
	begun := false
	for n := from; n <= len(lines); n++ {
		line := strings.TrimRight(lines[n-1], "\r\n")
		if line == "---" || strings.HasPrefix(line, "--- ") || strings.HasPrefix(line, "---\t") {
			if begun {
				return n
			}
			begun = true
		} else if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line[0] != '%' {
			begun = true
		}
	}
	return len(lines) + 1
}

// parsePart reads a part of a file, which begins at a line of it and has one document, or several that end with dots. It is parsed by itself:
// what a hostile text takes of the parser grows with the square of its length.
func parsePart(file string, line int, text string) (docs []Document, err error) {
	if len(text) > documentMax+documentMax/4 { // with what stands around it
		return nil, fmt.Errorf("%s:%d: a document of %d bytes; it may have %d", file, line, len(text), documentMax)
	}
	tree, err := parseYAML([]byte(text), line-1)
	if err != nil {
		return nil, &notYAML{fmt.Errorf("%s:%w", file, err)}
	}
	lines := strings.SplitAfter(text, "\n")
	var errs []error
	for i, doc := range tree.Docs {
		if doc.Body == nil || slices.Contains([]ast.NodeType{ast.NullType, ast.CommentType, ast.DirectiveType}, doc.Body.Type()) {
			continue
		}
		from, to := 1, len(lines)+1
		if doc.Start != nil {
			from = doc.Start.Position.Line - line + 2
		}
		if i+1 < len(tree.Docs) && tree.Docs[i+1].Start != nil {
			to = tree.Docs[i+1].Start.Position.Line - line + 1
		}
		from, to = min(from, len(lines)+1), min(max(from, to), len(lines)+1)
		d := Document{File: file, Line: lineOf(doc.Body), Text: strings.TrimSpace(strings.Join(lines[from-1:to-1], "")) + "\n"}
		if len(d.Text) > documentMax {
			errs = append(errs, fmt.Errorf("%s:%d: a document of %d bytes; it may have %d", file, d.Line, len(d.Text), documentMax))
			continue
		}
		if err := d.read(doc.Body); err != nil {
			errs = append(errs, err)
			continue
		}
		docs = append(docs, d)
	}
	return docs, errors.Join(errs...)
}

// notYAML is a text behind whose fault nothing can be read.
type notYAML struct{ error }

// parseYAML gives an error that begins with line and column. Lines begin behind so many of the file. The parser has been seen to panic on broken
// documents.
func parseYAML(b []byte, behind int) (tree *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			tree, err = nil, fmt.Errorf("%d: it is not YAML that can be read", behind+1)
		}
	}()
	tree, err = parser.ParseBytes(b, 0)
	if err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		if at, text, ok := strings.Cut(strings.TrimPrefix(first, "["), "] "); ok {
			row, column, _ := strings.Cut(at, ":")
			if n, err := strconv.Atoi(row); err == nil {
				return nil, fmt.Errorf("%d:%s: it is not YAML: %s", behind+n, column, text)
			}
			return nil, fmt.Errorf("%d: it is not YAML: %s", behind+1, text)
		}
		return nil, fmt.Errorf("%d: it is not YAML: %s", behind+1, first)
	}
	move(tree, behind)
	return tree, nil
}

// move has the places of a tree say which line of the file it is.
func move(tree *ast.File, behind int) {
	moved := map[*token.Position]bool{}
	for _, doc := range tree.Docs {
		for _, t := range []*token.Token{doc.Start, tokenOf(doc.Body)} {
			for ; t != nil && t.Prev != nil; t = t.Prev {
			}
			for ; t != nil && t.Position != nil && !moved[t.Position]; t = t.Next {
				moved[t.Position] = true
				t.Position.Line += behind
			}
		}
	}
}

func tokenOf(n ast.Node) *token.Token {
	if n == nil {
		return nil
	}
	return n.GetToken()
}

// tooDeep gives the line at which brackets, or list items begun on one line, are nested beyond any sense; 0 where none are. A
// parser that recurses is not to meet them.
func tooDeep(b []byte) int {
	line, depth, items, indents := 1, 0, 0, []int(nil)
	start, indent := true, 0
	for _, c := range b {
		switch {
		case c == '\n':
			line++
			start, indent, items = true, 0, 0
			continue
		case c == '[' || c == '{':
			depth++
		case (c == ']' || c == '}') && depth > 0:
			depth--
		case start && (c == '-' || c == '?'):
			items++
		}
		if start && (c == ' ' || c == '\t') {
			indent++
		} else if start && c != '-' && c != '?' {
			start = false
			for len(indents) > 0 && indents[len(indents)-1] >= indent {
				indents = indents[:len(indents)-1]
			}
			indents = append(indents, indent)
		}
		if depth > nestingMax || items > nestingMax || len(indents) > nestingMax*2 {
			return line
		}
	}
	return 0
}

func lineOf(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 1
}

// reading is one document on its way from YAML into a struct: lines remembers where each setting stands.
type reading struct {
	lines  map[string]int
	faults []fault
}

type fault struct {
	line int
	text string
}

func (r *reading) fault(line int, format string, args ...any) {
	if len(r.faults) < faultsMax {
		r.faults = append(r.faults, fault{line, fmt.Sprintf(format, args...)})
	}
}

// read makes the document what its node says, checked.
func (d *Document) read(body ast.Node) error {
	r := &reading{lines: map[string]int{}}
	root, ok := pairs(body)
	if !ok {
		return fmt.Errorf("%s:%d: want settings such as `dataset: telemetry`, not a %s", d.File, d.Line, kindOf(body))
	}
	var into any
	for _, pair := range root {
		switch keyOf(pair) {
		case KindPipeline:
			d.Pipeline = new(Pipeline)
			into = d.Pipeline
		case KindDataset:
			if d.Pipeline == nil {
				d.Dataset = new(Dataset)
				into = d.Dataset
			}
		}
	}
	if d.Pipeline != nil {
		d.Dataset = nil
	}
	if into == nil {
		return fmt.Errorf("%s:%d: a document has `dataset: <name>` or `pipeline: <name>`; this one has neither", d.File, d.Line)
	}
	value := r.value(body, reflect.TypeOf(into).Elem(), "")
	if len(r.faults) == 0 {
		raw, err := json.Marshal(value)
		if err == nil {
			err = json.Unmarshal(raw, into)
		}
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			r.fault(r.line(wrong.Field), "%s: a %s does not fit here", wrong.Field, wrong.Value)
		} else if err != nil {
			r.fault(d.Line, "%s", err)
		}
	}
	if len(r.faults) == 0 {
		check := func(path, format string, args ...any) {
			text := fmt.Sprintf(format, args...)
			if path != "" {
				text = path + ": " + text
			}
			r.fault(r.line(path), "%s", text)
		}
		if d.Pipeline != nil {
			d.Pipeline.check(check)
		} else {
			d.Dataset.check(check)
		}
	}
	if len(r.faults) == 0 {
		return nil
	}
	errs := make([]error, len(r.faults))
	for i, f := range r.faults {
		errs[i] = fmt.Errorf("%s:%d: %s", d.File, f.line, f.text)
	}
	return errors.Join(errs...)
}

// line is where a setting stands, or the nearest one around it.
func (r *reading) line(path string) int {
	for {
		if n, ok := r.lines[path]; ok {
			return n
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return r.lines[""]
		}
		path = path[:i]
	}
}

var durationType = reflect.TypeFor[Duration]()

// value gives a node as JSON would have it, and notes what does not fit the type it is for.
func (r *reading) value(n ast.Node, t reflect.Type, path string) any {
	if _, known := r.lines[path]; !known {
		r.lines[path] = lineOf(n)
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch n := n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode, *ast.TagNode:
		r.fault(lineOf(n), "%s: anchors, aliases and tags of YAML are not taken here; write the value", path)
		return nil
	case *ast.NullNode:
		return nil
	case *ast.SequenceNode:
		if t.Kind() != reflect.Slice {
			r.wrong(n, t, path)
			return nil
		}
		list := make([]any, len(n.Values))
		for i, item := range n.Values {
			list[i] = r.value(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
		}
		return list
	}
	if all, ok := pairs(n); ok {
		return r.settings(n, all, t, path)
	}
	return r.scalar(n, t, path)
}

func (r *reading) settings(n ast.Node, all []*ast.MappingValueNode, t reflect.Type, path string) any {
	if t.Kind() != reflect.Struct && t.Kind() != reflect.Map {
		r.wrong(n, t, path)
		return nil
	}
	known := map[string]reflect.Type{}
	var names []string
	if t.Kind() == reflect.Struct {
		for i := range t.NumField() {
			if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
				known[name] = t.Field(i).Type
				names = append(names, name)
			}
		}
	}
	m := map[string]any{}
	for _, pair := range all {
		key := keyOf(pair)
		of := known[key]
		if t.Kind() == reflect.Map {
			of = t.Elem()
		}
		at := strings.TrimPrefix(path+"."+key, ".")
		_, twice := m[key]
		switch {
		case of == nil:
			err := component.UnknownKey(key, names)
			if path != "" {
				err = fmt.Errorf("%s: %w", path, err)
			}
			r.fault(lineOf(pair.Key), "%s", err)
		case twice:
			r.fault(lineOf(pair.Key), "%s is there twice", at)
		default:
			r.lines[at] = lineOf(pair.Key)
			m[key] = r.value(pair.Value, of, at)
		}
	}
	return m
}

func (r *reading) scalar(n ast.Node, t reflect.Type, path string) any {
	text := ""
	switch n := n.(type) {
	case *ast.StringNode:
		text = n.Value
	case *ast.LiteralNode:
		text = n.Value.Value
	case *ast.IntegerNode:
		if t.Kind() == reflect.Int || t.Kind() == reflect.Float64 {
			return n.Value
		}
		text = n.Token.Value
	case *ast.FloatNode:
		if t.Kind() == reflect.Float64 {
			return n.Value
		}
		text = n.Token.Value
	case *ast.BoolNode:
		if t.Kind() == reflect.Bool {
			return n.Value
		}
		text = n.Token.Value
	default:
		r.wrong(n, t, path)
		return nil
	}
	switch {
	case t == durationType:
		if _, err := ParseDuration(text); err != nil {
			r.fault(lineOf(n), "%s: %s", path, err)
		}
		return text
	case t.Kind() == reflect.String:
		return text // `enum: [1, on]` is meant as it is written
	}
	r.wrong(n, t, path)
	return nil
}

func (r *reading) wrong(n ast.Node, t reflect.Type, path string) {
	want := "a text"
	switch {
	case t == durationType:
		want = "a duration such as 30d"
	case t.Kind() == reflect.Int:
		want = "a whole number"
	case t.Kind() == reflect.Float64:
		want = "a number"
	case t.Kind() == reflect.Bool:
		want = "true or false"
	case t.Kind() == reflect.Slice:
		want = "a list in [ ]"
	case t.Kind() == reflect.Struct, t.Kind() == reflect.Map:
		want = "settings in { }"
	}
	r.fault(lineOf(n), "%s: want %s, not a %s", path, want, kindOf(n))
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.SequenceNode:
		return "list"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "mapping"
	case *ast.StringNode, *ast.LiteralNode:
		return "text"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "number"
	case *ast.BoolNode:
		return "true or false"
	}
	return strings.ToLower(n.Type().String())
}

// pairs are the settings of a mapping; ok is false where the node is none.
func pairs(n ast.Node) (all []*ast.MappingValueNode, ok bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

func keyOf(pair *ast.MappingValueNode) string {
	switch k := ast.Node(pair.Key).(type) {
	case *ast.StringNode:
		return k.Value
	default:
		if t := k.GetToken(); t != nil && t.Type != token.MappingKeyType {
			return t.Value
		}
	}
	return "?"
}
