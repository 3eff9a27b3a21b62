package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/operator/journal"
	"github.com/naru-platform/naru/service_platform/x509"
)

// shownDevice is a device with what became of it.
type shownDevice struct {
	x509.Shown
	// History is what changed, newest first, as far as the log goes back; nil where it was not asked for or cannot be read.
	History []change `json:"history,omitempty"`
}

// change is a fact about a device that is in the log.
type change struct {
	At time.Time `json:"at"`
	serviceplatform.DeviceChanged
}

func deviceShow(o *options) *cobra.Command {
	var history int
	c := &cobra.Command{
		Use: "show ID", Short: "One device: its certificates, and what was changed of it and by whom", Args: cobra.ExactArgs(1), Example: "  naru device show d-17",
		Long: `Shows what is registered of a device, and what was changed of it and by whom, newest first: that is read from the log, as far
as it goes back (operator.retention).`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var d shownDevice
			if err := cl.get(c.Context(), "/api/v1/devices/"+url.PathEscape(args[0]), nil, &d); err != nil {
				return err
			}
			if history > 0 {
				if d.History, err = deviceHistory(c, cl, d.ID, history); err != nil {
					o.hint(c, "its history cannot be read: %s", oneLine(err))
				}
			}
			return o.show(c.OutOrStdout(), d, func(p *printer) { showDevice(p, d) })
		},
	}
	c.Flags().IntVar(&history, "history", 20, "how many changes at most, 0 for none")
	return c
}

func showDevice(p *printer, d shownDevice) {
	p.row("device", d.ID)
	state := stateOf(d.Shown)
	if d.Untrusted != "" {
		state += ": naru why device " + d.ID
	}
	p.row("state", state)
	p.row("since", d.CreatedAt.Format(time.RFC3339))
	if d.Disabled {
		p.row("disabled", fmt.Sprintf("%s by %s: %s", d.DisabledAt.Format(time.RFC3339), d.DisabledBy, d.DisabledReason))
	}
	if len(d.Groups) > 0 {
		p.row("groups", cut(strings.Join(d.Groups, ", "), 100))
	}
	if d.Policy != "" {
		p.row("policy", cut(d.Policy, 100))
	}
	if d.CA != "" {
		p.row("came by", cut(d.CA, 100))
	}
	for _, k := range slices.Sorted(maps.Keys(d.Attributes)) {
		p.row("attribute "+cut(k, 40), cut(d.Attributes[k], 100))
	}
	for _, k := range d.Certs {
		what := "valid until " + k.NotAfter.Format(time.RFC3339)
		if !k.EndsAt.IsZero() && k.EndsAt.Before(k.NotAfter) {
			what = "accepted until " + k.EndsAt.Format(time.RFC3339) + ", then replaced"
		}
		if k.Revoked() {
			what = "revoked " + k.RevokedAt.Format(time.RFC3339) + " by " + k.RevokedBy + ": " + k.Reason
		}
		p.row("certificate "+cut(k.Fingerprint, 17), what)
	}
	for _, h := range d.History {
		p.row(h.At.UTC().Format(time.RFC3339), h.words())
	}
}

// words tell a change in a line.
func (h *change) words() string {
	what := h.Change + " by " + h.By
	if h.Fingerprint != "" {
		what += ", certificate " + cut(h.Fingerprint, 17)
	}
	for _, f := range h.Fields {
		what += fmt.Sprintf(", %s %q -> %q", f.Field, f.Was, f.Is)
	}
	if h.Reason != "" {
		what += ": " + h.Reason
	}
	return cut(what, 200)
}

// deviceHistory reads from the log what was told of a device's registration.
func deviceHistory(c *cobra.Command, cl *client, id string, most int) (list []change, err error) {
	var found journal.List
	q := url.Values{"device": {id}, "subject": {string(serviceplatform.DeviceChangedSubject(id))}, "limit": {fmt.Sprint(most)}}
	if err := cl.get(c.Context(), "/api/v1/messages", q, &found); err != nil {
		return nil, err
	}
	for _, l := range found.Messages {
		h := change{At: l.Time}
		if l.Truncated { // whole by its id alone
			var whole journal.Line
			if err := cl.get(c.Context(), "/api/v1/messages/"+l.ID.String(), nil, &whole); err != nil {
				return nil, err
			}
			l.Data = whole.Data
		}
		if err := json.Unmarshal([]byte(l.Data), &h.DeviceChanged); err != nil {
			return nil, fmt.Errorf("message %s: %w", l.ID, err)
		}
		list = append(list, h)
	}
	return list, nil
}
