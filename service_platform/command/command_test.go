package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	sp "github.com/naru-platform/naru/message/service_platform"
)

// TestCommandThatIsDamagedHoldsUpNoOther damages what is kept of some commands and devices.
func TestCommandThatIsDamagedHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *Commands
		r := &rig{Rig: componenttest.New(t), t: t}
		conf := Spec.Defaults().(Config)
		conf.TTL = "1m"
		r.Start(component.Define(Spec, conf, func(env component.Env, conf Config) (*component.Part, error) {
			var err error
			if c, err = build(env, conf); err != nil {
				return nil, err
			}
			return &component.Part{Handle: c.hear, Run: c.run, Routes: c.routes()}, nil
		}))
		r.Running(Name)
		for _, of := range []string{"d-1", "d-2", "d-3", "d-4"} {
			r.command(of, "c1", "{}")
			r.command(of, "c2", "{}")
		}
		r.Settled(Name, message.Device)
		if err := c.env.Change(t.Context(), func(tx component.Tx) error {
			junk := []byte("junk")
			tx.Set(numberKey(kindRequest, "d-1", 1), junk)
			tx.Set(numberKey(kindCommand, "d-2", 1), junk)
			tx.Delete(numberKey(kindWaiting, "d-3", 1)) // as if it had never been there, but for the count
			tx.Delete(numberKey(kindWaiting, "d-3", 2))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for _, of := range []string{"d-1", "d-2", "d-3", "d-4"} {
			r.present(of, true)
		}
		r.Settled(Name, message.Device)
		r.pass(3 * time.Second)
		var got []string
		for _, m := range r.releases() {
			got = append(got, m.Device+" "+m.Subject.Token(6))
		}
		slices.Sort(got)
		if want := []string{"d-1 c2", "d-4 c1"}; !slices.Equal(got, want) {
			t.Errorf("released are %v; want %v", got, want)
		}
		if _, ends := r.ends("d-1", 1); ends[0].State != sp.CommandFailed || ends[0].Reason != message.NotDecodable {
			t.Errorf("what cannot be read ended as %+v", ends[0])
		}
		var l List
		if code := r.ask("GET", "/api/v1/commands", "", &l); code != 200 || len(l.Commands) != 8 {
			t.Fatalf("listed are, with %d, %+v", code, l)
		}
		for _, x := range l.Commands {
			switch {
			case x.Device == "d-2" && x.ID == "":
				if !strings.Contains(x.Detail, "read command 1 of d-2") {
					t.Errorf("what cannot be read is listed as %+v", x)
				}
			case x.Device == "d-4" && x.ID == "c2":
				if !strings.HasPrefix(x.Why, "another command is before it, c1 (open), which is released") {
					t.Errorf("that it waits for c1 is told as %q", x.Why)
				}
			}
		}
		r.pass(2 * time.Minute) // the time to live of them all
		if _, ends := r.ends("d-4", 2); ends[0].State != sp.CommandExpired {
			t.Errorf("beside damaged ones a command ends as %+v", ends)
		}
		r.Close()
	})
}

// rig is the component; the test is the broker and the devices.
type rig struct {
	*componenttest.Rig
	t       *testing.T
	version uint64
}

// story runs a test whose clock is its own.
func story(t *testing.T, config string, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := componenttest.New(t)
		if config != "" {
			c.Config[Name] = json.RawMessage(config)
		}
		c.Start(Spec)
		c.Running(Name)
		r := &rig{Rig: c, t: t}
		f(r)
		c.Close()
	})
}

// pass lets time pass, by the clock of the story.
func (r *rig) pass(d time.Duration) {
	t := time.NewTimer(d) // in a bubble, as all of a story
	<-t.C
}

func (r *rig) command(of, id, data string, change ...func(m *message.Message)) *message.Message {
	m := componenttest.Message(device.CommandSubject(of, "open", id), of, data)
	m.QoS = 1
	for _, f := range change {
		f(m)
	}
	r.Say(m)
	return m
}

