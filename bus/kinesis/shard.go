package kinesis

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	aws_kinesis "github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
)

const (
	readEvery = 220 * time.Millisecond // a shard is read at most so often: Kinesis answers five times a second, for all
	readWait  = 20 * time.Second       // for one answer
	listAge   = time.Second            // how old a list of shards may be
)

// shard is what is known of one.
type shard struct {
	id       string
	from, to *big.Int // hash keys
	parents  [2]string
	open     bool // in the newest list
	lanes    []*lane

	turn chan struct{} // holds one, which who reads takes; with last
	last time.Time
}

func (s *shard) holds(h *big.Int) bool { return s.from.Cmp(h) <= 0 && h.Cmp(s.to) <= 0 }

// shardMap are the stream's shards.
type shardMap struct {
	turn   chan struct{} // holds one, which who lists takes
	at     time.Time     // of the list
	byID   map[string]*shard
	listed map[string]bool // in the newest list
}

func (m *shardMap) init() {
	m.byID, m.listed, m.turn = map[string]*shard{}, map[string]bool{}, newTurn()
}

func newTurn() chan struct{} {
	c := make(chan struct{}, 1)
	c <- struct{}{}
	return c
}

// spot is a place in the stream: behind a sequence number of a shard, or its oldest record.
type spot struct {
	Shard string `json:"shard"`
	After string `json:"after"`
}

// later compares sequence numbers, which are decimal and without limit. The empty one is before all.
func later(a, b string) bool {
	if len(a) != len(b) {
		return len(a) > len(b)
	}
	return a > b
}

