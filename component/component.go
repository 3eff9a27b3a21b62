// Package component says what a component is: data that declares it, handlers that decide the fate of a message, and
// the runner that does everything else. A component has no loops over the bus, no retries, no positions of its own; so
// the same component runs in production, alone in its process, and in a test with a clock that stands still.
package component

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Spec declares a component. It is data: catalog, graph, permissions and `naru node info` are read from it.
type Spec struct {
	// Name is `<namespace>.<component>`: its folder, its key in the configuration, its name in every list.
	Name string
	// Doc is one sentence.
	Doc string
	// Hears lists the patterns it handles by the log; which logs are read follows from them.
	Hears []message.Pattern
	// Instead names, for a log that what it hears can come from, another one that is read in its place: a copy of it
	// ([bus.Copy]). Its children read that, too.
	Instead map[string]string
	// Also lists logs that are read as well: copies, whose messages are heard once more.
	Also []string
	// Takes lists the patterns it takes from the queue.
	Takes []message.Pattern
	// Says lists the patterns it may say. Anything else is refused with reason undeclared.
	Says []message.Pattern
	// ChildrenHear lists the patterns within which its children hear, where it has children (Env.Children). They say what
	// it says, and are Required as it is.
	ChildrenHear []message.Pattern
	// State is where its positions and effects are kept.
	State State
	// Into is the namespace whose log a component with State Derived writes its batches into, positions and what it says
	// there being one. What it says elsewhere follows from there, each message once.
	Into string
	// Parallel is in how many goroutines the messages of a batch are handled, split by key: those of one key one after
	// the other, those of different keys at the same time. A handler then touches only the state of its message's key.
	// Zero and one are one goroutine, for which handlers need no locks. It does not concern HandleBatch.
	Parallel int
	// Calls is how many messages are called for at the same time, where the part has Call; 16 where zero.
	Calls int
	// Gather is for how long messages of a partition are gathered before HandleAll is called for them, and GatherMax how
	// many are: it is called as soon as either is reached, a batch being whole. With zero it is called with what is at
	// hand, and up to 8192 messages.
	Gather    time.Duration
	GatherMax int
	// PerNode says that each process that runs the component is a consumer of its own, `<name>/<node>`, with all messages
	// and its own local state.
	PerNode bool
	// Required says that the log must keep what this component has not finished, even if the disk fills.
	Required bool
	// Lazy says that nobody waits for its effects: a commit may wait for a tenth of a second, to carry more. A crash
	// makes it read that much again.
	Lazy bool
	// From is where a component that never ran begins in a log.
	From Start
	// Retry is how its failures are tried again; the zero value has sensible defaults.
	Retry Retry

	of       string // the component that a child is of
	defaults any
	build    func(Env, json.RawMessage) (*Part, error)
}

// State is where a component's positions and effects are kept, always together.
type State int

const (
	// None has no handlers for the log: the component only runs.
	None State = iota
	// Local keeps both in a store in the component's own directory. It has one process.
	Local
	// Derived keeps nothing here: the position lies in the batches that the component derives. Each partition of what it
	// hears has one owner, and the partitions spread over the processes that run the component; in one process, those
	// of different partitions are handled at the same time. Handlers have no keys and values of their own.
	Derived
)

// Start is where a component that never ran begins.
type Start int

const (
	// Oldest begins with the oldest message there is.
	Oldest Start = iota
	// Newest begins with what comes next.
	Newest
)

// Retry is how a failed message is tried again: after First, then twice that, up to Most, each with a jitter of a
// fifth; after Attempts it dies with reason retries_exhausted. The messages of its key wait behind it.
type Retry struct {
	First    time.Duration // 100 ms where zero
	Most     time.Duration // 1 min where zero
	Attempts int           // 8 where zero
	// ParkedMax is how many messages of a partition may wait; beyond it the partition stands still, and the others go on.
	// Where zero it is 10,000, and 2,000 with State Derived, which writes with each position what waits.
	// Of a component with Call it is how many may be in its hands: waiting for their call, called for, or to be tried
	// again; beyond it the rest waits in the log.
	ParkedMax int
}

