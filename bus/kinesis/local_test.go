//go:build foreign

package kinesis

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	aws_kinesis "github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/bustest"
	"github.com/naru-platform/naru/bus/kinesis/local"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/message"
)

// TestKinesalite copies and reads through a server of others, which keeps the limits of a request, with its shards split
// and merged meanwhile.
func TestKinesalite(t *testing.T) {
	if !bustest.Alone(t) {
		return
	}
	through(t, local.Kinesalite(t), func(s *scene, turn int) {
		open := s.open()
		switch turn {
		case 0:
			half := new(big.Int).Add(number(open[0].HashKeyRange.StartingHashKey), number(open[0].HashKeyRange.EndingHashKey))
			_, err := s.l.client.SplitShard(t.Context(), &aws_kinesis.SplitShardInput{StreamName: &s.l.o.Stream, ShardToSplit: open[0].ShardId,
				NewStartingHashKey: aws.String(half.Rsh(half, 1).String())})
			s.must(err)
		case 1: // of the last two, the second of which is next to the first
			_, err := s.l.client.MergeShards(t.Context(), &aws_kinesis.MergeShardsInput{StreamName: &s.l.o.Stream,
				ShardToMerge: open[len(open)-2].ShardId, AdjacentShardToMerge: open[len(open)-1].ShardId})
			s.must(err)
		}
	})
}

// TestKinesisLocal does so with another server, whose shards are made more and fewer.
func TestKinesisLocal(t *testing.T) {
	if !bustest.Alone(t) {
		return
	}
	through(t, local.KinesisLocal(t), func(s *scene, turn int) {
		n := []int32{4, 3}[turn]
		_, err := s.l.client.UpdateShardCount(t.Context(), &aws_kinesis.UpdateShardCountInput{StreamName: &s.l.o.Stream, TargetShardCount: &n,
			ScalingType: types.ScalingTypeUniformScaling})
		s.must(err)
	})
}

func through(t *testing.T, endpoint string, reshard func(s *scene, turn int)) {
	s := newScene(t, 0, Options{Config: Config{Tokens: 8, Shards: 2, Endpoint: endpoint}})
	want := map[string][]message.ID{}
	got := make(chan map[string][]message.ID, 1)
	live := 0
	large := s.message("d-0")
	large.Data = make([]byte, 2500<<10)
	for turn := range 3 {
		want = add(want, s.say(200, 20))
		if turn == 1 {
			s.tell(large)
			want["d-0"] = append(want["d-0"], large.ID)
		}
		s.copy()
		if turn == 0 {
			go func() { got <- s.read(601, nil) }()
		}
		if turn < 2 {
			reshard(s, turn)
			s.active()
			live = len(s.open())
		}
	}
	s.same(<-got, want)
	s.same(s.read(601, nil), want) // and once more, from the beginning
	if all := s.list(); len(all) <= live || live < 2 {
		t.Errorf("there are %d shards, %d of them open: nothing was resharded", len(all), live)
	}
}

func number(text *string) *big.Int {
	n, _ := new(big.Int).SetString(*text, 10)
	return n
}

// list are all shards, open those that are open.
func (s *scene) list() []types.Shard {
	s.Helper()
	out, err := s.l.client.ListShards(s.Context(), &aws_kinesis.ListShardsInput{StreamName: &s.l.o.Stream})
	s.must(err)
	return out.Shards
}

func (s *scene) open() (open []types.Shard) {
	s.Helper()
	for _, x := range s.list() {
		if x.SequenceNumberRange.EndingSequenceNumber == nil {
			open = append(open, x)
		}
	}
	return open
}

// active waits until the stream is.
func (s *scene) active() {
	s.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); ; {
		out, err := s.l.client.DescribeStreamSummary(s.Context(), &aws_kinesis.DescribeStreamSummaryInput{StreamName: &s.l.o.Stream})
		s.must(err)
		if out.StreamDescriptionSummary.StreamStatus == types.StreamStatusActive {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			s.Fatal("the stream does not become active")
		}
	}
}

// TestAggregatedRecordsAreThoseOfAWS has AWS's own module for Node take apart what naru writes, and reads what that makes.
func TestAggregatedRecordsAreThoseOfAWS(t *testing.T) {
	type user struct {
		Key  string `json:"key"`
		Hash string `json:"hash"`
		Data []byte `json:"data"`
	}
	hash := hashKey(3, 16).String()
	raw, err := export(place{source: message.NewID(time.Now()), gen: 1, seq: 256, pieces: 1}, batch(t), hash)
	if err != nil {
		t.Fatal(err)
	}
	want, err := deaggregate(raw)
	if err != nil {
		t.Fatal(err)
	}
	call := func(in, out any) {
		t.Helper()
		asked, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(local.Node(t, "kpl.js", asked), out); err != nil {
			t.Fatal(err)
		}
	}
	var apart struct{ Records [][]user }
	call(map[string]any{"records": [][]byte{raw}}, &apart)
	if len(apart.Records) != 1 || len(apart.Records[0]) != len(want) {
		t.Fatalf("AWS finds %d records, want %d", len(apart.Records[0]), len(want))
	}
	var users []user
	for i, u := range apart.Records[0] {
		if u.Key != want[i].key || u.Hash != hash || !bytes.Equal(u.Data, want[i].data) {
			t.Errorf("AWS reads user record %d as %+v, want %+v", i, u, want[i])
		}
		users = append(users, u)
	}
	var made struct{ Record []byte }
	call(map[string]any{"users": users}, &made)
	got, err := deaggregate(made.Record)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("what AWS makes is read as %d records, %v; want %d", len(got), err, len(want))
	}
}

// TestKeepsThePromisesThroughKinesalite reads what the suite appends from a server of others; each promise has a stream of its own.
func TestKeepsThePromisesThroughKinesalite(t *testing.T) {
	if bustest.Alone(t) {
		promises(t, local.Kinesalite(t), false)
	}
}

// TestKeepsThePromisesThroughKinesisLocal does so with the other one, and aggregated records.
func TestKeepsThePromisesThroughKinesisLocal(t *testing.T) {
	if bustest.Alone(t) {
		promises(t, local.KinesisLocal(t), true)
	}
}

func promises(t *testing.T, endpoint string, aggregate bool) {
	n := 0
	bustest.Run(t, bustest.Features{Copied: true, SetSpace: true}, func(t *testing.T) bustest.Engine {
		n++
		inner := mem.New(mem.Options{})
		b := openLed(t, inner, Options{readEvery: 5 * time.Millisecond, Config: Config{Endpoint: endpoint, Shards: 1, Stream: fmt.Sprint("suite-", n), Aggregate: aggregate}})
		return bustest.Engine{Bus: b, SetSpace: func(s bus.Space) { inner.SetSpace(s) }}
	})
}
