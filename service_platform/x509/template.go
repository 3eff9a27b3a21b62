package x509

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
)

const templatePrefix = "template."

const (
	parametersMax = 32
	valueMax      = 256 // characters of a parameter's value
)

// Template decides what becomes of a device that registers itself: by a claim certificate, or just in time by a
// registered CA. Its texts may hold `${Parameter}`, which stands for what the device (Parameters) or its certificate
// (`${Certificate.CommonName}`, `.SerialNumber`, `.Organization`, `.OrganizationalUnit`, `.Country`, `.Id`) says. What
// is put in is never read for parameters again.
type Template struct {
	// Name is the device's id.
	Name string `json:"name"`
	// Parameters are those that a device must send, all of them and no others.
	Parameters []string          `json:"parameters,omitempty"`
	Groups     []string          `json:"groups,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	// Policy is the name of the policy that is recorded for the device; no parameter may stand in it.
	Policy string `json:"policy,omitempty"`
	// Validity is how long the certificates that are made here for its devices are valid, the first and those that renew it;
	// the configured device_validity where zero. A claim certificate's holder gets his before he says by which template:
	// where his claim is for several, the shortest counts. What a registered CA signs is its own affair.
	Validity Duration `json:"validity,omitzero"`
	// Hook is a URL (https, or http on loopback) that is asked before a device is registered and answers within five
	// seconds whether it may be.
	Hook string `json:"hook,omitempty"`
	// Replace lets a device that is registered already get a certificate once more; without it that is refused.
	Replace bool `json:"replace,omitempty"`
	// Configuration is what the device is told beside its name.
	Configuration map[string]string `json:"configuration,omitempty"`
}

// plan is what a template says of one device.
type plan struct {
	device        string
	groups        []string
	attributes    map[string]string
	policy        string
	configuration map[string]string
}

// certificateParameters are those that a certificate speaks for, never the device.
var certificateParameters = []string{"Certificate.CommonName", "Certificate.SerialNumber", "Certificate.Organization",
	"Certificate.OrganizationalUnit", "Certificate.Country", "Certificate.Id"}

// check says what is wrong with a template, before a device finds out.
func (t Template) check(name string) error {
	if err := checkPlain("template", name); err != nil {
		return err
	}
	if t.Name == "" {
		return fmt.Errorf("template %s: name is wanted: the device's id, such as ${SerialNumber}", name)
	}
	if len(t.Parameters) > parametersMax {
		return fmt.Errorf("template %s: %d parameters; %d is the most", name, len(t.Parameters), parametersMax)
	}
	for _, p := range t.Parameters {
		if err := checkPlain("parameter", p); err != nil {
			return fmt.Errorf("template %s: %w", name, err)
		}
	}
	known := map[string]string{}
	for _, p := range append(slices.Clone(t.Parameters), certificateParameters...) {
		known[p] = "x"
	}
	if _, err := t.fill(known); err != nil {
		return fmt.Errorf("template %s: %w", name, err)
	}
	if strings.Contains(t.Policy, "${") {
		return fmt.Errorf("template %s: a device must not choose its policy; write its name without ${…}", name)
	}
	if t.Validity != 0 && time.Duration(t.Validity) < time.Minute {
		return fmt.Errorf("template %s: a validity of %s is too short; a minute is the least", name, time.Duration(t.Validity))
	}
	if t.Hook != "" {
		if err := checkHook(t.Hook); err != nil {
			return fmt.Errorf("template %s: %w", name, err)
		}
	}
	return nil
}

// shortest is how long a certificate is valid whose device may come by any of these templates; zero for the configured
// device_validity.
func (o *opened) shortest(templates []string) (least time.Duration) {
	for _, name := range templates {
		v := time.Duration(o.templates[name].Validity)
		if v == 0 {
			v = o.authority.DeviceValidity()
		}
		if _, ok := o.templates[name]; ok && (least == 0 || v < least) {
			least = v
		}
	}
	return least
}

// validityOf is how long the next certificate of a device is valid that registered itself, as its template says; zero for
// the configured device_validity, and for a device that is not registered.
func (o *opened) validityOf(ctx context.Context, device string) (time.Duration, error) {
	d, err := o.registry.Get(ctx, device)
	if err != nil || d.CA == "" {
		if errors.Is(err, ErrUnknownDevice) {
			err = nil
		}
		return 0, err
	}
	if template, ok := strings.CutPrefix(d.CA, claimedBy); ok {
		return time.Duration(o.templates[template].Validity), nil
	}
	e, err := o.cas.get(ctx, d.CA)
	if errors.Is(err, ErrUnknownCA) {
		return 0, nil
	}
	var ca RegisteredCA
	if err == nil {
		err = json.Unmarshal(e.Value, &ca)
	}
	return time.Duration(o.templates[ca.Template].Validity), err
}

func checkHook(hook string) error {
	u, err := url.Parse(hook)
	if err != nil || u.Host == "" || u.User != nil {
		return fmt.Errorf("hook %q is not a URL such as https://approve.example/devices", hook)
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
		return nil
	}
	return fmt.Errorf("hook %q: https is wanted, or http on loopback", hook)
}

func checkPlain(what, s string) error {
	if s == "" || len(s) > 64 || strings.ContainsFunc(s, func(r rune) bool { return !authority.Plain(r) }) {
		return fmt.Errorf("%s %q: 1 to 64 letters, digits, - and _ are allowed", what, short(s))
	}
	return nil
}

// plan fills the template for a device. sent is what the device says, cert what its certificate says.
func (t Template) plan(sent, cert map[string]string) (plan, error) {
	for p := range sent {
		if !slices.Contains(t.Parameters, p) {
			return plan{}, fmt.Errorf("the template knows no parameter %q", short(p))
		}
	}
	values := maps.Clone(cert)
	if values == nil {
		values = map[string]string{}
	}
	for _, p := range t.Parameters {
		v, ok := sent[p]
		if !ok {
			return plan{}, fmt.Errorf("the parameter %s is missing", p)
		}
		if err := checkValue(v); err != nil {
			return plan{}, fmt.Errorf("the parameter %s: %w", p, err)
		}
		values[p] = v
	}
	filled, err := t.fill(values)
	if err != nil {
		return plan{}, err
	}
	if err := firstOf(authority.CheckDevice(filled.device), checkDescription(filled.groups, filled.attributes)); err != nil {
		return plan{}, err
	}
	return filled, nil
}

func checkValue(v string) error {
	switch {
	case v == "":
		return errors.New("it is empty")
	case !utf8.ValidString(v):
		return errors.New("it is not UTF-8")
	case utf8.RuneCountInString(v) > valueMax:
		return fmt.Errorf("it has more than %d characters", valueMax)
	case strings.ContainsFunc(v, func(r rune) bool { return unicode.IsControl(r) || !unicode.IsPrint(r) }):
		return errors.New("it holds characters that cannot be printed")
	}
	return nil
}

func (t Template) fill(values map[string]string) (p plan, err error) {
	in := func(s string) string {
		filled, e := substitute(s, values)
		err = errors.Join(err, e)
		return filled
	}
	p.device, p.policy = in(t.Name), t.Policy
	for _, g := range t.Groups {
		p.groups = append(p.groups, in(g))
	}
	p.attributes, p.configuration = map[string]string{}, map[string]string{}
	for k, v := range t.Attributes {
		p.attributes[k] = in(v)
	}
	for k, v := range t.Configuration {
		p.configuration[k] = in(v)
	}
	return p, err
}

// substitute reads s once from left to right, so that a value cannot bring a parameter of its own.
func substitute(s string, values map[string]string) (string, error) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "${")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		key, after, closed := strings.Cut(rest, "}")
		if !closed {
			return "", fmt.Errorf("%q has no closing brace", "${"+rest)
		}
		v, ok := values[key]
		if !ok {
			return "", fmt.Errorf("there is no value for ${%s}", key)
		}
		b.WriteString(v)
		s = after
	}
}

// publishTemplates makes the table hold these templates and no others, so that every process with a door knows them.
func publishTemplates(ctx context.Context, t bus.Table, templates map[string]Template) error {
	have, err := bus.Entries(ctx, t, templatePrefix)
	if err != nil {
		return fmt.Errorf("read the templates: %w", err)
	}
	for _, e := range have {
		if _, ok := templates[strings.TrimPrefix(e.Key, templatePrefix)]; !ok {
			if err := t.Delete(ctx, e.Key, 0); err != nil {
				return fmt.Errorf("remove the template %s: %w", e.Key, err)
			}
		}
	}
	for name, tmpl := range templates {
		raw, err := json.Marshal(tmpl)
		if err != nil {
			return err
		}
		if _, err := t.Put(ctx, templatePrefix+name, raw); err != nil {
			return fmt.Errorf("publish the template %s: %w", name, err)
		}
	}
	return nil
}

// checkTemplate says whether a template of that name is configured; the empty name is none.
func (o *opened) checkTemplate(name string) error {
	if _, ok := o.templates[name]; !ok && name != "" {
		return fmt.Errorf("%w: no template %q is configured; %s", ErrRefused, short(name), o.templateNames())
	}
	return nil
}

// templateNames says which templates there are.
func (o *opened) templateNames() string {
	if len(o.templates) == 0 {
		return "there are none; `templates` of service_platform.x509 has them in the configuration"
	}
	return "there are " + strings.Join(slices.Sorted(maps.Keys(o.templates)), ", ")
}
