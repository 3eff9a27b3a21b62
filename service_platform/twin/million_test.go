//go:build long

package twin

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/twin/shadow"
)

// TestAMillionTwinsFitIntoAGigabyte fills the store as the handlers do, each twin with a record of its history, but says
// nothing: the engine for tests would keep it in memory.
func TestAMillionTwinsFitIntoAGigabyte(t *testing.T) {
	const twins, part = 1_000_000, 5000
	d := open(t, "")
	began := time.Now()
	for from := 0; from < twins; from += part {
		err := d.twins.env.Change(t.Context(), func(tx component.Tx) error {
			for i := from; i < from+part; i++ {
				now := d.now()
				was, x := &shadow.Doc{}, ref{fmt.Sprintf("device-%07d", i*7919%twins), ""}
				by := shadow.Cause{ID: message.NewID(now), Source: "//naru/n1/mqtt/" + x.device}
				u, refused := was.Update([]byte(begin(i)), by, now, d.twins.limits)
				if refused != nil {
					return refused
				}
				if err := d.twins.store(tx, x, was, u.After); err != nil {
					return err
				}
				rec := u.Record(message.NewTrace(now).ID)
				tx.Set(recordKey(x, rec.Number), rec.Append(nil))
			}
			d.twins.cache.ended(true)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("filled in %v", time.Since(began))
	began = time.Now()
	var l List
	d.get("/api/v1/twins?limit=1000&prefix=device-05", &l)
	t.Logf("a list of %d of %d took %v", len(l.Twins), l.All, time.Since(began))
	began = time.Now()
	d.house()
	t.Logf("keeping house took %v", time.Since(began))
	d.r.Stop()
	var size int64
	if err := filepath.WalkDir(d.r.Dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		size += info.Size()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes on disk, %d a twin", size, size/twins)
	if l.All != twins || size > 1<<30 {
		t.Errorf("%d twins take %d bytes; want at most %d", l.All, size, 1<<30)
	}
}
