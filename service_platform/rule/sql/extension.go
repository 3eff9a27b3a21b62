package sql

import "strings"

// What follows is not in the documentation of AWS IoT. Statement.Extensions names it.

// predicate := x [NOT] IN (…) | x [NOT] LIKE 'pattern' | x [NOT] BETWEEN a AND b | x IS [NOT] NULL|UNDEFINED
func (p *parser) predicate(from int, x expr) expr {
	inverted := false
	if p.tok.is("NOT") {
		switch next := p.ahead(); {
		case next.is("IN"), next.is("LIKE"), next.is("BETWEEN"):
			p.advance()
			inverted = true
		default:
			p.failAt(next.from, "IN, LIKE or BETWEEN after NOT", next.String(), "")
		}
	}
	var y expr
	switch {
	case p.accept("IN"):
		p.extension("IN")
		y = p.among(from, x)
	case p.accept("LIKE"):
		p.extension("LIKE")
		pattern := p.sum()
		y = &like{place: place{from, p.last}, of: x, pattern: pattern}
	case p.accept("BETWEEN"):
		p.extension("BETWEEN")
		low := p.sum()
		p.expect("AND", "AND and the upper bound")
		high := p.sum()
		at := place{from, p.last}
		y = &operation{place: at, op: opAnd, a: &operation{place: at, op: opGreaterEqual, a: x, b: low},
			b: &operation{place: at, op: opLessEqual, a: x, b: high}}
	case p.accept("IS"):
		p.extension("IS NULL")
		inverted = p.accept("NOT")
		kind := Null
		if p.tok.is("UNDEFINED") {
			kind = Undefined
		} else if !p.tok.is("NULL") {
			p.want("NULL or UNDEFINED")
		}
		y = &isKind{place: place{from, p.advance().to}, of: x, kind: kind}
	default:
		return nil
	}
	if inverted {
		return &negation{place: y.where(), of: y}
	}
	return y
}

// among is IN over a list in ( ) or [ ], or over an expression that gives an Array.
type among struct {
	place
	of, in expr
}

func (p *parser) among(from int, x expr) expr {
	y := &among{place: place{from: from}, of: x}
	if p.tok.is("(") && !p.ahead().is("SELECT") {
		l := &list{place: place{from: p.advance().from}}
		for {
			l.items = append(l.items, p.expression())
			if !p.accept(",") {
				break
			}
		}
		l.to = p.expect(")", "a comma or )").to
		y.in = l
	} else {
		y.in = p.sum()
	}
	y.to = p.last
	return y
}

func (x *among) eval(e *env) value {
	v, in := e.eval(x.of), e.eval(x.in)
	if v.kind == Undefined || v.kind == binary || in.kind != Array {
		return undefined
	}
	for _, item := range e.open(in).items {
		if e.same(v, item) {
			return boolean(true)
		}
	}
	return boolean(false)
}

// like compares with % for any text and _ for one character.
type like struct {
	place
	of, pattern expr
}

func (x *like) eval(e *env) value {
	text, ok := e.toText(e.eval(x.of))
	pattern, both := e.toText(e.eval(x.pattern))
	if e.work(4 * (len(text) + len(pattern))); !ok || !both || e.err != nil {
		return undefined
	}
	return boolean(e.likes([]rune(string(text)), []rune(string(pattern))))
}

// likes goes back only to the last %, which is enough.
func (e *env) likes(text, pattern []rune) bool {
	t, p, star, mark, from := 0, 0, -1, 0, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '%':
			star, mark = p, t
			p++
		case p < len(pattern) && (pattern[p] == '_' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0 && e.step():
			e.work(t - from)
			mark++
			from = mark
			p, t = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(string(pattern[p:]), "%") == ""
}

type isKind struct {
	place
	of   expr
	kind Kind
}

func (x *isKind) eval(e *env) value { return boolean(e.eval(x.of).kind == x.kind) }
