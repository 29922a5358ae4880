//go:build linux

package gvisor

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// serve starts a server in the sandbox and returns its port.
func (x box) serve(t *testing.T, mode string) (*guest.Process, int) {
	t.Helper()
	p, err := x.Exec(within(t), guest.Command{Argv: []string{guest.AgentPath, "probe", "serve", mode}})
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, p.Stderr())
	line, err := bufio.NewReader(p.Stdout()).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return p, port
}

// TestDialPort connects to servers in a sandbox that has no network device:
// good ones, and those that flood, reset, ignore, and never accept. None of
// them stalls what else goes on.
func TestDialPort(t *testing.T) {
	x := create(t, open(t, t.TempDir()), sandbox.Spec{Root: minimalRoot(t), Limits: sandbox.Limits{Memory: 256 << 20}})
	server, port := x.serve(t, "echo")
	content := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	exchange := func() {
		c, err := x.DialPort(within(t), port)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		go func() {
			if _, err := c.Write(content); err != nil {
				t.Error(err)
			}
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(content) {
			t.Errorf("%d of %d bytes came back, %v", len(got), len(content), err)
		}
	}
	t.Run("echo", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(exchange)
		}
		wg.Wait()
	})
	t.Run("nothing there", func(t *testing.T) {
		if _, err := x.DialPort(within(t), 1); sandbox.KindOf(err) != sandbox.KindNotFound {
			t.Error(err)
		}
		if _, err := x.DialPort(within(t), 65536); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Error(err)
		}
	})
	t.Run("flood", func(t *testing.T) {
		_, port := x.serve(t, "flood")
		c, err := x.DialPort(within(t), port)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
			t.Error(err)
		}
		exchange() // beside one that nobody reads
		c.Close()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("read after Close")
		}
	})
	t.Run("reset", func(t *testing.T) {
		_, port := x.serve(t, "reset")
		c, err := x.DialPort(within(t), port)
		if sandbox.KindOf(err) == sandbox.KindGone {
			return // so fast
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for err == nil { // until the reset has come
			_, err = c.Write(content)
		}
		if _, err := io.ReadAll(c); err != nil && sandbox.KindOf(err) != sandbox.KindGone {
			t.Error(err)
		}
	})
	t.Run("ignored", func(t *testing.T) {
		_, port := x.serve(t, "ignore")
		c, err := x.DialPort(within(t), port)
		if err != nil {
			t.Fatal(err)
		}
		failed := make(chan error)
		go func() {
			_, err := c.Write(bytes.Repeat(content, 8))
			failed <- err
		}()
		exchange() // beside one whose server does not read
		c.Close()
		if err := <-failed; err == nil {
			t.Error("64 MiB were taken by a server that does not read")
		}
	})
	t.Run("many", func(t *testing.T) {
		var open []*guest.Conn
		for {
			c, err := x.DialPort(within(t), port)
			if err != nil {
				if sandbox.KindOf(err) != sandbox.KindCapacity {
					t.Error(err)
				}
				break
			}
			if open = append(open, c); len(open) > guest.MaxConns {
				t.Error("more connections than are allowed")
				break
			}
		}
		if len(open) != guest.MaxConns {
			t.Errorf("%d connections", len(open))
		}
		for _, c := range open {
			c.Close()
		}
		// The agent needs a moment to notice.
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			c, err := x.DialPort(within(t), port)
			if err == nil {
				c.Close()
				break
			}
			if sandbox.KindOf(err) != sandbox.KindCapacity || time.Now().After(end) {
				t.Fatal(err)
			}
		}
	})
	t.Run("killed", func(t *testing.T) {
		c, err := x.DialPort(within(t), port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := server.Signal(within(t), 9); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil && sandbox.KindOf(err) != sandbox.KindGone {
			t.Error(err)
		}
	})
	t.Run("session ends", func(t *testing.T) {
		_, port := x.serve(t, "ignore")
		c, err := x.DialPort(within(t), port)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(10*time.Millisecond, func() { x.Session.Close() })
		if _, err := c.Read(make([]byte, 1)); sandbox.KindOf(err) != sandbox.KindCanceled {
			t.Error(err)
		}
		if _, err := c.Write(content); err == nil || errors.Is(err, io.EOF) {
			t.Error(err)
		}
		c.Close()
	})
}
