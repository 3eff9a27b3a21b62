package etl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/naru-platform/naru/bus/bustest"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/internal/postgrestest"
)

// TestAFullDiskUnderTheDatabaseHoldsWhatComesAndLosesNothing: the dataset stands still and says so, again and again, and goes on
// by itself when there is space; each message is one row, also after the database was opened anew.
func TestAFullDiskUnderTheDatabaseHoldsWhatComesAndLosesNothing(t *testing.T) {
	dir, ok := bustest.SmallDisk(t, "64m")
	if !ok {
		return
	}
	l := newLab(t)
	file := filepath.Join(dir, "data.duckdb")
	small, err := storage.OpenDuck(t.Context(), file, storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Stop(); small.Close() }) // before its disk goes
	l.store = small
	l.hub.Set(small, nil)
	l.put(rooms)
	l.start()
	sent := 0
	say := func(n int) {
		for range n {
			l.say("rooms", fmt.Sprintf(`{"celsius": 1, "seq": %d, "label": %q}`, sent, strings.Repeat(fmt.Sprintf("%08x", sent*7919), 500)))
			sent++
		}
	}
	say(50)
	l.fullAtTimes(filepath.Join(dir, "filler"), func() { say(100) }, func(fault string) bool { return strings.Contains(fault, "load into rooms") }, func() {
		l.want("SELECT count(*), count(DISTINCT seq), count(DISTINCT message_id) FROM rooms", fmt.Sprintf("%d %[1]d %[1]d", sent))
	})
	l.Stop()
	if err := small.Close(); err != nil {
		t.Fatal(err)
	}
	if l.store, err = storage.OpenDuck(t.Context(), file, storage.Options{}); err != nil {
		t.Fatal(err)
	}
	defer l.store.Close()
	l.want("SELECT count(*), count(DISTINCT seq), sum(length(label)) FROM rooms", fmt.Sprintf("%d %[1]d %d", sent, sent*4000))
	if _, dead := l.Dead(Name + "/rooms"); len(dead) != 0 {
		t.Errorf("a full disk has burned %d messages: %s", len(dead), dead[0].Detail)
	}
}

// TestAFullDiskUnderPostgreSQLHoldsWhatComesAndLosesNothing does so with the files of a database on a small disk, and those of its server elsewhere.
func TestAFullDiskUnderPostgreSQLHoldsWhatComesAndLosesNothing(t *testing.T) {
	dir, ok := bustest.SmallDisk(t, "64m")
	if !ok {
		return
	}
	server, err := postgrestest.New(t.TempDir(), "fsync = off")
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.Stat(server.Data())
	if err != nil {
		t.Fatal(err)
	}
	place, owner := filepath.Join(dir, "rows"), files.Sys().(*syscall.Stat_t)
	if err := errors.Join(os.Chmod(dir, 0o711), os.Mkdir(place, 0o700), os.Chown(place, int(owner.Uid), int(owner.Gid))); err != nil {
		t.Fatal(err)
	}
	l, _ := newPostgresLab(t, server, place)
	l.put(rooms)
	l.start()
	sent := 0
	say := func(n int) {
		for range n {
			l.say("rooms", fmt.Sprintf(`{"celsius": 1, "seq": %d, "label": %q}`, sent, strings.Repeat(fmt.Sprintf("%08x", sent*7919), 100)))
			sent++
		}
	}
	say(50)
	l.fullAtTimes(filepath.Join(dir, "filler"), func() { say(200) }, func(fault string) bool {
		return strings.Contains(fault, "No space left on device") && strings.Contains(fault, "the server's disk is full: make room there; naru goes on by itself")
	}, func() {
		l.want("SELECT count(*), count(DISTINCT seq), count(DISTINCT message_id), sum(length(label))::bigint FROM rooms", fmt.Sprintf("%d %[1]d %[1]d %d", sent, sent*800))
	})
	if _, dead := l.Dead(Name + "/rooms"); len(dead) != 0 {
		t.Errorf("a full disk has burned %d messages: %s", len(dead), dead[0].Detail)
	}
}

// fullAtTimes fills the disk under rooms while something is said, three times: they stand still with such a fault, and all is there once there
// is space again.
func (l *lab) fullAtTimes(filler string, say func(), such func(fault string) bool, whole func()) {
	l.t.Helper()
	l.Settled(Name+"/rooms", "data_platform")
	for round := range 3 {
		fill(l.t, filler)
		say()
		l.Await(Name+"/rooms", "data_platform", func(r component.Report) bool {
			return strings.Contains(r.Fault, "breaker open since 2") && such(r.Fault)
		})
		if l.metric("naru_etl_breaker_open", "rooms") != 1 {
			l.t.Errorf("round %d: the breaker is not told to be open", round)
		}
		if err := os.Remove(filler); err != nil {
			l.t.Fatal(err)
		}
		l.Settled(Name+"/rooms", "data_platform")
		whole()
	}
}

// fill takes all space of a disk.
func fill(t *testing.T, filler string) {
	t.Helper()
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
