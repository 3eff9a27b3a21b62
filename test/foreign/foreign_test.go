//go:build foreign

package foreign

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/internal/porttest"
)

// naru runs the real binary with a configuration, and gives what runs its commands.
func naru(t *testing.T, config string) (command func(args ...string) string) {
	t.Helper()
	dir := t.TempDir()
	binary, file := filepath.Join(dir, "naru"), filepath.Join(dir, "naru.yaml")
	if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/naru").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, binary, "up", "--data", data, "--config", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	command = func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), binary, append([]string{"--data", data}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("naru %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(30 * time.Second); ; {
		if exec.CommandContext(t.Context(), binary, "--data", data, "status").Run() == nil {
			return command
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("naru does not come up")
		}
	}
}

func free(t *testing.T) (addr, port string) {
	t.Helper()
	addr = porttest.Addr(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return addr, port
}

// node runs a script, and gives what it prints. A script may end by killing itself once it has printed its answer.
func node(t *testing.T, env []string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "node", args...)
	c.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if killed := c.ProcessState != nil && c.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL; err != nil && (!killed || len(out) == 0 || ctx.Err() != nil) {
		t.Errorf("node %v: %v\n%s%s", args, err, out, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

const brokerConfig = `
http: 127.0.0.1:0
service_platform.broker:
  listen: DEVICES
  listeners:
    - {name: web, address: WEB, protocol: ws, auth: none, policy: open, mount: 3rd_party.web}
    - {name: secure web, address: SECURE, protocol: wss}
service_platform.x509:
  templates:
    pumps: {name: "pump-${SerialNumber}", parameters: [SerialNumber]}
`

func TestMQTTJSOverWebSocketAndTLS(t *testing.T) {
	devices, port := free(t)
	web, _ := free(t)
	secure, securePort := free(t)
	naru := naru(t, strings.NewReplacer("DEVICES", devices, "WEB", web, "SECURE", secure).Replace(brokerConfig))
	dir := t.TempDir()
	naru("device", "add", "js", "--out", dir)
	tls := []string{"CA=" + filepath.Join(dir, "ca.crt"), "CERT=" + filepath.Join(dir, "device.crt"), "KEY=" + filepath.Join(dir, "device.key")}
	for _, version := range []string{"4", "5"} {
		node(t, nil, "mqttjs.js", "ws://"+web+"/mqtt", version, "web-"+version, "room/"+version)
		node(t, tls, "mqttjs.js", "mqtts://127.0.0.1:"+port, version, "js", "device/js/event")
		node(t, tls, "mqttjs.js", "wss://127.0.0.1:"+securePort+"/mqtt", version, "js", "device/js/event")
		for _, name := range []string{"mqtt", "x-amzn-mqtt-ca"} { // as AWS IoT's devices ask, where 8883 is shut to them
			node(t, append([]string{"ALPN=" + name}, tls...), "mqttjs.js", "mqtts://127.0.0.1:"+port, version, "js", "device/js/event")
		}
		naru("device", "show", "js")
	}
}

func TestAWSIoTDeviceSDKProvisionsByClaim(t *testing.T) {
	devices, port := free(t)
	web, _ := free(t)
	naru := naru(t, strings.NewReplacer("DEVICES", devices, "WEB", web, "SECURE", "127.0.0.1:0").Replace(brokerConfig))
	dir := t.TempDir()
	naru("ca", "claim", "add", "lot", "--template", "pumps", "--out", dir)
	var cert, key string
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		switch name := filepath.Join(dir, f.Name()); {
		case f.Name() == "ca.crt":
		case strings.HasSuffix(name, ".crt"):
			cert = name
		case strings.HasSuffix(name, ".key"):
			key = name
		}
	}
	csr := filepath.Join(dir, "own.csr")
	if out, err := exec.Command("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", filepath.Join(dir, "own.key"),
		"-subj", "/CN=own", "-out", csr).CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	for serial, request := range map[string]string{"1": "-", "2": csr} {
		if got := node(t, nil, "provision.js", "127.0.0.1", port, filepath.Join(dir, "ca.crt"), cert, key, "pumps", serial, request); got != "pump-"+serial {
			t.Errorf("the device is %q; want pump-%s", got, serial)
		}
	}
	if out := naru("device", "list"); !strings.Contains(out, "pump-1") || !strings.Contains(out, "pump-2") {
		t.Errorf("the devices are\n%s", out)
	}
}

func TestAWSIoTDeviceSDKKeepsShadows(t *testing.T) {
	devices, port := free(t)
	web, _ := free(t)
	naru := naru(t, strings.NewReplacer("DEVICES", devices, "WEB", web, "SECURE", "127.0.0.1:0").Replace(brokerConfig))
	for _, version := range []string{"5", "311"} {
		for _, shadow := range []string{"-", "config"} {
			id := "sdk" + version + strings.Trim(shadow, "-")
			dir := t.TempDir()
			naru("device", "add", id, "--out", dir)
			wish := []string{"twin", "set", id, "color=white"}
			if shadow != "-" {
				wish = append(wish, "--name", shadow)
			}
			got := talk(t, func() { naru(wish...) }, "shadow.js", "127.0.0.1", port, filepath.Join(dir, "ca.crt"), filepath.Join(dir, "device.crt"), filepath.Join(dir, "device.key"), id, version, shadow)
			if got != "waiting\ndone" {
				t.Errorf("MQTT %s, shadow %s: printed %q", version, shadow, got)
			}
			if out := naru("messages", "--device", id, "--limit", "200"); !strings.Contains(out, "device."+id+".telemetry") || strings.Contains(out, "$aws") {
				t.Errorf("the log has of %s\n%s", id, out)
			}
		}
	}
}

// talk runs a script that prints `waiting` when something is to be done outside, and gives all it prints.
func talk(t *testing.T, do func(), args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "node", args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	pipe, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		out.WriteString(lines.Text() + "\n")
		if lines.Text() == "waiting" {
			do()
		}
	}
	if err := c.Wait(); !strings.HasSuffix(out.String(), "done\n") {
		t.Errorf("node %v: %v\n%s%s", args, err, out.String(), stderr.Bytes())
	}
	return strings.TrimSpace(out.String())
}
