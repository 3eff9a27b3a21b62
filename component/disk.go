package component

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/naru-platform/naru/message"
)

const (
	spaceFirst = 20 * time.Millisecond // between two looks whether there is space again,
	spaceMost  = time.Second           // growing to
	closeWait  = 5 * time.Second       // for a store to close; one that waits for space does not
)

// disk is what a component's store stands on, for one opening of it. It stands between the store and the file system,
// since the store would end the process where it cannot write, and a fault is to stay in its room:
//
//   - Where the file system is full, what is written waits until there is space, and is written then. Nothing is lost,
//     and nobody is told that something is stored which is not.
//   - Whatever else goes wrong is final for this opening: the disk is broken, so that its component fails and opens the
//     store anew, beginning with what is on the disk. Nothing that is left of this opening can write any more.
//
// The store's goroutines are not told of a failed write: some would answer with a panic that nothing can catch. They
// stop where they are, for ever, which costs their memory; so a process takes that a few times only.
type disk struct {
	vfs.FS
	waits func(why string) // told when waiting for space begins, and with "" when it is over

	broken chan struct{} // closed at the end, and cause is set

	mu     sync.Mutex
	opened bool // what goes wrong before is told to who opens
	cause  error
	open   map[io.Closer]struct{} // files and locks, for the end
	number int                    // of those that wait for space
}

func newDisk(fs vfs.FS, waits func(string)) *disk {
	if fs == nil {
		fs = vfs.Default
	}
	if waits == nil {
		waits = func(string) {}
	}
	return &disk{FS: fs, waits: waits, broken: make(chan struct{}), open: map[io.Closer]struct{}{}}
}

// fail ends this opening, for the first reason that is given. Files and locks are let go of, so that the store can be
// opened anew while something of this opening still lingers.
func (d *disk) fail(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cause != nil {
		return
	}
	d.cause = why
	close(d.broken)
	for c := range d.open {
		_ = c.Close() // what it holds is not trusted any more
	}
	clear(d.open)
}

// err is why it is broken; nil while it is not.
func (d *disk) err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cause
}

// abandoned is why a store was left as it lay, with the memory that it had.
type abandoned struct{ why error }

// Error is the reason.
func (a *abandoned) Error() string { return a.why.Error() }

// Unwrap gives the reason.
func (a *abandoned) Unwrap() error { return a.why }

// end is where a goroutine of a broken store stops.
func (d *disk) end() { select {} }

// ready says that the store is open.
func (d *disk) ready() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opened = true
}

// do does something with the store that may never return where the store cannot go on.
func (d *disk) do(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() {
		var err error
		defer func() { done <- err }()
		defer catch(&err)
		err = f()
	}()
	var err error
	select {
	case err = <-done:
		if cause := d.err(); cause != nil {
			err = cause // which says more
		}
	case <-d.broken:
		err = &abandoned{d.err()}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		d.fail(err)
	}
	return err
}

// spacious does something that takes space, again and again while there is none.
func (d *disk) spacious(f func() error) error {
	waiting, pause := false, spaceFirst
	defer func() {
		if waiting {
			d.waiting(-1, nil)
		}
	}()
	for {
		if d.err() != nil {
			d.end()
		}
		err := f()
		if !full(err) {
			return err
		}
		if !waiting {
			waiting = true
			d.waiting(1, err)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-d.broken:
		}
		t.Stop()
		pause = min(2*pause, spaceMost)
	}
}

func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

func (d *disk) waiting(n int, err error) {
	d.mu.Lock()
	before := d.number
	d.number += n
	after := d.number
	d.mu.Unlock()
	switch {
	case before == 0:
		d.waits(fmt.Sprintf("%s: its store waits for space to write on: %v; free some, and it goes on by itself", message.StorageLow, err))
	case after == 0:
		d.waits("")
	}
}

// hold keeps a file, to be closed at the end.
func (d *disk) hold(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	fd := f.Fd()
	d.keep(f)
	return &diskFile{File: f, d: d, fd: fd}, nil
}

// keep keeps what was opened or locked, to be let go of at the end; where that has come meanwhile, it is let go of at once.
func (d *disk) keep(c io.Closer) {
	d.mu.Lock()
	broken := d.cause != nil
	if !broken {
		d.open[c] = struct{}{}
	}
	d.mu.Unlock()
	if broken {
		_ = c.Close() // nobody will use it
		d.end()
	}
}

// close lets go of something, unless the end has.
func (d *disk) close(c io.Closer) error {
	d.mu.Lock()
	_, open := d.open[c]
	delete(d.open, c)
	d.mu.Unlock()
	if !open {
		return nil
	}
	return c.Close()
}

// opens opens a file, waiting for the space that takes.
func (d *disk) opens(f func() (vfs.File, error)) (vfs.File, error) {
	var file vfs.File
	err := d.spacious(func() (err error) { file, err = f(); return err })
	return d.hold(file, err)
}

