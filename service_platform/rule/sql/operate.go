package sql

import "bytes"

// equal is =; Undefined on either side is Undefined, values of different types are not equal.
func (e *env) equal(a, b value) value {
	if a.kind == Undefined || b.kind == Undefined || a.kind == binary || b.kind == binary {
		return undefined
	}
	return boolean(e.same(a, b))
}

func (e *env) same(a, b value) bool {
	if !e.step() {
		return false
	}
	if a.isNumber() && b.isNumber() {
		return a.num.cmp(b.num) == 0
	}
	if a.kind != b.kind {
		return false
	}
	if e.work(a.size() + b.size()); e.err != nil {
		return false
	}
	switch a.kind {
	case Null:
		return true
	case Boolean:
		return a.yes == b.yes
	case String:
		return bytes.Equal(a.b, b.b)
	case Array:
		x, y := e.open(a).items, e.open(b).items
		if len(x) != len(y) {
			return false
		}
		for i := range x {
			if !e.same(x[i], y[i]) {
				return false
			}
		}
		return true
	case Object:
		x, y := e.open(a), e.open(b)
		if len(x.names) != len(y.names) {
			return false
		}
		index := y.index()
		for i, name := range x.names {
			j, ok := index[string(name)]
			if !ok || !e.same(x.items[i], y.items[j]) {
				return false
			}
		}
		return true
	}
	return a.kind == b.kind
}

// less is <; both sides become Decimal first, and what cannot become one is Undefined. or says the result for equal sides.
func less(a, b value, or bool) value {
	x, ok := a.toDecimal()
	y, both := b.toDecimal()
	if !ok || !both {
		return undefined
	}
	c := x.cmp(y)
	return boolean(c < 0 || or && c == 0)
}

// plus joins as soon as one side is a String, and adds otherwise.
func (e *env) plus(a, b value) value {
	if a.kind == String || b.kind == String {
		x, ok := e.toText(a)
		y, both := e.toText(b)
		if !ok || !both {
			return undefined
		}
		return e.limited(append(append(make([]byte, 0, len(x)+len(y)), x...), y...))
	}
	if !a.isNumber() || !b.isNumber() {
		return undefined
	}
	return typed(a, b)(a.num.add(b.num))
}

// arithmetic is - * / %. Ints give an Int, all else that converts to Decimal gives a Decimal.
func arithmetic(op byte, a, b value) value {
	x, ok := a.toDecimal()
	y, both := b.toDecimal()
	if !ok || !both {
		return undefined
	}
	result := typed(a, b)
	switch op {
	case '-':
		return result(x.add(y.neg()))
	case '*':
		return result(x.mul(y))
	}
	if y.sign() == 0 {
		return undefined
	}
	if op == '%' {
		return result(x.rem(y))
	}
	if a.kind == Int && b.kind == Int {
		return number(x.quoInt(y))
	}
	return result(x.quo(y))
}

func typed(a, b value) func(decimal, bool) value {
	if a.kind == Int && b.kind == Int {
		return number
	}
	return inexact
}

// both is AND, either is OR: what is neither Boolean nor "true" nor "false" makes the whole Undefined.
func both(a, b value) value {
	x, ok := a.toBoolean()
	y, and := b.toBoolean()
	if !ok || !and {
		return undefined
	}
	return boolean(x && y)
}

func either(a, b value) value {
	x, ok := a.toBoolean()
	y, and := b.toBoolean()
	if !ok || !and {
		return undefined
	}
	return boolean(x || y)
}

func not(a value) value {
	x, ok := a.toBoolean()
	if !ok {
		return undefined
	}
	return boolean(!x)
}
