package nats

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// killed stores eight batches and leaves the store as a killed server does, without its indexes.
func killed(t *testing.T) (dir, block string) {
	t.Helper()
	dir = t.TempDir()
	b, err := Open(t.Context(), Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	log, err := b.Log(t.Context(), "device", bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := log.Appender(t.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		now := time.Now()
		m := &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Subject: "device.d.telemetry", Device: "d", Data: fmt.Appendf(nil, "reading %d", i)}
		if _, err := bus.AppendSync(t.Context(), a, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "index.db" {
			return os.Remove(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", "NARU_device_*", "msgs", "1.blk"))
	if err != nil || len(blocks) != 1 {
		t.Fatal(blocks, err)
	}
	return dir, blocks[0]
}

// readings are what is in the log after a start.
func readings(t *testing.T, dir string) (list []string, logged string) {
	t.Helper()
	var out bytes.Buffer
	b, err := Open(t.Context(), Options{Dir: dir, Log: slog.New(slog.NewTextHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	log, err := b.Log(t.Context(), "device", bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := log.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := info.Generations[0].Partitions[0]
	r, err := log.Reader(t.Context(), bus.Position{Generation: 1, Sequence: p.First - 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for at := p.First - 1; at < p.Last; {
		s, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("after %d of %d: %v", at, p.Last, err)
		}
		at = s.Position.Sequence
		var m message.Message
		for c := s.Batch.Cursor(); s.Err == nil && c.Next(&m); {
			list = append(list, strings.TrimPrefix(string(m.Data), "reading "))
		}
	}
	return list, out.String()
}

// Left to itself, the server would throw away all that lies behind the byte.
func TestOneBrokenByteTakesOneBatchAndNotWhatLiesBehindIt(t *testing.T) {
	for name, spoil := range map[string]func(raw []byte) []byte{
		"a byte of the data": func(raw []byte) []byte { raw[bytes.Index(raw, []byte("reading 3"))] ^= 1; return raw },
		"its length":         func(raw []byte) []byte { raw[recordBefore(raw, "reading 3")+1] ^= 0x80; return raw },
	} {
		t.Run(name, func(t *testing.T) {
			dir, block := killed(t)
			raw, err := os.ReadFile(block)
			if err != nil {
				t.Fatal(err)
			}
			raw = spoil(raw)
			if err := os.WriteFile(block, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			got, logged := readings(t, dir)
			if fmt.Sprint(got) != "[0 1 2 4 5 6 7]" {
				t.Errorf("after a start there is %v", got)
			}
			if !strings.Contains(logged, "broken in its middle") {
				t.Errorf("it was not told: %s", logged)
			}
			if kept, err := os.ReadFile(block + ".damaged"); err != nil || !bytes.Equal(kept, raw) {
				t.Errorf("the file as it was is not kept: %v", err)
			}
		})
	}
}

// recordBefore finds where the record with a text begins.
func recordBefore(raw []byte, text string) int {
	return bytes.LastIndex(raw[:bytes.Index(raw, []byte(text))], []byte("naru.")) - recordHead
}

func TestAWriteThatWasCutOffIsNoDamage(t *testing.T) {
	dir, block := killed(t)
	info, err := os.Stat(block)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := mend(dir); err != nil || len(found) > 0 {
		t.Errorf("a good store is said to be damaged: %+v %v", found, err)
	}
	if err := os.Truncate(block, info.Size()-20); err != nil {
		t.Fatal(err)
	}
	if found, err := mend(dir); err != nil || len(found) > 0 {
		t.Errorf("its end is said to be damaged: %+v %v", found, err)
	}
	if got, _ := readings(t, dir); fmt.Sprint(got) != "[0 1 2 3 4 5 6]" {
		t.Errorf("after a start there is %v", got)
	}
}
