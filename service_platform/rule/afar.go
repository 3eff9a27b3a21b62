package rule

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

// afar takes word of an action that failed after it was said: what it sent was not taken where it went. It is the rule's
// failure like any other, told and given to its error action; as the rule is now, since the version that said it may be
// gone. taken is false where the message is no such word, or the rule is not there any more.
func (e *Engine) afar(tx component.Tx, s *set, m *message.Message) (taken bool, err error) {
	if !serviceplatform.IsWebhookFailed(m.Subject) {
		return false, nil
	}
	var f serviceplatform.WebhookFailed
	if err := json.Unmarshal(m.Data, &f); err != nil {
		return false, nil // of no webhook of ours
	}
	name, _, _ := strings.Cut(f.Rule, "@")
	r := s.byName[name]
	if r == nil {
		return false, nil
	}
	a := &action{kind: "http", index: errorAction, rule: r.Rule}
	if n, err := strconv.Atoi(f.Action); err == nil && n >= 0 && n < actionsMax {
		a.index = n
	}
	in := &sql.Input{Topic: f.Topic, ClientID: f.Client, TraceID: m.Trace.ID.String(), Payload: f.Payload, Time: m.Recorded()}
	of := &message.Message{ID: m.ID, Trace: m.Trace, Data: f.Payload}
	failed := failure{a, fmt.Errorf("destination %s: %s: %w", f.Destination, f.Reason, errors.New(f.Error))}
	r.counts.failed.Add(1)
	r.counts.action(a.index).failed.Add(1)
	told := *r
	if a.index == errorAction { // which is told of, and has none itself
		without := *r.Rule
		without.onError = nil
		told.Rule = &without
	}
	return true, e.fail(tx, &told, in, of, []failure{failed})
}
