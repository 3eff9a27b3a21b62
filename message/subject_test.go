package message

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTopicsAndSubjectsAreOneAndTheSame(t *testing.T) {
	for topic, subject := range map[string]Subject{
		"device/d-17/telemetry": "device.d-17.telemetry",
		"/a//b.c/":              "%.a.%.b%2Ec.%",
		"/":                     "%.%",
		"a b/50%":               "a%20b.50%25",
		"$SYS/x":                "$SYS.x",
		"나루/*/>":                "나루.%2A.%3E",
		"tab\there":             "tab%09here",
	} {
		got, err := FromTopic(topic)
		if err != nil || got != subject {
			t.Errorf("FromTopic(%q) is %q, %v; want %q", topic, got, err, subject)
		}
		if got.Topic() != topic || got.Valid() != nil {
			t.Errorf("%q goes back to %q, valid: %v", got, got.Topic(), got.Valid())
		}
	}
	for _, bad := range []string{"", "a/+", "a/#", "a\x00", "\xff", "a+b"} {
		if s, err := FromTopic(bad); err == nil {
			t.Errorf("FromTopic(%q) is %q; want an error", bad, s)
		}
	}
	for _, bad := range []Subject{"", ".", "a.", ".a", "a..b", "a.*", ">", "a b", "a/b", "a+", "a#", "%4", "%41", "%2e", "%00", "a\xff", "%%"} {
		if bad.Valid() == nil {
			t.Errorf("subject %q is taken for valid", bad)
		}
	}
}

func TestEveryTopicComesBack(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	alphabet := []rune("ab/.% *>$é나\t\x7f-_~")
	for range 20_000 {
		var b strings.Builder
		for range 1 + r.IntN(12) {
			b.WriteRune(alphabet[r.IntN(len(alphabet))])
		}
		s, err := FromTopic(b.String())
		if err != nil || s.Valid() != nil || s.Topic() != b.String() {
			t.Fatalf("%q -> %q (%v, %v) -> %q", b.String(), s, err, s.Valid(), s.Topic())
		}
	}
}

func TestEverySubjectComesBack(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	parts := []string{"a", "b-1", "$x", "나루", "%2E", "%25", "%20", "%2A", "%3E", "%7F", "%01", "~"}
	for range 20_000 {
		tokens := make([]string, 1+r.IntN(5))
		for i := range tokens {
			for range r.IntN(4) {
				tokens[i] += parts[r.IntN(len(parts))]
			}
			if tokens[i] == "" {
				tokens[i] = "%"
			}
		}
		s := Subject(strings.Join(tokens, "."))
		if s == "%" {
			continue // the topic would be empty, and there is none
		}
		back, err := FromTopic(s.Topic())
		if s.Valid() != nil || err != nil || back != s {
			t.Fatalf("%q (%v) -> %q -> %q (%v)", s, s.Valid(), s.Topic(), back, err)
		}
		for i, token := range strings.Split(s.Topic(), "/") {
			if got := s.Token(i); got != token {
				t.Fatalf("token %d of %q is %q; want %q", i, s, got, token)
			}
		}
		if got := s.Token(len(tokens)); got != "" {
			t.Fatalf("%q has a token behind its last: %q", s, got)
		}
	}
}

func TestNewSubjectMakesOneTokenOfEachText(t *testing.T) {
	for want, texts := range map[Subject][]string{
		"device.d-17.telemetry": {"device", "d-17", "telemetry"},
		"a.10%2E0%2E0%2E1.b":    {"a", "10.0.0.1", "b"},
		"a.%.b":                 {"a", "", "b"},
		"a.100%25.%2A.%3E":      {"a", "100%", "*", ">"},
	} {
		s := NewSubject(texts...)
		if s != want || s.Valid() != nil {
			t.Errorf("NewSubject(%q) is %q, %v; want %q", texts, s, s.Valid(), want)
		}
		for i, text := range texts {
			if s.Token(i) != text || Escape(text) != strings.Split(string(s), ".")[i] {
				t.Errorf("token %d of %q is %q; want %q", i, s, s.Token(i), text)
			}
		}
	}
	for _, text := range []string{"a/b", "a+", "#", "\x00", "\xff"} {
		if s := NewSubject("a", text); s.Valid() == nil {
			t.Errorf("NewSubject(a, %q) is %q, and taken for valid", text, s)
		}
	}
}

