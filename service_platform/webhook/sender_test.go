package webhook

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/outbound"
	"github.com/naru-platform/naru/message"
)

type report = component.Report

// called gives a destination one message, and what came of it.
func called(t *testing.T, config Config, s Settings, m *message.Message, try component.Try, now time.Time) ([]*message.Message, error) {
	t.Helper()
	config.DestinationsMax = 1
	w, err := build(component.Env{Now: func() time.Time { return now }}, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Valid(); err != nil {
		t.Fatal(err)
	}
	return newSender(w, &Destination{Name: "pager", Settings: s}).call(t.Context(), m, try)
}

func TestAnswerIsTheMessagesFate(t *testing.T) {
	now := time.Now()
	dead := newElsewhere(t, nil)
	dead.Close()
	for name, c := range map[string]struct {
		answer  func(w http.ResponseWriter, device, body string) int
		url     string // instead of the server's
		allow   []string
		last    bool
		reason  message.Reason // 0: tried again, or handled where text is empty
		after   time.Duration
		counted bool
		text    string
		told    int
	}{
		"taken":                 {answer: func(http.ResponseWriter, string, string) int { return 202 }},
		"refused":               {answer: func(http.ResponseWriter, string, string) int { return 400 }, reason: message.ReceiverRefused, text: "answered 400", told: 1},
		"elsewhere":             {answer: func(w http.ResponseWriter, _, _ string) int { w.Header().Set("Location", "/x"); return 302 }, reason: message.ReceiverRefused, text: "redirects are not followed", told: 1},
		"ill":                   {answer: func(http.ResponseWriter, string, string) int { return 503 }, counted: true, text: "answered 503"},
		"ill for the last time": {answer: func(http.ResponseWriter, string, string) int { return 503 }, last: true, counted: true, text: "answered 503", told: 1},
		"too many": {answer: func(w http.ResponseWriter, _, _ string) int { w.Header().Set("Retry-After", "7"); return 429 }, after: 7 * time.Second,
			counted: true, text: "answered 429"},
		"too many until": {answer: func(w http.ResponseWriter, _, _ string) int {
			w.Header().Set("Retry-After", now.Add(time.Minute).UTC().Format(http.TimeFormat))
			return 429
		}, after: -1, counted: true, text: "answered 429"},
		"gone":                        {url: dead.URL, text: "cannot be reached"},
		"gone, and it is no attempt":  {url: dead.URL, last: true, text: "cannot be reached"},
		"an address nobody meant":     {allow: []string{"10.0.0.0/8"}, text: "no public address"},
		"an address of the cloud's":   {url: "http://169.254.169.254/latest", text: "no public address"},
		"an address in another dress": {url: "http://[::ffff:127.0.0.1]:9/", allow: []string{"10.0.0.0/8"}, text: "no public address"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newElsewhere(t, c.answer)
			if c.url == "" {
				c.url = e.URL
			}
			if c.allow == nil {
				c.allow = []string{"127.0.0.1"}
			}
			say, err := called(t, Config{Allow: c.allow}, Settings{URL: c.url}, send("pager", "d-1", "hot@3", "x"), component.Try{N: 3, Last: c.last, First: now}, now)
			var again *component.RetryAfter
			switch {
			case c.text == "":
				if err != nil {
					t.Errorf("it gives %v", err)
				}
			case err == nil || !strings.Contains(err.Error(), c.text) || message.ReasonOf(err, 0) != c.reason:
				t.Errorf("it gives %v, reason %s; want %q, %s", err, message.ReasonOf(err, 0), c.text, c.reason)
			case c.reason != 0:
			case !errors.As(err, &again) || again.Uncounted == c.counted:
				t.Errorf("it gives %#v; counted %t", err, c.counted)
			case c.after > 0 && again.After != c.after, c.after < 0 && (again.After < 50*time.Second || again.After > time.Minute):
				t.Errorf("it is tried again after %s", again.After)
			}
			if len(say) != c.told {
				t.Errorf("%d messages tell of it; want %d", len(say), c.told)
			}
			if len(say) == 1 && !strings.Contains(string(say[0].Data), c.text) {
				t.Errorf("told is %s", say[0].Data)
			}
		})
	}
}

func TestMessageThatNobodyWantsAnyMoreIsNotSent(t *testing.T) {
	e := newElsewhere(t, nil)
	m := send("pager", "d-1", "hot@3", "x")
	m.Expires = m.Recorded().Add(time.Minute)
	say, err := called(t, Config{Allow: []string{"127.0.0.1"}}, Settings{URL: e.URL}, m, component.Try{N: 1}, m.Expires)
	if message.ReasonOf(err, 0) != message.Expired || len(say) != 1 || len(e.requests()) != 0 {
		t.Errorf("it gives %v, tells %d messages, and asks %d times", err, len(say), len(e.requests()))
	}
}

