package outbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/message"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// other is somebody to call.
func other(t *testing.T, f http.HandlerFunc) (*Client, *Target) {
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	c := New(Options{Allow: loopback, Now: func() time.Time { return noon }})
	t.Cleanup(c.Close)
	return c, &Target{URL: s.URL + "/in?token=hush", Timeout: time.Minute}
}

func TestAStatusIsAFate(t *testing.T) {
	for status, want := range map[int]struct {
		retry string
		final message.Reason
	}{
		200: {}, 202: {}, 204: {},
		301: {final: message.ReceiverRefused}, 307: {final: message.ReceiverRefused},
		400: {final: message.ReceiverRefused}, 401: {final: message.ReceiverRefused}, 404: {final: message.ReceiverRefused}, 422: {final: message.ReceiverRefused},
		408: {retry: "status_408"}, 425: {retry: "status_425"}, 429: {retry: "status_429"},
		500: {retry: "status_500"}, 502: {retry: "status_502"}, 503: {retry: "status_503"}, 504: {retry: "status_504"},
	} {
		c, to := other(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://169.254.169.254/latest")
			w.WriteHeader(status)
			if status != http.StatusNoContent {
				fmt.Fprint(w, "the sensor\nis unknown")
			}
		})
		a, err := c.Send(t.Context(), to, Request{Body: []byte("x")})
		var later *Later
		switch {
		case want.retry != "":
			if !errors.As(err, &later) || later.Kind != want.retry || later.Uncounted || message.ReasonOf(err, 0) != 0 {
				t.Errorf("%d gives %v; want it to be tried again", status, err)
			}
		case want.final != 0:
			if message.ReasonOf(err, 0) != want.final || errors.As(err, &later) {
				t.Errorf("%d gives %v; want %s", status, err, want.final)
			}
		case err != nil || a.Status != status:
			t.Errorf("%d gives %v, %v", status, a, err)
		}
		if err != nil && (strings.Contains(err.Error(), "hush") || status/100 > 3 && !strings.Contains(err.Error(), "the sensor is unknown")) {
			t.Errorf("%d is told as %q: want what was said, and not the query", status, err)
		}
	}
}

func TestRetryAfterIsHeeded(t *testing.T) {
	for said, want := range map[string]time.Duration{
		"":    0,
		"7":   7 * time.Second,
		"-1":  0,
		"abc": 0,
		noon.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		noon.Add(-time.Hour).Format(http.TimeFormat):       0,
		"86400":       time.Hour,
		"4294967295":  time.Hour,
		"99999999999": time.Hour,
	} {
		c, to := other(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", said)
			w.WriteHeader(503)
		})
		_, err := c.Send(t.Context(), to, Request{})
		var later *Later
		if !errors.As(err, &later) || later.After != want {
			t.Errorf("Retry-After %q gives %+v; want %s", said, later, want)
		}
	}
}

func TestACallThatReachedNobodyIsNoAttempt(t *testing.T) {
	c := New(Options{Allow: loopback})
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	breaks := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer breaks.Close()
	release := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer hangs.Close()
	defer close(release)
	for name, x := range map[string]struct {
		target    Target
		kind      string
		uncounted bool
	}{
		"nobody listens":   {Target{URL: closed.URL}, "unreachable", true},
		"no such name":     {Target{URL: "http://nobody.invalid/"}, "unreachable", true},
		"it breaks off":    {Target{URL: breaks.URL}, "broken_off", false},
		"it hangs":         {Target{URL: hangs.URL, Timeout: 50 * time.Millisecond}, "timeout", false},
		"it is not public": {Target{URL: "http://169.254.169.254/latest/meta-data"}, "forbidden", true},
	} {
		_, err := c.Send(t.Context(), &x.target, Request{Body: []byte("x")})
		var later *Later
		if !errors.As(err, &later) || later.Kind != x.kind || later.Uncounted != x.uncounted {
			t.Errorf("%s: %v (%+v); want %s, uncounted %v", name, err, later, x.kind, x.uncounted)
		}
	}
}