func TestNamespaceIsOneOfTheFive(t *testing.T) {
	for _, n := range Namespaces() {
		if got := Subject(n + ".a").Namespace(); got != n {
			t.Errorf("%s.a is in %s", n, got)
		}
	}
	for _, s := range []Subject{"home.kitchen", "$SYS.x", "devices.a", "%.a", "operator%2Ea"} {
		if got := s.Namespace(); got != Device {
			t.Errorf("%s is in %s; what comes from outside is a device's", s, got)
		}
	}
}

func TestAFaultIsNamedWithItsPlace(t *testing.T) {
	for s, want := range map[string]string{
		"":       "nothing there at byte 0",
		"a..b":   "an empty token (an empty MQTT level is written %) at byte 2",
		"a.b*":   "a wildcard at byte 3",
		"a.b c":  "' ', which must be escaped at byte 3",
		"a.x/y":  "a character of MQTT's own grammar at byte 3",
		"a.%2g":  "a percent sign without two upper-case hexadecimal digits at byte 2",
		"a.b%41": "an escape of what needs none at byte 3",
		"나.\xff": "malformed UTF-8 at byte 4",
		"%":      "one empty level, which is no topic at byte 0",
	} {
		if err := Subject(s).Valid(); err == nil || !strings.HasSuffix(err.Error(), ": "+want) {
			t.Errorf("subject %q: %v; want %s", s, err, want)
		}
	}
	for _, p := range []Pattern{"*", ">", "a.*.>", "*.*", "%", "%.>", "a"} {
		if err := p.Valid(); err != nil || p.Literal() != (p == "a" || p == "%") {
			t.Errorf("pattern %q: %v, literal %v", p, err, p.Literal())
		}
	}
	for _, p := range []Pattern{"", ">.a", "a.>.b", "a*", "a.b>", "**", "a..*"} {
		if p.Valid() == nil {
			t.Errorf("pattern %q is taken for valid", p)
		}
	}
	if err := Subject(strings.Repeat("a", 1000) + " ").Valid(); err == nil || len(err.Error()) > 200 {
		t.Errorf("a long subject is quoted whole: %v", err)
	}
}

