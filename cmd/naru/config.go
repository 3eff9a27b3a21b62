package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/bus/kinesis"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/operator/partition"
	"github.com/naru-platform/naru/service_platform/broker"
	"github.com/naru-platform/naru/service_platform/worker"
)

// config is the whole configuration: the process's own settings, and each component's under its name.
type config struct {
	Node       string    `json:"node"`        // the process's name on the bus; made at the first start where empty
	HTTP       string    `json:"http"`        // address for operators and apps
	ServerCert string    `json:"server_cert"` // PEM files of the listeners' certificate, where the CA runs elsewhere
	ServerKey  string    `json:"server_key"`
	Bus        busConfig `json:"bus"`
	Channels   []channel `json:"channels"` // contracts of the user's own, the same in every process of the platform

	Catalog    *message.Catalog           `json:"-"` // the platform's contracts and these
	Components map[string]json.RawMessage `json:"-"`
}

type busConfig struct {
	URL          string `json:"url"`    // external NATS JetStream; the embedded one where empty
	Listen       string `json:"listen"` // where others may join the embedded one
	User         string `json:"user"`
	PasswordFile string `json:"password_file"`
	CredsFile    string `json:"creds_file"`
	CertFile     string `json:"cert_file"`
	KeyFile      string `json:"key_file"`
	Replicas     int    `json:"replicas"` // copies of each stream; 3 on a cluster
	// Partitions is how many a log has when it is created, by its name; 1 where it is not named. Later: naru log repartition.
	Partitions    map[string]int `json:"partitions"`
	LowWaterBytes uint64         `json:"low_water_bytes"` // disk kept for what is inside; 0 for 5 %

	Kinesis kinesis.Config `json:"kinesis"` // stream that the log of the data platform is copied into, and read from
}

func defaultConfig() *config {
	return &config{HTTP: "127.0.0.1:8780", Bus: busConfig{Replicas: 1, Partitions: map[string]int{}}, Channels: []channel{}, Catalog: catalog.Default(), Components: map[string]json.RawMessage{}}
}

// doors are the broker's listeners, as far as the wiring must know them.
type doors struct {
	Listen    *string `json:"listen"`
	Plain     string  `json:"plain"`
	Listeners []door  `json:"listeners"`
}

const brokerName = "service_platform.broker"

func (c *config) doors() (d doors) {
	if raw, ok := c.Components[brokerName]; ok {
		_ = json.Unmarshal(raw, &d) // the broker judges its configuration itself
	}
	if d.Listen == nil {
		listen := broker.Defaults.Listen
		d.Listen = &listen
	}
	return d
}

// cluster resolves `cluster: auto`: brokers are one among several where other processes may be on the bus.
func (c *config) cluster() error {
	var set struct {
		Cluster string `json:"cluster"`
	}
	if raw, ok := c.Components[brokerName]; ok {
		_ = json.Unmarshal(raw, &set) // the broker judges its configuration itself
	}
	if set.Cluster != "" && set.Cluster != "auto" || c.Bus.URL == "" && c.Bus.Listen == "" {
		return nil
	}
	return c.set(brokerName, "cluster", "on")
}

// mqtt is the address for devices; where there is no such listener, the first of the others. bound is where the listeners
// listen by now, by their names.
func (c *config) mqtt(bound map[string]string) string {
	d := c.doors()
	if *d.Listen == "" && len(d.Listeners) > 0 {
		return d.Listeners[0].address(bound)
	}
	return cmp.Or(bound["devices"], *d.Listen)
}

// door is a listener of the configuration.
type door map[string]any

func (d door) text(key, otherwise string) string {
	if s, ok := d[key].(string); ok && s != "" {
		return s
	}
	return otherwise
}

func (d door) address(bound map[string]string) string {
	address := d.text("address", "")
	return cmp.Or(bound[d.text("name", address)], address)
}

// setMQTT is --mqtt: it moves the listener for devices, or where there is none the first of the others.
func (c *config) setMQTT(address string) error {
	if d := c.doors(); *d.Listen == "" && len(d.Listeners) > 0 {
		d.Listeners[0]["address"] = address
		return c.set(brokerName, "listeners", d.Listeners)
	}
	return c.set(brokerName, "listen", address)
}

// forDevices says whether a listener is for devices with certificates.
func (c *config) forDevices() bool {
	d := c.doors()
	return *d.Listen != "" || slices.ContainsFunc(d.Listeners, func(l door) bool { return l.text("auth", "certificate") == "certificate" })
}

