// Package kinesis is a log in an Amazon Kinesis data stream: a copy of a log of the bus, for who wants what lands in the
// data platform in the cloud's own stream, or to read it from there.
//
// A component reads the source log and calls [Log.Append] with each of its batches. The messages of a batch are regrouped by
// token, which is what a key belongs to for ever, and each group becomes one Kinesis record, whose bytes are a batch of
// our own codec. All that stands in a record follows from the source's batch and from what was copied before it, so that
// a copy made twice, after a crash or by two processes, has the same bytes in the same order, and readers drop what they
// have seen. A record's place is said in its partition key, and which record of its token is before it in its mark: a
// reader therefore knows where something is missing, and passes nothing over without a word.
//
// Order is kept as Kinesis keeps it: one record of a token is under way at a time, and a reader follows the chain of
// shards that have held its token's hash key, each to its end before its child. A reader that begins in the middle finds
// its shard by anchors, which readers leave in a table of the bus.
package kinesis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	aws_kinesis "github.com/aws/aws-sdk-go-v2/service/kinesis"

	"github.com/naru-platform/naru/bus"
)

// Config says which stream it is. Credentials come by the SDK's usual chain: environment, shared files, the instance's role.
type Config struct {
	// Stream is its name; there is no Kinesis log where it is empty.
	Stream string `json:"stream"`
	// Region is where it is; by the SDK's usual chain where empty.
	Region string `json:"region"`
	// Endpoint is another address than AWS's own, such as that of a local server.
	Endpoint string `json:"endpoint"`
	// Shards is with how many the stream is made where there is none; 0 for never making one.
	Shards int `json:"shards"`
	// Tokens is into how many rows of records each partition of the source is copied; a key's messages are in one of them.
	// It cannot change once the log has begun. 0 is 16, or as it was.
	Tokens int `json:"tokens"`
	// Aggregate has records written in the form of the Kinesis Producer Library, each payload a user record of its own, for other
	// consumers. Such records are read whatever it says.
	Aggregate bool `json:"aggregate"`
}

const (
	tokensDefault = 16
	tokensMax     = 1024
	shardsMax     = 500 // what an account may have without asking
)

// Check says what is wrong with a configuration.
func (c Config) Check() error {
	switch {
	case c.Stream == "" && c != (Config{}):
		return errors.New("bus.kinesis.stream: want the name of the stream")
	case c.Shards < 0 || c.Shards > shardsMax:
		return fmt.Errorf("bus.kinesis.shards is %d; want 0 for a stream that is there, or up to %d", c.Shards, shardsMax)
	case c.Tokens < 0 || c.Tokens > tokensMax:
		return fmt.Errorf("bus.kinesis.tokens is %d; want up to %d", c.Tokens, tokensMax)
	case c.Endpoint == "":
		return nil
	}
	u, err := url.Parse(c.Endpoint) // whose error would tell what stands in it
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return errors.New("bus.kinesis.endpoint: want an address such as http://127.0.0.1:4568")
	case u.User != nil:
		return errors.New("bus.kinesis.endpoint: want no user and password in it; credentials come by the usual chain of AWS's SDK (docs/kinesis.md)")
	}
	return nil
}

// Options are what the wiring, or a test, may give.
type Options struct {
	Config
	Source string       // the log that is copied
	Log    *slog.Logger // slog.Default() where nil
	// HTTP makes the requests; the SDK's own client where nil.
	HTTP aws.HTTPClient
	// Credentials are used instead of the usual chain, where not nil.
	Credentials aws.CredentialsProvider
	Now         func() time.Time // time.Now where nil
	// RecordMax is the largest record in bytes, with its partition key; 1 MiB where zero, which is what Kinesis takes.
	RecordMax int

	readEvery time.Duration // as the constant, where zero
}

// Bus is a bus with one log more.
type Bus struct {
	bus.Bus
	o      Options
	client *aws_kinesis.Client

	mu  sync.Mutex
	log *Log
}

// Over adds to a bus the log [bus.CopyName] of o.Source, which lies in a Kinesis stream; all else is the bus's own. Nothing is
// asked of Kinesis yet: a stream that does not answer stops who needs it, and nobody else.
func Over(ctx context.Context, b bus.Bus, o Options) (*Bus, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if o.Stream == "" || o.Source == "" {
		return nil, errors.New("bus.kinesis: want a stream, and a log to copy into it")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.RecordMax == 0 {
		o.RecordMax = 1 << 20
	}
	o.readEvery = cmp.Or(o.readEvery, readEvery)
	var load []func(*config.LoadOptions) error
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.Credentials != nil {
		load = append(load, config.WithCredentialsProvider(o.Credentials))
	}
	c, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("bus.kinesis: %w", err)
	}
	if c.Region == "" {
		return nil, errors.New("bus.kinesis.region: want the region of the stream, or AWS_REGION in the environment")
	}
	client := aws_kinesis.NewFromConfig(c, func(k *aws_kinesis.Options) {
		k.Retryer = aws.NopRetryer{} // what is tried again, and when, is decided here
		if o.Endpoint != "" {
			k.BaseEndpoint = aws.String(o.Endpoint)
		}
		if o.HTTP != nil {
			k.HTTPClient = o.HTTP
		} else {
			t := http.DefaultTransport.(*http.Transport).Clone()
			t.MaxIdleConnsPerHost = 64 // a fetcher a shard
			k.HTTPClient = &http.Client{Transport: t}
		}
	})
	return &Bus{Bus: b, o: o, client: client}, nil
}

// Log gives the Kinesis log by its name, and the bus's own by others.
func (b *Bus) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	if name != bus.CopyName(b.o.Source) {
		return b.Bus.Log(ctx, name, o)
	}
	return b.Kinesis(ctx)
}

// Kinesis gives the Kinesis log.
func (b *Bus) Kinesis(ctx context.Context) (*Log, error) {
	b.mu.Lock()
	l := b.log
	b.mu.Unlock()
	if l != nil {
		return l, nil
	}
	l, err := openLog(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", bus.CopyName(b.o.Source), err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.log != nil {
		l.close()
		return b.log, nil
	}
	b.log = l
	return l, nil
}

// Close ends the Kinesis log's readers, and closes the bus.
func (b *Bus) Close() error {
	b.mu.Lock()
	l := b.log
	b.mu.Unlock()
	if l != nil {
		l.close()
	}
	return b.Bus.Close()
}