// The examples of MQTT 5 §4.7.1 and §4.7.2, as they stand there.
func TestExamplesOfMQTT(t *testing.T) {
	for _, c := range []struct {
		filter  string
		yes, no []string
	}{
		{"sport/tennis/player1/#", []string{"sport/tennis/player1", "sport/tennis/player1/ranking", "sport/tennis/player1/score/wimbledon"}, []string{"sport/tennis/player2", "sport/tennis"}},
		{"sport/#", []string{"sport", "sport/tennis"}, []string{"sports"}},
		{"#", []string{"sport", "/finance", "a/b/c"}, []string{"$SYS", "$SYS/monitor/Clients"}},
		{"sport/tennis/#", []string{"sport/tennis", "sport/tennis/player1"}, []string{"sport"}},
		{"+", []string{"sport"}, []string{"/finance", "sport/tennis", "$SYS"}},
		{"+/tennis/#", []string{"sport/tennis", "/tennis/x"}, []string{"sport/golf", "$SYS/tennis"}},
		{"sport/tennis/+", []string{"sport/tennis/player1", "sport/tennis/player2", "sport/tennis/"}, []string{"sport/tennis/player1/ranking", "sport/tennis"}},
		{"sport/+", []string{"sport/"}, []string{"sport"}},
		{"sport/+/player1", []string{"sport/tennis/player1", "sport//player1"}, []string{"sport/player1"}},
		{"+/+", []string{"/finance", "a/b"}, []string{"finance"}},
		{"/+", []string{"/finance"}, []string{"finance", "a/finance"}},
		{"+/monitor/Clients", []string{"a/monitor/Clients"}, []string{"$SYS/monitor/Clients"}},
		{"$SYS/#", []string{"$SYS", "$SYS/monitor/Clients"}, []string{"SYS"}},
		{"$SYS/monitor/+", []string{"$SYS/monitor/Clients"}, []string{"$SYS/monitor"}},
		{"ACCOUNTS", []string{"ACCOUNTS"}, []string{"Accounts", "/ACCOUNTS"}},
		{"Accounts payable", []string{"Accounts payable"}, []string{"Accounts"}},
	} {
		patterns, err := FromFilter(c.filter)
		if err != nil {
			t.Fatal(err)
		}
		selects := func(topic string) bool {
			s, err := FromTopic(topic)
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(patterns, func(p Pattern) bool { return p.Matches(s) })
		}
		for _, topic := range c.yes {
			if !selects(topic) || !naive(c.filter, topic) {
				t.Errorf("%s does not select %s", c.filter, topic)
			}
		}
		for _, topic := range c.no {
			if selects(topic) || naive(c.filter, topic) {
				t.Errorf("%s selects %s", c.filter, topic)
			}
		}
	}
	for _, bad := range []string{"sport/tennis#", "sport/tennis/#/ranking", "sport+"} {
		if p, err := FromFilter(bad); err == nil {
			t.Errorf("FromFilter(%q) is %v; MQTT says it is not valid", bad, p)
		}
	}
}

// selected matches as the comment on Pattern says, token by token.
func selected(p, s []string) bool {
	switch {
	case len(p) == 0 || len(s) == 0:
		return len(p) == len(s)
	case p[0] == ">":
		return true
	case p[0] == "*" || p[0] == s[0]:
		return selected(p[1:], s[1:])
	}
	return false
}

func TestPatternsMatchAsTheyAreDescribed(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	tokens := []string{"a", "b", "aa", "%", "$a", "%2E"}
	matched := 0
	for range 100_000 {
		var p, s []string
		for range 1 + r.IntN(4) {
			p = append(p, append(tokens, "*", "*", "*")[r.IntN(9)])
		}
		if r.IntN(3) == 0 {
			p[len(p)-1] = ">"
		}
		for range 1 + r.IntN(4) {
			s = append(s, tokens[r.IntN(6)])
		}
		want := selected(p, s) && !(s[0][0] == '$' && (p[0] == "*" || p[0] == ">"))
		if want {
			matched++
		}
		pattern, subject := Pattern(strings.Join(p, ".")), Subject(strings.Join(s, "."))
		if pattern.Matches(subject) != want {
			t.Fatalf("%q matches %q: %v; want %v", pattern, subject, !want, want)
		}
	}
	if matched < 5000 {
		t.Errorf("only %d of the cases match, too few to tell", matched)
	}
}

// naive matches as MQTT 5 §4.7 says it, level by level.
func naive(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	f, l := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i, level := range f {
		if level == "#" {
			return true
		}
		if i >= len(l) || level != "+" && level != l[i] {
			return false
		}
		if i == len(f)-2 && f[i+1] == "#" && len(l) == i+1 {
			return true
		}
	}
	return len(f) == len(l)
}

