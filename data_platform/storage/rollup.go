// Roll-ups: what their rows are, and which of them are computed anew.

package storage

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// rolled is the SELECT of a roll-up over the rows of a table.
func rolled(t *Table, r *Rollup, where string, d dialect) string {
	list, group := []string{d.bucket(r.Every, `t."time"`) + ` AS "time"`}, []string{"1"}
	for i, b := range r.By {
		list = append(list, "t."+quote(b))
		group = append(group, strconv.Itoa(i+2))
	}
	list = append(append(list, "count(*) AS rows"), values(t, r.Values, d)...)
	if t.Late > 0 {
		late := "t.recorded - t.\"time\" <= INTERVAL '" + strconv.FormatFloat(t.Late.Seconds(), 'f', -1, 64) + " seconds'"
		if where == "" {
			where = " WHERE " + late
		} else {
			where += " AND " + late
		}
	}
	return "SELECT " + strings.Join(list, ", ") + " FROM " + quote(t.Name) + " t" + where + " GROUP BY " + strings.Join(group, ", ")
}

func values(t *Table, list []RollupValue, d dialect) (out []string) {
	for _, v := range list {
		c, _ := t.column(v.Column)
		for _, f := range v.Functions {
			s := f + "(t." + quote(v.Column) + ")"
			if d.value != nil {
				s = d.value(f, c)
			}
			out = append(out, s+" AS "+quote(v.Column+"_"+f))
		}
	}
	return out
}

// rollup computes anew the buckets that rows fall into, and counts those that came too late.
func rollup(t *Table, rows []Row, but []int, done *Loaded, d dialect, run func(string, ...any) error) error {
	if len(t.Rollups) == 0 {
		return nil
	}
	skip := map[int]bool{}
	for _, i := range but {
		skip[i] = true
	}
	var times []time.Time
	for i := range rows {
		switch r := &rows[i]; {
		case skip[i]:
		case t.Late > 0 && r.Recorded.Sub(r.Time) > t.Late:
			done.Late++
		default:
			times = append(times, r.Time)
		}
	}
	for _, r := range t.Rollups {
		buckets := map[int64]bool{}
		for _, x := range times {
			buckets[bucketOf(x, r.Every)] = true
		}
		var starts []int64
		for b := range buckets {
			starts = append(starts, b)
		}
		slices.Sort(starts)
		// Neighbours are one range, so that a batch of one device's past is few statements.
		for i := 0; i < len(starts); {
			j := i + 1
			every := int64(r.Every / time.Second)
			for j < len(starts) && starts[j] == starts[j-1]+every {
				j++
			}
			from, to := time.Unix(starts[i], 0).UTC(), time.Unix(starts[j-1]+every, 0).UTC()
			if err := run("DELETE FROM "+quote(r.Name)+` WHERE "time" >= $1 AND "time" < $2`, from, to); err != nil {
				return err
			}
			if err := run("INSERT INTO "+quote(r.Name)+" "+rolled(t, &r, ` WHERE t."time" >= $1 AND t."time" < $2`, d), from, to); err != nil {
				return err
			}
			i = j
		}
	}
	return nil
}

// origin is where buckets are counted from: a Monday, as in both engines.
var origin = time.Date(2000, 1, 3, 0, 0, 0, 0, time.UTC).Unix()

func bucketOf(t time.Time, every time.Duration) int64 {
	e := int64(every / time.Second)
	n := t.Unix() - origin
	n -= ((n % e) + e) % e
	return n + origin
}
