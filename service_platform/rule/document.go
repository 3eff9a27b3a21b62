package rule

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/naru-platform/naru/internal/near"
)

// Document is a rule as people write it, in YAML or JSON.
type Document struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	SQL         string   `json:"sql"`
	Actions     []Action `json:"actions"`
	// ErrorAction is told, once for each message, of all that failed there.
	ErrorAction *Action `json:"error_action,omitempty"`
	// Enabled is true for a new rule where it is missing, and else leaves the rule as it is.
	Enabled *bool `json:"enabled,omitempty"`
}

// Action is what is done with a rule's output; exactly one is there. All texts are substitution templates.
type Action struct {
	Republish *Republish `json:"republish,omitempty"`
	Twin      *Twin      `json:"twin,omitempty"`
	Command   *Command   `json:"command,omitempty"`
	Worker    *Worker    `json:"worker,omitempty"`
	HTTP      *HTTP      `json:"http,omitempty"`

	DataBridge *DataBridge `json:"data_bridge,omitempty"`
}

// Republish says the output on another topic.
type Republish struct {
	Topic  string `json:"topic"`         // MQTT, as clients write it; $$aws/things/<thing>/shadow/… is a twin's
	QoS    *int   `json:"qos,omitempty"` // 1 where it is missing
	Retain bool   `json:"retain,omitempty"`

	ContentType     string         `json:"content_type,omitempty"`
	ResponseTopic   string         `json:"response_topic,omitempty"`
	CorrelationData string         `json:"correlation_data,omitempty"` // in base64, as on AWS
	MessageExpiry   string         `json:"message_expiry,omitempty"`   // seconds
	UserProperties  []UserProperty `json:"user_properties,omitempty"`
}

// UserProperty is a property of MQTT 5.
type UserProperty struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Twin updates a device's twin: the output is the request, {"state":{"desired":…,"reported":…}}.
type Twin struct {
	Device string `json:"device"`
	Shadow string `json:"shadow,omitempty"` // a named one
}

// Command wishes something from a device; it waits for it in the queue.
type Command struct {
	Device string `json:"device"`
	Name   string `json:"name"`
	TTL    string `json:"ttl,omitempty"` // a duration; 24h where it is missing
}

// Worker gives the output to a worker.
type Worker struct {
	Name string `json:"name"`
}

// DataBridge puts the output into a dataset, whose model makes a row of it.
type DataBridge struct {
	Dataset string `json:"dataset"`
	// Device is what device the row is of; that of the message where it is missing.
	Device string `json:"device,omitempty"`
}

// documentMax is how many bytes a document may have: a statement may have 64 KiB.
const documentMax = 128 << 10

// Parse reads a document, YAML or JSON. What it does not know is an error.
func Parse(raw []byte) (*Document, error) {
	if len(raw) > documentMax {
		return nil, fmt.Errorf("a rule of %d bytes; it may have %d", len(raw), documentMax)
	}
	if !json.Valid(raw) {
		j, err := yaml.YAMLToJSON(raw)
		if err != nil {
			return nil, fmt.Errorf("the rule is neither JSON nor YAML: %w", err)
		}
		raw = j
	}
	d := new(Document)
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		var any any
		if json.Unmarshal(raw, &any) == nil {
			err = cmp.Or(strange(any, reflect.TypeFor[Document](), ""), err)
		}
		return nil, fmt.Errorf("the rule: %w", err)
	}
	return d, nil
}

// strange names the first member that a type has not, with its place, and those that it has.
func strange(v any, of reflect.Type, at string) error {
	for of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	switch v := v.(type) {
	case []any:
		if of.Kind() != reflect.Slice {
			return nil
		}
		for i, x := range v {
			if err := strange(x, of.Elem(), fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	case map[string]any:
		if of.Kind() != reflect.Struct {
			return nil
		}
		var known []string
		fields := map[string]reflect.Type{}
		for i := range of.NumField() {
			name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			known, fields[name] = append(known, name), of.Field(i).Type
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if field := fields[strings.ToLower(name)]; field != nil {
				if err := strange(v[name], field, strings.TrimPrefix(at+"."+name, ".")); err != nil {
					return err
				}
				continue
			}
			switch meant := near.Word(name, known); {
			case at == "" && (name == "ruleName" || name == "topicRulePayload"):
				return errors.New("it is written for AWS IoT; `naru rule import` reads that")
			case meant != "":
				return fmt.Errorf("%s has no %q; did you mean %q? It has %s", cmp.Or(at, "it"), name, meant, strings.Join(known, ", "))
			default:
				return fmt.Errorf("%s has no %q; it has %s", cmp.Or(at, "it"), name, strings.Join(known, ", "))
			}
		}
	}
	return nil
}

const (
	nameMax    = 128
	actionsMax = 10 // as on AWS
)

// checkName says what is wrong with a rule's name: it is a word of subjects, of keys and of URLs.
func checkName(name string) error {
	ok := name != "" && len(name) <= nameMax
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("name %q: want 1 to %d letters, digits, _ and -", name, nameMax)
	}
	return nil
}

// only gives the one action that is there, and its name.
func (a *Action) only() (name string, err error) {
	n := 0
	for _, one := range []struct {
		name  string
		there bool
	}{{"republish", a.Republish != nil}, {"twin", a.Twin != nil}, {"command", a.Command != nil}, {"worker", a.Worker != nil}, {"http", a.HTTP != nil}, {"data_bridge", a.DataBridge != nil}} {
		if one.there {
			name = one.name
			n++
		}
	}
	if n != 1 {
		return "", errors.New("want exactly one of republish, twin, command, worker, http and data_bridge")
	}
	return name, nil
}

// content is what a version is: the document without what is the rule's and not the version's. hash tells two apart.
func (d *Document) content() (raw []byte, hash string, err error) {
	c := *d
	c.Enabled = nil
	if raw, err = json.Marshal(&c); err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(raw)
	return raw, hex.EncodeToString(sum[:6]), nil
}
