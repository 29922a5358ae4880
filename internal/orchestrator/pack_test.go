package orchestrator

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/template"
)

// Code is the same program whether it travels as an argument or in a file.
// This runs the machine's own interpreters, on our own code.
func TestRunnersAgree(t *testing.T) {
	cases := map[string]struct{ code, want string }{
		template.Python: {"import sys\ndef f():\n  return g()\ng = lambda: 42\nprint(__name__, f(), sys.path[0] == '', sys.argv[1:])\nprint(\"\\u00e9'\\\"\\\\\")\n",
			"__main__ 42 True ['a', '-x']\n\u00e9'\"\\\n"},
		template.Node: {"const x = 6; function f() { return x * 7 }\nconsole.log(f(), typeof require, process.argv.slice(-2).join())\n",
			"42 function a,-x\n"},
		template.Shell: {"f() { echo $1; }\nf 42\necho \"$#\" \"$1\" \"$2\"\nexit 0\necho never\n", "42\n2 a -x\n"},
	}
	for pack, c := range cases {
		r := runners[pack]
		path := filepath.Join(t.TempDir(), "it's main."+r.ext)
		if err := os.WriteFile(path, []byte(c.code), 0o600); err != nil {
			t.Fatal(err)
		}
		for how, argv := range map[string][]string{"inline": r.inline(c.code), "script": r.script(path)} {
			argv = append(argv, "a", "-x")
			if _, err := exec.LookPath(argv[0]); err != nil {
				t.Logf("%s is not on this machine", argv[0])
				continue
			}
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Dir = t.TempDir()
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != c.want {
				t.Errorf("%s %s: %q, %v; want %q", pack, how, out, err, c.want)
			}
		}
	}
}

func TestProgram(t *testing.T) {
	d := Details{Packs: []string{"python", "shell"}, Pack: "shell", Env: map[string]string{"A": "sandbox", "B": "sandbox", "PYTHONUNBUFFERED": ""}}
	build := func(req ExecRequest) program {
		t.Helper()
		p, err := req.program(d)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := build(code("", "x")); p.argv[0] != "sh" || p.pack != "shell" {
		t.Errorf("the sandbox's pack: %+v", p)
	}
	req := code("python", "x")
	req.Env = map[string]string{"B": "exec"}
	if p := build(req); !slices.Equal(p.env, []string{"A=sandbox", "B=exec", "PYTHONUNBUFFERED="}) {
		t.Errorf("environment %q: an exec's is over the sandbox's, and that over the pack's", p.env)
	}
	for _, text := range []string{strings.Repeat("\u0001", inlineCode+1), "a\x00b"} {
		p := build(code("python", text))
		if p.path == "" || !strings.HasPrefix(p.path, p.dir+"/") || strings.Contains(strings.Join(p.argv, ""), text) {
			t.Errorf("%.10q does not travel in a file: %+v", text, p)
		}
		if q := build(code("python", text)); q.dir == p.dir {
			t.Error("two execs share a directory")
		}
	}
}
