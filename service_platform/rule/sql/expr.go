package sql

// expr is a compiled expression.
type expr interface {
	where() place
	eval(e *env) value
}

type literal struct {
	place
	v value
}

func (x *literal) eval(*env) value { return x.v }

// path reads names of the payload, or of the element that a nested query is at.
type path struct {
	place
	names  [][]byte
	key    int // of names[0] among the program's top-level names; -1 within a nested query
	nested bool
}

func (x *path) eval(e *env) value {
	var v value
	switch {
	case x.nested:
		v = e.member(e.scope, x.names[0])
	case x.key >= 0:
		v = e.top(x.key)
	}
	for _, name := range x.names[1:] {
		v = e.member(v, name)
	}
	return v
}

// member gives an object's member, and counts the way to it.
func (e *env) member(v value, name []byte) value {
	if v.kind != Object {
		return undefined
	}
	e.work(v.size())
	return v.member(name)
}

// star is the whole payload, or the element that a nested query is at.
type star struct {
	place
	nested bool
}

func (x *star) eval(e *env) value {
	if x.nested {
		return e.scope
	}
	return e.payload()
}

type variable struct {
	place
	index int
	name  string
}

func (x *variable) eval(e *env) value { return e.variable(x.index) }

type member struct {
	place
	of   expr
	name []byte
}

func (x *member) eval(e *env) value { return e.member(e.eval(x.of), x.name) }

// element is of[at], an extension for get(of, at).
type element struct {
	place
	of, at expr
}

func (x *element) eval(e *env) value {
	of, at := e.eval(x.of), e.eval(x.at)
	e.work(of.size())
	return get(of, at)
}

type negation struct {
	place
	of expr
}

func (x *negation) eval(e *env) value { return not(e.eval(x.of)) }

type minus struct {
	place
	of expr
}

func (x *minus) eval(e *env) value {
	v := e.eval(x.of)
	d, ok := v.toDecimal()
	if v.kind == Int {
		return number(d.neg(), ok)
	}
	return inexact(d.neg(), ok)
}

type operator uint8

const (
	opOr operator = iota
	opAnd
	opEqual
	opNotEqual
	opLess
	opLessEqual
	opGreater
	opGreaterEqual
	opPlus
	opMinus
	opTimes
	opDivide
	opModulo
)

var operatorSigns = [...]string{"OR", "AND", "=", "<>", "<", "<=", ">", ">=", "+", "-", "*", "/", "%"}

type operation struct {
	place
	op   operator
	a, b expr
	// filter is set where only «true or not» counts: a left side that is not true then decides AND.
	filter bool
}

func (x *operation) eval(e *env) value {
	a := e.eval(x.a)
	if x.filter && e.trace == nil {
		if yes, _ := a.toBoolean(); !yes {
			return boolean(false)
		}
	}
	b := e.eval(x.b)
	if e.work(a.size() + b.size()); e.err != nil {
		return undefined
	}
	switch x.op {
	case opOr:
		return either(a, b)
	case opAnd:
		return both(a, b)
	case opEqual:
		return e.equal(a, b)
	case opNotEqual:
		return not(e.equal(a, b))
	case opLess:
		return less(a, b, false)
	case opLessEqual:
		return less(a, b, true)
	case opGreater:
		return less(b, a, false)
	case opGreaterEqual:
		return less(b, a, true)
	case opPlus:
		return e.plus(a, b)
	}
	return arithmetic(operatorSigns[x.op][0], a, b)
}

type list struct {
	place
	items []expr
}

func (x *list) eval(e *env) value {
	out := make([]value, 0, len(x.items))
	for _, item := range x.items {
		if v := e.eval(item); v.kind != Undefined && v.kind != binary {
			out = append(out, v)
		}
	}
	return array(out)
}

type object struct {
	place
	names [][]byte
	items []expr
}

func (x *object) eval(e *env) value {
	n := &node{names: make([][]byte, 0, len(x.names)), items: make([]value, 0, len(x.names))}
	for i, item := range x.items {
		if v := e.eval(item); v.kind != Undefined && v.kind != binary {
			n.put(x.names[i], v)
		}
	}
	return value{kind: Object, node: n}
}

