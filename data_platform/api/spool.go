package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
)

// spool holds an answer until it is whole: so a fault in its middle is told as one, what is left out stands before it, and
// who reads slowly holds nothing of the database. What is large lies in a file without a name.
type spool struct {
	dir    func() (string, error)
	most   int64
	memory bytes.Buffer
	file   *os.File
	size   int64
}

// inMemory is how much of an answer is held in memory.
const inMemory = 1 << 20

// heldMax is how many bytes of values one answer may have that is put together in memory: a page of rows, and what Grafana asks for.
const heldMax = 64 << 20

// tooLarge is an answer that has more bytes than it may.
type tooLarge struct{ most int64 }

func (t *tooLarge) Error() string { return fmt.Sprintf("the answer has more than %d bytes", t.most) }

// weight is about what a row takes in memory.
func weight(row []any) (n int64) {
	for _, v := range row {
		n += 16
		switch v := v.(type) {
		case string:
			n += int64(len(v))
		case []byte:
			n += int64(len(v))
		case json.RawMessage:
			n += int64(len(v))
		}
	}
	return n
}

func (s *spool) Write(p []byte) (int, error) {
	if s.size += int64(len(p)); s.size > s.most {
		return 0, &tooLarge{s.most}
	}
	if s.file == nil && s.memory.Len()+len(p) <= inMemory {
		return s.memory.Write(p)
	}
	if s.file == nil {
		dir, err := s.dir()
		if err != nil {
			return 0, err
		}
		if s.file, err = os.CreateTemp(dir, "answer-*"); err != nil {
			return 0, err
		}
		if err := os.Remove(s.file.Name()); err != nil { // it goes with the process, however that ends
			return 0, err
		}
	}
	if s.memory.Len() > 0 && s.memory.Len()+len(p) > inMemory {
		if _, err := s.memory.WriteTo(s.file); err != nil {
			return 0, err
		}
	}
	return s.memory.Write(p)
}

// send gives it to the client.
func (s *spool) send(w http.ResponseWriter) {
	w.Header().Set("Content-Length", strconv.FormatInt(s.size, 10))
	if s.file != nil {
		if _, err := s.file.Seek(0, io.SeekStart); err != nil {
			panic(http.ErrAbortHandler) // nothing was sent yet, and what is missing must not look like an end
		}
		if _, err := io.Copy(w, s.file); err != nil {
			return // the client went
		}
	}
	_, _ = s.memory.WriteTo(w) // the client went; there is nobody to tell
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
}
