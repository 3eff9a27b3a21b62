//go:build long

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/operator/deadletter"
)

// deadLetters waits until so many letters are kept.
func (p *platform) deadLetters(n int, args ...string) (l deadletter.List) {
	p.t.Helper()
	for until := time.Now().Add(time.Minute); ; {
		l = deadletter.List{}
		if p.json(&l, append([]string{"dead", "list"}, args...)...); len(l.Letters) == n {
			return l
		}
		if time.Now().After(until) {
			p.t.Fatalf("want %d letters, there are %d: %+v", n, len(l.Letters), l.Letters)
		}
	}
}

// job begins one and gives its id.
func (p *platform) job(args ...string) string {
	p.t.Helper()
	var j deadletter.Job
	p.json(&j, append([]string{"dead"}, args...)...)
	return j.ID.String()
}

// jobIs waits until a job is in a state and nothing of it waits.
func (p *platform) jobIs(id, state string) (j deadletter.JobShown) {
	p.t.Helper()
	for until := time.Now().Add(time.Minute); ; {
		j = deadletter.JobShown{}
		if p.json(&j, "dead", "job", id); j.State == state && j.Waiting == 0 {
			return j
		}
		if time.Now().After(until) {
			p.t.Fatalf("the job is not %s: %+v", state, j.Job)
		}
	}
}

// TestDeadLettersGoBackToWhereTheyDied goes through `naru dead` with commands that died for want of room: a canary that fails, a job that
// is cancelled, one in whose middle the process is killed, an edit, a discard, and the record of all that.
func TestDeadLettersGoBackToWhereTheyDied(t *testing.T) {
	config := filepath.Join(t.TempDir(), "naru.yaml")
	if err := os.WriteFile(config, []byte("service_platform.command:\n  waiting_max: 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t, "--config", config)
	p.start()
	say := func(id string) {
		t.Helper()
		if out, code := p.naru("topic", "pub", "device.d-1.command.open."+id, `{"n":1}`); code != 0 {
			t.Fatalf("pub: %s", out)
		}
	}
	for _, id := range []string{"w1", "w2"} {
		say(id)
		p.awaitedCommand("d-1", id, "queued")
	}
	const dead = 12
	for i := range dead {
		say(fmt.Sprintf("x%02d", i))
	}
	l := p.deadLetters(dead, "--device", "d-1", "--reason", "command_limit")
	if x := l.Letters[0]; x.Component != "service_platform.command" || x.Owner != "service_platform" || !strings.HasPrefix(string(x.Subject), "device.d-1.command.open.x") {
		t.Errorf("a letter is %+v", x)
	}
	if out, code := p.naru("dead", "groups"); code != 2 || !strings.Contains(out, "command_limit") || !strings.Contains(out, fmt.Sprint(dead)) {
		t.Errorf("groups exits with %d: %s", code, out)
	}
	if out, code := p.naru("dead", "show", l.Letters[0].ID.String()); code != 0 || !strings.Contains(out, `{"n":1}`) || !strings.Contains(out, l.Letters[0].Trace.String()) {
		t.Errorf("show exits with %d: %s", code, out)
	}
	// There is no room yet: the first to go die again, one of which is enough to stop, and the others stay.
	id := p.job("retry", "--all")
	if j := p.jobIs(id, deadletter.Stopped); j.Sent == 0 || j.Sent > 5 || j.Died != j.Sent {
		t.Errorf("the canary ended as %+v", j.Job)
	}
	p.deadLetters(dead, "--device", "d-1")

	// Room is made for one more; a job for all of them is cancelled when its first letter is handled.
	if out, code := p.naru("command", "cancel", "d-1", "w1"); code != 0 {
		t.Fatal(out)
	}
	id = p.job("retry", "--all", "--canary", "1", "--rate", "0.2")
	for until := time.Now().Add(time.Minute); ; {
		var j deadletter.JobShown
		if p.json(&j, "dead", "job", id); j.Handled == 1 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("nothing of the job is handled: %+v", j.Job)
		}
	}
	if out, code := p.naru("dead", "cancel", id); code != 0 {
		t.Fatal(out)
	}
	j := p.jobIs(id, deadletter.Cancelled)
	if left := p.deadLetters(dead - int(j.Handled)); j.Handled != 1 && len(left.Letters) == 0 {
		t.Errorf("the job ended as %+v", j.Job)
	}

	// What is edited goes back with other data, under its own id and trace.
	l = p.deadLetters(dead-1, "--device", "d-1")
	x := l.Letters[0]
	mended := filepath.Join(t.TempDir(), "mended.json")
	if err := os.WriteFile(mended, []byte(`{"n":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := p.naru("dead", "edit", x.ID.String(), "--file", mended); code != 0 {
		t.Fatal(out)
	}
	if out, code := p.naru("command", "cancel", "d-1", "w2"); code != 0 {
		t.Fatal(out)
	}
	p.jobIs(p.job("retry", x.ID.String()), deadletter.Done)
	s := p.awaitedCommand("d-1", x.Subject.Token(4), "queued")
	if s.Data != `{"n":2}` || s.Message != x.Message || s.Trace != x.Trace {
		t.Errorf("the edited command is %+v", s)
	}

	// The process is killed in the middle of a discard, which goes on.
	id = p.job("discard", "--all", "--rate", "1", "--note", "the lab bench")
	for {
		var j deadletter.JobShown
		if p.json(&j, "dead", "job", id); j.Discarded > 1 {
			break
		}
	}
	p.kill()
	p.start()
	if j := p.jobIs(id, deadletter.Done); j.Discarded != dead-2 || j.Selected != dead-2 {
		t.Errorf("the job ended as %+v", j.Job)
	}
	p.deadLetters(0)

	out, code := p.naru("dead", "audit")
	for _, want := range []string{"retry", "cancel", "edit", "discard", "the lab bench"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("the audit has no %s: %s", want, out)
		}
	}
	for _, line := range p.settled(0) {
		if line.Accepted != line.Handled+line.Waiting+line.Dead {
			t.Errorf("ledger: %+v", line)
		}
	}
	p.stop()
}