func (r *rig) present(of string, online bool) {
	r.version++
	raw, _ := json.Marshal(device.Presence{Online: online, Since: time.Now(), Version: r.version, Node: "n1", Session: message.NewID(time.Now())}) // plain values
	r.Say(componenttest.Message(device.PresenceSubject(of), of, string(raw)))
}

func (r *rig) answer(of, id, data string) *message.Message {
	m := componenttest.Message(device.ReplySubject(of, "open", id), of, data)
	r.Say(m)
	return m
}

// receipt is what the broker tells of a release.
func (r *rig) receipt(m *message.Message, result string, change ...func(*sp.Receipt)) {
	r.version++
	x := sp.Receipt{Device: m.Device, Release: m.ID, Name: m.Subject.Token(5), ID: m.Subject.Token(6), Result: result, QoS: 1, Node: "n1", Version: r.version}
	for _, f := range change {
		f(&x)
	}
	raw, _ := json.Marshal(x) // plain values
	r.Say(componenttest.Message(sp.ReceiptSubject(m.Device), m.Device, string(raw)))
}

// releases are what was handed to the broker so far.
func (r *rig) releases() (list []*message.Message) {
	for _, m := range r.Read(message.ServicePlatform) {
		if _, _, ok := sp.CommandRelease(m.Subject); ok {
			list = append(list, m)
		}
	}
	return list
}

// released waits until so many were handed over, and gives the last one.
func (r *rig) released(n int) *message.Message {
	r.t.Helper()
	r.Until(func() bool { return len(r.releases()) >= n }, func() string { return fmt.Sprintf("want %d releases, there are %d", n, len(r.releases())) })
	synctest.Wait()
	list := r.releases()
	if len(list) != n {
		r.t.Fatalf("%d were released; want %d", len(list), n)
	}
	return list[n-1]
}

// ends waits until so many ends of a device's commands were told.
func (r *rig) ends(of string, n int) (list []*message.Message, ends []sp.CommandEnded) {
	r.t.Helper()
	r.Until(func() bool {
		list, ends = nil, nil
		for _, m := range r.Read(message.ServicePlatform) {
			if m.Subject != sp.CommandEndedSubject(of) {
				continue
			}
			var e sp.CommandEnded
			if err := json.Unmarshal(m.Data, &e); err != nil {
				r.t.Fatal(err)
			}
			list, ends = append(list, m), append(ends, e)
		}
		return len(list) >= n
	}, func() string { return fmt.Sprintf("want %d ends, told are %+v", n, ends) })
	if len(list) != n {
		r.t.Errorf("want %d ends, told are %+v", n, ends)
	}
	return list, ends
}

func (r *rig) ask(method, path, body string, out any) int {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.Host.Handler(nil).ServeHTTP(w, httptest.NewRequest(method, path, bytes.NewReader([]byte(body))))
	if out != nil && w.Code == 200 {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			r.t.Fatalf("%s %s: %v: %s", method, path, err, w.Body)
		}
	}
	if w.Code != 200 {
		r.t.Logf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
	return w.Code
}

// is waits until a command is in a state.
func (r *rig) is(of, id, state string) (s Shown) {
	r.t.Helper()
	r.Until(func() bool {
		s = Shown{}
		return r.ask("GET", "/api/v1/commands/"+of+"/"+id, "", &s) == 200 && s.State == state
	}, func() string { return fmt.Sprintf("%s of %s is not %s: %+v", id, of, state, s) })
	return s
}

// counted holds the numbers that are kept to the commands there are.
func (r *rig) counted() {
	r.t.Helper()
	var l List
	r.ask("GET", "/api/v1/commands?limit=1000", "", &l)
	n := map[string]int64{}
	for _, x := range l.Commands {
		n[x.State]++
	}
	for _, s := range states {
		if l.Counts[s] != n[s] {
			r.t.Errorf("%d commands are %s, and %d are counted", n[s], s, l.Counts[s])
		}
	}
}

