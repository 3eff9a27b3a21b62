package names

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus/mem"
)

func TestNameIsKnownThatSomeNodeHas(t *testing.T) {
	ctx, b := t.Context(), mem.New(mem.Options{})
	t.Cleanup(func() { _ = b.Close() })
	now := time.Now()
	k := NewKnown(b, Policies, func() time.Time { return now })
	if err := k.Check(ctx, "pump"); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody has told: %v", err)
	}
	for node, list := range map[string][]string{"n 1": {"device", "open", "pump"}, "n-2": {"meter", "device"}} {
		if err := Tell(ctx, b, Policies, node, list); err != nil {
			t.Fatal(err)
		}
	}
	if err := Tell(ctx, b, "other", "n-1", []string{"x"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"device", "pump", "meter"} {
		if err := k.Check(ctx, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var u *Unknown
	err := k.Check(ctx, "pmup")
	if !errors.As(err, &u) || err.Error() != `there is no policy "pmup"; did you mean "pump"? There are device, meter, open, pump` {
		t.Errorf("an unknown one: %v", err)
	}
	if err := k.Check(ctx, "x"); err == nil {
		t.Error("a name of another kind is known")
	}
	// One that is new is found at once; one that is gone after a while.
	if err := Tell(ctx, b, Policies, "n-2", []string{"valve"}); err != nil {
		t.Fatal(err)
	}
	if err := k.Check(ctx, "valve"); err != nil {
		t.Errorf("a new one: %v", err)
	}
	if now = now.Add(fresh); k.Check(ctx, "meter") == nil {
		t.Error("one that is gone is known for ever")
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("p-%03d", i))
	}
	if err := Tell(ctx, b, Policies, "n-3", many); err != nil {
		t.Fatal(err)
	}
	if err := k.Check(ctx, "zzz"); err == nil || !strings.HasSuffix(err.Error(), "and 84 more") {
		t.Errorf("of many: %v", err)
	}
	busy, cancel := context.WithCancel(ctx)
	k.asking <- struct{}{} // somebody asks, and has no answer
	if cancel(); k.Check(busy, "nobody's") == nil {
		t.Error("it is answered to who has gone")
	}
	<-k.asking
	_ = b.Close()
	if now = now.Add(fresh); errors.As(k.Check(ctx, "pump"), &u) || k.Check(ctx, "pump") == nil {
		t.Error("a bus that is away says what is known")
	}
}

func TestNamesAreToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := mem.New(mem.Options{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			Keep(ctx, b, Policies, "n-1", []string{"pump"}, func(err error) { t.Error(err) })
		}()
		k := NewKnown(b, Policies, time.Now)
		for range 100 {
			time.Sleep(again)
			synctest.Wait()
			if err := k.Check(ctx, "pump"); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		<-done
		if time.Sleep(ttl + time.Second); !errors.Is(k.Check(t.Context(), "pump"), ErrNobody) {
			t.Error("the names of a node that is gone stay")
		}
		_ = b.Close()
	})
}

func TestTellerTellsWhatChangedAtOnceAndTheRestAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mem.New(mem.Options{})
		k, teller := NewKnown(b, Workers, time.Now), Teller{Bus: b, Kind: Workers, Node: "n-1"}
		tell := func(all ...string) {
			t.Helper()
			if err := teller.Tell(t.Context(), time.Now(), all); err != nil {
				t.Fatal(err)
			}
		}
		if tell(); !errors.Is(k.Check(t.Context(), "press"), ErrNobody) {
			t.Error("of none, one is known")
		}
		for range 100 {
			tell("press")
			if err := k.Check(t.Context(), "press"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(again / 2)
		}
		tell("lathe")
		if time.Sleep(fresh + time.Second); k.Check(t.Context(), "lathe") != nil || k.Check(t.Context(), "press") == nil {
			t.Error("a change is not told")
		}
		before := teller.when
		if tell("lathe"); teller.when != before {
			t.Error("what was told a moment ago is told again")
		}
		_ = b.Close()
		if err := teller.Tell(t.Context(), time.Now(), []string{"saw"}); err == nil || teller.told[0] != "lathe" {
			t.Errorf("what was not told counts as told: %v, %v", err, teller.told)
		}
	})
}

func TestNameThatIsOnlySomewhatAlikeIsNotSuggested(t *testing.T) {
	for name, want := range map[string]string{"nope": "", "opne": "open", "opn": "open", "oben": "open", "pumps": "pump", "x": ""} {
		err := (&Unknown{Kind: "policy", Name: name, Known: []string{"open", "pump"}}).Error()
		if got := strings.Contains(err, "did you mean"); got != (want != "") || !strings.Contains(err, want) {
			t.Errorf("%s: %s", name, err)
		}
	}
}
