package sql

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// noon is the time of every message in these tests.
var noon = time.UnixMilli(1481825251155)

func evaluate(t *testing.T, statement, payload string) (string, bool) {
	t.Helper()
	s, err := Compile(statement)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	out, matched, err := s.Eval(&Input{Topic: "a/b", Payload: []byte(payload), Time: noon})
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return string(out.Payload), matched
}

// TestExpressions puts each expression out as VALUE; an empty wish is Undefined.
func TestExpressions(t *testing.T) {
	const payload = `{"t":21.5,"n":7,"neg":-3,"s":"text","num":"12.5","yes":true,"no":false,"nil":null,"arr":[1,2,{"x":3}],` +
		`"obj":{"a":{"b":1},"b":2},"b\u0061r":"escaped","twice":1,"twice":2,"big":12345678901234567890123456789012345678,"ten":10.0,"e":1e3,"value":5}`
	for _, c := range []struct{ of, want string }{
		{"1", "1"}, {"-1", "-1"}, {"1.5", "1.5"}, {"10.0", "10"}, {"1E3", "1000"}, {"'a'", `"a"`}, {`"a"`, `"a"`}, {"'it''s'", `"it's"`},
		{"true", "true"}, {"FALSE", "false"}, {"null", "null"}, {"[1, 'a', null]", `[1,"a",null]`}, {"{'a': 1, 'b': [2]}", `{"a":1,"b":[2]}`},
		{"{'a': missing, 'b': 1,}", `{"b":1}`}, {"[missing, 1]", "[1]"},
		{"t", "21.5"}, {"missing", ""}, {"nil", "null"}, {"obj.a.b", "1"}, {"obj.a.c", ""}, {"s.a", ""}, {"bar", `"escaped"`}, {"twice", "2"},
		{"arr", `[1,2,{"x":3}]`}, {"obj", `{"a":{"b":1},"b":2}`}, {"get(arr, 2).x", "3"}, {"arr[2].x", "3"}, {"get(arr, 3)", ""}, {"get(arr, -1)", ""},
		{"big", "12345678901234567890123456789012345678"}, {"ten", "10"}, {"e", "1000"}, {"value", "5"}, {"value + 1", "6"},
		{"1 + 2 * 3", "7"}, {"(1 + 2) * 3", "9"}, {"7 / 2", "3"}, {"-7 / 2", "-3"}, {"7.5 / 2", "3.75"}, {"'7' / 2", "3.5"}, {"1.0 / 3.5", "0.2857142857142857142857142857142857"},
		{"7 % 3", "1"}, {"-7 % 3", "-1"}, {"7.5 % 2", "1.5"}, {"1 / 0", ""}, {"1 % 0", ""}, {"2.5 * 2", "5"}, {"2.5 * 2 / 2", "2.5"},
		{"5 - 7", "-2"}, {"5--7", "12"}, {"'5' - '3'", "2"}, {"'a' - 1", ""}, {"null + 1", ""}, {"true + 1", ""}, {"missing + 1", ""}, {"0.1 + 0.2", "0.3"},
		{"9999999999999999999999999999999999 + 1", "1E+34"}, {"999999999999999999 + 1", "1000000000000000000"},
		{"123456789012 * 123456789012", "15241578753153483936144"}, {"1E999 * 10", ""}, {"1E-999 / 10", "0"},
		{"'a' + 'b'", `"ab"`}, {"'a' + 1.50", `"a1.5"`}, {"1 + 'a'", `"1a"`}, {"'a' + true", `"atrue"`}, {"'a' + arr", `"a[1,2,{\"x\":3}]"`}, {"'a' + nil", ""}, {"'a' + missing", ""},
		{"1 = 1.0", "true"}, {"1 = '1'", "false"}, {"1 <> '1'", "true"}, {"'a' = 'a'", "true"}, {"'a' = 'A'", "false"}, {"nil = null", "true"}, {"nil <> null", "false"},
		{"missing = 1", ""}, {"missing <> 1", ""}, {"[1,2] = [1,2]", "true"}, {"[1,2] = [2,1]", "false"}, {"arr = [1,2,{'x':3}]", "true"}, {"obj = {'b':2,'a':{'b':1}}", "true"}, {"obj <> {'b':2}", "true"},
		{"2 < 10", "true"}, {"'2' < '10'", "true"}, {"'2' < 10", "true"}, {"'a' < 'b'", ""}, {"1 <= 1", "true"}, {"2 > 1", "true"}, {"1 >= 2", "false"}, {"nil < 1", ""}, {"true > false", ""}, {"1e400 > 1", "true"},
		{"yes AND no", "false"}, {"yes AND 'TRUE'", "true"}, {"yes AND 1", ""}, {"no AND missing", ""}, {"yes OR missing", ""}, {"yes OR no", "true"}, {"NOT yes", "false"}, {"NOT 'false'", "true"}, {"NOT 1", ""}, {"not not yes", "true"},
		{"1 = 1 AND 2 = 2 OR 1 = 2", "true"}, {"NOT 1 = 2", "true"}, {"1 + 1 = 2", "true"},
		{"CASE n WHEN 1 THEN 'one' WHEN 7 THEN 'seven' END", `"seven"`}, {"CASE n WHEN 1 THEN 'one' END", ""}, {"CASE n WHEN 1 THEN 'one' ELSE 'many' END", `"many"`}, {"CASE missing WHEN 1 THEN 1 ELSE 2 END", ""},
		{"-n", "-7"}, {"-num", "-12.5"}, {"-s", ""}, {"- -n", "7"}, {".5", "0.5"},
		{"(SELECT VALUE x FROM arr WHERE x = 3)", "[3]"}, {"(SELECT a FROM obj)", `{"a":{"b":1}}`}, {"(SELECT x FROM s)", ""}, {"(SELECT VALUE * FROM arr)", `[1,2,{"x":3}]`}, {"(SELECT * FROM obj WHERE b = 1)", ""},
		{"cast('12.7' AS Int)", "12"}, {"cast(-1.5 AS int)", "-2"}, {"cast(true AS Decimal)", "1"}, {"cast(0 AS Boolean)", "false"}, {"cast(arr AS String)", `"[1,2,{\"x\":3}]"`}, {"cast('x' AS Int)", ""}, {"cast(nil AS String)", ""}, {"cast('Yes' AS Bool)", ""}, {"cast('TRUE' AS bool)", "true"},
		{"n IN (1, 7)", "true"}, {"n NOT IN (1, 7)", "false"}, {"s LIKE 't_x%'", "true"}, {"s NOT LIKE 'x%'", "true"}, {"n BETWEEN 7 AND 9", "true"}, {"nil IS NULL", "true"}, {"n IS NOT NULL", "true"}, {"missing IS UNDEFINED", "true"}, {"1 != 2", "true"}, {"CASE WHEN n > 5 THEN 'big' ELSE 'small' END", `"big"`},
	} {
		if got, _ := evaluate(t, "SELECT VALUE ("+c.of+")", payload); got != c.want {
			t.Errorf("%s = %s, want %s", c.of, got, c.want)
		}
	}
}