func TestCommandWaitsForItsDeviceAndGoesItsWay(t *testing.T) {
	story(t, "", func(r *rig) {
		m := r.command("d-1", "c1", `{"angle":30}`, func(m *message.Message) { m.ContentType, m.Properties = "application/json", m.Properties.Add("k", "v") })
		s := r.is("d-1", "c1", sp.CommandQueued)
		if !strings.Contains(s.Why, "away, and never seen") || s.Data != `{"angle":30}` || s.Trace != m.Trace.ID || !s.Expires.Equal(m.Recorded().Add(24*time.Hour)) {
			t.Errorf("it waits as %+v", s)
		}
		r.pass(time.Hour)
		if n := len(r.releases()); n != 0 {
			t.Fatalf("%d were released for a device that is away", n)
		}
		r.present("d-1", true)
		out := r.released(1)
		if out.Subject != sp.CommandReleaseSubject("n1", "d-1", "open", "c1") || string(out.Data) != string(m.Data) || out.Trace.ID != m.Trace.ID || out.Cause != m.ID ||
			out.Depth != 1 || out.ContentType != m.ContentType || out.QoS != 1 || !out.Expires.Equal(s.Expires) ||
			out.ReplyTo != "device.d-1.command.open.c1.reply" || string(out.Correlation) != "c1" {
			t.Errorf("released is %+v", out)
		}
		if v, _ := out.Properties.Get("k"); v != "v" {
			t.Errorf("its properties are %q", out.Properties)
		}
		r.is("d-1", "c1", sp.CommandReleased)
		r.receipt(out, sp.ReceiptDelivered, func(x *sp.Receipt) { x.Client = "d-1" })
		r.is("d-1", "c1", sp.CommandDelivered)
		reply := r.answer("d-1", "c1", `{"ok":true,"result":30}`)
		s = r.is("d-1", "c1", sp.CommandReplied)
		if s.Reply == nil || s.Reply.Message != reply.ID || s.Reply.Data != `{"ok":true,"result":30}` || s.Times.Delivered.IsZero() || s.Times.Replied.IsZero() || s.Times.Ended.IsZero() || s.Attempts != 1 {
			t.Errorf("it ended as %+v", s)
		}
		r.counted()
		r.Settled(Name, message.Device)
		r.Settled(Name, message.ServicePlatform)
		if list, ends := r.ends("d-1", 1); list[0].Cause != reply.ID || ends[0].Reply != reply.ID || ends[0].State != sp.CommandReplied || ends[0].Message != m.ID {
			t.Errorf("the end was told as %+v %+v", list, ends)
		}
	})
}

func TestCommandsOfADeviceGoOneAtATimeInOrder(t *testing.T) {
	story(t, "", func(r *rig) {
		r.present("d-1", true)
		r.present("d-2", true)
		for i := range 5 {
			r.command("d-1", fmt.Sprint("c", i), "")
		}
		r.command("d-2", "x", "") // which is not behind them
		r.Until(func() bool { return len(r.releases()) == 2 }, func() string { return "the first of each device are not released" })
		var row []string
		for n := range 5 {
			var last *message.Message
			r.Until(func() bool {
				list := slices.DeleteFunc(r.releases(), func(m *message.Message) bool { return m.Device != "d-1" })
				if len(list) > 0 {
					last = list[len(list)-1]
				}
				return len(list) == n+1
			}, func() string { return fmt.Sprintf("release %d does not come", n) })
			if n == 1 {
				if s := r.is("d-1", "c4", sp.CommandQueued); !strings.Contains(s.Why, "3 other commands are before it, the first of them c1 (open), which is released") {
					t.Errorf("c4 waits because %q", s.Why)
				}
			}
			row = append(row, last.Subject.Token(6))
			switch n {
			case 1:
				r.receipt(last, sp.ReceiptSent)
			case 2:
				r.answer("d-1", last.Subject.Token(6), "done") // which is as good as an acknowledgement
			default:
				r.receipt(last, sp.ReceiptDelivered)
			}
		}
		if got := strings.Join(row, " "); got != "c0 c1 c2 c3 c4" {
			t.Errorf("they went as %s", got)
		}
		r.is("d-1", "c1", sp.CommandSent)
		r.is("d-1", "c2", sp.CommandReplied)
		r.counted()
	})
}

