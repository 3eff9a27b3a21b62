package message

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestTraceparentKeepsW3CsRules(t *testing.T) {
	const id, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, c := range []struct{ name, header, fault string }{
		{"sampled", "00-" + id + "-" + span + "-01", ""},
		{"not sampled", "00-" + id + "-" + span + "-00", ""},
		{"flags of the future", "00-" + id + "-" + span + "-ff", ""},
		{"a higher version", "cc-" + id + "-" + span + "-01", ""},
		{"a higher version with more behind a dash", "cc-" + id + "-" + span + "-01-what-the-future-brings", ""},
		{"a higher version with nothing behind its dash", "cc-" + id + "-" + span + "-01-", ""},
		{"a higher version with more and no dash", "cc-" + id + "-" + span + "-01.what", "dash after the flags"},
		{"version 00 with more", "00-" + id + "-" + span + "-01-x", "nothing after its flags"},
		{"version 00 with a dash", "00-" + id + "-" + span + "-01-", "nothing after its flags"},
		{"version ff", "ff-" + id + "-" + span + "-01", "version ff"},
		{"version in upper case", "CC-" + id + "-" + span + "-01", "lower-case"},
		{"version that is no number", "0x-" + id + "-" + span + "-01", "lower-case"},
		{"trace id in upper case", "00-" + strings.ToUpper(id) + "-" + span + "-01", "lower-case"},
		{"trace id that is no number", "00-" + id[:31] + "." + "-" + span + "-01", "lower-case"},
		{"trace id of zeros", "00-" + strings.Repeat("0", 32) + "-" + span + "-01", "trace id is zero"},
		{"trace id too long", "00-" + id + "0-" + span + "-01", "55 characters"},
		{"trace id too short", "00-" + id[1:] + "-" + span + "-01", "55 characters"},
		{"span id in upper case", "00-" + id + "-" + strings.ToUpper(span) + "-01", "lower-case"},
		{"span id of zeros", "00-" + id + "-0000000000000000-01", "span id is zero"},
		{"span id too long", "00-" + id + "-" + span + "0-01", "55 characters"},
		{"flags in upper case", "00-" + id + "-" + span + "-0A", "lower-case"},
		{"flags that are no number", "00-" + id + "-" + span + "-.0", "lower-case"},
		{"flags of one digit", "00-" + id + "-" + span + "-1", "55 characters"},
		{"no flags", "00-" + id + "-" + span, "55 characters"},
		{"underscores", strings.ReplaceAll("00-"+id+"-"+span+"-01", "-", "_"), "55 characters"},
		{"blank before", " 00-" + id + "-" + span + "-01", "55 characters"},
		{"nothing", "", "55 characters"},
		{"much of nothing", strings.Repeat("-", 10_000), "lower-case"},
	} {
		got, err := ParseTraceparent(c.header)
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) || len(err.Error()) > 200 || got != (Trace{}) {
				t.Errorf("%s: %v, %v; want an error about %q", c.name, got, err, c.fault)
			}
			continue
		}
		if err != nil || got.ID.String() != id || got.Span.String() != span || got.Flags&^Sampled != 0 {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		if sampled := c.header[54] == '1' || c.header[54] == 'f'; (got.Flags == Sampled) != sampled {
			t.Errorf("%s: flags %02x", c.name, got.Flags)
		}
	}
}

func TestNewTraceIsValidAndSaysWhenItBegan(t *testing.T) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 789_123_456, time.UTC)
	seen := map[TraceID]bool{}
	for range 1000 {
		tr := NewTrace(at)
		if back, err := ParseTraceparent(tr.Traceparent()); err != nil || back != tr || tr.Flags != Sampled {
			t.Fatalf("%s is read as %+v, %v", tr.Traceparent(), back, err)
		}
		if hint, ok := tr.ID.Hint(at); !ok || !hint.Equal(at.Truncate(time.Millisecond)) {
			t.Fatalf("%s hints at %v, %v; want %v to the millisecond", tr.ID, hint, ok, at)
		}
		seen[tr.ID] = true
	}
	if len(seen) != 1000 {
		t.Errorf("of 1000 traces %d differ", len(seen))
	}
	if _, ok := NewTrace(at).ID.Hint(at.Add(-time.Second)); ok {
		t.Error("an id from the future gives a hint")
	}
	if foreign, _ := ParseTraceID("0000651916cd43dd8448eb211c80319c"); foreign.IsZero() {
		t.Error("the foreign id was not read")
	} else if hint, ok := foreign.Hint(at); ok {
		t.Errorf("a foreign id hints at %v", hint)
	}
}

func TestTraceIDsAreReadAsTheyAreWritten(t *testing.T) {
	type holder struct {
		Trace, None TraceID
		Span        SpanID
	}
	tr := NewTrace(time.Unix(1_700_000_000, 0))
	want := holder{Trace: tr.ID, Span: tr.Span}
	written, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := holder{None: tr.ID}
	if err := json.Unmarshal(written, &got); err != nil || got != want {
		t.Errorf("%s is read as %+v, %v", written, got, err)
	}
	for _, bad := range []string{"", "0af7651916cd43dd8448eb211c80319", "0af7651916cd43dd8448eb211c80319g", strings.Repeat("0", 5000)} {
		id := tr.ID
		if err := id.UnmarshalText([]byte(bad)); err == nil || id != tr.ID || len(err.Error()) > 250 {
			t.Errorf("trace id %.50q: %v, and it is %s; want a short error and the id as it was", bad, err, id)
		}
	}
	for _, bad := range []string{"", "b7ad6b716920333", "b7ad6b716920333x", strings.Repeat("0", 5000)} {
		span := tr.Span
		if err := span.UnmarshalText([]byte(bad)); err == nil || span != tr.Span || len(err.Error()) > 250 {
			t.Errorf("span id %.50q: %v, and it is %s; want a short error and the id as it was", bad, err, span)
		}
	}
	if _, err := ParseTraceID(strings.Repeat("0", 32)); err == nil {
		t.Error("a trace id of zeros is taken for one")
	}
}
