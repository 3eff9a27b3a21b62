//go:build long

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/internal/postgrestest"
	"github.com/naru-platform/naru/message"
)

// TestEachReadingIsOneRowThroughSIGKILL kills the platform twenty times under load. Then each reading that was acknowledged is
// a row, each message of the log exactly one, and the account is balanced.
func TestEachReadingIsOneRowThroughSIGKILL(t *testing.T) {
	p := newPlatform(t)
	senders := killed(p, 20)
	settledRows(p, senders)
	store, err := storage.OpenDuck(t.Context(), filepath.Join(p.data, storage.Name, "data.duckdb"), storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	checkRows(t, store, "SELECT device, decode(raw), message_id FROM telemetry", senders)
}

// TestEachReadingIsOneRowThroughSIGKILLOfPostgreSQL is that with rows in PostgreSQL, and the server is killed as well as the
// platform, and now and then both at once.
func TestEachReadingIsOneRowThroughSIGKILLOfPostgreSQL(t *testing.T) {
	dir := t.TempDir()
	server, err := postgrestest.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	start := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := server.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	start()
	if _, err := server.SQL("postgres", "CREATE ROLE naru LOGIN PASSWORD 'a secret'", "CREATE DATABASE rows OWNER naru"); err != nil {
		t.Fatal(err)
	}
	secret, file := filepath.Join(dir, "secret"), filepath.Join(dir, "naru.yaml")
	for name, text := range map[string]string{
		secret: "a secret\n",
		file:   fmt.Sprintf("data_platform.storage: {url: %q, password_file: %q}\n", server.URL("naru", "rows"), secret),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := newPlatform(t, "--config", file)
	var senders []*sender
	for i := range 20 {
		senders = append(senders, newSender(fmt.Sprintf("d-%d", i), p.plain))
	}
	hurtUnderLoad(p, 20, senders, func(i int) {
		if i%3 != 0 {
			server.Kill()
		}
		if i%3 != 1 {
			p.kill()
			p.start() // also while the server is away
		}
		if i%3 != 0 {
			start()
		}
	})
	settledRows(p, senders)
	store, err := storage.OpenPostgres(t.Context(), storage.PostgresOptions{URL: server.URL("naru", "rows"), PasswordFile: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	checkRows(t, store, "SELECT device, convert_from(raw, 'UTF8'), message_id FROM telemetry", senders)
	if said := p.out.String(); strings.Contains(said, "a secret") {
		t.Errorf("the password is in the log:\n%s", said)
	}
}

// settledRows waits until all has its fate, and stops the platform. No message died.
func settledRows(p *platform, senders []*sender) {
	p.t.Helper()
	acked := 0
	for _, s := range senders {
		acked += len(s.acked)
	}
	for _, l := range p.settled(uint64(acked)) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			p.t.Errorf("ledger: %+v", l)
		}
	}
	p.stop()
	checkStored(p.t.(*testing.T), p.data, senders)
	p.t.Logf("%d readings were acknowledged", acked)
}

// checkRows holds the rows against what the senders know: query gives device, the reading's number and message.
func checkRows(t *testing.T, store storage.Store, query string, senders []*sender) {
	t.Helper()
	r, err := store.Query(t.Context(), query, nil, storage.Limits{Rows: 100_000_000})
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
	t.Logf("%d rows", len(ids))
}