// listening lists the listeners for a person.
func (c *config) listening(bound map[string]string) (lines []string) {
	d := c.doors()
	if *d.Listen != "" {
		lines = append(lines, fmt.Sprintf("devices      mqtts://%s (mutual TLS)", c.mqtt(bound)))
	}
	if d.Plain != "" {
		lines = append(lines, fmt.Sprintf("plain        mqtt://%s (loopback, the client id is taken for the device)", cmp.Or(bound["plain"], d.Plain)))
	}
	for _, l := range d.Listeners {
		line := fmt.Sprintf("%-12s %s://%s", l.text("name", "clients"), l.text("protocol", "mqtts"), l.address(bound))
		if m := l.text("mount", ""); m != "" {
			line += ", mounted at " + m
		}
		lines = append(lines, line)
	}
	return lines
}

// loadConfig takes the file, then the environment, then the flags.
func loadConfig(s *start) (*config, error) {
	c := defaultConfig()
	if s.config != "" {
		raw, err := os.ReadFile(s.config)
		if err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
		if err := c.merge(raw); err != nil {
			return nil, fmt.Errorf("configuration %s: %w", s.config, err)
		}
		if err := c.join(s.config); err != nil {
			return nil, err
		}
	}
	if err := c.environment(os.Environ()); err != nil {
		return nil, err
	}
	set := func(dst *string, v string) {
		if v != "" {
			*dst = v
		}
	}
	set(&c.HTTP, s.http)
	set(&c.Bus.URL, s.bus)
	set(&c.Bus.Listen, s.busListen)
	var errs []error
	if s.mqtt != "" {
		errs = append(errs, c.setMQTT(s.mqtt))
	}
	if s.plain != "" {
		errs = append(errs, c.set("service_platform.broker", "plain", s.plain))
	}
	if s.sim < 0 {
		errs = append(errs, fmt.Errorf("--sim %d: want a number of devices", s.sim))
	}
	if s.sim > 0 {
		errs = append(errs, c.set("device.simulator", "devices", s.sim), c.set("device.simulator", "server", c.mqtt(nil)),
			c.set("service_platform.rule", "demo", true), c.set(worker.Name, "demo", true), c.set(brokerName, "envelope", true)) // devices go on with the trace that came to them
	}
	errs = append(errs, c.Bus.Kinesis.Check())
	if c.Bus.Replicas < 1 || c.Bus.Replicas > 5 {
		errs = append(errs, fmt.Errorf("bus.replicas is %d; want 1 to 5", c.Bus.Replicas))
	}
	for _, log := range slices.Sorted(maps.Keys(c.Bus.Partitions)) {
		if n := c.Bus.Partitions[log]; !slices.Contains(message.Namespaces(), log) {
			errs = append(errs, fmt.Errorf("bus.partitions: %w", component.UnknownKey(log, message.Namespaces())))
		} else if n < 1 || n > partition.Most {
			errs = append(errs, fmt.Errorf("bus.partitions: %s is %d; want 1 to %d", log, n, partition.Most))
		}
	}
	return c, errors.Join(errs...)
}

// merge takes a YAML document. A key that nobody knows is an error that names the nearest.
func (c *config) merge(raw []byte) error {
	var doc map[string]any
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return err
	}
	known := component.Keys(c)
	keys := slices.Clone(known)
	byName := map[string]component.Spec{}
	for _, s := range specs(nil, nil) {
		byName[s.Name] = s
		keys = append(keys, s.Name)
	}
	own := map[string]any{}
	for k, v := range doc {
		if slices.Contains(known, k) {
			own[k] = v
			continue
		}
		spec, ok := byName[k]
		if !ok {
			return component.UnknownKey(k, keys)
		}
		section, ok := v.(map[string]any)
		if !ok && v != nil {
			return fmt.Errorf("%s: want settings, one per line", k)
		}
		for name, value := range section {
			if settings := component.Keys(spec.Defaults()); !slices.Contains(settings, name) {
				return fmt.Errorf("%s: %w", k, component.UnknownKey(name, settings))
			}
			if err := c.set(k, name, value); err != nil {
				return err
			}
		}
	}
	if b, ok := own["bus"].(map[string]any); ok {
		for name := range b {
			if settings := component.Keys(busConfig{}); !slices.Contains(settings, name) {
				return fmt.Errorf("bus: %w", component.UnknownKey(name, settings))
			}
		}
		if k, ok := b["kinesis"].(map[string]any); ok {
			for name := range k {
				if settings := component.Keys(kinesis.Config{}); !slices.Contains(settings, name) {
					return fmt.Errorf("bus.kinesis: %w", component.UnknownKey(name, settings))
				}
			}
		}
	}
	channels, err := readChannels(own["channels"])
	if err != nil {
		return err
	}
	c.Channels = channels
	delete(own, "channels")
	j, err := json.Marshal(own)
	if err != nil {
		return err
	}
	return json.Unmarshal(j, c)
}

