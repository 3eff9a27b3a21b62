// Package sdk does a worker's work: Run connects to the platform, is given messages, and tells what became of them.
//
//	err := sdk.Run(ctx, "hot-alert", func(ctx context.Context, c *sdk.Call) error {
//		return c.Say("device."+c.Message.Device+".command.blink."+c.Message.ID, []byte(`{"times":3}`))
//	}, sdk.Options{})
//
// Any number of processes may run one worker; they share the devices among them. A message is given at least once, always
// with the same Message.ID: make twice the same as once by it.
package sdk

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

const (
	concurrencyDefault = 16
	againFirst         = 100 * time.Millisecond
	againMost          = 5 * time.Second
	askMost            = 15 * time.Second // for one request; a poll waits shorter
	stopMost           = 10 * time.Second // for handlers and their results when ctx has ended
	resultsAtOnce      = 256
)

// Options say where the platform is. The zero value takes all of it from the environment.
type Options struct {
	// URLs of the platform, each a process of it; the worker runs in one, which is found. NARU_URL, with commas, where nil.
	URLs []string
	// Token is the platform's; NARU_TOKEN where empty.
	Token string
	// CA is the platform's CA as PEM, or nil for the machine's; the file NARU_CA where nil.
	CA []byte
	// Name tells people which instance this is; the host's name and the process where empty.
	Name string
	// Concurrency is how many messages are handled at once, each device's one after the other; 16 where zero.
	Concurrency int
	Log         *slog.Logger
}

// Message is one that the worker is given.
type Message = wire.Message

// Call is a message that is to be handled.
type Call struct {
	Message Message
	// Attempt counts from 1. With Last, a failure makes the message dead.
	Attempt  int
	Last     bool
	Deadline time.Time // when the platform gives it to somebody else

	result wire.Result
}

// Say says a message as a consequence, on a subject such as device.d-1.command.blink.c1. It is said when the handler has
// returned nil, once, however often the message was given.
func (c *Call) Say(subject string, data []byte) error {
	return c.SayMessage(Message{Subject: subject, ContentType: "application/json", Data: data})
}

// SayMessage says a message with what Say leaves out. Its id, source and trace are given to it by the platform.
func (c *Call) SayMessage(m Message) error {
	if m.Subject == "" {
		return errors.New("say a message: its subject is wanted")
	}
	c.result.Say = append(c.result.Say, m)
	return nil
}

// Reply answers who waits for an answer, if somebody does.
func (c *Call) Reply(contentType string, data []byte) {
	c.result.ReplyType, c.result.Reply = contentType, data
}

// Handler handles a message. Nil is handled; Reject is dead, NotMatched no concern of the worker's; any other error, and a
// panic, is tried again later. ctx ends at the call's deadline.
type Handler func(ctx context.Context, c *Call) error

// ErrNotMatched says that the message does not concern the worker.
var ErrNotMatched = errors.New("not matched")

// Reject says that the message will never be handled: it is dead, and trying again would not help.
func Reject(err error) error { return &rejection{err} }

type rejection struct{ err error }

// Error is the reason.
func (r *rejection) Error() string { return r.err.Error() }

// Unwrap gives the reason.
func (r *rejection) Unwrap() error { return r.err }

// After says that the message is not to be tried again before so long.
func After(d time.Duration, err error) error { return &after{d, err} }

type after struct {
	d   time.Duration
	err error
}

// Error is the failure's own.
func (a *after) Error() string { return a.err.Error() }

// Unwrap gives the failure.
func (a *after) Unwrap() error { return a.err }

