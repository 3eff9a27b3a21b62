package sql

import (
	"math"
	"math/big"
	"math/bits"
	"strconv"
)

// digitsMax is the documented precision of Int and Decimal; exponentMax bounds a Decimal's magnitude.
const (
	digitsMax   = 34
	exponentMax = 999
)

// smallMax bounds the coefficients that stay in int64: the sum of two of them still fits.
const smallMax = 1_000_000_000_000_000_000

var pow10 = [...]int64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18}

// decimal is the exact number c × 10^e. Where the coefficient does not fit below smallMax, wide holds it and c is 0.
// Every decimal that leaves a function of this file is in normal form: no trailing zeros behind the point, and e = 0 for
// each whole number of up to 34 digits.
type decimal struct {
	c    int64
	e    int32
	wide *big.Int
}

func whole(i int64) decimal { d, _ := small(i, 0); return d }

// parseDecimal reads -?digits(.digits)?(E-?digits)?, the form of a JSON number and of a numeric string; plus also allows
// E+digits, which JSON has and numeric strings have not. It is false for another form and for a magnitude out of range.
func parseDecimal(b []byte, plus bool) (decimal, bool) {
	i, neg := 0, false
	if i < len(b) && b[i] == '-' {
		neg, i = true, 1
	}
	var c int64
	var more []byte // the significant digits, where they are too many for c
	exp, seen, point, fraction := 0, 0, false, 0
	significant, lost := 0, false
	first := i
loop:
	for ; i < len(b); i++ {
		switch d := b[i]; {
		case d >= '0' && d <= '9':
			seen++
			if point {
				fraction++
			}
			switch {
			case significant == 0 && d == '0':
			case significant < 18:
				c = c*10 + int64(d-'0')
				significant++
			case significant < 60:
				if more == nil {
					more = strconv.AppendInt(make([]byte, 0, 64), c, 10)
				}
				more = append(more, d)
				significant++
			default:
				lost = lost || d != '0'
				exp++
			}
		case d == '.' && !point && i > first:
			point = true
		default:
			break loop
		}
	}
	if seen == 0 || point && fraction == 0 {
		return decimal{}, false
	}
	exp -= fraction
	if i < len(b) {
		if b[i] != 'e' && b[i] != 'E' {
			return decimal{}, false
		}
		i++
		down := false
		if i < len(b) && (b[i] == '-' || plus && b[i] == '+') {
			down = b[i] == '-'
			i++
		}
		if i == len(b) {
			return decimal{}, false
		}
		x := 0
		for ; i < len(b); i++ {
			if b[i] < '0' || b[i] > '9' {
				return decimal{}, false
			}
			x = min(x*10+int(b[i]-'0'), 1<<28)
		}
		if down {
			x = -x
		}
		exp += x
	}
	if more == nil {
		if neg {
			c = -c
		}
		if c == 0 {
			return decimal{}, true
		}
		if exp > 2*exponentMax || exp < -4*exponentMax {
			return decimal{}, exp < 0
		}
		return small(c, int32(exp))
	}
	if exp > 2*exponentMax || exp < -4*exponentMax {
		return decimal{}, exp < 0
	}
	if lost {
		more = append(more, '1') // the digits let go decide a tie
		exp--
	}
	w, _ := new(big.Int).SetString(string(more), 10)
	if neg {
		w.Neg(w)
	}
	return wide(w, exp)
}

// small gives c × 10^e in normal form; c may be any sum or product that fits. It is false beyond the largest magnitude.
func small(c int64, e int32) (decimal, bool) {
	if c == 0 {
		return decimal{}, true
	}
	for e < 0 && c%10 == 0 {
		c /= 10
		e++
	}
	if e == 0 && c > -smallMax && c < smallMax {
		return decimal{c: c}, true
	}
	if e > 0 && e <= 18 && abs64(c) < smallMax/pow10[e] {
		return decimal{c: c * pow10[e]}, true
	}
	if e < 0 && e > -exponentMax && c > -smallMax && c < smallMax {
		return decimal{c: c, e: e}, true
	}
	return wide(big.NewInt(c), int(e))
}