// Env is everything a component may reach outside itself.
type Env struct {
	Spec    Spec
	Log     *slog.Logger
	Now     func() time.Time
	Bus     bus.Bus
	Catalog *message.Catalog
	Metrics prometheus.Registerer
	// Dir is the component's own directory, made when first asked for; mode 0700.
	Dir func() (string, error)
	// Node names the process among those on the bus, and stays the same when it starts again.
	Node string
	// Owner is this start of the process.
	Owner message.ID
	// Mint completes a message that begins a trace: id, trace, source and type where they are missing.
	Mint func(m *message.Message)
	// Say appends a message that follows from no handled one, and returns when it is on disk. Inside a handler use
	// Tx.Say, which makes message and position one.
	Say func(ctx context.Context, m *message.Message) error
	// Door opens an appender for what comes from outside; it refuses what Spec.Says does not name, and what breaks its
	// contract. The appender's row is the component's on this node.
	Door func(ctx context.Context, log string) (bus.Appender, error)
	// View reads the component's own store as it was last committed, from any goroutine, for what is answered outside
	// a handler. It gives an error where State is not Local.
	View func(f func(v View) error) error
	// Check holds a message to the schema of its contract: nil, or a *message.Rejection of reason schema_mismatch whose
	// particulars begin with the JSON pointer of the field. Say, Tx.Say and Door do so by themselves.
	Check func(m *message.Message) error
	// Change runs f where the handlers run, between two of their calls, and returns when what f did is committed. An
	// error of f is returned, and leaves nothing. It gives an error where State is not Local, or the component is not
	// running here. Where ctx ends, or the component stops, f has been run to its end or is not run at all; whether it is committed is then not known.
	// It must not be called in a handler, and f must not block.
	Change func(ctx context.Context, f func(tx Tx) error) error
	// Succeed takes the place of another process of a component that is PerNode, when that one is gone: it gives
	// bus.ErrHeld while it is not. What the other one appended is before the succession's fences, or refused.
	Succeed func(ctx context.Context, node string) (*Succession, error)
	// Calls changes how many calls are made at once, down from Spec.Calls; with zero none is made until it is changed
	// again. Those under way go on. It lasts until the process ends, also where the component is started anew.
	Calls func(n int)
	// Children declares all children of the component, from its Run: those that are new are started, those that changed
	// started anew, those left out stopped. What is wrong with the set is an error, and changes nothing. All of them stop
	// with the component. One that is left out keeps its store, and goes on where it was when it is declared again.
	Children func(set []Child) error
	// Forget removes what is kept of a child that is not declared any more: its store, with its position and what was
	// waiting in it, and its account. It gives an error while the child runs anywhere, and may be repeated.
	Forget func(ctx context.Context, child string) error
	// Move lets a child that has its home at a node that is gone have one elsewhere: the first process that can takes it over, and goes on
	// behind what was last told of it. What it had parked is left behind. It gives an error while the child runs anywhere.
	Move func(ctx context.Context, child string) error
	// Listening tells where the component listens, by the listener's name, once it does: the address has the real port.
	Listening func(name, address string)
	// Fault tells operators what keeps the component from its work though it runs, such as a server that is away; empty
	// takes it back. It is for Run, once it has called ready.
	Fault func(why string)
	// Peers gives an operator's component the view of all components on the bus.
	Peers *Peers

	gate *gate // of its calls
}