// TestSelect shapes the output.
func TestSelect(t *testing.T) {
	for _, c := range []struct{ statement, payload, want string }{
		{"SELECT * FROM 'a'", ` {"b" : 1} `, ` {"b" : 1} `},
		{"SELECT * FROM 'a'", "\x00\xff", "\x00\xff"},
		{"SELECT b, a AS x.y, c AS x.z", `{"a":1,"b":{"k" : [ 1.0, "x y" ]},"c":3}`, `{"b":{"k":[1,"x y"]},"x":{"y":1,"z":3}}`},
		{"SELECT *, 2 AS b, 3 AS c", `{"a":1,"b":1}`, `{"a":1,"b":2,"c":3}`},
		{"SELECT *, a AS n.x", `{"a":1,"n":{"y":2}}`, `{"a":1,"n":{"y":2,"x":1}}`},
		{"SELECT *, missing AS a", `{"a":1}`, `{"a":1}`},
		{"SELECT *, 1 AS a", ``, `{"a":1}`},
		{"SELECT a.b.c, d.value", `{"a":{"b":{"c":1}},"d":{"value":2}}`, `{"c":1,"value":2}`},
		{"SELECT missing", `{}`, `{}`},
		{"SELECT value FROM 'a'", `{"value":1}`, `{"value":1}`},
		{"SELECT value AS v", `{"value":1}`, `{"v":1}`},
		{"SELECT value * 2 AS v", `{"value":1}`, `{"v":2}`},
		{"SELECT VALUE *", `[1]`, `[1]`},
		{"SELECT VALUE missing", `{}`, ``},
		{"SELECT * AS payload, 1 AS x", `{"a": 1}`, `{"payload":{"a":1},"x":1}`},
		{"SET @a = t + 1, @b = @a * 2 SELECT @a AS a, @b AS b, t WHERE @b > 3", `{"t":1}`, `{"a":2,"b":4,"t":1}`},
		{"SELECT (SELECT (SELECT VALUE x FROM in) AS i, x FROM arr) AS o", `{"x":0,"arr":[{"x":1,"in":[{"x":2}]}]}`, `{"o":[{"i":[2],"x":1}]}`},
		{"SET @x = x SELECT (SELECT x, @x AS outer FROM arr) AS o, x", `{"x":0,"arr":[{"x":1}]}`, `{"o":[{"x":1,"outer":0}],"x":0}`},
		{"SELECT a + 0.5 AS b, a + 1.5 AS c", `{"a":1234567890123456789012345678901234}`, `{"b":1234567890123456789012345678901234,"c":1234567890123456789012345678901236}`},
		{"SET @o = a.b SELECT @o.c, @o.d AS e", `{"a":{"b":{"c":1,"d":2}}}`, `{"c":1,"e":2}`},
	} {
		got, matched := evaluate(t, c.statement, c.payload)
		if got != c.want || !matched {
			t.Errorf("%s of %s = %s (%v), want %s", c.statement, c.payload, got, matched, c.want)
		}
	}
}

