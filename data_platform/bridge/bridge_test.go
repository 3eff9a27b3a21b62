package bridge

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/message"
)

const doors = `dataset: doors
version: 1
owner: works
doc: A door that opened.
from: [device.*.event.opened, device.*.telemetry.door, 3rd_party.locks.>]
fields: [{name: rest, type: json, rest: true}]
`

// apply puts documents into the table, as an operator does.
func apply(t *testing.T, r *componenttest.Rig, text string) {
	t.Helper()
	docs, err := model.Parse("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	table, err := r.Bus.Table(t.Context(), model.TableName, bus.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		raw, err := json.Marshal(model.Entry{Kind: d.Kind(), Name: d.Name(), Version: 1, YAML: d.Text, By: "test"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := table.Put(t.Context(), d.Kind()+"/"+d.Name(), raw); err != nil {
			t.Fatal(err)
		}
	}
}

// over is what was led over because of a message, as subject and payload.
func over(r *componenttest.Rig, of *message.Message) (list []*message.Message) {
	for _, m := range r.Read(message.DataPlatform) {
		if m.Cause == of.ID {
			list = append(list, m)
		}
	}
	return list
}

func TestMessagesGoOverUnchangedOnceForEachDatasetThatTakesThem(t *testing.T) {
	r := componenttest.New(t)
	apply(t, r, doors)
	r.Start(Spec)
	r.Running(Name)
	reading := componenttest.Message("device.d-1.telemetry", "d-1", `{"celsius":21}`)
	reading.Properties = reading.Properties.Add("unit", "C")
	both := componenttest.Message("device.d%2E2.telemetry.door", "d.2", `{"open":true}`)
	locks := componenttest.Message("3rd_party.locks.main", "", `[1]`)
	none := componenttest.Message("device.d-1.presence", "d-1", `{"online":true,"since":"2026-11-23T03:00:00Z","session":"0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e","version":7,"node":"n1"}`)
	put := componenttest.Message("service_platform.bridge.doors.put", "d-3", `{"by":"rule"}`)
	put.Time = time.Date(2026, 11, 28, 1, 2, 3, 0, time.UTC)
	unknown := componenttest.Message("service_platform.bridge.windows.put", "d-3", `{}`)
	r.Say(reading, both, locks, none, put, unknown)
	for _, log := range []string{"device", "3rd_party", "service_platform"} {
		r.Settled(Name, log)
	}
	for _, c := range []struct {
		m    *message.Message
		want []string
	}{
		{reading, []string{"data_platform.telemetry.d-1.telemetry"}},
		{both, []string{"data_platform.doors.d%2E2.telemetry.door", "data_platform.telemetry.d%2E2.telemetry.door"}},
		{locks, []string{"data_platform.doors.-.3rd_party.locks.main"}},
		{none, nil},
		{put, []string{"data_platform.doors.d-3"}},
		{unknown, nil},
	} {
		got := over(r, c.m)
		subjects := map[string]bool{}
		for _, m := range got {
			subjects[string(m.Subject)] = true
			if string(m.Data) != string(c.m.Data) || m.ContentType != c.m.ContentType || string(m.Properties) != string(c.m.Properties) || m.Trace.ID != c.m.Trace.ID ||
				m.Device != c.m.Device || !m.Time.Equal(c.m.Happened()) {
				t.Errorf("%s became %+v", c.m.Subject, m)
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%s went over %d times", c.m.Subject, len(got))
		}
		for _, want := range c.want {
			if !subjects[want] {
				t.Errorf("%s went over as %v; want %s", c.m.Subject, subjects, want)
			}
		}
	}
	letters, dead := r.Dead(Name)
	if len(dead) != 1 || letters[0].Cause != unknown.ID || dead[0].Reason != message.DatasetUnknown || !strings.Contains(dead[0].Detail, "naru data models") {
		t.Errorf("the dead letters are %+v", dead)
	}
}

func TestADatasetThatComesTakesWhatFollows(t *testing.T) {
	r := componenttest.New(t)
	r.Start(Spec)
	r.Running(Name)
	before := componenttest.Message("device.d-1.event.opened", "d-1", `{}`)
	r.Say(before)
	r.Settled(Name, "device")
	apply(t, r, doors)
	r.Until(func() bool {
		m := componenttest.Message("device.d-1.event.opened", "d-1", `{}`)
		r.Say(m)
		r.Settled(Name, "device")
		return len(over(r, m)) == 1
	}, func() string { return "the dataset takes nothing" })
	if len(over(r, before)) != 0 {
		t.Error("what came before went over too")
	}
}

// The account of the way holds, and each message is over once, whatever dies between.
func TestEachMessageIsOverOnceWhateverDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the time between two starts is the bubble's
		r := componenttest.New(t)
		defer r.Close()
		if _, err := r.Bus.Log(t.Context(), "device", bus.LogOptions{Partitions: 3}); err != nil {
			t.Fatal(err)
		}
		apply(t, r, doors)
		r.Start(Spec)
		var ms []*message.Message
		for round := range 10 {
			var part []*message.Message
			for i := range 30 {
				part = append(part, componenttest.Message(message.Subject(fmt.Sprintf("device.d-%d.telemetry.door", i%5)), fmt.Sprintf("d-%d", i%5), fmt.Sprintf(`{"n":%d}`, len(ms)+i)))
			}
			ms = append(ms, part...)
			died := r.Faults()
			switch round % 4 {
			case 0:
				r.FailBefore(1)
				died++
			case 1:
				r.FailAfter(1)
				died++
			}
			r.Say(part...)
			if round%4 == 2 {
				r.Stop() // wherever it is
				r.Start(Spec)
			}
			r.Until(func() bool { return r.Faults() >= died }, func() string { return "the ordered fault was not met" })
		}
		r.Until(func() bool { return len(r.Read(message.DataPlatform)) >= 2*len(ms) }, func() string {
			return fmt.Sprintf("%d are over of %d", len(r.Read(message.DataPlatform)), 2*len(ms))
		})
		r.Settled(Name, "device") // one of the three accounts; those of each are looked at where a ledger is
		times := map[message.ID]map[string]int{}
		for _, m := range r.Read(message.DataPlatform) {
			if times[m.Cause] == nil {
				times[m.Cause] = map[string]int{}
			}
			times[m.Cause][m.Subject.Token(1)]++
		}
		for _, m := range ms {
			if got := times[m.ID]; got["doors"] != 1 || got["telemetry"] != 1 {
				t.Errorf("%s went over %v", m.Data, got)
			}
		}
	})
}

func TestBridgeKeepsThePromises(t *testing.T) {
	componenttest.Promises(t, componenttest.Case{
		Spec: Spec,
		Good: func() []*message.Message {
			return []*message.Message{componenttest.Message("device.d-1.telemetry", "d-1", `{"celsius":21}`), componenttest.Message("service_platform.bridge.telemetry.put", "d-2", `{"celsius":22}`)}
		},
		Poison: func() *message.Message {
			return componenttest.Message("service_platform.bridge.nowhere.put", "d-1", `{}`)
		},
	})
}
