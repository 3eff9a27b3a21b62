package sql

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/big"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

// seeds gives the documented statements to a fuzzer.
func seeds(f *testing.F, add func(statement, payload string)) {
	f.Helper()
	raw, err := os.ReadFile("testdata/documented.json")
	if err != nil {
		f.Fatal(err)
	}
	var cases []documented
	if err := json.Unmarshal(raw, &cases); err != nil {
		f.Fatal(err)
	}
	for _, c := range cases {
		if c.SQL == "" {
			c.SQL = "SELECT VALUE (" + c.Expr + ")"
		}
		add(c.SQL, c.Input)
	}
	for _, s := range []string{
		"SET @a = x, @b = @a + @a SELECT @b AS c.d, *, (SELECT *, a AS b.c FROM [{'a': 1}] WHERE NOT a LIKE '%x_') AS e WHERE x IN (1, [2]) OR y BETWEEN 1 AND 2 AND z IS NOT NULL",
		"SELECT regexp_replace(x, x, x) AS a, parse_time(x, y, x) AS b, time_to_epoch(x, x) AS c, trunc(y, y) AS d, y % y AS e, -y / 3 AS f, substring(x, y, y) AS g, x[y] AS h",
	} {
		add(s, `{"x":"a.b*","y":-12345678901234567890.5e-3,"z":{"a":[1,null,true,"\u00e9\ud83d\ude00"]}}`)
	}
}

// FuzzCompile: no text brings the compiler down, faults are *Error with a place in the text, and what compiles compiles again.
func FuzzCompile(f *testing.F) {
	seeds(f, func(s, _ string) { f.Add(s) })
	f.Fuzz(func(t *testing.T, text string) {
		for _, compile := range []func(string) error{
			func(s string) error { _, err := Compile(s); return err },
			func(s string) error { _, err := CompileTemplate(s); return err },
		} {
			err := compile(text)
			var fault *Error
			if err == nil {
				continue
			}
			if !errors.As(err, &fault) || fault.Line < 1 || fault.Column < 1 || fault.Line > 1+strings.Count(text, "\n") || fault.Want == "" || fault.Got == "" {
				t.Errorf("%q: %#v", text, err)
			}
		}
		if s, err := Compile(text); err == nil {
			again, err := Compile(s.String())
			if err != nil || again.Filter() != s.Filter() {
				t.Errorf("%q does not compile again: %v", text, err)
			}
		}
	})
}

// FuzzEval: no message brings a statement down, what comes out is JSON and the same each time, and Explain agrees with Eval.
func FuzzEval(f *testing.F) {
	seeds(f, func(s, p string) { f.Add(s, []byte(p)) })
	f.Fuzz(func(t *testing.T, statement string, payload []byte) {
		s, err := Compile(statement)
		if err != nil {
			return
		}
		before := bytes.Clone(payload)
		in := sample("a/b", "")
		in.Payload = payload
		one, matched, err := s.Eval(in)
		two, again, err2 := s.Eval(in)
		if matched != again || !bytes.Equal(one.Payload, two.Payload) || (err == nil) != (err2 == nil) {
			t.Errorf("%q of %q: first %q (%v, %v), then %q (%v, %v)", statement, payload, one.Payload, matched, err, two.Payload, again, err2)
		}
		if !bytes.Equal(before, payload) {
			t.Errorf("%q has changed the payload %q", statement, before)
		}
		if err == nil && matched && !s.starOnly() && !(s.value && len(one.Payload) == 0) && !json.Valid(one.Payload) {
			t.Errorf("%q of %q gives %q", statement, payload, one.Payload)
		}
		x := s.Explain(in)
		if x.Matched != matched || matched && s.where == nil && x.Reason != "" {
			t.Errorf("%q of %q: explained as %v (%s), evaluated as %v (%v)", statement, payload, x.Matched, x.Error, matched, err)
		}
		if _, err := json.Marshal(x); err != nil {
			t.Errorf("%q of %q: %v", statement, payload, err)
		}
	})
}

