package topic

import (
	"sync/atomic"
	"unicode/utf8"
)

// counter counts what several goroutines see.
type counter struct{ n atomic.Int64 }

func (c *counter) add(n int64) { c.n.Add(n) }
func (c *counter) take() int64 { return c.n.Swap(0) }

func textOrBinary(b []byte) (string, []byte) {
	if utf8.Valid(b) {
		return string(b), nil
	}
	return "", b
}
