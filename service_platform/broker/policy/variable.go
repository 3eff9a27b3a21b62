package policy

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/naru-platform/naru/internal/near"
	"github.com/naru-platform/naru/message"
)

// The variables.
const (
	varDevice    = "device"
	varClientID  = "client_id"
	varUsername  = "username"
	varGroup     = "group"
	varAttribute = "attribute." // and a name
)

var variables = []string{varDevice, varClientID, varUsername, varGroup, varAttribute + "<name>"}

// foreign are other brokers' words for the same.
var foreign = map[string]string{
	"clientid": varClientID, "mqtt-client-id": varClientID, "iot:ClientId": varClientID, "%c": varClientID,
	"user": varUsername, "%u": varUsername, "cert_common_name": varDevice,
	"iot:Connection.Thing.ThingName": varDevice, "iot:Certificate.Subject.CommonName": varDevice, "thing": varDevice,
}

// variable checks a name between `${` and `}`.
func variable(name string) error {
	switch name {
	case varDevice, varClientID, varUsername, varGroup:
		return nil
	}
	if of, ok := strings.CutPrefix(name, varAttribute); ok && of != "" && !strings.ContainsAny(of, "<>${") {
		return nil
	}
	all := "${" + strings.Join(variables, "}, ${") + "}"
	if inner, ok := strings.CutPrefix(name, "iot:Connection.Thing.Attributes["); ok && strings.HasSuffix(inner, "]") {
		return fmt.Errorf("there is no variable ${%s}; write ${%s%s}", name, varAttribute, strings.TrimSuffix(inner, "]"))
	}
	if ours := foreign[name]; ours != "" {
		return fmt.Errorf("there is no variable ${%s}; write ${%s}", name, ours)
	}
	if strings.HasPrefix(name, varAttribute) {
		return fmt.Errorf("${%s} wants an attribute's name, such as ${%ssite}", name, varAttribute)
	}
	if meant := near.Word(name, variables[:4]); meant != "" {
		return fmt.Errorf("there is no variable ${%s}; did you mean ${%s}? There are %s", name, meant, all)
	}
	return fmt.Errorf("there is no variable ${%s}; there are %s", name, all)
}

// fill makes a value the one token that it may stand for: escaped, so that what it holds of separators and wildcards is
// text. It is empty, and stands for nothing, where there is no value or no topic could have it as a level.
func fill(value string) string {
	if value == "" || !utf8.ValidString(value) || strings.ContainsAny(value, "/+#\x00") {
		return ""
	}
	if token := message.Escape(value); token != value {
		return token
	}
	return value // the caller's bytes: a connection keeps its client id anyway
}
