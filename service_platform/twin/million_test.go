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

// fillStore makes twins as the handlers do, each with a record of its history, but says nothing: the engine for tests
// would keep it in memory.
func fillStore(d *desk, twins int) {
	d.t.Helper()
	const part = 5000
	for from := 0; from < twins; from += part {
		err := d.twins.env.Change(d.t.Context(), func(tx component.Tx) error {
			for i := from; i < min(from+part, twins); i++ {
				now := d.now()
				was, x := &shadow.Doc{}, ref{fmt.Sprintf("device-%07d", i*7919%twins), ""}
				by := shadow.Cause{ID: message.NewID(now), Source: message.ClientSource(x.device, x.device)}
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
			d.t.Fatal(err)
		}
	}
}

// onDisk is how many bytes all files below a directory have.
func onDisk(tb testing.TB, dir string) (size int64) {
	tb.Helper()
	if err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		size += info.Size()
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	return size
}

// BenchmarkAMillionTwins is how long they take to be made, without what is said of them, to be listed, and what they take on disk.
func BenchmarkAMillionTwins(b *testing.B) {
	const twins = 1_000_000
	for b.Loop() {
		d := open(b, "")
		began := time.Now()
		fillStore(d, twins)
		b.ReportMetric(twins/time.Since(began).Seconds(), "twins/s")
		began = time.Now()
		var l List
		d.get("/api/v1/twins?limit=1000&prefix=device-05", &l)
		b.ReportMetric(float64(time.Since(began))/float64(time.Millisecond), "ms/list")
		if l.All != twins {
			b.Fatalf("there are %d", l.All)
		}
		d.r.Stop()
		b.ReportMetric(float64(onDisk(b, d.r.Dir))/twins, "B/twin")
	}
}
