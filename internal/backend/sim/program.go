package sim

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// program is what a modelled process runs. args[0] is its name; the result is
// the exit code.
type program func(p *proc, args []string) int

// notModelled is the exit code of what a model cannot execute, as a shell's for
// what it cannot find.
const notModelled = 127

// signals by number, as on Linux: the model speaks to a Linux agent wherever
// it runs.
const (
	sigChld  = syscall.Signal(17)
	sigCont  = syscall.Signal(18)
	sigStop  = syscall.Signal(19)
	sigTstp  = syscall.Signal(20)
	sigTTin  = syscall.Signal(21)
	sigTTou  = syscall.Signal(22)
	sigUrg   = syscall.Signal(23)
	sigWinch = syscall.Signal(28)
)

// deadly reports whether sig kills by default. Job control is not modelled:
// stopping does nothing.
func deadly(sig syscall.Signal) bool {
	switch sig {
	case sigChld, sigCont, sigStop, sigTstp, sigTTin, sigTTou, sigUrg, sigWinch:
		return false
	}
	return true
}

// programs are those found in /usr/bin of every instance.
var programs map[string]program

func init() { // a map literal would refer to itself through the shell
	programs = map[string]program{
		"true":            func(*proc, []string) int { return 0 },
		"false":           func(*proc, []string) int { return 1 },
		"echo":            echo,
		"cat":             cat,
		"sleep":           sleepProgram,
		"env":             printEnv,
		"id":              printID,
		"stty":            stty,
		"pwd":             func(p *proc, _ []string) int { p.printf("%s\n", p.cwd); return 0 },
		"ls":              list,
		"mkdir":           makeDirs,
		"rm":              removeFiles,
		"hostname":        func(p *proc, _ []string) int { return cat(p, []string{"cat", "/etc/hostname"}) },
		"sh":              shell,
		"bash":            shell,
		"python3":         interpreter,
		"python":          interpreter,
		"node":            interpreter,
		"firebreak-guest": probe,
	}
}

// programOf returns the program called name, or nil.
func programOf(name string) program { return programs[name] }

// programNames lists programs in order.
func programNames() []string {
	var names []string
	for n := range programs {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// unmodelled is an executable file that is no program of the model.
func unmodelled(p *proc, args []string) int {
	return refuse(p, path.Base(args[0])+" is not modelled")
}

// refuse says that what was asked is beyond the model.
func refuse(p *proc, what string) int {
	p.alive()
	_, _ = io.WriteString(p.stderr, "sim: a model does not execute code: "+what+"\n")
	return notModelled
}

func echo(p *proc, args []string) int {
	p.printf("%s\n", strings.Join(args[1:], " "))
	return 0
}

func cat(p *proc, args []string) int {
	if len(args) < 2 {
		p.copyOut(p.stdin)
		return 0
	}
	for _, name := range args[1:] {
		h, err := p.m.fs.Open(p.cred, p.abs(name), oRead, 0)
		if err != nil {
			p.fail("%s: %s", name, reasonText(err))
		}
		p.copyOut(h)
	}
	return 0
}

// copyOut copies all of r to standard output.
func (p *proc) copyOut(r io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			p.out(buf[:n])
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			p.fail("read error: %s", reasonText(err))
		}
	}
}

// seconds parses "1.5", as sleep(1) does, or a Go duration.
func seconds(p *proc, s string) time.Duration {
	if f, err := strconv.ParseFloat(s, 64); err == nil && f >= 0 && f < 1e9 {
		return time.Duration(f * float64(time.Second))
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		p.complain("invalid time interval %q", s)
		p.exit(2)
	}
	return d
}

func sleepProgram(p *proc, args []string) int {
	if len(args) < 2 {
		p.complain("missing operand")
		return 2
	}
	if args[1] == "infinity" {
		p.sleep(-1)
	}
	p.sleep(seconds(p, args[1]))
	return 0
}

func printEnv(p *proc, _ []string) int {
	seen := map[string]bool{}
	var lines []string
	for _, kv := range slices.Backward(p.env) {
		if k, _, ok := strings.Cut(kv, "="); ok && !seen[k] {
			seen[k] = true
			lines = append(lines, kv+"\n")
		}
	}
	slices.Sort(lines)
	p.printf("%s", strings.Join(lines, ""))
	return 0
}

func printID(p *proc, args []string) int {
	if len(args) > 1 && args[1] == "-u" {
		p.printf("%d\n", p.cred.uid)
		return 0
	}
	p.printf("uid=%d gid=%d\n", p.cred.uid, p.cred.gid)
	return 0
}

func list(p *proc, args []string) int {
	dir := p.cwd
	if len(args) > 1 {
		dir = p.abs(args[len(args)-1])
	}
	kids, err := p.m.fs.List(p.cred, dir)
	if errors.Is(err, syscall.ENOTDIR) {
		p.printf("%s\n", dir)
		return 0
	}
	if err != nil {
		p.complain("%s: %s", dir, reasonText(err))
		return 2
	}
	for _, k := range kids {
		p.printf("%s\n", k.name)
	}
	return 0
}

func makeDirs(p *proc, args []string) int {
	for _, name := range args[1:] {
		if name == "-p" {
			continue
		}
		make := p.m.fs.Mkdir
		if slices.Contains(args, "-p") {
			make = p.m.fs.MkdirAll
		}
		if err := make(p.cred, p.abs(name), 0o755); err != nil {
			p.fail("%s: %s", name, reasonText(err))
		}
	}
	return 0
}

func removeFiles(p *proc, args []string) int {
	tree, force := false, false
	for _, name := range args[1:] {
		if strings.HasPrefix(name, "-") {
			tree = tree || strings.Contains(name, "r")
			force = force || strings.Contains(name, "f")
			continue
		}
		err := p.m.fs.Remove(p.cred, p.abs(name), tree)
		if err != nil && !(force && errors.Is(err, fs.ErrNotExist)) {
			p.fail("%s: %s", name, reasonText(err))
		}
	}
	return 0
}

// writeResult stores v where the host looks for a structured result.
func writeResult(p *proc, v string) int {
	name := p.getenv(guest.ResultEnv)
	if name == "" {
		p.complain("%s is not set", guest.ResultEnv)
		return 1
	}
	if err := p.m.fs.WriteFile(p.cred, name, []byte(v), 0o600); err != nil {
		p.fail("%s: %s", name, reasonText(err))
	}
	return 0
}
