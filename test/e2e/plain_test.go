package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// clients are mosquitto's, against an address.
type clients struct {
	t    *testing.T
	port string
}

func (c clients) command(name string, args ...string) *exec.Cmd {
	return exec.CommandContext(c.t.Context(), name, append([]string{"-p", c.port}, args...)...)
}

// pub publishes, and wants that to work.
func (c clients) pub(args ...string) {
	c.t.Helper()
	if out, err := c.command("mosquitto_pub", args...).CombinedOutput(); err != nil {
		c.t.Fatalf("mosquitto_pub %v: %v\n%s", args, err, out)
	}
}

// sub gives what comes within the count and the seconds that the arguments say.
func (c clients) sub(args ...string) []string {
	c.t.Helper()
	out, err := c.command("mosquitto_sub", args...).Output()
	if err != nil && c.t.Context().Err() != nil {
		c.t.Fatal(err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })
}

// listen subscribes, and returns when that is granted; the lines come by the channel, which is closed at the end.
func (c clients) listen(args ...string) <-chan string {
	c.t.Helper()
	lines, _ := c.listener(args...)
	return lines
}

// listener is listen, with what ends the client as a machine does that loses its power.
func (c clients) listener(args ...string) (_ <-chan string, kill func()) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), "stdbuf", append([]string{"-oL", "mosquitto_sub", "-d", "-p", c.port}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	lines, granted := make(chan string, 1000), make(chan struct{})
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			switch line := s.Text(); {
			case strings.HasPrefix(line, "Subscribed"):
				close(granted)
			case strings.HasPrefix(line, "Client ") || strings.HasPrefix(line, "Subscribed"):
			default:
				lines <- line
			}
		}
		_ = cmd.Wait() // ended by its count, its time, or the test
	}()
	select {
	case <-granted:
	case <-time.After(time.Minute):
		c.t.Fatalf("mosquitto_sub %v was not granted", args)
	}
	return lines, func() { _ = cmd.Process.Kill() }
}

func collect(lines <-chan string) (list []string) {
	for l := range lines {
		list = append(list, l)
	}
	return list
}

func TestPlainConfigurationIsAnOrdinaryBroker(t *testing.T) {
	p := newPlatform(t, "--config", "../../examples/plain-mqtt.yaml")
	p.start()
	_, port, err := net.SplitHostPort(p.mqtt)
	if err != nil {
		t.Fatal(err)
	}
	c := clients{t, port}
	equal := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}

	live := c.listen("-t", "a/#", "-v", "-q", "2", "-C", "3", "-W", "60")
	for qos := range 3 {
		c.pub("-t", "a/b c/"+fmt.Sprint(qos), "-m", "hello", "-q", fmt.Sprint(qos))
	}
	equal("QoS 0 to 2", collect(live), "a/b c/0 hello", "a/b c/1 hello", "a/b c/2 hello")

	c.pub("-t", "state/x", "-m", "kept", "-q", "1", "-r")
	equal("retained", c.sub("-t", "state/+", "-v", "-C", "1", "-W", "60"), "state/x kept")
	c.pub("-t", "state/x", "-n", "-r", "-q", "1")
	equal("retained and removed", c.sub("-t", "state/+", "-v", "-C", "1", "-W", "1"))

	c.sub("-c", "-i", "s1", "-q", "2", "-t", "work/#", "-E")
	for i := range 5 {
		c.pub("-t", "work/x", "-m", fmt.Sprint(i), "-q", "2")
	}
	p.kill() // and what the session is owed is there all the same
	p.start()
	equal("a session", c.sub("-c", "-i", "s1", "-q", "2", "-t", "work/#", "-C", "5", "-W", "60"), "0", "1", "2", "3", "4")

	first := c.listen("-V", "5", "-t", "$share/g/job/#", "-q", "1", "-W", "60", "-C", "2")
	second := c.listen("-V", "5", "-t", "$share/g/job/#", "-q", "1", "-W", "60", "-C", "2")
	for i := range 4 {
		c.pub("-V", "5", "-t", "job/x", "-m", fmt.Sprint(i), "-q", "1")
	}
	all := append(collect(first), collect(second)...)
	slices.Sort(all)
	equal("a group", all, "0", "1", "2", "3")

	wills := c.listen("-t", "will/#", "-C", "1", "-W", "60")
	dying, kill := c.listener("-t", "x", "-i", "dying", "--will-topic", "will/x", "--will-payload", "gone")
	kill()
	collect(dying)
	equal("a will", collect(wills), "gone")

	reply := c.listen("-V", "5", "-t", "answer", "-C", "1", "-W", "60", "-F", "%t %p %P")
	c.pub("-V", "5", "-t", "answer", "-m", "42", "-D", "publish", "user-property", "a", "b", "-D", "publish", "message-expiry-interval", "60")
	equal("properties", collect(reply), "answer 42 a:b")

	var list struct {
		Messages []struct {
			Subject string `json:"subject"`
		} `json:"messages"`
	}
	for until := time.Now().Add(time.Minute); len(list.Messages) == 0; {
		p.json(&list, "messages", "--subject", "3rd_party.legacy.answer")
		if time.Now().After(until) {
			t.Fatal("the platform does not list what a client said")
		}
	}
	p.settled(0)
	p.stop()
}
