//go:build long

package e2e

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/message"
)

// TestEachReadingIsOneRowThroughSIGKILL kills the platform twenty times under load. Then each reading that was acknowledged is
// a row, each message of the log exactly one, and the account is balanced.
func TestEachReadingIsOneRowThroughSIGKILL(t *testing.T) {
	p := newPlatform(t)
	senders := killed(p, 20)
	acked := 0
	for _, s := range senders {
		acked += len(s.acked)
	}
	for _, l := range p.settled(uint64(acked)) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	p.stop()
	checkStored(t, p.data, senders)

	store, err := storage.OpenDuck(t.Context(), filepath.Join(p.data, storage.Name, "data.duckdb"), storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	r, err := store.Query(t.Context(), "SELECT device, decode(raw), message_id FROM telemetry", nil, storage.Limits{Rows: 100_000_000})
	if err != nil {
		t.Fatal(err)
	}
	rows, ids := map[string]int{}, map[string]bool{}
	for row, err := range r.Rows() {
		if err != nil {
			t.Fatal(err)
		}
		id := row[2].(string)
		if _, err := message.ParseID(id); err != nil || ids[id] {
			t.Errorf("message %s is more than one row: %v", id, err)
		}
		ids[id] = true
		rows[fmt.Sprint(row[0], " ", row[1])]++
	}
	for _, s := range senders {
		for n := range s.acked {
			if times := rows[s.id+" "+strconv.Itoa(n)]; times == 0 || times > s.sent[n] {
				t.Errorf("%s: %d was acknowledged, sent %d times, and is %d rows", s.id, n, s.sent[n], times)
			}
		}
	}
	t.Logf("%d readings acknowledged, %d rows", acked, len(ids))
}
