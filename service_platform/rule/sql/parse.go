package sql

import (
	"fmt"
	"slices"
	"strings"
)

// The limits of a statement: its text is read by people, and its depth costs stack.
const (
	statementMax    = 64 << 10
	depthMax        = 64
	variableNameMax = 64
	templatesMax    = 64  // expressions in one template
	namesMax        = 256 // items of one list, and different names read of one payload: each is compared with each
)

// program is what statements and templates have in common.
type program struct {
	text       string
	keys       [][]byte // the top-level names of the payload that are read
	variables  []assignment
	states     int // of regular expressions
	extensions []string
	warnings   []string
	looks      bool // asks for what is not in the message
}

type assignment struct {
	name  string
	of    expr
	reads bool // takes something from the payload as JSON
}

type parser struct {
	program
	lex    lexer
	tok    token
	last   int // where the token before tok ends
	depth  int
	nested int // how many nested queries around
}

// bail carries an *Error up from where it is found.
type bail struct{ err *Error }

// parse runs f and gives the error that it met.
func (p *parser) parse(f func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			b, ok := r.(bail)
			if !ok {
				panic(r)
			}
			err = b.err
		}
	}()
	f()
	return nil
}

func (p *parser) failAt(at int, want, got, remedy string) {
	panic(bail{fault(p.text, at, want, got, remedy)})
}

func (p *parser) want(what string) { p.failAt(p.tok.from, what, p.tok.String(), "") }

func (p *parser) advance() (before token) {
	before = p.tok
	p.last = before.to
	t, err := p.lex.next()
	if err != nil {
		panic(bail{err})
	}
	p.tok = t
	return before
}

func (p *parser) accept(word string) bool {
	if p.tok.is(word) {
		p.advance()
		return true
	}
	return false
}

func (p *parser) expect(word, what string) token {
	if !p.tok.is(word) {
		p.want(what)
	}
	return p.advance()
}

func (p *parser) extension(name string) {
	if !slices.Contains(p.extensions, name) {
		p.extensions = append(p.extensions, name)
	}
}

func (p *parser) warn(at int, format string, args ...any) {
	line, column := lineColumn(p.text, at)
	p.warnings = append(p.warnings, fmt.Sprintf("line %d, column %d: ", line, column)+fmt.Sprintf(format, args...))
}

// ahead looks at the token after the present one.
func (p *parser) ahead() token {
	at, tok, last := p.lex.at, p.tok, p.last
	p.advance()
	next := p.tok
	p.lex.at, p.tok, p.last = at, tok, last
	return next
}

// item is one member of a SELECT list: * (of is nil), or an expression and the path under which it is put out.
type item struct {
	of expr
	as [][]byte
}

// selection is a SELECT list.
type selection struct {
	items []item
	value bool // SELECT VALUE: one item without a name
	plain bool // no *, and each name is one word and different: can be written straight away
	more  bool // * and then such items
}

func (s *selection) starOnly() bool { return !s.value && len(s.items) == 1 && s.items[0].of == nil }

func (p *parser) statement(s *Statement) {
	p.advance()
	if p.accept("SET") {
		p.assignments()
	}
	if p.tok.is("SET") {
		p.failAt(p.tok.from, "SELECT", "a second SET", "one SET takes all variables, with commas between them")
	}
	if !p.tok.is("SELECT") {
		p.want("SELECT")
	}
	p.advance()
	s.at.from = p.tok.from
	s.selection = p.selection()
	s.at.to = s.at.from + len(strings.TrimRight(p.text[s.at.from:p.tok.from], " \t\n\r\f"))
	if p.accept("FROM") {
		s.filter = p.topicFilter()
	}
	if p.accept("WHERE") {
		s.where = p.expression()
		filterOnly(s.where)
	}
	switch {
	case p.tok.kind == tokenEnd:
	case p.tok.is("FROM"):
		p.failAt(p.tok.from, "the end", p.tok.String(), "FROM stands before WHERE")
	case s.where != nil:
		p.want("an operator or the end")
	case s.filter != "":
		p.want("WHERE or the end")
	default:
		p.want("an operator, a comma, AS, FROM, WHERE or the end")
	}
}

// filterOnly marks the ANDs of a WHERE that may stop at the first side that is not true.
func filterOnly(x expr) {
	if o, ok := x.(*operation); ok && o.op == opAnd {
		o.filter = true
		filterOnly(o.a)
		filterOnly(o.b)
	}
}

func (p *parser) assignments() {
	for {
		if p.tok.kind != tokenVariable {
			p.want("@name, the variable that SET defines")
		}
		name := p.advance()
		if p.variableIndex(name.text) >= 0 {
			p.failAt(name.from, "a new variable", "@"+name.text+" again", "a variable is set once")
		}
		p.expect("=", "=")
		of := p.expression()
		p.variables = append(p.variables, assignment{name.text, of, p.readsPayload(of)})
		if !p.accept(",") {
			return
		}
	}
}

