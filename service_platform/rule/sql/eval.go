package sql

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/internal/span"
)

// The limits of one evaluation. A statement with variables can double a value with each of them.
const (
	outputMax = 1 << 20 // bytes of one value
	stepsMax  = 1 << 20 // expressions evaluated, elements walked over, values written, and bytes of what they are done with
	stepBytes = 32      // bytes that are a step: 32 MiB make an evaluation too long, some tenths of a second at worst
)

var (
	errTooLarge = fmt.Errorf("sql: a value grows beyond %d bytes; select less of the message", outputMax)
	errTooLong  = fmt.Errorf("sql: the statement takes more than %d steps for this message; nest fewer queries, and do less with large values", stepsMax)
)

// Input is one message. The zero values of its fields make the functions that ask for them Undefined.
type Input struct {
	Topic     string
	ClientID  string // empty: clientid() is "n/a"
	Principal string // what the publisher authenticated with
	SourceIP  string
	TraceID   string
	AccountID string
	Payload   []byte    // is not changed, and must not change while Eval runs or its output is in use
	Time      time.Time // what timestamp() tells
	Properties
	Lookup  Lookup         // for get_thing_shadow; nil: there are no shadows
	NewUUID func() string  // for newuuid(); nil: random (version 4)
	Rand    func() float64 // for rand(); nil: random
}

// Properties are those of an MQTT 5 PUBLISH (section 3.3.2.3). Empty and nil mean that the property is absent.
type Properties struct {
	ContentType     string
	ResponseTopic   string
	CorrelationData []byte
	MessageExpiry   *uint32 // seconds
	UTF8            bool    // payload format indicator 1
	User            []UserProperty
}

// UserProperty is a name and a value; names may repeat.
type UserProperty struct{ Name, Value string }

// Lookup finds what is not in the message.
type Lookup interface {
	// ThingShadow gives the document of a thing's shadow (name "" is the classic one), or nil where there is none. An error
	// ends the evaluation: it may go better later.
	ThingShadow(thing, name string) ([]byte, error)
}

// PayloadError says that a statement asks of a payload what it is not. It will not go better later.
type PayloadError struct {
	Want   string
	Offset int // the first byte that is wrong, or 0
	Text   string
}

func (e *PayloadError) Error() string { return "sql: the payload must be " + e.Want + "; " + e.Text }

// env is one evaluation.
type env struct {
	p     *program
	in    *Input
	scope value // the element of the innermost nested query

	state readState
	at    [][]byte // values of p.keys, once state is readJSON
	bad   int      // the offset where the payload ceases to be JSON

	stack  []value // arguments of the calls under way
	values []value // of variables
	set    []bool
	out    []byte
	steps  int
	err    error
	trace  *tracer
}

type readState uint8

const (
	unread readState = iota
	readJSON
	readBinary
)

var envs = sync.Pool{New: func() any { return &env{} }}

func newEnv(p *program, in *Input) *env {
	e := envs.Get().(*env)
	e.p, e.in, e.steps = p, in, stepsMax
	return e
}

// release gives the room back without the message in it.
func (e *env) release() {
	clear(e.at[:cap(e.at)])
	clear(e.values)
	clear(e.set)
	clear(e.stack[:cap(e.stack)])
	if cap(e.out) > 64<<10 {
		e.out = nil
	}
	*e = env{at: e.at[:0], values: e.values[:0], set: e.set[:0], stack: e.stack[:0], out: e.out[:0]}
	envs.Put(e)
}

// step counts work; it is false when there was too much.
func (e *env) step() bool {
	e.steps--
	if e.steps < 0 {
		e.fail(errTooLong)
		return false
	}
	return true
}

// work counts what is done to so many bytes.
func (e *env) work(bytes int) {
	if e.steps -= bytes / stepBytes; e.steps < 0 {
		e.fail(errTooLong)
	}
}

// open gives an Array or Object as a node that the caller may change, and counts that.
func (e *env) open(v value) *node {
	e.work(4 * v.size())
	if e.err != nil {
		return &node{}
	}
	return v.opened()
}

func (e *env) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

func (e *env) eval(x expr) value {
	if !e.step() || e.err != nil {
		return undefined
	}
	if e.trace != nil {
		return e.trace.eval(e, x)
	}
	return x.eval(e)
}

func (e *env) holds(x expr) bool {
	yes, _ := e.eval(x).toBoolean()
	return yes && e.err == nil
}

// index reads the payload once, checks it and keeps what the program wants of it; it is false for what is no JSON.
func (e *env) index() bool {
	if e.state == unread {
		n := len(e.p.keys)
		if cap(e.at) < n {
			e.at = make([][]byte, n)
		}
		e.at = e.at[:n]
		c := checker{b: e.in.Payload, want: e.p.keys, at: e.at}
		e.state = readJSON
		if !c.check() {
			e.state, e.bad = readBinary, c.i
			clear(e.at)
		}
	}
	return e.state == readJSON
}

// top is the value of a top-level name of the payload.
func (e *env) top(key int) value {
	if !e.index() {
		return undefined
	}
	return fromJSON(e.at[key])
}

// payload is the value of *.
func (e *env) payload() value {
	if !e.index() {
		return value{kind: binary, b: e.in.Payload}
	}
	b := e.in.Payload
	end := len(b)
	for strings.IndexByte(" \n\t\r", b[end-1]) >= 0 {
		end--
	}
	return fromJSON(b[span.Space(b, 0):end])
}

func (e *env) payloadError(want string) error {
	if e.index() {
		return &PayloadError{Want: want, Text: "it is a JSON " + e.payload().kind.String()}
	}
	if len(e.in.Payload) == 0 {
		return &PayloadError{Want: want, Text: "it is empty"}
	}
	return &PayloadError{Want: want, Offset: e.bad, Text: fmt.Sprintf("it is no JSON from byte %d on", e.bad)}
}

// variable evaluates a variable where it is first asked for, and keeps it.
func (e *env) variable(i int) value {
	if len(e.set) != len(e.p.variables) {
		n := len(e.p.variables)
		e.set, e.values = append(e.set[:0], make([]bool, n)...), append(e.values[:0], make([]value, n)...)
	}
	if !e.set[i] {
		v := e.eval(e.p.variables[i].of)
		e.set[i], e.values[i] = true, v
	}
	return e.values[i]
}

func (e *env) snapshot() *Variables {
	s := &Variables{of: e.p.variables, values: make([]value, len(e.p.variables))}
	for i := range s.values {
		s.values[i] = e.variable(i)
	}
	return s
}

// limited gives a String unless it is larger than a message can be.
func (e *env) limited(b []byte) value {
	if len(b) > outputMax {
		e.fail(errTooLarge)
		return undefined
	}
	return textBytes(b)
}
