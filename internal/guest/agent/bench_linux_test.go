package agent_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// BenchmarkExec is a whole exec: start, both outputs to the end, exit status.
// Floor is fork, exec and wait of the same program by this process.
func BenchmarkExec(b *testing.B) {
	argv := []string{guest.AgentPath, "version"}
	b.Run("floor", func(b *testing.B) {
		for b.Loop() {
			pid, err := syscall.ForkExec(agentBinary, argv, &syscall.ProcAttr{Files: []uintptr{}})
			must(b, err)
			_, err = syscall.Wait4(pid, nil, 0, nil)
			must(b, err)
		}
	})
	b.Run("ours", func(b *testing.B) {
		box := newBox(b)
		s := box.open(guest.Config{PIDs: 128, Memory: 1 << 30})
		c := ctx(b)
		for b.Loop() {
			p, err := s.Exec(c, guest.Command{Argv: argv})
			must(b, err)
			_, err = io.Copy(io.Discard, p.Stdout())
			must(b, err)
			_, err = io.Copy(io.Discard, p.Stderr())
			must(b, err)
			_, err = p.Wait(c)
			must(b, err)
		}
	})
	b.Run("ping", func(b *testing.B) {
		box := newBox(b)
		s := box.open(guest.Config{})
		c := ctx(b)
		for b.Loop() {
			must(b, s.Ping(c))
		}
	})
}

// BenchmarkWrite writes 16 MiB to a file in the sandbox. The floor is the same
// bytes through a raw unix socket to a process-local reader that discards them.
func BenchmarkWrite(b *testing.B) {
	const size = 16 << 20
	data := bytes.Repeat([]byte("firebreak"), size/9+1)[:size]
	b.Run("floor", func(b *testing.B) {
		l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
		must(b, err)
		defer l.Close()
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			buf := make([]byte, 256<<10)
			got := 0
			for {
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				if got += n; got == size {
					got = 0
					conn.Write([]byte{1})
				}
			}
		}()
		conn, err := net.Dial("unix", l.Addr().String())
		must(b, err)
		defer conn.Close()
		b.SetBytes(size)
		ack := make([]byte, 1)
		for b.Loop() {
			for off := 0; off < size; off += 256 << 10 {
				_, err := conn.Write(data[off : off+256<<10])
				must(b, err)
			}
			_, err = io.ReadFull(conn, ack)
			must(b, err)
		}
	})
	for name, pipe := range map[string]int{"ours": 1 << 20, "ours-64k-pipe": 64 << 10} {
		b.Run(name, func(b *testing.B) {
			box := newBox(b)
			for _, f := range []string{box.in, box.out} {
				h, err := os.OpenFile(f, os.O_RDWR, 0)
				must(b, err)
				defer h.Close()
				setPipe(b, h, pipe)
			}
			s := box.open(guest.Config{})
			c := ctx(b)
			b.SetBytes(size)
			for b.Loop() {
				_, err := s.WriteFile(c, "/tmp/f", bytes.NewReader(data), guest.WriteOptions{})
				must(b, err)
			}
		})
	}
	b.Run("read", func(b *testing.B) {
		box := newBox(b)
		h, err := os.OpenFile(box.out, os.O_RDWR, 0)
		must(b, err)
		defer h.Close()
		setPipe(b, h, 1<<20)
		s := box.open(guest.Config{})
		c := ctx(b)
		_, err = s.WriteFile(c, "/tmp/f", bytes.NewReader(data), guest.WriteOptions{})
		must(b, err)
		b.SetBytes(size)
		for b.Loop() {
			f, err := s.ReadFile(c, "/tmp/f", guest.ReadOptions{})
			must(b, err)
			_, err = io.Copy(io.Discard, f)
			must(b, err)
		}
	})
}
