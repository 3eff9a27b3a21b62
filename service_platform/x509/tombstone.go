package x509

import (
	"maps"
	"slices"

	"github.com/naru-platform/naru/bus"
)

// tombstonesMax is how many deleted devices are remembered one by one: some 16 MB, and more than are deleted while any read
// of the table, or any replica of it that lags, may still tell of one as it was before.
const tombstonesMax = 100_000

// tombstones are the devices that were deleted, so that an older entry, which was read before and comes late, does not
// bring one back. Beyond tombstonesMax the oldest are forgotten; what was read of an unknown device that is not newer than
// those is not believed then: it comes by following the table, if it is true. The zero value is empty.
type tombstones struct {
	revisions map[string]uint64 // of the deletions, by the device's key
	floor     uint64            // the newest that was forgotten
}

// after says whether the device of an entry, which is not known, was deleted after it.
func (t *tombstones) after(e bus.Entry, told bool) bool {
	return t.revisions[e.Key] > e.Revision || !told && e.Revision <= t.floor
}

// note takes in that a device was deleted.
func (t *tombstones) note(e bus.Entry) {
	if e.Revision <= t.revisions[e.Key] {
		return
	}
	if t.revisions == nil {
		t.revisions = map[string]uint64{}
	}
	t.revisions[e.Key] = e.Revision
	if len(t.revisions) <= tombstonesMax {
		return
	}
	oldest := slices.Sorted(maps.Values(t.revisions))
	t.floor = max(t.floor, oldest[len(oldest)/2])
	maps.DeleteFunc(t.revisions, func(_ string, revision uint64) bool { return revision <= t.floor })
}

// forget takes in that a device is there again.
func (t *tombstones) forget(key string) { delete(t.revisions, key) }