func TestAStopIsNobodysFault(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c, to := other(t, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	to.Breaker = &Breaker{}
	if _, err := c.Send(ctx, to, Request{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a stop is told as %v", err)
	}
	if to.Breaker.n != 0 {
		t.Error("the breaker counts it")
	}
}

// A server that shows what it was sent, as many do for who looks for a fault, tells nobody else.
func TestWhatIsSentBesideTheMessageIsNotShownInFaults(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	status := 401
	c, to := other(t, func(w http.ResponseWriter, q *http.Request) {
		w.WriteHeader(status)
		fmt.Fprintf(w, "%s I was sent %s and %s, key %s", strings.Repeat("-", 150), q.Header.Get("Authorization"), q.Header.Get("X-Key"), q.URL.RawQuery)
	})
	to.Header = Header{"Authorization": "Bearer hush-hush", "X-Key": strings.Repeat("secret", 20)}
	to.URL = strings.Split(to.URL, "?")[0] + "?key=silence"
	for _, url := range []string{to.URL, "http://" + echo.Addr().String() + "/?key=silence"} {
		for _, status = range []int{200, 401, 500} {
			to.URL = url
			a, err := c.Send(t.Context(), to, Request{})
			if err == nil {
				_, err = a.Events()
			}
			if err == nil || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "secretsecret") || strings.Contains(err.Error(), "silence") {
				t.Errorf("%d is told as %v", status, err)
			}
		}
	}
}

func TestAnAnswerHasALimit(t *testing.T) {
	c, to := other(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, io.LimitReader(zeros{}, 1<<20)) })
	to.AnswerMax = 1000
	if _, err := c.Send(t.Context(), to, Request{}); message.ReasonOf(err, 0) != message.NotDecodable || !strings.Contains(err.Error(), "1000") {
		t.Errorf("a long answer is told as %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAddressesThatAreNotPublicAreNotCalled(t *testing.T) {
	for _, at := range []string{"127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255",
		"224.0.0.1", "198.18.0.1", "::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1", "64:ff9b::7f00:1", "2002:7f00:1::"} {
		if err := (guard{}).judge(netip.MustParseAddr(at)); err == nil || !strings.Contains(err.Error(), "allow") {
			t.Errorf("%s may be called (%v)", at, err)
		}
	}
	for _, at := range []string{"1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8"} {
		if err := (guard{}).judge(netip.MustParseAddr(at)); err != nil {
			t.Errorf("%s may not be called: %v", at, err)
		}
	}
	allow, err := Networks([]string{"10.1.0.0/16", "127.0.0.1", "fd00::/8"})
	if err != nil {
		t.Fatal(err)
	}
	g := guard{allow: allow}
	for at, ok := range map[string]bool{"10.1.2.3": true, "10.2.2.3": false, "127.0.0.1": true, "::ffff:127.0.0.1": true, "127.0.0.2": false, "fd00::1": true, "fe80::1": false} {
		if err := g.judge(netip.MustParseAddr(at)); (err == nil) != ok {
			t.Errorf("%s: %v; want allowed %v", at, err, ok)
		}
	}
	if _, err := Networks([]string{"10.1"}); err == nil || !strings.Contains(err.Error(), "10.1.0.0/16") {
		t.Errorf("a network that is none is told as %v", err)
	}
}

// The guard stands where an address is dialled, behind the resolution of names.
func TestANameForALoopbackAddressIsNotCalled(t *testing.T) {
	called := false
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true }))
	defer s.Close()
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HTTP_PROXY", s.URL) // nor by way of a proxy
	_, err = New(Options{}).Send(t.Context(), &Target{URL: "http://localhost:" + port}, Request{})
	var later *Later
	if !errors.As(err, &later) || later.Kind != "forbidden" || called {
		t.Errorf("told %v; called %v", err, called)
	}
}

func TestATargetIsCheckedAndShowsNoSecret(t *testing.T) {
	for url, want := range map[string]string{
		"https://a.example/in": "", "http://10.0.0.1:8080": "",
		"ftp://a.example": "http://", "//a.example": "http://", "http:///x": "no host", "https://u:hush@a.example": "header", "https://a.example/#x": "#", "http://a b/%zz": "cannot be read",
	} {
		err := (&Target{URL: url}).Valid()
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush")) {
			t.Errorf("%s: %v; want it to say %q", url, err, want)
		}
	}
	for name, value := range map[string]string{"Authoriza tion": "x", "X": "a\r\nb: c", "Ce-Id": "x", "Idempotency-Key": "x", "Host": "x"} {
		if err := (&Target{URL: "http://a.example", Header: Header{name: value}}).Valid(); err == nil {
			t.Errorf("header %q: %q is taken", name, value)
		}
	}
	h := Header{"Authorization": "hush"}
	if text := fmt.Sprintf("%v %+v %#v %s", h, &Target{Header: h}, h, h); strings.Contains(text, "hush") {
		t.Errorf("a secret is printed: %s", text)
	}
}