func TestFiltersSelectWhatMQTTSays(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	levels := []string{"a", "b", "", "$x"}
	for range 50_000 {
		var f, l []string
		for range 1 + r.IntN(4) {
			f = append(f, append(levels, "+", "+")[r.IntN(6)])
		}
		if r.IntN(3) == 0 {
			f = append(f, "#")
		}
		for range 1 + r.IntN(4) {
			l = append(l, levels[r.IntN(4)])
		}
		filter, topic := strings.Join(f, "/"), strings.Join(l, "/")
		if filter == "" || topic == "" {
			continue
		}
		patterns, err := FromFilter(filter)
		if err != nil {
			t.Fatal(err)
		}
		s, err := FromTopic(topic)
		if err != nil {
			t.Fatal(err)
		}
		got := false
		for _, p := range patterns {
			if p.Valid() != nil {
				t.Fatalf("%q gives the pattern %q: %v", filter, p, p.Valid())
			}
			got = got || p.Matches(s)
		}
		if got != naive(filter, topic) {
			t.Fatalf("filter %q, topic %q: %v; MQTT says %v", filter, topic, got, !got)
		}
	}
	for _, bad := range []string{"", "a/#/b", "a#", "a+/b", "\xff", "a\x00"} {
		if p, err := FromFilter(bad); err == nil {
			t.Errorf("FromFilter(%q) is %v; want an error", bad, p)
		}
	}
}

func TestCoversIsMatchingOfAllThatIsMatched(t *testing.T) {
	var patterns []Pattern
	var subjects []Subject
	for _, a := range []string{"a", "$a", "*", ">"} {
		patterns = append(patterns, Pattern(a))
		for _, b := range []string{"a", "b", "*", ">"} {
			if a != ">" {
				patterns = append(patterns, Pattern(a+"."+b))
				for _, c := range []string{"a", "*", ">"} {
					if b != ">" {
						patterns = append(patterns, Pattern(a+"."+b+"."+c))
					}
				}
			}
		}
	}
	tokens := []string{"a", "b", "c", "$a", "$c"}
	for _, a := range tokens {
		subjects = append(subjects, Subject(a))
		for _, b := range tokens {
			subjects = append(subjects, Subject(a+"."+b))
			for _, c := range tokens {
				subjects = append(subjects, Subject(a+"."+b+"."+c), Subject(a+"."+b+"."+c+".d"))
			}
		}
	}
	for _, p := range patterns {
		for _, q := range patterns {
			all := true
			for _, s := range subjects {
				all = all && (!q.Matches(s) || p.Matches(s))
			}
			if p.Covers(q) != all {
				t.Errorf("%q covers %q: %v; brute force says %v", p, q, p.Covers(q), all)
			}
		}
	}
}

func FuzzTopic(f *testing.F) {
	for _, s := range []string{"a/b", "/a//b.c/", "$SYS/%", "나루"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		s, err := FromTopic(topic)
		legal := topic != "" && utf8.ValidString(topic) && !strings.ContainsAny(topic, "+#\x00")
		if (err == nil) != legal {
			t.Fatalf("%q: %v", topic, err)
		}
		if err == nil && (s.Topic() != topic || s.Valid() != nil) {
			t.Fatalf("%q -> %q (%v) -> %q", topic, s, s.Valid(), s.Topic())
		}
	})
}

func FuzzSubject(f *testing.F) {
	for _, s := range []string{"a.b", "%.a.%2E", "a.%", "%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := Subject(text)
		if s.Valid() != nil {
			return
		}
		if back, err := FromTopic(s.Topic()); err != nil || back != s {
			t.Fatalf("%q -> %q -> %q (%v)", s, s.Topic(), back, err)
		}
		if !Pattern(s).Matches(s) || !Pattern(s).Covers(Pattern(s)) {
			t.Fatalf("%q does not match itself", s)
		}
	})
}

func BenchmarkMatches(b *testing.B) {
	subject := Subject("device.d-000017.telemetry.engine")
	for _, p := range []Pattern{">", "device.>", "device.*.telemetry.*", "device.*.twin.>", "service_platform.>"} {
		b.Run(string(p), func(b *testing.B) {
			n := 0
			for b.Loop() {
				if p.Matches(subject) {
					n++
				}
			}
		})
	}
}
