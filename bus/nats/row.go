package nats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// errSealed says that the row's generation takes no more, and that nobody has continued the row in it.
var errSealed = errors.New("generation is sealed")

// errPatience says that a batch was offered for as long as its owner wanted.
var errPatience = errors.New("patience is at its end")

const (
	patienceDefault = 60 * time.Second
	offerAgainMin   = 5 * time.Millisecond // after a fault, doubled each time
	offerAgainMax   = time.Second
)

// row is one owner's place in one partition: where it believes its last batch to be. It is for one goroutine.
type row struct {
	l         *Log
	gen, part uint32
	name      string
	owner     message.ID
	standing  func() bool
	patience  time.Duration

	seq        uint64 // of the row's last batch in the stream; 0 where there is none
	number     uint64 // of it among the row's
	running    uint64 // messages up to and including it
	runningSum uint64
	doubt      bool // a batch offered behind seq may have been stored
}

func (r *row) subject() string { return rowSubject(r.l.name, r.gen, r.part, r.name) }

func (r *row) String() string {
	return fmt.Sprintf("row %s of log %s, generation %d, partition %d", r.name, r.l.name, r.gen, r.part)
}

// follow takes a stored batch of the row as its last.
func (r *row) follow(seq uint64, h message.Header) {
	r.seq, r.number, r.doubt = seq, h.Number, false
	r.running, r.runningSum = h.Running+uint64(h.Count), h.RunningSum+h.IDSum
}

// begin takes the row's true end as its place, and gives the header there.
func (r *row) begin(ctx context.Context) (h message.Header, ok bool, err error) {
	seq, h, err := r.end(ctx)
	if err != nil {
		return h, false, err
	}
	r.follow(seq, h)
	return h, seq > 0, nil
}

// end asks the leader for the row's last batch; seq is 0 where there is none.
func (r *row) end(ctx context.Context) (seq uint64, h message.Header, err error) {
	last, err := r.l.lastOf(ctx, r.gen, r.part, r.subject())
	if errors.Is(err, bus.ErrNotFound) {
		return 0, h, nil
	}
	if err != nil {
		return 0, h, err
	}
	b, err := message.ParseBatch(last.data)
	if err == nil {
		return last.seq, b.Header, nil
	}
	h, err = r.unreadable(ctx, last.seq, err)
	return last.seq, h, err
}

// unreadable gives an account to go on with where the row's last batch cannot be read. A door must not stay shut for
// that: the row goes on behind it with the account of the newest batch that can be read, and readers see the gap.
func (r *row) unreadable(ctx context.Context, seq uint64, why error) (message.Header, error) {
	h, err := r.salvage(ctx, seq)
	if err == nil {
		r.l.b.log.Error("the last batch of a row cannot be read; its account goes on from the one before", "log", r.l.name,
			"generation", r.gen, "partition", r.part, "row", r.name, "sequence", seq, "error", why)
	}
	return h, err
}

// salvage looks before an unreadable batch for the row's account. Whose it is, is not known: the owner stays empty, so
// that nobody takes another's batch for his own.
func (r *row) salvage(ctx context.Context, seq uint64) (message.Header, error) {
	for lost := uint64(1); ; lost++ {
		m, ok, err := r.before(ctx, seq)
		if err != nil {
			return message.Header{}, err
		}
		if !ok {
			return message.Header{Number: lost}, nil
		}
		if b, err := message.ParseBatch(m.data); err == nil {
			h := b.Header
			h.Number += lost
			h.Owner = message.ID{}
			return h, nil
		}
		seq = m.seq
	}
}

// before finds the row's last batch before a sequence. The engine gives only the first at or behind one, so it is asked
// as often as a binary search wants, however many batches of neighbours are in between.
func (r *row) before(ctx context.Context, seq uint64) (best raw, ok bool, err error) {
	for low, high := uint64(1), seq; low < high; {
		mid := low + (high-low)/2
		if !ok {
			mid = low // the first of all
		}
		m, err := r.l.nextOf(ctx, r.gen, r.part, r.subject(), mid)
		switch {
		case err != nil && !errors.Is(err, bus.ErrNotFound):
			return raw{}, false, err
		case err != nil || m.seq >= seq:
			if !ok {
				return raw{}, false, nil
			}
			high = mid
		default:
			best, ok, low = m, true, m.seq+1
		}
	}
	return best, ok, nil
}

// write stores the batch behind the row's last one, once. While the engine does not confirm, it offers the same bytes
// again for as long as patience lasts. It gives errSealed where the row must go on in the next generation.
func (r *row) write(ctx context.Context, b *message.Builder) (seq uint64, raw []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.patience, errPatience)
	defer cancel()
	failing := false
	defer func() {
		if failing {
			r.l.b.failing.Add(-1)
		}
	}()
	raw = b.Seal(r.number+1, r.running, r.runningSum, r.owner)
	moved := 0
	for wait := offerAgainMin; ; wait = min(2*wait, offerAgainMax) {
		seq, err := r.offer(ctx, raw)
		if err == nil {
			return seq, raw, nil
		}
		if final(err) {
			return 0, nil, err
		}
		if errors.Is(err, errMoved) {
			raw = b.Seal(r.number+1, r.running, r.runningSum, r.owner)
			if moved++; moved < 100 && ctx.Err() == nil {
				wait = offerAgainMin / 2
				continue
			}
		}
		if !failing && ctx.Err() == nil {
			failing = true
			r.l.b.failing.Add(1)
			r.l.b.down(fmt.Sprintf("append to log %s: %v", r.l.name, err))
		}
		select {
		case <-time.After(jitter(wait)):
			continue
		case <-ctx.Done():
		case <-r.l.b.ctx.Done():
		}
		switch {
		case r.l.b.ctx.Err() != nil:
			return 0, nil, bus.ErrClosed
		case errors.Is(context.Cause(ctx), errPatience):
			return 0, nil, message.Rejectf(message.BusUnavailable, "%s: not confirmed within %s: %w", r, r.patience, err)
		}
		return 0, nil, ctx.Err()
	}
}

