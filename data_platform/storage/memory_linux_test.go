package storage

import (
	"errors"
	"strings"
	"testing"
)

// TestWhoTakesAllMemoryKillsNoRow: where something else in the process has the memory that a row's step wants, the row waits, and is no dead
// letter; where the step wants too much by itself, it is one.
func TestWhoTakesAllMemoryKillsNoRow(t *testing.T) {
	s := newScratch(t)
	rows := scratchRows(3)
	rows[1].Values[1] = strings.Repeat("x", 8<<20)
	steps := Steps{Columns: scratchColumns, SQL: []string{"SELECT * REPLACE (label || 'y' AS label) FROM input"}}
	for _, left := range []int64{0, 12 << 20} { // for nothing, and for all but the row's step
		taken := spare() - left
		allow(-taken)
		out, err := s.Do(t.Context(), steps, rows)
		allow(taken)
		if !errors.Is(err, ErrMemory) {
			t.Errorf("with %d bytes of memory left: %v, %v", left, out.Failed, err)
		}
	}
	out, err := s.Do(t.Context(), steps, rows)
	if err != nil || len(out.Rows) != 3 || len(out.Failed) != 0 {
		t.Errorf("with memory again: %d rows, %v, %v", len(out.Rows), out.Failed, err)
	}
	steps.SQL = []string{"SELECT * REPLACE (repeat('x', 1000000000 * CAST(n = 1 AS INTEGER)) AS label) FROM input"}
	out, err = s.Do(t.Context(), steps, rows)
	if err != nil || len(out.Rows) != 2 || len(out.Failed) != 1 || out.Failed[0].Row != 1 {
		t.Errorf("a row that wants too much: %v, %v", out.Failed, err)
	}
}
