package x509

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// A door in a process without the CA asks the CA's over the bus, and what crosses is sealed both ways: the CA publishes a
// public key, new with each start, and each request brings one of its own (X25519, HKDF, AES-256-GCM). The private halves
// are in memory only and gone after the answer, so that neither a key nor a token can be read from what the bus keeps.
const (
	provisionTable  = "naru_provision"
	provisionerKey  = "provisioner" // in the trust table: the CA's public key
	askPrefix       = "ask."
	answerPrefix    = "answer."
	provisionLinger = time.Minute // an entry that nobody took
	provisionAtOnce = 16          // an approval hook may take five seconds
)

// answerKey has a part of its own for the id, so that a door is sent no other's answer.
func answerKey(id string) string { return answerPrefix + id + ".it" }

// provisioner is the entry of a CA that answers.
type provisionerEntry struct {
	Key []byte `json:"key"`
}

// sealed is what crosses.
type sealed struct {
	Key  []byte `json:"key,omitempty"` // the asker's public key, in a request
	To   []byte `json:"to,omitempty"`  // the CA's that it is for
	Text []byte `json:"text"`
}

// asked is a request in the clear.
type asked struct {
	Topic    string `json:"topic"`
	Payload  []byte `json:"payload"`
	Leaf     []byte `json:"leaf"`
	Address  string `json:"address"`
	ClientID string `json:"client_id"`
}

// answered is an answer in the clear.
type answered struct {
	Topic    string `json:"topic"`
	Payload  []byte `json:"payload"`
	Accepted bool   `json:"accepted"`
}

// secretBetween gives the cipher of one direction of one request.
func secretBetween(mine *ecdh.PrivateKey, other *ecdh.PublicKey, asker, ca []byte, direction string) (cipher.AEAD, error) {
	shared, err := mine.ECDH(other)
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, shared, append(append([]byte{}, asker...), ca...), "naru provisioning "+direction, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// once is the nonce of a key that seals one text in its life.
var once [12]byte

// provisionAfar asks the CA of another process.
func (a *Admission) provisionAfar(ctx context.Context, c Client, topic string, payload []byte) (answer Answer, err error) {
	if c.Leaf == nil || len(payload) > payloadMax {
		return answer, awsRefuse("payload", http.StatusBadRequest, "InvalidPayload", "a claim certificate, and a payload of at most %d bytes, is wanted", payloadMax)
	}
	trust, err := a.bus.Table(ctx, trustTable, bus.TableOptions{})
	if err != nil {
		return answer, err
	}
	e, err := trust.Get(ctx, provisionerKey)
	if err != nil {
		return answer, fmt.Errorf("no CA answers; is service_platform.x509 running? %w", err)
	}
	var to provisionerEntry
	if err := json.Unmarshal(e.Value, &to); err != nil {
		return answer, fmt.Errorf("read the CA's public key: %w", err)
	}
	ca, err := ecdh.X25519().NewPublicKey(to.Key)
	if err != nil {
		return answer, fmt.Errorf("read the CA's public key: %w", err)
	}
	mine, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return answer, err
	}
	raw, err := json.Marshal(asked{topic, payload, c.Leaf.Raw, c.Address, c.ClientID})
	if err != nil {
		return answer, err
	}
	id := strings.ToLower(rand.Text())
	public := mine.PublicKey().Bytes()
	seal, err := secretBetween(mine, ca, public, to.Key, "request")
	if err != nil {
		return answer, err
	}
	request, err := json.Marshal(sealed{public, to.Key, seal.Seal(nil, once[:], raw, []byte(id))})
	if err != nil {
		return answer, err
	}
	open, err := secretBetween(mine, ca, public, to.Key, "answer")
	if err != nil {
		return answer, err
	}
	return a.exchange(ctx, id, request, open)
}

// exchange puts a request and waits for its answer.
func (a *Admission) exchange(ctx context.Context, id string, request []byte, open cipher.AEAD) (answer Answer, err error) {
	t, err := a.bus.Table(ctx, provisionTable, bus.TableOptions{Volatile: true, TTL: provisionLinger})
	if err != nil {
		return answer, err
	}
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	came, listening, ended := make(chan []byte, 1), make(chan struct{}), make(chan error, 1)
	heard := sync.OnceFunc(func() { close(listening) })
	go func() {
		ended <- t.Watch(watch, answerPrefix+id+".", func(e bus.Entry) {
			if !e.Deleted {
				select {
				case came <- e.Value:
				default: // told again after a break
				}
			}
		}, heard)
	}()
	select {
	case <-listening:
	case err := <-ended:
		if ctx.Err() != nil {
			return answer, noAnswer(ctx)
		}
		return answer, fmt.Errorf("listen for the CA's answer: %w", err)
	}
	defer func() { // sealed, and of no use to anybody any more
		last, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer done()
		_ = t.Delete(last, askPrefix+id, 0)
		_ = t.Delete(last, answerKey(id), 0)
	}()
	if _, err := t.Put(ctx, askPrefix+id, request); err != nil {
		return answer, fmt.Errorf("ask the CA: %w", err)
	}
	select {
	case raw := <-came:
		var s sealed
		var got answered
		if err = json.Unmarshal(raw, &s); err == nil {
			if raw, err = open.Open(nil, once[:], s.Text, []byte(id)); err == nil {
				err = json.Unmarshal(raw, &got)
			}
		}
		if err != nil {
			return answer, fmt.Errorf("open the CA's answer: %w", err)
		}
		return Answer{got.Topic, got.Payload, got.Accepted}, nil
	case <-ctx.Done():
		return answer, noAnswer(ctx)
	}
}

