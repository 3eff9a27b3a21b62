package simulator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/component"
)

// Config is the component's configuration.
type Config struct {
	Devices int    `json:"devices"` // none where 0
	Rate    string `json:"rate"`    // between two readings of a device
	Server  string `json:"server"`
	Seed    uint64 `json:"seed"`
}

// Platform is what a fleet needs from the platform it runs in.
type Platform interface {
	// Enrol gives a new certificate and key for the device, both PEM.
	Enrol(ctx context.Context, device string) (certificate, key []byte, err error)
	// CA gives the PEM of the roots that the server is trusted by.
	CA(ctx context.Context) ([]byte, error)
	// Server gives the address where devices connect, once somebody listens there. It is asked where the configured
	// address leaves the port open.
	Server(ctx context.Context) (string, error)
}

// With declares the component for a process that can enrol devices. Certificates are kept in the component's directory,
// and asked for again in the last third of their time.
func With(p Platform) component.Spec {
	return component.Define(component.Spec{
		Name: "device.simulator",
		Doc:  "A fleet of lifelike devices, connected as real ones are.",
	}, Config{Rate: "1s", Server: "127.0.0.1:8883", Seed: 1}, func(e component.Env, c Config) (*component.Part, error) {
		rate, err := time.ParseDuration(c.Rate)
		if err != nil || rate < time.Millisecond || c.Devices < 0 {
			return nil, fmt.Errorf("devices %d, rate %q: want a number and a duration of a millisecond or more, such as 1s", c.Devices, c.Rate)
		}
		return &component.Part{Run: func(ctx context.Context, ready func()) error { return run(ctx, ready, e, c, rate, p) }}, nil
	})
}

func run(ctx context.Context, ready func(), e component.Env, c Config, rate time.Duration, p Platform) error {
	if c.Devices == 0 {
		ready()
		<-ctx.Done()
		return nil
	}
	dir, err := e.Dir()
	if err != nil {
		return err
	}
	ca, err := p.CA(ctx)
	if err != nil {
		return fmt.Errorf("ask for the platform's CA: %w", err)
	}
	if strings.HasSuffix(c.Server, ":0") {
		if c.Server, err = p.Server(ctx); err != nil {
			return fmt.Errorf("ask where devices connect: %w", err)
		}
	}
	fleet := &Fleet{}
	defer measure(e.Metrics, fleet)()
	ready()
	return fleet.Run(ctx, Options{Devices: c.Devices, Rate: rate, Server: c.Server, CA: ca, Seed: c.Seed, Log: e.Log,
		Provision: remember(dir, e.Now, p.Enrol)})
}

// remember gives the certificate that is kept in dir while it has a third of its time left, else a new one.
func remember(dir string, now func() time.Time, enrol func(context.Context, string) (cert, key []byte, err error)) Provision {
	return func(ctx context.Context, device string) (tls.Certificate, error) {
		path := filepath.Join(dir, url.PathEscape(device)+".pem")
		if b, err := os.ReadFile(path); err == nil {
			if pair, err := tls.X509KeyPair(b, b); err == nil && fresh(pair.Leaf, now()) {
				return pair, nil
			}
		} else if !errors.Is(err, os.ErrNotExist) {
			return tls.Certificate{}, err
		}
		cert, key, err := enrol(ctx, device)
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("enrol %s: %w", device, err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("enrol %s: the certificate and its key: %w", device, err)
		}
		return pair, keep(path, append(append([]byte{}, cert...), key...))
	}
}

func fresh(c *x509.Certificate, now time.Time) bool {
	return now.Before(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2))
}

// keep writes certificate and key as one file, so that there are both or neither.
func keep(path string, b []byte) error {
	if block, _ := pem.Decode(b); block == nil {
		return fmt.Errorf("keep %s: no PEM", path)
	}
	temp := path + ".tmp"
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return fmt.Errorf("keep a certificate: %w", err)
	}
	return os.Rename(temp, path)
}

// measure shows the fleet's counts, until the function it gives is called.
func measure(r prometheus.Registerer, f *Fleet) (end func()) {
	if r == nil {
		return func() {}
	}
	counter := func(name, help string, v func(Stats) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(v(f.Stats())) })
	}
	all := []prometheus.Collector{
		counter("naru_simulator_sent_total", "Messages sent, repetitions among them.", func(s Stats) uint64 { return s.Sent }),
		counter("naru_simulator_acked_total", "Messages that the platform acknowledged.", func(s Stats) uint64 { return s.Acked }),
		counter("naru_simulator_reconnects_total", "Connections after a device's first.", func(s Stats) uint64 { return s.Reconnects }),
		counter("naru_simulator_failures_total", "Readings and connections that failed.", func(s Stats) uint64 { return s.Failed }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "naru_simulator_devices", Help: "Devices that have connected and not ended."},
			func() float64 { return float64(f.Stats().Connected) }),
	}
	for _, c := range all {
		_ = r.Register(c) // there already: another fleet of this process is shown
	}
	return func() {
		for _, c := range all {
			r.Unregister(c)
		}
	}
}
