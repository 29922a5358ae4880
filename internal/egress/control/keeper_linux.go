package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Options is what a Keeper needs.
type Options struct {
	// Argv is the program that calls Run, and its arguments; default this program
	// and "router". It is linked statically.
	Argv   []string
	Logger *slog.Logger
	// Private are the networks that are not public and that rules may open.
	Private []netip.Prefix
	// Record takes each decision and the end of each connection, one after the
	// other; see egress.Config. It has to return while the keeper is being closed.
	Record func(egress.Event) error
	// Resolv and Hosts are the files that say how names are resolved; default
	// /etc/resolv.conf and /etc/hosts. A change is seen after some seconds.
	Resolv, Hosts string
	// Seed is what the authorities of sandboxes are made from, at least
	// authority.MinSeed bytes: with the same one programs in them go on trusting theirs
	// after a restart. The keeper copies it. Default: random.
	Seed []byte
}

// Keeper has a router in a process of its own, and one that follows when it dies.
// All methods may be called at once.
type Keeper struct {
	o        Options
	log      *slog.Logger
	compiler *compiler
	roots    []byte // who vouches for hosts, as of the start
	stop     context.CancelFunc
	done     sync.WaitGroup // the loop, and what reads and records of each router
	loop     chan struct{}  // closed when the loop has ended

	mu      sync.Mutex
	closed  bool             // guarded by mu
	wires   map[string]*kept // guarded by mu
	current *session         // guarded by mu; nil while there is none that serves
	changed chan struct{}    // guarded by mu; closed and made anew with current
	told    names            // guarded by mu; what current knows
	seed    []byte           // guarded by mu; of authorities
}

// self is the program of this process, also when its file has been replaced.
const self = "/proc/self/exe"

// Start starts a router. When it returns, the router serves. Errors:
// KindUnavailable with what is in the way, ctx's.
func Start(ctx context.Context, o Options) (*Keeper, error) {
	if len(o.Argv) == 0 {
		o.Argv = []string{self, "router"}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Resolv == "" {
		o.Resolv = "/etc/resolv.conf"
	}
	if o.Hosts == "" {
		o.Hosts = "/etc/hosts"
	}
	seed := bytes.Clone(o.Seed)
	if o.Seed = nil; len(seed) == 0 {
		seed = make([]byte, authority.MinSeed)
		rand.Read(seed)
	}
	k := &Keeper{
		o: o, seed: seed, log: o.Logger, roots: roots(o.Logger), compiler: newCompiler(o.Private, new(netaddr.Machine)),
		wires: map[string]*kept{}, changed: make(chan struct{}), loop: make(chan struct{}),
	}
	s, err := k.begin(ctx)
	if err != nil {
		k.done.Wait()
		return nil, err
	}
	running, stop := context.WithCancel(context.Background())
	k.stop = stop
	k.done.Go(func() {
		defer close(k.loop)
		k.run(running, s)
	})
	return k, nil
}

// begin starts a router, gives it all wires and makes it the current one.
func (k *Keeper) begin(ctx context.Context) (*session, error) {
	begun := time.Now()
	p, err := begin(k.o.Argv, k.log)
	if err != nil {
		return nil, err
	}
	s := newSession(p, begun)
	k.done.Go(func() { s.read(func(m *up) { k.hear(s, m) }) })
	k.done.Go(func() { s.settle(k.keep) })
	told := k.names()
	a, err := s.call(ctx, &down{Op: opStart, Start: &start{Private: k.o.Private, Names: told, Roots: k.roots}}, -1, answerWait)
	if err != nil {
		k.bury(s)
		if errors.Is(err, errLost) {
			err = sandbox.Errorf("router", sandbox.KindUnavailable, "it ended as it began: %s %s", p.end, s.why())
		}
		return nil, err
	}
	k.raise(p.os.Pid)
	for _, note := range a.Notes {
		k.log.Warn("the router is confined, but", "note", note)
	}
	if err := k.resume(ctx, s); err != nil {
		k.bury(s)
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current, k.told = s, told
	k.announce()
	k.log.Info("the router serves", "pid", p.os.Pid, "wires", len(k.wires), "after", time.Since(begun))
	return s, nil
}

// raise raises the limit of a router's descriptors to what it may have, which its
// starter may not be allowed to.
func (k *Keeper) raise(pid int) {
	var files unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &files); err != nil || files.Max >= maxFiles {
		return // of one that is gone: nothing
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: maxFiles, Max: maxFiles}, nil); err != nil {
		k.log.Warn("the router has fewer descriptors than all wires may have connections", "limit", files.Max, "error", err)
	}
}

