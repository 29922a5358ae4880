package server

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/api"
)

var update = flag.Bool("update", false, "write api/openapi.json")

// TestOpenAPI keeps the committed document equal to what the proto and the
// table say. `go test ./internal/server -run TestOpenAPI -update` writes it.
func TestOpenAPI(t *testing.T) {
	w := start(t, &fake{})
	got, err := w.srv.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("../../api/openapi.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(got, api.OpenAPI) {
		t.Error("api/openapi.json is not what the proto and the routes say: run `make generate`")
	}
	if a := w.do("GET", "/openapi.json", "", "Authorization", ""); a.status != 200 || a.body != string(got) {
		t.Errorf("served: %d", a.status)
	}
	checkDocument(t, w, got)
}

// checkDocument: every route is described, every reference resolves, ids are
// unique, everything has words.
func checkDocument(t *testing.T, w *world, raw []byte) {
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
			Responses   map[string]any
			Parameters  []struct{ Name, In string }
		}
		Components map[string]map[string]any
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	routes := 0
	for path, item := range doc.Paths {
		for method, op := range item {
			routes++
			if ids[op.OperationID] || op.OperationID == "" {
				t.Errorf("%s %s: operationId %q", method, path, op.OperationID)
			}
			ids[op.OperationID] = true
			if op.Responses["default"] == nil {
				t.Errorf("%s %s: no error", method, path)
			}
			for _, p := range op.Parameters {
				if p.In == "path" && !strings.Contains(path, "{"+p.Name+"}") {
					t.Errorf("%s: parameter %s is not in it", path, p.Name)
				}
			}
		}
	}
	want := 4
	for _, o := range w.srv.registry.order {
		want += len(o.routes)
	}
	if routes != want {
		t.Errorf("%d routes are described, %d exist", routes, want)
	}
	for _, part := range strings.Split(string(raw), `"$ref": "#/components/`)[1:] {
		kind, rest, _ := strings.Cut(part, "/")
		name, _, _ := strings.Cut(rest, `"`)
		if doc.Components[kind][name] == nil {
			t.Errorf("reference to %s/%s leads nowhere", kind, name)
		}
	}
}
