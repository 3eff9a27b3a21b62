package sql

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// wrong are values that no function over numbers takes.
var wrong = []string{"true", "'x'", "[1]", "{'a': 1}", "null", "missing", "*", "''", "' 1'"}

// TestNumberFunctionsTakeNumbersAndNumericStrings holds the tables of arguments that the numeric functions have in common.
func TestNumberFunctionsTakeNumbersAndNumericStrings(t *testing.T) {
	for _, f := range numberFunctions {
		if f.name == "trunc" {
			continue // its second argument takes no strings; below
		}
		second := ""
		if f.min == 2 {
			second = ", 1"
		}
		if got := value1(t, f.name+"(1"+second+")"); got == "" {
			t.Errorf("%s of a number is Undefined", f.name)
		}
		if a, b := value1(t, f.name+"('0.5'"+second+")"), value1(t, f.name+"(0.5"+second+")"); a != b {
			t.Errorf("%s of '0.5' is %s, and of 0.5 %s", f.name, a, b)
		}
		for _, w := range wrong {
			if got := value1(t, f.name+"("+w+second+")"); got != "" {
				t.Errorf("%s(%s%s) = %s, want Undefined", f.name, w, second, got)
			}
			if second == "" {
				continue
			}
			if got := value1(t, f.name+"(1, "+w+")"); got != "" {
				t.Errorf("%s(1, %s) = %s, want Undefined", f.name, w, got)
			}
		}
	}
}

// TestTextFunctionsTakeWhatBecomesText: all but Null and Undefined does.
func TestTextFunctionsTakeWhatBecomesText(t *testing.T) {
	for _, name := range []string{"length", "numbytes", "lower", "upper", "trim", "ltrim", "rtrim", "md2", "md5", "sha1", "sha224", "sha256", "sha384", "sha512"} {
		for arg, text := range map[string]string{"5": "'5'", "1.50": "'1.5'", "true": "'true'", "[1, 'a']": `'[1,"a"]'`, "{'a': null}": `'{"a":null}'`} {
			if a, b := value1(t, name+"("+arg+")"), value1(t, name+"("+text+")"); a != b || a == "" {
				t.Errorf("%s(%s) is %s, of %s it is %s", name, arg, a, text, b)
			}
		}
		for _, w := range []string{"null", "missing"} {
			if got := value1(t, name+"("+w+")"); got != "" {
				t.Errorf("%s(%s) = %s, want Undefined", name, w, got)
			}
		}
	}
	for _, name := range []string{"startswith", "endswith", "indexof", "regexp_matches", "regexp_substr"} {
		for _, args := range []string{"null, 'a'", "'a', null", "missing, 'a'", "'a', missing"} {
			if got := value1(t, name+"("+args+")"); got != "" {
				t.Errorf("%s(%s) = %s, want Undefined", name, args, got)
			}
		}
	}
}

