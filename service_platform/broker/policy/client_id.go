package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/naru-platform/naru/message"
)

// clientID is an entry of Policy.ClientIDs: text, variables, and at most one `*` for any characters, none among them.
type clientID struct {
	text  string
	parts []idPart
}

// idPart is a text, the name of a variable, or the star.
type idPart struct {
	text           string
	variable, star bool
}

// parseClientID reads an entry.
func parseClientID(text string) (c clientID, err error) {
	switch {
	case text == "":
		return c, errors.New("nothing there; write an id such as ${device}-*, or take the entry out")
	case len(text) > textMax:
		return c, fmt.Errorf("it has %d bytes; %d is the most", len(text), textMax)
	case strings.Count(withoutVariables(text), "*") > 1:
		return c, errors.New("it has two stars; one is the most, and stands for any characters")
	}
	c.text = text
	add := func(text string) {
		for t := range strings.SplitAfterSeq(text, "*") {
			word, star := strings.CutSuffix(t, "*")
			if word != "" {
				c.parts = append(c.parts, idPart{text: word})
			}
			if star {
				c.parts = append(c.parts, idPart{star: true})
			}
		}
	}
	for {
		before, rest, found := strings.Cut(text, "${")
		add(before)
		if !found {
			return c, nil
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			return c, fmt.Errorf("%q has no closing brace", "${"+rest)
		}
		if name == varClientID {
			return c, errors.New("${client_id} is what is asked about; write * for any id")
		}
		if err := variable(name); err != nil {
			return c, err
		}
		c.parts = append(c.parts, idPart{text: name, variable: true})
		text = after
	}
}

// takes says whether the client may have the id.
func (c *clientID) takes(id *Identity, asked string) bool { return take(c.parts, id, asked) }

func take(parts []idPart, id *Identity, rest string) bool {
	if len(parts) == 0 {
		return rest == ""
	}
	switch p := parts[0]; {
	case p.star:
		for i := range len(rest) + 1 {
			if take(parts[1:], id, rest[i:]) {
				return true
			}
		}
		return false
	case p.variable:
		values := id.Groups
		if p.text != varGroup {
			values = []string{id.value(p.text)}
		}
		return slices.ContainsFunc(values, func(v string) bool {
			after, ok := strings.CutPrefix(rest, v)
			return ok && v != "" && take(parts[1:], id, after)
		})
	default:
		after, ok := strings.CutPrefix(rest, p.text)
		return ok && take(parts[1:], id, after)
	}
}

// MayBeCalled says whether the client may use its client id: nil, or a *message.Rejection with ClientIDMismatch. id is
// the one that the Judge was made for.
//
// A device's client id is its name, or one that an entry of client_ids of a policy that applies to it takes. Others may
// have any, unless policies that apply have client_ids: then one that these take.
func (j *Judge) MayBeCalled(id Identity) error {
	if id.Device != "" && id.ClientID == id.Device {
		return nil
	}
	texts := make([]string, len(j.rules.ids))
	for i := range j.rules.ids {
		if j.rules.ids[i].takes(&id, id.ClientID) {
			return nil
		}
		texts[i] = j.rules.ids[i].text
	}
	switch {
	case len(texts) > 0:
		return message.Rejectf(message.ClientIDMismatch, "client id %q is not for %s; its policies have client_ids %s", shorten(id.ClientID), id.name(), shorten(strings.Join(texts, ", ")))
	case id.Device != "":
		return message.Rejectf(message.ClientIDMismatch, "client id %q, and the device is %q: a device's client id is its name, unless a policy that applies to it has client_ids", shorten(id.ClientID), id.Device)
	}
	return nil
}
