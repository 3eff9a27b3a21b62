package rule

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	docs "github.com/naru-platform/naru/component/book"
)

// files keeps the rules of a folder in the table, by one process at a time: what is in a file is the rule, and a file that
// went takes its rule with it. A file that cannot be read or does not compile changes nothing, and its fault is told.
type files struct {
	e      *Engine
	dir    string
	faults map[string]string // by file, as they were told
}

func (f *files) follow(ctx context.Context) {
	f.faults = map[string]string{}
	docs.Keep(ctx, f.e.env.Bus, "rules/files", f.e.env.Node, f.look)
}

// tell logs a fault once.
func (f *files) tell(file string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if f.faults[file] != text && text != "" {
		f.e.env.Log.Error("a file with a rule is not in force", "file", file, "error", err)
	}
	f.faults[file] = text
}

// look makes the table what the folder says.
func (f *files) look(ctx context.Context) {
	entries, err := os.ReadDir(f.dir)
	f.tell(f.dir, err)
	if err != nil {
		return
	}
	there := map[string]string{} // file by rule
	whole := true
	for _, entry := range entries {
		file := filepath.Join(f.dir, entry.Name())
		if entry.IsDir() || strings.HasPrefix(entry.Name(), ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)) {
			continue
		}
		raw, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var d *Document
		if err == nil {
			d, err = Parse(raw)
		}
		if err == nil && d.Name == "" {
			d.Name = strings.TrimSuffix(entry.Name(), filepath.Ext(file))
		}
		if err == nil && there[d.Name] != "" {
			err = fmt.Errorf("rule %s is in %s too", d.Name, there[d.Name])
		}
		if err == nil {
			there[d.Name] = file
			if d.Enabled == nil { // the file is the whole truth
				yes := true
				d.Enabled = &yes
			}
			_, _, err = f.e.book.put(ctx, d, act{by: "file", file: file})
		} else {
			whole = false
		}
		if ctx.Err() != nil {
			return
		}
		f.tell(file, err)
	}
	if !whole {
		return // the rule of a file that cannot be read may be in it
	}
	for _, k := range f.e.book.list() {
		if filepath.Dir(k.File) == f.dir && there[k.Name] != k.File && !k.Deleted {
			_, err := f.e.book.change(ctx, k.Name, act{by: "file", file: k.File, why: "its file is gone", do: remove})
			f.tell(k.File, err)
		}
	}
}