func TestTimeToLiveAloneDecides(t *testing.T) {
	story(t, `{"ttl":"10m","ttl_max":"1h"}`, func(r *rig) {
		r.command("d-1", "day", "", func(m *message.Message) { m.Expires = time.Now().Add(24 * time.Hour) })
		short := r.command("d-1", "short", "", func(m *message.Message) { m.Expires = time.Now().Add(time.Minute) })
		r.command("d-1", "usual", "")
		r.command("d-2", "acknowledged", "", func(m *message.Message) { m.Expires = time.Now().Add(time.Minute) })
		r.present("d-2", true)
		r.receipt(r.released(1), sp.ReceiptDelivered)
		r.pass(59 * time.Second)
		r.is("d-1", "short", sp.CommandQueued)
		r.pass(2 * time.Second)
		s := r.is("d-1", "short", sp.CommandExpired)
		if s.Reason != message.Expired || !strings.Contains(s.Detail, "away") || s.Times.Ended.Sub(short.Recorded()) > 62*time.Second {
			t.Errorf("it ended as %+v", s)
		}
		if s = r.is("d-2", "acknowledged", sp.CommandExpired); !strings.Contains(s.Detail, "acknowledged it, and did not answer") {
			t.Errorf("it ended as %+v", s)
		}
		r.pass(10 * time.Minute)
		r.is("d-1", "usual", sp.CommandExpired)
		r.is("d-1", "day", sp.CommandQueued)
		r.pass(49 * time.Minute)
		r.is("d-1", "day", sp.CommandExpired) // no longer than ttl_max
		r.present("d-1", true)
		r.pass(time.Minute)
		r.released(1) // nothing more
		list, ends := r.ends("d-1", 3)
		for i, e := range ends {
			if e.State != sp.CommandExpired || e.Reason != message.Expired || list[i].Depth != 1 || list[i].Cause != e.Message {
				t.Errorf("told is %+v by %+v", e, list[i])
			}
		}
		r.counted()
	})
}

// Whatever time a sender names, the command ends.
func TestCommandOfAnotherAgeEnds(t *testing.T) {
	story(t, `{"ttl":"10m","ttl_max":"1h"}`, func(r *rig) {
		for id, year := range map[string]int{"rome": 2, "mainframe": 1960, "epoch": 1970, "far": 2300, "last": 9999} {
			r.command("d-1", id, "", func(m *message.Message) { m.Expires = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) })
		}
		r.pass(3 * time.Second)
		for _, id := range []string{"rome", "mainframe", "epoch"} {
			r.is("d-1", id, sp.CommandExpired)
		}
		r.is("d-1", "far", sp.CommandQueued)
		r.pass(time.Hour)
		for _, id := range []string{"far", "last"} {
			r.is("d-1", id, sp.CommandExpired)
		}
		r.counted()
	})
}

func TestLateReplyIsKeptAndMarked(t *testing.T) {
	story(t, `{"ttl":"10s"}`, func(r *rig) {
		r.command("d-1", "c1", "")
		r.pass(12 * time.Second)
		r.is("d-1", "c1", sp.CommandExpired)
		late := r.answer("d-1", "c1", `{"ok":true}`)
		var s Shown
		r.Until(func() bool { s = r.is("d-1", "c1", sp.CommandExpired); return len(s.Late) > 0 }, func() string { return "the answer is not kept" })
		if s.Late[0].Message != late.ID || s.Reply != nil {
			t.Errorf("it is %+v", s)
		}
		list, ends := r.ends("d-1", 2)
		if told := ends[1]; !told.Late || told.State != sp.CommandExpired || told.Reply != late.ID || list[1].Cause != late.ID {
			t.Errorf("told is %+v", told)
		}
		r.answer("d-9", "nobody-said-this", "")
		r.Settled(Name, message.Device)
		r.counted()
	})
}

