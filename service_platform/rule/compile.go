package rule

import (
	"fmt"
	"strings"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

// Rule is a version of a rule, compiled. It is immutable.
type Rule struct {
	Name     string
	Version  int
	Document *Document

	statement *sql.Statement
	from      []message.Pattern
	aws       bool // FROM is in the AWS spelling, and topic() tells it
	looks     bool // it asks for twins, in SQL or in a template
	actions   []*action
	onError   *action
}

// the prefix of topics that lead straight to a rule.
const basicIngest = "$aws/rules/"

// Compile reads a document. Errors name the place in it, and in SQL line and column.
func Compile(d *Document, version int, node string) (*Rule, error) {
	if err := checkName(d.Name); err != nil {
		return nil, err
	}
	s, err := sql.Compile(d.SQL)
	if err != nil {
		return nil, err
	}
	r := &Rule{Name: d.Name, Version: version, Document: d, statement: s, looks: s.Looks()}
	if err := r.hears(s.Filter()); err != nil {
		return nil, err
	}
	if len(d.Actions) == 0 || len(d.Actions) > actionsMax {
		return nil, fmt.Errorf("actions: a rule has 1 to %d, here are %d", actionsMax, len(d.Actions))
	}
	for i := range d.Actions {
		a, err := r.compile(&d.Actions[i], i, node)
		if err != nil {
			return nil, fmt.Errorf("actions[%d]: %w", i, err)
		}
		r.actions = append(r.actions, a)
	}
	if d.ErrorAction != nil {
		if r.onError, err = r.compile(d.ErrorAction, errorAction, node); err != nil {
			return nil, fmt.Errorf("error_action: %w", err)
		}
	}
	return r, nil
}

// hears reads FROM. A rule without it hears what is sent to its own topics, $aws/rules/<rule>/….
func (r *Rule) hears(filter string) (err error) {
	switch {
	case filter == "":
		return nil
	case strings.HasPrefix(filter, basicIngest):
		return fmt.Errorf("FROM '%s': topics below %s lead to the rule that they name, and cannot be heard; leave FROM out", filter, basicIngest)
	case strings.HasPrefix(filter, "$aws/"):
		if r.from, r.aws = device.FromShadowFilter(filter); !r.aws {
			return fmt.Errorf("FROM '%s': below $aws/ there are $aws/things/<thing or +>/shadow/…", filter)
		}
		return nil
	}
	if r.from, err = message.FromFilter(filter); err != nil {
		return fmt.Errorf("FROM '%s': %w", filter, err)
	}
	for _, p := range r.from {
		if err := p.Valid(); err != nil {
			return fmt.Errorf("FROM '%s': %w", filter, err)
		}
	}
	return nil
}

// Warnings name what is allowed and can hardly be meant.
func (r *Rule) Warnings() []string {
	list := r.statement.Warnings()
	for _, a := range r.actions {
		if a.kind == "twin" && !r.statement.MayHave("state") {
			list = append(list, fmt.Sprintf("actions[%d].twin: %v", a.index, errNoState))
		}
	}
	if r.onError != nil && r.onError.kind == "twin" {
		list = append(list, "error_action.twin: it gets what failed, which is no update of a twin")
	}
	return list
}

// Extensions name what AWS IoT does not document.
func (r *Rule) Extensions() []string { return r.statement.Extensions() }

// Label names rule and version.
func (r *Rule) Label() string { return fmt.Sprintf("%s@%d", r.Name, r.Version) }

// Statement is the rule's SQL, compiled.
func (r *Rule) Statement() *sql.Statement { return r.statement }

// wild says whether the first level of FROM is a wildcard.
func (r *Rule) wild() bool {
	return len(r.from) > 0 && (r.from[0][0] == '*' || r.from[0][0] == '>')
}
