// Package storage keeps the rows of datasets in a database: DuckDB in one file by default, PostgreSQL where a URL says
// so. Rows, roll-ups, and the place in the log up to which they were loaded are one transaction, so a crash leaves
// nothing twice and nothing out. It knows tables, not models: who loads says what the columns are.
//
// Here is what a store promises; what both engines say alike is in sql.go, shape.go (tables), rollup.go, load.go and select.go, and of each
// engine the rest, in files of its name. guard.go says what may be asked, scratch.go does the steps of pipelines, hub.go is the component.
package storage

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Type is a column's type.
type Type string

// The types, and what a value of them is in Go. A value that is missing is nil.
const (
	Bool   Type = "bool"   // bool
	Int    Type = "int"    // int64
	Double Type = "double" // float64
	Text   Type = "text"   // string
	Time   Type = "time"   // time.Time, to a microsecond
	JSON   Type = "json"   // json.RawMessage; in rows to load a string of it will do
	Bytes  Type = "bytes"  // []byte
	UUID   Type = "uuid"   // string in a result; of system columns only
)

// Column is a column of a table.
type Column struct {
	Name string `json:"name"`
	Type Type   `json:"type"`
}

// System are the columns that every table begins with.
var System = []Column{{"time", Time}, {"device", Text}, {"subject", Text}, {"trace_id", Text}, {"message_id", UUID}, {"recorded", Time}}

// Table is a dataset as the database has it.
type Table struct {
	Name    string   `json:"name"`
	Columns []Column `json:"columns"` // behind the system columns, in the order of Row.Values
	// Key are the columns whose equality makes two rows one: the first one stays. None keeps all rows.
	Key     []string `json:"key,omitempty"`
	Rollups []Rollup `json:"rollups,omitempty"`
	// Late is how much later than its time a row may be recorded and still count in roll-ups; no limit where zero.
	Late time.Duration `json:"late,omitempty"`
	// Retention is how long a row is kept, from when it was recorded; for ever where zero.
	Retention time.Duration `json:"retention,omitempty"`
}

// Rollup is a table of its own with a row for each bucket of time and each group: `time`, at which it begins, the columns of
// By, `rows`, how many it has, and `<column>_<function>` for each value.
type Rollup struct {
	Name   string        `json:"name"`
	Every  time.Duration `json:"every"`
	By     []string      `json:"by,omitempty"`
	Values []RollupValue `json:"values"`
}

// RollupValue is a column and what is made of it: avg, min, max, sum, count.
type RollupValue struct {
	Column    string   `json:"column"`
	Functions []string `json:"functions"`
}

var functions = []string{"avg", "min", "max", "sum", "count"}

// Row is one row of a table.
type Row struct {
	Time     time.Time
	Device   string // empty where there is none: null
	Subject  string
	Trace    string // 32 hex digits
	Message  message.ID
	Recorded time.Time
	Values   []any        // of Table.Columns
	Position bus.Position // of its message, for its fate where it turns out to be a duplicate
	// Again says that its message was here before and died: the row is loaded unless one of the message is there.
	Again bool
}

// Fate is what became of a message that is no row, kept with the position as long as its consumer may ask again.
type Fate struct {
	Sequence uint64         `json:"s"`
	Index    uint32         `json:"i"`
	Reason   message.Reason `json:"r,omitempty"` // of its death; none where it did not concern the table
	Detail   string         `json:"d,omitempty"`
}

// Source is one partition of a log as a consumer reads it.
type Source struct {
	Consumer   string
	Log        message.ID
	Generation uint32
	Partition  uint32
}

// Mark is how far a source was loaded, and the fates near there.
type Mark struct {
	Sequence uint64 // zero where nothing was
	Index    uint32
	Fates    []Fate
}

// at says whether a mark is at the place of another one, whatever the fates.
func (m *Mark) at(o Mark) bool { return m.Sequence == o.Sequence && m.Index == o.Index }

// Covers says whether a message's place was loaded.
func (m *Mark) Covers(p bus.Position) bool {
	return p.Sequence < m.Sequence || p.Sequence == m.Sequence && p.Index <= m.Index
}

// Fate is what is remembered of a message at a place, if anything.
func (m *Mark) Fate(p bus.Position) (Fate, bool) {
	for _, f := range m.Fates {
		if f.Sequence == p.Sequence && f.Index == p.Index {
			return f, true
		}
	}
	return Fate{}, false
}

// Batch is what one transaction loads.
type Batch struct {
	Table  string
	Rows   []Row
	Source Source
	// From is the mark that the loader knows, and Upto the one it moves to; what Upto has of fates is kept, with those of
	// duplicates among the rows. Where they are equal no mark is moved.
	From, Upto Mark
}

