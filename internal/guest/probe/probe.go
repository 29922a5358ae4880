// Package probe is a small program of many verbs that the conformance suite
// executes inside a sandbox: firebreak-guest probe VERB ARG...
//
// It stands in for a shell and tools that a template may not have, and does
// what tests need precisely: output whose loss shows, memory that is really
// touched, tasks that are exactly counted. Verbs that need nothing but their
// standard streams are in Run, which a backend that models a sandbox may use as
// they are; the others need a kernel and are in Main.
//
//	echo ARG...           print the arguments
//	cat                   copy standard input to standard output
//	exit N                end with code N
//	sleep DURATION        wait, then print "slept"
//	spin                  use a CPU for ever
//	out BYTES [stderr]    write Pattern
//	noline BYTES          write Pattern without any newline
//	sha                   print the SHA-256 and length of standard input
//	env                   print the environment, a line each
//	alloc BYTES           touch memory, print "ready", hold it
//	fork N                make N sleeping children of one task each, report, hold
//	bomb                  fork for ever, each child in a session of its own
//	fill PATH BYTES       write a file of that size; exit 1 when the disk is full
//	id                    credentials, capabilities, no_new_privs and limits, as JSON
//	ignore-term           ignore SIGTERM, print "ready", hold
//	ignore-hup            print "ready", and "SIGHUP" at each, hold
//	daemon                leave a sleeper in a session of its own, print its pid
//	hold-output           leave a sleeper that holds standard output open
//	signalself N          die of signal N
//	result JSON           write the structured result
//	write PATH TEXT | read PATH | ls PATH
//	net                   interfaces, and whether 169.254.169.254:80 answers, as JSON
//	links                 every link with its addresses, as JSON
//	resolve NAME          the name's address, as the name server of the sandbox says
//	connect HOST:PORT TEXT
//	                      connect by TCP, send the text and no more, print what comes back
//	mounts                the mount table
//	now                   the time, in nanoseconds since 1970
//	random                16 bytes of the kernel's random numbers, in hex
//	terminal [N]          size and TERM of the terminal it must have, again after each of N changes
//	ptmx                  open terminals until there are no more, print "full", hold them
//	serve MODE            listen on the loopback, print the port, and to each connection
//	                      echo it, flood it, reset it, or ignore it; queue: accept none
//	tasks                 number of processes and tasks visible, as JSON
package probe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
)

// IO is what a pure verb works with.
type IO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Env            []string
}

// ErrUnknown says that a verb is not a pure one.
var ErrUnknown = errors.New("unknown verb")

// Run runs a pure verb and returns its exit code: 0, 1 when it failed with a
// line on Stderr, 2 for wrong use. The end of ctx ends it with code 137, as a
// kill would. Errors: ErrUnknown.
func Run(ctx context.Context, args []string, s IO) (int, error) {
	if len(args) == 0 {
		return 2, ErrUnknown
	}
	verb, args := args[0], args[1:]
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	var err error
	switch verb {
	case "echo":
		_, err = io.WriteString(s.Stdout, strings.Join(args, " ")+"\n")
	case "cat":
		_, err = io.Copy(s.Stdout, s.Stdin)
	case "exit":
		n, perr := strconv.Atoi(arg(0))
		if perr != nil {
			return usage(s, "exit N"), nil
		}
		return n & 255, nil
	case "sleep":
		d, perr := time.ParseDuration(arg(0))
		if perr != nil {
			return usage(s, "sleep DURATION"), nil
		}
		select {
		case <-ctx.Done():
			return 137, nil
		case <-time.After(d):
		}
		_, err = io.WriteString(s.Stdout, "slept\n")
	case "spin":
		for ctx.Err() == nil {
		}
		return 137, nil
	case "out", "noline":
		n, perr := strconv.ParseInt(arg(0), 10, 64)
		if perr != nil {
			return usage(s, verb+" BYTES"), nil
		}
		w := s.Stdout
		if arg(1) == "stderr" {
			w = s.Stderr
		}
		err = WritePattern(w, n, verb == "out")
	case "sha":
		h := sha256.New()
		var n int64
		if n, err = io.Copy(h, s.Stdin); err == nil {
			_, err = io.WriteString(s.Stdout, hex.EncodeToString(h.Sum(nil))+" "+strconv.FormatInt(n, 10)+"\n")
		}
	case "env":
		_, err = io.WriteString(s.Stdout, strings.Join(s.Env, "\n")+"\n")
	default:
		return 2, ErrUnknown
	}
	if err != nil {
		_, _ = io.WriteString(s.Stderr, verb+": "+err.Error()+"\n")
		return 1, nil
	}
	return 0, nil
}

func usage(s IO, text string) int {
	_, _ = io.WriteString(s.Stderr, "usage: "+text+"\n")
	return 2
}

// Pattern fills p with the bytes at offset off of an endless sequence in which
// any loss, repetition or exchange shows: printable, no two blocks of 4 KiB
// alike, and with lines a newline at the end of each 80 bytes.
func Pattern(off int64, p []byte, lines bool) {
	for i := range p {
		n := uint64(off) + uint64(i)
		if lines && n%80 == 79 {
			p[i] = '\n'
			continue
		}
		x := n/8*0x9e3779b97f4a7c15 ^ n
		x ^= x >> 29
		p[i] = '0' + byte(x%75) // '0' to 'z'
	}
}

// WritePattern writes the first n bytes of the sequence.
func WritePattern(w io.Writer, n int64, lines bool) error {
	buf := make([]byte, 64<<10)
	for off := int64(0); off < n; {
		p := buf[:min(int64(len(buf)), n-off)]
		Pattern(off, p, lines)
		if _, err := w.Write(p); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// PatternHash is the SHA-256 of the first n bytes, in hex.
func PatternHash(n int64, lines bool) string {
	h := sha256.New()
	_ = WritePattern(h, n, lines) // a hash does not fail
	return hex.EncodeToString(h.Sum(nil))
}
