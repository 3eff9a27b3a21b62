package same

import (
	"encoding/json"
	"math/big"
	"strings"
	"testing"
)

func TestJSONIsComparedByMeaning(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{`1`, `1.0`, true}, {`1`, `10e-1`, true}, {`1`, `0.1E+1`, true}, {`100`, `1e2`, true}, {`-0`, `0.0`, true}, {`-1`, `1`, false}, {`0.10`, `0.1`, true},
		{`9007199254740993`, `9007199254740992`, false}, {`9007199254740993`, `9007199254740993.000`, true}, {`12345678901234567890123456789012345678`, `12345678901234567890123456789012345679`, false},
		{`0.1`, `0.1000000000000000055511151231257827`, false}, {`1e400`, `1e401`, false}, {`1e400`, `10e399`, true}, {`1e999999999999`, `10e999999999998`, true}, {`1e-999999999999`, `0`, false}, {`0e999999999999`, `0`, true},
		{`1e9223372036854775807`, `0.1e9223372036854775808`, true}, {`0.001e9223372036854775809`, `1e9223372036854775806`, true}, {`10e9223372036854775807`, `1e9223372036854775808`, true}, {`1e9223372036854775808`, `1e9223372036854775807`, false},
		{`1e-9223372036854775809`, `10e-9223372036854775810`, true}, {`1e99999999999999999999999`, `1e99999999999999999999998`, false}, {`-1e99999999999999999999999`, `1e99999999999999999999999`, false}, {`1e99999999999999999999999`, `1`, false},
		{`null`, `null`, true}, {`null`, `0`, false}, {`null`, ``, false}, {``, ``, false}, {`true`, `"true"`, false}, {`1`, `"1"`, false}, {`"a"`, `"\u0061"`, true},
		{`{"a":1,"b":[1,{"c":null}]}`, `{ "b" : [1.0, {"c":null}], "a":1 }`, true}, {`{"a":1}`, `{"a":1,"b":null}`, false}, {`{"a":null}`, `{"b":null}`, false}, {`[1,2]`, `[2,1]`, false}, {`[]`, `{}`, false},
		{`{"a":1,"a":2}`, `{"a":2}`, true}, {`1 2`, `1`, false}, {`no`, `no`, false},
	} {
		if got := JSON([]byte(c.a), []byte(c.b)); got != c.want {
			t.Errorf("%s and %s are the same: %v", c.a, c.b, got)
		}
		if got := JSON([]byte(c.b), []byte(c.a)); got != c.want {
			t.Errorf("%s and %s are the same: %v", c.b, c.a, got)
		}
	}
}

// FuzzNumbers holds the comparison against exact fractions.
func FuzzNumbers(f *testing.F) {
	for _, s := range []string{"1", "1.0", "-10e-1", "0.001", "12300", "1.23E+4", "-0"} {
		f.Add(s, "1")
		f.Add(s, s+"0")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, ok := exact(a)
		y, both := exact(b)
		if !ok || !both {
			return
		}
		if got := Numbers(a, b); got != (x.Cmp(y) == 0) {
			t.Errorf("%s and %s are the same: %v", a, b, got)
		}
	})
}

// exact reads a JSON number whose exponent is small.
func exact(s string) (*big.Rat, bool) {
	if _, e, ok := strings.Cut(strings.ToLower(s), "e"); ok && len(e) > 3 || !json.Valid([]byte(s)) || len(s) > 200 || strings.ContainsAny(s, "\"[{tfn \n\t\r") {
		return nil, false
	}
	return new(big.Rat).SetString(s)
}
