package fake

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestTable holds the table against the definition it was written from, where
// FIREBREAK_FIRECRACKER_SCHEMA names a copy.
func TestTable(t *testing.T) {
	path := os.Getenv("FIREBREAK_FIRECRACKER_SCHEMA")
	if path == "" {
		t.Skip("not run: FIREBREAK_FIRECRACKER_SCHEMA names no copy of firecracker.yaml")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != schemaDigest {
		t.Fatalf("%s is another version: %x", path, sum)
	}
	type prop struct {
		Type    string
		Ref     string `yaml:"$ref"`
		Enum    []any
		Minimum float64
		Maximum float64
	}
	var doc struct {
		Paths       map[string]map[string]any
		Definitions map[string]struct {
			Required   []string
			Properties map[string]prop
		}
	}
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	for name, d := range definitions {
		want := definition{required: doc.Definitions[name].Required, properties: map[string]property{}}
		for k, p := range doc.Definitions[name].Properties {
			q := property{kind: p.Type, min: p.Minimum, max: p.Maximum}
			if p.Ref != "" {
				q.kind = strings.TrimPrefix(p.Ref, "#/definitions/")
			}
			for _, e := range p.Enum {
				q.enum = append(q.enum, fmt.Sprint(e))
			}
			want.properties[k] = q
		}
		slices.Sort(want.required)
		got := slices.Sorted(slices.Values(d.required))
		if !slices.Equal(got, want.required) || !reflect.DeepEqual(d.properties, want.properties) {
			t.Errorf("%s is\n%+v, want\n%+v", name, d, want)
		}
	}
	for route, op := range operations {
		method, p, _ := strings.Cut(route, " ")
		o, ok := doc.Paths[p][strings.ToLower(method)]
		if !ok {
			t.Errorf("there is no %s", route)
		} else if op.body != "" && !strings.Contains(fmt.Sprint(o), "#/definitions/"+op.body) {
			t.Errorf("%s does not take %s", route, op.body)
		}
	}
}
