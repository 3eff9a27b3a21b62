// Package x509 has the platform's certificate authority (package authority), and decides which certificate admits which device.
//
// The CA ([authority.Authority]) is a root and an issuing CA of ECDSA P-256, made at the first start in the component's own
// directory. Its keys are encrypted there, and never leave that directory but for the root's, which may be exported and
// removed. It runs in one process. The devices and their certificates ([Registry]), the CAs of others ([CAs]), the
// templates and the public trust bundle are tables on the bus, so that [Admission] decides in every process that has a
// door for devices.
//
// The ways in: an operator adds a device; a device enrols by EST (RFC 7030) with a one-time token or renews with its
// certificate; a claim certificate asks on AWS IoT's provisioning topics; a device of a registered CA is registered when
// it first comes. Every attempt is recorded step by step, for `naru why device`.
//
// A process with such a door but without this component needs a server certificate all the same: `server_cert` and
// `server_key` in its configuration, or server.crt and server.key in `<data>/service_platform.x509/`.
package x509

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/message"
)

// Name is the component's name, and that of its directory under the data directory.
const Name = "service_platform.x509"

// Config is the component's configuration.
type Config struct {
	// DeviceValidity is how long a device's certificate is valid where a request does not say.
	DeviceValidity Duration `json:"device_validity"`
	// Hosts are names and addresses under which devices reach the listeners, for the server certificate.
	Hosts []string `json:"hosts"`
	// AddRoot has this directory's root trusted beside another one that the platform already has, or in the place of a list of trusted
	// CAs that cannot be read.
	AddRoot bool `json:"add_root"`
	// PassphraseFile holds the passphrase that the CA's keys are encrypted with; where it is empty, the environment
	// variable NARU_CA_PASSPHRASE does, and without either a machine key in the component's directory.
	PassphraseFile string `json:"passphrase_file"`
	// Templates decide what becomes of devices that register themselves, by name.
	Templates map[string]Template `json:"templates"`
	// CRLURL is where others fetch the revocation list (GET /api/v1/ca/crl); it is written into the certificates that are
	// issued. ${issuer} in it stands for the issuing CA's key identifier.
	CRLURL string `json:"crl_url"`
	// EST is how devices enrol by RFC 7030.
	EST ESTConfig `json:"est"`
}

// renewEvery is how often the CA looks whether something is due; what is due has weeks left.
const renewEvery = time.Hour

// Spec declares the component, for a process without a door for devices.
var Spec = With(nil)

// With declares the component for a process whose door is a: what devices ask for at that door by MQTT (see
// [Admission.Provision]) is answered here.
func With(a *Admission) component.Spec {
	return component.Define(component.Spec{
		Name: Name,
		Doc:  "Certificate authority and device registry: issues, revokes and disables, and says so.",
		Says: []message.Pattern{"service_platform.x509.device.*"},
	}, Config{DeviceValidity: Duration(365 * 24 * time.Hour), Hosts: []string{}, Templates: map[string]Template{}},
		func(env component.Env, c Config) (*component.Part, error) { return build(env, c, a) })
}

func build(env component.Env, c Config, a *Admission) (*component.Part, error) {
	if time.Duration(c.DeviceValidity) < time.Minute {
		return nil, fmt.Errorf("device_validity %s is too short; a minute is the least", time.Duration(c.DeviceValidity))
	}
	if err := authority.CheckCRLURL(c.CRLURL); err != nil {
		return nil, err
	}
	for name, t := range c.Templates {
		if err := t.check(name); err != nil {
			return nil, err
		}
	}
	s := newService(env, c, a)
	return &component.Part{Run: s.run, Routes: s.routes()}, nil
}

func newService(env component.Env, c Config, a *Admission) *service {
	began := time.Now() // which has a monotonic reading
	s := &service{env: env, config: c, admission: a, uptime: func() time.Duration { return time.Since(began) }}
	s.metrics.register(env.Metrics)
	return s
}

