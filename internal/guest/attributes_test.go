package guest

import (
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestAttributes(t *testing.T) {
	for what, c := range map[string]struct {
		a    map[string]string
		fine bool
	}{
		"none":          {nil, true},
		"some":          {map[string]string{"a": "1", "b-c": ""}, true},
		"no name":       {map[string]string{"": "x"}, false},
		"a long name":   {map[string]string{strings.Repeat("n", 246): "x"}, true},
		"a longer name": {map[string]string{strings.Repeat("n", 247): "x"}, false},
		"a newline":     {map[string]string{"a": "x\ny"}, false},
		"no ASCII":      {map[string]string{"a": "ü"}, false},
		"much":          {map[string]string{"a": strings.Repeat("v", 4096-10)}, true},
		"too much":      {map[string]string{"a": strings.Repeat("v", 4096-9)}, false},
	} {
		err := CheckAttributes(c.a)
		if (err == nil) != c.fine || err != nil && sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
		if got := cleanAttributes(c.a); CheckAttributes(got) != nil || c.fine && len(got) != len(c.a) {
			t.Errorf("%s: %d are left", what, len(got))
		}
	}
	lies := map[string]string{"fine": "x"}
	for i := range 300 {
		lies[strings.Repeat("n", i)] = strings.Repeat("v", 100)
	}
	if got := cleanAttributes(lies); len(got) == 0 || CheckAttributes(got) != nil {
		t.Errorf("%d are left", len(got))
	}
}
