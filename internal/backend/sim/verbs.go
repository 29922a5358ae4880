package sim

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"syscall"
	"time"

	verb "github.com/firebreak-dev/firebreak/internal/guest/probe"
)

// probe models `firebreak-guest probe VERB ARG...`, the program that the
// conformance suite drives. Package guest/probe says what the verbs do.
func probe(p *proc, args []string) int {
	if len(args) < 3 || args[1] != "probe" {
		p.complain("usage: firebreak-guest probe VERB ARG...")
		return 2
	}
	args = args[2:]
	v, ok := verbs[args[0]]
	if !ok {
		return pure(p, args)
	}
	if len(args)-1 < v.args {
		p.complain("%s: too few arguments", args[0])
		return 2
	}
	return v.run(p, args)
}

// verbs are those that need more than their standard streams, in terms of the
// model.
var verbs map[string]struct {
	args int
	run  program
}

func init() { // some refer to programs, which refer to probe
	verbs = map[string]struct {
		args int
		run  program
	}{
		"sleep":       {1, napVerb},
		"spin":        {0, spin},
		"alloc":       {1, alloc},
		"fork":        {1, forkMany},
		"bomb":        {0, bomb},
		"fill":        {2, fill},
		"id":          {0, identity},
		"ignore-term": {0, ignoreTerm},
		"daemon":      {0, daemon},
		"hold-output": {0, daemon},
		"signalself":  {1, signalSelf},
		"result":      {1, func(p *proc, args []string) int { return writeResult(p, args[1]) }},
		"write":       {2, writeVerb},
		"read":        {1, func(p *proc, args []string) int { return cat(p, args[:2]) }},
		"ls":          {1, list},
		"net":         {0, network},
		"mounts":      {0, mounts},
		"tasks":       {0, tasks},
		"terminal":    {0, terminalVerb},
		"ignore-hup":  {0, func(p *proc, _ []string) int { return refuse(p, "ignore-hup") }},
		"ptmx":        {0, func(p *proc, _ []string) int { return refuse(p, "ptmx") }},
	}
}

// isVerb reports whether the probe knows name.
func isVerb(name string) bool {
	if _, ok := verbs[name]; ok {
		return true
	}
	switch name {
	case "echo", "cat", "exit", "out", "noline", "sha", "env":
		return true
	}
	return false
}

// pure runs a verb that needs its standard streams only, as it is.
func pure(p *proc, args []string) int {
	code, err := verb.Run(context.Background(), args, verb.IO{Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, Env: p.env})
	if errors.Is(err, verb.ErrUnknown) {
		p.complain("unknown verb %q", args[0])
	}
	return code
}

// number parses argument i.
func number(p *proc, args []string, i int) int64 {
	n, err := strconv.ParseInt(args[i], 10, 64)
	if err != nil || n < 0 {
		p.fail("%s: argument %d is no number", args[0], i)
	}
	return n
}

func (p *proc) printJSON(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		p.fail("%v", err)
	}
	p.out(append(b, '\n'))
}

// hold keeps the process until it is killed.
func hold(p *proc) int {
	p.sleep(-1)
	return 0
}

func napVerb(p *proc, args []string) int {
	d, err := time.ParseDuration(args[1])
	if err != nil {
		p.complain("usage: sleep DURATION")
		return 2
	}
	p.sleep(d)
	p.printf("slept\n")
	return 0
}

// spin computes for ever. The model books the time without spending it.
func spin(p *proc, _ []string) int {
	p.m.burn(p, true)
	return hold(p)
}

func alloc(p *proc, args []string) int {
	p.m.alloc(p, number(p, args, 1))
	p.printf("ready\n")
	return hold(p)
}

// sleeper is what a child that only occupies a task does.
func sleeper(p *proc, _ []string) int { return hold(p) }

func forkMany(p *proc, args []string) int {
	made, failed := 0, 0
	for range number(p, args, 1) {
		if _, err := p.fork(sleeper, false); err != nil {
			failed++
			continue
		}
		made++
	}
	p.printJSON(map[string]int{"forked": made, "failed": failed})
	return hold(p)
}

// bomb forks as fast as it can, each child too, in a session of its own.
func bomb(p *proc, _ []string) int {
	for {
		if _, err := p.fork(bomb, true); err != nil {
			p.sleep(time.Millisecond)
		}
	}
}

func fill(p *proc, args []string) int {
	h, err := p.m.fs.Open(p.cred, p.abs(args[1]), oWrite|oCreate|oTrunc, 0o644)
	if err != nil {
		p.fail("%s: %s", args[1], reasonText(err))
	}
	if err := verb.WritePattern(living{p, h}, number(p, args, 2), true); err != nil {
		p.fail("%s: %s", args[1], reasonText(err))
	}
	return 0
}

// living writes to a file as long as its process lives.
type living struct {
	p *proc
	h *file
}

func (l living) Write(b []byte) (int, error) {
	l.p.alive()
	return l.h.Write(b)
}

func identity(p *proc, _ []string) int {
	caps := "0000000000000000"
	if p.cred.uid == 0 {
		caps = "00000000000405fb" // a container's root
	}
	p.printJSON(map[string]any{
		"uid": p.cred.uid, "euid": p.cred.uid, "gid": p.cred.gid, "egid": p.cred.gid, "groups": []int{},
		"nproc": p.m.limits.PIDs + taskHeadroom, "core": 0, "cwd": p.cwd, "pid": p.pid, "ppid": p.ppid,
		"CapInh": caps, "CapPrm": caps, "CapEff": caps, "CapBnd": caps, "CapAmb": caps,
		"no_new_privs": true,
	})
	return 0
}

func ignoreTerm(p *proc, _ []string) int {
	p.ignore(syscall.SIGTERM)
	p.printf("ready\n")
	return hold(p)
}

// daemon leaves a process behind in a session of its own.
func daemon(p *proc, _ []string) int {
	child, err := p.fork(sleeper, true)
	if err != nil {
		p.fail("fork: %s", reasonText(err))
	}
	p.printf("%d\n", child.pid)
	return 0
}

func signalSelf(p *proc, args []string) int {
	p.kill(syscall.Signal(number(p, args, 1)))
	p.alive()
	p.fail("survived")
	return 1
}

func writeVerb(p *proc, args []string) int {
	if err := p.m.fs.WriteFile(p.cred, p.abs(args[1]), []byte(args[2]), 0o644); err != nil {
		p.fail("%s: %s", args[1], reasonText(err))
	}
	return 0
}

// network is what a program finds without a network device.
func network(p *proc, _ []string) int {
	p.printJSON(map[string]any{"interfaces": []string{}, "metadata": syscall.ENETUNREACH.Error()})
	return 0
}

func mounts(p *proc, _ []string) int {
	mode := "rw"
	if p.m.fs.readonly {
		mode = "ro"
	}
	p.printf("1 0 0:1 / / %s - sim none %s\n", mode, mode)
	return 0
}

// tasks counts what the model runs, and the agent.
func tasks(p *proc, _ []string) int {
	n := len(p.m.list()) + 1
	p.printJSON(map[string]int{"processes": n, "tasks": n})
	return 0
}
