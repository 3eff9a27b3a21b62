// Package rule runs rules: what each selects by SQL of the messages it hears, and what it does with that. A rule hears
// whatever it names in FROM; its actions say messages, which are on disk in one batch with the position in the log that
// was heard. So each message is taken once, whatever dies between, and what follows from it carries its trace, the rule
// and its version.
//
// The language is package sql. Here are documents (document.go), what they are compiled to (compile.go, action.go), the
// table of rules with their versions, who changed what and why (table.go), and the engine.
package rule

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/component/twins"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

// Name is the component's name.
const Name = "service_platform.rule"

// Config is the component's configuration.
type Config struct {
	// RulesDir is a folder with rules in files, *.yaml, *.yml and *.json, one a file; none where empty.
	RulesDir string `json:"rules_dir"`
	// RulesMax is how many rules there may be.
	RulesMax int `json:"rules_max"`
	// Demo has a rule for simulated devices run, as `naru up --sim` sets it; without it that rule is taken away.
	Demo bool `json:"demo"`
	// BacktestRate is how many messages of the logs a backtest reads in a second.
	BacktestRate int `json:"backtest_rate"`
}

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name: Name,
	Doc:  "rules: what each takes of the messages it hears, by SQL, and what it says of that",
	// A rule may name any topic, those of the users' own among them.
	Hears:    []message.Pattern{">", "$aws.rules.>"},
	Says:     []message.Pattern{">", "$aws.rules.>"}, // mayReach draws the line
	State:    component.Derived,
	Into:     message.Device,
	Required: true, // a message that no rule saw would leave twins and commands wrong for good
}, Config{RulesMax: 5000, BacktestRate: 20_000}, New)

// Engine is the running component.
type Engine struct {
	env    component.Env
	conf   Config
	now    atomic.Pointer[set]
	loaded chan struct{} // closed with the first set
	book   *book
	files  *files
	counts *registry
	twins  *twins.Twins
	places *names.Known // destinations

	workers *names.Known
	closed  circles

	testing chan struct{} // has one in it while a backtest runs
	over    chan struct{} // closed when the component stops
}

// New builds the component.
func New(env component.Env, c Config) (*component.Part, error) {
	e, err := build(env, c)
	if err != nil {
		return nil, err
	}
	passes := func(log string) bool { s := e.now.Load(); return s != nil && !s.mayHear(log) }
	return &component.Part{Handle: e.Handle, Passes: passes, Run: e.run, Routes: e.routes(), Close: e.close}, nil
}

func build(env component.Env, c Config) (*Engine, error) {
	if c.RulesMax < 1 {
		return nil, fmt.Errorf("rules_max is %d; want at least 1", c.RulesMax)
	}
	if c.BacktestRate < 1 {
		return nil, fmt.Errorf("backtest_rate is %d; want at least 1 message a second", c.BacktestRate)
	}
	e := &Engine{env: env, conf: c, loaded: make(chan struct{}), counts: newRegistry(env.Metrics), testing: make(chan struct{}, 1), over: make(chan struct{})}
	e.book, e.twins, e.places = newBook(e), twins.New(env), names.NewKnown(env.Bus, names.Destinations, env.Now)
	e.workers = names.NewKnown(env.Bus, names.Workers, env.Now)
	if c.RulesDir != "" {
		dir, err := filepath.Abs(c.RulesDir)
		if err != nil {
			return nil, fmt.Errorf("rules_dir: %w", err)
		}
		e.files = &files{e: e, dir: dir}
	}
	return e, nil
}

