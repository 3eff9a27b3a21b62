package kinesis

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

const (
	anchorEvery = 30 * time.Second // while records come
	anchorIdle  = 5 * time.Minute  // else, where the shard moves on
	anchorsKept = 24
)

// anchor says that all records of a partition behind a sequence are behind a place in the stream. It is left by a reader
// that has come there: what it has not met by then comes behind it, since a record's first copy counts.
type anchor struct {
	Seq uint64    `json:"seq"`
	At  spot      `json:"at"`
	Set time.Time `json:"set"`
}

func anchorKey(gen, part uint32) string { return fmt.Sprintf("anchor/%d/%d", gen, part) }

// anchors are those of a partition, oldest first. l.mu is held.
func (l *Log) anchors(gen, part uint32) (list []anchor) {
	if e, ok := l.entries[anchorKey(gen, part)]; ok && !e.Deleted {
		_ = json.Unmarshal(e.Value, &list) // without one it is read from the oldest record
	}
	return list
}

// anchor is where to begin to read behind a sequence; zero for the oldest record there is. l.mu is held.
func (l *Log) anchor(gen, part uint32, seq uint64) (at spot) {
	for _, a := range l.anchors(gen, part) {
		if a.Seq <= seq {
			at = a.At
		}
	}
	return at
}

// leaveAnchor leaves one where it is time; waits says that nothing is at hand.
func (r *Reader) leaveAnchor(ctx context.Context, waits bool) {
	now := r.l.o.Now()
	every := anchorEvery
	r.l.mu.Lock()
	at := r.anchorAt
	if waits && len(r.queue) == 0 && r.lane != nil && r.ended == "" {
		if r.at.After != "" && r.at != at {
			at = r.at
		}
		every = anchorIdle
	}
	list := r.l.anchors(r.gen, r.part)
	r.l.mu.Unlock()
	if r.looking || r.last == 0 || at.After == "" || now.Sub(r.anchored) < every || len(r.partial) > 0 || len(r.doubts) > 0 {
		return
	}
	r.anchored = now
	if n := len(list); n > 0 && (now.Sub(list[n-1].Set) < every || list[n-1].Seq > r.last || list[n-1].At == at) {
		return // another reader of the partition was here
	}
	list = thin(append(list, anchor{r.last, at, now}))
	if err := r.l.remember(ctx, anchorKey(r.gen, r.part), list); err != nil {
		r.l.o.Log.Debug("leave an anchor", "log", r.l.name, "partition", r.part, "error", err)
	}
}

// thin leaves out anchors, the closer the older they are: who is far behind need not find his place exactly.
func thin(list []anchor) []anchor {
	for len(list) > anchorsKept {
		newest := list[len(list)-1].Set
		best, least := 1, 2.0
		for i := 1; i < len(list)-1; i++ {
			if gap := float64(list[i+1].Set.Sub(list[i-1].Set)) / float64(newest.Sub(list[i-1].Set)+1); gap < least {
				best, least = i, gap
			}
		}
		list = slices.Delete(list, best, best+1)
	}
	return list
}
