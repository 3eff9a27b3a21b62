package sql

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestWorkOverLargeValuesIsCounted: an evaluation is bounded by what it does, and not only by how many expressions it has. Each of these
// would take seconds to hours for one message, in which no other message goes on.
func TestWorkOverLargeValuesIsCounted(t *testing.T) {
	zeros := "[" + strings.Repeat("0,", 5000) + "0]"
	var names strings.Builder
	for i := range 6000 {
		fmt.Fprintf(&names, `"n%d":1,`, i)
	}
	payload := `{"big":"` + strings.Repeat("a", 60_000) + `","arr":` + zeros + `,"obj":{` + names.String() + `"last":1},"objs":[` + strings.Repeat("{},", 150) + `{}],"pattern":"` +
		strings.Repeat(".{1000}", 500) + `","like":"%` + strings.Repeat("a", 20_000) + `b"}`
	for _, of := range []string{
		"(SELECT VALUE md2(@big) FROM arr)",
		"(SELECT VALUE sha512(@big) FROM arr)",
		"(SELECT VALUE length(upper(@big)) FROM arr)",
		"(SELECT VALUE (SELECT VALUE @obj.last FROM @arr) FROM arr)",
		"(SELECT VALUE indexof(@big, 'b') FROM arr)",
		"(SELECT VALUE @big < 1 FROM arr)",
		"(SELECT VALUE @big = @big2 FROM arr)",
		"(SELECT VALUE @obj = @obj FROM arr)",
		"(SELECT VALUE @obj.last FROM arr)",
		"(SELECT VALUE get(@obj, 'last') FROM arr)",
		"(SELECT VALUE @arr[5000] FROM arr)",
		"(SELECT VALUE get(@big, 50000) FROM arr)",
		"(SELECT VALUE 1 IN @arr FROM arr)",
		"(SELECT VALUE cast(@arr AS String) = 'x' FROM arr)",
		"(SELECT VALUE CASE @big WHEN @big2 THEN 1 END FROM arr)",
		"(SELECT VALUE regexp_matches(@big, '(a|b)*c') FROM arr)",
		"(SELECT VALUE regexp_matches('x', '(a|b)*c' + @tail) FROM arr)",
		"(SELECT VALUE replace(replace(@big, 'a', ''), 'b', '') FROM arr)",
		"(SELECT VALUE length(replace(substring(@big, 0, 1000), 'a', substring(@big, 0, 1000))) FROM arr)",
		"(SELECT VALUE decode(encode(@big, 'base64'), 'base64') FROM arr)",
		"(SELECT VALUE (SELECT VALUE parse_time('yyyy', 0, 'Asia/Seoul') FROM @arr) FROM arr)",
		"(SELECT VALUE (SELECT VALUE time_to_epoch('2020-01-01 Asia/Seoul', 'yyyy-MM-dd VV') FROM @arr) FROM arr)",
		"@big LIKE like",
		"transform('enrichArray', obj, objs)",
		"regexp_matches(big, '" + strings.Repeat("(a|b){50}", 40) + "c')",
	} {
		s, err := Compile("SET @big = big + '1', @big2 = big + '1', @arr = arr, @obj = obj, @tail = substring(big, 0, 3000) SELECT VALUE " + of + " FROM 'a'")
		if err != nil {
			t.Errorf("%s: %v", of, err)
			continue
		}
		began := time.Now()
		_, _, err = s.Eval(&Input{Topic: "a", Payload: []byte(payload), Time: noon})
		if !errors.Is(err, errTooLong) && !errors.Is(err, errTooLarge) {
			t.Errorf("%s: %v after %s", of, err, time.Since(began))
		}
		if testing.Verbose() {
			t.Logf("%s took %s: %v", of, time.Since(began), err)
		}
	}
}

func TestRegularExpressionsHaveALimitOfStates(t *testing.T) {
	for pattern, refused := range map[string]bool{"(a|b){500}": false, ".{1000}": false, "(.{90}){91}": true, strings.Repeat(".{1000}", 9): true, "((a{30}){30}){1}": false, strings.Repeat("x", 4096): false, strings.Repeat("x", 4097): true} {
		if _, err := Compile("SELECT regexp_matches(a, '" + pattern + "') AS b FROM 'a'"); (err != nil) != refused {
			t.Errorf("%.40s: %v", pattern, err)
		}
	}
	many := "SELECT " + strings.TrimSuffix(strings.Repeat("regexp_matches(a, '.{1000}') AS b, ", 70), ", ") + " FROM 'a'"
	if _, err := Compile(many); err == nil || !strings.Contains(err.Error(), "states together") {
		t.Errorf("70 patterns of a thousand states: %v", err)
	}
}
