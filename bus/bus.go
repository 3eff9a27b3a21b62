// Package bus is how messages move: the promises that every engine keeps, and nothing of any engine.
//
// There are two ways, because the traffic is of two kinds. A [Log] carries facts: appended, numbered, kept in order per
// key, read by any number of readers at their own pace. A [Queue] carries what addresses one receiver and may wait for
// it. Beside them stands a [Table], small and watchable, for what is configuration rather than traffic; and a [Lease],
// which chooses one owner among several but fences nobody: the log does that, by the expected place of every append.
//
// Engines: bus/nats (NATS JetStream, embedded or external), bus/mem (for tests). bus/kinesis adds to an engine one log
// that lies in an Amazon Kinesis data stream. bus/bustest holds each of them to the promises below.
package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/message"
)

// Bus is one engine. All methods may be called by any number of goroutines. Until Close it comes back by itself from whatever breaks
// its connection, and what waits goes on.
type Bus interface {
	// Log opens a log, and creates it with one generation of partitions where there is none of that name.
	Log(ctx context.Context, name string, o LogOptions) (Log, error)
	// Queue opens a queue, and creates it where there is none of that name.
	Queue(ctx context.Context, name string) (Queue, error)
	// Table opens a table, and creates it where there is none of that name.
	Table(ctx context.Context, name string, o TableOptions) (Table, error)
	// Lease tries to become or stay the owner of a name. It gives ErrHeld while another owner holds it.
	Lease(ctx context.Context, name, owner string, ttl time.Duration) (Lease, error)
	// Answer has f answer what is asked on a name, many questions at once, and returns nil when ctx is done. ready is called once
	// questions arrive. Where several answer on a name, each question goes to one of them. f's ctx ends with Answer's.
	Answer(ctx context.Context, name string, f func(ctx context.Context, question []byte) []byte, ready func()) error
	// Ask asks on a name and gives the answer, ErrNobody where nobody answers there. Nothing of it is kept: a question or its
	// answer may be lost, so ctx wants an end, and who must know asks again. Question and answer have MaxMessage bytes at most,
	// and some more for what stands around a record's data.
	Ask(ctx context.Context, name string, question []byte) ([]byte, error)
	// Status is the engine's state of health, cheap enough to ask every second.
	Status(ctx context.Context) Status
	// MaxMessage is the largest record, in bytes as [message.AppendRecord] writes it, that this engine takes.
	MaxMessage() int
	// Close lets go of the engine; an embedded one is stopped. Appends under way end with ErrClosed.
	Close() error
}

// The errors that callers act on. Engines wrap them; ask with errors.Is.
var (
	ErrClosed    = errors.New("the bus is closed")
	ErrNotFound  = errors.New("not found")
	ErrConflict  = errors.New("changed by another in the meantime")
	ErrHeld      = errors.New("held by another owner")
	ErrTruncated = errors.New("the log ends before this position")
	ErrNobody    = errors.New("nobody answers there")
	ErrPurged    = errors.New("the log begins behind this position")
	// ErrSealed is what a reader gives at the end of a generation that will not grow any more.
	ErrSealed = errors.New("end of a sealed generation")
)

// Status is an engine's state of health.
type Status struct {
	Engine   string        `json:"engine"`             // "nats embedded", "nats nats://…", "memory"
	Up       bool          `json:"up"`                 // appends can be confirmed
	Since    time.Time     `json:"since"`              // Up has been as it is
	Fault    string        `json:"fault,omitempty"`    // why it is not up, for a person
	Space    Space         `json:"space"`              // where the engine can tell
	Restarts int           `json:"restarts,omitempty"` // of an embedded engine that had switched itself off
	Latency  time.Duration `json:"latency_ns"`         // of the last confirmed append
}

// Space is what is left to write on. Below Low the doors are shut: appenders that are doors refuse with storage_low.
// What is between zero and Low is the reserve that internal appends, positions, dead letters and purges live on.
type Space struct {
	Free  uint64 `json:"free_bytes"`
	Total uint64 `json:"total_bytes"`
	Low   uint64 `json:"low_water_bytes"`
	Shut  bool   `json:"doors_shut"`
}

// LogOptions are for a log's creation; on one that exists they are not compared.
type LogOptions struct {
	Partitions int // 1 where zero
}

// Position is a place in a log: everything up to and including it.
type Position struct {
	Log        message.ID `json:"log"`        // the log's id, which a log created anew does not share
	Generation uint32     `json:"generation"` // from 1
	Partition  uint32     `json:"partition"`  // from 0
	Sequence   uint64     `json:"sequence"`   // from 1; zero is before the first
	Index      uint32     `json:"index"`      // of the record in the batch
}