// answered waits for a message on a subject of the device log.
func (r *rig) answered(on message.Subject) (got *message.Message) {
	r.Until(func() bool {
		for _, m := range r.Read(message.Device) {
			if m.Subject == on {
				got = m
			}
		}
		return got != nil
	}, func() string { return "nothing is said on " + string(on) })
	return got
}

func TestAnAnswerGoesWhereItsSenderWantsIt(t *testing.T) {
	story(t, "", func(r *rig) {
		wants := func(s message.Subject) func(*message.Message) {
			return func(m *message.Message) { m.ReplyTo, m.Correlation = s, []byte("mine") }
		}
		asked := r.command("d-1", "c1", "{}", wants("app.answers"))
		r.present("d-1", true)
		if out := r.released(1); out.ReplyTo != "device.d-1.command.open.c1.reply" || string(out.Correlation) != "mine" {
			t.Errorf("the device is to answer on %s with %s", out.ReplyTo, out.Correlation)
		}
		reply := r.answer("d-1", "c1", `{"ok":true,"result":30}`)
		r.is("d-1", "c1", sp.CommandReplied)
		got := r.answered("app.answers")
		if string(got.Data) != `{"ok":true,"result":30}` || string(got.Correlation) != "mine" || got.Cause != reply.ID || got.Trace.ID != reply.Trace.ID || got.Device != "d-1" || got.QoS != 1 || asked.ID == got.ID {
			t.Errorf("the sender is answered with %+v", got)
		}
		r.answer("d-1", "c1", `{"ok":true,"result":31}`) // twice is once
		r.command("d-1", "c2", "{}", wants("device.d-2.presence"))
		r.answer("d-1", "c2", `{"ok":true}`)
		if s := r.is("d-1", "c2", sp.CommandReplied); !strings.Contains(s.Unsaid, "device.d-2.presence") {
			t.Errorf("what the platform alone says is said for others: %+v", s)
		}
		r.Settled(Name, message.Device)
		n := 0
		for _, m := range r.Read(message.Device) {
			if m.Subject == "app.answers" {
				n++
			}
			if m.Subject == "device.d-2.presence" {
				t.Errorf("it said %s", m.Subject)
			}
		}
		if n != 1 {
			t.Errorf("the sender is answered %d times", n)
		}
	})
}

func TestDeviceThatSaysNoHasFailed(t *testing.T) {
	story(t, "", func(r *rig) {
		for id, data := range map[string]string{"no": ` {"ok":false,"error":"the lid is stuck"}`, "yes": `{"ok":true}`, "text": "ok", "list": `[false]`, "other": `{"error":"x"}`} {
			r.command("d-1", id, "")
			r.answer("d-1", id, data)
		}
		if s := r.is("d-1", "no", sp.CommandFailed); s.Detail != "the device says no: the lid is stuck" {
			t.Errorf("it failed with %q", s.Detail)
		}
		for _, id := range []string{"yes", "text", "list", "other"} {
			r.is("d-1", id, sp.CommandReplied)
		}
		r.present("d-2", true)
		r.command("d-2", "c1", "")
		r.receipt(r.released(1), sp.ReceiptRefused, func(x *sp.Receipt) { x.Reason, x.Detail = message.Unsupported, "implementation specific error" })
		if s := r.is("d-2", "c1", sp.CommandFailed); s.Reason != message.Unsupported || s.Detail != "implementation specific error" {
			t.Errorf("it failed as %+v", s)
		}
		r.counted()
	})
}

