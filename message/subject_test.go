package message

import (
	"math/rand/v2"
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
	for _, a := range []string{"a", "b", "*", ">"} {
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
	tokens := []string{"a", "b", "c"}
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