// TestFunctions holds what the tables above do not.
func TestFunctions(t *testing.T) {
	for _, c := range []struct{ of, want string }{
		{"abs(-1.5)", "1.5"}, {"abs('-5')", "5"}, {"ceil('1.2')", "2"}, {"floor(12345678901234567890.5)", "12345678901234567890"}, {"round(0.5)", "1"}, {"round(-0.5)", "-1"}, {"round(2.4999)", "2"},
		{"trunc('2.3456', 2)", "2.34"}, {"trunc(2.3, '1')", ""}, {"trunc(2.3, -1)", "2"}, {"trunc(2.3, 99)", "2.3"}, {"trunc(2.3456, 1.9)", "2.3"}, {"trunc(true, 1)", ""}, {"trunc(null, 1)", ""}, {"trunc(missing, 1)", ""}, {"trunc(-2.39, 1)", "-2.3"},
		{"sign(-0.1)", "-1"}, {"sign('12')", "1"}, {"mod(-8, 3)", "-2"}, {"mod(8, 0)", ""}, {"remainder(8.5, 3)", "2.5"}, {"power(2, 0.5)", "1.4142135623730951"}, {"power(0, -1)", ""}, {"power(-8, 0.5)", ""}, {"power(10, 400)", ""},
		{"acos(2)", ""}, {"asin(-2)", ""}, {"sqrt(-1)", ""}, {"ln(0)", ""}, {"ln(-1)", ""}, {"log(0)", ""}, {"exp(1000)", ""}, {"atan2(0, -1)", "3.141592653589793"}, {"sqrt(9) / 2", "1.5"},
		{"bitand('13', 5.9)", "5"}, {"bitand(-1, 255)", "255"}, {"bitor(1E30, 1)", "1000000000000000000000000000001"}, {"bitxor(5, -1)", "-6"}, {"bitnot(-1)", "0"}, {"bitnot('2.9')", "-3"}, {"bitand(1E300, 1)", ""},
		{"chr(65.9)", `"A"`}, {"chr('66')", `"B"`}, {"chr(128)", ""}, {"chr(-1)", ""}, {"chr(true)", ""}, {"chr(null)", ""}, {"chr(0)", `"\u0000"`},
		{"concat('a', null)", ""}, {"concat('a', missing)", ""}, {"concat([1], missing)", ""}, {"concat([1], null)", "[1,null]"}, {"concat(1, 2)", ""}, {"concat([[1]])", "[[1]]"}, {"concat(true, 'x')", `"truex"`}, {"concat('a', {'b': 1})", `"a{\"b\":1}"`},
		{"endswith(123, 3)", "true"}, {"startswith(true, 't')", "true"}, {"startswith('a', '')", "true"}, {"indexof('añb', 'b')", "2"}, {"indexof('a', 'x')", "-1"}, {"indexof(1234, 34)", "2"},
		{"length('añ€😀')", "4"}, {"numbytes('añ€😀')", "10"}, {"lower('ÄÖ')", `"äö"`}, {"upper('straße')", `"STRAßE"`},
		{"lpad('a', -1)", `"a"`}, {"length(lpad('', 5000))", "1000"}, {"lpad('a', '1.9')", `" a"`}, {"lpad('a', true)", ""}, {"lpad('a', 'x')", ""}, {"lpad(null, 1)", ""}, {"rpad(true, 1)", `"true "`}, {"rpad('a', null)", ""}, {"rpad([1], 1)", `"[1] "`},
		{"ltrim('\t a\t ')", `"a\t "`}, {"rtrim('\t a\t ')", `"\t a"`}, {"trim('\t a\t ')", `"a"`},
		{"replace('aaa', 'a', 'bb')", `"bbbbbb"`}, {"replace(1213, 1, 9)", "\"9293\""}, {"replace('a', null, 'b')", ""}, {"replace('a', 'b', missing)", ""}, {"replace('ab', '', '-')", `"-a-b-"`}, {"replace('a.b', '.', '+')", `"a+b"`},
		{"substring('añ€', 1, 2)", `"ñ"`}, {"substring('abc', '1')", `"bc"`}, {"substring('abc', 'x')", ""}, {"substring('abc', true)", ""}, {"substring('abc', 1, null)", ""}, {"substring(null, 1)", ""}, {"substring('abc', 9)", `""`},
		{"encode('a', 'base64')", `"YQ=="`}, {"encode(1.5, 'base64')", `"MS41"`}, {"encode({'a': 1}, 'base64')", `"eyJhIjoxfQ=="`}, {"encode(null, 'base64')", ""}, {"encode(missing, 'base64')", ""}, {"encode('a', 'hex')", ""}, {"encode(*, 'base64')", `"eyJhcnIiOlsxLDIsM10sInN0ciI6ImFiYyIsIm9iaiI6eyJrLTEiOjV9fQ=="`},
		{"decode('YQ==', 'base64')", `"a"`}, {"decode('!!', 'base64')", "null"}, {"decode('eyJhIjpbMV19', 'base64').a", "[1]"}, {"decode('WzEsMl0=', 'base64')", "[1,2]"}, {"decode('eyJhIg==', 'base64')", `"{\"a\""`}, {"decode(null, 'base64')", ""}, {"decode('/w==', 'base64')", `"` + "\uFFFD" + `"`}, {"decode(encode('x', 'base64'), str)", ""},
		{"get(str, 2)", `"c"`}, {"get(str, 3)", ""}, {"get(str, -1)", ""}, {"get(arr, '1')", "2"}, {"get(arr, 1.9)", "2"}, {"get(arr, 'x')", ""}, {"get(arr, true)", ""}, {"get(obj, 'k-1')", "5"}, {"get(obj, 1)", ""}, {"get(obj, 'none')", ""}, {"get(5, 0)", ""}, {"get(null, 0)", ""}, {"get(missing, 0)", ""}, {"get(arr, 1E300)", ""}, {"get(*, 'str')", `"abc"`},
		{"get_or_default(missing)", ""}, {"get_or_default(null)", ""}, {"get_or_default(false, 1)", "false"}, {"get_or_default(missing, null)", "null"},
		{"isNull(missing)", "false"}, {"isUndefined(null)", "false"}, {"isUndefined(missing)", "true"}, {"isUndefined(1 / 0)", "true"}, {"ISNULL(null)", "true"},
		{"nanvl(missing, 2)", "2"}, {"nanvl(null, 2)", "2"}, {"nanvl('x', 2)", `"x"`}, {"nanvl(1.5, 2)", "1.5"},
		{"regexp_matches('abc', '^b')", "false"}, {"regexp_matches(12.5, '^[0-9.]+$')", "true"}, {"regexp_matches(arr, '2')", "true"}, {"regexp_matches('abc', str)", "true"}, {"regexp_matches('a', '[' + 'x')", ""}, {`regexp_matches('a1', 'a\d')`, "true"},
		{"regexp_substr('abc', 'x')", ""}, {"regexp_substr('abc', '')", `""`}, {"regexp_substr(12345, '3.')", `"34"`}, {"regexp_replace('a1b2', '[0-9]', '<$0>')", `"a<1>b<2>"`}, {"regexp_replace('ab', '(a)(b)', '$2$1')", `"ba"`}, {"regexp_replace('ab', '(a)', '$12')", `"a2b"`},
		{"regexp_replace('ab', 'a', '$1')", ""}, {"regexp_replace('ab', 'a', '$x')", ""}, {"regexp_replace('ab', 'a', '$')", ""}, {`regexp_replace('ab', 'a', '\$1')`, `"$1b"`}, {`regexp_replace('ab', 'a', '\')`, ""}, {"regexp_replace('ab', '(?P<n>a)', '${n}!')", `"a!b"`}, {"regexp_replace('ab', 'a', '${n}')", ""}, {"regexp_replace('ab', 'a', '${n')", ""}, {"regexp_replace('ab', 'a', null)", ""}, {"regexp_replace(null, 'a', 'b')", ""}, {"regexp_replace('aXbX', '(Y)?X', '-$1')", `"a-b-"`},
		{"md2('')", `"8350e5a3e24c153df2275c9f80692773"`}, {"md2('abc')", `"da853b0d3f88d99b30283a69e6ded6bb"`}, {"md2('12345678901234567890123456789012345678901234567890123456789012345678901234567890')", `"d5976f79d83d3a0dc9806c3c66f3efd8"`},
		{"sha1('abc')", `"a9993e364706816aba3e25717850c26c9cd0d89d"`}, {"sha224('abc')", `"23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"`}, {"sha256('abc')", `"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"`}, {"substring(sha384('abc'), 0, 16)", `"cb00753f45a35e8b"`}, {"substring(sha512('abc'), 0, 16)", `"ddaf35a193617aba"`},
		{"topic(2)", `"b"`}, {"topic(3)", ""}, {"topic(0)", ""}, {"topic(-1)", ""}, {"topic('1')", `"a"`}, {"topic(1.9)", `"a"`}, {"topic(true)", ""}, {"topic(1, 2)", ""},
		{"get_mqtt_property('message_expiry')", "60"}, {"get_mqtt_property(str)", ""}, {"get_mqtt_property(1 + 1)", ""}, {"get_user_properties(5)", ""}, {"get_user_properties('o')", `["ov"]`},
		{"get_thing_shadow('MyThing').state.reported.alarm", `"ON"`}, {"get_thing_shadow('MyThing', 'MyThingShadow').state.reported.alarm", `"ON"`}, {"get_thing_shadow('MyThing', 'other', 'arn:x')", ""}, {"get_thing_shadow('Other')", ""}, {"get_thing_shadow(null)", ""},
		{"transform('enrichArray', {'a': 1}, [{'a': 0, 'b': 2}, {}])", `[{"a":1,"b":2},{"a":1}]`}, {"transform('other', {}, [])", ""}, {"transform('enrichArray', [], [])", ""}, {"transform('enrichArray', {}, [1])", ""}, {"transform('enrichArray', {}, {})", ""}, {"transform('enrichArray', {}, [])", "[]"},
		{"cast(12345678901234567890123456789012345.5 AS Int)", "1.234567890123456789012345678901235E+34"}, {"cast('7' + '7' AS Int) + 1", "78"},
	} {
		if got := value1(t, c.of); got != c.want {
			t.Errorf("%s = %s, want %s", c.of, got, c.want)
		}
	}
}