func noAnswer(ctx context.Context) error {
	return fmt.Errorf("the CA did not answer: %w; is service_platform.x509 running?", context.Cause(ctx))
}

// answerAfar answers doors of other processes until ctx is done.
func (p *provisioning) answerAfar(ctx context.Context) error {
	mine, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key for doors elsewhere: %w", err)
	}
	raw, err := json.Marshal(provisionerEntry{mine.PublicKey().Bytes()})
	if err != nil {
		return err
	}
	var t store
	if err := patiently(ctx, func() (err error) {
		if t, err = openStore(ctx, p.s.env.Bus, provisionTable, bus.TableOptions{Volatile: true, TTL: provisionLinger}); err != nil {
			return err
		}
		_, err = p.o.trust.Put(ctx, provisionerKey, raw)
		return err
	}); err != nil {
		return fmt.Errorf("publish a key for doors elsewhere: %w", err)
	}
	var all sync.WaitGroup
	defer all.Wait()
	places := make(chan struct{}, provisionAtOnce)
	follow(ctx, p.s.env.Bus, p.s.env.Log, provisionTable, askPrefix, nil, func(e bus.Entry) {
		if e.Deleted {
			return
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		all.Go(func() {
			defer func() { <-places }()
			if err := p.answerOne(ctx, t, mine, e); err != nil && ctx.Err() == nil {
				p.s.env.Log.Error("a provisioning request from elsewhere was not answered", "error", err)
			}
		})
	}, func() {})
	return nil
}

func (p *provisioning) answerOne(ctx context.Context, t store, mine *ecdh.PrivateKey, e bus.Entry) error {
	id := strings.TrimPrefix(e.Key, askPrefix)
	var s sealed
	if err := json.Unmarshal(e.Value, &s); err != nil {
		return err
	}
	public := mine.PublicKey().Bytes()
	if string(s.To) != string(public) {
		return nil // for the key of an earlier start, which nobody can open
	}
	// Whoever takes it away answers it: one that is told again is done, and one whose door gave up is gone.
	// After a fault nobody knows whether it was taken: what is not there then was taken here, since nobody else can open it.
	ctx, cancel := context.WithTimeout(ctx, provisionLinger) // nobody waits longer
	defer cancel()
	faults := 0
	switch err := patiently(ctx, func() error {
		err := t.Delete(ctx, e.Key, e.Revision)
		if errors.Is(err, errAway) {
			faults++
		}
		return err
	}); {
	case errors.Is(err, bus.ErrConflict), errors.Is(err, bus.ErrNotFound):
		if faults == 0 {
			return nil
		}
	case err != nil:
		return err
	}
	asker, err := ecdh.X25519().NewPublicKey(s.Key)
	if err != nil {
		return err
	}
	open, err := secretBetween(mine, asker, s.Key, public, "request")
	if err != nil {
		return err
	}
	raw, err := open.Open(nil, once[:], s.Text, []byte(id))
	if err != nil {
		return err
	}
	var in asked
	if err := json.Unmarshal(raw, &in); err != nil {
		return err
	}
	leaf, err := stdx509.ParseCertificate(in.Leaf)
	if err != nil {
		return err
	}
	got := p.Provision(ctx, Client{Leaf: leaf, Address: in.Address, ClientID: in.ClientID, Door: doorClaim}, in.Topic, in.Payload)
	if raw, err = json.Marshal(answered{got.Topic, got.Payload, got.Accepted}); err != nil {
		return err
	}
	seal, err := secretBetween(mine, asker, s.Key, public, "answer")
	if err != nil {
		return err
	}
	if raw, err = json.Marshal(sealed{Text: seal.Seal(nil, once[:], raw, []byte(id))}); err != nil {
		return err
	}
	// What was done is done: the device must hear of it while it waits.
	return patiently(ctx, func() error {
		_, err := t.Put(ctx, answerKey(id), raw)
		return err
	})
}

// refusedAfar is the answer where the CA could not be asked, and is recorded.
func (a *Admission) refusedAfar(c Client, topic string, err error) Answer {
	var r *awsError
	if !errors.As(err, &r) {
		r = &awsError{http.StatusServiceUnavailable, "ServiceUnavailable", message.Reject(message.BusUnavailable, err)}
	}
	a.Refused(c, "provision", message.Reject(message.BusUnavailable, r.err))
	return rejected(topic, r)
}
