package agent_test

import (
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/agent"
)

// stander is a machine that makes interpreters that wait.
type stander struct {
	*machine
	mu  sync.Mutex
	all []*waits // guarded by mu
}

type waits struct {
	ready  chan struct{}
	killed chan struct{}
	once   sync.Once
}

func (s *stander) Stand(agent.Program) (agent.Standby, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &waits{ready: make(chan struct{}), killed: make(chan struct{})}
	close(w.ready)
	s.all = append(s.all, w)
	return w, nil
}

func (w *waits) Ready() <-chan struct{} { return w.ready }
func (w *waits) Kill()                  { w.once.Do(func() { close(w.killed) }) }
func (w *waits) Become(agent.Program, string, []string) (agent.Process, error) {
	panic("no program that it could become was started")
}

func (s *stander) made() []*waits {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// TestStandDown: before a sandbox is saved the interpreter that waits is ended, and none
// is made until a host attaches, to the sandbox or to a copy of it. Then there is another.
func TestStandDown(t *testing.T) {
	m := &stander{machine: &machine{running: map[*task]bool{}}}
	srv := agent.New(m, "test")
	defer srv.Close()
	s, _ := connect(t, srv, guest.Config{})
	must(t, s.StandDown(ctx(t))) // there is none
	s.Close()
	s, _ = connect(t, srv, guest.Config{})
	must(t, s.Standby(ctx(t), nil, ""))
	must(t, s.StandDown(ctx(t)))
	if all := m.made(); len(all) != 1 {
		t.Fatalf("%d were made", len(all))
	}
	select {
	case <-m.made()[0].killed:
	default:
		t.Error("it waits still")
	}
	must(t, s.Standby(ctx(t), nil, "")) // nor by being asked
	finish(t, start(t, s, "done"))
	if n := len(m.made()); n != 1 {
		t.Errorf("%d were made for the image", n)
	}
	s.Close()
	connect(t, srv, guest.Config{})
	for end := time.Now().Add(time.Minute); len(m.made()) < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("there is none for the next program")
		}
	}
}