// Create waits for space.
func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.opens(func() (vfs.File, error) { return d.FS.Create(name, c) })
	return f, d.made(err)
}

// Open reads.
func (d *disk) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	return d.opens(func() (vfs.File, error) { return d.FS.Open(name, o...) })
}

// OpenReadWrite waits for space.
func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.opens(func() (vfs.File, error) { return d.FS.OpenReadWrite(name, c, o...) })
	return f, d.made(err)
}

// OpenDir is for syncing.
func (d *disk) OpenDir(name string) (vfs.File, error) {
	return d.opens(func() (vfs.File, error) { return d.FS.OpenDir(name) })
}

// ReuseForWrite waits for space.
func (d *disk) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.opens(func() (vfs.File, error) { return d.FS.ReuseForWrite(from, to, c) })
	return f, d.made(err)
}

// Link waits for space.
func (d *disk) Link(from, to string) error {
	return d.made(d.spacious(func() error { return d.FS.Link(from, to) }))
}

// Rename waits for space.
func (d *disk) Rename(from, to string) error {
	return d.made(d.spacious(func() error { return d.FS.Rename(from, to) }))
}

// MkdirAll waits for space.
func (d *disk) MkdirAll(dir string, perm os.FileMode) error {
	return d.made(d.spacious(func() error { return d.FS.MkdirAll(dir, perm) }))
}

// Remove is refused at the end.
func (d *disk) Remove(name string) error {
	return d.spacious(func() error { return d.FS.Remove(name) })
}

// RemoveAll is refused at the end.
func (d *disk) RemoveAll(name string) error {
	return d.spacious(func() error { return d.FS.RemoveAll(name) })
}

// Lock waits for space, and is let go of at the end.
func (d *disk) Lock(name string) (io.Closer, error) {
	var lock io.Closer
	err := d.spacious(func() (err error) { lock, err = d.FS.Lock(name); return err })
	if err != nil {
		return nil, err
	}
	d.keep(lock)
	return &diskLock{lock, d}, nil
}

// made says how it went to make, rename or link something.
func (d *disk) made(err error) error {
	d.mu.Lock()
	told := err == nil || !d.opened || errors.Is(err, os.ErrExist) || errors.Is(err, os.ErrNotExist)
	d.mu.Unlock()
	if !told {
		d.fail(fmt.Errorf("write to the store: %w", err))
		d.end()
	}
	return err
}

// Unwrap is the file system below.
func (d *disk) Unwrap() vfs.FS { return d.FS }

type diskLock struct {
	io.Closer
	d *disk
}

// Close lets go of the lock, once.
func (l *diskLock) Close() error { return l.d.close(l.Closer) }

// diskFile is an open file of a disk.
type diskFile struct {
	vfs.File
	d  *disk
	fd uintptr
}

// Fd is the descriptor it was opened with. The file itself must not be asked: the end may be closing it, and asking is
// the one thing that [os.File] does not guard against that.
func (f *diskFile) Fd() uintptr { return f.fd }

// Close closes the file, unless the end has.
func (f *diskFile) Close() error { return f.d.close(f.File) }

// Write writes all of p, waiting for space with what is left of it.
func (f *diskFile) Write(p []byte) (n int, err error) {
	err = f.d.spacious(func() error {
		m, err := f.File.Write(p[n:])
		n += m
		return err
	})
	return n, f.final(err)
}

// WriteAt writes all of p, waiting for space with what is left of it.
func (f *diskFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.d.spacious(func() error {
		m, err := f.File.WriteAt(p[n:], off+int64(n))
		n += m
		return err
	})
	return n, f.final(err)
}

// Preallocate is not worth waiting: what is not there beforehand is taken when it is written.
func (f *diskFile) Preallocate(offset, length int64) error {
	if f.d.err() != nil {
		f.d.end()
	}
	if err := f.File.Preallocate(offset, length); !full(err) {
		return f.final(err)
	}
	return nil
}

// Sync is final where it fails, also for lack of space: what was written before may be gone, and the next one would not
// say so.
func (f *diskFile) Sync() error { return f.sync(f.File.Sync) }

// SyncData as [diskFile.Sync].
func (f *diskFile) SyncData() error { return f.sync(f.File.SyncData) }

// SyncTo as [diskFile.Sync].
func (f *diskFile) SyncTo(length int64) (all bool, err error) {
	err = f.sync(func() (err error) { all, err = f.File.SyncTo(length); return err })
	return all, err
}

func (f *diskFile) sync(g func() error) error {
	if f.d.err() != nil {
		f.d.end()
	}
	return f.final(g())
}

// final breaks the disk where a write or a sync has failed.
func (f *diskFile) final(err error) error {
	if err != nil {
		f.d.fail(fmt.Errorf("write to the store: %w", err))
		f.d.end()
	}
	return nil
}
