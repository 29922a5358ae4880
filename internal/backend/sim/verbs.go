package sim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// probe models `firebreak-guest probe VERB ARG...`, the program that the
// conformance suite drives.
func probe(p *proc, args []string) int {
	if len(args) < 3 || args[1] != "probe" {
		p.complain("usage: firebreak-guest probe VERB [ARG...]")
		return 2
	}
	v, ok := verbs[args[2]]
	if !ok {
		p.complain("unknown verb %q", args[2])
		return 2
	}
	return v(p, args[2:])
}

// verbs are the probe's, in terms of the model.
var verbs map[string]program

func init() {
	verbs = map[string]program{
		"echo":        echo,
		"cat":         cat,
		"exit":        func(p *proc, args []string) int { return int(number(p, args, 1)) },
		"sleep":       sleepProgram,
		"spin":        spin,
		"out":         out,
		"noline":      noline,
		"sha":         sha,
		"alloc":       alloc,
		"fork":        forkMany,
		"bomb":        bomb,
		"fill":        fill,
		"env":         printEnv,
		"id":          identity,
		"ignore-term": ignoreTerm,
		"daemon":      daemon,
		"signalself":  signalSelf,
		"result":      func(p *proc, args []string) int { return writeResult(p, strings.Join(args[1:], " ")) },
		"write":       writeVerb,
		"read":        func(p *proc, args []string) int { return cat(p, args) },
		"ls":          list,
		"net":         network,
		"mounts":      mounts,
	}
}

// number parses argument i.
func number(p *proc, args []string, i int) int64 {
	if i < len(args) {
		if n, err := strconv.ParseInt(args[i], 10, 64); err == nil && n >= 0 {
			return n
		}
	}
	p.complain("%s: argument %d: a number is needed", args[0], i)
	p.exit(2)
	return 0
}

// spin computes for ever. The model books the time without spending it.
func spin(p *proc, args []string) int {
	d := time.Duration(-1)
	if len(args) > 1 {
		d = seconds(p, args[1])
	}
	p.m.burn(p, true)
	p.sleep(d, nil)
	p.m.burn(p, false)
	return 0
}

func sha(p *proc, _ []string) int {
	h := sha256.New()
	if _, err := io.Copy(h, p.stdin); err != nil {
		p.fail("read error: %s", reasonText(err))
	}
	p.printf("%x\n", h.Sum(nil))
	return 0
}

func alloc(p *proc, args []string) int {
	p.m.alloc(p, number(p, args, 1))
	p.printf("ok\n")
	return 0
}

// forever is what a child that only occupies a task does.
func forever(p *proc, _ []string) int {
	p.sleep(-1, nil)
	return 0
}

func forkMany(p *proc, args []string) int {
	n := number(p, args, 1)
	for i := range n {
		if _, err := p.fork(forever, false); err != nil {
			p.fail("fork %d: %s", i, reasonText(err))
		}
	}
	p.printf("ok\n")
	return 0
}

// bomb forks as fast as it can, each child too.
func bomb(p *proc, _ []string) int {
	for {
		if _, err := p.fork(bomb, false); err != nil {
			p.sleep(time.Millisecond, nil)
		}
	}
}

func fill(p *proc, args []string) int {
	if len(args) < 3 {
		p.complain("usage: fill PATH BYTES")
		return 2
	}
	h, err := p.m.fs.Open(p.cred, p.abs(args[1]), oWrite|oCreate|oTrunc, 0o644)
	if err != nil {
		p.fail("%s: %s", args[1], reasonText(err))
	}
	buf := make([]byte, 64<<10)
	for left := number(p, args, 2); left > 0; {
		p.alive()
		n, err := h.Write(buf[:min(left, int64(len(buf)))])
		left -= int64(n)
		if err != nil {
			p.fail("%s: %s", args[1], reasonText(err))
		}
	}
	p.printf("ok\n")
	return 0
}

func ignoreTerm(p *proc, _ []string) int {
	p.ignore(syscall.SIGTERM)
	p.printf("ready\n")
	p.sleep(-1, nil)
	return 0
}

// daemon leaves a process behind in a session of its own.
func daemon(p *proc, _ []string) int {
	child, err := p.fork(forever, true)
	if err != nil {
		p.fail("fork: %s", reasonText(err))
	}
	p.printf("%d\n", child.pid)
	return 0
}

func signalSelf(p *proc, args []string) int {
	p.kill(syscall.Signal(number(p, args, 1)), "")
	p.alive()
	return 0
}

func writeVerb(p *proc, args []string) int {
	if len(args) < 2 {
		p.complain("usage: write PATH [TEXT...]")
		return 2
	}
	if err := p.m.fs.WriteFile(p.cred, p.abs(args[1]), []byte(strings.Join(args[2:], " ")), 0o644); err != nil {
		p.fail("%s: %s", args[1], reasonText(err))
	}
	return 0
}

// out writes numbered lines of 16 bytes.
func out(p *proc, args []string) int {
	left := number(p, args, 1)
	buf := make([]byte, 0, 64<<10)
	for line := 0; left > 0; {
		buf = buf[:0]
		for len(buf) < cap(buf) {
			buf = fmt.Appendf(buf, "%015d\n", line)
			line++
		}
		n := min(left, int64(len(buf)))
		p.out(buf[:n])
		left -= n
	}
	return 0
}

// noline writes bytes without a line end.
func noline(p *proc, args []string) int {
	buf := bytes.Repeat([]byte("x"), 64<<10)
	for left := number(p, args, 1); left > 0; {
		n := min(left, int64(len(buf)))
		p.out(buf[:n])
		left -= n
	}
	return 0
}

func identity(p *proc, _ []string) int {
	p.printf("uid=%d gid=%d\n", p.cred.uid, p.cred.gid)
	return 0
}

func network(p *proc, _ []string) int {
	p.printf("lo\n")
	return 0
}

func mounts(p *proc, _ []string) int {
	p.printf("/\n")
	return 0
}
