package sandbox_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

var update = flag.Bool("update", false, "write the table into the documentation")

const (
	doc   = "../docs/guides/audit-records.md"
	begin = "<!-- the table is made of sandbox.Actions: go test ./sandbox -run TestActions -update -->\n"
	end   = "<!-- end of the table -->\n"
)

// TestActions: names are unique and well-formed, and the documentation has the
// table.
func TestActions(t *testing.T) {
	seen := map[string]bool{}
	var table strings.Builder
	table.WriteString("| action | class | left | object | digest | detail |\n|---|---|---|---|---|---|\n")
	var later []string
	for _, a := range sandbox.Actions() {
		noun, verb, ok := strings.Cut(a.Name, ".")
		if !ok || noun == "" || verb == "" || strings.ToLower(a.Name) != a.Name || seen[a.Name] {
			t.Errorf("bad or repeated name %q", a.Name)
		}
		seen[a.Name] = true
		if a.Later {
			later = append(later, "`"+a.Name+"`")
			continue
		}
		if a.When == "" {
			t.Errorf("%s: nobody knows when", a.Name)
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s | %s | %s |\n", a.Name, class(a.Class), a.When, a.Object, a.Digest, a.Detail)
	}
	fmt.Fprintf(&table, "\nReserved, not built yet: %s.\n", strings.Join(later, ", "))
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s does not say where the table is", doc)
	}
	if *update {
		if err := os.WriteFile(doc, []byte(head+begin+table.String()+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old != table.String() {
		t.Errorf("the table in %s is not that of sandbox.Actions: go test ./sandbox -run TestActions -update", doc)
	}
}

func class(c sandbox.Class) string {
	if c == sandbox.Flow {
		return "flow"
	}
	return "gate"
}
