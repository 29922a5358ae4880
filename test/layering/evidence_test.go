package layering

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestEvidenceIsNeverDropped reads the code that records: the actions it names
// are those of sandbox.Actions, each of them is recorded somewhere, and no error
// of recording is thrown away.
func TestEvidenceIsNeverDropped(t *testing.T) {
	actions, recorded := map[string]sandbox.Action{}, map[string]bool{}
	for _, a := range sandbox.Actions() {
		actions[a.Name] = a
	}
	fset := token.NewFileSet()
	inspect := func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.KeyValueExpr:
			key, _ := n.Key.(*ast.Ident)
			if key != nil && key.Name == "Action" {
				note(t, fset, n.Value, actions, recorded)
			}
		case *ast.ValueSpec: // const ActionX = "x.y"
			for i, name := range n.Names {
				if strings.HasPrefix(name.Name, "Action") && i < len(n.Values) {
					note(t, fset, n.Values[i], actions, recorded)
				}
			}
		case *ast.AssignStmt: // r.Class, r.Action = sandbox.Gate, "process.kill"
			for i, l := range n.Lhs {
				if sel, ok := l.(*ast.SelectorExpr); ok && sel.Sel.Name == "Action" && len(n.Rhs) == len(n.Lhs) {
					note(t, fset, n.Rhs[i], actions, recorded)
				}
			}
			if len(n.Rhs) == 1 && records(n.Rhs[0]) && blank(n.Lhs[len(n.Lhs)-1]) {
				t.Errorf("%s: the error of recording is thrown away", fset.Position(n.Pos()))
			}
		case *ast.ExprStmt:
			if records(n.X) {
				t.Errorf("%s: the error of recording is thrown away", fset.Position(n.Pos()))
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && f.Name == "own" && len(n.Args) > 0 {
				note(t, fset, n.Args[0], actions, recorded)
			}
		}
		return true
	}
	for _, root := range []string{"../../internal", "../../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err == nil {
				ast.Inspect(f, inspect)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name := range declaredActions(t) {
		recorded[name] = true // by the service, from the proto
	}
	for name, a := range actions {
		if !a.Later && !recorded[name] {
			t.Errorf("nothing records %q", name)
		}
	}
}

// note checks an action that is written out.
func note(t *testing.T, fset *token.FileSet, e ast.Expr, actions map[string]sandbox.Action, recorded map[string]bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return
	}
	name, err := strconv.Unquote(lit.Value)
	if err != nil || name == "" {
		return
	}
	if a, ok := actions[name]; !ok || a.Later {
		t.Errorf("%s: the action %q is not one of sandbox.Actions", fset.Position(e.Pos()), name)
	}
	recorded[name] = true
}

// records reports whether e is a call of something called Record or record.
func records(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	return ok && (sel.Sel.Name == "Record" || sel.Sel.Name == "record")
}

func blank(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == "_"
}

// declaredActions are those of the API's methods.
func declaredActions(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				a, _ := proto.GetExtension(f.Services().Get(i).Methods().Get(j).Options(), v1.E_Access).(*v1.Access)
				if a.GetAction() != "" {
					found[a.GetAction()] = true
				}
			}
		}
		return true
	})
	if len(found) < 10 {
		t.Errorf("only %d actions are declared", len(found))
	}
	return found
}