func value1(t *testing.T, of string) string {
	t.Helper()
	s, err := Compile("SELECT VALUE (" + of + ")")
	if err != nil {
		t.Fatalf("%s: %v", of, err)
	}
	out, _, err := s.Eval(sample("a/b", `{"arr":[1,2,3],"str":"abc","obj":{"k-1":5}}`))
	if err != nil {
		t.Fatalf("%s: %v", of, err)
	}
	return string(out.Payload)
}

// TestMessageWithoutMetadata makes the functions of the message Undefined, except clientid().
func TestMessageWithoutMetadata(t *testing.T) {
	s, err := Compile("SELECT principal() AS p, sourceip() AS s, traceid() AS t, accountid() AS a, timestamp() AS ts, clientid() AS c, " +
		"get_mqtt_property('content_type') AS ct, get_mqtt_property('correlation_data') AS cd, get_mqtt_property('message_expiry') AS me, " +
		"get_mqtt_property('format_indicator') AS fi, get_user_properties() AS up, get_thing_shadow('x') AS sh")
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := s.Eval(&Input{})
	if want := `{"c":"n/a","fi":"UNSPECIFIED_BYTES"}`; err != nil || string(out.Payload) != want {
		t.Errorf("got %s (%v), want %s", out.Payload, err, want)
	}
}