// Origin is the position as a batch's header holds it.
func (p Position) Origin() message.Origin {
	return message.Origin{Log: p.Log, Generation: p.Generation, Partition: p.Partition, Sequence: p.Sequence, Index: p.Index}
}

// PositionOf is the position that a batch's header holds.
func PositionOf(o message.Origin) Position {
	return Position{Log: o.Log, Generation: o.Generation, Partition: o.Partition, Sequence: o.Sequence, Index: o.Index}
}

// LogInfo is the shape of a log at a moment.
type LogInfo struct {
	ID          message.ID   `json:"id"`
	Name        string       `json:"name"`
	Generations []Generation `json:"generations"` // oldest first; the last one is open
}

// Generation is a time during which a log's partitions did not change.
type Generation struct {
	Number     uint32      `json:"number"`
	Sealed     bool        `json:"sealed"`
	Partitions []Partition `json:"partitions"`
}

// Partition is one row of batches.
type Partition struct {
	Number uint32 `json:"number"`
	First  uint64 `json:"first"` // sequence of the oldest batch; Last+1 where there is none
	Last   uint64 `json:"last"`  // sequence of the newest batch ever appended
	Bytes  uint64 `json:"bytes"`
}

// Log is an append-only row of batches per partition, kept until trimmed.
type Log interface {
	Name() string
	// ID is the log's identity.
	ID() message.ID
	// MaxMessage as [Bus.MaxMessage].
	MaxMessage() int
	// Info asks the engine.
	Info(ctx context.Context) (LogInfo, error)
	// Appender opens the door of that name: messages from many goroutines, gathered into batches. Where a process
	// of the same name wrote before, it goes on behind it.
	Appender(ctx context.Context, o AppenderOptions) (Appender, error)
	// Writer opens the row of that name for one consumer that derives batches from another log.
	Writer(ctx context.Context, o WriterOptions) (Writer, error)
	// Fence ends a row for whoever writes it and has lost his standing: an empty batch of another owner at the row's end,
	// in each partition, also where the row has none yet. It returns when they are on disk, and gives their places; what
	// the former owner wrote is before them, or is refused. The row's mark stays as it was.
	Fence(ctx context.Context, row string, owner message.ID) ([]Position, error)
	// Reader reads one partition in order, beginning behind from (whose Sequence is zero to begin at the oldest
	// batch). It gives ErrTruncated where the log ends before from, ErrPurged where it begins more than one behind it.
	// Only Generation, Partition and Sequence of from count.
	Reader(ctx context.Context, from Position) (Reader, error)
	// Fetch reads one batch, for those who look up. It gives ErrNotFound where it is not there (any more).
	Fetch(ctx context.Context, at Position) (Stored, error)
	// Trim deletes what is at and before the position, except each row's last batch, which marks where its owner is.
	// A sealed generation that is trimmed to its end disappears.
	Trim(ctx context.Context, upTo Position) error
	// Repartition seals the generation that is open and opens the next with n partitions. Appenders and writers go
	// over to it by themselves; readers end the old one with ErrSealed.
	Repartition(ctx context.Context, n int) error
}

// Copy is a log whose batches a component copies out of another one into a store elsewhere, which answers slowly, for
// money, or not at all. It has no appenders, writers, fences or generations of its own and cannot be trimmed: what was
// said is said in its source, and what is kept is for that store to decide. Its sequences grow and are not contiguous.
// What its methods, and Info, say is known without asking that store.
type Copy interface {
	Log
	// Source is the name of the log that is copied.
	Source() string
	// Reached is how far a reader that stands at a position has come in the source: nothing in that partition of the
	// source up to there is behind it. A reader that has read all there is in its partition has come as far as the copy.
	Reached(ctx context.Context, p Position) (Position, error)
	// Read reads a batch of the source; ErrNotFound as with Fetch.
	Read(ctx context.Context, at Position) (Stored, error)
	// Written is how many messages of each row are in a partition, up to its last batch.
	Written(ctx context.Context, generation, partition uint32) (map[string]uint64, error)
}

// Copier is a [Copy] as the component knows it that makes it.
type Copier interface {
	Copy
	// Append puts a batch of the source into the copy, and returns when all of it is there. What follows from that is set
	// in st; an error leaves st as it was, and what was put is put again, with the same bytes. committed is to be called
	// when st is committed, together with the position in the source. It is for one goroutine.
	Append(ctx context.Context, st State, s Stored) (committed func(), err error)
	// Tell lets other processes and the next start know how far the copy has come; who copies calls it from time to time.
	// What is told late makes nothing wrong: the copy looks shorter than it is.
	Tell(ctx context.Context) error
}

