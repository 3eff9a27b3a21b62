package nats

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/minio/highwayhash"
)

// The server ends a block's file at the first record that it cannot read, when it starts without its index, as after a
// kill. That is right for a write that was cut off, and would throw away everything behind one broken byte in the middle.
// So before it starts, such places are taken out of the files: only the broken records are lost. Their sequences are
// missing then, which readers and the ledger account for; the file as it was is kept beside it.

// The layout of a block's records (nats-server v2.15, server/filestore.go): length with a flag for headers (4 bytes, little-endian),
// sequence (8), time (8), length of the subject (2), subject, headers' length where there are headers (4), headers and
// data, hash (8) over sequence, time, subject, headers and data.
const (
	recordHead  = 22
	recordHash  = 8
	recordLimit = 32 << 20
	withHeaders = 1 << 31
)

// damage is what was found in a block's file.
type damage struct {
	file   string
	offset int // of the first broken byte
	cut    int // bytes that were taken out
	behind int // readable records behind it, which would have been lost
	keptAs string
}

// mend looks through the blocks that the server is going to read anew, and takes out what is broken in their middle.
func mend(dir string) (found []damage, err error) {
	streams, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", "*"))
	if err != nil {
		return nil, err
	}
	for _, stream := range streams {
		index := filepath.Join(stream, "msgs", "index.db")
		indexed, err := os.Stat(index)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return found, err
		}
		blocks, err := filepath.Glob(filepath.Join(stream, "msgs", "*.blk"))
		if err != nil {
			return found, err
		}
		for _, block := range blocks {
			info, err := os.Stat(block)
			if err != nil {
				return found, err
			}
			if indexed != nil && info.ModTime().Before(indexed.ModTime()) {
				continue // the server goes by its index, and a record that is broken is met when it is read
			}
			d, err := mendBlock(filepath.Base(stream), block)
			if err != nil {
				return found, fmt.Errorf("look through %s: %w", block, err)
			}
			if d == nil {
				continue
			}
			found = append(found, *d)
			if err := os.Remove(index); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return found, err
			}
		}
	}
	return found, nil
}

// mendBlock mends a file, and gives nil where nothing is to be mended: what is broken at its end was never confirmed.
func mendBlock(stream, file string) (*damage, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s-%s", stream, strings.TrimSuffix(filepath.Base(file), ".blk")))
	h, err := highwayhash.New64(key[:])
	if err != nil {
		return nil, err
	}
	var good []byte
	d := damage{file: file, offset: -1}
	for at := 0; at < len(raw); {
		if n := recordAt(h, raw[at:]); n > 0 {
			if d.offset >= 0 {
				good = append(good, raw[at:at+n]...)
				d.behind++
			}
			at += n
			continue
		}
		next := at + 1
		for next < len(raw) && recordAt(h, raw[next:]) == 0 {
			next++
		}
		if next >= len(raw) {
			break // the end, which the server cuts off
		}
		if d.offset < 0 {
			d.offset, good = at, append(good, raw[:at]...)
		}
		d.cut += next - at
		at = next
	}
	if d.offset < 0 {
		return nil, nil
	}
	d.keptAs = file + ".damaged"
	if err := writeSynced(d.keptAs, raw); err != nil {
		return nil, err
	}
	if err := writeSynced(file+".mended", good); err != nil {
		return nil, err
	}
	return &d, os.Rename(file+".mended", file)
}

// recordAt gives the length of the record that b begins with, zero where there is none.
func recordAt(h hash.Hash64, b []byte) int {
	if len(b) < recordHead+recordHash {
		return 0
	}
	le := binary.LittleEndian
	length, subject := le.Uint32(b), int(le.Uint16(b[20:]))
	from := subject
	if length&withHeaders != 0 {
		length &^= withHeaders
		from += 4
	}
	n := int(length)
	if n < recordHead+recordHash+from || n > len(b) || n > recordLimit {
		return 0
	}
	data := b[recordHead:n]
	h.Reset()
	h.Write(b[4:20])
	h.Write(data[:subject])
	h.Write(data[from : len(data)-recordHash])
	if !bytes.Equal(h.Sum(nil), data[len(data)-recordHash:]) {
		return 0
	}
	return n
}

func writeSynced(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