func TestRandomnessWithoutHooks(t *testing.T) {
	s, err := Compile("SELECT newuuid() AS a, newuuid() AS b, rand() AS r")
	if err != nil {
		t.Fatal(err)
	}
	one, _, _ := s.Eval(&Input{})
	two, _, _ := s.Eval(&Input{})
	if string(one.Payload) == string(two.Payload) || len(one.Payload) < 90 {
		t.Errorf("%s and %s", one.Payload, two.Payload)
	}
}

// TestCallsThatCannotBeRightAreRefused when the statement is compiled.
func TestCallsThatCannotBeRightAreRefused(t *testing.T) {
	for of, want := range map[string]string{
		"decode(a, 'proto', 's3')":             "Protocol Buffers",
		"decode(a, 'hex')":                     "the scheme 'base64'",
		"regexp_matches(a, '(')":               "a regular expression of RE2",
		"regexp_matches(a, 'x(?=y)')":          "a regular expression of RE2",
		"get_mqtt_property('colour')":          "'content_type'",
		"parse_time('yyyy-MM-dd T', 0)":        "put words in single quotes",
		"parse_time('''', 0)":                  "not closed",
		"time_to_epoch(a, 'yyyy [')":           "[ without ]",
		"time_to_epoch(a, 'yyyy ]')":           "] without [",
		"machinelearning_predict('m', 'r', *)": "send the rule's output to a worker",
		"get_secret('a', 'b', 'c')":            "name the secret in the action's own settings",
		"get_registry_data('a')":               "get_thing_shadow",
		"no_such_thing(1)":                     "listed in the rule language's README",
		"concatt('a')":                         "did you mean concat()?",
	} {
		if _, err := Compile("SELECT " + of + " AS x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", of, err)
		}
	}
}

