package sim

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// interpreter models a language's interpreter for code that consists of
// directives, and refuses all other code.
func interpreter(p *proc, args []string) int {
	if len(args) > 1 && (args[1] == "--version" || args[1] == "-V") {
		p.printf("sim\n")
		return 0
	}
	if len(args) > 1 && (args[1] == guest.PythonContext || args[1] == guest.NodeContext) {
		return warm(p)
	}
	code, rest, err := scriptOf(p, args)
	if err != nil {
		p.complain("can't open file: %s", err)
		return 2
	}
	if file := loaded(code); file != "" {
		b, err := p.m.fs.ReadFile(p.cred, p.abs(file))
		if err != nil {
			p.fail("%s: %s", file, reasonText(err))
		}
		code = string(b)
	}
	lines, ok := directives(code)
	if !ok {
		return refuse(p, `write "# sim: stdout TEXT" and the like, or choose a backend that isolates`)
	}
	if len(args) > 1 && args[1] != "-e" && args[1] != "-c" && len(rest) > 0 {
		rest = rest[1:] // the script's own name
	}
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	return runDirectives(p, lines, rest)
}

// loader is the one-liner that callers use to run code from a file as if it
// had been given inline; the model knows it, so that long code works as short
// code does.
var loader = regexp.MustCompile(`^(?:exec\(compile\(open\(|require\('vm'\)\.runInThisContext\(require\('fs'\)\.readFileSync\()("(?:[^"\\]|\\.)*"),`)

// loaded returns the file that code does nothing but load, or "".
func loaded(code string) string {
	m := loader.FindStringSubmatch(code)
	if m == nil {
		return ""
	}
	file, err := strconv.Unquote(m[1])
	if err != nil {
		return ""
	}
	return file
}

// directives returns what code asks the model to do, one entry a line. ok is
// false if some line that is neither empty nor a comment carries no directive:
// then the model must not pretend to have run it.
func directives(code string) (lines []string, ok bool) {
	for line := range strings.Lines(code) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if _, d, found := cutAny(line, "# sim:", "// sim:"); found {
			lines = append(lines, strings.TrimSpace(d))
			continue
		}
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "//") {
			return nil, false
		}
	}
	return lines, len(lines) > 0
}

func cutAny(s string, seps ...string) (before, after string, found bool) {
	for _, sep := range seps {
		if before, after, found = strings.Cut(s, sep); found {
			return before, after, true
		}
	}
	return s, "", false
}

// runDirectives executes directives in order. args are the script's arguments.
func runDirectives(p *proc, lines, args []string) int {
	for _, line := range lines {
		p.alive()
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "": // nothing: a line of code that needs no modelling
		case "stdout":
			p.printf("%s\n", rest)
		case "stderr":
			p.alive()
			_, _ = p.stderr.Write([]byte(rest + "\n"))
		case "args":
			p.printf("%s\n", strings.Join(args, " "))
		case "exit":
			code, err := strconv.Atoi(rest)
			if err != nil {
				return refuse(p, "exit "+strconv.Quote(rest)+": not a number")
			}
			return code
		case "result":
			if !json.Valid([]byte(rest)) {
				return refuse(p, "result: not JSON")
			}
			if code := writeResult(p, rest); code != 0 {
				return code
			}
		default:
			// Everything else is a verb of the probe or a program.
			cmds, err := parseShell(line)
			if err != nil || len(cmds) != 1 {
				return refuse(p, "unknown directive "+strconv.Quote(line))
			}
			if isVerb(verb) {
				cmds[0].words = append([]word{{{text: "firebreak-guest"}}, {{text: "probe"}}}, cmds[0].words...)
			}
			if code := p.simple(cmds[0], 0); code != 0 {
				return code
			}
		}
	}
	return 0
}
