package x509

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/naru-platform/naru/component/names"
)

// Policies are the brokers' affair, and the door refuses a device whose policy no broker has. So that whoever registers it
// learns of that, and not the device, names are held to what the brokers tell.

// errPolicy refuses a policy that no broker has.
var errPolicy = errors.New("unknown policy")

// policyError is such a refusal in the words of who looked.
type policyError struct{ error }

func (e policyError) Unwrap() error        { return e.error }
func (e policyError) Is(target error) bool { return target == errPolicy }

// checkPolicy gives errPolicy for a policy that no broker has. Where there is no broker to say, the policy is taken, and
// warning says so. No policy is a good one.
func checkPolicy(ctx context.Context, known *names.Known, policy string) (warning string, err error) {
	if policy == "" {
		return "", nil
	}
	err = known.Check(ctx, policy)
	switch {
	case errors.Is(err, names.ErrNobody):
		return fmt.Sprintf("whether there is a policy %q is not known, since no broker runs; a device with a policy that is not there is refused at the door", policy), nil
	case errors.As(err, new(*names.Unknown)):
		return "", policyError{err}
	case err != nil:
		return "", awayError{err}
	}
	return "", nil
}

// checkPolicy does so for who registers here. What is warned of is logged, too.
func (s *service) checkPolicy(ctx context.Context, o *opened, policy string) (warning string, err error) {
	warning, err = checkPolicy(ctx, o.policies, policy)
	if warning != "" {
		s.env.Log.Warn(warning)
	}
	if errors.Is(err, errPolicy) {
		err = bad(err)
	}
	return warning, err
}

// checkTemplatePolicy refuses a template whose policy no broker has; the empty name is no template.
func (s *service) checkTemplatePolicy(ctx context.Context, o *opened, template string) error {
	if _, err := s.checkPolicy(ctx, o, o.templates[template].Policy); err != nil {
		return fmt.Errorf("template %s: %w", template, err)
	}
	return nil
}

// lookAtTemplates logs what is wrong with the policies of the templates, each fault once for as long as it stands.
func (s *service) lookAtTemplates(ctx context.Context, o *opened) {
	for _, name := range slices.Sorted(maps.Keys(o.templates)) {
		_, err := checkPolicy(ctx, o.policies, o.templates[name].Policy)
		switch wrong := errors.Is(err, errPolicy); {
		case wrong && !o.wrongTemplates[name]:
			s.env.Log.Error("a template names a policy that no broker has; no device can register by it", "template", name, "error", err)
			o.wrongTemplates[name] = true
		case err == nil:
			delete(o.wrongTemplates, name)
		}
	}
}