// Part is a built component.
type Part struct {
	// Handle decides the fate of one message: nil is handled, a *message.Rejection is dead now, ErrNotMatched counts
	// it as seen and not concerned; any other error is tried again, and a panic is such an error.
	Handle func(ctx context.Context, tx Tx, m *message.Message) error
	// HandleBatch handles a whole batch in its place, all or nothing, heard or not; an error is tried again, and holds the
	// batch's partition back meanwhile, but no other.
	HandleBatch func(ctx context.Context, tx Tx, log string, s bus.Stored) error
	// HandleAll decides the fates of many messages of one partition at once: of all that its batches at hand hold and the
	// component hears, in order; Spec.Gather says how many are waited for. It wants State Local. fates[i] is that of in[i],
	// as Handle's result is one, but none is tried again: any error is a death. err says that none was decided: all are
	// tried again with back-off, their partition being held meanwhile, and no other. What it does elsewhere, such as a
	// transaction of a database, it does before it returns, and keeps the positions with it: where the process dies
	// before the fates are committed, the same messages come again, perhaps in other groups, and it gives the same fates.
	// What it says would follow from no one message, so Tx.Say refuses.
	HandleAll func(ctx context.Context, tx Tx, log string, in []Heard) (fates []error, err error)
	// Call handles a message outside, and may take its time: Spec.Calls of them run at once, those of one key one after
	// the other, those that came in first before others; it wants State Local. Its error is a fate, as Handle's; a
	// *RetryAfter puts the next attempt off. What it says follows from the message, and is said together with its fate,
	// once, however often it was tried: where it is handled or not matched, and also where it dies of this call. A call
	// whose end was not committed when the process died is made again: at least once, with the message's id as the key
	// by which the other side knows it. ctx ends when the component stops; what then fails is tried again by its next
	// start. m must not be changed.
	// A component has one of the four.
	Call func(ctx context.Context, m *message.Message, try Try) (say []*message.Message, err error)
	// Passes says that no message of a log concerns the component as it is now. A batch is then passed as a whole: all of it is
	// counted as not matched by what its header says, and no message is read. It is asked for each batch, by the goroutine that
	// would handle it, and goes with Handle; nil is never.
	Passes func(log string) bool
	// Key is what the order of calls is kept by; m.Key() where it is nil.
	Key func(m *message.Message) string
	// Take decides the fate of one queued message, as Handle does. Its outcome and effects are recorded under the
	// message's id before it is answered, so that a redelivery does nothing.
	Take func(ctx context.Context, tx Tx, m *message.Message, attempt int) error
	// Run is what the component does by itself: listen, tick. It returns nil once ctx is done and all it started has
	// ended; an error, and the runner starts the component anew after a while. It calls ready when it does its work.
	Run func(ctx context.Context, ready func()) error
	// Lease is for how long a process that is gone still owns a component with State Local, before another one may have
	// it; 5 s where zero.
	Lease time.Duration
	// Routes are what it answers by HTTP on the process's one listener.
	Routes []Route
	// Close is called last; it may be nil.
	Close func() error
}

// Route is an HTTP pattern of net/http.ServeMux, such as `GET /api/v1/messages`, and its handler. Unless Public, a
// request needs the platform's token.
type Route struct {
	Pattern string
	Handler http.Handler
	Public  bool
}

// ErrNotMatched is a fate: the message was seen, and did not concern the component. It is counted as such.
var ErrNotMatched = fmt.Errorf("not matched")

// Tx is what a handler may do, all of it committed with the position, or none of it. It is for the handler's goroutine
// and its time. Keys and values are the component's own.
type Tx interface {
	// Get gives nil where there is no such key. The value must not be changed. Keys and values want State Local: with
	// another one, reading gives an error, and a message whose handler writes fails.
	Get(key []byte) ([]byte, error)
	Set(key, value []byte)
	Delete(key []byte)
	// Scan calls f for the keys with the prefix in order, until it gives false.
	Scan(prefix []byte, f func(key, value []byte) bool) error
	// Say says m as a consequence of the handled message: id, span, source and type are minted, trace and device
	// inherited, cause and depth set. It is a *message.Rejection for what Spec.Says does not name, for what breaks its
	// contract, and for a loop.
	Say(m *message.Message) error
	// After has f called, in the handlers' goroutine, once what the handler did is committed. f must not block.
	After(f func())
	// Said has f called once what the handler said so far is in its log, or with the error that keeps it from getting
	// there by this process: what was committed is then said by the next one. f must not block.
	Said(f func(error))
	// Heard is how far the logs were heard before this call, as it will be committed; the batch at hand is not in it.
	Heard() []bus.Position
	// Now is the clock of Env.
	Now() time.Time
}

