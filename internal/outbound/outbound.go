// Package outbound is how naru calls what is not naru: one HTTP client, with a guard against addresses that nobody meant,
// limits, a breaker for each target, and what came of a call told as the fate of the message that it was made for.
package outbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/message"
)

const (
	timeoutDefault  = 30 * time.Second
	answerMax       = 1 << 20  // bytes of an answer, where the target says nothing else
	headerMax       = 64 << 10 // of an answer's header
	dialWait        = 5 * time.Second
	idleWait        = 90 * time.Second
	idlePerTarget   = 256
	laterMost       = time.Hour // nobody may put a message off for longer
	excerptMax      = 200       // bytes of a body that an error shows
	forbiddenWait   = time.Minute
	unreachableWait = time.Second
)

// Options say what may be called.
type Options struct {
	// Allow are networks that may be called although they are loopback, private or link-local.
	Allow []netip.Prefix
	// Of is the component whose configuration Allow is; what is refused names it.
	Of string
	// RootCAs and certificates of its own, for targets that want them; nil is the machine's.
	TLS *tls.Config
	Now func() time.Time
}

// Client calls targets. It is safe for concurrent use.
type Client struct {
	http *http.Client
	now  func() time.Time
}

// New makes a client.
func New(o Options) *Client {
	if o.Now == nil {
		o.Now = time.Now
	}
	g := guard{o.Allow, o.Of}
	dialer := &net.Dialer{Timeout: dialWait, KeepAlive: 15 * time.Second, ControlContext: g.control}
	conf := o.TLS
	if conf == nil {
		conf = &tls.Config{}
	}
	conf = conf.Clone()
	conf.MinVersion = max(conf.MinVersion, tls.VersionTLS12)
	return &Client{now: o.Now, http: &http.Client{
		// No proxy: one would be dialled in place of the target, and the guard would see nothing.
		Transport: &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: conf, ForceAttemptHTTP2: true, DisableCompression: true,
			MaxIdleConnsPerHost: idlePerTarget, IdleConnTimeout: idleWait, TLSHandshakeTimeout: dialWait, MaxResponseHeaderBytes: headerMax},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close lets go of connections that nobody uses.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Target is somebody to call.
type Target struct {
	URL     string
	Method  string        // POST where empty
	Header  Header        // of each request; may hold secrets
	Timeout time.Duration // of one call, from beginning to end; 30 s where zero
	// AnswerMax is the largest answer in bytes; 1 MiB where zero.
	AnswerMax int64
	// Breaker holds calls back while they fail; nil does not.
	Breaker *Breaker
}

// Header is what a request carries beside the message. It is never printed: it may hold a token.
type Header map[string]string

// String hides the values.
func (h Header) String() string {
	return "[" + strings.Join(slices.Sorted(maps.Keys(h)), " ") + "]"
}

// GoString hides the values.
func (h Header) GoString() string { return h.String() }

// Valid says what is wrong with a target; nil when nothing is.
func (t *Target) Valid() error {
	u, err := url.Parse(t.URL)
	if err != nil {
		return errors.New("url: it cannot be read as one") // and is not repeated: it may hold a password
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("url %s: want http:// or https://", place(u))
	case u.Host == "" || u.Hostname() == "":
		return fmt.Errorf("url %s: it names no host", place(u))
	case u.User != nil:
		return fmt.Errorf("url %s: a name and password in it would be seen; put them into a header", place(u))
	case u.Fragment != "":
		return fmt.Errorf("url %s: what stands behind # is sent to nobody", place(u))
	case t.Timeout < 0 || t.AnswerMax < 0:
		return errors.New("timeout and largest answer: want none below zero")
	}
	for name, value := range t.Header {
		switch {
		case !token(name):
			return fmt.Errorf("header %q: want a name of letters, digits and -", name)
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
			return fmt.Errorf("header %s: its value has control characters", name)
		case ours(name):
			return fmt.Errorf("header %s: naru sets it", name)
		}
	}
	return nil
}

func token(s string) bool {
	return s != "" && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-_.!#$%&'*+^`|~") == ""
}

// ours says which headers naru sets itself.
func ours(name string) bool {
	n := strings.ToLower(name)
	return strings.HasPrefix(n, "ce-") || slices.Contains([]string{"idempotency-key", "traceparent", "content-length", "content-type", "transfer-encoding", "host", "connection"}, n)
}

// place is a URL as an error may show it: without query, which may hold a token.
func place(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// Shown is a URL as people may see it: the values of its query, which may hold a token, are hidden.
func Shown(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "(hidden)"
	}
	if u.RawQuery != "" {
		var parts []string
		for part := range strings.SplitSeq(u.RawQuery, "&") {
			if name, _, named := strings.Cut(part, "="); named {
				parts = append(parts, name+"=(hidden)")
			} else {
				parts = append(parts, "(hidden)")
			}
		}
		u.RawQuery = strings.Join(parts, "&")
	}
	return u.String()
}

// Request is what is sent. Its Idempotency-Key tells a breaker which message it is of.
type Request struct {
	Header http.Header
	Body   []byte
}

// Answer is what came back, with a status of 2xx.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte

	hidden []string // is not to be shown of it
}

// Later is a failure that may not be one later. It is not a fate: the message is to be tried again.
type Later struct {
	Err  error
	Kind string // in one word, for who counts: unreachable, timeout, broken_off, status_503, breaker, forbidden
	// After is how long to wait at least, where the other side said so.
	After time.Duration
	// Uncounted says that the other side got nothing of the message, so that this was no attempt.
	Uncounted bool
}

// Error is the failure's own.
func (l *Later) Error() string { return l.Err.Error() }

// Unwrap gives the failure.
func (l *Later) Unwrap() error { return l.Err }

// Send makes one call. Its error is a *Later, a *message.Rejection that is final, or ctx's own.
func (c *Client) Send(ctx context.Context, t *Target, r Request) (*Answer, error) {
	done, err := t.Breaker.enter(r.Header.Get("Idempotency-Key"), c.now())
	if err != nil {
		return nil, err
	}
	a, err := c.send(ctx, t, r)
	var later *Later
	switch {
	case ctx.Err() != nil:
		done(untold, c.now())
		if err != nil {
			err = ctx.Err()
		}
	case errors.As(err, &later):
		t.Breaker.because(err)
		done(failed, c.now())
	default: // it is there, and answers
		done(well, c.now())
	}
	return a, err
}

func (c *Client) send(ctx context.Context, t *Target, r Request) (*Answer, error) {
	wait := t.Timeout
	if wait == 0 {
		wait = timeoutDefault
	}
	calling, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var began atomic.Bool // something of the request went out
	calling = httptrace.WithClientTrace(calling, &httptrace.ClientTrace{WroteHeaders: func() { began.Store(true) }})
	method := t.Method
	if method == "" {
		method = http.MethodPost
	}
	q, err := http.NewRequestWithContext(calling, method, t.URL, bytes.NewReader(r.Body))
	if err != nil {
		return nil, message.Rejectf(message.ReceiverRefused, "its URL or method cannot be used")
	}
	q.GetBody = nil // a call is made once; whether to make it again is decided where it is counted
	for name, values := range r.Header {
		q.Header[name] = values
	}
	for name, value := range t.Header {
		q.Header.Set(name, value)
	}
	if q.Header.Get("User-Agent") == "" {
		q.Header.Set("User-Agent", "naru")
	}
	at, hidden := place(q.URL), t.secrets(q.URL)
	res, err := c.http.Do(q)
	if err != nil {
		return nil, fault(err, at, began.Load(), calling.Err() != nil, wait, hidden)
	}
	defer res.Body.Close()
	most := t.AnswerMax
	if most == 0 {
		most = answerMax
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, most+1))
	switch {
	case err != nil && res.StatusCode/100 == 2:
		return nil, fault(err, at, true, calling.Err() != nil, wait, hidden)
	case int64(len(body)) > most && res.StatusCode/100 == 2:
		return nil, message.Rejectf(message.NotDecodable, "%s answered %d with more than the %d bytes that are taken", at, res.StatusCode, most)
	}
	return c.judge(res, at, body, hidden)
}