// errMoved says that the row's place is another than was thought, and is known now.
var errMoved = errors.New("the row was continued by another owner")

// final says whether offering again is of no use.
func final(err error) bool {
	var reject *message.Rejection
	return errors.As(err, &reject) || errors.Is(err, errSealed) || errors.Is(err, bus.ErrClosed)
}

// offer offers the bytes once, and finds out what a refusal means.
func (r *row) offer(ctx context.Context, raw []byte) (uint64, error) {
	seq, err := r.publish(ctx, raw)
	switch {
	case err == nil:
		r.followRaw(seq, raw)
		return seq, nil
	case isCode(err, codeWrongSequence, codeWrongSequenceConst):
		return r.resolve(ctx, raw, wrongSequence(err))
	case isCode(err, codeSealed):
		if seq, err = r.resolve(ctx, raw, 0); !errors.Is(err, errMoved) {
			return seq, err
		}
		return 0, errSealed
	case isCode(err, codeStreamNotFound), errors.Is(err, natsgo.ErrNoResponders):
		// The engine is starting, or the generation has disappeared whole.
		if gone, gerr := r.l.passed(ctx, r.gen); gerr == nil && gone {
			if r.doubt {
				return 0, message.Rejectf(message.BusUnavailable, "%s has disappeared before it confirmed; perhaps stored", r)
			}
			return 0, errSealed
		}
		return 0, err
	case isCode(err, codeTooLarge), errors.Is(err, natsgo.ErrMaxPayload):
		return 0, message.Rejectf(message.MessageTooLarge, "%s: batch of %d bytes; the bus takes %d", r, len(raw), r.l.b.maxBatch())
	}
	r.doubt = true
	return 0, err
}

// followRaw takes our own stored bytes as the row's last batch.
func (r *row) followRaw(seq uint64, raw []byte) {
	if b, err := message.ParseBatch(raw); err == nil { // it was sealed just now
		r.follow(seq, b.Header)
	}
}

// resolve finds out why the row does not end where it was thought to. It gives the sequence of our bytes where an
// earlier offer had been stored, errMoved where the row goes on behind another place, and a rejection of reason Fenced
// where this owner stands down. What the engine said the last sequence is counts where it cannot give the batch.
func (r *row) resolve(ctx context.Context, raw []byte, said uint64) (uint64, error) {
	if r.doubt {
		// All offers expected the same place, so that ours can only be the first batch behind it.
		first, err := r.l.nextOf(ctx, r.gen, r.part, r.subject(), r.seq+1)
		switch {
		case err == nil && bytes.Equal(first.data, raw):
			r.followRaw(first.seq, raw)
			return first.seq, nil
		case err == nil:
			b, perr := message.ParseBatch(first.data)
			if perr != nil {
				if b.Header, err = r.unreadable(ctx, first.seq, perr); err != nil {
					return 0, err
				}
			}
			if perr != nil || b.Number > r.number+1 {
				// What was behind our place was trimmed, or cannot be read.
				r.follow(first.seq, b.Header)
				return 0, message.Rejectf(message.BusUnavailable, "%s was continued before a lost confirmation could be made good; perhaps stored", r)
			}
		case !errors.Is(err, bus.ErrNotFound):
			return 0, err
		}
	}
	seq, h, err := r.end(ctx)
	if err == nil && seq < said {
		seq = said
		h, err = r.unreadable(ctx, said, errors.New("the engine cannot give it"))
	}
	switch {
	case err != nil:
		return 0, err
	case seq == r.seq:
		return 0, errMoved // where we thought: another offer under way was refused
	case h.Owner != r.owner && !r.standing():
		return 0, message.Rejectf(message.Fenced, "%s was continued by owner %s at sequence %d; this is %s", r, h.Owner, seq, r.owner)
	}
	r.follow(seq, h)
	return 0, errMoved
}

// checkLeft makes sure that nobody continued the row before its generation was sealed: whoever was overtaken must not
// slip through the seal.
func (r *row) checkLeft(ctx context.Context) error {
	_, err := r.resolve(ctx, nil, 0)
	if errors.Is(err, errMoved) || isCode(err, codeStreamNotFound) {
		return nil
	}
	return err
}

// enter begins the row in a newer generation: not where the row is, but where it begins. Who wrote there in the
// meantime is another owner.
func (r *row) enter(gen, part uint32) {
	r.gen, r.part = gen, part
	r.follow(0, message.Header{})
}

// publish appends with the expected place.
func (r *row) publish(ctx context.Context, data []byte) (uint64, error) {
	began := time.Now()
	m := natsgo.NewMsg(r.subject())
	m.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(r.seq, 10)}
	m.Data = data
	ack, err := r.l.b.ask(ctx, m)
	if err != nil {
		return 0, err
	}
	seq, err := parseAck(ack.Data)
	if err == nil {
		r.l.b.confirmed(time.Since(began))
	}
	return seq, err
}
