package etl

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message/operator"
)

// hourly is a dataset with a roll-up that takes a day of late data.
const hourly = `
dataset: rooms
version: 1
owner: us
doc: Rooms.
time: /ts
fields: [{name: celsius, type: double}, {name: seq, type: int}]
late: 25h
rollups: [{name: rooms_hour, every: 1h, by: [device], values: {celsius: [sum, count, max]}}]
`

// reading is one of d-1's at a time.
func reading(at time.Time, seq int) string {
	return fmt.Sprintf(`{"ts": %q, "celsius": %d, "seq": %d}`, at.UTC().Format(time.RFC3339Nano), seq%50, seq)
}

// rolled says that the roll-up is what the rows of a condition say.
func (l *lab) rolled(where string) {
	l.t.Helper()
	const is = `SELECT "time", device, rows, celsius_sum, celsius_count, celsius_max FROM rooms_hour`
	be := `SELECT time_bucket(INTERVAL '1 hour', "time"), device, count(*), sum(celsius), count(celsius), max(celsius) FROM rooms WHERE ` + where + ` GROUP BY 1, 2`
	if n := l.query("SELECT count(*) FROM rooms_hour"); n == "0" {
		l.t.Error("the roll-up is empty")
	}
	l.want("SELECT count(*) FROM (("+is+" EXCEPT "+be+") UNION ALL ("+be+" EXCEPT "+is+"))", "0")
}

// TestADayOfLateDataIsInTheRollUps: a device that was away for a day gives it back in any order while it goes on; what is later
// than allowed is a row, and is not in the roll-up.
func TestADayOfLateDataIsInTheRollUps(t *testing.T) {
	l := newLab(t)
	l.put(hourly)
	l.start()
	now := time.Now()
	seq := 0
	for range 20 { // from before it went away
		seq++
		l.say("rooms", reading(now.Add(-23*time.Hour).Add(time.Duration(seq)*time.Minute), seq))
	}
	l.Settled(Name+"/rooms", "data_platform")
	l.rolled("true")
	var back []string
	for i := range 144 {
		seq++
		back = append(back, reading(now.Add(-24*time.Hour).Add(time.Duration(i)*10*time.Minute), seq))
	}
	rand.Shuffle(len(back), func(i, j int) { back[i], back[j] = back[j], back[i] })
	for i, r := range back {
		l.say("rooms", r)
		if i%10 == 0 {
			seq++
			l.say("rooms", reading(time.Now(), seq))
		}
	}
	l.Settled(Name+"/rooms", "data_platform")
	l.rolled("true")
	if n := l.metric("naru_etl_late_total", "rooms"); n > 0 {
		t.Errorf("%v rows were too late", n)
	}
	for range 5 {
		seq++
		l.say("rooms", reading(now.Add(-27*time.Hour), seq))
	}
	rep := l.Settled(Name+"/rooms", "data_platform")
	l.want("SELECT count(*), count(DISTINCT seq) FROM rooms", fmt.Sprintf("%d %[1]d", seq))
	l.rolled("recorded - \"time\" <= INTERVAL '25 hours'")
	if n := l.metric("naru_etl_late_total", "rooms"); n != 5 || rep.Outcomes[component.Handled].Count != uint64(seq) {
		t.Errorf("%v rows were too late for the roll-up; %+v", n, rep.Outcomes)
	}
}