// secrets are what is sent to the target beside the message: who answers may repeat it, and an error is read by many.
func (t *Target) secrets(u *url.URL) (list []string) {
	add := func(s string) {
		if len(s) >= secretLeast {
			list = append(list, s)
		}
	}
	add(u.RawQuery)
	for _, values := range u.Query() {
		for _, v := range values {
			add(v)
		}
	}
	for _, v := range t.Header {
		add(v)
		if _, behind, ok := strings.Cut(v, " "); ok { // Bearer, Basic, …
			add(strings.TrimSpace(behind))
		}
	}
	slices.SortFunc(list, func(a, b string) int { return len(b) - len(a) }) // a part goes after the whole
	return list
}

const secretLeast = 6 // bytes; a shorter text is no secret, and may be in any word

// hide takes secrets out of a text.
func hide(text string, secrets []string) string {
	for _, s := range secrets {
		text = strings.ReplaceAll(text, s, "(hidden)")
	}
	return text
}

// judge makes a status a fate.
func (c *Client) judge(res *http.Response, at string, body []byte, hidden []string) (*Answer, error) {
	said := ""
	if text := excerpt(body, hidden); text != "" {
		said = ": " + text
	}
	switch s := res.StatusCode; {
	case s/100 == 2:
		return &Answer{Status: s, Header: res.Header, Body: body, hidden: hidden}, nil
	case s == http.StatusRequestTimeout, s == http.StatusTooManyRequests, s == http.StatusTooEarly, s/100 == 5:
		return nil, &Later{Err: fmt.Errorf("%s answered %d%s", at, s, said), Kind: "status_" + strconv.Itoa(s), After: c.retryAfter(res.Header.Get("Retry-After"))}
	case s/100 == 3:
		return nil, message.Rejectf(message.ReceiverRefused, "%s answered %d, and redirects are not followed: name the place itself", at, s)
	default:
		return nil, message.Rejectf(message.ReceiverRefused, "%s answered %d%s", at, s, said)
	}
}

