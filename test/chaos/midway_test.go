package chaos

import (
	"bytes"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// signalAt is a reader or writer that says when so many bytes have passed.
type signalAt struct {
	at   int64
	n    int64
	seen chan struct{}
}

func newSignalAt(at int64) *signalAt { return &signalAt{at: at, seen: make(chan struct{})} }

func (s *signalAt) Write(p []byte) (int, error) {
	if before := s.n; before < s.at && before+int64(len(p)) >= s.at {
		close(s.seen)
	}
	s.n += int64(len(p))
	return len(p), nil
}

// TestServerKilledMidway kills a server, at no step in particular, in the middle
// of much: a large upload, a large output, many creates.
func TestServerKilledMidway(t *testing.T) {
	g := newGround(t)
	for _, c := range []struct {
		name string
		of   func(*trial) scenario
	}{
		{"upload", uploads},
		{"output", streams},
		{"creates", createsMany},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := g.trial(t, c.name)
			tr.say(t, "")
			if tr.server == nil {
				tr.restart()
			} else {
				tr.follow()
			}
			sc := c.of(tr)
			sc.before()
			sc.act()
			tr.look()
			tr.kills++
			tr.restart()
			tr.examine(sc.after)
			tr.kill()
			tr.server = nil
			t.Logf("whole %d, gone %d, acknowledged %d", tr.whole, tr.gone, len(tr.promises))
		})
	}
}

// killWhen kills the server once c is closed.
func (tr *trial) killWhen(c <-chan struct{}) (done func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-c:
		case <-time.After(patience):
		}
		tr.kill()
	})
	return wg.Wait
}

// uploads writes 64 MiB over a file that was acknowledged.
func uploads(tr *trial) scenario {
	var sb *client.Sandbox
	return scenario{
		before: func() {
			sb = tr.newSandbox(client.CreateOptions{})
			_, err := sb.WriteFile(tr.ctx, "dir/file", bytes.NewReader([]byte("first")), 0o644)
			tr.must(err)
			tr.alive(sb.ID())
			tr.content(sb.ID(), "dir/file", "first")
		},
		act: func() {
			half := newSignalAt(32 << 20)
			wait := tr.killWhen(half.seen)
			if _, err := sb.WriteFile(tr.ctx, "dir/file", io.TeeReader(io.LimitReader(zeros{}, 64<<20), half), 0o644); err == nil {
				tr.errorf("the killed server acknowledged the file")
			}
			wait()
		},
		after: func() {
			if files, _, err := tr.c.Sandbox(sb.ID()).ListFiles(tr.ctx, "dir", 1); err != nil || len(files) != 1 {
				tr.errorf("beside the file there is %v, %v", files, err)
			}
		},
	}
}

// streams reads 100 MB of output.
func streams(tr *trial) scenario {
	var sb *client.Sandbox
	return scenario{
		before: func() {
			sb = tr.newSandbox(client.CreateOptions{})
			tr.alive(sb.ID())
		},
		act: func() {
			half := newSignalAt(50_000_000)
			wait := tr.killWhen(half.seen)
			_, err := sb.Exec(tr.served(), client.Command{Path: "head", Args: []string{"-c", "100000000", "/dev/zero"}}, half, nil)
			if err == nil {
				tr.errorf("the killed server ended the stream well, after %d bytes", half.n)
			}
			wait()
		},
		after: func() {
			if _, err := tr.processesOf(sb.ID()); err != nil {
				tr.errorf("the events cannot be read: %v", err)
			}
		},
	}
}

// createsMany makes fifty sandboxes at once and kills the server while some are
// made and some are not.
func createsMany(tr *trial) scenario {
	return scenario{
		before: func() {},
		act: func() {
			var wg sync.WaitGroup
			some, once := make(chan struct{}), sync.Once{}
			wait := tr.killWhen(some)
			made := make(chan string, 50)
			for range 50 {
				wg.Go(func() {
					sb, err := tr.c.Create(tr.ctx, client.CreateOptions{Memory: 64 << 20})
					if err == nil {
						made <- sb.ID()
					}
					if err == nil || sandbox.KindOf(err) != sandbox.KindCapacity {
						once.Do(func() { time.AfterFunc(150*time.Millisecond, func() { close(some) }) })
					}
				})
			}
			wg.Wait()
			wait()
			close(made)
			for id := range made {
				tr.alive(id)
			}
		},
	}
}

// TestOurProcessesKilled kills, one after the other, each kind of process that a
// sandbox consists of. The sandbox ends, says why, and leaves nothing; the one
// beside it does not notice. A stub is a guest process: whether the sandbox can
// go on without it is the sentry's to decide, but then it does go on.
func TestOurProcessesKilled(t *testing.T) {
	g := newGround(t)
	for _, role := range []string{"sentry", "gofer", "first stub", "agent"} {
		t.Run(role, func(t *testing.T) {
			tr := g.trial(t, role)
			tr.say(t, "")
			tr.restart()
			sb := tr.newSandbox(client.CreateOptions{})
			var pid int
			switch role {
			case "first stub":
				pid = tr.processes("stub")[0]
			case "agent":
				all := tr.processes("stub")
				pid = all[len(all)-1]
			default:
				pid = tr.processes(role)[0]
			}
			neighbour := tr.newSandbox(client.CreateOptions{})
			up, exited := newSignalAt(1), make(chan error, 1)
			var exit client.Exit
			go func() {
				var err error
				exit, err = sb.Exec(tr.ctx, client.Command{Code: "import time\nprint('up', flush=True)\ntime.sleep(600)"}, up, nil)
				exited <- err
			}()
			select {
			case <-up.seen:
			case <-time.After(patience):
				t.Fatal("the program does not start")
			}
			begun := time.Now()
			tr.must(syscall.Kill(pid, syscall.SIGKILL))
			tr.ended(sb.ID(), "crashed", "lost")
			t.Logf("ended after %v", time.Since(begun).Round(time.Millisecond))
			select {
			case err := <-exited:
				if err == nil && (exit.Code != 137 || exit.Reason == sandbox.ReasonDone) {
					t.Errorf("the program in it ended with %+v", exit)
				}
			case <-time.After(patience):
				t.Error("the program in it does not end")
			}
			tr.alive(neighbour.ID())
			tr.examine(nil)
			tr.kill()
			tr.server = nil
		})
	}
}
