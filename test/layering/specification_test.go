package layering

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestSpecificationNamesRealTests keeps SPECIFICATION.md and THREATS.md honest:
// a test they name exists.
func TestSpecificationNamesRealTests(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "grep", "-hoE", `^func (Test|Fuzz)[A-Z0-9][A-Za-z0-9_]*`, "--", "*_test.go").Output()
	if err != nil {
		t.Skip("not run: not a git checkout")
	}
	exists := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		exists[strings.TrimPrefix(strings.TrimSpace(line), "func ")] = true
	}
	names := regexp.MustCompile(`\b(Test|Fuzz)[A-Z0-9][A-Za-z0-9_]*`)
	found := 0
	for _, doc := range []string{"SPECIFICATION.md", "THREATS.md"} {
		text, err := os.ReadFile("../../" + doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names.FindAllString(string(text), -1) {
			if found++; !exists[name] {
				t.Errorf("%s names %s, which does not exist", doc, name)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d tests are named", found)
	}
}