// Loaded is what became of a batch.
type Loaded struct {
	Rows       int   // that are new in the table
	Duplicates []int // indexes of rows whose key was there already, or for Again whose message
	Late       int   // rows that came too late for roll-ups, or have no place in them
	// Refused are rows that the database cannot hold. They are not loaded, nor others of the same message, and its fate is kept
	// as a death: the rest of the batch does not wait for what will never be.
	Refused []Refused
}

// Refused is a row that a database cannot hold.
type Refused struct {
	Row int // its index
	Why string
}

// Fate is the death of its message.
func (r *Refused) Fate(p bus.Position) Fate {
	return Fate{Sequence: p.Sequence, Index: p.Index, Reason: message.SchemaMismatch, Detail: r.Why}
}

// ErrMoved says that another loader has moved the mark meanwhile: nothing was loaded, and it is to be read again.
var ErrMoved = errors.New("another process has loaded beyond this position")

// ErrNoTable says that a table was not made yet.
var ErrNoTable = errors.New("no such dataset")

// ErrBusy says that no query is taken for now.
var ErrBusy = errors.New("the database is busy")

// ErrMemory says that queries have all of the database's memory for the moment: nothing was loaded, and it is to be tried again.
var ErrMemory = errors.New("the database's memory is taken for the moment; it is tried again (if this goes on, raise memory)")

// Limits bound a query. Zero values are 100,000 rows and 30 s.
type Limits struct {
	Rows    int
	Timeout time.Duration
}

// RefusedError is a query that is not answered, with the reason; it is the asker's mistake. Line and Column say where in the
// statement, from 1; zero where that is not known.
type RefusedError struct {
	Why          string
	Line, Column int
}

// Error tells why.
func (r *RefusedError) Error() string {
	if r.Line > 0 {
		return fmt.Sprintf("%d:%d: %s", r.Line, r.Column, r.Why)
	}
	return r.Why
}

func refuse(format string, args ...any) error {
	return &RefusedError{Why: fmt.Sprintf(format, args...)}
}

// Result is the answer to a query, read while it comes.
type Result struct {
	Columns []Column // Type says what the values are
	// Truncated is true, once all rows were read, where there were more than the limit.
	Truncated bool

	next  func() ([]any, error) // io.EOF at the end
	close func() error
}

// Rows gives the rows, each once; a row is for the time of its turn. The result is closed at the end.
func (r *Result) Rows() iter.Seq2[[]any, error] {
	return func(yield func([]any, error) bool) {
		defer r.Close()
		for {
			row, err := r.next()
			if err != nil {
				if !errors.Is(err, errEnd) {
					yield(nil, err)
				}
				return
			}
			if !yield(row, nil) {
				return
			}
		}
	}
}

var errEnd = errors.New("end of rows")

// Close ends it before its end; twice is as once.
func (r *Result) Close() error {
	if r.close == nil {
		return nil
	}
	f := r.close
	r.close = nil
	return f()
}

// Span selects rows of a table.
type Span struct {
	Device   string    // all where empty
	From, To time.Time // From is included, To is not; no limit where zero
	Columns  []string  // all where empty
	Newest   bool      // newest first
	Limit    int       // 1000 where zero
	// After begins behind the rows of a place, in the order of the span; with the beginning where zero.
	After Place
}

// Place is where rows stand in the order of time: by their time, and by their message where times are equal. The rows that
// a pipeline has made of one message may share one.
type Place struct {
	Time    time.Time
	Message message.ID
}

// IsZero says whether it is none.
func (p Place) IsZero() bool { return p == Place{} }

// Aggregation is a table's column over time.
type Aggregation struct {
	Span
	Every  time.Duration // bucket; one for all where zero
	By     []string      // groups
	Values []RollupValue
}

// Traced is a row that a message of a trace became.
type Traced struct {
	Dataset  string     `json:"dataset"`
	Time     time.Time  `json:"time"`
	Device   string     `json:"device,omitempty"`
	Subject  string     `json:"subject"`
	Message  message.ID `json:"message_id"`
	Recorded time.Time  `json:"recorded"`
}

// Stats is how much there is of a table.
type Stats struct {
	Rows   int64     `json:"rows"`
	Oldest time.Time `json:"oldest,omitzero"` // by time
	Newest time.Time `json:"newest,omitzero"`
	Last   time.Time `json:"last_recorded,omitzero"` // when the last one was recorded
	Bytes  int64     `json:"bytes,omitempty"`        // on disk, where the engine can tell
}

