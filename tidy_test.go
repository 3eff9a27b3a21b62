package naru

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// documented are the folders that others build on: every exported name in them says what it promises.
var documented = []string{"message", "bus", "component", "device/sdk"}

// longMax is how many lines a file may have before a seam is looked for.
const longMax = 900

// waits are the tests that let time pass where nothing tells them to go on. Elsewhere a test waits for what happens, or
// lives in a bubble of testing/synctest, where time passes when all wait. Each has its reason, and one that is not needed goes.
var waits = map[string]string{
	"service_platform/broker/conformance_publish_test.go": "that a message expires is looked at from outside, at brokers in processes of their own",
	"service_platform/broker/takeover_test.go":            "it looks for what must not be said, and for what a start makes of time that passed",
	"service_platform/broker/turnstile_test.go":           "that a long time in line costs a client nothing is looked at with real sockets",
	"test/e2e/cluster_test.go":                            "how long the processes run before the next one is killed is what is done to them",
	"test/e2e/load_test.go":                               "how long a process runs before it is killed is what is varied",
}

func TestHouseIsTidy(t *testing.T) {
	waited := map[string]bool{}
	defer func() {
		for file := range waits {
			if !waited[file] {
				t.Errorf("%s needs no exception any more: it waits for what happens", file)
			}
		}
	}()
	for _, f := range []string{"README.md", "ARCHITECTURE.md", "STYLE.md", "CHANGELOG.md", "LICENSE"} {
		if _, err := os.Stat(f); err != nil {
			t.Errorf("%s is missing", f)
		}
	}
	docs := map[string]bool{}
	// Spelled apart, so that this file does not find itself.
	unfinished := []string{"TO" + "DO", "FIX" + "ME", "t.Sk" + "ip(", "t.Sk" + "ipf(", "t.Sk" + "ipNow("}
	walkFiles(t, func(file string) {
		if !strings.HasSuffix(file, ".go") {
			return
		}
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		folder, inTest := path.Dir(file), strings.HasSuffix(file, "_test.go")
		switch path.Base(folder) {
		case "util", "utils", "common", "helpers", "misc":
			t.Errorf("%s: a folder's name says what its job is", folder)
		}
		for _, word := range unfinished {
			if bytes.Contains(src, []byte(word)) {
				t.Errorf("%s has %s: finish it, or open an issue", file, word)
			}
		}
		if n := bytes.Count(src, []byte("\n")); n > longMax && !inTest {
			t.Errorf("%s has %d lines: look for the seam", file, n)
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if inTest {
			for _, at := range waitsForTime(parsed) {
				if waited[file] = true; waits[file] == "" {
					t.Errorf("%s:%d lets time pass: wait for what happens, or use testing/synctest", file, bytes.Count(src[:at], []byte("\n"))+1)
				}
			}
		}
		if !inTest {
			docs[folder] = docs[folder] || parsed.Doc != nil
			for _, d := range documented {
				if within(folder, d) && !strings.HasPrefix(folder, "bus/") {
					undocumented(t, file, parsed)
				}
			}
		}
	})
	for folder, ok := range docs {
		if !ok {
			t.Errorf("%s: no file says what the package is for", folder)
		}
	}
}

// file is how ARCHITECTURE.md names one, with its folder.
var file = regexp.MustCompile("`([a-z0-9_]+/[a-z0-9_/]+\\.go)`")

func TestArchitectureNamesFilesThatThereAre(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	names := file.FindAllSubmatch(text, -1)
	if len(names) < 30 {
		t.Errorf("%d files are named; want those that a newcomer reads first", len(names))
	}
	for _, n := range names {
		if _, err := os.Stat(string(n[1])); err != nil {
			t.Errorf("ARCHITECTURE.md names %s: %v", n[1], err)
		}
	}
}

// waitsForTime gives the offsets of statements that do nothing but wait for a time that was chosen: time.Sleep, and a
// receive from time.After outside of a select, which would have something else to wait for. In a bubble both are fine.
func waitsForTime(f *ast.File) (at []int) {
	called := func(n ast.Node, pkg, name string) bool {
		c, ok := n.(*ast.CallExpr)
		if !ok {
			return false
		}
		s, ok := c.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		x, ok := s.X.(*ast.Ident)
		return ok && x.Name == pkg && s.Sel.Name == name
	}
	var look func(n ast.Node) bool
	look = func(n ast.Node) bool {
		if called(n, "synctest", "Test") {
			return false
		}
		if c, ok := n.(*ast.CommClause); ok { // what it waits for is one of several; what follows is looked at
			for _, s := range c.Body {
				ast.Inspect(s, look)
			}
			return false
		}
		r, ok := n.(*ast.UnaryExpr)
		if called(n, "time", "Sleep") || ok && r.Op == token.ARROW && called(r.X, "time", "After") {
			at = append(at, int(n.Pos()-f.FileStart))
		}
		return true
	}
	ast.Inspect(f, look)
	return at
}

func TestTidinessSeesTestsThatLetTimePass(t *testing.T) {
	for body, want := range map[string]int{
		"time.Sleep(1)":   1,
		"<-time.After(1)": 1,
		"for { go func() { <-time.After(1) }() }":                         1,
		"select { case <-time.After(1): case <-done: }":                   0,
		"select { case <-done: time.Sleep(1) }":                           1,
		"synctest.Test(t, func(t *testing.T) { <-time.After(1) })":        0,
		"late := time.After(1); for { select { case <-late: default: } }": 0,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "x_test.go", "package x\nfunc f() { "+body+" }", 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(waitsForTime(f)); got != want {
			t.Errorf("%s: %d waits are seen; want %d", body, got, want)
		}
	}
}

// undocumented complains about exported declarations without a comment, of their own or of their group.
func undocumented(t *testing.T, file string, f *ast.File) {
	t.Helper()
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || receiverExported(d.Recv)) {
				t.Errorf("%s: %s has no comment", file, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if s, ok := s.(*ast.TypeSpec); ok && s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
					t.Errorf("%s: %s has no comment", file, s.Name.Name)
				}
			}
		}
	}
}

func receiverExported(r *ast.FieldList) bool {
	typ := r.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if index, ok := typ.(*ast.IndexExpr); ok {
		typ = index.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}
