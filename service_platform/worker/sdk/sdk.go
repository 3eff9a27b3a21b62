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
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
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
	dataMax            = 1 << 20  // of results in one request, where the platform does not say
	resultRoom         = 512      // what a result or a message has around what is of the worker's choice
	detailMax          = 4 << 10  // bytes of an error that are told
	detailRoom         = 32 << 10 // what they take in a request, with all that is beside
)

// Options say where the platform is: at URLs by HTTP, or on Bus. The zero value takes all of it from the environment.
type Options struct {
	// URLs of the platform, each a process of it; any leads to where the worker runs. NARU_URL, with commas, where nil.
	URLs []string
	// Token is the platform's; NARU_TOKEN where empty.
	Token string
	// Bus is the URL of the platform's NATS, such as nats://a:4222,nats://b:4222, to connect over it and not by HTTP. NARU_BUS where
	// it is empty and URLs are nil. The account needs to publish on naru.ask.service_platform.worker and on that with the worker's
	// name behind it, and to subscribe to _INBOX.>.
	Bus string
	// BusUser and BusPassword, or the file BusCreds, are for Bus; NARU_BUS_USER, NARU_BUS_PASSWORD and NARU_BUS_CREDS where empty.
	BusUser, BusPassword, BusCreds string
	// CA is the platform's CA as PEM, or nil for the machine's; the file NARU_CA where nil. With Bus it has the connection use TLS.
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
	for name, at := range map[string]time.Time{"time": m.Time, "expires": m.Expires} {
		if _, err := at.MarshalJSON(); err != nil { // else the results of other messages would wait behind it
			return fmt.Errorf("say a message: its %s cannot be written: %w", name, err)
		}
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
	defer r.way.close()
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
		r.way.turn()
	}
	return nil
}

// runner is one instance.
type runner struct {
	name   string
	handle Handler
	o      Options
	way    way
}

// way is how the platform is reached.
type way interface {
	ask(ctx context.Context, q *wire.Question) (*wire.Answer, error)
	turn() // goes on to the next of the platform's processes
	close()
}

func newRunner(name string, handle Handler, o Options) (*runner, error) {
	if name == "" || handle == nil {
		return nil, errors.New("run a worker: want its name and a handler")
	}
	if o.Bus == "" && o.URLs == nil {
		o.Bus = os.Getenv("NARU_BUS")
	}
	if file := os.Getenv("NARU_CA"); o.CA == nil && file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("NARU_CA: %w", err)
		}
		o.CA = pem
	}
	var secure *tls.Config
	if o.CA != nil {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(o.CA) {
			return nil, errors.New("the platform's CA is not a PEM certificate")
		}
		secure = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
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
	r := &runner{name: name, handle: handle, o: o}
	var err error
	if o.Bus != "" {
		r.way, err = overBus(o, secure)
	} else {
		r.way, err = overHTTP(o, secure)
	}
	return r, err
}

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

// ask asks the platform in the way it is connected.
func (r *runner) ask(ctx context.Context, q *wire.Question) (*wire.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askMost)
	defer cancel()
	return r.way.ask(ctx, q)
}

// patiently asks again while the platform does not answer, as long as the lease may last.
func (l *life) patiently(ctx context.Context, q *wire.Question) (*wire.Answer, error) {
	q.Worker, q.ID = l.r.name, l.id
	for {
		a, err := l.r.ask(ctx, q)
		var refused *refusal
		l.mu.Lock()
		if err == nil {
			l.heard = time.Now()
		}
		over := time.Since(l.heard) > l.lease
		l.mu.Unlock()
		if err == nil || ctx.Err() != nil || over || errors.As(err, &refused) && refused.told && refused.status/100 == 4 {
			return a, err
		}
		t := time.NewTimer(againFirst)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, err
		}
	}
}

// life is one connection: from joining until the platform is lost, or ctx is done and what was in hand is finished.
func (r *runner) life(ctx context.Context) error {
	a, err := r.ask(ctx, &wire.Question{Do: wire.DoJoin, Worker: r.name, Join: &wire.Join{Name: r.o.Name, Concurrency: r.o.Concurrency}})
	if err != nil {
		return err
	}
	if a.Joined == nil {
		return errors.New("the platform takes the instance in and gives it no name")
	}
	l := &life{r: r, id: a.Joined.ID, most: cmp.Or(a.Joined.DataMax, dataMax), has: map[uint64]bool{}, news: make(chan struct{}, 1), heard: time.Now(), lease: time.Duration(a.Joined.LeaseSeconds * float64(time.Second))}
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
		a, err := l.patiently(polling, &wire.Question{Do: wire.DoPoll, Has: l.holds()})
		if polling.Err() != nil {
			break
		}
		if err != nil {
			lost(err)
			break
		}
		for _, c := range a.Calls {
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
		_, _ = r.ask(leave, &wire.Question{Do: wire.DoLeave, Worker: r.name, ID: l.id}) // else the lease ends by itself
	}
	return cause
}

// life is an instance as the platform knows it.
type life struct {
	r    *runner
	id   string
	news chan struct{}
	most int // bytes of data in one request

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
	if n, most := size(&res), l.most-detailRoom; n > most {
		res = wire.Result{}
		if large := fmt.Errorf("what the handler says has %d bytes; %d are the most for one message", n, most); err == nil {
			err = Reject(large)
		} else {
			err = fmt.Errorf("%w; %w", large, err)
		}
	}
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
	if len(res.Detail) > detailMax {
		res.Detail = strings.ToValidUTF8(res.Detail[:detailMax], "") + "…"
	}
	return res
}

// size is how many bytes a result takes, at most: of texts JSON may need six for one.
func size(r *wire.Result) int {
	n := resultRoom + len(r.Reply) + 6*(len(r.Detail)+len(r.ReplyType))
	for i := range r.Say {
		m := &r.Say[i]
		n += resultRoom + len(m.Data) + 6*(len(m.Subject)+len(m.Type)+len(m.Device)+len(m.ContentType))
	}
	return n
}

// next gives what goes into one request. mu is held.
func (l *life) next() []wire.Result {
	n, bytes := 0, 0
	for n < min(len(l.ends), resultsAtOnce) {
		if bytes += size(&l.ends[n]); bytes > l.most && n > 0 {
			break
		}
		n++
	}
	return l.ends[:n]
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
		list := l.next()
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
		if _, err := l.patiently(working, &wire.Question{Do: wire.DoResults, Results: list}); err != nil {
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