// service is the running component.
type service struct {
	env       component.Env
	config    Config
	admission *Admission // of this process; nil where it has no door for devices
	metrics   metrics
	open      atomic.Pointer[opened] // nil until the CA is there
	uptime    func() time.Duration   // of this process: grows evenly, whatever is done to the clock
}

type opened struct {
	authority *authority.Authority
	// publishing is held from reading what the authority has until that is published, and over all of a retirement.
	publishing             sync.Mutex
	registry               *Registry
	trust                  store
	keysSwept, ownersSwept time.Time // by sweep alone
	ahead                  ahead     // by sweep alone
	cas                    *CAs
	unread                 *unreadables
	templates              map[string]Template
	policies               *names.Known
	asking                 asking
	index                  *index
	withdrawn              withdrawals
	claimKeys              claimKeys
	waiting                waiting
	teller                 *teller
	crls                   crlCache
	estAddr                string // where EST listens, if it does
	estDoor                *Admission
	// wrongTemplates are those that were logged for their policy, by look alone.
	wrongTemplates map[string]bool
}

func (s *service) run(ctx context.Context, ready func()) error {
	dir, err := s.env.Dir()
	if err != nil {
		return err
	}
	passphrase, err := s.config.passphrase()
	if err != nil {
		return err
	}
	o := &opened{templates: s.config.Templates, policies: names.NewKnown(s.env.Bus, names.Policies, s.env.Now), wrongTemplates: map[string]bool{},
		asking: asking{seed: maphash.MakeSeed()}}
	if o.authority, err = authority.Open(dir, authority.Options{
		Now: s.env.Now, Hosts: s.config.Hosts, DeviceValidity: time.Duration(s.config.DeviceValidity), Passphrase: passphrase,
		CRLURL: s.config.CRLURL, Log: s.env.Log,
	}); err != nil {
		return err
	}
	warnReadable(s.env.Log, append(o.authority.Secrets(), s.config.PassphraseFile)...)
	if o.trust, err = openStore(ctx, s.env.Bus, trustTable, bus.TableOptions{}); err != nil {
		return err
	}
	if err := s.publish(ctx, o, nil); err != nil {
		return err
	}
	if err := publishTemplates(ctx, o.trust, o.templates); err != nil {
		return err
	}
	o.unread = &unreadables{log: s.env.Log}
	o.cas = &CAs{o.trust, s.env.Now, o.unread}
	if o.registry, err = OpenRegistry(ctx, s.env.Bus, s.env.Now); err != nil {
		return err
	}
	o.teller = newTeller(s, o)
	o.index = newIndex(s.env.Log, o.teller.later)
	o.registry.wrote, o.registry.withdrew = o.index.apply, o.withdrawn.apply
	o.registry.claimKey, o.registry.otherDevices = o.claimKeys.check, o.otherDevices

	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !s.load(ctx, &all, o) {
		return nil
	}
	if s.admission != nil {
		o.registry.wrote = func(e bus.Entry) { // its own door need not wait for the bus
			o.index.apply(e)
			s.admission.applyDevice(e)
		}
	}
	answers := &provisioning{s: s, o: o, door: s.admission}
	if s.admission != nil {
		var p Provisioner = answers
		s.admission.provisioner.Store(&p)
		defer s.admission.provisioner.Store(nil)
	} else { // records what it answers to doors elsewhere, and lets nobody in
		answers.door = NewAdmission(s.env.Bus, AdmissionOptions{Now: s.env.Now, Log: s.env.Log, Node: s.env.Node + "-ca"})
		all.Go(func() { _ = answers.door.Run(ctx, nil) }) // ends with ctx, without an error
	}
	all.Go(func() {
		if err := answers.answerAfar(ctx); err != nil && ctx.Err() == nil {
			s.env.Log.Error("claim certificates are answered at this process's own door only", "error", err)
		}
	})
	all.Go(func() { o.teller.run(ctx) })
	if s.config.EST.Listen != "" {
		stop, err := s.serveEST(ctx, o)
		if err != nil {
			return err
		}
		defer stop()
	}
	s.open.Store(o)
	defer s.open.Store(nil)
	s.measure(o)
	s.look(ctx, o)
	ready()

	due, look := time.NewTicker(renewEvery), time.NewTicker(lookEvery)
	defer due.Stop()
	defer look.Stop()
	begins := o.authority.Newest()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			s.look(ctx, o)
			// The clock went back behind what was made by it: replaced now, and not in an hour; once, if it cannot be.
			if newest := o.authority.Newest(); s.env.Now().Before(newest) && !newest.Equal(begins) {
				begins = newest
				s.renewOrSay(ctx, o)
			}
			if err := s.sweepWaiting(ctx, o); err != nil && ctx.Err() == nil {
				s.env.Log.Error("ownership tokens that have ended cannot be swept; trying again in a while", "error", err)
			}
		case <-due.C:
			s.renewOrSay(ctx, o)
			if err := s.sweep(ctx, o); err != nil && ctx.Err() == nil {
				s.env.Log.Error("expired entries cannot be swept; trying again in an hour", "error", err)
			}
		}
	}
}