// set changes one setting of a component.
func (c *config) set(name, key string, value any) error {
	m := map[string]any{}
	if raw, ok := c.Components[name]; ok {
		if err := json.Unmarshal(raw, &m); err != nil {
			return err
		}
	}
	m[key] = value
	raw, err := json.Marshal(m)
	c.Components[name] = raw
	return err
}

// environment takes NARU_<COMPONENT>_<SETTING>, dots as underscores: NARU_SERVICE_PLATFORM_BROKER_LISTEN.
func (c *config) environment(env []string) error {
	for _, s := range specs(nil, nil) {
		prefix := "NARU_" + strings.ToUpper(strings.NewReplacer(".", "_").Replace(s.Name)) + "_"
		for _, e := range env {
			rest, ok := strings.CutPrefix(e, prefix)
			if !ok {
				continue
			}
			name, text, _ := strings.Cut(rest, "=")
			name = strings.ToLower(name)
			settings := component.Keys(s.Defaults())
			if !slices.Contains(settings, name) {
				return fmt.Errorf("%s%s in the environment: %w", prefix, strings.ToUpper(name), component.UnknownKey(name, settings))
			}
			var value any = text
			if v := any(nil); json.Unmarshal([]byte(text), &v) == nil {
				if _, isText := defaultOf(s, name).(string); !isText {
					value = v
				}
			}
			if err := c.set(s.Name, name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// values are all settings in force, by name; defaults those that nobody changed.
func (c *config) values() (map[string]map[string]any, map[string]map[string]any, error) {
	inForce, defaults := map[string]map[string]any{}, map[string]map[string]any{}
	own, err := settings(c)
	if err != nil {
		return nil, nil, err
	}
	inForce["naru"] = own
	if defaults["naru"], err = settings(defaultConfig()); err != nil {
		return nil, nil, err
	}
	for _, s := range specs(nil, nil) {
		if defaults[s.Name], err = settings(s.Defaults()); err != nil {
			return nil, nil, err
		}
		now := maps.Clone(defaults[s.Name])
		if raw, ok := c.Components[s.Name]; ok {
			if err := json.Unmarshal(raw, &now); err != nil {
				return nil, nil, err
			}
		}
		inForce[s.Name] = now
	}
	return inForce, defaults, nil
}

func settings(v any) (map[string]any, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	m := map[string]any{}
	return m, json.Unmarshal(raw, &m)
}

func defaultOf(s component.Spec, name string) any {
	m, err := settings(s.Defaults())
	if err != nil {
		return nil
	}
	return m[name]
}

func configCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "The configuration: show, diff"}
	s := &start{o: o}
	show := &cobra.Command{
		Use: "show", Short: "Every setting as it would be in force", Args: cobra.NoArgs,
		Example: "  naru config show >naru.yaml\n  naru config show --config naru.yaml -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			return s.print(c, func(any, any) bool { return true })
		},
	}
	diff := &cobra.Command{
		Use: "diff", Short: "Only what differs from the defaults", Args: cobra.NoArgs,
		Example: "  naru config diff --config naru.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			return s.print(c, func(now, before any) bool { return !reflect.DeepEqual(now, before) })
		},
	}
	for _, sub := range []*cobra.Command{show, diff} {
		s.flags(sub)
		c.AddCommand(sub)
	}
	return c
}

func (s *start) print(c *cobra.Command, take func(now, before any) bool) error {
	conf, err := loadConfig(s)
	if err != nil {
		return err
	}
	now, before, err := conf.values()
	if err != nil {
		return err
	}
	out := map[string]any{}
	for section, values := range now {
		kept := map[string]any{}
		for k, v := range values {
			if take(v, before[section][k]) {
				kept[k] = v
			}
		}
		if section == "naru" {
			maps.Copy(out, kept)
		} else if len(kept) > 0 {
			out[section] = kept
		}
	}
	return s.o.show(c.OutOrStdout(), out, func(p *printer) {
		raw, err := yaml.MarshalWithOptions(asWritten(out), yaml.UseLiteralStyleIfMultiline(true))
		if err != nil {
			p.note(err)
			return
		}
		if len(out) == 0 {
			p.line("# everything is as by default")
			return
		}
		p.line("%s", strings.TrimRight(string(raw), "\n"))
	})
}

// asWritten is a value that came by JSON with whole numbers as they are written, 500 and not 500.0.
func asWritten(v any) any {
	switch v := v.(type) {
	case float64:
		if n := int64(v); float64(n) == v {
			return n
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, x := range v {
			out[k] = asWritten(x)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = asWritten(x)
		}
		return out
	}
	return v
}
