package kinesis

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fake is a Kinesis in memory, behind the SDK's HTTP client, and the faults that can be made in it.
type fake struct {
	mu      sync.Mutex
	created time.Time
	none    bool // there is no stream
	shards  []*fakeShard
	next    int64 // sequence number
	epoch   int   // of iterators

	down    bool
	lose    int                 // so many answers to puts are lost
	cut     int                 // so many reads give no iterator to go on with
	refuse  int                 // so many entries of puts are refused
	rate    int                 // so many bytes a second are taken; all there are where zero
	room    int                 // of them now
	asOf    time.Time           // was so
	deny    map[string][]string // error codes for the next requests, by operation
	counted map[string]int
	flight  map[string]int // puts under way, by partition
	most    int            // records of one partition in one request, at most
	change  func(data []byte, key string) []byte
}

type fakeShard struct {
	id       string
	from, to *big.Int
	parents  []string
	closed   bool
	records  []fakeRecord
	purged   bool // it is not listed any more
}

type fakeRecord struct {
	seq  string
	key  string
	data []byte
}

func newFake(shards int) *fake {
	f := &fake{created: time.UnixMilli(1700000000123), deny: map[string][]string{}, counted: map[string]int{}, flight: map[string]int{}, next: 900}
	for i := range shards {
		share := func(n int) *big.Int {
			return new(big.Int).Quo(new(big.Int).Mul(space, big.NewInt(int64(n))), big.NewInt(int64(shards)))
		}
		f.add(share(i), new(big.Int).Sub(share(i+1), big.NewInt(1)))
	}
	return f
}

func (f *fake) add(from, to *big.Int, parents ...string) *fakeShard {
	s := &fakeShard{id: fmt.Sprintf("shardId-%012d", len(f.shards)), from: from, to: to, parents: parents}
	f.shards = append(f.shards, s)
	return s
}

// split closes a shard and opens two.
func (f *fake) split(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.shards[i]
	s.closed = true
	mid := new(big.Int).Add(s.from, s.to)
	mid.Rsh(mid, 1)
	f.add(s.from, mid, s.id)
	f.add(new(big.Int).Add(mid, big.NewInt(1)), s.to, s.id)
}

// merge closes two shards and opens one.
func (f *fake) merge(i, j int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, b := f.shards[i], f.shards[j]
	a.closed, b.closed = true, true
	f.add(a.from, b.to, a.id, b.id)
}

// purge drops the oldest records of a shard, as retention does.
func (f *fake) purge(shard, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.shards[shard]
	s.records = s.records[n:]
	if s.closed && len(s.records) == 0 {
		s.purged = true
	}
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) count(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counted[op]
}

// all are the records there are, shard by shard.
func (f *fake) all() (list []fakeRecord) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.shards {
		list = append(list, s.records...)
	}
	return list
}

type no struct{ code string }

func (n *no) Error() string { return n.code }

func (f *fake) Do(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	out, err := f.answer(op, body)
	var refusal *no
	status := http.StatusOK
	if errors.As(err, &refusal) {
		status = http.StatusBadRequest
		out = map[string]any{"__type": refusal.code, "message": "by the fake"}
	} else if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}}, Body: io.NopCloser(bytes.NewReader(raw)), Request: r}, nil
}

type fakePut struct {
	Data                          []byte
	PartitionKey, ExplicitHashKey string
}

func (f *fake) answer(op string, body []byte) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counted[op]++
	if f.down {
		return nil, errors.New("connection refused")
	}
	if codes := f.deny[op]; len(codes) > 0 {
		f.deny[op] = codes[1:]
		return nil, &no{codes[0]}
	}
	if f.none {
		if op == "CreateStream" {
			f.none = false
			return map[string]any{}, nil
		}
		return nil, &no{"ResourceNotFoundException"}
	}
	switch op {
	case "DescribeStreamSummary":
		return map[string]any{"StreamDescriptionSummary": map[string]any{"StreamName": "s", "StreamARN": "arn:s", "StreamStatus": "ACTIVE",
			"RetentionPeriodHours": 24, "OpenShardCount": len(f.shards), "EnhancedMonitoring": []any{}, "StreamCreationTimestamp": float64(f.created.UnixMilli()) / 1000}}, nil
	case "ListShards":
		var list []any
		for _, s := range f.shards {
			if s.purged {
				continue
			}
			one := map[string]any{"ShardId": s.id, "HashKeyRange": map[string]any{"StartingHashKey": s.from.String(), "EndingHashKey": s.to.String()},
				"SequenceNumberRange": map[string]any{"StartingSequenceNumber": "1"}}
			if s.closed {
				one["SequenceNumberRange"] = map[string]any{"StartingSequenceNumber": "1", "EndingSequenceNumber": "999999"}
			}
			for i, p := range s.parents {
				one[[]string{"ParentShardId", "AdjacentParentShardId"}[i]] = p
			}
			list = append(list, one)
		}
		return map[string]any{"Shards": list}, nil
	case "PutRecords":
		return f.put(body)
	case "GetShardIterator":
		var in struct{ ShardId, ShardIteratorType, StartingSequenceNumber string }
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, err
		}
		for i, s := range f.shards {
			if s.id == in.ShardId && !s.purged {
				return map[string]any{"ShardIterator": fmt.Sprintf("%d/%d/%s", f.epoch, i, in.StartingSequenceNumber)}, nil
			}
		}
		return nil, &no{"ResourceNotFoundException"}
	case "GetRecords":
		return f.get(body)
	}
	return nil, fmt.Errorf("the fake knows no %s", op)
}