// TestWrongNumberOfArgumentsIsUndefined and warned about.
func TestWrongNumberOfArgumentsIsUndefined(t *testing.T) {
	for name, f := range functions {
		if f.max == anyNumber {
			continue
		}
		s, err := Compile("SELECT " + name + "(" + strings.TrimSuffix(strings.Repeat("'1', ", f.max+1), ", ") + ") AS x")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if out, _, err := s.Eval(sample("", "{}")); string(out.Payload) != "{}" || err != nil {
			t.Errorf("%s with %d arguments gives %s (%v)", name, f.max+1, out.Payload, err)
		}
		if len(s.Warnings()) != 1 {
			t.Errorf("%s: warnings %q", name, s.Warnings())
		}
	}
}

type broken struct{}

func (broken) ThingShadow(string, string) ([]byte, error) { return nil, errors.New("the twin rests") }

func TestLookupErrorEndsTheEvaluation(t *testing.T) {
	s, err := Compile("SELECT * WHERE isUndefined(get_thing_shadow('t', 'n', 'arn:r'))")
	if err != nil {
		t.Fatal(err)
	}
	_, matched, err := s.Eval(&Input{Lookup: broken{}})
	if matched || err == nil || !strings.Contains(err.Error(), `look up the shadow "n" of "t": the twin rests`) {
		t.Errorf("%v, %v", matched, err)
	}
	if errors.As(err, new(*PayloadError)) {
		t.Error("it is no fault of the payload")
	}
}

