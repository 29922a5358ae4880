package client

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// byREST are the methods that the client calls by their route, since their body is
// no message.
var byREST = map[string]string{
	"FileService.ReadFile":        "s.c.raw(ctx, http.MethodGet",
	"FileService.WriteFile":       "s.c.raw(ctx, http.MethodPut",
	"FileService.WriteArchive":    `s.filesPath()+"/archive"`,
	"SystemService.UploadArchive": `"/v1/templates/uploads"`,
	"SandboxService.DialPort":     `"/ports/"`,
}

// TestCoversEveryOperation: whatever the API can do, a function of this package
// does.
func TestCoversEveryOperation(t *testing.T) {
	called := map[string]bool{} // methods of the generated clients
	var source strings.Builder
	pkgs, err := parser.ParseDir(token.NewFileSet(), ".", func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range pkgs["client"].Files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(b)
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if method, ok := call.Fun.(*ast.SelectorExpr); ok {
					if _, ok := method.X.(*ast.SelectorExpr); ok { // c.files.StatFile
						called[method.Sel.Name] = true
					}
				}
			}
			return true
		})
	}
	methods := 0
	protoregistry.GlobalFiles.RangeFilesByPackage("firebreak.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			sv := file.Services().Get(i)
			for j := range sv.Methods().Len() {
				m := sv.Methods().Get(j)
				if a, ok := proto.GetExtension(m.Options(), v1.E_Access).(*v1.Access); !ok || a.GetScope() == "" {
					continue
				}
				methods++
				name := string(sv.Name()) + "." + string(m.Name())
				route, rest := byREST[name]
				if !called[string(m.Name())] && !(rest && strings.Contains(source.String(), route)) {
					t.Errorf("nothing in this package calls %s", name)
				}
			}
		}
		return true
	})
	if methods < 40 {
		t.Errorf("%d methods were looked at", methods)
	}
}