func TestABreakerOpensTriesAndCloses(t *testing.T) {
	b := &Breaker{}
	now := noon
	n := 0
	enter := func() (func(outcome, time.Time), error) { n++; return b.enter(fmt.Sprint(n), now) }
	call := func(o outcome) error {
		done, err := enter()
		if err == nil {
			done(o, now)
		}
		return err
	}
	for i := range 7 {
		if err := call(failed); err != nil {
			t.Fatalf("it opens after %d: too little is known", i)
		}
	}
	slow, err := enter() // one that is under way when it opens
	if err != nil {
		t.Fatal(err)
	}
	if err := call(failed); err != nil {
		t.Fatal(err)
	}
	var later *Later
	if err := call(well); !errors.As(err, &later) || !later.Uncounted || later.After != breakerFirst || later.Kind != "breaker" {
		t.Fatalf("it is open and lets through: %v", err)
	}
	slow(well, now)
	if s, since := b.State(now); s != Open || !since.Equal(noon) {
		t.Errorf("it is %s since %s", s, since)
	}
	now = now.Add(breakerFirst)
	probe, err := enter()
	if err != nil {
		t.Fatalf("it tries nobody: %v", err)
	}
	if err := call(well); !errors.As(err, &later) || !later.Uncounted {
		t.Errorf("it lets a second one through while one tries: %v", err)
	}
	if s, _ := b.State(now); s != HalfOpen {
		t.Errorf("it is %s while one tries", s)
	}
	probe(failed, now)
	if err := call(well); !errors.As(err, &later) || later.After != 2*breakerFirst {
		t.Errorf("after a failed try it waits %+v", later)
	}
	now = now.Add(2 * breakerFirst)
	if probe, err = enter(); err != nil {
		t.Fatal(err)
	}
	probe(untold, now) // the caller has stopped: another one may try
	if err := call(well); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := call(well); err != nil {
			t.Fatalf("it is closed and does not let through: %v", err)
		}
	}
	if s, _ := b.State(now); s != Closed {
		t.Errorf("it is %s", s)
	}
}

// One or two messages that fail again and again are no reason to hold the others back.
func TestABreakerKnowsAMessageThatFailsFromATargetThatDoes(t *testing.T) {
	for _, messages := range []int{1, 2, 3} {
		b := &Breaker{}
		for i := range 40 {
			if done, err := b.enter(fmt.Sprint(i%messages), noon); err == nil {
				done(failed, noon)
			}
		}
		want := Closed
		if messages >= breakerKinds {
			want = Open
		}
		if s, _ := b.State(noon); s != want {
			t.Errorf("after forty failures of %d messages it is %s; want %s", messages, s, want)
		}
	}
}

// While a breaker is open, the messages that fail do not take all the tries from one with which it would close.
func TestABreakerIsTriedWithOneMessageAfterTheOther(t *testing.T) {
	b := &Breaker{}
	now := noon
	for i := range breakerLeast {
		done, err := b.enter(fmt.Sprint(i), now)
		if err != nil {
			t.Fatal(err)
		}
		done(failed, now)
	}
	bad := func(m string) bool { return m == "0" || m == "1" } // and it is well again
	tries := map[string]int{}
	for tick := 0; tick < 20 && b.open; tick++ {
		_, left := b.Look(now)
		now = now.Add(left)
		for i := range breakerLeast + 1 { // each that waits asks, in this order
			m := fmt.Sprint(i)
			done, err := b.enter(m, now)
			if err != nil {
				continue
			}
			if tries[m]++; bad(m) {
				done(failed, now)
			} else {
				done(well, now)
			}
			break
		}
	}
	if b.open || len(tries) != 1 {
		t.Errorf("it is open %t after the tries %v", b.open, tries)
	}
	// Where there are no others, a message is tried again and again.
	b = &Breaker{open: true, tried: map[string]bool{}, wait: breakerFirst}
	made := 0
	for range 10 {
		if done, err := b.enter("0", now); err == nil {
			made++
			done(failed, now)
		}
		_, left := b.Look(now)
		now = now.Add(left)
	}
	if made != 5 {
		t.Errorf("the only message is tried %d times in ten; want every other time", made)
	}
}

func TestAFailingTargetIsLeftAlone(t *testing.T) {
	calls := 0
	c, to := other(t, func(w http.ResponseWriter, _ *http.Request) { calls++; w.WriteHeader(500) })
	to.Breaker = &Breaker{}
	for n := range 50 {
		if _, err := c.Send(t.Context(), to, Request{Header: http.Header{"Idempotency-Key": {fmt.Sprint(n)}}}); err == nil {
			t.Fatal("it is well")
		}
	}
	if calls != breakerLeast {
		t.Errorf("it was called %d times; want %d", calls, breakerLeast)
	}
	// Who is held back is told why, and so is who looks.
	_, err := c.Send(t.Context(), to, Request{Header: http.Header{"Idempotency-Key": {"held"}}})
	if err == nil || !strings.Contains(err.Error(), "answered 500") || !strings.Contains(to.Breaker.Why(), "answered 500") || strings.Contains(to.Breaker.Why(), "fail since") {
		t.Errorf("held back: %v; why: %s", err, to.Breaker.Why())
	}
	to.Breaker.Now(c.now()) // somebody has mended it
	if _, err = c.Send(t.Context(), to, Request{Header: http.Header{"Idempotency-Key": {"another"}}}); calls != breakerLeast+1 {
		t.Errorf("after it was mended it was called %d times; want one more than %d (%v)", calls, breakerLeast, err)
	}
	refuses, to := other(t, func(w http.ResponseWriter, _ *http.Request) { calls++; w.WriteHeader(400) })
	to.Breaker = &Breaker{}
	calls = 0
	for range 50 {
		_, _ = refuses.Send(t.Context(), to, Request{})
	}
	if calls != 50 {
		t.Errorf("one that refuses messages is there; it was called %d times", calls)
	}
}