func TestSecretThatIsNotThereKeepsMessagesWaiting(t *testing.T) {
	e := newElsewhere(t, nil)
	s := Settings{URL: e.URL, Headers: []Header{{Name: "Authorization", Env: "NARU_SECRET_NOT_SET"}}}
	now := time.Now()
	_, err := called(t, Config{Allow: []string{"127.0.0.1"}}, s, send("pager", "d-1", "hot@3", "x"), component.Try{N: 1, First: now}, now)
	var again *component.RetryAfter
	if !errors.As(err, &again) || !again.Uncounted || !strings.Contains(err.Error(), "NARU_SECRET_NOT_SET") || len(e.requests()) != 0 {
		t.Errorf("it gives %v", err)
	}
}

// What cannot be sent is no attempt, and yet does not wait for ever: an hour, or as long as is said, from the first try.
func TestWhatCannotBeSentIsGivenUpAfterAWhile(t *testing.T) {
	gone := newElsewhere(t, nil)
	gone.Close()
	there := newElsewhere(t, nil)
	for name, s := range map[string]Settings{
		"nobody listens": {URL: gone.URL},
		"no secret":      {URL: there.URL, Headers: []Header{{Name: "Authorization", Env: "NARU_SECRET_NOT_SET"}}},
	} {
		for after, most := range map[string]time.Duration{"": time.Hour, "5m": 5 * time.Minute} {
			s.GiveUpAfter = after
			began := time.Now()
			for waited, dies := range map[time.Duration]bool{0: false, most - time.Second: false, most: true} {
				say, err := called(t, Config{Allow: []string{"127.0.0.1"}}, s, send("pager", "d-1", "hot@3", "x"), component.Try{N: 1, First: began}, began.Add(waited))
				var again *component.RetryAfter
				if dead := message.ReasonOf(err, 0) == message.RetriesExhausted && len(say) == 1; dead != dies || !dies && (!errors.As(err, &again) || !again.Uncounted || len(say) != 0) {
					t.Errorf("%s, give up after %q: tried for %s it gives %v, and tells %d messages", name, after, waited, err, len(say))
				}
			}
		}
	}
	if err := (&Settings{URL: "https://x", GiveUpAfter: "for ever"}).Valid(); err == nil || !strings.Contains(err.Error(), "give_up_after") {
		t.Errorf("it is valid: %v", err)
	}
}

// While calls fail, the breaker makes none, and no attempt is counted.
func TestBreakerHoldsCallsBackWhileTheyFail(t *testing.T) {
	e := newElsewhere(t, func(http.ResponseWriter, string, string) int { return 500 })
	w, err := build(component.Env{Now: time.Now}, Config{Allow: []string{"127.0.0.1"}, DestinationsMax: 1})
	if err != nil {
		t.Fatal(err)
	}
	x := newSender(w, &Destination{Name: "pager", Settings: Settings{URL: e.URL}})
	held := 0
	for n := range 40 {
		_, err := x.call(t.Context(), send("pager", fmt.Sprint(n), "a@1", "x"), component.Try{N: 1, First: time.Now()})
		var again *component.RetryAfter
		if !errors.As(err, &again) {
			t.Fatalf("call %d gives %v", n, err)
		}
		if again.Uncounted {
			held++
		}
	}
	if asked := len(e.requests()); held == 0 || asked+held != 40 || asked > 20 {
		t.Errorf("of 40 calls %d were made and %d held back", asked, held)
	}
	if state, _ := x.breaker.State(time.Now()); state != outbound.Open {
		t.Errorf("the breaker is %s", state)
	}
}

func TestSettingsThatWouldShowASecretAreRefused(t *testing.T) {
	for want, s := range map[string]Settings{
		"want http:// or https://":        {URL: "ftp://x"},
		"names no host":                   {URL: "http://"},
		"put them into a header":          {URL: "https://a:b@x"},
		"without a query":                 {URL: "https://x/y?token=z"},
		"would be seen by all":            {URL: "https://x", Headers: []Header{{Name: "X-Auth-Token", Value: "v"}}},
		"exactly one of":                  {URL: "https://x", Headers: []Header{{Name: "X", Value: "v", Env: "NARU_SECRET_X"}}},
		"begins with NARU_SECRET_":        {URL: "https://x", Headers: []Header{{Name: "X", Env: "HOME"}}},
		"no path":                         {URL: "https://x", Headers: []Header{{Name: "X", File: "../x"}}},
		"is there twice":                  {URL: "https://x", Headers: []Header{{Name: "X", Value: "a"}, {Name: "x", Value: "b"}}},
		"naru sets it":                    {URL: "https://x", Headers: []Header{{Name: "Idempotency-Key", Env: "NARU_SECRET_X"}}},
		"there are binary and structured": {URL: "https://x", Mode: "xml"},
		"timeout":                         {URL: "https://x", Timeout: "soon"},
		"calls":                           {URL: "https://x", Calls: 1000},
		"attempts":                        {URL: "https://x", Attempts: -1},
	} {
		if err := s.Valid(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v gives %v; want %q", s, err, want)
		}
	}
	for _, name := range []string{"", "a.b", "A", "a/b", strings.Repeat("a", 65)} {
		if checkName(name) == nil {
			t.Errorf("%q is a name", name)
		}
	}
}
