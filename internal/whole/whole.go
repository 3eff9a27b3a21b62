// Package whole writes files that are there whole or not at all, whenever the process or the machine stops.
package whole

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mark is in the name of every file that is being written; one that is found later was left by a crash.
const mark = ".naru-tmp-"

// Write puts data at path so that after a crash at any moment there is the old file or the new one, whole: written
// beside it, synced, renamed, and the directory synced so that the name is on disk too. It is never readable by more
// than mode says, not even for a moment.
func Write(path string, data []byte, mode os.FileMode) error {
	f, err := Create(path)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Drop()
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Keep(mode)
}

// File is one that is being written, and not at its path before Keep.
type File struct {
	*os.File
	path string
}

// Create begins a file that is too large to be held, as Write does. It ends with Keep or Drop.
func Create(path string) (*File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+mark+"*") // 0600 from its first moment
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return &File{f, path}, nil
}

// Drop leaves nothing of it; after Keep it does nothing.
func (f *File) Drop() {
	_ = f.Close()
	_ = os.Remove(f.Name())
}

// Keep puts it in its place, whole and on disk; where that fails, nothing of it is left.
func (f *File) Keep(mode os.FileMode) (err error) {
	defer func() {
		if err != nil {
			f.Drop()
			err = fmt.Errorf("write %s: %w", f.path, err)
		}
	}()
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), f.path); err != nil {
		return err
	}
	return Sync(filepath.Dir(f.path))
}

// Directory makes a directory and what is missing above it, with their names on disk.
func Directory(path string, mode os.FileMode) error {
	var parents []string // of what is missing
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); !errors.Is(err, os.ErrNotExist) {
			break
		}
		parents = append(parents, filepath.Dir(at))
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	for _, p := range parents {
		if err := Sync(p); err != nil {
			return err
		}
	}
	return nil
}

// Sync puts the names in a directory on disk.
func Sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// Sweep removes what a crash left half-written in a directory. Nobody may be writing there.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for half-written files: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && strings.Contains(e.Name(), mark) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove a half-written file: %w", err)
			}
		}
	}
	return nil
}
