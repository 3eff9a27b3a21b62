package broker

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What a statement asks of us. testdata/mqtt311.txt and mqtt5.txt say it of each statement, with the tests that hold it.
const (
	bindsServer = "server"     // it binds a server, and is kept
	bindsClient = "client"     // it binds clients only; a test it may have holds what we make of one that breaks it
	defines     = "definition" // nothing can be done or left
	differs     = "deliberate" // it is kept within limits, with a reason in docs/mqtt.md
	broken      = "known"      // it is not kept in some case; a scene shows it, and says why
)

// specification is one version's table.
type specification struct {
	name  string // as docs/mqtt.md has it
	file  string
	mark  string         // in the scenes
	count map[string]int // how many statements each section has, of appendix B
	first map[string]int // the number of a section's first statement, where it is not 1
}

var specifications = []specification{
	{name: "3.1.1", file: "mqtt311.txt", mark: "3:", count: map[string]int{"1.5.3": 3, "2.2.2": 2, "2.3.1": 7, "3.1.0": 2, "3.1.2": 24, "3.1.3": 11, "3.1.4": 5,
		"3.2.0": 1, "3.2.2": 6, "3.3.1": 12, "3.3.2": 3, "3.3.4": 1, "3.3.5": 2, "3.6.1": 1, "3.8.1": 1, "3.8.3": 4, "3.8.4": 6, "3.9.3": 2, "3.10.1": 1,
		"3.10.3": 2, "3.10.4": 6, "3.12.4": 1, "3.14.1": 1, "3.14.4": 3, "4.1.0": 2, "4.3.1": 1, "4.3.2": 2, "4.3.3": 2, "4.4.0": 1, "4.5.0": 2, "4.6.0": 6,
		"4.7.1": 3, "4.7.2": 1, "4.7.3": 4, "4.8.0": 2, "6.0.0": 4, "7.0.0": 2, "7.1.1": 2, "7.1.2": 2}},
	{name: "5", file: "mqtt5.txt", mark: "5:", first: map[string]int{"2.2.1": 2}, count: map[string]int{"1.5.4": 3, "1.5.5": 1, "1.5.7": 1, "2.1.3": 1, "2.2.1": 5, "2.2.2": 1,
		"3.1.0": 2, "3.1.2": 30, "3.1.3": 12, "3.1.4": 6, "3.2.0": 2, "3.2.2": 22, "3.3.1": 13, "3.3.2": 20, "3.3.4": 10, "3.4.2": 3, "3.5.2": 3, "3.6.1": 1,
		"3.6.2": 3, "3.7.2": 3, "3.8.1": 1, "3.8.3": 5, "3.8.4": 8, "3.9.2": 2, "3.9.3": 2, "3.10.1": 1, "3.10.3": 2, "3.10.4": 6, "3.11.2": 2, "3.11.3": 2,
		"3.12.4": 1, "3.14.0": 1, "3.14.1": 1, "3.14.2": 4, "3.14.4": 3, "3.15.1": 1, "3.15.2": 3, "4.1.0": 2, "4.2.0": 1, "4.3.1": 1, "4.3.2": 5, "4.3.3": 13,
		"4.4.0": 2, "4.5.0": 2, "4.6.0": 6, "4.7.0": 1, "4.7.1": 2, "4.7.2": 1, "4.7.3": 4, "4.8.2": 6, "4.9.0": 3, "4.12.0": 7, "4.12.1": 2, "4.13.1": 1,
		"4.13.2": 1, "6.0.0": 4}},
}

// ids are all statements of a specification.
func (s *specification) ids() (list []string) {
	for section, n := range s.count {
		first := max(s.first[section], 1)
		for i := range n {
			id := fmt.Sprintf("MQTT-%s-%d", section, first+i)
			if s.name == "3.1.1" && id == "MQTT-3.8.3-4" {
				id = "MQTT-3-8.3-4" // spelled so there
			}
			list = append(list, id)
		}
	}
	return list
}

// statement is a row of the table.
type statement struct {
	id, binds, what string
	tests           []string
}

func (s *specification) read(t *testing.T) (list []statement) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", s.file))
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(raw)), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "|")
		if len(f) != 4 {
			t.Fatalf("%s, line %d: want id | binds | what | tests", s.file, i+1)
		}
		list = append(list, statement{strings.TrimSpace(f[0]), strings.TrimSpace(f[1]), strings.TrimSpace(f[2]), strings.Fields(f[3])})
	}
	return list
}

// held is what a test function of this package says in its scenes.
type held struct {
	statements map[string]bool // as 3:3.1.0-1
	known      map[string]bool // of them, those that a scene shows to be broken
}

var marked = regexp.MustCompile(`^[35]:(\d+\.\d+\.\d+|3-8\.3)-\d+$`)

// parseTests finds the test functions of a folder, and what they hold.
func parseTests(t *testing.T, folder string) map[string]held {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]held{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Test") {
				continue
			}
			h := held{map[string]bool{}, map[string]bool{}}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				var words, known string
				switch n := n.(type) {
				case *ast.CompositeLit:
					words, known = literal(n, "holds"), literal(n, "known")
				case *ast.CallExpr:
					if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "holds" {
						words = text(n.Args[0])
					}
				}
				for _, w := range strings.Fields(words) {
					if !marked.MatchString(w) {
						t.Errorf("%s: %q is no statement; write it as 5:3.1.0-1", fn.Name.Name, w)
					}
					h.statements[w] = true
					if known != "" {
						h.known[w] = true
					}
				}
				return true
			})
			tests[fn.Name.Name] = h
		}
	}
	return tests
}

