package orchestrator

import (
	"strings"
	"testing"
)

func TestCheckResult(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for in, bad := range map[string]string{
		`{"ok":1}`:                       "",
		` [1, 2.5e3, "x", null] ` + "\n": "",
		`1e400`:                          "", // big, but JSON
		`{"a":{"a":1},"b":[{"a":1}]}`:    "",
		deep(100):                        "",
		deep(101):                        "nested deeper",
		deep(200000):                     "nested deeper",
		strings.Repeat(`{"a":`, 500):     "nested deeper",
		`{"a":1,"a":2}`:                  "twice",
		`{"a":1,"\u0061":2}`:             "twice",
		`[{"x":{"k":1,"k":1}}]`:          "twice",
		`NaN`:                            "not valid",
		`{"a":NaN}`:                      "not valid",
		`Infinity`:                       "not valid",
		`{"a":-Infinity}`:                "not valid",
		`{} x`:                           "follows",
		`{}{}`:                           "follows",
		`1 2`:                            "follows",
		``:                               "too early",
		`  `:                             "too early",
		`{"a":`:                          "too early",
		`[1,`:                            "too early",
		`{"a" 1}`:                        "not valid",
		`[1 2]`:                          "not valid",
		`{'a':1}`:                        "not valid",
		`[1,]`:                           "not valid",
		`{"a":1,}`:                       "not valid",
		`{1:2}`:                          "not valid",
		`]`:                              "not valid",
		"\"\xff\"":                       "UTF-8",
		"\"a\x00b\"":                     "not valid",
		`01`:                             "",
	} {
		err := checkResult([]byte(in))
		if in == `01` {
			if err == nil {
				t.Errorf("01 was accepted")
			}
			continue
		}
		if (err == nil) != (bad == "") || err != nil && !strings.Contains(err.Error(), bad) {
			t.Errorf("checkResult(%.40q) = %v, want %q", in, err, bad)
		}
	}
}

func FuzzCheckResult(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":null}]}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := checkResult(b); err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
	})
}