// wide gives w × 10^e in normal form, rounded half to even to 34 digits. It is false beyond the largest magnitude; below
// the smallest it is zero. It takes w over.
func wide(w *big.Int, e int) (decimal, bool) {
	if w.Sign() == 0 {
		return decimal{}, true
	}
	n := digits(w)
	if n > digitsMax {
		cut := n - digitsMax
		r := new(big.Int)
		p := tens(cut)
		w.QuoRem(w, p, r)
		half := r.Abs(r).Lsh(r, 1).Cmp(p)
		if half > 0 || half == 0 && w.Bit(0) == 1 {
			w.Add(w, big.NewInt(int64(w.Sign())|1))
		}
		e += cut
		n = digits(w)
	}
	adjusted := e + n - 1
	if adjusted > exponentMax {
		return decimal{}, false
	}
	if adjusted < -exponentMax {
		return decimal{}, true
	}
	for e < 0 || n+e > digitsMax {
		q, r := new(big.Int).QuoRem(w, ten, new(big.Int))
		if r.Sign() != 0 {
			break
		}
		w = q
		e++
		n--
	}
	if e > 0 && n+e <= digitsMax {
		w.Mul(w, tens(e))
		e = 0
	}
	if w.IsInt64() && abs64(w.Int64()) < smallMax {
		return decimal{c: w.Int64(), e: int32(e)}, true
	}
	return decimal{wide: w, e: int32(e)}, true
}

var ten = big.NewInt(10)

// powers are the powers of ten that divisions and roundings of 34 digits need.
var powers = func() (p [128]*big.Int) {
	p[0] = big.NewInt(1)
	for i := 1; i < len(p); i++ {
		p[i] = new(big.Int).Mul(p[i-1], ten)
	}
	return p
}()

// tens gives 10ⁿ, which must not be changed.
func tens(n int) *big.Int {
	if n < len(powers) {
		return powers[n]
	}
	return new(big.Int).Exp(ten, big.NewInt(int64(n)), nil)
}

// digits counts those of w, which is not zero.
func digits(w *big.Int) int {
	n := w.BitLen() * 1233 >> 12 // log10(2), rounded down: one too few at most
	if w.CmpAbs(tens(n)) >= 0 {
		n++
	}
	return n
}

func abs64(c int64) int64 {
	if c < 0 {
		return -c
	}
	return c
}

// big gives the coefficient; the caller may change it.
func (d decimal) big() *big.Int {
	if d.wide != nil {
		return new(big.Int).Set(d.wide)
	}
	return big.NewInt(d.c)
}

// isInt says whether the number is whole and of at most 34 digits.
func (d decimal) isInt() bool { return d.e == 0 }

func (d decimal) sign() int {
	if d.wide != nil {
		return d.wide.Sign()
	}
	switch {
	case d.c < 0:
		return -1
	case d.c > 0:
		return 1
	}
	return 0
}

func (d decimal) neg() decimal {
	if d.wide != nil {
		return decimal{wide: new(big.Int).Neg(d.wide), e: d.e}
	}
	return decimal{c: -d.c, e: d.e}
}

func (d decimal) abs() decimal {
	if d.sign() < 0 {
		return d.neg()
	}
	return d
}

// align gives both coefficients at the smaller of the exponents, in int64 if they fit.
func align(a, b decimal) (x, y int64, e int32, ok bool) {
	if a.wide != nil || b.wide != nil {
		return 0, 0, 0, false
	}
	if a.e == b.e {
		return a.c, b.c, a.e, true
	}
	if a.e < b.e {
		y, x, e, ok = align(b, a)
		return x, y, e, ok
	}
	gap := a.e - b.e
	if gap > 18 || abs64(a.c) >= smallMax/pow10[gap] {
		return 0, 0, 0, false
	}
	return a.c * pow10[gap], b.c, b.e, true
}

func alignBig(a, b decimal) (x, y *big.Int, e int) {
	x, y, e = a.big(), b.big(), int(min(a.e, b.e))
	x.Mul(x, tens(int(a.e)-e))
	y.Mul(y, tens(int(b.e)-e))
	return x, y, e
}

func (d decimal) cmp(o decimal) int {
	if x, y, _, ok := align(d, o); ok {
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	}
	if s, t := d.sign(), o.sign(); s != t {
		if s < t {
			return -1
		}
		return 1
	}
	x, y, _ := alignBig(d, o)
	return x.Cmp(y)
}

func (d decimal) add(o decimal) (decimal, bool) {
	if x, y, e, ok := align(d, o); ok {
		return small(x+y, e)
	}
	x, y, e := alignBig(d, o)
	return wide(x.Add(x, y), e)
}

func (d decimal) mul(o decimal) (decimal, bool) {
	if d.wide == nil && o.wide == nil {
		if hi, lo := bits.Mul64(uint64(abs64(d.c)), uint64(abs64(o.c))); hi == 0 && lo < smallMax {
			return small(d.c*o.c, d.e+o.e)
		}
	}
	x := d.big()
	return wide(x.Mul(x, o.big()), int(d.e)+int(o.e))
}