// literal is the text of a struct literal's field.
func literal(n *ast.CompositeLit, name string) string {
	for _, e := range n.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			if id, ok := kv.Key.(*ast.Ident); ok && id.Name == name {
				return text(kv.Value)
			}
		}
	}
	return ""
}

// text is that of a literal, or of several with + between.
func text(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, _ := strconv.Unquote(e.Value)
		return s
	case *ast.BinaryExpr:
		return text(e.X) + text(e.Y)
	}
	return ""
}

func TestEveryNormativeStatementHasItsTest(t *testing.T) {
	folders := map[string]map[string]held{"": parseTests(t, "."), "packet.": parseTests(t, "packet"), "session.": parseTests(t, "session"), "trie.": parseTests(t, "../../internal/trie")}
	docs, err := os.ReadFile("../../docs/mqtt.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range specifications {
		rows := map[string]statement{}
		for _, r := range s.read(t) {
			if _, twice := rows[r.id]; twice {
				t.Errorf("%s has %s twice", s.file, r.id)
			}
			rows[r.id] = r
		}
		for _, id := range s.ids() {
			if _, ok := rows[id]; !ok {
				t.Errorf("%s lacks %s", s.file, id)
			}
		}
		if n := len(s.ids()); len(rows) > n {
			t.Errorf("%s has %d statements; the specification has %d", s.file, len(rows), n)
		}
		byScenes := map[string][]string{} // which tests say that they hold it
		known := map[string]bool{}
		for test, h := range folders[""] {
			for w := range h.statements {
				if rest, ok := strings.CutPrefix(w, s.mark); ok {
					byScenes["MQTT-"+rest] = append(byScenes["MQTT-"+rest], test)
				}
			}
			for w := range h.known {
				known["MQTT-"+strings.TrimPrefix(w, s.mark)] = known["MQTT-"+strings.TrimPrefix(w, s.mark)] || strings.HasPrefix(w, s.mark)
			}
		}
		for id, r := range rows {
			s.judge(t, r, folders, byScenes[id], known[id], string(docs))
		}
		for id, tests := range byScenes {
			if _, ok := rows[id]; !ok {
				t.Errorf("%s says that it holds %s%s, which is no statement", tests[0], s.mark, id)
			}
		}
		counts := map[string]int{}
		for _, r := range rows {
			counts[r.binds]++
		}
		for _, what := range slices.Sorted(maps.Keys(counts)) {
			t.Logf("MQTT %s: %d %s", s.name, counts[what], what)
		}
	}
}

// judge holds one row to what there is.
func (s *specification) judge(t *testing.T, r statement, folders map[string]map[string]held, byScenes []string, known bool, docs string) {
	t.Helper()
	bound := true
	switch r.binds {
	case bindsServer, differs, broken:
	case bindsClient, defines:
		bound = false
	default:
		t.Errorf("%s binds %q; there are %s, %s, %s, %s and %s", r.id, r.binds, bindsServer, bindsClient, defines, differs, broken)
	}
	if n := len(strings.Fields(r.what)); n == 0 || n > 12 {
		t.Errorf("%s of MQTT %s is told in %d words; want 1 to 12", r.id, s.name, n)
	}
	if bound && len(r.tests) == 0 {
		t.Errorf("nothing holds %s of MQTT %s: %s", r.id, s.name, r.what)
	}
	for _, name := range r.tests {
		folder := ""
		if i := strings.IndexByte(name, '.'); i >= 0 {
			folder = name[:i+1]
		}
		h, ok := folders[folder][strings.TrimPrefix(name, folder)]
		if !ok {
			t.Errorf("%s names the test %s, which does not exist", r.id, name)
		}
		if len(h.statements) > 0 && !slices.Contains(byScenes, name) {
			t.Errorf("%s names %s, which has no scene that holds %s%s", r.id, name, s.mark, strings.TrimPrefix(r.id, "MQTT-"))
		}
	}
	for _, name := range byScenes {
		if !slices.Contains(r.tests, name) {
			t.Errorf("%s of MQTT %s is held by a scene of %s, and its row does not name it", r.id, s.name, name)
		}
	}
	if (r.binds == broken) != known && r.binds != bindsClient {
		t.Errorf("%s of MQTT %s is %s, and a scene says that it is broken: %t", r.id, s.name, r.binds, known)
	}
	if (r.binds == differs) != strings.Contains(docs, fmt.Sprintf("%s (%s)", r.id, s.name)) && r.binds != broken {
		t.Errorf("%s of MQTT %s is %s; docs/mqtt.md says why of what is deliberate, and only of that", r.id, s.name, r.binds)
	}
}

func TestStatementsAreInOrder(t *testing.T) {
	for _, s := range specifications {
		var last []int
		for _, r := range s.read(t) {
			var key []int
			for _, part := range strings.FieldsFunc(r.id, func(c rune) bool { return c == '.' || c == '-' }) {
				if n, err := strconv.Atoi(part); err == nil {
					key = append(key, n)
				}
			}
			if slices.CompareFunc(last, key, cmp.Compare[int]) >= 0 {
				t.Errorf("%s: %s is out of order", s.file, r.id)
			}
			last = key
		}
	}
}
