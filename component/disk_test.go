package component

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// small is a file system with so much space, below one directory, and with faults to order.
type small struct {
	vfs.FS
	below string
	mu    sync.Mutex
	left  int64
	more  int64 // comes after each second refusal
	times int   // refused
	fault func(op, name string) error
}

func (s *small) give(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left += n
}

func (s *small) order(f func(op, name string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// take takes up to n bytes of space.
func (s *small) take(op, name string, n int64) (int64, error) {
	if !strings.Contains(name, s.below) {
		return n, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil {
		if err := s.fault(op, name); err != nil {
			return 0, err
		}
	}
	if s.left < n {
		n, s.left = s.left, 0
		if s.times++; s.times%2 == 0 {
			s.left = s.more
		}
		return n, syscall.ENOSPC
	}
	s.left -= n
	return n, nil
}

func (s *small) file(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &smallFile{File: f, s: s, name: name}, nil
}

func (s *small) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if _, err := s.take("create", name, 1); err != nil {
		return nil, err
	}
	f, err := s.FS.Create(name, c)
	return s.file(name, f, err)
}

func (s *small) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.ReuseForWrite(from, to, c)
	return s.file(to, f, err)
}

// smallFile can be closed while it is being used, as a file of the system can, and one in memory cannot.
type smallFile struct {
	vfs.File
	s    *small
	name string

	mu     sync.RWMutex
	closed bool
}

// using calls f unless the file is closed.
func (f *smallFile) using(do func() (int, error)) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return 0, os.ErrClosed
	}
	return do()
}

func (f *smallFile) Write(p []byte) (int, error) {
	n, full := f.s.take("write", f.name, int64(len(p)))
	m, err := f.using(func() (int, error) { return f.File.Write(p[:n]) })
	return m, errors.Join(err, full)
}

func (f *smallFile) Read(p []byte) (int, error) {
	return f.using(func() (int, error) { return f.File.Read(p) })
}

func (f *smallFile) ReadAt(p []byte, off int64) (int, error) {
	return f.using(func() (int, error) { return f.File.ReadAt(p, off) })
}

func (f *smallFile) Preallocate(off, n int64) error {
	_, err := f.using(func() (int, error) { return 0, f.File.Preallocate(off, n) })
	return err
}

func (f *smallFile) SyncTo(n int64) (full bool, err error) {
	_, err = f.using(func() (_ int, err error) { full, err = f.File.SyncTo(n); return 0, err })
	return full, err
}

func (f *smallFile) Sync() error     { return f.synced(f.File.Sync) }
func (f *smallFile) SyncData() error { return f.synced(f.File.SyncData) }

func (f *smallFile) synced(sync func() error) error {
	if _, err := f.s.take("sync", f.name, 0); err != nil {
		return err
	}
	_, err := f.using(func() (int, error) { return 0, sync() })
	return err
}

func (f *smallFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	f.closed = true
	return f.File.Close()
}

// TestStoreLosesNothingOnADiskThatIsFullAgainAndAgain writes much more than there is space, which comes in small pieces
// whenever the store waits for it: log, tables and manifest all meet the end of the space.
func TestStoreLosesNothingOnADiskThatIsFullAgainAndAgain(t *testing.T) {
	fs := &small{FS: vfs.NewMem(), left: 1000, more: 1 << 20}
	open := func() *store {
		s, err := openStore(t.Context(), fs, "store", slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	value := func(i int) []byte { return bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 50_000) }
	const values = 250 // 25 MB, more than a table in memory
	for i := range values {
		if err := s.set(fmt.Appendf(nil, "u%03d", i), value(i)); err != nil {
			t.Fatal(err)
		}
		if err := s.commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.close(func() {}); err != nil {
		t.Fatal(err)
	}
	s = open()
	for i := range values {
		if v, err := get(s.db, fmt.Appendf(nil, "u%03d", i)); err != nil || !bytes.Equal(v, value(i)) {
			t.Fatalf("value %d has %d bytes, %v", i, len(v), err)
		}
	}
	if err := s.close(func() {}); err != nil {
		t.Fatal(err)
	}
	if fs.times < 50 {
		t.Errorf("there was no space %d times only", fs.times)
	}
}

// keeping counts messages, and keeps so many bytes of each.
func keeping(name string, size int) Spec {
	return Define(Spec{Name: name, Doc: "keeps", Hears: []message.Pattern{"device.*.telemetry"}, State: Local}, struct{}{},
		func(Env, struct{}) (*Part, error) {
			return &Part{Handle: func(_ context.Context, tx Tx, m *message.Message) error {
				tx.Set([]byte(m.Data), bytes.Repeat(m.Data[:1], size))
				return nil
			}}, nil
		})
}

// beside starts a component on a small disk, and one beside it that has all the space there is.
func beside(r *rig, fs vfs.FS, size int) {
	r.t.Helper()
	r.host = &Host{Bus: r.bus, Catalog: catalog.Default(), Dir: r.dir, Node: "n1", Specs: []Spec{keeping("operator.tight", size), keeping("operator.roomy", 10)}, fs: fs}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.host.Run(ctx) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				r.t.Error(err)
			}
		})
	}
}

func (r *rig) settled(consumer string, n uint64) {
	r.t.Helper()
	rep := r.await(consumer, "device", func(rep Report) bool { return total(rep) == n && rep.Fault == "" })
	if o, f := owed(rep); o != f {
		r.t.Errorf("%s: accepted %+v, finished %+v", consumer, o, f)
	}
}

