package api

import (
	"net/http"
	"slices"

	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/data_platform/storage"
)

// Dataset is a table as this API tells of it.
type Dataset struct {
	Name      string         `json:"name"`
	Doc       string         `json:"doc,omitempty"`
	Owner     string         `json:"owner,omitempty"`
	Columns   []Column       `json:"columns"`
	Key       []string       `json:"key,omitempty"`
	Rollups   []string       `json:"rollups,omitempty"`
	Retention string         `json:"retention,omitempty"`
	Stats     *storage.Stats `json:"stats,omitempty"`
}

// Column is one of its columns.
type Column struct {
	Name string       `json:"name"`
	Type storage.Type `json:"type"`
	Unit string       `json:"unit,omitempty"`
	Doc  string       `json:"doc,omitempty"`
}

func (a *api) datasets(w http.ResponseWriter, r *http.Request) (any, error) {
	return a.describe(w, r, "")
}

func (a *api) dataset(w http.ResponseWriter, r *http.Request) (any, error) {
	list, err := a.describe(w, r, r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// describe tells of one dataset, or of all.
func (a *api) describe(w http.ResponseWriter, r *http.Request, only string) ([]Dataset, error) {
	s, end, err := a.open(w, r, a.light)
	if err != nil {
		return nil, err
	}
	defer end()
	tables, err := s.Tables(r.Context())
	if err != nil {
		return nil, a.fault(w, r, s, err)
	}
	set := a.book.Set()
	list := []Dataset{}
	for i := range tables {
		t := &tables[i]
		if only != "" && t.Name != only {
			continue
		}
		var m *model.Dataset
		if set != nil {
			m = set.Datasets[t.Name]
		}
		d := described(t, m)
		st, err := s.Stats(r.Context(), t.Name)
		if err != nil {
			return nil, a.fault(w, r, s, err)
		}
		d.Stats = &st
		list = append(list, d)
	}
	if only != "" && len(list) == 0 {
		return nil, a.fault(w, r, s, storage.ErrNoTable)
	}
	return list, nil
}

func described(t *storage.Table, m *model.Dataset) Dataset {
	d := Dataset{Name: t.Name, Key: t.Key}
	if m != nil {
		d.Doc, d.Owner = m.Doc, m.Owner
	}
	for _, c := range append(slices.Clone(storage.System), t.Columns...) {
		column := Column{Name: c.Name, Type: c.Type}
		if m != nil {
			if f := m.Column(c.Name); f != nil {
				column.Unit, column.Doc = f.Unit, f.Doc
			}
		}
		d.Columns = append(d.Columns, column)
	}
	for _, u := range t.Rollups {
		d.Rollups = append(d.Rollups, u.Name)
	}
	if t.Retention > 0 {
		d.Retention = t.Retention.String()
	}
	return d
}