// TestASkewedClockOrdersNoRowsWrongly: a clock that is ahead, or began in 1970, is not believed, and the row's time is when the
// platform took it. One that is behind is taken for late data, which it cannot be told from.
func TestASkewedClockOrdersNoRowsWrongly(t *testing.T) {
	l := newLab(t)
	l.put(hourly)
	l.start()
	now := time.Now().Truncate(time.Microsecond)
	for i, at := range []time.Time{now.Add(time.Hour), now.AddDate(30, 0, 0), time.Unix(5, 0), time.Unix(0, 0).AddDate(29, 11, 0), now.Add(5 * time.Minute), now.Add(-72 * time.Hour), now.AddDate(-1, 0, 0)} {
		l.say("rooms", reading(at, i))
	}
	l.say("rooms", `{"ts": "yesterday", "seq": 7}`, `{"seq": 8}`, fmt.Sprintf(`{"seq": 9, "ts": %d}`, now.Add(-time.Minute).UnixMilli()))
	l.Settled(Name+"/rooms", "data_platform")
	l.want(`SELECT seq, CASE WHEN "time" = recorded THEN 'recorded' ELSE CAST(date_diff('minute', recorded, "time") AS VARCHAR) END FROM rooms ORDER BY seq`,
		strings.Join([]string{"0 recorded", "1 recorded", "2 recorded", "3 recorded", "4 5", "5 -4320", "6 " + fmt.Sprint(int(now.AddDate(-1, 0, 0).Sub(now).Minutes())), "7 recorded", "8 recorded", "9 -1"}, "\n"))
	l.want(`SELECT seq FROM rooms ORDER BY "time" DESC LIMIT 1`, "4") // five minutes are believed
	if n := l.metric("naru_etl_late_total", "rooms"); n != 2 {
		t.Errorf("%v rows are too late for the roll-up; want those of the clocks that are behind", n)
	}
}

// TestWhatIsFilledInFromLongAgoIsKept: retention counts from when the platform took a message, so what a device had kept for a
// year is kept as long as anything else; and the roll-up's windows of then, whose rows are gone, stay as they are.
func TestWhatIsFilledInFromLongAgoIsKept(t *testing.T) {
	l := newLab(t)
	l.put(strings.Replace(hourly, "late: 25h", "retention: 30d", 1)) // and late by any time
	l.start()
	year := time.Now().AddDate(-1, 0, 0)
	l.say("rooms", reading(year, 1), reading(time.Now().AddDate(0, 0, -20), 2), reading(time.Now(), 3))
	l.Settled(Name+"/rooms", "data_platform")
	if _, err := l.store.Trim(t.Context(), "rooms", time.Now().AddDate(0, 0, -30)); err != nil {
		t.Fatal(err)
	}
	l.want("SELECT seq FROM rooms ORDER BY seq", "1\n2\n3")
	l.want(`SELECT count(*) FROM rooms_hour`, "2") // twenty days are late, and counted; a year is not
	if n := l.metric("naru_etl_late_total", "rooms"); n != 1 {
		t.Errorf("%v rows were too late", n)
	}
	if _, err := l.store.Trim(t.Context(), "rooms", time.Now().Add(time.Minute)); err != nil { // a month later
		t.Fatal(err)
	}
	l.say("rooms", reading(year.Add(time.Second), 4))
	l.Settled(Name+"/rooms", "data_platform")
	l.want("SELECT seq FROM rooms", "4")
	l.want(`SELECT count(*) FROM rooms_hour`, "2")
}

// TestAModelAndItsPipelineChangeUnderLoad: each message is one row, whatever was in force when it came, and what is said once
// a change is done is as the change wants it.
func TestAModelAndItsPipelineChangeUnderLoad(t *testing.T) {
	l := newLab(t)
	const fields = "fields:\n  - {name: seq, type: int}\n  - {name: celsius, type: int}\n"
	set := func(version int, more string) string {
		return fmt.Sprintf("dataset: rooms\nversion: %d\nowner: us\ndoc: Rooms.\n%s%s", version, fields, more)
	}
	steps := func(sql string) string {
		return "---\npipeline: rooms\ndataset: rooms\nsteps: [{sql: \"" + sql + "\"}]\n"
	}
	l.put(set(1, ""))
	l.start()
	const all = 400
	var group sync.WaitGroup
	said := make(chan int, all)
	group.Go(func() {
		defer close(said)
		for i := range all {
			l.Say(componenttest.Message("data_platform.rooms.d-1", "d-1", fmt.Sprintf(`{"seq": %d, "celsius": 3, "bar": 2}`, i)))
			said <- i
		}
	})
	for _, yaml := range []string{
		set(2, "  - {name: bar, type: double}\n"),
		strings.Replace(set(3, "  - {name: bar, type: double}\n"), "celsius, type: int", "celsius, type: double", 1),
		steps("SELECT * REPLACE (celsius + 0.5 AS celsius) FROM input")[4:],
		steps("SELECT * REPLACE (celsius / 0 + nothing AS celsius) FROM input")[4:], // it stands still
		steps("SELECT * REPLACE (celsius * 2.5 AS celsius) FROM input")[4:],
	} {
		for range all / 8 {
			<-said
		}
		l.put(yaml)
	}
	for range said {
	}
	group.Wait()
	rep := l.Settled(Name+"/rooms", "data_platform")
	l.say("rooms", `{"seq": 400, "celsius": 3, "bar": 2}`)
	l.Settled(Name+"/rooms", "data_platform")
	l.want("SELECT count(*), count(DISTINCT seq), min(seq), max(seq), count(DISTINCT message_id) FROM rooms", "401 401 0 400 401")
	l.want("SELECT celsius, bar FROM rooms WHERE seq = 400", "7.5 2")
	l.want("SELECT count(*) FROM rooms WHERE celsius NOT IN (3, 3.5, 7.5)", "0")
	if rep.Outcomes[component.Handled].Count != all || rep.Fault != "" {
		t.Errorf("%+v", rep)
	}
}

