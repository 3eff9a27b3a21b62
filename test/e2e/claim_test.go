package e2e

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestADeviceGetsItsCertificateWithAClaim goes the way of AWS IoT's fleet provisioning with mosquitto's clients: a key and
// a certificate for a claim certificate, the device registered with a template, and the device connected.
func TestADeviceGetsItsCertificateWithAClaim(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "naru.yaml")
	if err := os.WriteFile(config, []byte("service_platform.x509:\n  templates:\n    pumps:\n      name: pump-${SerialNumber}\n      parameters: [SerialNumber]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t, "--config", config)
	p.start()
	lot := filepath.Join(dir, "lot")
	if out, code := p.naru("ca", "claim", "add", "lot-1", "--template", "pumps", "--out", lot); code != 0 {
		t.Fatal(out)
	}
	_, port, err := net.SplitHostPort(p.mqtt)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range []string{"crt", "key"} {
		found, err := filepath.Glob(filepath.Join(lot, "*."+f))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range found {
			if !strings.HasPrefix(filepath.Base(name), "ca") {
				files[f] = name
			}
		}
	}
	ca := filepath.Join(lot, "ca.crt")
	ask := func(topic, request string, answer any) {
		t.Helper()
		var out, errs bytes.Buffer
		c := exec.CommandContext(t.Context(), "mosquitto_rr", "-p", port, "--cafile", ca, "--cert", files["crt"], "--key", files["key"], "-i", "any-name",
			"-q", "1", "-t", topic, "-e", topic+"/accepted", "-m", request, "-W", "20")
		c.Stdout, c.Stderr = &out, &errs
		if err := c.Run(); err != nil {
			t.Fatalf("%s: %v\n%s%s", topic, err, &errs, p.out)
		}
		if err := json.Unmarshal(out.Bytes(), answer); err != nil {
			t.Fatalf("%s: %v", topic, err)
		}
	}
	var made struct {
		CertificatePem            string `json:"certificatePem"`
		PrivateKey                string `json:"privateKey"`
		CertificateOwnershipToken string `json:"certificateOwnershipToken"`
	}
	ask("$aws/certificates/create/json", "{}", &made)
	request, err := json.Marshal(map[string]any{"certificateOwnershipToken": made.CertificateOwnershipToken, "parameters": map[string]string{"SerialNumber": "77"}})
	if err != nil {
		t.Fatal(err)
	}
	var registered struct {
		ThingName string `json:"thingName"`
	}
	ask("$aws/provisioning-templates/pumps/provision/json", string(request), &registered)
	if registered.ThingName != "pump-77" {
		t.Errorf("the device is %q", registered.ThingName)
	}
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	crt, key := write("device.crt", made.CertificatePem), write("device.key", made.PrivateKey)
	pub := func(cert, key, id, topic string) error {
		return exec.CommandContext(t.Context(), "mosquitto_pub", "-V", "5", "-p", port, "--cafile", ca, "--cert", cert, "--key", key, "-i", id, "-q", "1",
			"-t", topic, "-m", `{"celsius":1}`).Run()
	}
	if err := pub(crt, key, "pump-77", "device/pump-77/telemetry"); err != nil {
		t.Errorf("the device cannot publish: %v", err)
	}
	// The claim certificate is good for nothing else, and what went over these topics is nowhere.
	if out, err := exec.CommandContext(t.Context(), "mosquitto_sub", "-V", "5", "-p", port, "--cafile", ca, "--cert", files["crt"], "--key", files["key"],
		"-t", "device/#", "-W", "2", "-C", "1").CombinedOutput(); !strings.Contains(string(out), "denied") {
		t.Errorf("a claim certificate subscribes to devices: %v %s", err, out)
	}
	p.settled(1)
	p.stop()
	secrets := []string{made.CertificateOwnershipToken, strings.Split(made.PrivateKey, "\n")[1]}
	err = filepath.WalkDir(p.data, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(name)
		for _, s := range secrets {
			if bytes.Contains(raw, []byte(s)) {
				t.Errorf("%s holds a secret that was given out", name)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets {
		if strings.Contains(p.out.String(), s) {
			t.Error("a secret was logged")
		}
	}
}