// State is where a copier keeps what it has done.
type State interface {
	// Get gives nil where there is no such key.
	Get(key []byte) ([]byte, error)
	Set(key, value []byte)
}

// CopyName is the name of the log that is a copy of another one, where there is one.
func CopyName(source string) string { return source + ".kinesis" }

// ErrCopy is what a [Copy] refuses to be written with.
var ErrCopy = errors.New("the log is a copy of another one, which is where messages are said")

// PartitionOf is the partition that a key belongs to among n: FNV-1a of 32 bits over the key's bytes, modulo n. It is
// for ever, since the order of a key's messages depends on it.
func PartitionOf(key string, n int) uint32 {
	if n <= 1 {
		return 0
	}
	h := uint32(2166136261)
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return h % uint32(n)
}

// AppenderOptions name an appender.
type AppenderOptions struct {
	// Name is the appender's row in the log: one word of letters, digits, `-` and `_`, such as a node's broker. Two
	// processes must not use one name at once; if they do, one of them is fenced.
	Name string
	// Owner is the incarnation: new with every start of a process.
	Owner message.ID
	// Door says that what is appended comes from outside, and is refused with storage_low when space is short.
	Door bool
	// Standing is asked when another owner has written to the row: true to resume behind it, false to stand down with
	// a *message.Rejection of reason Fenced for everything pending. Nil resumes.
	Standing func() bool
	// Patience is how long a batch is offered again while the engine does not confirm it; 60 s where zero. At its end
	// the batch's messages get bus_unavailable: not acknowledged, perhaps stored.
	Patience time.Duration
}

// Completion is told what became of appended messages. The calls come one at a time from the appender's own goroutine,
// for each partition in the order of the appends, and must not block.
type Completion interface {
	// Appended says that the message appended with this token is on disk at p, or why it is not.
	Appended(token uint64, p Position, err error)
	// Settled follows the last Appended of a batch that concerned this completion (or more often): now is the time
	// to write one answer for all of them.
	Settled()
}

// Appender gathers messages from many goroutines by natural batching: what arrives while a batch is being written
// makes the next one.
type Appender interface {
	// Append takes a copy of the message; the completion hears of it later, unless an error is returned here, which is
	// final: message_too_large, storage_low (both *message.Rejection), ErrClosed or ctx's. It blocks only while more than
	// 64 MiB are pending. A nil completion is told nothing.
	Append(ctx context.Context, m *message.Message, to Completion, token uint64) error
	// Close writes what is pending, waits for its completions and ends. ctx limits the wait.
	Close(ctx context.Context) error
}

// AppendSync appends one message and waits for its fate.
func AppendSync(ctx context.Context, a Appender, m *message.Message) (Position, error) {
	w := make(waiter, 1)
	if err := a.Append(ctx, m, w, 0); err != nil {
		return Position{}, err
	}
	select {
	case r := <-w:
		return r.p, r.err
	case <-ctx.Done():
		return Position{}, ctx.Err()
	}
}

type waiter chan struct {
	p   Position
	err error
}

func (w waiter) Appended(_ uint64, p Position, err error) {
	w <- struct {
		p   Position
		err error
	}{p, err}
}
func (w waiter) Settled() {}

// WriterOptions name a writer.
type WriterOptions struct {
	Name     string      // as AppenderOptions.Name
	Owner    message.ID  // as AppenderOptions.Owner
	Standing func() bool // as AppenderOptions.Standing, but nil stands down
	Patience time.Duration
}

// Writer writes derived batches, one at a time, each behind the one before or not at all. It is for one goroutine.
type Writer interface {
	// Last is the header of the newest batch in this row, by whomever: where the work was left. ok is false where
	// there is none. It asks the engine's leader.
	Last(ctx context.Context) (h message.Header, ok bool, err error)
	// Write writes one batch and returns when it is on disk. messages may be empty: a range that yielded nothing still
	// leaves a mark. All messages go to the row's partition, whatever their keys. Writing is internal: it may use the reserve. It gives a
	// *message.Rejection of reason Fenced when another owner has written and this one stands down; nothing was written
	// then. A batch larger than the engine takes is an error of reason MessageTooLarge, and nothing was written.
	Write(ctx context.Context, source Position, mark []byte, messages []*message.Message) (Position, error)
	// MaxBatch is the largest batch in bytes that the engine takes.
	MaxBatch() int
	// Close lets go; nothing is pending.
	Close() error
}