// quo divides to 34 digits. o is not zero.
func (d decimal) quo(o decimal) (decimal, bool) {
	if d.wide == nil && o.wide == nil {
		for k, c := int32(0), d.c; k < 18 && abs64(c) < smallMax/10; k++ {
			if c%o.c == 0 {
				return small(c/o.c, d.e-o.e-k)
			}
			c *= 10
		}
	}
	if d.sign() == 0 {
		return decimal{}, true
	}
	x, y := d.big(), o.big()
	scale := max(0, digitsMax+2-digits(x)+digits(y))
	r := new(big.Int)
	x.Mul(x, tens(scale)).QuoRem(x, y, r)
	if r.Sign() != 0 { // what is left over decides a tie
		x.Mul(x, ten).Add(x, big.NewInt(int64(d.sign()*o.sign())))
		scale++
	}
	return wide(x, int(d.e)-int(o.e)-scale)
}

// quoInt divides whole numbers and drops what is left over. o is not zero.
func (d decimal) quoInt(o decimal) (decimal, bool) {
	if d.wide == nil && o.wide == nil {
		return small(d.c/o.c, 0)
	}
	x := d.big()
	return wide(x.Quo(x, o.big()), 0)
}

// rem is what division leaves over, with the sign of d. o is not zero.
func (d decimal) rem(o decimal) (decimal, bool) {
	if x, y, e, ok := align(d, o); ok {
		return small(x%y, e)
	}
	x, y, e := alignBig(d, o)
	return wide(x.Rem(x, y), e)
}

type rounding uint8

const (
	towardZero rounding = iota
	towardFloor
	towardCeil
	halfAway // from zero
)

// round keeps the given number of places behind the point.
func (d decimal) round(places int, how rounding) decimal {
	drop := -int(d.e) - places
	if drop <= 0 {
		return d
	}
	q, r := new(big.Int), new(big.Int)
	p := tens(drop)
	q.QuoRem(d.big(), p, r)
	var away bool
	switch how {
	case towardFloor:
		away = r.Sign() < 0
	case towardCeil:
		away = r.Sign() > 0
	case halfAway:
		away = new(big.Int).Lsh(new(big.Int).Abs(r), 1).Cmp(p) >= 0
	}
	if away {
		q.Add(q, big.NewInt(int64(d.sign())))
	}
	out, _ := wide(q, -places)
	return out
}

// int gives the whole number's value, cut to the range of int64.
func (d decimal) int() int64 {
	t := d.round(0, towardZero)
	switch {
	case t.wide == nil && t.e == 0:
		return t.c
	case t.sign() < 0:
		return math.MinInt64
	}
	return math.MaxInt64
}

// append writes the number: plain where that is short, in scientific notation otherwise. Both are JSON.
func (d decimal) append(dst []byte) []byte {
	if d.wide == nil && d.e == 0 {
		return strconv.AppendInt(dst, d.c, 10)
	}
	var room [40]byte
	text := room[:0]
	if d.wide != nil {
		text = d.wide.Append(text, 10)
	} else {
		text = strconv.AppendInt(text, d.c, 10)
	}
	if text[0] == '-' {
		dst = append(dst, '-')
		text = text[1:]
	}
	if d.e == 0 {
		return append(dst, text...)
	}
	adjusted := int(d.e) + len(text) - 1
	if d.e < 0 && adjusted >= -6 {
		point := len(text) + int(d.e)
		if point <= 0 {
			dst = append(dst, '0', '.')
			for ; point < 0; point++ {
				dst = append(dst, '0')
			}
			return append(dst, text...)
		}
		dst = append(dst, text[:point]...)
		dst = append(dst, '.')
		return append(dst, text[point:]...)
	}
	dst = append(dst, text[0])
	if len(text) > 1 {
		dst = append(dst, '.')
		dst = append(dst, text[1:]...)
	}
	dst = append(dst, 'E')
	if adjusted > 0 {
		dst = append(dst, '+')
	}
	return strconv.AppendInt(dst, int64(adjusted), 10)
}

func (d decimal) float() float64 {
	if d.wide == nil && d.e == 0 {
		return float64(d.c)
	}
	var room [48]byte
	f, _ := strconv.ParseFloat(string(d.append(room[:0])), 64)
	return f
}

// fromFloat gives the shortest decimal that reads back as f; it is false for NaN and infinities.
func fromFloat(f float64) (decimal, bool) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return decimal{}, false
	}
	var room [32]byte
	return parseDecimal(strconv.AppendFloat(room[:0], f, 'e', -1, 64), true)
}