// retryAfter reads the header: seconds, or a date (RFC 9110 §10.2.3).
func (c *Client) retryAfter(v string) time.Duration {
	switch n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 32); {
	case err == nil:
		return min(time.Duration(n)*time.Second, laterMost)
	case errors.Is(err, strconv.ErrRange):
		return laterMost
	}
	if at, err := http.ParseTime(v); err == nil {
		return min(max(at.Sub(c.now()), 0), laterMost)
	}
	return 0
}

// fault tells a call that came to no answer.
func fault(err error, at string, began, late bool, wait time.Duration, hidden []string) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // its URL has the query
	}
	if text := err.Error(); hide(text, hidden) != text { // what is no HTTP is quoted
		err = errors.New(hide(text, hidden))
	}
	var no *forbidden
	switch {
	case errors.As(err, &no):
		return &Later{Err: fmt.Errorf("call %s: %w", at, no), Kind: "forbidden", After: forbiddenWait, Uncounted: true}
	case late && began:
		return &Later{Err: fmt.Errorf("%s did not answer within %s", at, wait), Kind: "timeout"}
	case !began:
		return &Later{Err: fmt.Errorf("%s cannot be reached: %w", at, err), Kind: "unreachable", After: unreachableWait, Uncounted: true}
	}
	return &Later{Err: fmt.Errorf("%s broke the call off: %w", at, err), Kind: "broken_off"}
}

// excerpt is the beginning of a body, on one line, without what is hidden.
func excerpt(body []byte, hidden []string) string {
	text := hide(string(body), hidden) // before it is cut, or the beginning of one would stay
	text = strings.ToValidUTF8(text[:min(len(text), excerptMax)], "?")
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if len(body) > excerptMax {
		text += "…"
	}
	return text
}
