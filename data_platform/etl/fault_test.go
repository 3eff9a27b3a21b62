package etl

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/internal/postgrestest"
	"github.com/naru-platform/naru/message"
)

// lax is a database of DuckDB behind a model that lets a time through which it does not hold: where a label says odd.
type lax struct{ storage.Store }

// Load as in [storage.Store].
func (x lax) Load(ctx context.Context, b *storage.Batch) (storage.Loaded, error) {
	for i := range b.Rows {
		if b.Rows[i].Values[2] == "odd" {
			b.Rows[i].Time = time.Date(300000, 1, 1, 0, 0, 0, 0, time.UTC)
		}
	}
	return x.Store.Load(ctx, b)
}

func TestARowThatDuckDBDoesNotHoldDiesAndItsBatchGoesOn(t *testing.T) {
	l := newLab(t)
	l.hub.Set(lax{l.store}, nil)
	l.put(rooms)
	l.start()
	l.say("rooms", `{"celsius": 1}`, `{"celsius": 2, "label": "odd"}`, `{"celsius": 3}`)
	l.oddIsDead("DuckDB does not hold")
	l.want("SELECT celsius FROM rooms ORDER BY celsius", "1\n3")
}

// oddIsDead wants the second of three messages dead, for what the database says.
func (l *lab) oddIsDead(why string) {
	l.t.Helper()
	rep := l.Settled(Name+"/rooms", "data_platform")
	if rep.Outcomes[component.Handled].Count != 2 || rep.Outcomes[component.Dead].Count != 1 {
		l.t.Errorf("%+v", rep.Outcomes)
	}
	_, dead := l.Buried(Name+"/rooms", 1)
	if len(dead) != 1 || dead[0].Reason != message.SchemaMismatch || !strings.Contains(dead[0].Detail, why) {
		l.t.Errorf("%+v", dead)
	}
}

// newPostgresLab is a lab with its rows in a database of a server that is started for it; in a place of its own where one is named. admin does
// statements there.
func newPostgresLab(t *testing.T, server *postgrestest.Server, tablespace string) (l *lab, admin func(statements ...string)) {
	t.Cleanup(server.Kill)
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	in := func(database string) func(statements ...string) {
		return func(statements ...string) {
			t.Helper()
			if _, err := server.SQL(database, statements...); err != nil {
				t.Fatal(err)
			}
		}
	}
	made := "CREATE DATABASE rows OWNER naru"
	if tablespace != "" {
		in("postgres")("CREATE TABLESPACE small LOCATION '" + tablespace + "'")
		made += " TABLESPACE small"
	}
	in("postgres")("CREATE ROLE naru LOGIN PASSWORD 'a secret'", made)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("a secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := storage.OpenPostgres(t.Context(), storage.PostgresOptions{URL: server.URL("naru", "rows"), PasswordFile: secret})
	if err != nil {
		t.Fatal(err)
	}
	return labOf(t, store), in("rows")
}

// TestAnErrorOfPostgreSQLIsTheRowsOrIsTriedAgain has the server refuse by a trigger: a row for its data, and then each row for a reason
// that naru knows nothing of.
func TestAnErrorOfPostgreSQLIsTheRowsOrIsTriedAgain(t *testing.T) {
	server, err := postgrestest.New(t.TempDir(), "fsync = off")
	if err != nil {
		t.Fatal(err)
	}
	l, admin := newPostgresLab(t, server, "")
	l.put(rooms)
	l.start()
	l.say("rooms", `{"celsius": 0}`)
	l.Settled(Name+"/rooms", "data_platform")
	fault := func(when, code string) {
		admin(fmt.Sprintf("CREATE OR REPLACE FUNCTION public.fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF %s THEN RAISE EXCEPTION 'as if' USING ERRCODE = '%s'; END IF; RETURN NEW; END $$", when, code),
			"DROP TRIGGER IF EXISTS fault ON naru.rooms", "CREATE TRIGGER fault BEFORE INSERT ON naru.rooms FOR EACH ROW EXECUTE FUNCTION public.fault()")
	}
	fault("NEW.label = 'odd'", "22023")
	l.say("rooms", `{"celsius": 1, "label": "even"}`, `{"celsius": 2, "label": "odd"}`)
	l.oddIsDead("which PostgreSQL does not hold: as if")

	fault("true", "P0001")
	var sent []string
	for i := range 20 {
		sent = append(sent, fmt.Sprintf(`{"celsius": 3, "seq": %d}`, i))
	}
	l.say("rooms", sent...)
	l.stands("rooms", "ERROR: as if (SQLSTATE P0001)")
	l.want("SELECT count(*) FROM rooms", "2")
	admin("DROP FUNCTION public.fault() CASCADE")
	if rep := l.Settled(Name+"/rooms", "data_platform"); rep.Outcomes[component.Handled].Count != 22 || rep.Outcomes[component.Dead].Count != 1 || rep.Fault != "" {
		t.Errorf("%+v", rep)
	}
	l.want("SELECT count(*), count(DISTINCT seq) FROM rooms WHERE celsius = 3", "20 20")
	if l.metric("naru_etl_breaker_open", "rooms") != 0 {
		t.Error("the breaker is told to be open")
	}
}
