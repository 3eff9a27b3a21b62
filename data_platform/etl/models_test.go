package etl

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/message"
)

// TestTheFilesOfAFolderAreInForceAsTheyChange: what is wrong with one changes nothing, and what is gone is free.
func TestTheFilesOfAFolderAreInForceAsTheyChange(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		temporary := filepath.Join(dir, "."+name)
		if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temporary, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	const doubles = "pipeline: double\ndataset: rooms\nsteps: [{sql: SELECT * REPLACE (celsius * 2 AS celsius) FROM input}]\n"
	write("a-pipeline.yaml", doubles) // before its dataset, by name
	write("rooms.yaml", rooms)
	write("notes.txt", "no YAML")
	raw, err := json.Marshal(map[string]string{"models": dir})
	if err != nil {
		t.Fatal(err)
	}
	l.Config[Name] = raw
	l.start()
	entry := func(kind, name string) (found model.Entry) {
		b, stop := l.book()
		defer stop()
		for _, e := range b.Entries() {
			if e.Kind == kind && e.Name == name {
				found = e
			}
		}
		return found
	}
	l.Until(func() bool { return entry("dataset", "rooms").Version == 1 && entry("pipeline", "double").Version == 1 }, func() string { return "the files are not in force" })
	if e := entry("dataset", "rooms"); e.By != "file" || e.File != filepath.Join(dir, "rooms.yaml") {
		t.Errorf("%+v", e)
	}
	write("rooms.yaml", strings.Replace(rooms, "type: text", "type: int", 1)) // what would not fit the rows that are there
	write("more.yaml", "dataset: more\nversion: 1\nowner: us\ndoc: More.\nfields: [{name: n, type: int}]\n")
	l.Until(func() bool { return entry("dataset", "more").Version == 1 }, func() string { return "a new file is not seen" })
	if e := entry("dataset", "rooms"); e.Version != 1 || !strings.Contains(e.YAML, "label, type: text") {
		t.Errorf("a step that is refused has changed something: %+v", e)
	}
	write("rooms.yaml", strings.Replace(rooms, "version: 1", "version: 2", 1)+"  - {name: bar, type: double}\n")
	l.Until(func() bool { return entry("dataset", "rooms").Version == 2 }, func() string { return "a changed file is not seen" })
	l.say("rooms", `{"celsius": 3, "bar": 1}`)
	l.Settled(Name+"/rooms", message.DataPlatform)
	l.want("SELECT celsius, bar FROM rooms", "6 1")

	b, stop := l.book()
	defer stop()
	docs, err := model.Parse("by hand", []byte(strings.Replace(doubles, "* 2", "* 3", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(t.Context(), &docs[0], model.Change{By: "me"}); err == nil || !strings.Contains(err.Error(), "a-pipeline.yaml: change it there") {
		t.Errorf("a document of a file is changed elsewhere: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "a-pipeline.yaml")); err != nil {
		t.Fatal(err)
	}
	l.Until(func() bool { return entry("pipeline", "double").File == "" }, func() string { return "it is not free" })
	if e := entry("pipeline", "double"); e.Deleted {
		t.Error("it went with its file, and rows are stored otherwise from now on")
	}
	if _, err := b.Put(t.Context(), &docs[0], model.Change{By: "me"}); err != nil {
		t.Error(err)
	}
}
