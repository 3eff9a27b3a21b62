package sql

import (
	"fmt"
	"strings"
)

// expression := and { OR and }
func (p *parser) expression() expr {
	p.depth++
	if p.depth > depthMax {
		p.failAt(p.tok.from, fmt.Sprintf("at most %d levels of nesting", depthMax), "more", "set parts of it as variables with SET")
	}
	from := p.tok.from
	x := p.conjunction()
	for p.accept("OR") {
		x = p.operation(opOr, from, x, p.conjunction())
	}
	p.depth--
	return x
}

func (p *parser) operation(op operator, from int, a, b expr) expr {
	return &operation{place: place{from, p.last}, op: op, a: a, b: b}
}

func (p *parser) conjunction() expr {
	from := p.tok.from
	x := p.inversion()
	for p.accept("AND") {
		x = p.operation(opAnd, from, x, p.inversion())
	}
	return x
}

func (p *parser) inversion() expr {
	if !p.tok.is("NOT") {
		return p.comparison()
	}
	from := p.advance().from
	p.depth++
	if p.depth > depthMax {
		p.failAt(from, fmt.Sprintf("at most %d levels of nesting", depthMax), "more", "")
	}
	of := p.inversion()
	p.depth--
	return &negation{place: place{from, p.last}, of: of}
}

func (p *parser) comparison() expr {
	from := p.tok.from
	x := p.sum()
	for {
		op, ok := p.operator("=", "<>", "!=", "<", "<=", ">", ">=")
		if !ok {
			if y := p.predicate(from, x); y != nil {
				x = y
				continue
			}
			return x
		}
		p.advance()
		x = p.operation(op, from, x, p.sum())
	}
}

func (p *parser) operator(signs ...string) (operator, bool) {
	if p.tok.kind != tokenSign {
		return 0, false
	}
	for _, s := range signs {
		if p.tok.text != s {
			continue
		}
		if s == "!=" {
			p.extension("!=")
			return opNotEqual, true
		}
		for op, sign := range operatorSigns {
			if sign == s {
				return operator(op), true
			}
		}
	}
	return 0, false
}

func (p *parser) sum() expr {
	from := p.tok.from
	x := p.product()
	for {
		op, ok := p.operator("+", "-")
		if !ok {
			return x
		}
		p.advance()
		x = p.operation(op, from, x, p.product())
	}
}

func (p *parser) product() expr {
	from := p.tok.from
	x := p.signed()
	for {
		op, ok := p.operator("*", "/", "%")
		if !ok {
			return x
		}
		p.advance()
		x = p.operation(op, from, x, p.signed())
	}
}

func (p *parser) signed() expr {
	if !p.tok.is("-") {
		return p.postfix()
	}
	from := p.advance().from
	p.depth++
	if p.depth > depthMax {
		p.failAt(from, fmt.Sprintf("at most %d levels of nesting", depthMax), "more", "")
	}
	of := p.signed()
	p.depth--
	at := place{from, p.last}
	if l, ok := of.(*literal); ok && l.v.isNumber() {
		return &literal{place: at, v: number(l.v.num.neg(), true)}
	}
	return &minus{place: at, of: of}
}

// postfix := primary { .name | [index] }
func (p *parser) postfix() expr {
	from := p.tok.from
	x := p.primary()
	for steps := 0; ; steps++ {
		if steps > depthMax {
			p.failAt(p.tok.from, fmt.Sprintf("at most %d names in a path", depthMax), "more", "")
		}
		switch {
		case p.tok.is("."):
			p.advance()
			if p.tok.kind != tokenName {
				p.failAt(p.tok.from, "a name", p.tok.String(), "a name that is no word is read with get(…, 'the name')")
			}
			t := p.advance()
			at := place{from, t.to}
			if of, ok := x.(*path); ok {
				of.place = at
				of.names = append(of.names, []byte(t.text))
				continue
			}
			x = &member{place: at, of: x, name: []byte(t.text)}
		case p.tok.is("["):
			p.extension("[index]")
			p.advance()
			index := p.expression()
			end := p.expect("]", "]")
			x = &element{place: place{from, end.to}, of: x, at: index}
		default:
			return x
		}
	}
}

func (p *parser) primary() expr {
	t := p.tok
	switch t.kind {
	case tokenNumber:
		p.advance()
		v := number(parseDecimal([]byte(strings.TrimPrefix(t.text, ".")), true))
		if strings.HasPrefix(t.text, ".") {
			v = number(parseDecimal([]byte("0"+t.text), true))
		}
		if v.kind == Undefined {
			p.failAt(t.from, "a number up to 9.99E999", t.String(), "")
		}
		return &literal{place: t.place, v: v}
	case tokenString:
		p.advance()
		return &literal{place: t.place, v: text(t.text)}
	case tokenVariable:
		p.advance()
		i := p.variableIndex(t.text)
		if i < 0 {
			p.failAt(t.from, "a variable that SET has defined before", "@"+t.text, "")
		}
		return &variable{place: t.place, index: i, name: t.text}
	case tokenName:
		return p.named()
	case tokenSign:
		switch t.text {
		case "*":
			p.advance()
			return &star{place: t.place, nested: p.nested > 0}
		case "(":
			return p.parenthesis()
		case "[":
			return p.list()
		case "{":
			return p.object()
		}
	}
	p.want("an expression")
	return nil
}

