package nats

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/minio/highwayhash"
	natsgo "github.com/nats-io/nats.go"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/bustest"
	"github.com/naru-platform/naru/message"
)

// stand is an embedded engine and the faults that can be made in it.
type stand struct {
	t   *testing.T
	dir string
	b   *Bus
}

func (s *stand) open() *Bus {
	s.b = open(s.t, s.dir)
	return s.b
}

func (s *stand) setDown(down bool) {
	if !down {
		if err := s.b.startEmbedded(); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	srv := s.b.embedded.Swap(nil)
	srv.Shutdown()
	srv.WaitForShutdown()
}

// loseAcks lets the next n appends be stored, and their confirmations be lost.
func loseAcks(b *Bus, n int) {
	var left atomic.Int64
	left.Store(int64(n))
	real := b.nc().RequestMsgWithContext
	b.request = func(ctx context.Context, m *natsgo.Msg) (*natsgo.Msg, error) {
		answer, err := real(ctx, m)
		if err == nil && strings.HasPrefix(m.Subject, "naru.log.") && left.Add(-1) >= 0 {
			return nil, natsgo.ErrTimeout
		}
		return answer, err
	}
}

// corrupt changes a byte of a stored batch so that the server doesn't notice, as bad memory would before it was stored.
func (s *stand) corrupt(log string, seq uint64) {
	s.t.Helper()
	l, err := s.b.Log(s.t.Context(), log, bus.LogOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	m, err := l.(*Log).direct(s.t.Context(), 1, 0, seq)
	if err != nil {
		s.t.Fatal(err)
	}
	s.setDown(true)
	s.patch(streamName(log, 1, 0), m, true)
	l.(*Log).feed(1, 0).forget(seq)
	s.setDown(false)
}

// patch changes a byte of a stored message in the store's file, and the server's own checksum with it or not.
func (s *stand) patch(stream string, m raw, rehash bool) {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "jetstream", "*", "streams", stream, "msgs", "*.blk"))
	if err != nil || len(files) != 1 {
		s.t.Fatalf("blocks of %s: %v, %v", stream, files, err)
	}
	block, err := os.ReadFile(files[0])
	if err != nil {
		s.t.Fatal(err)
	}
	at := bytes.Index(block, m.data)
	if at < 0 {
		s.t.Fatal("the batch is not in the block")
	}
	block[at+message.BatchOverhead+2] ^= 1
	if rehash {
		// A record is 22 bytes of length, sequence, time and length of the subject, then subject, length of headers,
		// headers and data, then the hash of all but the lengths.
		start := bytes.LastIndex(block[:at], []byte(m.subject)) - 22
		subj := block[start+22:][:len(m.subject)]
		key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", stream, 1))
		h, err := highwayhash.NewDigest64(key[:])
		if err != nil {
			s.t.Fatal(err)
		}
		h.Write(block[start+4 : start+20])
		h.Write(subj)
		headers := int(binary.LittleEndian.Uint32(block[start+22+len(subj):]))
		h.Write(block[start+22+len(subj)+4 : at][:headers])
		h.Write(block[at : at+len(m.data)])
		copy(block[at+len(m.data):], h.Sum(nil))
	}
	if err := os.WriteFile(files[0], block, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// loseIndex has the server read the blocks themselves when it starts.
func (s *stand) loseIndex(stream string) {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "jetstream", "*", "streams", stream, "msgs", "index.db"))
	if err != nil || len(files) != 1 {
		s.t.Fatalf("index of %s: %v, %v", stream, files, err)
	}
	if err := os.Remove(files[0]); err != nil {
		s.t.Fatal(err)
	}
}

func setSpace(b *Bus, s bus.Space) {
	b.space.Store(&s)
	b.measure = func() (bus.Space, error) { return s, nil }
}

func TestKeepsThePromisesEmbedded(t *testing.T) {
	f := bustest.Features{Reopen: true, SetDown: true, LoseAcks: true, Corrupt: true, SetSpace: true}
	bustest.Run(t, f, func(t *testing.T) bustest.Engine {
		s := &stand{t: t, dir: t.TempDir()}
		return bustest.Engine{
			Bus: s.open(),
			Reopen: func() bus.Bus {
				if err := s.b.Close(); err != nil {
					t.Fatal(err)
				}
				return s.open()
			},
			SetDown: s.setDown, LoseAcks: func(n int) { loseAcks(s.b, n) }, Corrupt: s.corrupt,
			SetSpace: func(sp bus.Space) { setSpace(s.b, sp) },
		}
	})
}
