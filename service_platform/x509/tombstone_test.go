package x509

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/naru-platform/naru/bus"
)

// However many devices are deleted, a door remembers so many, and an entry that was read before and comes late brings none
// of them back.
func TestDeletedDevicesAreRememberedWithinABound(t *testing.T) {
	door := NewAdmission(newTables(), AdmissionOptions{})
	entry := func(id string, revision uint64) bus.Entry {
		raw, err := json.Marshal(Device{ID: id, Certs: []Certificate{{Fingerprint: strings.Repeat("ab", 32)}}})
		if err != nil {
			t.Fatal(err)
		}
		return bus.Entry{Key: deviceKey(id), Value: raw, Revision: revision}
	}
	there := func(id string) bool { return door.devices[deviceKey(id)] != nil }
	stays := entry("stays", 1)
	door.apply(stays, true)
	revision := uint64(1)
	const many = 3 * tombstonesMax
	for i := range many {
		id := fmt.Sprint("d-", i)
		if i == 0 || i == many-1 { // the others are told of only when they are deleted
			door.apply(entry(id, revision+1), true)
		}
		door.apply(bus.Entry{Key: deviceKey(id), Revision: revision + 2, Deleted: true}, true)
		revision += 2
	}
	if n := len(door.deleted.revisions); n > tombstonesMax || n < tombstonesMax/2 {
		t.Errorf("%d are remembered", n)
	}
	door.applyDevice(entry("d-0", 2))                             // forgotten
	door.applyDevice(entry(fmt.Sprint("d-", many-1), revision-1)) // remembered
	door.apply(entry(fmt.Sprint("d-", many-1), revision-1), true) // a replica that lags tells of it
	door.applyDevice(stays)
	for id, want := range map[string]bool{"d-0": false, fmt.Sprint("d-", many-1): false, "stays": true} {
		if there(id) != want {
			t.Errorf("%s is there: %v", id, there(id))
		}
	}
	// Registered anew, by this process or another one, a device is there again, also one that nobody has told of yet.
	door.applyDevice(entry("d-0", revision+1))
	door.apply(entry("d-1", revision+2), true)
	door.apply(entry("slow", 3), true) // told late, after a break
	for _, id := range []string{"d-0", "d-1", "slow"} {
		if !there(id) {
			t.Errorf("%s does not come back", id)
		}
	}
}