func (f *fake) put(body []byte) (any, error) {
	var in struct{ Records []fakePut }
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, err
	}
	if len(in.Records) > 500 {
		return nil, &no{"ValidationException"}
	}
	var answers []any
	bad := 0
	mine := map[string]int{}
	for _, r := range in.Records {
		h, ok := new(big.Int).SetString(r.ExplicitHashKey, 10)
		if !ok || len(r.Data)+len(r.PartitionKey) > 1<<20 || len(r.PartitionKey) > 256 {
			return nil, &no{"ValidationException"}
		}
		if p, ok := parsePlace(r.PartitionKey); ok {
			row := fmt.Sprint(p.gen, p.part)
			mine[row]++
			f.most = max(f.most, mine[row])
		}
		if f.refuse > 0 || !f.takes(len(r.Data)) {
			f.refuse = max(f.refuse-1, 0)
			bad++
			answers = append(answers, map[string]any{"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded"})
			continue
		}
		for _, s := range f.shards {
			if s.closed || h.Cmp(s.from) < 0 || h.Cmp(s.to) > 0 {
				continue
			}
			f.next++
			data := r.Data
			if f.change != nil {
				data = f.change(data, r.PartitionKey)
			}
			s.records = append(s.records, fakeRecord{strconv.FormatInt(f.next, 10), r.PartitionKey, data})
			answers = append(answers, map[string]any{"ShardId": s.id, "SequenceNumber": strconv.FormatInt(f.next, 10)})
		}
	}
	if f.lose > 0 && bad == 0 {
		f.lose--
		return nil, errors.New("connection reset by peer")
	}
	return map[string]any{"FailedRecordCount": bad, "Records": answers}, nil
}

// takes says whether the rate leaves room for so many bytes more. f.mu is held.
func (f *fake) takes(n int) bool {
	if f.rate == 0 {
		return true
	}
	now := time.Now()
	f.room = min(f.room+int(now.Sub(f.asOf).Seconds()*float64(f.rate)), f.rate)
	f.asOf = now
	if n > f.room {
		return false
	}
	f.room -= n
	return true
}

func (f *fake) get(body []byte) (any, error) {
	var in struct{ ShardIterator string }
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, err
	}
	part := strings.SplitN(in.ShardIterator, "/", 3)
	if part[0] != strconv.Itoa(f.epoch) {
		return nil, &no{"ExpiredIteratorException"}
	}
	i, err := strconv.Atoi(part[1])
	if err != nil {
		return nil, err
	}
	s, after := f.shards[i], part[2]
	if s.purged {
		return nil, &no{"ResourceNotFoundException"}
	}
	var list []any
	for _, r := range s.records {
		if len(list) == 50 {
			break
		}
		if later(r.seq, after) {
			list = append(list, map[string]any{"SequenceNumber": r.seq, "PartitionKey": r.key, "Data": r.data})
			after = r.seq
		}
	}
	behind := 0
	if n := len(s.records); n > 0 && later(s.records[n-1].seq, after) {
		behind = 1000
	}
	out := map[string]any{"Records": list, "MillisBehindLatest": behind}
	if list == nil {
		out["Records"] = []any{}
	}
	if f.cut > 0 {
		f.cut--
	} else if !s.closed || len(list) == 50 {
		out["NextShardIterator"] = fmt.Sprintf("%d/%d/%s", f.epoch, i, after)
	}
	return out, nil
}

func bigZero() *big.Int { return new(big.Int) }

func lastKey() *big.Int { return new(big.Int).Sub(space, big.NewInt(1)) }
