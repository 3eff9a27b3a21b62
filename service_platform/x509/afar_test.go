package x509

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
)

// A door without a CA in its process gives devices their certificates all the same, and nothing of it can be read on the
// bus.
func TestClaimIsAnsweredAtADoorWithoutACA(t *testing.T) {
	a := newArena(t)
	table, err := a.bus.Table(t.Context(), provisionTable, bus.TableOptions{Volatile: true, TTL: provisionLinger})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var crossed bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	listening, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		_ = table.Watch(ctx, "", func(e bus.Entry) { // ends with ctx
			mu.Lock()
			defer mu.Unlock()
			crossed.WriteString(e.Key)
			crossed.Write(e.Value)
		}, sync.OnceFunc(func() { close(listening) }))
	}()
	<-listening
	door := a.door().door
	ask := func(topic string, in, into any) Answer {
		t.Helper()
		raw, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		got := door.Provision(t.Context(), a.claimClient(), topic, raw)
		if err := json.Unmarshal(got.Payload, into); err != nil {
			t.Fatal(err)
		}
		return got
	}
	var made created
	if got := ask(topicCreate, struct{}{}, &made); !got.Accepted || got.Topic != topicCreate+"/accepted" || made.Token == "" {
		t.Fatal(string(got.Payload))
	}
	var done provisioned
	if got := ask(lotTopic, provisionOf(made.Token, map[string]string{"Serial": "77"}), &done); done.Thing != "pump-77" {
		t.Fatal(string(got.Payload))
	}
	certs, err := authority.ParseCerts([]byte(made.PEM))
	if err != nil {
		t.Fatal(err)
	}
	if who, err := door.AdmitClient(t.Context(), Client{Leaf: certs[0]}); who.Device != "pump-77" {
		t.Error(err)
	}
	var no struct{ ErrorCode string }
	if got := ask(lotTopic, provisionOf(made.Token, map[string]string{"Serial": "78"}), &no); got.Accepted || no.ErrorCode != "InvalidCertificateOwnershipToken" {
		t.Errorf("another device: %s", string(got.Payload))
	}
	if got := ask(topicCSR, map[string]string{"certificateSigningRequest": strings.Repeat("x", payloadMax)}, &no); got.Accepted {
		t.Error("an oversized payload is taken")
	}
	cancel()
	<-over
	text := crossed.String()
	for _, secret := range []string{made.Token, "PRIVATE", "pump", "certificateOwnershipToken"} {
		if strings.Contains(text, secret) || text == "" {
			t.Errorf("%q can be read on the bus", secret)
		}
	}
	if left, err := bus.Entries(t.Context(), table, ""); err != nil || len(left) > 0 {
		t.Errorf("left on the bus: %d, %v", len(left), err)
	}
	a.stop()
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if got := door.Provision(late, a.claimClient(), topicCreate, nil); got.Accepted || !strings.Contains(string(got.Payload), "service_platform.x509") {
		t.Errorf("without a CA: %s", string(got.Payload))
	}
}

// What was changed on the way is not opened, neither a request nor an answer, and a request is answered once.
func TestSealedRequestThatWasChangedIsNotAnswered(t *testing.T) {
	a := newArena(t)
	o := a.s.open.Load()
	p := &provisioning{s: a.s, o: o, door: a.gate}
	table, err := a.bus.Table(t.Context(), "elsewhere", bus.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mine, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, ca := theirs.PublicKey().Bytes(), mine.PublicKey().Bytes()
	seal, err := secretBetween(theirs, mine.PublicKey(), public, ca, "request")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(asked{Topic: topicCreate, Payload: []byte("{}"), Leaf: a.claimClient().Leaf.Raw})
	if err != nil {
		t.Fatal(err)
	}
	put := func(id, sealedFor string, change byte) error {
		text := seal.Seal(nil, once[:], raw, []byte(sealedFor))
		text[0] ^= change
		value, err := json.Marshal(sealed{public, ca, text})
		if err != nil {
			t.Fatal(err)
		}
		revision, err := table.Put(t.Context(), askPrefix+id, value)
		if err != nil {
			t.Fatal(err)
		}
		return p.answerOne(t.Context(), store{table}, mine, bus.Entry{Key: askPrefix + id, Value: value, Revision: revision})
	}
	if put("changed", "changed", 1) == nil {
		t.Error("a changed request is answered")
	}
	if put("b", "a", 0) == nil {
		t.Error("one request is answered as another")
	}
	shaky := &shaky{Table: table}
	shaky.left.Store(4) // a bus that comes back while the device waits: what was done is told
	table = shaky
	if err := put("good", "good", 0); err != nil || shaky.left.Load() > 0 {
		t.Fatal(err, shaky.left.Load())
	}
	answers, err := bus.Entries(t.Context(), table, answerPrefix)
	if err != nil || len(answers) != 1 {
		t.Fatalf("%d answers, %v", len(answers), err)
	}
	if open, err := secretBetween(theirs, mine.PublicKey(), public, ca, "request"); err == nil {
		var s sealed
		if err := json.Unmarshal(answers[0].Value, &s); err != nil {
			t.Fatal(err)
		}
		if _, err := open.Open(nil, once[:], s.Text, []byte("good")); err == nil {
			t.Error("both directions have one key")
		}
	}
}

// shaky is a table whose removals, and answers, fail so many times.
type shaky struct {
	bus.Table
	left atomic.Int64
}

func (s *shaky) fails() bool { return s.left.Add(-1) >= 0 }

func (s *shaky) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	if strings.HasPrefix(key, answerPrefix) && s.fails() {
		return 0, errNobody
	}
	return s.Table.Put(ctx, key, value)
}

func (s *shaky) Delete(ctx context.Context, key string, revision uint64) error {
	if s.left.Load() > 2 && s.fails() {
		_ = s.Table.Delete(ctx, key, revision) // done, and the confirmation is lost
		return errNobody
	}
	return s.Table.Delete(ctx, key, revision)
}
