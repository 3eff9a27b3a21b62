package sql

import (
	"fmt"
	"strings"

	"github.com/naru-platform/naru/internal/near"
)

// function is one of the dialect's. call gets values of right number; what it cannot use makes it Undefined.
type function struct {
	name     string // as it is documented; names are compared in any case
	min, max int    // arguments
	call     func(e *env, c *call, a []value) value
	prepare  func(p *parser, c *call) // looks at literals while compiling
}

const anyNumber = 1 << 10

func (f *function) arity() string {
	switch {
	case f.max == anyNumber:
		return fmt.Sprintf("%d or more arguments", f.min)
	case f.min == f.max && f.min == 1:
		return "1 argument"
	case f.min == f.max:
		return fmt.Sprintf("%d arguments", f.min)
	}
	return fmt.Sprintf("%d to %d arguments", f.min, f.max)
}

// functions by name in lower case.
var functions = map[string]*function{}

func init() {
	for _, group := range [][]function{collectionFunctions, numberFunctions, textFunctions, regexpFunctions, hashFunctions, messageFunctions, timeFunctions} {
		for _, f := range group {
			functions[strings.ToLower(f.name)] = &f
		}
	}
}

// refused are the functions that reach into an AWS account, and what to do instead.
var refused = map[string]string{
	"aws_lambda":              "send the rule's output to a worker",
	"machinelearning_predict": "send the rule's output to a worker",
	"get_dynamodb":            "keep such data in the thing's shadow and use get_thing_shadow()",
	"get_secret":              "name the secret in the action's own settings",
	"get_registry_data":       "keep such data in the thing's shadow and use get_thing_shadow()",
}

// nearest proposes the known name that differs least.
func nearest(name string) string {
	best, least := "", 3
	for known, f := range functions {
		if len(name) > 32 { // near to none, and long to compare
			break
		}
		if d := near.Distance(name, known); d < least || d == least && best != "" && f.name < best {
			best, least = f.name, d
		}
	}
	if best == "" {
		return "the functions are listed in the rule language's README"
	}
	return "did you mean " + best + "()?"
}
