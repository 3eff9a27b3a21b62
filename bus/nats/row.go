package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// JetStream's error codes that mean something to us (server/errors.json).
const (
	codeNoMessage          = 10037
	codeStreamNotFound     = 10059
	codeWrongSequence      = 10071
	codeWrongSequenceConst = 10164
	codeSealed             = 10109
	codeTooLarge           = 10054
)

// apiError is JetStream's error in an answer.
type apiError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

// Error is the description with its code.
func (e *apiError) Error() string { return fmt.Sprintf("%s (%d)", e.Description, e.ErrCode) }

func isCode(err error, codes ...int) bool {
	var a *apiError
	if errors.As(err, &a) {
		return slices.Contains(codes, a.ErrCode)
	}
	var j *jetstream.APIError
	return errors.As(err, &j) && slices.Contains(codes, int(j.ErrorCode))
}

// errSealed says that the row's generation takes no more.
var errSealed = errors.New("generation is sealed")

const patienceDefault = 60 * time.Second

// row is one appender's place in one partition. It is for one goroutine.
type row struct {
	l         *Log
	gen, part uint32
	name      string
	owner     message.ID
	standing  func() bool // whether to resume behind another owner; nil stands down
	patience  time.Duration

	doubt      bool   // the batch under way may have been stored
	known      bool   // what follows is what the leader said
	seq        uint64 // of the row's last batch in the stream; 0 where there is none
	number     uint64 // the row's batches
	running    uint64 // and their messages
	runningSum uint64
}

func (r *row) subject() string { return rowSubject(r.l.name, r.gen, r.part, r.name) }

// sync asks the leader where the row ends, and gives the last batch's header.
func (r *row) sync(ctx context.Context) (h message.Header, ok bool, err error) {
	last, err := r.l.leader(ctx, r.gen, r.part, r.subject())
	if errors.Is(err, bus.ErrNotFound) {
		r.known, r.seq, r.number, r.running, r.runningSum = true, 0, 0, 0, 0
		return h, false, nil
	}
	if err != nil {
		return h, false, err
	}
	b, err := message.ParseBatch(last.data)
	if err != nil {
		// The row's account is in a batch that cannot be read. It begins anew behind it, and a reader sees a row that
		// went backwards: an alarm, and rightly so.
		return h, false, fmt.Errorf("the last batch of row %s (%s/%d/%d/%d): %w", r.name, r.l.name, r.gen, r.part, last.seq, err)
	}
	r.known, r.seq = true, last.seq
	r.number, r.running, r.runningSum = b.Number, b.Running+uint64(b.Count), b.RunningSum+b.IDSum
	return b.Header, true, nil
}

// write stores a batch behind the row's last one. It offers the same bytes again for as long as patience lasts, and
// after a lost confirmation finds out whether they were stored.
func (r *row) write(ctx context.Context, b *message.Builder) (seq uint64, raw []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.patience, errPatience)
	defer cancel()
	r.doubt = false
	var last error
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		seq, raw, err = r.try(ctx, b)
		if err == nil || final(err) {
			return seq, raw, err
		}
		if ctx.Err() == nil {
			last = err
			r.l.b.down(err.Error())
		}
		select {
		case <-ctx.Done():
			r.known = false
			if r.l.b.ctx.Err() != nil || !errors.Is(context.Cause(ctx), errPatience) {
				return 0, nil, r.l.b.closed(ctx.Err())
			}
			return 0, nil, message.Rejectf(message.BusUnavailable, "append to %s not confirmed within %s: %w", r.l.name, r.patience, last)
		case <-r.l.b.ctx.Done():
			r.known = false
			return 0, nil, bus.ErrClosed
		case <-time.After(jitter(wait)):
		}
	}
}

var errPatience = errors.New("patience is at its end")

// final says whether trying again is of no use.
func final(err error) bool {
	var reject *message.Rejection
	return errors.As(err, &reject) || errors.Is(err, errSealed) || errors.Is(err, bus.ErrClosed)
}