// reserved words begin no path; a member of that name is read with get(*, 'name').
var reserved = map[string]bool{"select": true, "from": true, "where": true, "as": true, "and": true, "or": true, "when": true, "then": true, "else": true, "end": true}

func (p *parser) named() expr {
	t := p.tok
	word := strings.ToLower(t.text)
	if reserved[word] {
		p.failAt(t.from, "an expression", t.String(), "")
	}
	next := p.ahead()
	switch {
	case word == "case" && next.kind != tokenEnd && !next.is(".") && !next.is(",") && !next.is("FROM") && !next.is("AS"):
		return p.choice()
	case word == "true" || word == "false":
		p.advance()
		return &literal{place: t.place, v: boolean(word == "true")}
	case word == "null":
		p.advance()
		return &literal{place: t.place, v: null}
	case next.is("("):
		return p.call()
	}
	p.advance()
	x := &path{place: t.place, names: [][]byte{[]byte(t.text)}, key: -1, nested: p.nested > 0}
	if !x.nested {
		x.key = p.key(t.text)
	}
	return x
}

// key gives the number of a top-level name that the program reads.
func (p *parser) key(name string) int {
	for i, k := range p.keys {
		if string(k) == name {
			return i
		}
	}
	if len(p.keys) == namesMax {
		p.failAt(p.tok.from, fmt.Sprintf("at most %d names of the payload", namesMax), "more", "")
	}
	p.keys = append(p.keys, []byte(name))
	return len(p.keys) - 1
}

func (p *parser) parenthesis() expr {
	from := p.advance().from
	if p.tok.is("SELECT") {
		return p.query(from)
	}
	x := p.expression()
	p.expect(")", "an operator or )")
	return x
}

func (p *parser) query(from int) expr {
	p.advance()
	p.depth++
	if p.depth > depthMax {
		p.failAt(from, fmt.Sprintf("at most %d levels of nesting", depthMax), "more", "")
	}
	x := &query{}
	p.nested++
	x.selection = p.selection()
	p.nested--
	p.expect("FROM", "a comma, AS or FROM")
	x.from = p.postfix()
	if p.accept("WHERE") {
		p.nested++
		x.filter = p.expression()
		filterOnly(x.filter)
		p.nested--
	}
	x.place = place{from, p.expect(")", "WHERE or )").to}
	p.depth--
	return x
}

func (p *parser) list() expr {
	x := &list{place: place{from: p.advance().from}}
	for !p.tok.is("]") {
		x.items = append(x.items, p.expression())
		if !p.accept(",") {
			break
		}
	}
	x.to = p.expect("]", "a comma or ]").to
	return x
}

func (p *parser) object() expr {
	x := &object{place: place{from: p.advance().from}}
	for !p.tok.is("}") {
		if p.tok.kind != tokenString {
			p.want("a name in quotes")
		}
		x.names = append(x.names, []byte(p.advance().text))
		p.expect(":", ":")
		x.items = append(x.items, p.expression())
		if !p.accept(",") {
			break
		}
	}
	x.to = p.expect("}", "a comma or }").to
	return x
}

func (p *parser) choice() expr {
	x := &choice{place: place{from: p.advance().from}}
	if p.tok.is("WHEN") {
		p.extension("CASE WHEN condition")
	} else {
		x.of = p.expression()
	}
	p.expect("WHEN", "WHEN")
	for {
		x.when = append(x.when, p.expression())
		p.expect("THEN", "THEN")
		x.then = append(x.then, p.expression())
		if !p.accept("WHEN") {
			break
		}
	}
	if p.accept("ELSE") {
		x.otherwise = p.expression()
	}
	x.to = p.expect("END", "WHEN, ELSE or END").to
	return x
}

func (p *parser) call() expr {
	t := p.advance()
	p.advance()
	name := strings.ToLower(t.text)
	if name == "cast" {
		return p.conversion(t.from)
	}
	fn := functions[name]
	if fn == nil {
		if remedy, ok := refused[name]; ok {
			p.failAt(t.from, "a function that needs no AWS account", t.text+"()", remedy)
		}
		p.failAt(t.from, "a known function", t.text+"()", nearest(name))
	}
	x := &call{place: place{from: t.from}, fn: fn}
	for !p.tok.is(")") {
		x.args = append(x.args, p.expression())
		if !p.accept(",") {
			break
		}
	}
	x.to = p.expect(")", "a comma or )").to
	if n := len(x.args); n < fn.min || n > fn.max {
		p.warn(t.from, "%s takes %s, here are %d: always Undefined", fn.name, fn.arity(), n)
	} else if fn.prepare != nil {
		fn.prepare(p, x)
	}
	return x
}

func (p *parser) conversion(from int) expr {
	x := &conversion{of: p.expression()}
	p.expect("AS", "AS and a type")
	if p.tok.kind != tokenName {
		p.want("a type: String, Int, Decimal or Boolean")
	}
	t := p.advance()
	to, ok := castTypes[strings.ToLower(t.text)]
	if !ok {
		p.failAt(t.from, "a type: String, Int, Decimal or Boolean", t.String(), "")
	}
	x.to = to
	x.place = place{from, p.expect(")", ")").to}
	return x
}