func TestDeviceThatDoesNotSubscribeKeepsItsCommandsWaiting(t *testing.T) {
	story(t, "", func(r *rig) {
		r.present("d-1", true)
		r.command("d-1", "c1", "")
		deaf := func(x *sp.Receipt) { x.Detail = "it has not subscribed" }
		r.receipt(r.released(1), sp.ReceiptUnsubscribed, deaf)
		if s := r.is("d-1", "c1", sp.CommandQueued); !strings.Contains(s.Why, "connected, and gets nothing: it has not subscribed") || !strings.Contains(s.Look, "device/d-1/command/+/+") {
			t.Errorf("it waits because %q, %q", s.Why, s.Look)
		}
		r.pass(time.Hour)
		r.released(1)
		r.receipt(r.releases()[0], sp.ReceiptSubscribed)
		second := r.released(2)
		// What was said before the device subscribed comes late: it does not count.
		r.version++
		r.receipt(second, sp.ReceiptSubscribed)
		r.receipt(second, sp.ReceiptUnsubscribed, deaf, func(x *sp.Receipt) { x.Version = 1 })
		r.receipt(r.released(3), sp.ReceiptUnsubscribed, deaf)
		r.is("d-1", "c1", sp.CommandQueued)
		r.present("d-1", false)
		r.present("d-1", true) // and perhaps it subscribes now
		r.receipt(r.released(4), sp.ReceiptDelivered)
		if s := r.is("d-1", "c1", sp.CommandDelivered); s.Attempts != 4 {
			t.Errorf("it was released %d times", s.Attempts)
		}
	})
}

func TestCommandComesAgainWhenTheDeviceDoes(t *testing.T) {
	story(t, "", func(r *rig) {
		r.present("d-1", true)
		r.command("d-1", "c1", "")
		r.command("d-1", "c2", "")
		first := r.released(1)
		r.present("d-1", false)
		if s := r.is("d-1", "c1", sp.CommandQueued); !strings.Contains(s.Why, "away since") {
			t.Errorf("it waits because %q", s.Why)
		}
		r.pass(10 * time.Minute)
		r.released(1)
		r.present("d-1", true)
		if again := r.released(2); again.Subject != first.Subject || again.ID == first.ID {
			t.Errorf("released again is %s", again.Subject)
		}
		r.receipt(first, sp.ReceiptDelivered) // of the first, which its session still had
		r.is("d-1", "c1", sp.CommandDelivered)
		r.receipt(r.released(3), sp.ReceiptDelivered)
		r.is("d-1", "c2", sp.CommandDelivered)
		r.counted()
	})
}

func TestCommandIsReleasedOnceMoreWhenNothingIsHeardOfIt(t *testing.T) {
	story(t, `{"again":"1m"}`, func(r *rig) {
		r.present("d-1", true)
		r.command("d-1", "c1", "")
		first := r.released(1)
		r.pass(58 * time.Second)
		r.released(1)
		r.pass(4 * time.Second)
		if again := r.released(2); again.Subject != first.Subject {
			t.Errorf("released again is %s", again.Subject)
		}
		r.receipt(r.releases()[1], sp.ReceiptDelivered)
		r.is("d-1", "c1", sp.CommandDelivered)
		r.pass(10 * time.Minute)
		r.released(2)
	})
}

func TestSameCommandIdIsTheSameCommand(t *testing.T) {
	story(t, "", func(r *rig) {
		r.present("d-1", true)
		first := r.command("d-1", "c1", "one")
		r.command("d-1", "c1", "two")
		r.receipt(r.released(1), sp.ReceiptDelivered)
		r.answer("d-1", "c1", "done")
		r.is("d-1", "c1", sp.CommandReplied)
		r.command("d-1", "c1", "three")
		r.Settled(Name, message.Device)
		r.pass(time.Minute)
		r.released(1)
		if s := r.is("d-1", "c1", sp.CommandReplied); s.Message != first.ID || s.Data != "one" {
			t.Errorf("it is %+v", s)
		}
	})
}

func TestOlderPresenceChangesNothing(t *testing.T) {
	story(t, "", func(r *rig) {
		r.version = 10
		r.present("d-1", true)
		r.version = 5
		r.present("d-1", false)
		r.command("d-1", "c1", "")
		r.released(1)
	})
}

