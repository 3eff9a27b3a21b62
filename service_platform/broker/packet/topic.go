package packet

import "strings"

// ValidTopicName says what forbids a topic name, as an [*Error]; nil when nothing does (§4.7).
func ValidTopicName(s string) error {
	if what, statement := badTopicString(s); what != "" {
		return &Error{TopicNameInvalid, "topic name " + what, statement}
	}
	return validName(s)
}

// validName is ValidTopicName for a string that came as a well-formed one.
func validName(s string) error {
	switch {
	case s == "":
		return &Error{TopicNameInvalid, "topic name is empty", "MQTT-4.7.3-1"}
	case strings.IndexByte(s, '+') >= 0, strings.IndexByte(s, '#') >= 0:
		return &Error{TopicNameInvalid, "topic name has a wildcard", "MQTT-3.3.2-2"}
	}
	return nil
}

// badTopicString names what is wrong with a topic as a string (§4.7.3); nothing when nothing is.
func badTopicString(s string) (what, statement string) {
	if len(s) > stringMax {
		return "has more than 65535 bytes", "MQTT-4.7.3-3"
	}
	if strings.IndexByte(s, 0) >= 0 {
		return "has a NUL", "MQTT-4.7.3-2"
	}
	return badUTF8(s)
}

// ValidTopicFilter says what forbids a topic filter, shared or not, as an [*Error]; nil when nothing does (§4.7, §4.8.2).
func ValidTopicFilter(s string) error {
	bad := func(statement, detail string) error { return &Error{TopicFilterInvalid, detail, statement} }
	if what, statement := badTopicString(s); what != "" {
		return bad(statement, "topic filter "+what)
	}
	group, inner, shared := ParseShare(s)
	if shared {
		switch {
		case group == "":
			return bad("MQTT-4.8.2-1", "share name is empty")
		case strings.ContainsAny(group, "+#"):
			return bad("MQTT-4.8.2-2", "share name has a wildcard")
		case inner == "":
			return bad("MQTT-4.8.2-2", "shared subscription has no topic filter")
		}
		s = inner
	}
	if s == "" {
		return bad("MQTT-4.7.3-1", "topic filter is empty")
	}
	for i := range len(s) {
		first := i == 0 || s[i-1] == '/'
		last := i == len(s)-1
		switch s[i] {
		case '#':
			if !first || !last {
				return bad("MQTT-4.7.1-1", "# must be the last level and alone in it")
			}
		case '+':
			if !first || !last && s[i+1] != '/' {
				return bad("MQTT-4.7.1-2", "+ must be alone in its level")
			}
		}
	}
	return nil
}

// ParseShare takes a shared subscription apart (§4.8.2): `$share/{group}/{inner}`. It does not judge: [ValidTopicFilter]
// does, of the whole. A filter that is not shared is its own inner.
func ParseShare(filter string) (group, inner string, shared bool) {
	rest, ok := strings.CutPrefix(filter, "$share/")
	if !ok {
		if filter == "$share" {
			return "", "", true
		}
		return "", filter, false
	}
	group, inner, _ = strings.Cut(rest, "/")
	return group, inner, true
}
