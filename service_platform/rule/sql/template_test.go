package sql

import (
	"strings"
	"testing"
)

func TestTemplates(t *testing.T) {
	for _, c := range []struct {
		text, want string
		defined    bool
	}{
		{"plain $ text {}", "plain $ text {}", true},
		{"", "", true},
		{"${topic()}/x/${device}", "a/b/x/p1", true},
		{"${ device + '}' }", "p1}", true},
		{"${get({'a': {'b': 1}}, 'a').b}$", "1$", true},
		{"$${device}", "$p1", true},
		{"a${missing}b", "ab", false},
		{"${t}|${on}|${nil}|${list}|${deep}", `20.5|true|null|[1,2]|{"a":1}`, true},
		{"${CASE on WHEN true THEN 'yes' END}", "yes", true},
		{`{"k": "${device}"}`, `{"k": "p1"}`, true},
		{"${*}", `{"device":"p1","t":20.5,"on":true,"nil":null,"list":[1,2],"deep":{"a":1}}`, true},
		{"${parse_time(\"yyyy\", timestamp(), \"UTC\")}", "2016", true},
	} {
		tmpl, err := CompileTemplate(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		got, defined, err := tmpl.Eval(sample("a/b", `{"device":"p1","t":20.5,"on":true,"nil":null,"list":[1, 2],"deep":{"a":1}}`), nil)
		if got != c.want || defined != c.defined || err != nil {
			t.Errorf("%s = %q (%v, %v), want %q", c.text, got, defined, err, c.want)
		}
		if tmpl.String() != c.text || tmpl.Constant() == strings.Contains(c.text, "${") {
			t.Errorf("%s tells %q, constant %v", c.text, tmpl.String(), tmpl.Constant())
		}
	}
}

func TestTemplateFaultsNameThePlace(t *testing.T) {
	for text, want := range map[string]string{
		"a\n/${":                    "line 2, column 4: want an expression, got the end",
		"${a b}":                    `want an operator or }, got "b"`,
		"${a":                       "want an operator or }, got the end",
		"${}":                       `want an expression, got "}"`,
		"${@x}":                     "want a variable that SET has defined before, got @x",
		"${nothing()}":              "want a known function",
		"${'a}":                     "want a closing '",
		strings.Repeat("${a}", 100): "at most 64 expressions",
	} {
		if _, err := CompileTemplate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %s", text, err, want)
		}
	}
}

// TestTemplatesSeeTheVariablesOfTheMessage: a newuuid() in SET is the same in the output and in each template.
func TestTemplatesSeeTheVariablesOfTheMessage(t *testing.T) {
	s, err := Compile("SET @id = newuuid(), @v = {'t': temperature} SELECT @id AS id")
	if err != nil {
		t.Fatal(err)
	}
	tmpl, err := s.Template("${@id}/${@v.t}/${device}")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	in := sample("a", `{"temperature":7,"device":"p1"}`)
	in.NewUUID = func() string { count++; return "u" + itoa(count) }
	out, _, err := s.Eval(in)
	if err != nil || string(out.Payload) != `{"id":"u1"}` {
		t.Fatalf("%s, %v", out.Payload, err)
	}
	if got, _, _ := tmpl.Eval(in, out.Variables); got != "u1/7/p1" {
		t.Errorf("with the variables: %s", got)
	}
	if got, _, _ := tmpl.Eval(in, nil); got != "u2/7/p1" {
		t.Errorf("without them: %s", got)
	}
	other, err := Compile("SET @a = 'x', @b = 'y' SELECT @a")
	if err != nil {
		t.Fatal(err)
	}
	foreign, _, _ := other.Eval(in)
	if got, _, _ := tmpl.Eval(in, foreign.Variables); got != "u3/7/p1" {
		t.Errorf("with those of another statement: %s", got)
	}
}

// TestTemplatesIgnoreTheOutput: names are those of the payload, never of AS.
func TestTemplatesIgnoreTheOutput(t *testing.T) {
	tmpl, err := CompileTemplate("${alias}")
	if err != nil {
		t.Fatal(err)
	}
	if got, defined, _ := tmpl.Eval(sample("a", `{"a":1}`), nil); got != "" || defined {
		t.Errorf("%q, %v", got, defined)
	}
}