func (p *parser) variableIndex(name string) int {
	return slices.IndexFunc(p.variables, func(a assignment) bool { return a.name == name })
}

func (p *parser) selection() (s selection) {
	if p.tok.is("VALUE") && p.valueMode() {
		p.advance()
		s.value = true
		s.items = []item{{of: p.expression()}}
		if whole, ok := s.items[0].of.(*star); ok && !whole.nested { // the same as *
			s.items, s.value = []item{{}}, false
		}
		if p.tok.is(",") {
			p.failAt(p.tok.from, "FROM, WHERE or the end", p.tok.String(), "SELECT VALUE puts out one value; put several into [ ] or { }")
		}
		if p.tok.is("AS") {
			p.failAt(p.tok.from, "FROM, WHERE or the end", p.tok.String(), "a VALUE has no name")
		}
		return s
	}
	for {
		s.items = append(s.items, p.item())
		if len(s.items) > namesMax {
			p.failAt(p.tok.from, fmt.Sprintf("at most %d items", namesMax), "more", "")
		}
		if !p.accept(",") {
			break
		}
	}
	s.plain = flat(s.items)
	s.more = len(s.items) > 1 && s.items[0].of == nil && flat(s.items[1:])
	return s
}

// flat says whether no item is * and each name is one word and different.
func flat(items []item) bool {
	for i, one := range items {
		if one.of == nil || len(one.as) != 1 {
			return false
		}
		for _, other := range items[:i] {
			if string(other.as[0]) == string(one.as[0]) {
				return false
			}
		}
	}
	return true
}

// valueMode tells the word VALUE from a name «value» in the payload.
func (p *parser) valueMode() bool {
	switch next := p.ahead(); next.kind {
	case tokenEnd:
		return false
	case tokenSign:
		if next.text == "*" {
			at, tok, last := p.lex.at, p.tok, p.last
			p.advance()
			after := p.ahead()
			p.lex.at, p.tok, p.last = at, tok, last
			return after.kind == tokenEnd || after.is("FROM") || after.is("WHERE") || after.is(")")
		}
		return next.text == "(" || next.text == "[" || next.text == "{"
	case tokenName:
		for _, w := range [...]string{"FROM", "AS", "WHERE", "AND", "OR", "IN", "LIKE", "BETWEEN", "IS"} {
			if next.is(w) {
				return false
			}
		}
		return true
	}
	return true
}

func (p *parser) item() item {
	if p.tok.is("*") {
		if next := p.ahead(); next.kind == tokenEnd || next.is(",") || next.is("FROM") || next.is("WHERE") || next.is(")") {
			p.advance()
			return item{}
		}
	}
	from := p.tok.from
	of := p.expression()
	to := p.last
	if p.accept("AS") {
		return item{of: of, as: p.alias()}
	}
	name := naturalName(of)
	if name == "" {
		p.failAt(to, "AS and a name", p.tok.String(), fmt.Sprintf("%q has no name of its own", cut(p.text[from:to])))
	}
	return item{of: of, as: [][]byte{[]byte(name)}}
}

// naturalName is the name of an item without AS: the last name of a path, or the function's.
func naturalName(x expr) string {
	switch x := x.(type) {
	case *path:
		return string(x.names[len(x.names)-1])
	case *member:
		return string(x.name)
	case *variable:
		return x.name
	case *call:
		return x.fn.name
	case *conversion:
		return "cast"
	}
	return ""
}

func (p *parser) alias() (names [][]byte) {
	for {
		switch {
		case p.tok.kind == tokenString:
			p.extension("quoted name after AS")
		case p.tok.kind != tokenName:
			p.want("a name")
		}
		names = append(names, []byte(p.advance().text))
		if len(names) > depthMax {
			p.failAt(p.tok.from, fmt.Sprintf("at most %d names", depthMax), "more", "")
		}
		if !p.accept(".") {
			return names
		}
	}
}

func (p *parser) topicFilter() string {
	if p.tok.kind != tokenString {
		p.failAt(p.tok.from, "a topic filter in single quotes", p.tok.String(), "")
	}
	t := p.advance()
	if p.text[t.from] == '"' {
		p.extension("topic filter in double quotes")
	}
	if why := filterFault(t.text); why != "" {
		p.failAt(t.from, "an MQTT topic filter", fmt.Sprintf("%q", cut(t.text)), why)
	}
	return t.text
}

// filterFault says what MQTT (5.0, section 4.7.1) has against a filter.
func filterFault(f string) string {
	if f == "" {
		return "a filter has at least one character"
	}
	if len(f) > 65535 {
		return "a filter has at most 65,535 bytes"
	}
	if strings.ContainsRune(f, 0) {
		return "a filter has no character U+0000"
	}
	levels := strings.Split(f, "/")
	for i, l := range levels {
		switch {
		case strings.Contains(l, "#") && (l != "#" || i != len(levels)-1):
			return "# stands alone, at the end"
		case strings.Contains(l, "+") && l != "+":
			return "+ stands alone in its level"
		}
	}
	return ""
}