func TestCommandsOfADeletedDeviceAreCancelled(t *testing.T) {
	story(t, "", func(r *rig) {
		r.present("d-1", true)
		r.command("d-1", "c1", "")
		r.command("d-1", "c2", "")
		r.command("d-2", "c1", "")
		r.receipt(r.released(1), sp.ReceiptDelivered)
		r.is("d-1", "c1", sp.CommandDelivered)
		raw, _ := json.Marshal(sp.DeviceChanged{Device: "d-1", Change: sp.Deleted, By: "kim"}) // plain values
		r.Say(componenttest.Message(sp.DeviceChangedSubject("d-1"), "d-1", string(raw)))
		for _, id := range []string{"c1", "c2"} {
			if s := r.is("d-1", id, sp.CommandCancelled); s.Detail != "the device was deleted by kim" {
				t.Errorf("%s ended with %q", id, s.Detail)
			}
		}
		r.is("d-2", "c1", sp.CommandQueued)
		r.counted()
	})
}

func TestLimitsHold(t *testing.T) {
	story(t, `{"waiting_max":3,"ended_kept":2,"ended_age":"1h"}`, func(r *rig) {
		for i := range 5 {
			r.command("d-1", fmt.Sprint("c", i), "")
		}
		r.Until(func() bool { _, dead := r.Dead(Name); return len(dead) == 2 }, func() string { return "two do not die" })
		if _, dead := r.Dead(Name); dead[0].Reason != message.CommandLimit {
			t.Errorf("it died of %s", dead[0].Reason)
		}
		for i := range 3 {
			r.answer("d-1", fmt.Sprint("c", i), "")
		}
		r.is("d-1", "c2", sp.CommandReplied)
		if code := r.ask("GET", "/api/v1/commands/d-1/c0", "", nil); code != 404 {
			t.Errorf("the third of what ended is still there: %d", code)
		}
		r.is("d-1", "c1", sp.CommandReplied)
		// What is delivered and never answered does not heap up.
		r.present("d-1", true)
		for i := range 4 {
			r.command("d-1", fmt.Sprint("o", i), "")
			r.receipt(r.released(i+1), sp.ReceiptDelivered)
			r.is("d-1", fmt.Sprint("o", i), sp.CommandDelivered)
		}
		if s := r.is("d-1", "o0", sp.CommandExpired); s.Reason != message.CommandLimit {
			t.Errorf("it ended as %+v", s)
		}
		r.counted()
		r.pass(2 * time.Hour)
		if code := r.ask("GET", "/api/v1/commands/d-1/o0", "", nil); code != 404 {
			t.Errorf("after two hours what ended is still there: %d", code)
		}
		r.counted()
		r.Settled(Name, message.Device)
	})
}

func TestNothingIsForgottenWhenTheProcessEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := componenttest.New(t)
		r := &rig{Rig: c, t: t}
		c.Start(Spec)
		r.present("d-1", true)
		r.command("d-1", "c1", "")
		r.command("d-1", "c2", "")
		first := r.released(1)
		c.Stop()
		r.receipt(first, sp.ReceiptDelivered)
		r.command("d-2", "c1", "", func(m *message.Message) { m.Expires = time.Now().Add(30 * time.Second) })
		r.pass(time.Minute)
		c.Start(Spec)
		r.is("d-1", "c1", sp.CommandDelivered)
		if second := r.released(2); second.Subject.Token(6) != "c2" {
			t.Errorf("released is %s", second.Subject)
		}
		r.is("d-2", "c1", sp.CommandExpired)
		r.Settled(Name, message.Device)
		r.counted()
		c.Close()
	})
}

func TestCommandKeepsThePromises(t *testing.T) {
	componenttest.Promises(t, componenttest.Case{Spec: Spec, Good: func() []*message.Message {
		c := componenttest.Message("device.d-1.command.open.c1", "d-1", "{}")
		reply := componenttest.Message("device.d-1.command.open.c1.reply", "d-1", "{}")
		return []*message.Message{c, reply}
	}, Poison: func() *message.Message { return componenttest.Message("device.d-1.command.%.c1", "d-1", "") }})
}