// FuzzJSON: the reader agrees with encoding/json about what is JSON, and about what is in it.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{"a":1,"b":[true,null],"a":"x\u00e9\ud83d\ude00\ud800"}`, "[]", "1e5", " 0 ", "-", "01", `"\x"`, `{"a":}`, "[1,]", "\"\xff\"", "-0.0E+1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := checker{b: b}
		ok := c.check()
		if want := json.Valid(b) && utf8.Valid(b); ok != want && bytes.Count(b, []byte("["))+bytes.Count(b, []byte("{")) < jsonDepthMax {
			t.Fatalf("%q is JSON: %v", b, ok)
		}
		if !ok {
			if c.i > len(b) {
				t.Fatalf("%q ends being JSON at %d", b, c.i)
			}
			return
		}
		out := appendCompact(nil, bytes.TrimSpace(b))
		if !json.Valid(out) {
			t.Fatalf("%q becomes %q", b, out)
		}
		var members map[string]json.RawMessage
		if json.Unmarshal(b, &members) != nil {
			return
		}
		for name, want := range members {
			got := find(bytes.TrimSpace(b), []byte(name))
			if bytes.TrimSpace(b)[0] == '{' && !bytes.Equal(got, bytes.TrimSpace(want)) {
				t.Errorf("%q of %q is %q, want %q", name, b, got, want)
			}
		}
	})
}

// TestDecimalsAreExact compares with math/big over random numbers of all sizes.
func TestDecimalsAreExact(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() decimal {
		n := r.IntN(34) + 1
		text := make([]byte, 0, 48)
		if r.IntN(2) == 0 {
			text = append(text, '-')
		}
		for range n {
			text = append(text, byte('0'+r.IntN(10)))
		}
		if r.IntN(2) == 0 {
			text = append(text, 'e')
			if r.IntN(2) == 0 {
				text = append(text, '-')
			}
			text = append(text, byte('0'+r.IntN(3)), byte('0'+r.IntN(10)))
		}
		d, ok := parseDecimal(text, true)
		want, _ := new(big.Rat).SetString(string(text))
		if !ok || rat(d).Cmp(want) != 0 {
			t.Fatalf("%s is read as %s", text, d.append(nil))
		}
		back, ok := parseDecimal(d.append(nil), true)
		if !ok || back.cmp(d) != 0 || !json.Valid(d.append(nil)) {
			t.Fatalf("%s is written as %s", text, d.append(nil))
		}
		return d
	}
	for range 20000 {
		a, b := random(), random()
		check := func(op string, got decimal, ok bool, want *big.Rat) {
			t.Helper()
			if !ok || !closeTo(rat(got), want) {
				t.Fatalf("%s %s %s = %s, want %s", a.append(nil), op, b.append(nil), got.append(nil), want.FloatString(40))
			}
		}
		sum, ok := a.add(b)
		check("+", sum, ok, new(big.Rat).Add(rat(a), rat(b)))
		product, ok := a.mul(b)
		check("*", product, ok, new(big.Rat).Mul(rat(a), rat(b)))
		if got, want := a.cmp(b), rat(a).Cmp(rat(b)); got != want {
			t.Fatalf("%s against %s is %d, want %d", a.append(nil), b.append(nil), got, want)
		}
		if b.sign() == 0 {
			continue
		}
		quotient, ok := a.quo(b)
		check("/", quotient, ok, new(big.Rat).Quo(rat(a), rat(b)))
		rest, ok := a.rem(b)
		q := new(big.Rat).Quo(rat(a), rat(b))
		cut := new(big.Rat).SetInt(new(big.Int).Quo(q.Num(), q.Denom()))
		check("%", rest, ok, new(big.Rat).Sub(rat(a), cut.Mul(cut, rat(b))))
		floor := a.round(0, towardFloor)
		if d := new(big.Rat).Sub(rat(a), rat(floor)); d.Sign() < 0 || d.Cmp(big.NewRat(1, 1)) >= 0 {
			t.Fatalf("floor(%s) = %s", a.append(nil), floor.append(nil))
		}
	}
}

func rat(d decimal) *big.Rat {
	r := new(big.Rat).SetInt(d.big())
	p := new(big.Rat).SetInt(tens(int(max(d.e, -d.e))))
	if d.e < 0 {
		return r.Quo(r, p)
	}
	return r.Mul(r, p)
}

// closeTo says whether got is want to 34 digits: off by half of the last one at most.
func closeTo(got, want *big.Rat) bool {
	if got.Cmp(want) == 0 {
		return true
	}
	off := new(big.Rat).Sub(got, want)
	off.Abs(off).Mul(off, new(big.Rat).SetInt(tens(34)))
	off.Quo(off, new(big.Rat).Abs(want))
	return off.Cmp(big.NewRat(5, 1)) <= 0
}
