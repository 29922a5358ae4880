package orchestrator

import (
	"crypto/rand"
	"slices"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Code is handed over as an argument while it is small: no file to write, read
// and remove, and an exec of code costs what an exec costs. inlineCode leaves
// room for what JSON makes of the worst of it within a call to the guest.
const (
	inlineCode = 32 << 10
	maxCode    = 8 << 20
)

// runner is how a language pack runs code: inline(code), or script(path) for
// code that is in a file. What the program sees is the same for both, apart
// from what its error messages call the place.
type runner struct {
	ext    string
	inline func(code string) []string
	script func(path string) []string
	env    map[string]string
	warm   []string // what keeps an interpreter warm; nil: nothing does
	// forgets says that SIGINT can get lost: Node has moments, at the end of a
	// script, when it is nobody's.
	forgets bool
	standby bool // an agent can keep one ready
}

// runners are the language packs. Python's output is not buffered: what a
// program printed before it was killed is worth more than the system calls
// saved, and people watch it live.
var runners = map[string]runner{
	template.Python: {
		ext:    "py",
		inline: func(code string) []string { return []string{"python3", "-c", code} },
		script: func(path string) []string {
			q := strconv.QuoteToASCII(path)
			return []string{"python3", "-c", "exec(compile(open(" + q + ",'rb').read()," + q + ",'exec'))"}
		},
		env:     map[string]string{"PYTHONUNBUFFERED": "1"},
		warm:    []string{"python3", guest.PythonContext},
		standby: true,
	},
	template.Node: {
		ext: "js",
		// A shell, because Node has no dup.
		warm:    []string{"sh", "-c", `exec node "$0" 3<&0 4>&1 5>&2 0</dev/null`, guest.NodeContext},
		forgets: true,
		inline:  func(code string) []string { return []string{"node", "-e", code, "--"} },
		script: func(path string) []string {
			q := strconv.QuoteToASCII(path)
			return []string{"node", "-e", "require('vm').runInThisContext(require('fs').readFileSync(" + q + ",'utf8'),{filename:" + q + "})", "--"}
		},
	},
	template.Shell: {
		ext:    "sh",
		inline: func(code string) []string { return []string{"sh", "-c", code, "sh"} },
		script: func(path string) []string { return []string{"sh", "-c", `. "$0"`, path} },
	},
}

// program is what an exec starts.
type program struct {
	argv []string
	env  []string
	pack string // empty for a command
	dir  string // of the code's file; empty when there is none
	path string // the code's file
	cwd  string // where it starts; empty: the home
}

// program decides what req starts in a sandbox with these details. Errors:
// KindInvalid with a hint, KindTooLarge.
func (req *ExecRequest) program(d Details) (program, error) {
	if !req.driver && (req.Code == nil) == (req.Command == nil) {
		return program{}, sandbox.Errorf("exec", sandbox.KindInvalid, "exactly one of code and command is needed")
	}
	if err := checkEnv(req.Env); err != nil {
		return program{}, err
	}
	if req.Timeout != nil && (*req.Timeout < 0 || *req.Timeout > maxTimeout) {
		return program{}, sandbox.Errorf("exec", sandbox.KindInvalid, "timeout %s is out of range", *req.Timeout).
			WithHint("between 0 (none) and 10 years")
	}
	if req.Command != nil {
		if *req.Command == "" {
			return program{}, sandbox.Errorf("exec", sandbox.KindInvalid, "the command is empty")
		}
		// Code starts in the home, where inputs are; a command where its image says.
		return program{argv: append([]string{*req.Command}, req.Args...), env: environment(d.Env, nil, req.Env), cwd: pick(req.Dir, d.WorkDir)}, nil
	}
	pack := pick(req.Pack, pick(d.Pack, template.Python))
	r, ok := runners[pack]
	if !ok || !slices.Contains(d.Packs, pack) {
		return program{}, packMissing(pack, d.Packs)
	}
	if req.driver {
		if r.warm == nil {
			return program{}, sandbox.Errorf("context", sandbox.KindUnsupported, "there are no contexts for %q", pack).
				WithHint("python or node; run it with exec")
		}
		return program{argv: r.warm, env: environment(d.Env, r.env, req.Env), pack: pack, cwd: req.Dir}, nil
	}
	if len(*req.Code) > maxCode {
		return program{}, sandbox.Errorf("exec", sandbox.KindTooLarge, "the code has %s", sandbox.FormatSize(int64(len(*req.Code)))).
			WithHint("at most %s; write it to a file and run that", sandbox.FormatSize(maxCode))
	}
	p := program{env: environment(d.Env, r.env, req.Env), pack: pack, cwd: req.Dir}
	if len(*req.Code) <= inlineCode && !strings.Contains(*req.Code, "\x00") {
		p.argv = r.inline(*req.Code)
	} else {
		p.dir = "/tmp/.firebreak-" + rand.Text()[:16]
		p.path = p.dir + "/main." + r.ext
		p.argv = r.script(p.path)
	}
	p.argv = append(p.argv, req.Args...)
	return p, nil
}

// environment merges, the later the stronger, and returns KEY=VALUE, sorted.
func environment(layers ...map[string]string) []string {
	all := map[string]string{}
	// The pack's own settings are the weakest of all: layer 1.
	for _, i := range []int{1, 0, 2} {
		for k, v := range layers[i] {
			all[k] = v
		}
	}
	env := make([]string, 0, len(all))
	for k, v := range all {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env
}