// run follows the table of rules, and the files where there are some.
func (e *Engine) run(ctx context.Context, ready func()) error {
	defer close(e.over)
	if err := e.book.Open(ctx, e.env.Bus); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	group.Go(func() {
		if err := e.book.Follow(ctx); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	})
	select {
	case <-e.loaded:
		ready()
	case <-ctx.Done():
	}
	group.Go(func() { e.demo(ctx) })
	if e.files != nil && ctx.Err() == nil {
		group.Go(func() { e.files.follow(ctx) })
	}
	group.Go(func() { e.twins.Run(ctx) })
	group.Go(func() { e.book.keepTallies(ctx) })
	<-ctx.Done()
	group.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// close keeps what was counted of versions in shadow mode to the last.
func (e *Engine) close() error {
	if e.book.Table() != nil {
		ctx, cancel := context.WithTimeout(context.Background(), tallyEvery)
		defer cancel()
		e.book.writeTallies(ctx)
	}
	return nil
}

// rules gives the set in force. Before the table was read there is none, and a message waits.
func (e *Engine) rules(ctx context.Context) (*set, error) {
	if s := e.now.Load(); s != nil {
		return s, nil
	}
	select {
	case <-e.loaded:
		return e.now.Load(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Handle has each rule that hears the message take it or not. What fails in one concerns no other: it is told, and goes to
// the rule's error action. The message itself then is handled. It dies where it is too deep for anything to follow from it,
// and where it is for one rule that is not there.
func (e *Engine) Handle(ctx context.Context, tx component.Tx, m *message.Message) error {
	s, err := e.rules(ctx)
	if err != nil {
		return err
	}
	var room [8]*live
	hits, straight := s.concerned(m.Subject, room[:0])
	if err := e.lookable(hits, m); err != nil {
		return err
	}
	taken, err := e.afar(tx, s, m)
	if err != nil {
		return err
	}
	e.compare(s, tx, m, hits)
	if len(hits) == 0 && !taken {
		if straight != "" {
			return message.Rejectf(message.RuleError, "topic %s: there is no rule %q that runs; `naru rule list` shows those there are", m.Subject.Topic(), straight)
		}
		return component.ErrNotMatched
	}
	v := evaluate(m)
	defer v.release()
	v.in.Lookup = shadows{e.twins}
	for _, r := range hits {
		if err := e.goesRound(m, r.Rule); err != nil {
			return err
		}
		matched, err := e.one(tx, r, v, m)
		if err != nil {
			return err
		}
		taken = taken || matched
	}
	if !taken {
		return component.ErrNotMatched
	}
	return nil
}

// lookable gives an error where a rule asks for a twin that is not known yet: the message is then tried again a little later,
// before anything was done with it.
func (e *Engine) lookable(hits []*live, m *message.Message) error {
	for _, r := range hits {
		if !r.looks {
			continue
		}
		v := evaluate(m)
		v.in.Lookup = shadows{e.twins}
		in, ok := v.of(r.Rule, m)
		var err error
		if ok {
			err = r.look(in)
		}
		v.release()
		if e.twins.Await(m, err) {
			return fmt.Errorf("rule %s: %w", r.Label(), err)
		}
	}
	return nil
}

// look asks for all twins that the rule asks for of this message, and gives the first error.
func (r *Rule) look(in *sql.Input) error {
	out, matched, err := r.eval(in)
	if err != nil || !matched {
		return err
	}
	for _, a := range r.actions {
		for _, t := range a.texts {
			if !t.of.Looks() {
				continue
			}
			if _, _, err := t.of.Eval(in, out.Variables); err != nil {
				return err
			}
		}
	}
	return nil
}

// failure is one thing that a rule could not do.
type failure struct {
	action *action // nil: SQL
	err    error
}

// one has a rule take the message. taken also where it failed; err is only a fate of the message.
func (e *Engine) one(tx component.Tx, r *live, v *evaluation, m *message.Message) (taken bool, err error) {
	in, ok := v.of(r.Rule, m)
	if !ok {
		return false, nil
	}
	out, matched, err := r.eval(in)
	if err == nil && !matched {
		r.counts.passed.Add(1)
		return false, nil
	}
	var failed []failure
	if err != nil {
		failed = append(failed, failure{nil, err})
	} else {
		r.counts.matched.Add(1)
		for _, a := range r.actions {
			err := e.act(tx, a, in, out)
			if loop := e.tooDeep(err, a, m); loop != nil {
				return true, loop
			}
			if err != nil {
				failed = append(failed, failure{a, err})
				r.counts.action(a.index).failed.Add(1)
			} else {
				r.counts.action(a.index).said.Add(1)
			}
		}
	}
	if len(failed) > 0 {
		r.counts.failed.Add(1)
		return true, e.fail(tx, r, in, m, failed)
	}
	r.counts.well()
	return true, nil
}

// tooDeep makes a loop the fate of the message: nothing can follow from it any more, by whatever rule.
func (e *Engine) tooDeep(err error, a *action, m *message.Message) error {
	if message.ReasonOf(err, 0) != message.Loop {
		return nil
	}
	e.closed.note(m, a.rule.Name, e.env.Now())
	return message.Rejectf(message.Loop, "rule %s took it again, and its %s would follow from %d messages; `naru trace` shows where the circle closes", a.rule.Label(), a.kind, message.DepthMax)
}

// eval applies the SQL; a bug in it is the rule's error.
func (r *Rule) eval(in *sql.Input) (out sql.Output, matched bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, matched, err = sql.Output{}, false, fmt.Errorf("a bug in naru: %v", p)
		}
	}()
	return r.statement.Eval(in)
}

// act says what an action says.
func (e *Engine) act(tx component.Tx, a *action, in *sql.Input, out sql.Output) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a bug in naru: %v", p)
		}
	}()
	m, err := a.say(in, out, tx.Now())
	if err != nil {
		return err
	}
	return tx.Say(m)
}

