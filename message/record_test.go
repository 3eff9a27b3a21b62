package message

import (
	"strings"
	"testing"
	"time"
)

func TestRecordRoomHoldsTheRecord(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for _, n := range []int{0, 1, 127, 128, 20_000} {
		s := strings.Repeat("x", n)
		m := &Message{ID: NewID(now), Trace: NewTrace(now), Cause: NewID(now), Subject: Subject(s), Device: s, Type: s, Source: s, Time: now, Expires: now, ContentType: s,
			Schema: s, ReplyTo: Subject(s), Correlation: []byte(s), Client: s, Properties: Properties{}.Add(s, s), Data: []byte(s)}
		if got, most := len(AppendRecord(nil, m)), RecordRoom(m); got > most || most > got+128 {
			t.Errorf("texts of %d bytes: the record has %d bytes; the room is %d", n, got, most)
		}
	}
}