// list asks for the shards, where what is known is older than a moment.
func (l *Log) list(ctx context.Context) error {
	m := &l.shards
	select {
	case <-m.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { m.turn <- struct{}{} }()
	if err := l.contact(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	fresh := !m.at.IsZero() && l.o.Now().Sub(m.at) < listAge
	l.mu.Unlock()
	if fresh {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readWait)
	defer cancel()
	var all []types.Shard
	in := &aws_kinesis.ListShardsInput{StreamName: &l.o.Stream}
	for {
		out, err := l.client.ListShards(ctx, in)
		if err != nil {
			return plain(err)
		}
		all = append(all, out.Shards...)
		if out.NextToken == nil {
			break
		}
		in = &aws_kinesis.ListShardsInput{NextToken: out.NextToken}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m.at = l.o.Now()
	clear(m.listed)
	for _, s := range all {
		id := aws.ToString(s.ShardId)
		m.listed[id] = true
		open := s.SequenceNumberRange == nil || s.SequenceNumberRange.EndingSequenceNumber == nil
		if m.byID[id] != nil {
			m.byID[id].open = open
			continue
		}
		if s.HashKeyRange == nil {
			continue
		}
		from, ok1 := new(big.Int).SetString(aws.ToString(s.HashKeyRange.StartingHashKey), 10)
		to, ok2 := new(big.Int).SetString(aws.ToString(s.HashKeyRange.EndingHashKey), 10)
		if !ok1 || !ok2 {
			return fmt.Errorf("shard %s has no hash keys", id)
		}
		m.byID[id] = &shard{id: id, from: from, to: to, parents: [2]string{aws.ToString(s.ParentShardId), aws.ToString(s.AdjacentParentShardId)}, open: open, turn: newTurn()}
	}
	return nil
}

// oldest is the shard in which the oldest records of a hash key may be. Shards are numbered as they are made. l.mu is held.
func (m *shardMap) oldest(h *big.Int) (found *shard) {
	for id, s := range m.byID {
		if m.listed[id] && s.holds(h) && (found == nil || id < found.id) {
			found = s
		}
	}
	return found
}

// child is the shard that goes on with a hash key where another ended; nil where it is not known yet. l.mu is held.
func (m *shardMap) child(of string, h *big.Int) *shard {
	for id, s := range m.byID {
		if m.listed[id] && s.holds(h) && (s.parents[0] == of || s.parents[1] == of) {
			return s
		}
	}
	return nil
}

// lane reads a shard from one place on, for all readers that are there. Where it has come to the end of the shard, as
// another lane has, its readers go over to that; what they have seen they drop. So a reader that is far behind keeps nobody waiting, and those
// at the end share what is read.
type lane struct {
	l       *Log
	s       *shard
	after   string // the last record that was read; empty for the oldest
	tip     bool   // its last read came to the end of what there was
	readers map[*Reader]bool
}

// join has a reader read from its place. l.mu is held.
func (l *Log) join(r *Reader, s *shard) {
	r.at.Shard, r.tip = s.id, false // until it was read from here
	for _, n := range s.lanes {
		if n.after == r.at.After {
			n.readers[r], r.lane = true, n
			return
		}
	}
	n := &lane{l: l, s: s, after: r.at.After, readers: map[*Reader]bool{r: true}}
	s.lanes = append(s.lanes, n)
	r.lane = n
	l.work.Go(n.run)
}

// leave takes a reader out of its lane. l.mu is held.
func (r *Reader) leave() {
	if r.lane != nil {
		delete(r.lane.readers, r)
		r.lane = nil
	}
}

// run reads until nobody wants it any more.
func (n *lane) run() {
	l := n.l
	iterator := ""
	wait := backOffMin
	for l.ctx.Err() == nil {
		if n.over() {
			return
		}
		var err error
		if iterator == "" {
			iterator, err = n.iterator()
		}
		if err == nil {
			var out *aws_kinesis.GetRecordsOutput
			if out, err = n.read(iterator); err == nil {
				iterator, wait = aws.ToString(out.NextShardIterator), backOffMin
				n.deliver(out.Records, aws.ToInt64(out.MillisBehindLatest) == 0)
				if iterator == "" {
					n.end()
					return
				}
				continue
			}
		}
		switch {
		case l.ctx.Err() != nil:
			return
		case hasCode(err, "ExpiredIteratorException"):
			iterator = ""
			continue
		case hasCode(err, "ResourceNotFoundException"):
			// The shard is past its retention, or the stream is gone: its readers look again.
			l.o.Log.Warn("a shard cannot be read any more", "stream", l.o.Stream, "shard", n.s.id, "error", err)
			l.mu.Lock()
			l.shards.at, l.met = time.Time{}, false
			l.mu.Unlock()
			n.scatter(func(r *Reader) { r.at = spot{} })
			return
		case hasCode(err, "InvalidArgumentException") && n.after != "":
			// A sequence number that Kinesis knows no more: what is there begins behind it, and readers see what is missing.
			l.o.Log.Warn("a place in a shard is gone; it is read from its oldest record", "stream", l.o.Stream, "shard", n.s.id, "error", err)
			l.mu.Lock()
			n.after = ""
			l.mu.Unlock()
			iterator = ""
		default:
			l.o.Log.Log(l.ctx, l.levelOf(err), "read a shard", "stream", l.o.Stream, "shard", n.s.id, "error", err, "again_in", wait)
		}
		if pause(l.ctx, wait) != nil {
			return
		}
		wait = min(2*wait, backOffMax)
	}
}

// over ends a lane without readers, and hands its readers to another lane that is at the end as well, and no further.
func (n *lane) over() bool {
	l := n.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, other := range n.s.lanes {
		if other != n && n.tip && other.tip && !later(other.after, n.after) && len(other.readers) > 0 && n.before(other) {
			for r := range n.readers {
				other.readers[r], r.lane = true, other
			}
			clear(n.readers)
		}
	}
	if len(n.readers) > 0 {
		return false
	}
	n.drop()
	return true
}

// before says which of two lanes at one place goes on: the one that was there first. l.mu is held.
func (n *lane) before(other *lane) bool {
	if n.after != other.after {
		return true
	}
	for _, x := range n.s.lanes {
		if x == n || x == other {
			return x == other
		}
	}
	return false
}

// drop takes the lane from its shard. l.mu is held.
func (n *lane) drop() {
	kept := n.s.lanes[:0]
	for _, x := range n.s.lanes {
		if x != n {
			kept = append(kept, x)
		}
	}
	n.s.lanes = kept
}

func (n *lane) iterator() (string, error) {
	in := &aws_kinesis.GetShardIteratorInput{StreamName: &n.l.o.Stream, ShardId: &n.s.id, ShardIteratorType: types.ShardIteratorTypeTrimHorizon}
	if n.after != "" { // only this goroutine changes it
		in.ShardIteratorType, in.StartingSequenceNumber = types.ShardIteratorTypeAfterSequenceNumber, aws.String(n.after)
	}
	ctx, cancel := context.WithTimeout(n.l.ctx, readWait)
	defer cancel()
	out, err := n.l.client.GetShardIterator(ctx, in)
	if err != nil {
		return "", plain(err)
	}
	if aws.ToString(out.ShardIterator) == "" {
		return "", errors.New("no iterator was given")
	}
	return *out.ShardIterator, nil
}

// read reads once, in its turn.
func (n *lane) read(iterator string) (*aws_kinesis.GetRecordsOutput, error) {
	select {
	case <-n.s.turn:
	case <-n.l.ctx.Done():
		return nil, n.l.ctx.Err()
	}
	defer func() { n.s.turn <- struct{}{} }()
	if wait := n.l.o.readEvery - n.l.o.Now().Sub(n.s.last); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-n.l.ctx.Done():
			return nil, n.l.ctx.Err()
		}
	}
	n.s.last = n.l.o.Now()
	ctx, cancel := context.WithTimeout(n.l.ctx, readWait)
	defer cancel()
	out, err := n.l.client.GetRecords(ctx, &aws_kinesis.GetRecordsInput{ShardIterator: &iterator})
	if err != nil {
		return nil, plain(err)
	}
	return out, nil
}

// deliver hands records to the readers of their partitions, and moves all of the lane's on. tip says that there are no more.
func (n *lane) deliver(records []types.Record, tip bool) {
	source := n.l.source.ID()
	units := make([][]unit, len(records))
	for i := range records {
		var err error
		if units[i], err = unpack(aws.ToString(records[i].PartitionKey), records[i].Data, source); err != nil {
			n.l.o.Log.Warn("an aggregated record of another producer is broken, and passed over", "stream", n.l.o.Stream, "shard", n.s.id,
				"sequence", aws.ToString(records[i].SequenceNumber), "error", err)
		}
	}
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	for i := range records {
		seq := aws.ToString(records[i].SequenceNumber)
		for r := range n.readers {
			r.push(units[i], spot{n.s.id, n.after}, spot{n.s.id, seq})
		}
		n.after = seq
	}
	n.tip = tip
	for r := range n.readers {
		if r.tip = tip; tip && r.looking {
			r.ring()
		}
	}
}

// end sends the readers of a shard that is read to its end to its child.
func (n *lane) end() {
	n.scatter(func(r *Reader) { r.ended = n.s.id })
}

// scatter ends the lane, and has its readers look for another place.
func (n *lane) scatter(f func(r *Reader)) {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	for r := range n.readers {
		r.lane = nil
		f(r)
		r.ring()
	}
	clear(n.readers)
	n.drop()
}

// settle finds a reader's place, and has it read there.
func (l *Log) settle(ctx context.Context, r *Reader) error {
	if err := l.known(ctx); err != nil {
		return err
	}
	if err := l.list(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.ended != "" {
		child := l.shards.child(r.ended, r.hash)
		if s := l.shards.byID[r.ended]; child == nil && s != nil && s.open { // no iterator came that goes on, though the shard does
			r.ended = ""
			l.join(r, s)
			return nil
		}
		if child == nil {
			return fmt.Errorf("shard %s has ended, and its child is not known yet", r.ended)
		}
		r.ended, r.at = "", spot{}
		l.join(r, child)
		return nil
	}
	if r.at.Shard == "" && !r.began {
		r.at = l.anchor(r.gen, r.part, r.last)
	}
	r.began = true
	s := l.shards.byID[r.at.Shard]
	if s == nil || !l.shards.listed[r.at.Shard] {
		r.at = spot{}
		if s = l.shards.oldest(r.hash); s == nil {
			return errors.New("no shard has its hash key")
		}
	}
	l.join(r, s)
	return nil
}

// plain makes a fault of the SDK's readable: what it was, and not how it was asked.
func plain(err error) error {
	var api interface {
		error
		ErrorCode() string
		ErrorMessage() string
	}
	if errors.As(err, &api) {
		return &fault{api.ErrorCode(), api.ErrorMessage()}
	}
	if way := (*url.Error)(nil); errors.As(err, &way) {
		return way // what was asked is said by who asked
	}
	return err
}

// fault is what Kinesis answers where it refuses.
type fault struct{ code, what string }

func (f *fault) Error() string {
	if f.what == "" {
		return f.code
	}
	return f.code + ": " + strings.TrimSpace(f.what)
}

// ErrorCode is Kinesis' own word.
func (f *fault) ErrorCode() string { return f.code }
