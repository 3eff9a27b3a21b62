package kinesis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	aws_kinesis "github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/naru-platform/naru/bus"
)

const (
	putRecords  = 500                    // in one request, as Kinesis takes them
	putBytes    = 4 << 20                // and their bytes; it takes 5 MiB at least
	putPatience = 5 * time.Second        // for how long Append tries by itself while nothing gets in; who calls it then says what the matter is
	putWait     = 10 * time.Second       // for one answer
	backOffMin  = 100 * time.Millisecond // after a fault, doubled each time
	backOffMax  = 5 * time.Second
)

// Append as in [bus.Copier].
func (l *Log) Append(ctx context.Context, st bus.State, s bus.Stored) (committed func(), err error) {
	if err := l.append(ctx, st, s); err != nil {
		return nil, err
	}
	return l.note(st, s)
}

func (l *Log) append(ctx context.Context, st bus.State, s bus.Stored) error {
	if err := l.contact(ctx); err != nil {
		return err
	}
	records, rows, err := regroup(st, &s, l.tokens, l.o.RecordMax, l.o.Aggregate)
	if err != nil {
		return err
	}
	n, err := l.put(ctx, records)
	if err != nil {
		if hasCode(err, "ResourceNotFoundException") {
			l.mu.Lock()
			l.met = false // the stream may be made anew
			l.mu.Unlock()
		}
		return fmt.Errorf("%d of the records of batch %d are not in the stream %s: %w", n, s.Position.Sequence, l.o.Stream, err)
	}
	for part, r := range rows {
		raw, err := json.Marshal(r)
		if err != nil {
			return err
		}
		st.Set(stateKey(s.Position.Generation, part), raw)
	}
	return nil
}

// put puts records, those of a partition one after the other. It gives how many are not there, where it gives up.
func (l *Log) put(ctx context.Context, records map[uint32][]record) (left int, err error) {
	for _, list := range records {
		left += len(list)
	}
	parts := make([]uint32, 0, len(records))
	for part := range records {
		parts = append(parts, part)
	}
	slices.Sort(parts)
	until := l.o.Now().Add(putPatience)
	wait := backOffMin
	for turn := 0; left > 0; {
		var heads []*record // the first record of each partition that is not there yet
		bytes, skipped := 0, 0
		for i := range parts {
			list := records[parts[(i+turn)%len(parts)]]
			if len(list) == 0 {
				continue
			}
			if len(heads) == putRecords || len(heads) > 0 && bytes+list[0].size() > putBytes {
				skipped++
				continue
			}
			heads = append(heads, &list[0])
			bytes += list[0].size()
		}
		stored, err := l.offer(ctx, heads)
		for i, ok := range stored {
			if ok {
				part := heads[i].part
				records[part] = records[part][1:]
				left--
				until = l.o.Now().Add(putPatience) // who gives up puts all of it once more, and would never come to the end of a large batch
			}
		}
		if skipped > 0 {
			turn++ // who was left out comes first some time
		}
		if err == nil {
			wait = backOffMin
			continue
		}
		if ctx.Err() != nil {
			return left, ctx.Err()
		}
		if !passing(err) || !l.o.Now().Before(until) {
			return left, err
		}
		if err := pause(ctx, wait); err != nil {
			return left, err
		}
		wait = min(2*wait, backOffMax)
	}
	return 0, nil
}

// offer puts records once, and says which of them are in the stream for sure. err is why others are not.
func (l *Log) offer(ctx context.Context, heads []*record) (stored []bool, err error) {
	in := &aws_kinesis.PutRecordsInput{StreamName: &l.o.Stream}
	for _, r := range heads {
		in.Records = append(in.Records, types.PutRecordsRequestEntry{
			Data: r.data, PartitionKey: aws.String(r.place.String()), ExplicitHashKey: aws.String(l.hash(r.part).String()),
		})
	}
	try, cancel := context.WithTimeout(ctx, putWait)
	defer cancel()
	stored = make([]bool, len(heads))
	out, err := l.client.PutRecords(try, in)
	if err != nil {
		return stored, plain(err)
	}
	if len(out.Records) != len(heads) {
		return stored, fmt.Errorf("put %d records, and %d were answered for", len(heads), len(out.Records))
	}
	for i, r := range out.Records {
		if code := aws.ToString(r.ErrorCode); code != "" {
			err = fmt.Errorf("%s: %s", code, aws.ToString(r.ErrorMessage))
			continue
		}
		stored[i] = true
	}
	return stored, err
}

// passing says whether what failed may work a moment later without anybody's doing.
func passing(err error) bool {
	var no interface{ ErrorCode() string }
	if !errors.As(err, &no) {
		return true
	}
	switch no.ErrorCode() {
	case "AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException", "InvalidArgumentException",
		"ValidationException", "ResourceNotFoundException", "KMSAccessDeniedException", "KMSDisabledException", "KMSNotFoundException":
		return false
	}
	return true
}

func hasCode(err error, code string) bool {
	var is interface{ ErrorCode() string }
	return errors.As(err, &is) && is.ErrorCode() == code
}

// pause waits for about so long.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d - time.Duration(rand.Int64N(int64(d)/5+1)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