// Store is a database. All methods may be called from any number of goroutines.
type Store interface {
	// Engine says what it is, for a person: `duckdb /var/lib/naru/…`, `postgresql host/database`.
	Engine() string
	// Ensure makes the table and its roll-ups, or changes them: columns are added, and widened from int to double. What
	// would lose data is refused. A roll-up that is new is filled from the rows there are.
	Ensure(ctx context.Context, t Table) error
	// Tables are those that were ensured, by name.
	Tables(ctx context.Context) ([]Table, error)
	// Mark is how far a source was loaded.
	Mark(ctx context.Context, s Source) (Mark, error)
	// Load loads a batch, all of it or nothing. It gives ErrMoved, ErrNoTable, or the database's error.
	Load(ctx context.Context, b *Batch) (Loaded, error)
	// Query answers one statement that only reads, with arguments for $1, $2… It is taken to come from an enemy: it reaches
	// the tables and their roll-ups, and nothing else of the database or the machine. A *RefusedError is the asker's mistake.
	Query(ctx context.Context, sql string, args []any, l Limits) (*Result, error)
	// Latest is the newest row of a device by time, or of each device where none is named.
	Latest(ctx context.Context, table, device string) (*Result, error)
	// Range gives rows by time and message.
	Range(ctx context.Context, table string, s Span) (*Result, error)
	// Aggregate gives `time`, at which a bucket begins, the groups and the values, by time.
	Aggregate(ctx context.Context, table string, a Aggregation) (*Result, error)
	// ByTrace finds the rows that the messages of a trace became, in all tables.
	ByTrace(ctx context.Context, trace string) ([]Traced, error)
	// Export writes the rows from (included) to (not) by time to a file of Parquet, which is there whole or not at all,
	// and says how many they are.
	Export(ctx context.Context, table string, from, to time.Time, file string) (int64, error)
	// Trim deletes rows recorded before a time, and says how many.
	Trim(ctx context.Context, table string, before time.Time) (int64, error)
	Stats(ctx context.Context, table string) (Stats, error)
	// Close ends it. What is under way fails.
	Close() error
}

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// Valid says what is wrong with a table.
func (t *Table) Valid() error {
	if !nameForm.MatchString(t.Name) {
		return fmt.Errorf("table %q: want small letters, digits and _, at most 63", t.Name)
	}
	types := map[string]Type{}
	for _, c := range System {
		types[c.Name] = c.Type
	}
	for _, c := range t.Columns {
		switch {
		case !nameForm.MatchString(c.Name):
			return fmt.Errorf("table %s: column %q: want small letters, digits and _, at most 63", t.Name, c.Name)
		case types[c.Name] != "":
			return fmt.Errorf("table %s: column %s is there twice, or a system column", t.Name, c.Name)
		case !slices.Contains([]Type{Bool, Int, Double, Text, Time, JSON, Bytes}, c.Type):
			return fmt.Errorf("table %s: column %s: there is no type %q", t.Name, c.Name, c.Type)
		}
		types[c.Name] = c.Type
	}
	for _, k := range t.Key {
		if types[k] == "" {
			return fmt.Errorf("table %s: key: there is no column %s", t.Name, k)
		}
	}
	names := []string{t.Name}
	for _, r := range t.Rollups {
		if !nameForm.MatchString(r.Name) || slices.Contains(names, r.Name) {
			return fmt.Errorf("table %s: roll-up %q: want a name of its own, of small letters, digits and _", t.Name, r.Name)
		}
		names = append(names, r.Name)
		if r.Every < time.Second || r.Every%time.Second != 0 {
			return fmt.Errorf("table %s: roll-up %s: every %v: want whole seconds", t.Name, r.Name, r.Every)
		}
		for _, b := range r.By {
			if types[b] == "" {
				return fmt.Errorf("table %s: roll-up %s: by: there is no column %s", t.Name, r.Name, b)
			}
		}
		if err := t.validValues(r.Values, types); err != nil {
			return fmt.Errorf("table %s: roll-up %s: %w", t.Name, r.Name, err)
		}
	}
	return nil
}

func (t *Table) validValues(values []RollupValue, types map[string]Type) error {
	if len(values) == 0 {
		return errors.New("it has no values")
	}
	for _, v := range values {
		for _, f := range v.Functions {
			switch {
			case types[v.Column] == "":
				return fmt.Errorf("there is no column %s", v.Column)
			case !slices.Contains(functions, f):
				return fmt.Errorf("there is no function %s; there are %s", f, strings.Join(functions, ", "))
			case (f == "avg" || f == "sum") && types[v.Column] != Int && types[v.Column] != Double:
				return fmt.Errorf("%s of column %s, which is no number", f, v.Column)
			}
		}
		if len(v.Functions) == 0 {
			return fmt.Errorf("column %s: want functions, some of %s", v.Column, strings.Join(functions, ", "))
		}
	}
	return nil
}

// all are the table's columns, those of the system among them.
func (t *Table) all() []Column { return append(slices.Clone(System), t.Columns...) }

func (t *Table) column(name string) (Column, bool) {
	for _, c := range t.all() {
		if c.Name == name {
			return c, true
		}
	}
	return Column{}, false
}