// choice is CASE. Without of, the conditions themselves decide (an extension).
type choice struct {
	place
	of         expr
	when, then []expr
	otherwise  expr // nil: Undefined
}

func (x *choice) eval(e *env) value {
	of := boolean(true)
	if x.of != nil {
		if of = e.eval(x.of); of.kind == Undefined {
			return undefined
		}
	}
	for i, when := range x.when {
		v := e.eval(when)
		hit := e.equal(of, v)
		if x.of == nil {
			hit = v
		}
		if yes, _ := hit.toBoolean(); yes {
			return e.eval(x.then[i])
		}
	}
	if x.otherwise == nil {
		return undefined
	}
	return e.eval(x.otherwise)
}

type call struct {
	place
	fn   *function
	args []expr
	// made at compile time of arguments that are literals, so that they need not be read for each message
	prepared any
}

func (x *call) eval(e *env) value {
	if len(x.args) < x.fn.min || len(x.args) > x.fn.max {
		return undefined
	}
	base := len(e.stack)
	for _, arg := range x.args {
		v := e.eval(arg)
		e.work(v.size())
		e.stack = append(e.stack, v)
	}
	v := undefined
	if e.err == nil {
		v = x.fn.call(e, x, e.stack[base:])
		e.work(v.size())
	}
	clear(e.stack[base:])
	e.stack = e.stack[:base]
	return v
}

// query is a nested SELECT: over an Array it gives an Array of what holds, over an Object one value.
type query struct {
	place
	selection
	from   expr
	filter expr // nil: all
}

func (x *query) eval(e *env) value {
	source, before := e.eval(x.from), e.scope
	e.work(source.size())
	defer func() { e.scope = before }()
	switch {
	case source.kind == Object:
		v, _ := x.one(e, source)
		return v
	case source.kind != Array:
		return undefined
	}
	var out []value
	add := func(item value) {
		if v, held := x.one(e, item); held && v.kind != Undefined {
			out = append(out, v)
		}
	}
	if source.node != nil {
		for _, item := range source.node.items {
			if !e.step() {
				break
			}
			add(item)
		}
	} else {
		for w := walkOver(source.b); w.next() && e.step(); {
			add(fromJSON(w.val))
		}
	}
	return array(out)
}

func (x *query) one(e *env, element value) (v value, held bool) {
	e.scope = element
	if x.filter != nil && !e.holds(x.filter) {
		return undefined, false
	}
	if x.value {
		return e.eval(x.items[0].of), true
	}
	if x.starOnly() {
		return element, true
	}
	return value{kind: Object, node: x.build(e, element)}, true
}

// bytesOf says whether the call is encode(*, …), which takes the payload's bytes whatever they are.
func (x *call) bytesOf() (*star, bool) {
	if x.fn.name != "encode" || len(x.args) == 0 {
		return nil, false
	}
	s, ok := x.args[0].(*star)
	return s, ok && !s.nested
}

// children are the expressions that x is made of.
func children(x expr) []expr {
	switch x := x.(type) {
	case *member:
		return []expr{x.of}
	case *element:
		return []expr{x.of, x.at}
	case *negation:
		return []expr{x.of}
	case *minus:
		return []expr{x.of}
	case *operation:
		return []expr{x.a, x.b}
	case *list:
		return x.items
	case *object:
		return x.items
	case *choice:
		all := append(append([]expr{}, x.when...), x.then...)
		for _, one := range [...]expr{x.of, x.otherwise} {
			if one != nil {
				all = append(all, one)
			}
		}
		return all
	case *call:
		return x.args
	case *conversion:
		return []expr{x.of}
	case *query: // what it selects is of the elements
		return []expr{x.from}
	case *among:
		return []expr{x.of, x.in}
	case *like:
		return []expr{x.of, x.pattern}
	case *isKind:
		return []expr{x.of}
	}
	return nil
}
