package x509

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// describe takes over what is said of a device in a registration, and gives what changed by it.
func (d *Device) describe(g Registration) []serviceplatform.FieldChange {
	is := *d
	if g.Attributes != nil {
		is.Attributes = g.Attributes
	}
	if g.Groups != nil {
		is.Groups = inOrder(g.Groups)
	}
	if g.Policy != "" {
		is.Policy = g.Policy
	}
	fields := d.differs(&is)
	if len(fields) > 0 {
		*d = is
	}
	return fields
}

func inOrder(groups []string) []string { return slices.Compact(slices.Sorted(slices.Values(groups))) }

// differs lists what another description has otherwise.
func (d *Device) differs(is *Device) (fields []serviceplatform.FieldChange) {
	field := func(name, was, is string) {
		if was != is {
			fields = append(fields, serviceplatform.FieldChange{Field: name, Was: brief(was), Is: brief(is)})
		}
	}
	names := map[string]bool{}
	for _, of := range []map[string]string{d.Attributes, is.Attributes} {
		for name := range of {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		was, had := d.Attributes[name]
		now, has := is.Attributes[name]
		if was == now && had != has { // an empty one
			fields = append(fields, serviceplatform.FieldChange{Field: attributeField + brief(name)})
		}
		field(attributeField+brief(name), was, now)
	}
	field("groups", strings.Join(d.Groups, ";"), strings.Join(is.Groups, ";"))
	field("policy", d.Policy, is.Policy)
	field("template", d.CA, is.CA)
	if n := len(fields) - fieldsMax; n > 0 {
		fields = append(fields[:fieldsMax], serviceplatform.FieldChange{Field: "…", Is: fmt.Sprintf("and %d more", n)})
	}
	return fields
}

// A change is told, not the device: it is kept with that until it has been said.
const (
	attributeField = "attribute."
	fieldsMax      = 16
	briefMax       = 100 // characters
)

func brief(s string) string {
	if r := []rune(s); len(r) > briefMax {
		return string(r[:briefMax]) + "…"
	}
	return s
}

// Patch is the request of PATCH /api/v1/devices/{id}: what is there changes, the rest stays.
type Patch struct {
	Attributes   map[string]*string `json:"attributes,omitempty"` // null takes one away
	Groups       *[]string          `json:"groups,omitempty"`     // in the place of those it is in
	AddGroups    []string           `json:"add_groups,omitempty"`
	RemoveGroups []string           `json:"remove_groups,omitempty"`
	Policy       *string            `json:"policy,omitempty"` // empty for none of its own
	// Template has the device be one that came by a claim certificate and this template: its next certificates are valid for
	// as long as that says, and where it has replace the device may come by it again. Empty for a device that an operator
	// added. What else the template says of devices is not taken over.
	Template *string `json:"template,omitempty"`
	Reason   string  `json:"reason,omitempty"`
	By       string  `json:"by,omitempty"`
}

func (p *Patch) check() error {
	attributes := map[string]string{}
	for name, v := range p.Attributes {
		if attributes[name] = ""; v != nil {
			attributes[name] = *v
		}
	}
	groups := slices.Concat(p.AddGroups, p.RemoveGroups)
	if p.Groups != nil {
		groups = append(groups, *p.Groups...)
	}
	policy := ""
	if p.Policy != nil {
		policy = *p.Policy
	}
	if p.Attributes == nil && len(groups) == 0 && p.Groups == nil && p.Policy == nil && p.Template == nil {
		return fmt.Errorf("nothing is to be changed; there are attributes, groups, add_groups, remove_groups, policy and template")
	}
	return firstOf(checkText("by", p.By), checkText("reason", p.Reason), checkText("policy", policy), checkDescription(groups, attributes))
}

// apply changes a device's description.
func (p *Patch) apply(d *Device) {
	attributes := maps.Clone(d.Attributes)
	for name, v := range p.Attributes {
		switch {
		case v == nil:
			delete(attributes, name)
		case attributes == nil:
			attributes = map[string]string{name: *v}
		default:
			attributes[name] = *v
		}
	}
	d.Attributes = attributes
	if p.Groups != nil {
		d.Groups = *p.Groups
	}
	d.Groups = inOrder(slices.DeleteFunc(slices.Concat(d.Groups, p.AddGroups), func(g string) bool { return slices.Contains(p.RemoveGroups, g) }))
	if p.Policy != nil {
		d.Policy = *p.Policy
	}
	if p.Template != nil {
		if d.CA = ""; *p.Template != "" {
			d.CA = claimedBy + *p.Template
		}
	}
}

// Describe changes what describes a device, and notes what did.
func (r *Registry) Describe(ctx context.Context, id string, p Patch) (Device, error) {
	return r.change(ctx, id, false, func(d *Device) error {
		is := *d
		p.apply(&is)
		fields := d.differs(&is)
		if len(fields) == 0 {
			return nil
		}
		*d = is
		d.note(r.now().UTC(), serviceplatform.DeviceChanged{Device: d.ID, Change: serviceplatform.Changed, By: p.By, Reason: p.Reason, Fields: fields})
		return nil
	})
}

func (s *service) patch(o *opened, w http.ResponseWriter, r *http.Request) error {
	var p Patch
	if err := read(w, r, &p); err != nil {
		return err
	}
	if err := p.check(); err != nil {
		return bad(err)
	}
	p.By = by(p.By)
	warning := ""
	if p.Policy != nil {
		var err error
		if warning, err = s.checkPolicy(r.Context(), o, *p.Policy); err != nil {
			return err
		}
	}
	if p.Template != nil {
		if err := o.checkTemplate(*p.Template); err != nil {
			return err
		}
	}
	d, err := o.registry.Describe(r.Context(), r.PathValue("id"), p)
	if err != nil {
		return err
	}
	s.tell(r, o, d.ID)
	shown := s.changed(r, o, d)
	shown.Warning = warning
	return answer(w, http.StatusOK, shown)
}