// TestTimes formats and reads times.
func TestTimes(t *testing.T) {
	for _, c := range []struct{ of, want string }{
		{"parse_time('yyyy-MM-dd''T''HH:mm:ss.SSSZZ', 1481825251155)", `"2016-12-15T18:07:31.155+00:00"`}, {"parse_time('EEE EEEE MMM MMMM D e w xxxx', 1481825251155)", `"Thu Thursday Dec December 350 4 50 2016"`},
		{"parse_time('yy K h k a CC', 1481825251155)", `"16 6 6 18 PM 20"`}, {"parse_time('h k K', 0)", `"12 24 0"`}, {"parse_time('HH:mm Z ZZ ZZZ z', 0, 'Europe/Berlin')", `"01:00 +0100 +01:00 Europe/Berlin CET"`},
		{"parse_time('HH:mm z', 0, '+05:30')", `"05:30 +05:30"`}, {"parse_time('HH', 0, 'UTC-3')", `"21"`}, {"parse_time('HH', 0, 'Nowhere/Town')", ""}, {"parse_time('HH', 0, null)", ""}, {"parse_time('HH', 'x')", ""}, {"parse_time('HH', '3600000')", `"01"`}, {"parse_time(missing, 0)", ""}, {"parse_time(str, 0)", ""}, {"parse_time('yyyy', 1E30)", ""},
		{"parse_time('SSSSS', 7)", `"00700"`}, {"parse_time('S', 999)", `"9"`}, {"parse_time('yyyy', -1)", `"1969"`}, {"parse_time('HH', 0, 'Local')", ""}, {"parse_time('HH', 0, '')", ""}, {"parse_time('ddMMyyyy', 0.9)", `"01011970"`},
		{"time_to_epoch('1970-01-01', 'yyyy-MM-dd')", "0"}, {"time_to_epoch('1970-01-01T01:00:00Z', 'yyyy-MM-dd''T''HH:mm:ssX')", "3600000"}, {"time_to_epoch('1970-01-01 01:00 +0100', 'yyyy-MM-dd HH:mm Z')", "0"}, {"time_to_epoch('1970-01-01 01:00 +01:00', 'yyyy-MM-dd HH:mm xxx')", "0"},
		{"time_to_epoch('1/2/1970 1:05 PM', 'd/M/y h:mm a')", "2725500000"}, {"time_to_epoch('Thu, 1 Jan 1970', 'EEE, d MMM yyyy')", "0"}, {"time_to_epoch('Fri, 1 Jan 1970', 'EEE, d MMM yyyy')", ""}, {"time_to_epoch('1970-02-31', 'yyyy-MM-dd')", ""}, {"time_to_epoch('1970-13-01', 'yyyy-MM-dd')", ""},
		{"time_to_epoch('1970-01-01 extra', 'yyyy-MM-dd')", ""}, {"time_to_epoch('01:00', 'HH:mm')", ""}, {"time_to_epoch('19700101T000001', 'yyyyMMdd''T''HHmmss')", "1000"}, {"time_to_epoch('1970-01-01', 'yyyy-MM-dd[ HH:mm]')", "0"}, {"time_to_epoch('1970-01-01 00:01', 'yyyy-MM-dd[ HH:mm]')", "60000"},
		{"time_to_epoch('1970-032', 'yyyy-DDD')", "2678400000"}, {"time_to_epoch('70-01-01', 'yy-MM-dd')", "3155760000000"}, {"time_to_epoch('1970-01-01 GMT+1', 'yyyy-MM-dd O')", "-3600000"}, {"time_to_epoch('1970-01-01 PST', 'yyyy-MM-dd z')", "28800000"}, {"time_to_epoch('1970-01-01 XYZ', 'yyyy-MM-dd z')", ""},
		{"time_to_epoch('1 AD', 'y G')", "-62135596800000"}, {"time_to_epoch('1970-01-01 24', 'yyyy-MM-dd kk')", "0"}, {"time_to_epoch('1970-01-01 11', 'yyyy-MM-dd KK')", "39600000"}, {"time_to_epoch('1970-01-01 1', 'yyyy-MM-dd A')", "1"}, {"time_to_epoch('1970-01-01 1000000', 'yyyy-MM-dd n')", "1"}, {"time_to_epoch(null, 'yyyy')", ""}, {"time_to_epoch('1970', missing)", ""}, {"time_to_epoch('1970', str)", ""}, {"time_to_epoch(1970, 'yyyy')", "0"},
	} {
		if got := value1(t, c.of); got != c.want {
			t.Errorf("%s = %s, want %s", c.of, got, c.want)
		}
	}
}

func TestEveryFunctionIsListed(t *testing.T) {
	for _, name := range strings.Fields("abs accountid acos asin atan atan2 bitand bitnot bitor bitxor ceil chr clientid concat cos cosh decode encode endswith exp floor get " +
		"get_mqtt_property get_or_default get_thing_shadow get_user_properties indexof isnull isundefined length ln log lower lpad ltrim md2 md5 mod nanvl newuuid numbytes parse_time power principal rand " +
		"regexp_matches regexp_replace regexp_substr remainder replace round rpad rtrim sha1 sha224 sha256 sha384 sha512 sign sin sinh sourceip sql_version sqrt startswith substring tan tanh time_to_epoch timestamp topic traceid transform trim trunc upper") {
		if functions[name] == nil {
			t.Errorf("%s() is missing", name)
		}
	}
	var names []string
	for name := range functions {
		names = append(names, name)
	}
	if slices.Contains(names, "") {
		t.Error("a function has no name")
	}
}