func TestComponentStandsStillWhileItsDiskIsFullAndGoesOnByItself(t *testing.T) {
	r := newRig(t)
	fs := &small{FS: vfs.NewMem(), below: "operator.tight", left: 1 << 20}
	beside(r, fs, 100_000)
	for i := range 20 {
		r.say(reading("d", fmt.Sprint(i)))
	}
	r.settled("operator.roomy", 20)
	r.await("operator.tight", "device", func(rep Report) bool { return strings.HasPrefix(rep.Fault, "storage_low: its store waits") })
	fs.give(1 << 30)
	r.settled("operator.tight", 20)
	for _, h := range r.host.Health() {
		if h.Restarts > 0 || h.State != "running" {
			t.Errorf("%s is %s after %d restarts", h.Name, h.State, h.Restarts)
		}
	}
}

func TestComponentThatWaitsForSpaceStopsInTime(t *testing.T) {
	r := newRig(t)
	fs := &small{FS: vfs.NewMem(), below: "operator.tight", left: 10} // not even enough to open the store
	beside(r, fs, 100)
	r.say(reading("d", "1"))
	r.settled("operator.roomy", 1)
	for starting := false; !starting; {
		for _, h := range r.host.Health() {
			starting = starting || h.State == "starting" && strings.HasPrefix(h.Fault, "storage_low")
		}
	}
	began := time.Now()
	r.stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestBrokenDiskFailsItsComponentAlone has what a store cannot survive happen where the store's own goroutines meet it.
func TestBrokenDiskFailsItsComponentAlone(t *testing.T) {
	once := func(op, part string) func(string, string) error {
		var met bool
		return func(o, name string) error {
			if met || o != op || !strings.Contains(name, part) {
				return nil
			}
			met = true
			return syscall.EIO
		}
	}
	for name, fault := range map[string]func(string, string) error{
		"a sync of the log":                    once("sync", ".log"),
		"a write to the log":                   once("write", ".log"),
		"a new log":                            once("create", ".log"),
		"a table":                              once("write", ".sst"),
		"the manifest":                         once("write", "MANIFEST"),
		"a sync of the manifest":               once("sync", "MANIFEST"),
		"no space when what is there is saved": func(op, name string) error { return map[bool]error{true: syscall.ENOSPC}[op == "sync"] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			fs := &small{FS: vfs.NewMem(), below: "operator.tight", left: 1 << 40}
			beside(r, fs, 1<<20)
			r.say(reading("d", "0"))
			r.settled("operator.tight", 1)
			fs.order(fault)
			const n = memtableBytes>>20 + 4 // so that a table in memory is full and its log is followed by another
			for i := range n {
				r.say(reading("d", fmt.Sprint(i+1)))
			}
			r.settled("operator.roomy", n+1)
			restarts := func() int {
				for _, h := range r.host.Health() {
					if h.Name == "operator.roomy" && h.Restarts > 0 {
						t.Fatal("its neighbour failed too")
					}
					if h.Name == "operator.tight" {
						return h.Restarts
					}
				}
				return 0
			}
			r.await("operator.roomy", "device", func(Report) bool { return restarts() > 0 })
			fs.order(nil)
			r.settled("operator.tight", n+1)
			r.stop()
		})
	}
}

// TestStoreThatCannotGoOnEndsNoProcess because the store calls Fatalf from goroutines of its own.
func TestStoreThatCannotGoOnEndsNoProcess(t *testing.T) {
	s, err := openStore(t.Context(), vfs.NewMem(), "store", slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	go storeLog{slog.New(slog.DiscardHandler), s.disk}.Fatalf("the %s failed", "manifest")
	if err := s.intact(t.Context()); err == nil || !strings.Contains(err.Error(), "the manifest failed") {
		t.Errorf("it says %v", err)
	}
	if err := s.set([]byte("u"), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.commit(t.Context()); err == nil || !strings.Contains(err.Error(), "the manifest failed") {
		t.Errorf("a commit says %v", err)
	}
	if err := s.close(func() {}); err != nil {
		t.Error(err)
	}
}

// A store that is being opened asks for its files' descriptors; a component that is stopped meanwhile closes them.
func TestDiskMayEndWhileItsFilesAreAskedForTheirDescriptors(t *testing.T) {
	for range 20 {
		d := newDisk(nil, nil)
		f, err := d.Create(t.TempDir()+"/log", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		was := f.Fd()
		var end sync.WaitGroup
		end.Go(func() { d.fail(errors.New("stopped")) })
		if now := f.Fd(); now != was {
			t.Errorf("the descriptor was %d and is %d", was, now)
		}
		end.Wait()
	}
}

// slowLock lets something happen between that a lock was taken and that who asked has it.
type slowLock struct {
	vfs.FS
	taken func()
}

func (s slowLock) Lock(name string) (io.Closer, error) {
	l, err := s.FS.Lock(name)
	s.taken()
	return l, err
}

// A child that is declared anew ends an opening wherever it is; a lock that stayed would keep the store from this
// process for ever.
func TestOpeningThatIsBrokenOffAtItsLockLeavesTheStoreFree(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	locked, goOn := make(chan struct{}), make(chan struct{})
	fs := slowLock{vfs.Default, func() { close(locked); <-goOn }}
	ended := make(chan error, 1)
	go func() {
		_, err := openStore(ctx, fs, dir, slog.New(slog.DiscardHandler), nil)
		ended <- err
	}()
	<-locked
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("the opening ended with %v", err)
	}
	close(goOn)
	for late := time.After(time.Minute); ; { // what is left of the opening lets go of it when it comes to
		s, err := openStore(t.Context(), nil, dir, slog.New(slog.DiscardHandler), nil)
		if err == nil {
			if err := s.close(func() {}); err != nil {
				t.Error(err)
			}
			return
		}
		select {
		case <-late:
			t.Fatal(err)
		default:
		}
	}
}