// try offers the batch once. Where the row's place is not known, as after a lost confirmation, it is asked for first,
// and the batch may turn out to be there.
func (r *row) try(ctx context.Context, b *message.Builder) (uint64, []byte, error) {
	if !r.known {
		number := r.number
		h, ok, err := r.sync(ctx)
		if err != nil {
			if isCode(err, codeStreamNotFound) {
				return 0, nil, errSealed // trimmed away whole
			}
			return 0, nil, err
		}
		if ok && h.Owner == r.owner && b.Sealed() == h.Number && h.Number == number+1 {
			return r.seq, b.Bytes(), nil // it had been stored
		}
		if ok && h.Owner != r.owner && number > 0 {
			if err := r.overtaken(h); err != nil {
				return 0, nil, err
			}
		}
	}
	raw := b.Seal(r.number+1, r.running, r.runningSum, r.owner)
	seq, err := r.publish(ctx, raw)
	switch {
	case err == nil:
		r.seq = seq
		r.number++
		r.running += uint64(b.Count())
		r.runningSum += b.IDSum()
		return seq, raw, nil
	case isCode(err, codeWrongSequence, codeWrongSequenceConst):
		// Our own, whose confirmation was lost; or another owner's.
		number := r.number
		h, ok, serr := r.sync(ctx)
		if serr != nil {
			r.known = false
			return 0, nil, serr
		}
		switch {
		case ok && h.Owner == r.owner && h.Number == number+1:
			return r.seq, raw, nil
		case ok && h.Owner != r.owner:
			if err := r.overtaken(h); err != nil {
				return 0, nil, err
			}
		}
		return 0, nil, fmt.Errorf("row %s was written by another owner; resuming behind it", r.name)
	case isCode(err, codeSealed):
		number := r.number
		if h, ok, serr := r.sync(ctx); serr == nil && ok && h.Owner == r.owner && h.Number == number+1 {
			return r.seq, raw, nil
		}
		return 0, nil, errSealed
	case isCode(err, codeStreamNotFound):
		return 0, nil, errSealed
	case isCode(err, codeTooLarge), errors.Is(err, natsgo.ErrMaxPayload):
		return 0, nil, message.Rejectf(message.MessageTooLarge, "batch of %d bytes; the bus takes %d", len(raw), r.l.b.maxBatch())
	}
	r.known, r.doubt = false, true
	return 0, nil, err
}

// overtaken decides what to do when another owner has written to the row: nil to go on behind it. A batch whose fate is
// in doubt is not written again then: it may lie before the other's, and nobody must find it twice.
func (r *row) overtaken(h message.Header) error {
	switch {
	case r.standing == nil || !r.standing():
		return r.fenced(h)
	case r.doubt:
		return message.Rejectf(message.BusUnavailable, "the confirmation was lost and another owner has written to row %s since; perhaps stored", r.name)
	}
	return nil
}

func (r *row) fenced(h message.Header) error {
	return message.Rejectf(message.Fenced, "row %s of log %s is written by %s, since batch %d; this is %s", r.name, r.l.name, h.Owner, h.Number, r.owner)
}

// publish appends with the expected place.
func (r *row) publish(ctx context.Context, data []byte) (uint64, error) {
	began := time.Now()
	m := natsgo.NewMsg(r.subject())
	m.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(r.seq, 10)}
	m.Data = data
	ctx, cancel := context.WithTimeout(ctx, requestWait)
	defer cancel()
	answer, err := r.l.b.nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return 0, err
	}
	var ack struct {
		Seq   uint64    `json:"seq"`
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		return 0, fmt.Errorf("confirmation of an append: %w", err)
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	if ack.Seq == 0 {
		return 0, errors.New("confirmation of an append without a sequence")
	}
	r.l.b.confirmed(time.Since(began))
	return ack.Seq, nil
}
