package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/schema"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// channel is a contract of the user's own. It is part of the platform's catalog: messages on it are held to its schema
// at every door, and it is listed, counted and published (AsyncAPI) as naru's own are.
//
// A channel is known to a process by its configuration file alone, so that a door needs nobody to decide. The processes
// of one platform (`naru run`) must therefore be given the same channels, best by the same file; `naru status` tells
// when they were not.
type channel struct {
	Subject     message.Pattern `json:"subject"`
	Type        string          `json:"type"`
	Doc         string          `json:"doc"`
	Owner       string          `json:"owner"`
	ContentType string          `json:"content_type,omitempty"` // application/json where there is a schema
	Schema      json.RawMessage `json:"schema,omitempty"`
	SchemaFile  string          `json:"schema_file,omitempty"` // instead of schema; relative to the configuration file
	Says        []string        `json:"says,omitempty"`        // device where empty
	Hears       []string        `json:"hears,omitempty"`
	Example     json.RawMessage `json:"example,omitempty"` // keeps the schema
}

// schemaMax is the size of a schema file; what is larger is most likely not one.
const schemaMax = 1 << 20

// typeForm is what AsyncAPI takes for a key.
var typeForm = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// readChannels takes the list as the YAML has it.
func readChannels(list any) ([]channel, error) {
	items, ok := list.([]any)
	if !ok && list != nil {
		return nil, errors.New("channels: want a list, each item with subject, type, doc and owner")
	}
	channels := make([]channel, len(items))
	for i, item := range items {
		m, ok := item.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s: want settings: subject, type, doc, owner and so on", channelName(i, ""))
		}
		subject, _ := m["subject"].(string)
		keys := component.Keys(channel{})
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !slices.Contains(keys, k) {
				return nil, fmt.Errorf("%s: %w", channelName(i, subject), component.UnknownKey(k, keys))
			}
		}
		raw, err := json.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("%s cannot be written as JSON: %w", channelName(i, subject), err)
		}
		var wrong *json.UnmarshalTypeError
		if err := json.Unmarshal(raw, &channels[i]); errors.As(err, &wrong) {
			want := "a text in quotes"
			if wrong.Field == "says" || wrong.Field == "hears" {
				want = "a list of names in [ ]"
			}
			return nil, fmt.Errorf("%s: %s: got a %s, want %s", channelName(i, subject), wrong.Field, wrong.Value, want)
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", channelName(i, subject), err)
		}
	}
	return channels, nil
}

func channelName(i int, subject string) string {
	if subject == "" {
		return fmt.Sprintf("channel %d", i+1)
	}
	return fmt.Sprintf("channel %d (%s)", i+1, subject)
}

// join makes one catalog of the platform's contracts and the channels of a file. Each mistake is a line of its own that
// names file, channel and remedy.
func (c *config) join(file string) error {
	platform := catalog.Default().Contracts()
	all := slices.Clone(platform)
	var errs []error
	for i := range c.Channels {
		ch := &c.Channels[i]
		contract, err := ch.contract(filepath.Dir(file), platform)
		if err == nil {
			err = ch.distinct(c.Channels[:i])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("configuration %s: %s: %w", file, channelName(i, string(ch.Subject)), err))
			continue
		}
		all = append(all, contract)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	var err error
	if c.Catalog, err = message.NewCatalog(all...); err != nil {
		return fmt.Errorf("configuration %s: channels: %w", file, err)
	}
	return nil
}

// contract checks a channel by itself and beside the platform's contracts, and reads its schema in.
func (ch *channel) contract(dir string, platform []message.Contract) (message.Contract, error) {
	k := message.Contract{Subjects: ch.Subject, Type: ch.Type, Doc: ch.Doc, Owner: ch.Owner, Route: message.ByLog}
	if err := ch.words(); err != nil {
		return k, err
	}
	if err := ch.beside(platform); err != nil {
		return k, err
	}
	if err := ch.parties(); err != nil {
		return k, err
	}
	if err := ch.data(dir); err != nil {
		return k, err
	}
	k.Says, k.Hears, k.ContentType, k.Schema, k.Example = ch.Says, ch.Hears, ch.ContentType, ch.Schema, ch.Example
	return k, nil
}