// retry gives so many dead letters back to the dataset that they are of.
func (l *lab) retry(dataset string, n int) {
	letters, dead := l.Buried(Name+"/"+dataset, n)
	for i, d := range dead {
		raw, err := json.Marshal(operator.Retry{Letter: letters[i].ID, Consumer: Name + "/" + dataset, Log: d.Log, Position: d.Position, Original: d.Original})
		if err != nil {
			l.t.Fatal(err)
		}
		l.Say(componenttest.Message(operator.RetrySubject(Name+"/"+dataset), "", string(raw)))
	}
}

// TestALetterThatIsTriedAgainIsExactlyOneRow, whatever is loaded meanwhile, and however
// often it is tried.
func TestALetterThatIsTriedAgainIsExactlyOneRow(t *testing.T) {
	for _, key := range []string{"", "key: [seq]\n"} {
		t.Run("key="+strings.TrimSpace(key), func(t *testing.T) {
			l := newLab(t)
			yaml := strings.Replace(rooms, "fields:", key+"fields:", 1)
			pipe := func(cast string) string {
				return "pipeline: rooms\ndataset: rooms\nsteps: [{sql: 'SELECT * REPLACE (" + cast + " AS celsius) FROM input'}]\n"
			}
			l.put(yaml + "---\n" + pipe("CAST(label AS DOUBLE)"))
			l.start()
			for i := range 30 {
				label := fmt.Sprint(i)
				if i%3 == 0 {
					label += " C"
				}
				l.say("rooms", fmt.Sprintf(`{"seq": %d, "label": %q}`, i, label))
			}
			rep := l.Settled(Name+"/rooms", "data_platform")
			if rep.Outcomes[component.Dead].Count != 10 {
				t.Fatalf("%+v", rep.Outcomes)
			}
			l.retry("rooms", 10) // though nothing is mended: they die again
			l.Await(Name+"/rooms", "data_platform", func(r component.Report) bool {
				_, dead := l.Dead(Name + "/rooms")
				return len(dead) == 20 && r.Outcomes[component.Dead].Count == 10
			})
			l.put(pipe("CAST(replace(label, '' C'', '''') AS DOUBLE)"))
			for i := 30; i < 40; i++ {
				l.say("rooms", fmt.Sprintf(`{"seq": %d, "label": "%[1]d"}`, i))
			}
			l.Settled(Name+"/rooms", "data_platform")
			l.retry("rooms", 20) // each letter twice, since it has died twice
			l.Await(Name+"/rooms", "data_platform", func(r component.Report) bool {
				return r.Outcomes[component.Dead].Count == 0 && r.Outcomes[component.Handled].Count == 40 && r.Waiting.Count == 0
			})
			l.Stop()
			if err := os.RemoveAll(filepath.Join(l.Dir, Name)); err != nil { // all comes again from the log, and none by a letter
				t.Fatal(err)
			}
			l.start()
			l.Settled(Name+"/rooms", "data_platform")
			l.want("SELECT count(*), count(DISTINCT seq), count(DISTINCT message_id), sum(celsius) FROM rooms", "40 40 40 780")
			l.retry("rooms", 20) // once more, though they are rows
			l.say("rooms", `{"seq": 40, "label": "40"}`)
			l.Settled(Name+"/rooms", "data_platform")
			l.want("SELECT count(*), count(DISTINCT seq), count(DISTINCT message_id), sum(celsius) FROM rooms", "41 41 41 820")
		})
	}
}
