package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/client"
)

// kept promises that what a caller has seen of a program's output is among the
// sandbox's events, once, at its place.
func (tr *trial) kept(id string, seen *bytes.Buffer) {
	if seen.Len() == 0 {
		return
	}
	want := bytes.Clone(seen.Bytes())
	tr.promise("output", func() error {
		list, err := tr.processesOf(id)
		if err != nil || len(list) == 0 {
			return fmt.Errorf("no process: %v", err)
		}
		if got := list[0].out.String(); !strings.HasPrefix(got, string(want)) {
			return fmt.Errorf("the caller saw %d bytes, the events have %d, and not the same", len(want), len(got))
		}
		return nil
	})
}

// numbered is what a Python program prints that counts lines to n.
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%07d\n", i)
	}
	return b.String()
}

func counting(n int) string {
	return fmt.Sprintf("import sys\nfor i in range(0, %d, 4000): sys.stdout.write(''.join('%%07d\\n' %% j for j in range(i, i+4000)))", n)
}

// slow is a client whose connections hold next to nothing, so that a reader who
// stalls is felt at the other end.
func (tr *trial) slow() *client.Client {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10) })
	}}
	address := strings.TrimPrefix(tr.server.url, "http://")
	c, err := client.New(client.Options{URL: tr.server.url, APIKey: tr.server.key, Dial: func(ctx context.Context) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", address)
	}})
	tr.must(err)
	return c
}

// pausesStream reads a program's output, stalls until the program stands still
// for want of credit, and goes on.
func pausesStream(tr *trial) scenario {
	var sb *client.Sandbox
	const lines = 200_000
	return scenario{
		before: func() { sb = tr.newSandbox(client.CreateOptions{}) },
		act: func() {
			tr.alive(sb.ID())
			c := tr.slow()
			defer c.Close()
			r, w := io.Pipe()
			defer r.Close()
			done := make(chan error, 1)
			go func() {
				_, err := c.Sandbox(sb.ID()).Exec(tr.served(), client.Command{Code: counting(lines)}, w, nil)
				w.CloseWithError(err)
				done <- err
			}()
			var seen bytes.Buffer
			_, err := io.CopyN(&seen, r, 64<<10)
			if err == nil {
				time.Sleep(400 * time.Millisecond)
				_, _ = io.Copy(&seen, r) // ends with the program or the server
			}
			if err := <-done; err == nil && seen.String() != numbered(lines) {
				tr.errorf("the caller saw %d bytes of %d", seen.Len(), 8*lines)
			}
			tr.kept(sb.ID(), &seen)
		},
		after: func() { tr.continues(sb.ID(), numbered(lines)) },
	}
}

// printsMuch has more output than is kept.
func printsMuch(tr *trial) scenario {
	var sb *client.Sandbox
	return scenario{
		before: func() { sb = tr.newSandbox(client.CreateOptions{}) },
		act: func() {
			tr.alive(sb.ID())
			_, _ = sb.Exec(tr.served(), client.Command{Path: "head", Args: []string{"-c", "10000000", "/dev/zero"}}, nil, nil)
		},
		after: func() {
			if _, err := tr.processesOf(sb.ID()); err != nil {
				tr.errorf("the events cannot be read: %v", err)
			}
		},
	}
}

// told is what the events of a sandbox tell of one process.
type told struct {
	out   strings.Builder
	exits int
}

// processesOf reads what the events of a sandbox tell up to now.
func (tr *trial) processesOf(id string) (list []*told, err error) {
	byPID, last := map[int64]*told{}, int64(0)
	for e, err := range tr.c.Sandbox(id).Events(tr.ctx, client.WatchOptions{NoFollow: true}) {
		if err != nil {
			return nil, err
		}
		if e.GetId() <= last {
			return nil, fmt.Errorf("event %d follows event %d", e.GetId(), last)
		}
		last = e.GetId()
		p := byPID[e.GetPid()]
		switch {
		case e.GetType() == "started":
			p = &told{}
			byPID[e.GetPid()] = p
			list = append(list, p)
		case p == nil: // of the sandbox, or of a process whose beginning was dropped
		case e.GetType() == "stdout":
			p.out.WriteString(e.GetText())
			p.out.Write(e.GetData())
		case e.GetType() == "exit":
			p.exits++
		}
	}
	return list, nil
}

// continues checks that a program whose server was killed has gone on: in the
// end the sandbox's events have its output whole, once, and its exit. What this
// trial runs to see that the sandbox works does not count.
func (tr *trial) continues(id, want string) {
	tr.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		list, err := tr.processesOf(id)
		list = slices.DeleteFunc(list, func(p *told) bool { return p.out.String() == "42\n" })
		switch {
		case err == nil && len(list) == 0: // killed before it began
			return
		case err == nil && len(list) == 1 && list[0].exits == 1 && list[0].out.String() == want:
			return
		case err == nil && len(list) == 1 && list[0].exits == 0 && strings.HasPrefix(want, list[0].out.String()) && time.Now().Before(deadline):
			continue
		}
		tr.errorf("%v; %d processes where one was started", err, len(list))
		for _, p := range list {
			tr.errorf("of %d bytes of output the events have %d, the same as far as they go: %v; exits: %d",
				len(want), p.out.Len(), strings.HasPrefix(want, p.out.String()), p.exits)
		}
		return
	}
}

// started reports whether the events of a sandbox name a process.
func (tr *trial) started(id string) bool {
	list, err := tr.processesOf(id)
	return err == nil && len(list) > 0
}
