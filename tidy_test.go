package naru

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"strings"
	"testing"
)

// documented are the folders that others build on: every exported name in them says what it promises.
var documented = []string{"message", "bus", "component", "device/sdk"}

// longMax is how many lines a file may have before a seam is looked for.
const longMax = 900

func TestHouseIsTidy(t *testing.T) {
	for _, f := range []string{"README.md", "ARCHITECTURE.md", "STYLE.md", "CHANGELOG.md", "LICENSE"} {
		if _, err := os.Stat(f); err != nil {
			t.Errorf("%s is missing", f)
		}
	}
	docs := map[string]bool{}
	// Spelled apart, so that this file does not find itself.
	unfinished := []string{"TO" + "DO", "FIX" + "ME", "t.Sk" + "ip(", "t.Sk" + "ipf(", "t.Sk" + "ipNow("}
	sleep := "time.Sl" + "eep("
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
		if inTest && bytes.Contains(src, []byte(sleep)) {
			t.Errorf("%s waits by sleeping: wait for what happens, or use testing/synctest", file)
		}
		if n := bytes.Count(src, []byte("\n")); n > longMax && !inTest {
			t.Errorf("%s has %d lines: look for the seam", file, n)
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
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
