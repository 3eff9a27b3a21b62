package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
)

// JetStream's error codes that mean something to us (server/errors.json).
const (
	codeNoMessage          = 10037
	codeDeleteFailed       = 10057
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

var errDisconnected = errors.New("the connection was lost")

// ask sends a request and waits for its answer, but no longer than the connection lasts: what was lost with it never
// comes.
func (b *Bus) ask(ctx context.Context, m *natsgo.Msg) (*natsgo.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, requestWait)
	defer cancel()
	defer context.AfterFunc(*b.connected.Load(), cancel)()
	connected := *b.connected.Load()
	answer, err := b.request(ctx, m)
	if err != nil && errors.Is(err, context.Canceled) && connected.Err() != nil {
		return nil, errDisconnected
	}
	return answer, err
}

// parseAck reads the confirmation of an append.
func parseAck(data []byte) (uint64, error) {
	var ack struct {
		Seq   uint64    `json:"seq"`
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(data, &ack); err != nil {
		return 0, fmt.Errorf("confirmation of an append: %w", err)
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	if ack.Seq == 0 {
		return 0, errors.New("confirmation of an append without a sequence")
	}
	return ack.Seq, nil
}

// wrongSequence is the last sequence that a refusal names, 0 where it names none.
func wrongSequence(err error) (seq uint64) {
	var a *apiError
	if errors.As(err, &a) {
		if _, n, ok := strings.Cut(a.Description, "sequence: "); ok {
			seq, _ = strconv.ParseUint(n, 10, 64) // 0 where it is no number
		}
	}
	return seq
}

// raw is a message of a stream.
type raw struct {
	seq     uint64
	subject string
	data    []byte
}

// direct asks any replica for one message.
func (l *Log) direct(ctx context.Context, gen, part uint32, seq uint64) (raw, error) {
	m, err := l.b.ask(ctx, &natsgo.Msg{Subject: "$JS.API.DIRECT.GET." + streamName(l.name, gen, part), Data: fmt.Appendf(nil, `{"seq":%d}`, seq)})
	if err != nil {
		return raw{}, err
	}
	switch m.Header.Get("Status") {
	case "":
	case "404":
		return raw{}, bus.ErrNotFound
	default:
		return raw{}, fmt.Errorf("status %s %s", m.Header.Get("Status"), m.Header.Get("Description"))
	}
	r := raw{subject: m.Header.Get("Nats-Subject"), data: m.Data}
	if r.seq, err = strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64); err != nil {
		return raw{}, fmt.Errorf("answer without a sequence: %w", err)
	}
	return r, nil
}

// lastOf asks the stream's leader for a subject's last message: a fenced write must believe it rather than a replica.
func (l *Log) lastOf(ctx context.Context, gen, part uint32, subject string) (raw, error) {
	return l.leader(ctx, gen, part, map[string]any{"last_by_subj": subject})
}

// nextOf asks the leader for a subject's first message at or behind a sequence.
func (l *Log) nextOf(ctx context.Context, gen, part uint32, subject string, seq uint64) (raw, error) {
	return l.leader(ctx, gen, part, map[string]any{"seq": seq, "next_by_subj": subject})
}

// at asks the leader for the message at a sequence.
func (l *Log) at(ctx context.Context, gen, part uint32, seq uint64) (raw, error) {
	return l.leader(ctx, gen, part, map[string]any{"seq": seq})
}

func (l *Log) leader(ctx context.Context, gen, part uint32, request any) (raw, error) {
	return l.b.leader(ctx, streamName(l.name, gen, part), request)
}

func (b *Bus) leader(ctx context.Context, stream string, request any) (raw, error) {
	req, err := json.Marshal(request)
	if err != nil {
		return raw{}, err
	}
	m, err := b.ask(ctx, &natsgo.Msg{Subject: "$JS.API.STREAM.MSG.GET." + stream, Data: req})
	if err != nil {
		return raw{}, err
	}
	var answer struct {
		Error   *apiError `json:"error"`
		Message struct {
			Subject string `json:"subject"`
			Seq     uint64 `json:"seq"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return raw{}, err
	}
	if answer.Error != nil {
		if answer.Error.ErrCode == codeNoMessage {
			return raw{}, bus.ErrNotFound
		}
		return raw{}, answer.Error
	}
	return raw{answer.Message.Seq, answer.Message.Subject, answer.Message.Data}, nil
}

// deleteMessage deletes the message at a sequence.
func (b *Bus) deleteMessage(ctx context.Context, stream string, seq uint64) error {
	m, err := b.ask(ctx, &natsgo.Msg{Subject: "$JS.API.STREAM.MSG.DELETE." + stream, Data: fmt.Appendf(nil, `{"seq":%d,"no_erase":true}`, seq)})
	if err != nil {
		return err
	}
	var answer struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		if answer.Error.ErrCode == codeNoMessage || answer.Error.ErrCode == codeDeleteFailed {
			return bus.ErrNotFound
		}
		return answer.Error
	}
	return nil
}