// load has the tables followed that are held in memory, and waits until they have been read; false where ctx is done
// before.
func (s *service) load(ctx context.Context, all *sync.WaitGroup, o *opened) bool {
	var read sync.WaitGroup
	for _, t := range []struct {
		table, prefix string
		apply         func(bus.Entry)
		synced        func()
	}{
		{devicesTable, devicePrefix, o.index.apply, o.index.loaded},
		{trustTable, revokedPrefix, o.withdrawn.apply, func() {}},
		{trustTable, claimPrefix, func(e bus.Entry) { o.withdrawn.apply(e); o.claimKeys.apply(e) }, func() {}},
		{trustTable, ownershipPrefix, o.waiting.apply, func() {}},
	} {
		read.Add(1)
		once := sync.OnceFunc(func() {
			t.synced()
			read.Done()
		})
		all.Go(func() {
			follow(ctx, s.env.Bus, s.env.Log, t.table, t.prefix, nil, t.apply, once)
			once() // where it ended before
		})
	}
	read.Wait()
	return ctx.Err() == nil
}

// warnReadable tells of files with a secret that others on this machine can read; those that are not there are passed over.
func warnReadable(log *slog.Logger, files ...string) {
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && info.Mode().Perm()&0o077 != 0 {
			log.Warn("others on this machine can read a file with a secret; chmod 600 it, and think of whether it was copied", "file", f,
				"mode", fmt.Sprintf("%04o", info.Mode().Perm()))
		}
	}
}

// look counts what ends soon, ends the overlaps that have passed, and says what is wrong with the templates' policies.
func (s *service) look(ctx context.Context, o *opened) {
	s.lookAtTemplates(ctx, o)
	of, err := o.standings(ctx)
	if err != nil && ctx.Err() == nil {
		s.env.Log.Warn("which CAs are trusted cannot be read; devices count as if all were", "error", err)
	}
	now := s.env.Now()
	counts := map[string]int{}
	within := make([]int, len(radar))
	var over []string
	o.index.each(func(d *Device) {
		state, _ := d.stateOf(of, now)
		counts[state]++
		until := d.Until()
		for i, r := range radar {
			if !d.Disabled && !until.IsZero() && now.Before(until) && until.Before(now.Add(r.within)) {
				within[i]++
			}
		}
		for _, c := range d.Certs {
			if !c.Revoked() && !c.EndsAt.IsZero() && !now.Before(c.EndsAt) {
				over = append(over, d.ID)
				break
			}
		}
	})
	for _, state := range states {
		s.metrics.devices.WithLabelValues(state).Set(float64(counts[state]))
	}
	for i, r := range radar {
		s.metrics.expiring.WithLabelValues(r.name).Set(float64(within[i]))
	}
	for _, id := range over {
		ended, err := o.registry.End(ctx, id)
		if err != nil && ctx.Err() == nil {
			s.env.Log.Error("an overlap cannot be ended; trying again in a while", "device", id, "error", err)
		}
		s.metrics.revoked.Add(float64(len(ended)))
	}
}

