package etl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/message"
)

// lab is a platform of a log, a database and the component.
type lab struct {
	*componenttest.Rig
	t     *testing.T
	hub   *storage.Hub
	store storage.Store
	sent  int
}

func newLab(t *testing.T) *lab {
	s, err := storage.OpenDuck(t.Context(), filepath.Join(t.TempDir(), "data.duckdb"), storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return labOf(t, s)
}

// labOf is a lab with its rows in a database that is open.
func labOf(t *testing.T, s storage.Store) *lab {
	l := &lab{Rig: componenttest.New(t), t: t, hub: storage.NewHub(), store: s}
	t.Cleanup(func() {
		l.Stop()
		s.Close()
	})
	l.hub.Set(s, nil)
	return l
}

func (l *lab) start() { l.Start(With(l.hub)) }

// say says readings for a dataset.
func (l *lab) say(dataset string, data ...string) (list []*message.Message) {
	for _, d := range data {
		l.sent++
		list = append(list, componenttest.Message(message.NewSubject("data_platform", dataset, "d-1"), "d-1", d))
	}
	l.Say(list...)
	return list
}

// put brings documents in force.
func (l *lab) put(yaml string) {
	l.t.Helper()
	docs, err := model.Parse("test", []byte(yaml))
	if err != nil {
		l.t.Fatal(err)
	}
	b, stop := l.book()
	defer stop()
	for i := range docs {
		if _, err := b.Put(l.t.Context(), &docs[i], model.Change{By: "test"}); err != nil {
			l.t.Fatal(err)
		}
	}
}

// book is another process's view of the documents, until it is stopped.
func (l *lab) book() (b *model.Book, stop func()) {
	ctx, cancel := context.WithCancel(l.t.Context())
	b = model.NewBook(l.Bus, slog.New(slog.NewTextHandler(io.Discard, nil)), time.Now)
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	<-b.Synced()
	return b, func() { cancel(); <-done }
}

// query gives rows as a text, with spaces between values and lines between rows.
func (l *lab) query(sql string) string {
	l.t.Helper()
	r, err := l.store.Query(l.t.Context(), sql, nil, storage.Limits{})
	if err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
	var lines []string
	for row, err := range r.Rows() {
		if err != nil {
			l.t.Fatal(err)
		}
		lines = append(lines, strings.Trim(fmt.Sprint(row), "[]"))
	}
	return strings.Join(lines, "\n")
}

func (l *lab) want(sql, want string) {
	l.t.Helper()
	if got := l.query(sql); got != want {
		l.t.Errorf("%s:\n%s\nwant\n%s", sql, got, want)
	}
}

const rooms = `
dataset: rooms
version: 1
owner: us
doc: Rooms.
fields:
  - {name: celsius, type: double, min: -90, max: 150, required: true}
  - {name: seq, type: int}
  - {name: label, type: text}
`

func TestAMessageIsARowAndWhatDoesNotFitIsDead(t *testing.T) {
	l := newLab(t)
	l.put(rooms)
	l.start()
	ms := l.say("rooms", `{"celsius": 20.5, "seq": 1}`, `{"celsius": 200, "seq": 2}`, `{"seq": 3}`, `{"celsius": "warm"}`, `nonsense`, `{"celsius": -1, "label": "cold"}`)
	rep := l.Settled(Name+"/rooms", "data_platform")
	if rep.Outcomes[component.Handled].Count != 2 || rep.Outcomes[component.Dead].Count != 4 {
		t.Errorf("%+v", rep.Outcomes)
	}
	l.want("SELECT celsius, seq, label, device, subject FROM rooms ORDER BY recorded", "20.5 1 <nil> d-1 data_platform.rooms.d-1\n-1 <nil> cold d-1 data_platform.rooms.d-1")
	l.want("SELECT message_id, trace_id FROM rooms ORDER BY recorded LIMIT 1", ms[0].ID.String()+" "+ms[0].Trace.ID.String())
	var details []string
	_, dead := l.Buried(Name+"/rooms", 4)
	for _, d := range dead {
		details = append(details, d.Detail)
	}
	if all := strings.Join(details, "\n"); len(dead) != 4 || strings.Count(all, "celsius") < 3 || !strings.Contains(all, "150") {
		t.Errorf("letters say:\n%s", all)
	}
	l.Settled(Name+"/telemetry", "data_platform") // the other dataset heard none of them
}

// TestWhatComesAgainIsNoSecondRow: the component has lost what it had committed, and the database has not.
func TestWhatComesAgainIsNoSecondRow(t *testing.T) {
	l := newLab(t)
	l.put(rooms)
	l.start()
	for i := range 20 {
		l.say("rooms", fmt.Sprintf(`{"celsius": %d, "seq": %d}`, i, i), `{"celsius": 1000}`)
	}
	first := l.Settled(Name+"/rooms", "data_platform")
	l.Stop()
	if err := os.RemoveAll(filepath.Join(l.Dir, Name)); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.say("rooms", `{"celsius": 20, "seq": 20}`)
	again := l.Settled(Name+"/rooms", "data_platform")
	l.want("SELECT count(*), count(DISTINCT message_id), count(DISTINCT seq) FROM rooms", "21 21 21")
	if again.Outcomes[component.Handled].Count < first.Outcomes[component.Handled].Count {
		t.Errorf("before %+v, after %+v", first.Outcomes, again.Outcomes)
	}
}

// deaf is a database whose answers get lost: a load is done, and the loader does not hear of it.
type deaf struct {
	storage.Store
	lose atomic.Int32
	lost chan struct{}
}

func (d *deaf) Load(ctx context.Context, b *storage.Batch) (storage.Loaded, error) {
	done, err := d.Store.Load(ctx, b)
	if err == nil && d.lose.Add(-1) >= 0 {
		if d.lose.Load() == 0 {
			close(d.lost)
		}
		return storage.Loaded{}, errors.New("the connection broke")
	}
	return done, err
}

// TestTheFatesOfALoadAreTheSameAfterACrash, though the model is another one by then.
func TestTheFatesOfALoadAreTheSameAfterACrash(t *testing.T) {
	l := newLab(t)
	l.put(strings.Replace(rooms, "doc: Rooms.", "doc: Rooms.\nkey: [seq]", 1))
	d := &deaf{Store: l.store, lost: make(chan struct{})}
	d.lose.Store(1)
	l.hub.Set(d, nil)
	l.say("rooms", `{"celsius": 1, "seq": 1}`, `{"celsius": 200, "seq": 2}`, `{"celsius": 1, "seq": 1}`)
	l.start()
	<-d.lost
	l.Stop()
	l.put(strings.NewReplacer("doc: Rooms.", "doc: Rooms.\nkey: [seq]", "max: 150", "max: 500", "version: 1", "version: 2").Replace(rooms))
	l.start()
	l.say("rooms", `{"celsius": 200, "seq": 3}`)
	rep := l.Settled(Name+"/rooms", "data_platform")
	// The first two batches may have been loaded together or not; what was loaded before the crash was decided by the old model.
	if rep.Outcomes[component.Handled].Count+rep.Outcomes[component.Dead].Count+rep.Outcomes[component.NotMatched].Count != 4 || rep.Outcomes[component.NotMatched].Count != 1 {
		t.Errorf("%+v", rep.Outcomes)
	}
	l.want("SELECT count(*), count(DISTINCT message_id) FROM rooms", fmt.Sprintf("%d %[1]d", rep.Outcomes[component.Handled].Count))
}

// TestOfEqualKeysOneMessageIsTheRow, in one load or in several; the others did not concern the table, and are counted.
func TestOfEqualKeysOneMessageIsTheRow(t *testing.T) {
	l := newLab(t)
	l.put(strings.Replace(rooms, "fields:", "key: [seq]\nfields:", 1))
	l.say("rooms", `{"celsius": 1, "seq": 1}`, `{"celsius": 2, "seq": 1}`, `{"celsius": 3, "seq": 2}`)
	l.start()
	l.Settled(Name+"/rooms", "data_platform")
	l.say("rooms", `{"celsius": 4, "seq": 2}`)
	rep := l.Settled(Name+"/rooms", "data_platform")
	if rep.Outcomes[component.Handled].Count != 2 || rep.Outcomes[component.NotMatched].Count != 2 || l.metric("naru_etl_duplicates_total", "rooms") != 2 {
		t.Errorf("%+v", rep.Outcomes)
	}
	l.want("SELECT celsius FROM rooms ORDER BY seq", "1\n3")
}

// TestALoadWhoseAnswerWasLostIsAskedAbout: what was committed is not loaded again, nor waited for for ever.
func TestALoadWhoseAnswerWasLostIsAskedAbout(t *testing.T) {
	l := newLab(t)
	l.put(rooms)
	d := &deaf{Store: l.store, lost: make(chan struct{})}
	d.lose.Store(1)
	l.hub.Set(d, nil)
	l.say("rooms", `{"celsius": 1, "seq": 1}`, `{"celsius": 200, "seq": 2}`, `{"celsius": 1, "seq": 3}`)
	l.start()
	<-d.lost
	l.say("rooms", `{"celsius": 1, "seq": 4}`)
	rep := l.Settled(Name+"/rooms", "data_platform")
	if rep.Outcomes[component.Handled].Count != 3 || rep.Outcomes[component.Dead].Count != 1 {
		t.Errorf("%+v", rep.Outcomes)
	}
	l.want("SELECT seq FROM rooms ORDER BY seq", "1\n3\n4")
}

func TestAPipelineCleansAndWhatItBreaksIsDead(t *testing.T) {
	l := newLab(t)
	l.put(rooms + `---
pipeline: rooms
dataset: rooms
steps:
  - sql: SELECT * REPLACE (celsius * 10 AS celsius) FROM input WHERE celsius IS NOT NULL -- no reading
  - sql: SELECT * REPLACE (upper(label) AS label) FROM input;
`)
	l.start()
	l.say("rooms", `{"celsius": 2, "label": "a"}`, `{"label": "b"}`, `{"celsius": 90, "label": "c"}`, `{"celsius": 3}`)
	rep := l.Settled(Name+"/rooms", "data_platform")
	if rep.Outcomes[component.Handled].Count != 2 || rep.Outcomes[component.Dead].Count != 1 || rep.Outcomes[component.NotMatched].Count != 1 {
		t.Errorf("%+v", rep.Outcomes)
	}
	l.want("SELECT celsius, label FROM rooms ORDER BY recorded", "20 A\n30 <nil>")
	if _, dead := l.Buried(Name+"/rooms", 1); len(dead) != 1 || !strings.Contains(dead[0].Detail, "celsius") || !strings.Contains(dead[0].Detail, "900") {
		t.Errorf("letters: %+v", dead)
	}
}

// TestAPoisonRowDiesAloneInTheMiddleOfItsBatch: a step that fails because of one value takes that message out, with field,
// value and what was expected, and the rest goes on.
func TestAPoisonRowDiesAloneInTheMiddleOfItsBatch(t *testing.T) {
	l := newLab(t)
	l.put(rooms + "---\npipeline: rooms\ndataset: rooms\nsteps: [{sql: SELECT * FROM input}, {sql: SELECT * REPLACE (CAST(label AS INTEGER) * 2 AS celsius) FROM input}]\n")
	var ms []*message.Message
	for i := range 40 {
		label := fmt.Sprint(i)
		if i == 17 || i == 39 {
			label = "warm"
		}
		ms = append(ms, l.say("rooms", fmt.Sprintf(`{"seq": %d, "label": %q}`, i, label))...)
	}
	l.start() // now that all are there, they are one batch
	rep := l.Settled(Name+"/rooms", "data_platform")
	if rep.Outcomes[component.Handled].Count != 38 || rep.Outcomes[component.Dead].Count != 2 {
		t.Errorf("%+v", rep.Outcomes)
	}
	l.want("SELECT count(*), count(DISTINCT seq), sum(celsius), count(*) FILTER (WHERE seq IN (17, 39)) FROM rooms", "38 38 1448 0")
	letters, dead := l.Buried(Name+"/rooms", 2)
	if len(dead) != 2 || letters[0].Cause != ms[17].ID {
		t.Fatalf("letters: %+v", dead)
	}
	for _, d := range dead {
		if d.Reason != message.ETLError || !strings.Contains(d.Detail, "pipeline rooms, step 2: label is 'warm': ") || !strings.Contains(d.Detail, "INT32") {
			t.Errorf("%s: %s", d.Reason, d.Detail)
		}
	}
}

// metric gives a metric of a dataset, as it is told now; -1 where it is not.
func (l *lab) metric(name, dataset string) float64 {
	all, err := l.Host.Metrics.Gather()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.Metric {
			if f.GetName() == name && len(m.Label) == 1 && m.Label[0].GetValue() == dataset {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

// stands waits until a dataset stands still because of something, and looks at what is told of it meanwhile: that its breaker
// is open, and a lag that grows though nothing is loaded.
func (l *lab) stands(dataset, why string) {
	l.t.Helper()
	l.Await(Name+"/"+dataset, "data_platform", func(r component.Report) bool {
		return strings.Contains(r.Fault, "breaker open since 2") && strings.Contains(r.Fault, "its oldest message waits for") && strings.Contains(r.Fault, why)
	})
	if l.metric("naru_etl_breaker_open", dataset) != 1 {
		l.t.Error("the breaker is not told to be open")
	}
	lag := l.metric("naru_etl_lag_seconds", dataset)
	l.Until(func() bool { return l.metric("naru_etl_lag_seconds", dataset) > lag }, func() string { return "the lag does not grow" })
}

// TestAWrongPipelineHoldsItsDatasetAndIsCured: what cannot be done with any row is no message's fault, and burns none.
func TestAWrongPipelineHoldsItsDatasetAndIsCured(t *testing.T) {
	l := newLab(t)
	l.put(rooms + "---\npipeline: rooms\ndataset: rooms\nsteps: [{sql: SELECT * FROM input}, {sql: SELECT nothing FROM input}]\n")
	l.start()
	l.say("rooms", `{"celsius": 2}`)
	l.say("telemetry", `{"celsius": 7, "more": [1, 2]}`)
	l.stands("rooms", "pipeline rooms: step 2: Binder Error: Referenced column \"nothing\" not found")
	l.Settled(Name+"/telemetry", "data_platform")
	l.want("SELECT celsius, CAST(rest AS VARCHAR) FROM telemetry", `7 {"more":[1,2]}`)
	if l.metric("naru_etl_breaker_open", "telemetry") != 0 {
		t.Error("the other dataset stands still too")
	}
	l.put("pipeline: rooms\ndataset: rooms\nsteps: [{sql: SELECT * FROM input}]\n")
	if rep := l.Settled(Name+"/rooms", "data_platform"); rep.Outcomes[component.Handled].Count != 1 || rep.Fault != "" {
		t.Errorf("%+v", rep)
	}
	if l.metric("naru_etl_breaker_open", "rooms") != 0 || l.metric("naru_etl_watermark_seconds", "rooms") < 1e9 {
		t.Error("the metrics do not tell that it goes on")
	}
}

// TestAPipelineThatItsDatasetGrewOutOfStandsStill: the model has changed, and the pipeline's last step does not fit it.
func TestAPipelineThatItsDatasetGrewOutOfStandsStill(t *testing.T) {
	l := newLab(t)
	l.put(rooms + "---\npipeline: rooms\ndataset: rooms\nsteps: [{sql: 'SELECT *, celsius * 1.8 + 32 AS fahrenheit FROM input'}]\n")
	l.start()
	l.say("rooms", `{"celsius": 10}`)
	l.stands("rooms", "column fahrenheit of the last step is none of dataset rooms")
	l.put(strings.Replace(rooms, "version: 1", "version: 2", 1) + "  - {name: fahrenheit, type: double}\n")
	l.stands("rooms", "has column fahrenheit twice; write SELECT * REPLACE (… AS fahrenheit)")
	l.put("pipeline: rooms\ndataset: rooms\nsteps: [{sql: SELECT * REPLACE (celsius * 1.8 + 32 AS fahrenheit) FROM input}]\n")
	l.Settled(Name+"/rooms", "data_platform")
	l.want("SELECT celsius, fahrenheit FROM rooms", "10 50")
}

// TestWhatWaitsForADatasetThatIsRemovedDies at once, with the reason, and not when the process begins anew.
func TestWhatWaitsForADatasetThatIsRemovedDies(t *testing.T) {
	l := newLab(t)
	l.start()
	l.put(rooms + "---\npipeline: rooms\ndataset: rooms\nsteps: [{sql: SELECT nothing FROM input}]\n")
	l.say("rooms", `{"celsius": 2}`, `{"celsius": 3}`)
	l.stands("rooms", "nothing")
	b, stop := l.book()
	defer stop()
	for _, kind := range []string{model.KindPipeline, model.KindDataset} {
		if _, err := b.Remove(t.Context(), kind, "rooms", model.Change{By: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	if rep := l.Settled(Name+"/rooms", "data_platform"); rep.Outcomes[component.Dead].Count != 2 || rep.Fault != "" {
		t.Errorf("%+v", rep)
	}
	if _, dead := l.Buried(Name+"/rooms", 2); len(dead) != 2 || dead[0].Reason != message.DatasetUnknown {
		t.Errorf("dead: %+v", dead)
	}
}

func TestADatabaseThatIsAwayIsAFaultAndLosesNothing(t *testing.T) {
	l := newLab(t)
	l.hub.Set(nil, errors.New("its disk is gone"))
	l.start()
	for i := range 5 {
		l.say("telemetry", fmt.Sprintf(`{"seq": %d}`, i))
	}
	l.stands("telemetry", "its disk is gone")
	l.hub.Set(l.store, nil)
	l.Settled(Name+"/telemetry", "data_platform")
	l.want("SELECT count(*), count(DISTINCT seq) FROM telemetry", "5 5")
}

// sulking is a database that one table cannot be loaded into, be it that it refuses or does not answer.
type sulking struct {
	storage.Store
	table string
	hangs atomic.Bool
	over  chan struct{}
}

func (s *sulking) Load(ctx context.Context, b *storage.Batch) (storage.Loaded, error) {
	select {
	case <-s.over:
	default:
		if b.Table == s.table && s.hangs.Load() {
			select {
			case <-s.over:
			case <-ctx.Done():
				return storage.Loaded{}, ctx.Err()
			}
		} else if b.Table == s.table {
			return storage.Loaded{}, errors.New("its table is locked")
		}
	}
	return s.Store.Load(ctx, b)
}

// TestASinkThatFailsOrHangsForOneDatasetConcernsNoOther, while what waits for it is told in time, and is a row once it goes on.
func TestASinkThatFailsOrHangsForOneDatasetConcernsNoOther(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		t.Run(fmt.Sprintf("hangs=%v", hangs), func(t *testing.T) {
			l := newLab(t)
			l.put(rooms)
			s := &sulking{Store: l.store, table: "rooms", over: make(chan struct{})}
			s.hangs.Store(hangs)
			l.hub.Set(s, nil)
			l.start()
			for i := range 10 {
				l.say("rooms", fmt.Sprintf(`{"celsius": 1, "seq": %d}`, i))
				l.say("telemetry", fmt.Sprintf(`{"seq": %d}`, i))
			}
			l.Settled(Name+"/telemetry", "data_platform")
			l.want("SELECT count(*), count(DISTINCT seq) FROM telemetry", "10 10")
			if hangs {
				lag := l.metric("naru_etl_lag_seconds", "rooms")
				l.Until(func() bool { return l.metric("naru_etl_lag_seconds", "rooms") > max(lag, 0.1) }, func() string { return "the lag does not grow" })
			} else {
				l.stands("rooms", "its table is locked")
			}
			l.want("SELECT count(*) FROM rooms", "0")
			close(s.over)
			l.Settled(Name+"/rooms", "data_platform")
			l.want("SELECT count(*), count(DISTINCT seq) FROM rooms", "10 10")
		})
	}
}

func TestAModelThatGrowsUnderLoadLosesNothing(t *testing.T) {
	l := newLab(t)
	l.put(rooms)
	l.start()
	for i := range 30 {
		if i == 10 {
			l.put(strings.Replace(rooms, "version: 1", "version: 2", 1) + "  - {name: bar, type: double}\n")
		}
		l.say("rooms", fmt.Sprintf(`{"celsius": 1, "seq": %d, "bar": 2}`, i))
	}
	l.Settled(Name+"/rooms", "data_platform")
	l.say("rooms", `{"celsius": 1, "seq": 30, "bar": 2}`)
	l.Settled(Name+"/rooms", "data_platform")
	l.want("SELECT count(*), count(DISTINCT seq), count(bar) FILTER (WHERE seq = 30) FROM rooms", "31 31 1")
}

// choosy is a database that does not hold rows with a label, as one does not that has a bound which no model knows.
type choosy struct{ storage.Store }

// Load as in [storage.Store].
func (c choosy) Load(ctx context.Context, b *storage.Batch) (storage.Loaded, error) {
	kept := *b
	kept.Rows = nil
	var refused []storage.Refused
	for i := range b.Rows {
		if b.Rows[i].Values[2] == nil {
			kept.Rows = append(kept.Rows, b.Rows[i])
			continue
		}
		r := storage.Refused{Row: i, Why: "label is " + b.Rows[i].Values[2].(string) + ", which the database does not hold"}
		refused = append(refused, r)
		kept.Upto.Fates = append(kept.Upto.Fates, r.Fate(b.Rows[i].Position))
	}
	done, err := c.Store.Load(ctx, &kept)
	done.Refused = refused
	return done, err
}

func TestARowThatTheDatabaseDoesNotHoldDiesAlone(t *testing.T) {
	l := newLab(t)
	l.hub.Set(choosy{l.store}, nil)
	l.put(rooms)
	l.start()
	l.say("rooms", `{"celsius": 1}`, `{"celsius": 2, "label": "odd"}`, `{"celsius": 3}`)
	rep := l.Settled(Name+"/rooms", "data_platform")
	if rep.Outcomes[component.Handled].Count != 2 || rep.Outcomes[component.Dead].Count != 1 {
		t.Errorf("%+v", rep.Outcomes)
	}
	l.want("SELECT celsius FROM rooms ORDER BY celsius", "1\n3")
	letters, dead := l.Buried(Name+"/rooms", 1)
	if len(dead) != 1 || dead[0].Reason != message.SchemaMismatch || !strings.Contains(dead[0].Detail, "label is odd") || len(letters) != 1 {
		t.Errorf("%+v", dead)
	}
}

func TestAStepMakesNoDeviceThatNoDatabaseHolds(t *testing.T) {
	l := newLab(t)
	l.put(rooms + `
---
pipeline: named
doc: Names.
dataset: rooms
steps:
  - sql: SELECT * REPLACE (CASE label WHEN 'nul' THEN 'a' || chr(0) WHEN 'long' THEN repeat('a', 10000) ELSE label END AS device) FROM input
`)
	l.start()
	l.say("rooms", `{"celsius": 1, "label": "nul"}`, `{"celsius": 2, "label": "d-7"}`, `{"celsius": 3, "label": "long"}`)
	if rep := l.Settled(Name+"/rooms", "data_platform"); rep.Outcomes[component.Dead].Count != 2 {
		t.Errorf("%+v", rep.Outcomes)
	}
	l.want("SELECT device, celsius FROM rooms", "d-7 2")
}

// TestEachFateIsItsOwnMessages where a batch has messages of several datasets, as the bridge writes them.
func TestEachFateIsItsOwnMessages(t *testing.T) {
	l := newLab(t)
	l.put(rooms)
	log, err := l.Bus.Log(t.Context(), message.DataPlatform, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := log.Writer(t.Context(), bus.WriterOptions{Name: "test", Owner: message.NewID(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	dead, alive := map[message.ID]bool{}, map[string]bool{}
	var batch []*message.Message
	for i := range 300 {
		dataset, data := "rooms", fmt.Sprintf(`{"celsius": 1, "seq": %d}`, i)
		switch {
		case i%3 == 1:
			dataset = "telemetry"
		case i%5 == 0:
			data = `{"celsius": 1000}`
		}
		m := componenttest.Message(message.NewSubject("data_platform", dataset, "d-1"), "d-1", data)
		if dataset == "rooms" {
			if i%5 == 0 {
				dead[m.ID] = true
			} else {
				alive[m.ID.String()] = true
			}
		}
		if batch = append(batch, m); len(batch) == 60 {
			if _, err := w.Write(t.Context(), bus.Position{}, nil, batch); err != nil {
				t.Fatal(err)
			}
			batch = nil
		}
	}
	l.start()
	rep := l.Settled(Name+"/rooms", "data_platform")
	l.Settled(Name+"/telemetry", "data_platform")
	if rep.Outcomes[component.Handled].Count != uint64(len(alive)) || rep.Outcomes[component.Dead].Count != uint64(len(dead)) {
		t.Errorf("%+v; want %d rows and %d dead", rep.Outcomes, len(alive), len(dead))
	}
	letters, _ := l.Buried(Name+"/rooms", len(dead))
	for _, m := range letters {
		if !dead[m.Cause] {
			t.Errorf("a letter is of %s, which does not die", m.Cause)
		}
		delete(dead, m.Cause)
	}
	for _, id := range strings.Split(l.query("SELECT message_id FROM rooms"), "\n") {
		if !alive[id] {
			t.Errorf("a row is of %s, which dies, or is there twice", id)
		}
		delete(alive, id)
	}
	if len(dead) != 0 || len(alive) != 0 {
		t.Errorf("without a letter are %v, without a row %v", dead, alive)
	}
	l.want("SELECT count(*) FROM telemetry", "100")
}
