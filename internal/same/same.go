// Package same says whether two JSON texts mean the same. Numbers are compared exactly and of any size: 1, 1.0 and 10e-1 are
// the same, 9007199254740993 and 9007199254740992 are not. The order of an object's names says nothing; of a name that
// comes twice the last one counts.
package same

import (
	"bytes"
	"encoding/json"
	"io"
	"math/big"
	"strconv"
	"strings"
)

// JSON compares two texts. One that is no JSON is the same as none.
func JSON(a, b []byte) bool {
	x, ok := decode(a)
	if !ok {
		return false
	}
	y, ok := decode(b)
	return ok && values(x, y)
}

func decode(raw []byte) (v any, ok bool) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil, false
	}
	_, err := d.Token()
	return v, err == io.EOF
}

func values(a, b any) bool {
	switch x := a.(type) {
	case json.Number:
		y, ok := b.(json.Number)
		return ok && Numbers(string(x), string(y))
	case []any:
		y, ok := b.([]any)
		if !ok || len(x) != len(y) {
			return false
		}
		for i := range x {
			if !values(x[i], y[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok || len(x) != len(y) {
			return false
		}
		for name, v := range x {
			w, there := y[name]
			if !there || !values(v, w) {
				return false
			}
		}
		return true
	}
	return a == b // null, true, false, or a text
}

// Numbers compares two numbers as JSON writes them.
func Numbers(a, b string) bool {
	if a == b {
		return true
	}
	x, y := normal(a), normal(b)
	if x.wide != nil && y.wide != nil && x.wide.Cmp(y.wide) == 0 {
		x.wide, y.wide = nil, nil
	}
	return x == y
}

// number is 0.digits × 10^exponent; the digits neither begin nor end with a zero. It is never written out, so that an
// exponent of any size takes no more room than its text.
type number struct {
	negative bool
	digits   string
	point    int64    // the exponent
	wide     *big.Int // or this one, where it takes more than 64 bits
}

func normal(s string) number {
	var n number
	s, n.negative = strings.CutPrefix(s, "-")
	exponent := ""
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		s, exponent = s[:i], strings.TrimPrefix(s[i+1:], "+")
	}
	n.digits = s
	whole, fraction, there := strings.Cut(s, ".")
	if there {
		n.digits = whole + fraction
	}
	n.digits = strings.TrimLeft(n.digits, "0")
	// The point stands behind the whole part; zeros that were taken away in front bring it nearer.
	n.point = int64(len(n.digits) - len(fraction))
	n.digits = strings.TrimRight(n.digits, "0")
	if n.digits == "" {
		return number{} // zero is zero, also -0.0e5
	}
	if exponent == "" {
		return n
	}
	if e, err := strconv.ParseInt(exponent, 10, 32); err == nil {
		n.point += e
		return n
	}
	wide, _ := new(big.Int).SetString(exponent, 10)
	if wide.Add(wide, big.NewInt(n.point)); wide.IsInt64() {
		n.point = wide.Int64()
	} else {
		n.point, n.wide = 0, wide
	}
	return n
}