// View is a component's own store at a moment.
type View interface {
	// Get gives nil where there is no such key. The value must not be changed, nor kept after View's function returns.
	Get(key []byte) ([]byte, error)
	// Range calls f for the keys from (inclusive) to (exclusive), or backwards, until it gives false.
	Range(from, to []byte, backwards bool, f func(key, value []byte) bool) error
}

// Define joins a Spec with its configuration and constructor. defaults is a struct; its fields, by their json names,
// are the keys of the component's configuration. build has no side effects: it opens nothing and starts nothing.
func Define[C any](s Spec, defaults C, build func(Env, C) (*Part, error)) Spec {
	s.defaults = defaults
	s.build = func(e Env, raw json.RawMessage) (*Part, error) {
		c := defaults
		if len(raw) > 0 {
			if err := decodeStrict(raw, &c); err != nil {
				return nil, fmt.Errorf("configuration of %s: %w", s.Name, err)
			}
		}
		return build(e, c)
	}
	return s
}

// consumer is the component's name as a consumer, in a process of that name on the bus.
func (s Spec) consumer(node string) string {
	if s.PerNode {
		return s.Name + "/" + node
	}
	return s.Name
}

// Build makes the component as the runner does: its configuration is read strictly, and nothing is opened or started.
func (s Spec) Build(e Env, config json.RawMessage) (*Part, error) {
	if s.build == nil {
		return nil, fmt.Errorf("component %s was not made with Define", s.Name)
	}
	return s.build(e, config)
}

// Defaults is the component's default configuration, a struct.
func (s Spec) Defaults() any { return s.defaults }

// Sum is a count of messages and the sum of their ids' hashes modulo 2^64.
type Sum struct {
	Count uint64 `json:"count"`
	IDs   uint64 `json:"ids"`
}

// Add counts one message.
func (s *Sum) Add(id message.ID) { s.Count++; s.IDs += id.Hash() }

// Remove takes one message back.
func (s *Sum) Remove(id message.ID) { s.Count--; s.IDs -= id.Hash() }

// Plus adds two sums.
func (s Sum) Plus(o Sum) Sum { return Sum{s.Count + o.Count, s.IDs + o.IDs} }

// Minus takes one sum from another.
func (s Sum) Minus(o Sum) Sum { return Sum{s.Count - o.Count, s.IDs - o.IDs} }

// The outcomes that a checkpoint counts. Together with what is parked they are all messages up to its position.
const (
	Handled    = "handled"
	NotHeard   = "not_heard"   // no pattern of the component selects it
	NotMatched = "not_matched" // the handler said ErrNotMatched
	Dead       = "dead"
	Unreadable = "unreadable" // dead, in a batch that cannot be read; known from the running counts behind it
)

// Checkpoint is where a consumer stands in one partition of a log: committed in one transaction with its effects, and
// reported from there. Everything up to Position is in Outcomes or Parked.
type Checkpoint struct {
	Consumer string         `json:"consumer"`
	Log      string         `json:"log"`
	Position bus.Position   `json:"position"`
	Outcomes map[string]Sum `json:"outcomes"`
	Waiting  Sum            `json:"parked"` // what is parked
	// Rows is, for each appender met, where its row began for this consumer and how far it has been counted, as the
	// headers say it.
	Rows map[string]Row `json:"rows"`
	// UnreadableBatches counts them; what was in them is known once their appender's next batch is read.
	UnreadableBatches uint64 `json:"unreadable_batches,omitempty"`
	// Began is the sequence behind which the consumer began: zero unless Spec.From is Newest. Rows that were not
	// written since are not in Rows.
	Began uint64 `json:"began,omitempty"`
	// Finished says that the generation is sealed and was read to its end.
	Finished bool `json:"finished,omitempty"`
	// Within is set where a commit fell into the middle of the batch behind Position; Outcomes hold those messages too.
	// Reports never have it.
	Within *Within `json:"within,omitempty"`
	// Needed is the sequence of the oldest batch that the consumer still has to read again, since messages in it are
	// parked with State Derived; zero where it needs none.
	Needed uint64 `json:"needed,omitempty"`
}

