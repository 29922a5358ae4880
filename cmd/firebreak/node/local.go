package node

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/server"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// host is the name the in-process client calls its server by.
const host = "firebreak"

// local is a Firebreak in this process, for one command.
type local struct {
	node     *node
	owner    *store.Owner
	dir      string
	evidence string

	token    string
	listener *pipes
	http     *http.Server
	serving  sync.WaitGroup

	stopReaping context.CancelFunc
	reaping     sync.WaitGroup
}

// Local starts a Firebreak in this process, in a locked directory of its own
// below the data directory.
//
// Errors: those of its parts, as they are; KindNoSpace, KindDenied when the
// data directory cannot be written.
func (w Wiring) Local(ctx context.Context, o cli.LocalOptions) (_ cli.Local, err error) {
	log := slog.New(slog.DiscardHandler) // a command's stderr is the program's
	if err := prepareData(o.Config); err != nil {
		return nil, err
	}
	l := &local{token: rand.Text(), listener: newPipes()}
	if l.dir, l.owner, err = claim(filepath.Join(o.Config.Data, "run")); err != nil {
		return nil, err
	}
	l.evidence = auditOf(o.Config.Data, l.dir)
	l.node, err = w.open(ctx, options{
		dir: l.dir, audit: l.evidence, config: o.Config, destroy: true, local: true, log: log, progress: o.Progress,
		hosts:        []string{host},
		authenticate: func(a *auth.Authenticator) server.Authenticator { return inProcess{a, l.token} },
	})
	if err != nil {
		return nil, errors.Join(err, discard(l.dir), l.owner.Close())
	}
	l.http = &http.Server{Handler: l.node.handler(), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError)}
	l.serving.Go(func() { _ = l.http.Serve(l.listener) }) // ends with Close, by ErrServerClosed
	rctx, cancel := context.WithCancel(context.Background())
	l.stopReaping = cancel
	l.reaping.Go(func() {
		w.reap(rctx, o.Config, log)
		if err := l.node.expireRuns(rctx, o.Config, time.Now()); err != nil { // the next run tries again
			log.Error("expire evidence", "error", err)
		}
	})
	return l, nil
}

// auditOf is where the evidence of the run in dir goes.
func auditOf(data, dir string) string {
	return filepath.Join(data, "audit", "run-"+filepath.Base(dir))
}

// Dial implements cli.Local.
func (l *local) Dial(ctx context.Context) (net.Conn, error) { return l.listener.dial(ctx) }

// Key implements cli.Local.
func (l *local) Key() string { return l.token }

// Evidence implements cli.Local.
func (l *local) Evidence() string { return l.evidence }

// Close implements cli.Local. When something could not be destroyed, the
// directory stays, so that the next command tries again.
func (l *local) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := l.http.Shutdown(ctx); err != nil {
		_ = l.http.Close()
	}
	l.serving.Wait()
	err := l.node.close()
	if err == nil {
		err = discard(l.dir)
	}
	failpoint.Hit("local/after-remove")
	err = errors.Join(err, l.owner.Close())
	l.stopReaping()
	l.reaping.Wait()
	return err
}

// inProcess authenticates the one client there is, by a token that never
// leaves this process, as the uid it runs as.
type inProcess struct {
	*auth.Authenticator
	token string
}

// Bearer implements server.Authenticator.
func (a inProcess) Bearer(_ context.Context, token string) (auth.Principal, error) {
	if subtle.ConstantTimeCompare([]byte(token), []byte(a.token)) != 1 {
		return auth.Principal{}, sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "not this process's token")
	}
	return a.Peer(os.Getuid())
}

// pipes is a listener whose connections never leave the process.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr implements net.Listener.
func (p *pipes) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

// Network implements net.Addr.
func (pipeAddr) Network() string { return "pipe" }

// String implements net.Addr.
func (pipeAddr) String() string { return "in process" }

// passing begins the name of a run's directory while it is made or removed. It
// has its own name only while its lock tells whether its process lives.
const passing = ".tmp-"

// claim makes and locks a directory for a run.
func claim(parent string) (dir string, owner *store.Owner, err error) {
	id := time.Now().UTC().Format("20060102t150405") + "-" + strings.ToLower(rand.Text()[:8])
	tmp := filepath.Join(parent, passing+id)
	if owner, err = store.Lock(tmp); err != nil {
		return "", nil, err
	}
	failpoint.Hit("local/after-lock")
	dir = filepath.Join(parent, id)
	if err := os.Rename(tmp, dir); err != nil {
		return "", nil, errors.Join(sandbox.Wrap("claim", dir, err), os.RemoveAll(tmp), owner.Close())
	}
	failpoint.Hit("local/after-claim")
	return dir, owner, nil
}

// discard removes a run's directory, whose lock the caller holds. It is renamed
// first: a reaper that came across a half-removed one would take it for dead.
func discard(dir string) error {
	now := time.Now()
	tmp := filepath.Join(filepath.Dir(dir), passing+filepath.Base(dir))
	err := os.Chtimes(dir, now, now)
	if err == nil {
		err = os.Rename(dir, tmp)
	}
	failpoint.Hit("local/before-remove")
	if err == nil {
		err = os.RemoveAll(tmp)
	}
	return sandbox.Wrap("clean up", dir, err)
}