const errorShown = 1024 // bytes of an error in what is told of it

// fail tells what failed: to the rule's error action, and to all who want to know.
func (e *Engine) fail(tx component.Tx, r *live, in *sql.Input, m *message.Message, failed []failure) error {
	if r.onError != nil {
		err := e.act(tx, r.onError, in, sql.Output{Payload: errorDocument(r.Rule, in, m, failed)})
		if loop := e.tooDeep(err, r.onError, m); loop != nil {
			return loop
		}
		if err != nil {
			failed = append(failed, failure{r.onError, err})
			r.counts.action(errorAction).failed.Add(1)
		} else {
			r.counts.action(errorAction).said.Add(1)
		}
	}
	told := serviceplatform.RuleFailed{Rule: r.Name, Version: r.Version, Reason: message.RuleError}
	for _, f := range failed {
		one := serviceplatform.RuleFailure{Kind: "sql", Error: shown(f.err)}
		if f.action != nil {
			one.Action, one.Kind = &f.action.index, f.action.kind
		}
		told.Failures = append(told.Failures, one)
	}
	r.counts.inRow.Add(1)
	r.counts.last.Store(&LastFailure{At: e.env.Now().UTC(), Message: m.ID, Trace: m.Trace.ID, Version: r.Version, RuleFailure: told.Failures[0]})
	data, err := json.Marshal(told)
	if err == nil {
		err = tx.Say(&message.Message{Subject: serviceplatform.RuleFailedSubject(r.Name), QoS: 1, ContentType: "application/json", Data: data,
			Source: fmt.Sprintf("//naru/%s/%s?rule=%s", e.env.Node, Name, r.Label())})
	}
	if message.ReasonOf(err, 0) == message.Loop {
		return message.Rejectf(message.Loop, "rule %s failed on it, and nothing can be said of that: %w", r.Label(), err)
	}
	if err != nil {
		// There is no room left beside what the rules said of this message. It is counted, and told here.
		e.env.Log.Warn("tell of a rule's failure", "rule", r.Label(), "id", m.ID, "trace", m.Trace.ID, "error", errors.Join(failed[0].err, err))
	}
	return nil
}

func shown(err error) string { return cutText(err.Error(), errorShown) }

// errorDocument is what an error action gets, as AWS IoT has it.
func errorDocument(r *Rule, in *sql.Input, m *message.Message, failed []failure) []byte {
	type entry struct {
		Action   string `json:"failedAction"`
		Resource string `json:"failedResource"`
		Error    string `json:"errorMessage"`
	}
	d := struct {
		Rule     string  `json:"ruleName"`
		Topic    string  `json:"topic"`
		Trace    string  `json:"cloudwatchTraceId"`
		Client   string  `json:"clientId"`
		Payload  string  `json:"base64OriginalPayload"`
		Failures []entry `json:"failures"`
	}{r.Name, in.Topic, in.TraceID, in.ClientID, base64.StdEncoding.EncodeToString(m.Data), nil}
	if d.Client == "" {
		d.Client = "N/A"
	}
	for _, f := range failed {
		one := entry{Action: "SQL", Error: shown(f.err)}
		if f.action != nil {
			one.Action, one.Resource = f.action.awsName(), f.action.resource()
		}
		d.Failures = append(d.Failures, one)
	}
	raw, err := json.Marshal(d)
	if err != nil {
		return nil // texts can be written
	}
	return raw
}