// announce tells whoever waits that current, or closed, has changed. The caller
// holds mu.
func (k *Keeper) announce() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// bury makes sure that a router is no more.
func (k *Keeper) bury(s *session) {
	s.process.kill()
	<-s.process.done
	<-s.lost
	s.link.conn.Close()
}

// why is what is known about a router's end.
func (s *session) why() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	why := s.process.said.tail()
	if s.cause != nil {
		why = s.cause.Error() + "\n" + why
	}
	return why
}

// names reads the files about names. What is not there, or too long, says nothing.
func (k *Keeper) names() (n names) {
	for _, f := range []struct {
		path string
		into *[]byte
	}{{k.o.Resolv, &n.Resolv}, {k.o.Hosts, &n.Hosts}} {
		b, err := os.ReadFile(f.path)
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			k.log.Warn("the router does not know what a file says", "file", f.path, "error", err)
		case len(b) > maxNames:
			k.log.Warn("the router does not know what a file says", "file", f.path, "error", "it is longer than 1 MiB")
		default:
			*f.into = b
		}
	}
	return n
}

// session returns the router that serves now, or the next one. Errors: ctx's, that
// the keeper is closed.
func (k *Keeper) session(ctx context.Context, op, id string) (*session, error) {
	for {
		k.mu.Lock()
		s, changed, closed := k.current, k.changed, k.closed
		k.mu.Unlock()
		switch {
		case closed:
			return nil, sandbox.Errorf(op, sandbox.KindUnavailable, "the router is being stopped").WithID(id)
		case s != nil && !s.gone():
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, sandbox.Errorf(op, sandbox.KindUnavailable, "there is no router: %w", ctx.Err()).WithID(id)
		}
	}
}

// hear takes what a router says about wires: of those it serves.
func (k *Keeper) hear(s *session, m *up) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := m.Event; e != nil {
		w := k.wires[e.Wire]
		if w == nil || w.by != s {
			e.Wire = "" // nobody's: not recorded
			return
		}
		e.Time = near(e.Time, time.Now()).UTC()
		e.Generation = min(max(e.Generation, 1)+w.base, w.generation)
	}
	for id, used := range m.Usage {
		if w := k.wires[id]; w != nil && w.by == s {
			w.learn(used)
		}
	}
}

// keep records one event that was heard.
func (k *Keeper) keep(e egress.Event) error {
	if e.Wire == "" || k.o.Record == nil {
		return nil
	}
	return k.o.Record(e)
}

// Stats is what the router does. Errors: there is none, ctx's.
func (k *Keeper) Stats(ctx context.Context) (egress.Stats, error) {
	for {
		s, err := k.session(ctx, "egress stats", "")
		if err != nil {
			return egress.Stats{}, err
		}
		a, err := s.call(ctx, &down{Op: opStats}, -1, answerWait)
		if errors.Is(err, errLost) {
			continue
		}
		if err != nil {
			return egress.Stats{}, err
		}
		if a.Stats == nil {
			return egress.Stats{}, sandbox.Errorf("egress stats", sandbox.KindInternal, "an answer without statistics")
		}
		return *a.Stats, nil
	}
}

// Used is what a sandbox has used of its rules, by their ids, as of a tenth of a
// second ago; nil of a wire that is not attached.
func (k *Keeper) Used(id string) map[string]policy.Used {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.wires[id]
	if w == nil {
		return nil
	}
	used := make(map[string]policy.Used, len(w.used))
	for id, u := range w.used {
		used[id] = u
	}
	return used
}
