package x509

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// A dot ends what the bus tells entries apart by: without it whoever reads one kind is sent all.
func TestEachKindOfEntryIsReadAlone(t *testing.T) {
	for _, prefix := range []string{devicePrefix, certKey(""), trustPrefix, casPrefix, codePrefix, templatePrefix, claimPrefix,
		revokedPrefix, ownershipPrefix, tokenPrefix, askPrefix, answerPrefix} {
		if !strings.HasSuffix(prefix, ".") || strings.Count(deviceKey("a.b"), ".") != 1 {
			t.Errorf("%q, %q", prefix, deviceKey("a.b"))
		}
	}
	if !strings.HasPrefix(trustKey, trustPrefix) || !strings.HasPrefix(answerKey("x"), answerPrefix+"x.") {
		t.Errorf("%q, %q", trustKey, answerKey("x"))
	}
}

// Whoever has a claim certificate makes so many certificates and no more, and what nobody took goes within the hour.
func TestCertificatesThatNobodyTakesAreBounded(t *testing.T) {
	a := newArena(t)
	o := a.s.open.Load()
	made := a.ownership()
	for i := range waitingMax - 1 {
		raw, err := json.Marshal(ownership{Claim: a.claim.Fingerprint, Expires: a.clock.Now().Add(ownershipValidity)})
		if err != nil {
			t.Fatal(err)
		}
		o.waiting.apply(bus.Entry{Key: fmt.Sprint(ownershipPrefix, i), Value: raw, Revision: 1})
	}
	var no struct{ ErrorCode string }
	if got := a.ask(a.claimClient(), topicCreate, nil, &no); got.Accepted || no.ErrorCode != "Throttled" {
		t.Errorf("one more is made: %s", string(got.Payload))
	}
	if got := a.attempts(attemptFilter{device: "lot-7", refused: true}); len(got) != 1 || got[0].Reason != message.RateLimited.String() {
		t.Errorf("recorded: %+v", got)
	}
	if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": "1"}), nil); !got.Accepted {
		t.Errorf("what was made is not taken: %s", string(got.Payload))
	}
	if got := a.ask(a.claimClient(), topicCreate, nil, nil); !got.Accepted {
		t.Errorf("none is made though one was taken: %s", string(got.Payload))
	}
	a.clock.move(ownershipValidity + 2*waitingGrace)
	if err := a.s.sweepWaiting(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	left, err := bus.Entries(t.Context(), o.trust, ownershipPrefix)
	if err != nil || len(left) > 0 || o.waiting.of(a.claim.Fingerprint) > 0 || len(o.waiting.tokens) > 0 {
		t.Errorf("%d tokens are left, %d are counted, %v", len(left), o.waiting.of(a.claim.Fingerprint), err)
	}
}

// A device that went while the bus was away for long is told without a revision; it is let in no more, until it is told anew.
func TestDeviceThatVanishedInABreakIsNotLetIn(t *testing.T) {
	h := newHouse(t)
	c := h.enrol("d-17")
	e, err := h.reg.table.Get(t.Context(), deviceKey("d-17"))
	if err != nil {
		t.Fatal(err)
	}
	h.door = h.openDoor()
	x := newIndex(h.door.o.Log, func(string) {})
	x.loaded()
	x.apply(e)
	h.bus.(*tables).open[devicesTable].deaf = true
	if err := h.reg.table.Delete(t.Context(), e.Key, 0); err != nil {
		t.Fatal(err)
	}
	h.door.applyDevice(bus.Entry{Key: e.Key, Deleted: true})
	x.apply(bus.Entry{Key: e.Key, Deleted: true})
	h.refused(c, message.CertUnregistered)
	if x.size() != 0 || x.owner(authority.Fingerprint(c.Raw)) != "" {
		t.Error("it is listed")
	}
	e.Revision += 2
	h.door.applyDevice(e)
	x.apply(e)
	h.admitted(c, "d-17")
	if x.size() != 1 {
		t.Error("it is not listed")
	}
}