// TestLastOfEqualNamesCounts also in objects that are large, and wherever a name is escaped.
func TestLastOfEqualNamesCounts(t *testing.T) {
	var many strings.Builder
	for i := range 100 {
		many.WriteString(`"k` + itoa(i%50) + `":` + itoa(i) + `,`)
	}
	payload := `{"o":{` + many.String() + `"\u006b7":"last"}}`
	got, _ := evaluate(t, "SELECT o.k7 AS a, o.k3 AS b, transform('enrichArray', {}, [o]) AS c", payload)
	if !strings.HasPrefix(got, `{"a":"last","b":53,"c":[{"k0":50,`) || strings.Count(got, `"k7":"last"`) != 1 || strings.Count(got, ":") != 53 {
		t.Errorf("got %s", got)
	}
}

func TestWhereDecides(t *testing.T) {
	for _, c := range []struct {
		where, payload string
		want           bool
	}{
		{"t > 20", `{"t":21}`, true}, {"t > 20", `{"t":20}`, false}, {"t > 20", `{}`, false}, {"t > 20", `no json`, false}, {"t > 20", ``, false},
		{"t > 20 AND c = 'x'", `{"t":21,"c":"x"}`, true}, {"t > 20 AND c = 'x'", `{"t":21}`, false}, {"NOT (t > 20 AND c = 'x')", `{"t":1}`, false},
		{"t > 20 OR c = 'x'", `{"t":1,"c":"x"}`, true}, {"yes", `{"yes":"true"}`, true}, {"yes", `{"yes":1}`, false}, {"t > 20", `{"t":21} trailing`, false},
	} {
		_, matched := evaluate(t, "SELECT * FROM 'a' WHERE "+c.where, c.payload)
		if matched != c.want {
			t.Errorf("%s of %s: matched %v", c.where, c.payload, matched)
		}
	}
}

