package shadow

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/message"
)

// A device of ten reported and four desired fields, as the benchmarks have it.
const typical = `{"desired":{"interval":30,"mode":"eco","target":21.5,"wifi":{"channel":6}},"reported":{"battery":87,"firmware":"1.4.2","interval":30,"location":{"lat":37.5665,"lon":126.978},"mode":"eco","signal":-61,"target":21.5,"temperature":21.25,"uptime":123456,"wifi":{"channel":6}}}`

// BenchmarkUpdate is what the component does for an update, without its store: the document is read, updated, the answers
// are made, the document and its record are written.
func BenchmarkUpdate(b *testing.B) {
	d := docWith(b, typical, 1, begins)
	kept := d.Append(nil)
	now := time.Unix(begins, 0)
	var asks [][]byte
	for i := range 64 {
		asks = append(asks, fmt.Appendf(nil, `{"state":{"reported":{"temperature":%d.5,"uptime":%d,"signal":-%d}}}`, 20+i%7, 123456+i, 60+i%9))
	}
	b.ReportAllocs()
	var answer, record []byte
	for i := 0; b.Loop(); i++ {
		d, err := Decode(kept)
		if err != nil {
			b.Fatal(err)
		}
		u, refused := d.Update(asks[i%len(asks)], Cause{message.NewID(now), "//naru/device/d-17"}, now, Defaults)
		if refused != nil {
			b.Fatal(refused)
		}
		answer = u.AppendDocuments(u.AppendDelta(u.AppendAccepted(answer[:0])))
		record = u.Record(message.TraceID{}).Append(record[:0])
		kept = u.After.Append(kept[:0])
	}
	b.ReportMetric(float64(len(kept)), "B/doc")
}

// BenchmarkUpdateLarge is one field of a document near the limit.
func BenchmarkUpdateLarge(b *testing.B) {
	var fields []string
	for i := range 380 {
		fields = append(fields, fmt.Sprintf(`"field-%03d":"%d"`, i, i))
	}
	d := docWith(b, `{"reported":{`+strings.Join(fields, ",")+`}}`, 1, begins)
	kept := d.Append(nil)
	now := time.Unix(begins, 0)
	b.ReportAllocs()
	var answer []byte
	for i := 0; b.Loop(); i++ {
		d, _ := Decode(kept)
		u, refused := d.Update(fmt.Appendf(nil, `{"state":{"reported":{"field-007":%d}}}`, i), Cause{message.NewID(now), "//naru/device/d-17"}, now, Defaults)
		if refused != nil {
			b.Fatal(refused)
		}
		answer = u.AppendDocuments(u.AppendAccepted(answer[:0]))
		kept = u.After.Append(kept[:0])
	}
}