// words checks what a person has to say of a channel.
func (ch *channel) words() error {
	switch {
	case ch.Subject == "":
		return errors.New("subject is missing: where its messages go, such as device.*.telemetry.engine")
	case strings.ContainsAny(string(ch.Subject), "/+#"):
		if p, err := message.FromFilter(string(ch.Subject)); err == nil {
			return fmt.Errorf("subject %q is written as an MQTT filter; as a subject it is %s", ch.Subject, p[len(p)-1])
		}
	case ch.Type == "":
		return errors.New("type is missing: a name with its version, such as com.example.engine.v1")
	case !typeForm.MatchString(ch.Type):
		return fmt.Errorf("type %q: want letters, digits, dots, - and _, such as com.example.engine.v1", ch.Type)
	case strings.TrimSpace(ch.Doc) == "":
		return errors.New("doc is missing: a sentence on what it means, and on what it means that it was not said")
	case strings.TrimSpace(ch.Owner) == "":
		return errors.New("owner is missing: the team that answers for it")
	}
	return ch.Subject.Valid()
}

// beside keeps the platform's own contracts in force: a channel does not loosen their schemas.
func (ch *channel) beside(platform []message.Contract) error {
	if first, _, _ := strings.Cut(string(ch.Subject), "."); first == message.Operator {
		return fmt.Errorf("subjects under %s. are the platform's own words; take another first token", message.Operator)
	}
	for _, own := range platform {
		if key(own.Type) == key(ch.Type) {
			return fmt.Errorf("type %s is the platform's, on %s; take a name of your own, such as com.example.%s", own.Type, own.Subjects, ch.Type)
		}
		switch {
		case own.Subjects == ch.Subject:
			return fmt.Errorf("%s is the platform's already (%s); take a more particular pattern, such as %s", own.Subjects, own.Type, narrower(own.Subjects))
		case !overlap(own.Subjects, ch.Subject), ch.Subject.Covers(own.Subjects):
			continue // theirs is the more particular one
		case own.Schema != nil:
			return fmt.Errorf("it overlaps %s, where the platform's schema of %s holds; take a subject outside of that", own.Subjects, own.Type)
		}
	}
	return nil
}

// narrower gives an example of a pattern within another.
func narrower(p message.Pattern) message.Pattern {
	switch {
	case strings.HasSuffix(string(p), ">"):
		return p[:len(p)-1] + "engine"
	case strings.HasSuffix(string(p), "*"):
		return p[:len(p)-1] + "started"
	}
	return p + ".engine"
}

// overlap says whether some subject is selected by both patterns.
func overlap(p, q message.Pattern) bool {
	a, b := strings.Split(string(p), "."), strings.Split(string(q), ".")
	wild := func(t string) bool { return t == "*" || t == ">" }
	if strings.HasPrefix(a[0], "$") && wild(b[0]) || strings.HasPrefix(b[0], "$") && wild(a[0]) {
		return false
	}
	for i := 0; i < len(a) && i < len(b); i++ {
		switch {
		case a[i] == ">" || b[i] == ">":
			return true
		case a[i] != b[i] && !wild(a[i]) && !wild(b[i]):
			return false
		}
	}
	return len(a) == len(b)
}

