package rule

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/goccy/go-yaml"
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
		return nil, fmt.Errorf("the rule: %w; it has name, description, sql, actions, error_action and enabled", err)
	}
	return d, nil
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