// lookEvery is how often the fleet is looked over: counting a hundred thousand devices takes some milliseconds.
const lookEvery = 30 * time.Second

// radar is how far ahead expiry is counted.
var radar = []struct {
	name   string
	within time.Duration
}{{"1d", 24 * time.Hour}, {"7d", 7 * 24 * time.Hour}, {"30d", 30 * 24 * time.Hour}}

// passphrase gives an empty one where none is configured.
func (c Config) passphrase() (string, error) {
	if c.PassphraseFile == "" {
		return os.Getenv(authority.PassphraseEnv), nil
	}
	raw, err := os.ReadFile(c.PassphraseFile)
	if err != nil {
		return "", fmt.Errorf("passphrase_file: %w", err)
	}
	p := strings.TrimRight(string(raw), "\r\n")
	if p == "" {
		return "", fmt.Errorf("passphrase_file %s is empty", c.PassphraseFile)
	}
	return p, nil
}

// renew publishes every time, not only when something was renewed: a try before may have stopped between the two.
func (s *service) renew(ctx context.Context, o *opened) error {
	err := o.authority.Renew(func(next authority.Bundle) error { return s.publish(ctx, o, &next) })
	s.measure(o)
	return errors.Join(err, s.publish(ctx, o, nil))
}

func (s *service) renewOrSay(ctx context.Context, o *opened) {
	if err := s.renew(ctx, o); err != nil && ctx.Err() == nil {
		s.env.Log.Error("certificate cannot be renewed; trying again in an hour", "error", err)
	}
}

// metrics are the component's own.
type metrics struct {
	issued  prometheus.Counter
	revoked prometheus.Counter
	ends    *prometheus.GaugeVec

	devices, expiring *prometheus.GaugeVec
}

func (m *metrics) register(r prometheus.Registerer) {
	m.issued = registered(r, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "naru_x509_certificates_issued_total", Help: "Device certificates issued.",
	}))
	m.revoked = registered(r, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "naru_x509_certificates_revoked_total", Help: "Device certificates revoked.",
	}))
	m.ends = registered(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "naru_x509_certificate_not_after_seconds", Help: "When the platform's own certificate ends, in Unix seconds.",
	}, []string{"certificate"}))
	m.devices = registered(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "naru_x509_devices", Help: "Registered devices by state.",
	}, []string{"state"}))
	m.expiring = registered(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "naru_x509_devices_expiring", Help: "Devices whose last certificate in force ends within so long.",
	}, []string{"within"}))
}

// registered registers c, or gives the one that an earlier start of the component registered.
func registered[C prometheus.Collector](r prometheus.Registerer, c C) C {
	if r == nil {
		return c
	}
	if have := (prometheus.AlreadyRegisteredError{}); errors.As(r.Register(c), &have) {
		if c, ok := have.ExistingCollector.(C); ok {
			return c
		}
	}
	return c
}

func (s *service) measure(o *opened) {
	b := o.authority.Bundle()
	s.metrics.ends.WithLabelValues(authority.RootName).Set(float64(b.Roots[0].NotAfter.Unix()))
	s.metrics.ends.WithLabelValues(authority.IssuingName).Set(float64(b.Issuing[0].NotAfter.Unix()))
	if end, err := o.authority.ServerEnd(); err == nil {
		s.metrics.ends.WithLabelValues(authority.ServerName).Set(float64(end.Unix()))
	}
}
