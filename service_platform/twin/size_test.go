//go:build long

package twin

import "testing"

// TestAMillionTwinsFitIntoAGigabyte holds a fifth of them to a fifth of it; BenchmarkAMillionTwins makes them all.
func TestAMillionTwinsFitIntoAGigabyte(t *testing.T) {
	const twins, most = 200_000, 1 << 30 / 5
	d := open(t, "")
	fillStore(d, twins)
	var l List
	d.get("/api/v1/twins?limit=1000&prefix=device-01", &l)
	d.house()
	d.r.Stop()
	size := onDisk(t, d.r.Dir)
	t.Logf("%d bytes on disk, %d a twin", size, size/twins)
	if l.All != twins || len(l.Twins) != 1000 || size > most {
		t.Errorf("%d twins take %d bytes, and a list has %d; want at most %d", l.All, size, len(l.Twins), most)
	}
}
