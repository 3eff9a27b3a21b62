// How a table and its roll-ups come to be, and what they may become.

package storage

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

func same(a, b *Table) bool { return reflect.DeepEqual(*a, *b) }

// ensure brings a table from what it is, which is nil for none, to what it is to be.
func ensure(have, want *Table, owners map[string]string, d dialect, run func(string) error) error {
	for _, name := range append([]string{want.Name}, rollupNames(want)...) {
		if of := owners[name]; of != "" && of != want.Name {
			return fmt.Errorf("the name %s is taken by dataset %s", name, of)
		}
	}
	do := func(list ...string) error {
		for _, s := range list {
			if err := run(s); err != nil {
				return fmt.Errorf("%s: %w", firstLine(s), err)
			}
		}
		return nil
	}
	if have == nil {
		if err := do(creation(want, d)...); err != nil {
			return err
		}
	} else if err := alter(have, want, d, do); err != nil {
		return err
	}
	for _, r := range want.Rollups {
		if have != nil {
			if slices.ContainsFunc(have.Rollups, func(o Rollup) bool { return reflect.DeepEqual(o, r) }) {
				if err := do(widen(have, want, &r, d)...); err != nil {
					return err
				}
				continue
			}
			if err := do("DROP TABLE IF EXISTS " + quote(r.Name)); err != nil {
				return err
			}
		}
		if err := do("CREATE TABLE " + quote(r.Name) + " AS " + rolled(want, &r, "", d)); err != nil {
			return err
		}
	}
	if have != nil {
		for _, r := range have.Rollups {
			if !slices.Contains(rollupNames(want), r.Name) {
				if err := do("DROP TABLE IF EXISTS " + quote(r.Name)); err != nil {
					return err
				}
			}
		}
	}
	if d.after != nil {
		if err := do(d.after(want)...); err != nil {
			return err
		}
	}
	shape, err := json.Marshal(want)
	if err != nil {
		return err
	}
	return do("INSERT INTO " + d.own + "tables (name, shape) VALUES (" + text(want.Name) + ", " + text(string(shape)) + ") ON CONFLICT (name) DO UPDATE SET shape = excluded.shape")
}

// widen are the statements that widen the columns of a roll-up as those were that they are made of.
func widen(have, want *Table, r *Rollup, d dialect) (list []string) {
	widened := func(name string) bool {
		old, _ := have.column(name)
		c, _ := want.column(name)
		return old.Type == Int && c.Type == Double
	}
	add := func(column string) {
		list = append(list, "ALTER TABLE "+quote(r.Name)+" ALTER COLUMN "+quote(column)+" TYPE "+d.types[Double])
	}
	for _, b := range r.By {
		if widened(b) {
			add(b)
		}
	}
	for _, v := range r.Values {
		for _, f := range v.Functions {
			if f != "count" && f != "avg" && widened(v.Column) {
				add(v.Column + "_" + f)
			}
		}
	}
	return list
}

func rollupNames(t *Table) (list []string) {
	for _, r := range t.Rollups {
		list = append(list, r.Name)
	}
	return list
}

func creation(t *Table, d dialect) []string {
	if d.create != nil {
		return d.create(t)
	}
	return []string{"CREATE TABLE " + quote(t.Name) + " (" + columnsOf(t, d) + ")"}
}

func columnsOf(t *Table, d dialect) string {
	var list []string
	for _, c := range t.all() {
		s := quote(c.Name) + " " + d.types[c.Type]
		if c.Name != "device" && c.Name != "trace_id" && slices.Contains(System, c) {
			s += " NOT NULL"
		}
		if kept, ok := d.kept[c.Name]; ok {
			s += " " + kept
		}
		list = append(list, s)
	}
	return strings.Join(list, ", ")
}

// alter adds and widens columns. Columns that are wanted no more stay, and are null from then on: what is there is not
// thrown away because a model says less.
func alter(have, want *Table, d dialect, do func(...string) error) error {
	kept := slices.Clone(want.Columns)
	for _, old := range have.Columns {
		if _, ok := want.column(old.Name); !ok {
			return fmt.Errorf("column %s is in the table and not in the model any more; its values would be lost. Keep the field, or begin a new dataset", old.Name)
		}
	}
	for _, c := range kept {
		old, ok := have.column(c.Name)
		switch {
		case !ok:
			if err := do("ALTER TABLE " + quote(want.Name) + " ADD COLUMN " + quote(c.Name) + " " + d.types[c.Type]); err != nil {
				return err
			}
		case old.Type == c.Type:
		case old.Type == Int && c.Type == Double:
			if err := do("ALTER TABLE " + quote(want.Name) + " ALTER COLUMN " + quote(c.Name) + " TYPE " + d.types[c.Type]); err != nil {
				return err
			}
		default:
			return fmt.Errorf("column %s is %s in the table and %s in the model; only int becomes double. Begin a new dataset", c.Name, old.Type, c.Type)
		}
	}
	return nil
}
