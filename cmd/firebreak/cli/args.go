package cli

import (
	"bufio"
	"bytes"
	"path"
	"path/filepath"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// form says how a program was given on the command line.
type form int

const (
	formFile    form = iota // FILE ARG...
	formStdin               // - ARG...
	formCode                // -c CODE ARG...
	formCommand             // -- CMD ARG...
)

// program is what a command line asks to run.
type program struct {
	form form
	file string // formFile
	code string // formCode
	args []string
}

// parseProgram tells the four forms apart. dash is cobra's ArgsLenAtDash: how
// many arguments stood before "--", or -1.
//
// Errors: KindInvalid with a hint; the caller exits with 2.
func parseProgram(args []string, dash int, code string, hasCode bool) (program, error) {
	usage := func(format string, a ...any) (program, error) {
		return program{}, sandbox.Errorf("", sandbox.KindInvalid, format, a...).
			WithHint("one of: FILE [ARG...], -, -c CODE, -- CMD [ARG...]")
	}
	switch {
	case hasCode:
		// What follows -c is the program's: "--" only ends our own flags.
		return program{form: formCode, code: code, args: args}, nil
	case dash == 0 && len(args) == 0:
		return usage("nothing after --: a command is needed")
	case dash == 0:
		return program{form: formCommand, args: args}, nil
	case len(args) == 0:
		return usage("nothing to run")
	case args[0] == "-":
		return program{form: formStdin, args: args[1:]}, nil
	}
	return program{form: formFile, file: args[0], args: args[1:]}, nil
}

var extensions = map[string]string{
	".py": "python",
	".js": "node", ".mjs": "node", ".cjs": "node",
	".sh": "shell", ".bash": "shell",
}

// detectLanguage names the language pack of a program by its file name, else
// by its first line, else "".
func detectLanguage(name string, src []byte) string {
	if l := extensions[strings.ToLower(filepath.Ext(name))]; l != "" {
		return l
	}
	line, _, _ := bufio.NewReader(bytes.NewReader(src)).ReadLine()
	bang, ok := strings.CutPrefix(string(line), "#!")
	if !ok {
		return ""
	}
	words := strings.Fields(bang)
	if len(words) > 0 && path.Base(words[0]) == "env" {
		words = words[1:]
		for len(words) > 0 && (strings.HasPrefix(words[0], "-") || strings.Contains(words[0], "=")) {
			words = words[1:]
		}
	}
	if len(words) == 0 {
		return ""
	}
	switch base := path.Base(words[0]); {
	case strings.HasPrefix(base, "python"):
		return "python"
	case base == "node" || base == "nodejs":
		return "node"
	case base == "sh" || base == "bash" || base == "dash":
		return "shell"
	}
	return ""
}

// parseLanguage checks a --language value; names people use for the same thing
// are accepted.
func parseLanguage(s string) (string, error) {
	switch strings.ToLower(s) {
	case "":
		return "", nil
	case "python", "py", "python3":
		return "python", nil
	case "node", "js", "javascript", "nodejs":
		return "node", nil
	case "shell", "sh", "bash":
		return "shell", nil
	}
	return "", sandbox.Errorf("", sandbox.KindInvalid, "unknown language %q", s).WithHint("one of python, node, shell")
}

// parseEnv reads K=V pairs; "K" alone takes the value from environ.
func parseEnv(pairs []string, lookup func(string) (string, bool)) (map[string]string, error) {
	env := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			if v, ok = lookup(k); !ok {
				return nil, sandbox.Errorf("", sandbox.KindInvalid, "--env %s: not set here", k).WithHint("write --env %s=VALUE", k)
			}
		}
		if !validName(k) {
			return nil, sandbox.Errorf("", sandbox.KindInvalid, "--env %q: not a variable name", k).
				WithHint("a name is letters, digits and underscores and starts with no digit")
		}
		env[k] = v
	}
	return env, nil
}

func validName(s string) bool {
	for i, r := range s {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}

// parseMetadata reads K=V labels.
func parseMetadata(pairs []string) (map[string]string, error) {
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, sandbox.Errorf("", sandbox.KindInvalid, "%q is not KEY=VALUE", p).WithHint("write --metadata team=search")
		}
		m[k] = v
	}
	return m, nil
}

// transfer is one --input or --artifact: from, and to where.
type transfer struct{ src, dst string }

// parseInput reads SRC[:DST]. SRC is a path here; DST a path in the sandbox,
// the base name of SRC by default. A DST ending in "/" is a directory that SRC
// goes into.
func parseInput(s string) (transfer, error) {
	src, dst := cutLast(s)
	if src == "" {
		return transfer{}, sandbox.Errorf("", sandbox.KindInvalid, "--input %q: no source", s).WithHint("write --input SRC[:DST]")
	}
	base := filepath.Base(filepath.Clean(src))
	if dst == "" || strings.HasSuffix(dst, "/") {
		if base == "." || base == ".." || base == string(filepath.Separator) {
			if abs, err := filepath.Abs(src); err == nil {
				base = filepath.Base(abs)
			}
		}
		dst = path.Join(dst, base)
	}
	if strings.ContainsRune(dst, 0) {
		return transfer{}, sandbox.Errorf("", sandbox.KindInvalid, "--input %q: a path cannot hold a zero byte", s)
	}
	return transfer{src: src, dst: path.Clean(dst)}, nil
}

// parseArtifact reads PATH[:DST]. PATH is in the sandbox; DST a path here, by
// default PATH's base name in the current directory. A DST ending in "/" is a
// directory that PATH goes into.
func parseArtifact(s string) (transfer, error) {
	src, dst := cutLast(s)
	if src == "" {
		return transfer{}, sandbox.Errorf("", sandbox.KindInvalid, "--artifact %q: no path", s).WithHint("write --artifact PATH[:DST]")
	}
	src = path.Clean(src)
	base := path.Base(src)
	if base == "." || base == ".." || base == "/" {
		base = "."
	}
	if dst == "" || strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, string(filepath.Separator)) {
		dst = filepath.Join(dst, base)
	}
	return transfer{src: src, dst: dst}, nil
}

// cutLast splits at the last colon, so that sources may contain colons as long
// as a destination is given.
func cutLast(s string) (before, after string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i+1:]
}

// remotePath is one side of a cp: sandbox:path, or a path here when id is "".
type remotePath struct{ id, path string }

// parseRemote reads a cp argument. A path here that contains a colon is
// written with a "./" or "/" before it.
func parseRemote(s string) remotePath {
	id, p, ok := strings.Cut(s, ":")
	if !ok || id == "" || strings.ContainsAny(id, "/\\.") && !reName(id) {
		return remotePath{path: s}
	}
	return remotePath{id: id, path: p}
}

// reName reports whether s could be a sandbox's name: dots are allowed inside.
func reName(s string) bool {
	if s == "" || s[0] == '.' {
		return false
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-') {
			return false
		}
	}
	return true
}
