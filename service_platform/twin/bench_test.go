package twin

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// begin is a device's first update: four desired and ten reported fields, of which one drifts.
func begin(i int) string {
	return fmt.Sprintf(`{"state":{"desired":{"interval":30,"mode":"eco","target":21.5,"wifi":{"channel":6}},"reported":{"battery":%d,"firmware":"1.4.%d","interval":30,"location":{"lat":37.5665,"lon":126.978},"mode":"eco","signal":-61,"temperature":21.25,"uptime":%d,"wifi":{"channel":6}}}}`, i%100, i%7, i)
}

// report is a later one, of three fields.
func report(i int) string {
	return fmt.Sprintf(`{"state":{"reported":{"temperature":%d.5,"uptime":%d,"signal":-%d}}}`, 20+i%7, i, 60+i%9)
}

// fill appends n messages.
func fill(tb testing.TB, r *componenttest.Rig, n int, f func(i int) *message.Message) {
	tb.Helper()
	l, err := r.Bus.Log(tb.Context(), "device", bus.LogOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	a, err := l.Appender(tb.Context(), bus.AppenderOptions{Name: "test", Owner: message.NewID(message.ID{}.Time())})
	if err != nil {
		tb.Fatal(err)
	}
	for i := range n {
		if err := a.Append(tb.Context(), f(i), nil, 0); err != nil {
			tb.Fatal(err)
		}
	}
	if err := a.Close(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

// BenchmarkTwins is the whole component, on the engine for tests, its store synced at each commit: each update is read
// from the log, and its four answers are written there.
func BenchmarkTwins(b *testing.B) {
	const devices = 10_000
	r := componenttest.New(b)
	fill(b, r, devices, func(i int) *message.Message {
		return say(message.Subject(fmt.Sprintf("device.d-%06d.twin.update", i)), begin(i))
	})
	r.Start(Spec)
	r.Settled(name, "device")
	r.Stop()
	fill(b, r, b.N, func(i int) *message.Message {
		return say(message.Subject(fmt.Sprintf("device.d-%06d.twin.update", i*7919%devices)), report(i))
	})
	b.ReportAllocs()
	began := componenttest.CPU(b)
	b.ResetTimer()
	r.Start(Spec)
	r.Settled(name, "device")
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
	b.ReportMetric(float64(componenttest.CPU(b)-began)/float64(time.Microsecond)/float64(b.N), "cpu-µs/update")
	r.Stop()
	b.ReportMetric(float64(stored(b, r.Dir))/devices, "B/twin")
}

// stored is how many bytes the tables of a store have.
func stored(tb testing.TB, dir string) (n int64) {
	tb.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".sst" {
			return err
		}
		info, err := d.Info()
		n += info.Size()
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return n
}