// Reader gives the batches of one partition in the order of their sequence, each once and none left out. It is for one
// goroutine, except Close.
type Reader interface {
	// Next waits for the next batch. A batch that cannot be read is given with Err set, never skipped. It gives
	// ErrSealed at the end of a sealed generation, ErrPurged when what comes next was trimmed meanwhile, ErrClosed
	// after Close. While the engine is away it waits.
	Next(ctx context.Context) (Stored, error)
	// Close ends a waiting Next.
	Close()
}

// Stored is a batch in its place.
type Stored struct {
	Position Position      // of the batch; Index is its last record's
	Appender string        // the row it is in
	Batch    message.Batch // shared with other readers: nobody changes it
	Err      error         // why it cannot be read, a *message.CorruptError; Batch is empty then
}

// Queue keeps messages for a receiver that may be away.
type Queue interface {
	Name() string
	// Put returns when the message is on disk. A second Put of the same id within two minutes is the same as the first.
	// Where m.Expires is set, the message goes by itself at that time. It is refused with storage_low below the low
	// water mark if door is true.
	Put(ctx context.Context, m *message.Message, door bool) error
	// Consumer opens the consumer of that name over the subjects that match; consumers of one name share the messages.
	// Patterns of different names must not overlap: a message is for one receiver.
	Consumer(ctx context.Context, o ConsumerOptions) (Consumer, error)
	// Waiting is how many messages are in the queue, delivered or not.
	Waiting(ctx context.Context) (uint64, error)
}

// ConsumerOptions name a consumer of a queue.
type ConsumerOptions struct {
	Name     string
	Pattern  message.Pattern
	AckWait  time.Duration // after which an unanswered message comes again; 30 s where zero
	InFlight int           // how many may be unanswered; 256 where zero
}

// Consumer takes messages from a queue. Next is for one goroutine, deliveries for any.
type Consumer interface {
	Next(ctx context.Context) (Delivery, error)
	Close()
}

// Delivery is one attempt to handle a queued message. The answer to it is not crash-durable: a message may come again
// after Ack. An outcome is final only when it is recorded with its effect, under the message's id.
type Delivery interface {
	Message() *message.Message
	// Attempt counts from 1.
	Attempt() int
	Ack(ctx context.Context) error
	// Retry asks for the message again, not before the delay.
	Retry(ctx context.Context, delay time.Duration) error
	// Drop gives the message up: it will not come again.
	Drop(ctx context.Context) error
	// Working puts the end of AckWait off.
	Working(ctx context.Context) error
}

// TableOptions are for a table's creation.
type TableOptions struct {
	// Volatile tables may forget everything when the engine stops: they are for what is said again.
	Volatile bool
	// TTL is after how long an entry goes by itself; zero for never.
	TTL time.Duration
}

// KeyMax is the most bytes of a table's key.
const KeyMax = 1024

// CheckKey says what is wrong with a table's key; nil when nothing is.
func CheckKey(key string) error {
	switch {
	case key == "" || key[0] == '.' || key[len(key)-1] == '.':
		return errors.New("a key must not be empty nor begin or end with a dot")
	case len(key) > KeyMax:
		return fmt.Errorf("a key has up to %d bytes, and not %d", KeyMax, len(key))
	}
	for i := range len(key) {
		switch c := key[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '=', c == '/', c == '.':
		default:
			return fmt.Errorf("a key has letters, digits, - _ = / and dots, and not %q", c)
		}
	}
	return nil
}

// Table is a small keyed store that can be watched: up to some hundred thousand keys of up to some kilobytes. Keys are as
// [CheckKey] wants them; every other one is refused, since an engine may end the connection of who says it.
type Table interface {
	// Get gives ErrNotFound where there is no such key.
	Get(ctx context.Context, key string) (Entry, error)
	// Put writes, whatever was there.
	Put(ctx context.Context, key string, value []byte) (revision uint64, err error)
	// Update writes if the key's revision is still the given one (0: there is no such key), else ErrConflict.
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	// Delete removes the key, if its revision is still the given one (0: whatever it is).
	Delete(ctx context.Context, key string, revision uint64) error
	// Watch calls f for each entry under the prefix, then synced once, then f for each change, one call at a time, until
	// ctx is done. After a break in the connection everything may be told again. A removed key comes with Deleted.
	Watch(ctx context.Context, prefix string, f func(Entry), synced func()) error
}

// Entry is a key's value at a revision.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
	Deleted  bool
}

// Lease is ownership for a while. It is renewed in the background and says when it is lost; it fences nobody.
type Lease interface {
	// Held says whether it was, a moment ago. It is false from the moment the time to live has passed without a renewal,
	// by this process's clock, whatever the engine thinks.
	Held() bool
	// Lost is closed when it is lost or released.
	Lost() <-chan struct{}
	// Release gives it up, so that another need not wait for the time to live.
	Release(ctx context.Context) error
}