// TestCompileErrorsNameThePlace holds the place and what was wanted there.
func TestCompileErrorsNameThePlace(t *testing.T) {
	for _, c := range []struct{ statement, want string }{
		{"", "line 1, column 1: want SELECT, got the end"},
		{"SELECT", "line 1, column 7: want an expression, got the end"},
		{"SELECT a b", `line 1, column 10: want an operator, a comma, AS, FROM, WHERE or the end, got "b"`},
		{"SELECT *\nFROM a/b", `line 2, column 6: want a topic filter in single quotes, got "a"`},
		{"SELECT * FROM 'a/#/b'", "# stands alone"},
		{"SELECT * FROM 'a+/b'", "+ stands alone"},
		{"SELECT * FROM ''", "at least one character"},
		{"SELECT * FROM 'a' WHERE", "column 24: want an expression, got the end"},
		{"SELECT * WHERE a = 1 FROM 'a'", "FROM stands before WHERE"},
		{"SELECT a + 1", `column 13: want AS and a name, got the end; "a + 1" has no name of its own`},
		{"SELECT aws_lambda('x', *) AS y", "want a function that needs no AWS account, got aws_lambda()"},
		{"SELECT get_dynamodb(1) AS y", "get_dynamodb()"},
		{"SELECT isnul(a)", "did you mean isNull()?"},
		{"SELECT 'abc", "want a closing '"},
		{"SELECT a -- comment", "no comments"},
		{"SELECT /* c */ a", "no comments"},
		{"SELECT a; ", "without a semicolon"},
		{"SELECT (temperature – 32) AS c", "this dash is no minus"},
		{"SELECT 2a", "begins with a digit"},
		{"SELECT a.'b'", "get(…, 'the name')"},
		{"SELECT @x", "want a variable that SET has defined before, got @x"},
		{"SET @x = 1, @x = 2 SELECT @x", "@x again"},
		{"SET @x = 1 SET @y = 2 SELECT @x", "a second SET"},
		{"SET x = 1 SELECT x", "want @name"},
		{"SELECT cast(a AS date)", "want a type"},
		{"SELECT CASE a END AS b", "want WHEN"},
		{"SELECT {a: 1} AS b", "want a name in quotes"},
		{"SELECT VALUE a, b", "puts out one value"},
		{"SELECT (SELECT a) AS b", "want a comma, AS or FROM"},
		{"SELECT 1E9999 AS a", "9.99E999"},
		{"SELECT " + strings.Repeat("(", 1000) + "1" + strings.Repeat(")", 1000) + " AS a", "levels of nesting"},
		{"SELECT " + strings.Repeat("- ", 1000) + "a AS a", "levels of nesting"},
		{"SELECT '" + strings.Repeat("a", 70000) + "' AS a", "a text of at most 65536 bytes"},
		{"SELECT @" + strings.Repeat("a", 65), "at most 64 characters"},
		{"SELECT a.from, b FROM 'x' WHERE from = 1", `want an expression, got "from"`},
		{"SELECT \xff", "the byte 0xff"},
	} {
		_, err := Compile(c.statement)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60s: error %v, want %s", c.statement, err, c.want)
			continue
		}
		if _, ok := err.(*Error); !ok {
			t.Errorf("%.60s: the error is a %T", c.statement, err)
		}
	}
}

func TestStatementTellsWhatItIs(t *testing.T) {
	s, err := Compile("SELECT a[0] AS b FROM 'x/+/#' WHERE a IN (1) AND b IN (2) AND isNull(1, 2)")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Filter(); got != "x/+/#" {
		t.Errorf("the filter is %q", got)
	}
	if got, want := s.Extensions(), []string{"[index]", "IN"}; !reflect.DeepEqual(got, want) {
		t.Errorf("extensions %q, want %q", got, want)
	}
	if got := s.Warnings(); len(got) != 1 || !strings.Contains(got[0], "isNull takes 1 argument, here are 2") {
		t.Errorf("warnings %q", got)
	}
}

// TestPayloadThatIsNoJSON is refused where members are to be taken from it, and passes whole.
func TestPayloadThatIsNoJSON(t *testing.T) {
	for _, c := range []struct{ statement, payload, want string }{
		{"SELECT a", "{broken", "it is no JSON from byte 1 on"},
		{"SELECT *, 1 AS x", "\x01\x02", "it is no JSON from byte 0 on"},
		{"SELECT *, 1 AS x", "[1]", "it is a JSON Array"},
		{"SELECT a", strings.Repeat("[", 100000), "no JSON"},
	} {
		s, err := Compile(c.statement)
		if err != nil {
			t.Fatal(err)
		}
		_, matched, err := s.Eval(&Input{Payload: []byte(c.payload)})
		if matched || !errors.As(err, new(*PayloadError)) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s of %.20q: %v, %v", c.statement, c.payload, matched, err)
		}
	}
}

// TestGrowthIsLimited ends statements that double a value again and again.
func TestGrowthIsLimited(t *testing.T) {
	for _, op := range []string{"@aM + @aM", "[@aM, @aM]"} {
		statement := "SET @a0 = 'xxxxxxxx'"
		for i := range 40 {
			statement += ", @a" + itoa(i+1) + " = " + strings.ReplaceAll(op, "M", itoa(i))
		}
		s, err := Compile(statement + " SELECT @a40 AS x, @a40 = @a40 AS y")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Eval(&Input{}); err == nil {
			t.Errorf("%s forty times passes", op)
		}
	}
}

func itoa(i int) string { b, _ := json.Marshal(i); return string(b) }