// Run does the work of the worker of that name until ctx is done, and connects again where it was cut off. It returns nil
// when ctx is done and what was in its hands is finished, and an error where the platform will not have it.
func Run(ctx context.Context, name string, handle Handler, o Options) error {
	r, err := newRunner(name, handle, o)
	if err != nil {
		return err
	}
	wait := againFirst
	for ctx.Err() == nil {
		began := time.Now()
		err := r.life(ctx)
		var final *refusal
		if errors.As(err, &final) && final.final() {
			return fmt.Errorf("worker %s: %w", name, err)
		}
		if ctx.Err() != nil {
			break
		}
		r.o.Log.Warn("the platform was lost; connecting again", "worker", name, "error", err)
		if time.Since(began) > time.Minute {
			wait = againFirst
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		wait = min(2*wait, againMost)
		r.turn()
	}
	return nil
}

// runner is one instance.
type runner struct {
	name   string
	handle Handler
	o      Options
	http   *http.Client
	at     int // of the URLs
}

func newRunner(name string, handle Handler, o Options) (*runner, error) {
	if name == "" || handle == nil {
		return nil, errors.New("run a worker: want its name and a handler")
	}
	if o.URLs == nil {
		if s := os.Getenv("NARU_URL"); s != "" {
			o.URLs = strings.Split(s, ",")
		}
	}
	if o.Token == "" {
		o.Token = os.Getenv("NARU_TOKEN")
	}
	if len(o.URLs) == 0 {
		return nil, errors.New("where is the platform? want Options.URLs, or NARU_URL such as http://127.0.0.1:8780")
	}
	for i, s := range o.URLs {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("platform URL %q: want one such as https://naru.example:8780", s)
		}
		o.URLs[i] = strings.TrimRight(u.String(), "/")
	}
	if file := os.Getenv("NARU_CA"); o.CA == nil && file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("NARU_CA: %w", err)
		}
		o.CA = pem
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 8
	if o.CA != nil {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(o.CA) {
			return nil, errors.New("the platform's CA is not a PEM certificate")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	if o.Name == "" {
		host, _ := os.Hostname() // a name for people
		o.Name = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	if o.Concurrency == 0 {
		o.Concurrency = concurrencyDefault
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &runner{name: name, handle: handle, o: o, http: &http.Client{Transport: transport}}, nil
}

// turn goes on to the next of the platform's processes.
func (r *runner) turn() { r.at = (r.at + 1) % len(r.o.URLs) }

// refusal is an answer of the platform that is no good one.
type refusal struct {
	status int
	detail string
	told   bool // by the component, and not by what stands before it while it starts
}

// Error is what it said.
func (r *refusal) Error() string {
	return fmt.Sprintf("the platform answers %d: %s", r.status, r.detail)
}

// final says that asking again would not help.
func (r *refusal) final() bool {
	return r.told && (r.status == 400 || r.status == 401 || r.status == 403 || r.status == 404)
}

func (r *runner) ask(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, askMost)
	defer cancel()
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	q, err := http.NewRequestWithContext(ctx, method, r.o.URLs[r.at]+"/api/v1/workers/"+url.PathEscape(r.name)+"/instances"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	q.Header.Set("Authorization", "Bearer "+r.o.Token)
	q.Header.Set("Content-Type", "application/json")
	res, err := r.http.Do(q)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		var p struct {
			Detail string `json:"detail"`
		}
		raw, _ := io.ReadAll(io.LimitReader(res.Body, 4096)) // what there is of a reason
		if json.Unmarshal(raw, &p) != nil || p.Detail == "" {
			p.Detail = strings.TrimSpace(string(raw))
		}
		return &refusal{res.StatusCode, p.Detail, strings.HasPrefix(res.Header.Get("Content-Type"), "application/problem+json")}
	}
	if out == nil {
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	return json.NewDecoder(res.Body).Decode(out)
}

// patiently asks again while the platform does not answer, as long as the lease may last.
func (l *life) patiently(ctx context.Context, path string, in, out any) error {
	for {
		err := l.r.ask(ctx, http.MethodPost, "/"+l.id+path, in, out)
		var refused *refusal
		l.mu.Lock()
		if err == nil {
			l.heard = time.Now()
		}
		over := time.Since(l.heard) > l.lease
		l.mu.Unlock()
		if err == nil || ctx.Err() != nil || over || errors.As(err, &refused) && refused.told && refused.status/100 == 4 {
			return err
		}
		t := time.NewTimer(againFirst)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// life is one connection: from joining until the platform is lost, or ctx is done and what was in hand is finished.
func (r *runner) life(ctx context.Context) error {
	var joined wire.Joined
	if err := r.ask(ctx, http.MethodPost, "", wire.Join{Name: r.o.Name, Concurrency: r.o.Concurrency}, &joined); err != nil {
		return err
	}
	l := &life{r: r, id: joined.ID, has: map[uint64]bool{}, news: make(chan struct{}, 1), heard: time.Now(), lease: time.Duration(joined.LeaseSeconds * float64(time.Second))}
	// Handlers and results outlive ctx: what is in hand is finished. They end when the instance is lost.
	working, lost := context.WithCancelCause(context.WithoutCancel(ctx))
	defer lost(nil)
	var handlers, teller sync.WaitGroup
	telling, told := context.WithCancel(working)
	teller.Go(func() {
		if err := l.tell(telling, working); err != nil {
			lost(err)
		}
	})
	polling, stop := context.WithCancel(ctx)
	defer context.AfterFunc(working, stop)()
	for polling.Err() == nil {
		var calls wire.Calls
		err := l.patiently(polling, "/calls", wire.Poll{Has: l.holds()}, &calls)
		if polling.Err() != nil {
			break
		}
		if err != nil {
			lost(err)
			break
		}
		for _, c := range calls.Calls {
			l.hold(c.Number)
			handlers.Go(func() { l.end(l.do(working, &c)) })
		}
	}
	stop()
	finished := make(chan struct{})
	go func() { handlers.Wait(); close(finished) }()
	late := time.NewTimer(stopMost)
	defer late.Stop()
	select {
	case <-finished:
	case <-late.C:
	case <-working.Done(): // what they do is nobody's any more; they are told by their ctx
		<-finished
	}
	told()
	teller.Wait()
	cause := context.Cause(working)
	if cause == nil {
		leave, done := context.WithTimeout(context.WithoutCancel(ctx), stopMost/5)
		defer done()
		_ = r.ask(leave, http.MethodDelete, "/"+l.id, nil, nil) // else the lease ends by itself
	}
	return cause
}

// life is an instance as the platform knows it.
type life struct {
	r    *runner
	id   string
	news chan struct{}

	lease time.Duration

	mu    sync.Mutex
	has   map[uint64]bool // given, and the result not yet taken
	ends  []wire.Result
	heard time.Time // when the platform answered last
}

func (l *life) hold(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.has[n] = true
}

func (l *life) holds() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]uint64, 0, len(l.has))
	for n := range l.has {
		list = append(list, n)
	}
	return list
}

// do has a call handled.
func (l *life) do(ctx context.Context, c *wire.Call) wire.Result {
	// The platform's clock may be another one: what counts is how long the call may take.
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	call := &Call{Message: c.Message, Attempt: c.Attempt, Last: c.Last, Deadline: time.Now().Add(c.Timeout)}
	err := guard(func() error { return l.r.handle(ctx, call) })
	res := call.result
	res.Number, res.End = c.Number, wire.Done
	var no *rejection
	var later *after
	switch {
	case err == nil:
	case errors.Is(err, ErrNotMatched):
		res.End = wire.NotMatched
	case errors.As(err, &no):
		res.End, res.Detail = wire.Rejected, err.Error()
	default:
		res.End, res.Detail = wire.Failed, err.Error()
		if errors.As(err, &later) {
			res.RetryAfter = later.d
		}
	}
	return res
}

func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

// end notes a call's end, to be told.
func (l *life) end(r wire.Result) {
	l.mu.Lock()
	l.ends = append(l.ends, r)
	l.mu.Unlock()
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// tell tells ends until stop is done and all are told: what ends while one request is under way makes the next.
func (l *life) tell(stop, working context.Context) error {
	for {
		l.mu.Lock()
		list := l.ends[:min(len(l.ends), resultsAtOnce)]
		l.mu.Unlock()
		if len(list) == 0 {
			select {
			case <-l.news:
				continue
			case <-stop.Done():
				l.mu.Lock()
				left := len(l.ends)
				l.mu.Unlock()
				if left == 0 || working.Err() != nil {
					return nil
				}
				continue
			}
		}
		if err := l.patiently(working, "/results", wire.Results{Results: list}, nil); err != nil {
			if working.Err() != nil {
				return nil
			}
			return err
		}
		l.mu.Lock()
		l.ends = l.ends[len(list):]
		for _, r := range list {
			delete(l.has, r.Number)
		}
		l.mu.Unlock()
	}
}