// Within is a place in the middle of a batch.
type Within struct {
	Sequence uint64 `json:"sequence"`
	Count    uint32 `json:"count"` // messages dealt with
}

// Row is a consumer's account with one appender.
type Row struct {
	Start Sum `json:"start"` // before the first batch met
	Upto  Sum `json:"upto"`  // after the last one
	// Trimmed says that what came next was trimmed before it was read: the gap counts as dead of retention_exceeded.
	Trimmed bool `json:"trimmed,omitempty"`
}

// Report is a checkpoint as the runner shows it to operators, a moment after it was committed.
type Report struct {
	Checkpoint
	Required   bool        `json:"required"`
	Child      bool        `json:"child,omitempty"` // `<component>/<child>`, and not `<component>/<node>`
	Node       string      `json:"node"`
	At         time.Time   `json:"at"`
	Exceptions []Exception `json:"exceptions,omitempty"` // parked messages, the oldest hundred
	Fault      string      `json:"fault,omitempty"`      // why it stands still, if it does
	// Forgotten says that the consumer is no more, and that nothing is owed to it.
	Forgotten bool `json:"forgotten,omitempty"`
}

// Exception is a parked message: one that is to be tried again, waits behind such a one, or waits for its call.
type Exception struct {
	ID       message.ID      `json:"id"`
	Trace    message.TraceID `json:"trace"`
	Device   string          `json:"device,omitempty"`
	Subject  message.Subject `json:"subject"`
	Position bus.Position    `json:"position"`
	Attempts int             `json:"attempts"`
	Since    time.Time       `json:"since"`
	Next     time.Time       `json:"next"`
	Calling  time.Time       `json:"calling,omitzero"` // since when it is called for, where that is under way
	Reason   message.Reason  `json:"reason,omitempty"` // of the last failure, where there was one
	Detail   string          `json:"detail"`
}

// Behind is how far a component is behind in a log.
type Behind struct {
	Messages uint64    `json:"messages"`
	Oldest   time.Time `json:"oldest,omitzero"` // when the oldest of them was accepted
}

// Health is what a component says of itself while it runs.
type Health struct {
	Name     string            `json:"name"`
	Of       string            `json:"of,omitempty"` // the component that it is a child of
	Node     string            `json:"node"`
	Doc      string            `json:"doc"`
	State    string            `json:"state"` // starting, running, standby, failed, stopped
	Since    time.Time         `json:"since"`
	Restarts int               `json:"restarts"`
	Fault    string            `json:"fault,omitempty"`
	Hears    []message.Pattern `json:"hears,omitempty"`
	Takes    []message.Pattern `json:"takes,omitempty"`
	Says     []message.Pattern `json:"says,omitempty"`
	At       time.Time         `json:"at"`
	HTTP     string            `json:"http,omitempty"` // where its process answers, if it does
	// Listens is where the component itself listens, by the listener's name.
	Listens map[string]string `json:"listens,omitempty"`
	// Contracts is the fingerprint of its process's catalog; all processes of a platform have the same.
	Contracts string `json:"contracts,omitempty"`
	// Behind is what lies before it in each log: not read, or not finished. It is measured every few seconds.
	Behind map[string]Behind `json:"behind,omitempty"`
	// Holds is how many partitions this process owns, with State Derived.
	Holds int `json:"holds,omitempty"`
}
