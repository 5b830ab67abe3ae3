package cmd_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// maySleep: functions that may, although it cannot be seen here that they run in a bubble, with the reason.
var maySleep = map[string]string{
	"firmware-sim/scenario TestCopiesOfALogAreNeverMerged": "a table of what inTruth runs",
	"uplink/link TestDiagnoseSaysWhatIsWrong":              "a table of what its bubble runs",
	"uplink/link Admit":                                    "a hub in a bubble calls it",
	"uplink/link runNetns":                                 "it measures drains on the kernel's own network, each for so long; make link-bench runs it",
}

// TestSleepInBubblesOnly: a test that sleeps in real time waits too long, and on a busy machine too
// short. So in tests time.Sleep stands in a testing/synctest bubble only, where time is virtual.
func TestSleepInBubblesOnly(t *testing.T) {
	sleeps, used := 0, map[string]bool{}
	for dir, p := range testPackages(t) {
		for _, f := range p.funcs {
			if maySleep[dir+" "+f.name] != "" {
				p.virtual[f.key] = true
			}
		}
		p.solve()
		for _, f := range p.funcs {
			key := dir + " " + f.name
			for _, c := range f.calls {
				if !isCall(c, "time", "Sleep") {
					continue
				}
				sleeps++
				used[key] = true
				if maySleep[key] == "" && !p.entered(f, c) && (!p.virtual[f.key] || p.outside[f.key]) {
					t.Errorf("%s: %s sleeps in real time, as far as can be seen: let it wait for what it needs, or use synctest", p.fset.Position(c.Pos()), f.name)
				}
			}
		}
	}
	for key := range maySleep {
		if !used[key] {
			t.Errorf("%s does not sleep: strike it off", key)
		}
	}
	if sleeps < 100 {
		t.Errorf("found %d sleeps only", sleeps)
	}
}

// testPackage is the tests in one directory. A function is known by its name, a method by its name
// after a dot: types are not looked at, so methods of one name are one.
type testPackage struct {
	fset    *token.FileSet
	funcs   []*testFunc
	enters  map[string]bool // that call one of their parameters in a bubble
	virtual map[string]bool // functions that are used in bubbles only, methods that are used there
	outside map[string]bool // what is used elsewhere, too
}

// testFunc is a function, or what stands outside of all functions of a file.
type testFunc struct {
	name, key string
	params    map[string]bool // that are functions
	calls     []*ast.CallExpr
	idents    map[*ast.Ident]string // what it names, and the key of that
}

func testPackages(t *testing.T) map[string]*testPackage {
	all := map[string]*testPackage{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() != ".." && strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		dir := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../")
		p := all[dir]
		if p == nil {
			p = &testPackage{fset: token.NewFileSet(), enters: map[string]bool{}, virtual: map[string]bool{}}
			all[dir] = p
		}
		file, err := parser.ParseFile(p.fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			p.funcs = append(p.funcs, readFunc(decl))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func readFunc(decl ast.Decl) *testFunc {
	f := &testFunc{params: map[string]bool{}, idents: map[*ast.Ident]string{}}
	other := map[*ast.Ident]bool{}    // names where they are declared, and keys, which are fields
	locals := map[string]bool{}       // variables
	selected := map[*ast.Ident]bool{} // x in y.x
	if d, ok := decl.(*ast.FuncDecl); ok {
		f.name, f.key, other[d.Name] = d.Name.Name, d.Name.Name, true
		if d.Recv != nil {
			f.key = "." + f.name
		}
		for _, p := range d.Type.Params.List {
			if _, ok := p.Type.(*ast.FuncType); ok {
				for _, n := range p.Names {
					f.params[n.Name] = true
				}
			}
		}
	}
	define := func(tok token.Token, names ...ast.Expr) {
		for _, e := range names {
			if id, ok := e.(*ast.Ident); ok && tok == token.DEFINE {
				locals[id.Name] = true
			}
		}
	}
	var idents []*ast.Ident
	ast.Inspect(decl, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			f.calls = append(f.calls, n)
		case *ast.AssignStmt:
			define(n.Tok, n.Lhs...)
		case *ast.RangeStmt:
			define(n.Tok, n.Key, n.Value)
		case *ast.KeyValueExpr:
			if id, ok := n.Key.(*ast.Ident); ok {
				other[id] = true
			}
		case *ast.Field:
			for _, id := range n.Names {
				other[id] = true
			}
		case *ast.SelectorExpr:
			selected[n.Sel] = true
		case *ast.Ident:
			idents = append(idents, n)
		}
		return true
	})
	for _, id := range idents {
		switch {
		case selected[id]:
			f.idents[id] = "." + id.Name
		case !other[id] && !locals[id.Name]:
			f.idents[id] = id.Name
		}
	}
	return f
}

// solve adds to enters and virtual until there is no more to add.
func (p *testPackage) solve() {
	for before := -1; before < len(p.enters)+len(p.virtual); {
		before = len(p.enters) + len(p.virtual)
		inside := map[string]bool{}
		p.outside = map[string]bool{}
		for _, f := range p.funcs {
			for id, key := range f.idents {
				switch in := p.virtual[f.key] || p.entered(f, id); {
				case in && f.params[key]:
					p.enters[f.key] = true
				case in:
					inside[key] = true
				case key != f.key:
					p.outside[key] = true
				}
			}
		}
		for key := range inside {
			if strings.HasPrefix(key, ".") || !p.outside[key] {
				p.virtual[key] = true
			}
		}
	}
}

// entered: n, which stands in f, is what a bubble is made of there.
func (p *testPackage) entered(f *testFunc, n ast.Node) bool {
	for _, c := range f.calls {
		if c.Lparen < n.Pos() && n.Pos() < c.Rparen && (isCall(c, "synctest", "Test") || p.enters[callee(c)]) {
			return true
		}
	}
	return false
}

func isCall(c *ast.CallExpr, pkg, name string) bool {
	s, ok := c.Fun.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != name {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == pkg
}

// callee is the key of the function or method that is called, if it has one.
func callee(c *ast.CallExpr) string {
	switch f := c.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		return "." + f.Sel.Name
	}
	return ""
}
