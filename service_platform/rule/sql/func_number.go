package sql

import (
	"math"
	"math/big"
)

// Functions over numbers. Strings that spell a number count as one.
var numberFunctions = []function{
	{name: "abs", min: 1, max: 1, call: func(_ *env, _ *call, a []value) value { return keep(a[0], decimal.abs) }},
	{name: "ceil", min: 1, max: 1, call: func(_ *env, _ *call, a []value) value { return rounded(a[0], towardCeil) }},
	{name: "floor", min: 1, max: 1, call: func(_ *env, _ *call, a []value) value { return rounded(a[0], towardFloor) }},
	{name: "round", min: 1, max: 1, call: func(_ *env, _ *call, a []value) value { return rounded(a[0], halfAway) }},
	{name: "trunc", min: 2, max: 2, call: trunc},
	{name: "sign", min: 1, max: 1, call: func(_ *env, _ *call, a []value) value {
		d, ok := a[0].toDecimal()
		return number(whole(int64(d.sign())), ok)
	}},
	{name: "mod", min: 2, max: 2, call: func(_ *env, _ *call, a []value) value { return arithmetic('%', a[0], a[1]) }},
	{name: "remainder", min: 2, max: 2, call: func(_ *env, _ *call, a []value) value { return arithmetic('%', a[0], a[1]) }},
	{name: "power", min: 2, max: 2, call: double2(math.Pow)},
	{name: "atan2", min: 2, max: 2, call: double2(math.Atan2)},
	{name: "acos", min: 1, max: 1, call: double(math.Acos)},
	{name: "asin", min: 1, max: 1, call: double(math.Asin)},
	{name: "atan", min: 1, max: 1, call: double(math.Atan)},
	{name: "cos", min: 1, max: 1, call: double(math.Cos)},
	{name: "cosh", min: 1, max: 1, call: double(math.Cosh)},
	{name: "exp", min: 1, max: 1, call: double(math.Exp)},
	{name: "ln", min: 1, max: 1, call: double(math.Log)},
	{name: "log", min: 1, max: 1, call: double(math.Log10)},
	{name: "sin", min: 1, max: 1, call: double(math.Sin)},
	{name: "sinh", min: 1, max: 1, call: double(math.Sinh)},
	{name: "sqrt", min: 1, max: 1, call: double(math.Sqrt)},
	{name: "tan", min: 1, max: 1, call: double(math.Tan)},
	{name: "tanh", min: 1, max: 1, call: double(math.Tanh)},
	{name: "bitand", min: 2, max: 2, call: bits2((*big.Int).And)},
	{name: "bitor", min: 2, max: 2, call: bits2((*big.Int).Or)},
	{name: "bitxor", min: 2, max: 2, call: bits2((*big.Int).Xor)},
	{name: "bitnot", min: 1, max: 1, call: func(_ *env, _ *call, a []value) value {
		x, ok := toBits(a[0])
		if !ok {
			return undefined
		}
		return number(wide(x.Not(x), 0))
	}},
}

func keep(v value, f func(decimal) decimal) value {
	d, ok := v.toDecimal()
	if v.kind == Int {
		return number(f(d), ok)
	}
	return inexact(f(d), ok)
}

func rounded(v value, how rounding) value {
	d, ok := v.toDecimal()
	return number(d.round(0, how), ok)
}

func trunc(_ *env, _ *call, a []value) value {
	d, ok := a[0].toDecimal()
	if !ok || !a[1].isNumber() {
		return undefined
	}
	places := min(max(a[1].num.round(0, towardFloor).int(), 0), digitsMax)
	return number(d.round(int(places), towardZero), true)
}

// double makes a function with double precision of one on float64; results that are no number are Undefined.
func double(f func(float64) float64) func(*env, *call, []value) value {
	return func(_ *env, _ *call, a []value) value {
		d, ok := a[0].toDecimal()
		if !ok {
			return undefined
		}
		return float(f(d.float()))
	}
}

func double2(f func(x, y float64) float64) func(*env, *call, []value) value {
	return func(_ *env, _ *call, a []value) value {
		x, ok := a[0].toDecimal()
		y, both := a[1].toDecimal()
		if !ok || !both {
			return undefined
		}
		return float(f(x.float(), y.float()))
	}
}

// toBits rounds down to a whole number, negative ones in two's complement of any width.
func toBits(v value) (*big.Int, bool) {
	d, ok := v.toDecimal()
	if d = d.round(0, towardFloor); !ok || d.e != 0 {
		return nil, false
	}
	return d.big(), true
}

func bits2(f func(z, x, y *big.Int) *big.Int) func(*env, *call, []value) value {
	return func(_ *env, _ *call, a []value) value {
		x, ok := toBits(a[0])
		y, both := toBits(a[1])
		if !ok || !both {
			return undefined
		}
		return number(wide(f(x, x, y), 0))
	}
}
