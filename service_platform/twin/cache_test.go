package twin

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
)

func TestAnUpdateThatCannotBeAnsweredChangesNothing(t *testing.T) {
	r := componenttest.New(t)
	r.Start(Spec)
	r.Say(say("device.d-1.twin.update", `{"state":{"reported":{"a":1}}}`))
	deep := say("device.d-1.twin.update", `{"state":{"reported":{"a":2}}}`)
	deep.Depth = message.DepthMax // its answers would be one too many
	again := say("device.d-1.twin.update", `{"state":{"reported":{"b":3}}}`)
	get := say("device.d-1.twin.get", "")
	r.Say(deep, again, get)
	r.Settled(name, "device")
	r.Stop()
	if _, dead := r.Dead(name); len(dead) != 1 || dead[0].Reason != message.Loop {
		t.Errorf("dead letters are %+v", dead)
	}
	if got := answers(r, get)[0]; !strings.Contains(got, `"reported":{"a":1,"b":3}`) || !strings.Contains(got, `"version":2`) {
		t.Errorf("after it the twin is %s", got)
	}
}

func TestCacheHoldsWhatHandlersDidAndNoMore(t *testing.T) {
	c := newCache()
	got := func(key string) string {
		v, ok := c.get([]byte(key))
		return fmt.Sprintf("%s %v", v, ok)
	}
	c.put("k", []byte("1"))
	c.wrote("k", []byte("2"))
	if g := got("k"); g != " false" {
		t.Errorf("while it is being written there is %q", g)
	}
	c.ended(false)
	if g := got("k"); g != " false" {
		t.Errorf("after a handler failed there is %q", g)
	}
	c.wrote("k", []byte("3"))
	c.ended(true)
	if g := got("k"); g != "3 true" {
		t.Errorf("after a handler succeeded there is %q", g)
	}
	c.drop("k")
	if g := got("k"); g != " false" || c.bytes != 0 {
		t.Errorf("after it was dropped there is %q, and %d bytes", g, c.bytes)
	}
}

func TestCacheIsBoundedAndKeepsWhatIsAskedFor(t *testing.T) {
	c := newCache()
	v := make([]byte, 10_000)
	c.put("asked", v)
	for i := range 20_000 {
		c.put(fmt.Sprint("k", i), v)
		if _, ok := c.get([]byte("asked")); !ok {
			t.Fatalf("what is asked for all the time went after %d others", i)
		}
	}
	held := 0
	for _, m := range []map[string][]byte{c.young, c.old} {
		for k, v := range m {
			held += len(k) + len(v) + entryBytes
		}
	}
	if held > cacheMax+len(v)*2 || held < cacheMax/4 {
		t.Errorf("it holds %d bytes; the limit is %d", held, cacheMax)
	}
}

func TestChangedIsWrittenAsJSONMarshalDoes(t *testing.T) {
	for _, c := range []device.TwinChanged{
		{Device: "d", Change: "created", Version: 1, At: time.Unix(1591140517, 0).UTC(), Source: "//naru/n1", Paths: []string{}, Current: json.RawMessage(`{"reported":{"a":1}}`)},
		{Device: "d\"\n", Shadow: "s", Change: "deleted", Version: 1 << 60, At: time.Unix(1591140517, 0).UTC(), Source: "bad \xff UTF-8", Paths: []string{"/desired/~0~1", "/reported/\\"}, Previous: json.RawMessage(`{}`)},
	} {
		want, err := json.Marshal(&c)
		if err != nil {
			t.Fatal(err)
		}
		var back, meant device.TwinChanged
		if err := json.Unmarshal(appendChanged(nil, &c), &back); err != nil {
			t.Fatalf("%s: %v", appendChanged(nil, &c), err)
		}
		if err := json.Unmarshal(want, &meant); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprintf("%+v", back) != fmt.Sprintf("%+v", meant) || strings.Count(string(want), ":") != strings.Count(string(appendChanged(nil, &c)), ":") {
			t.Errorf("it is written as %s; want %s", appendChanged(nil, &c), want)
		}
	}
}
