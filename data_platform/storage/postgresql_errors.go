// What PostgreSQL says, in words that name thing, place and remedy.

package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Codes of SQLSTATE that something follows from.
const (
	noPart      = "23514"
	lockBusy    = "55P03"
	canceled    = "57014"
	readOnly    = "25006"
	noSuchTable = "42P01"
)

// code is the SQLSTATE of an error of the server's; empty for others.
func code(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// remedies say what to do; where a code has none, its class may.
var remedies = map[string]string{
	"28P01":  "the password is wrong: look at password_file, and at the user in url",
	"28000":  "the server does not let this user in: look at the user in url, and at the server's pg_hba.conf",
	"3D000":  "there is no such database: make it (createdb --encoding=UTF8), or correct url",
	"53300":  "the server has no connection left: lower connections of data_platform.storage, or raise max_connections of the server",
	"53100":  "the server's disk is full: make room there; naru goes on by itself",
	"53200":  "the server is out of memory: lower connections, or give it more",
	"57P01":  "the server is shutting down; naru goes on by itself when it is back",
	"57P02":  "the server has crashed and restarts; naru goes on by itself when it is back",
	"57P03":  "the server is starting or stopping; naru goes on by itself when it is up",
	readOnly: "the server takes no rows: it is a standby, or is set to read only. Name all servers in url (postgres://user@one,two/database), and naru finds the one that does",
	"42501":  "the user lacks a right: docs/data.md says which ones it needs",
	lockBusy: "somebody holds the table; it is tried again",
	"57P05":  "the server ended an idle session; it is tried again",
	"40001":  "it is tried again",
	"40P01":  "it is tried again",
	"58":     "the server's files or disk are at fault: look at its log",
	"XX":     "the server is at fault: look at its log",
}

// explain makes an error one for a person: the place, without any secret, and what to do.
func (p *postgres) explain(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrMoved), errors.Is(err, ErrNoTable):
		return err
	case errors.Is(err, context.Canceled):
		return err
	}
	var refused *RefusedError
	if errors.As(err, &refused) {
		return err
	}
	remedy := ""
	var e *pgconn.PgError
	var connect *pgconn.ConnectError
	switch {
	case errors.As(err, &e):
		if remedy = remedies[e.Code]; remedy == "" && len(e.Code) == 5 {
			remedy = remedies[e.Code[:2]]
		}
	case errors.As(err, &connect) && strings.Contains(err.Error(), "read only connection"):
		remedy = remedies[readOnly]
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		remedy = "no server listens there: is it running, and is the address in url right? naru goes on by itself when it is there"
	case errors.As(err, &connect) || pgconn.Timeout(err):
		remedy = "the server cannot be reached; naru goes on by itself when it can be"
	}
	return &placedError{p.place, strings.Join(strings.Fields(p.scrub(err.Error())), " "), remedy, err}
}

// placedError is an error of a database.
type placedError struct {
	place, what, remedy string
	err                 error
}

// Error names the place, and the remedy where one is known.
func (e *placedError) Error() string {
	if e.remedy == "" {
		return fmt.Sprintf("postgresql %s: %s", e.place, e.what)
	}
	return fmt.Sprintf("postgresql %s: %s (%s)", e.place, e.what, e.remedy)
}

// Unwrap gives what the driver said, whose text may have a secret.
func (e *placedError) Unwrap() error { return e.err }

// scrub takes the password out of a text.
func (p *postgres) scrub(s string) string {
	for _, secret := range p.options.secrets() {
		s = strings.ReplaceAll(s, secret, "…")
	}
	return s
}

func (o *PostgresOptions) secrets() (list []string) {
	if s, err := o.password(); err == nil && s != "" {
		list = append(list, s)
	}
	return list
}

// blocked adds to an error about a lock who holds the table.
func (p *postgres) blocked(ctx context.Context, err error, table string) error {
	if code(err) != lockBusy {
		return err
	}
	var pid int
	var who, application string
	var since time.Time
	found := p.transact(ctx, nil, func(c *sql.Conn) error {
		return c.QueryRowContext(ctx, `SELECT a.pid, coalesce(a.usename, ''), coalesce(a.application_name, ''), coalesce(a.xact_start, now())
			FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.granted AND a.pid <> pg_backend_pid()
			AND l.relation IN (SELECT relid FROM pg_partition_tree(to_regclass(quote_ident($1)))) ORDER BY a.xact_start LIMIT 1`, table).Scan(&pid, &who, &application, &since)
	})
	if found != nil {
		return err
	}
	return fmt.Errorf("%w; process %d of the server, user %s (%s), holds %s since %s: wait for it, or end it with SELECT pg_cancel_backend(%d)",
		err, pid, who, application, table, since.UTC().Format(time.RFC3339), pid)
}