// parties checks who says and hears it.
func (ch *channel) parties() error {
	if len(ch.Says) == 0 {
		ch.Says = []string{"device"}
	}
	known := []string{"device", "*"}
	for _, s := range specs(nil, nil) {
		known = append(known, s.Name)
	}
	for _, who := range ch.Says {
		if !slices.Contains(known, who) {
			return fmt.Errorf("says %q: %w", who, unknownParty(who, known))
		}
		if who == "device" && !overlap(ch.Subject, "device.*.>") {
			return errors.New("says device, and a device speaks on device.<its id>.> only; begin the subject with device.*., or name who else says it")
		}
	}
	if slices.Contains(ch.Hears, "") {
		return errors.New("hears has an empty name; leave it out, or name who listens")
	}
	return nil
}

func unknownParty(who string, known []string) error {
	err := component.UnknownKey(who, known)
	return errors.New(strings.Replace(err.Error(), "there is no setting", "there is no component", 1))
}

// data reads the schema in, and checks it and the example.
func (ch *channel) data(dir string) error {
	if ch.SchemaFile != "" {
		if ch.Schema != nil {
			return errors.New("has both schema and schema_file; leave one out")
		}
		raw, err := readSchema(dir, ch.SchemaFile)
		if err != nil {
			return fmt.Errorf("schema_file: %w", err)
		}
		ch.Schema = raw
	}
	if ch.Schema == nil {
		return nil
	}
	s, err := schema.Compile(ch.Schema)
	if err != nil {
		if ch.SchemaFile != "" {
			return fmt.Errorf("schema in %s: %w", ch.SchemaFile, err)
		}
		return fmt.Errorf("schema: %w", err)
	}
	ch.SchemaFile = "" // it is in force as it was read
	if ch.ContentType == "" {
		ch.ContentType = "application/json"
	}
	media, _, err := mime.ParseMediaType(ch.ContentType)
	if err != nil || media != "application/json" && !strings.HasSuffix(media, "+json") {
		return fmt.Errorf("content_type is %q, and a schema is for JSON; leave it out, or leave the schema out", ch.ContentType)
	}
	if ch.Example != nil {
		if err := s.Check(ch.Example); err != nil {
			return fmt.Errorf("its example does not keep its schema: %w; change the one or the other", err)
		}
	}
	return nil
}

// readSchema reads a file of JSON, or of YAML where its name says so.
func readSchema(dir, name string) (json.RawMessage, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	switch info, err := os.Stat(name); {
	case err != nil:
		return nil, fmt.Errorf("%w; its path is taken from the folder of the configuration file", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file", name)
	case info.Size() > schemaMax:
		return nil, fmt.Errorf("%s has %d bytes, and the limit is %d; is it a schema?", name, info.Size(), schemaMax)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if ext := filepath.Ext(name); ext != ".yaml" && ext != ".yml" {
		var small bytes.Buffer
		if json.Compact(&small, raw) != nil {
			return raw, nil // Compile tells what is wrong, and where
		}
		return small.Bytes(), nil
	}
	var v any
	if err := yaml.Unmarshal(raw, &v); err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		return nil, fmt.Errorf("%s: %s", name, first)
	}
	if raw, err = json.Marshal(v); err != nil {
		return nil, fmt.Errorf("%s cannot be written as JSON: %w", name, err)
	}
	return raw, nil
}

// distinct says whether a channel is one of its own among those before it.
func (ch *channel) distinct(before []channel) error {
	for i := range before {
		other := channelName(i, string(before[i].Subject))
		switch {
		case before[i].Subject == ch.Subject:
			return fmt.Errorf("the same subject as %s; one subject has one contract: join them, or take a more particular pattern", other)
		case before[i].Type == ch.Type:
			return fmt.Errorf("type %s is %s's as well; give each its own, or one of them another version", ch.Type, other)
		case key(before[i].Type) == key(ch.Type):
			return fmt.Errorf("type %s is the same as %s of %s once dots are underscores, as they are in AsyncAPI; take another", ch.Type, before[i].Type, other)
		}
	}
	return nil
}

// key is a type as AsyncAPI has it.
func key(typ string) string { return strings.ReplaceAll(typ, ".", "_") }
