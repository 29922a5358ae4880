package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/e2b"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/server"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Serve runs a server until ctx ends, then drains and closes.
//
// Errors: KindUnavailable wrapping *store.LockedError when another process owns
// the data directory; KindExists when an address is taken; those of its parts.
func (w Wiring) Serve(ctx context.Context, o cli.ServeOptions) (err error) {
	c := o.Config
	log, err := logger(o.Log, c)
	if err != nil {
		return err
	}
	if c.Data == "" || c.Listen == "" && c.Socket == "" {
		return sandbox.Errorf("serve", sandbox.KindInvalid, "a data directory, and listen or socket, are needed").
			WithHint("`firebreak config` shows what is set")
	}
	if err := prepareData(c); err != nil {
		return err
	}
	heedMemory()
	owner, err := store.Lock(c.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, owner.Close()) }()
	listeners, err := listen(ctx, c)
	if err != nil {
		return err
	}
	var forE2B *server.Listener
	if c.E2BListen != "" {
		if forE2B, err = server.ListenTCP(ctx, c.E2BListen); err != nil {
			err = sandbox.Wrap("listen", "e2b_listen", err)
		} else {
			listeners = append(listeners, forE2B)
		}
	}
	defer func() {
		for _, l := range listeners {
			_ = l.Close() // Serve has closed them, if it came to that
		}
	}()
	if err != nil {
		return err
	}
	failpoint.Hit("serve/after-listen")
	n, err := w.open(ctx, options{
		dir: c.Data, audit: filepath.Join(c.Data, "audit", "server"), config: c, destroy: c.StopSandboxes, serves: true, log: log,
	})
	if err != nil {
		return err
	}
	defer func() {
		n.stopping = func() error { return n.recordStop(err) }
		cerr := n.close()
		if cerr != nil { // after a signal nobody prints the error
			log.Error("close", "error", cerr)
		}
		err = errors.Join(err, cerr)
	}()
	failpoint.Hit("serve/after-open")
	key, err := n.auth.Bootstrap(ctx, c.Data, func(id string) error {
		r := own("key.create", sandbox.OutcomeAllowed, map[string]string{"role": string(auth.Owner)})
		r.Object = id
		_, err := n.evidence.Record(ctx, r)
		return err
	})
	if err != nil {
		return err
	}
	if forE2B != nil {
		h, err := e2b.New(e2b.Config{API: n.service, Auth: n.auth, Door: n.server, Log: log, Domain: c.E2BDomain, Template: c.Template})
		if err != nil {
			return err
		}
		forE2B.Serve("E2B", h)
	}
	ctx, failed := context.WithCancelCause(ctx)
	defer failed(nil)
	rctx, cancel := context.WithCancel(context.Background())
	var reaping sync.WaitGroup
	reaping.Go(func() {
		w.reap(rctx, c, log)
		n.maintain(rctx, c, log)
	})
	reaping.Go(func() {
		select {
		case <-n.evidence.Failed():
		case <-n.store.Failed():
		case <-rctx.Done():
			return
		}
		failed(errBroken)
	})
	reaping.Go(func() { n.collect(rctx, log) })
	reaping.Go(func() { n.witnessed(rctx, c, log) })
	defer func() { cancel(); reaping.Wait() }()
	forgetImage()
	if o.Ready != nil {
		s := cli.Serving{KeyFile: key, Data: c.Data, Socket: c.Socket, Backend: n.auto(ctx)}
		if c.Listen != "" {
			s.URL = "http://" + listeners[0].Addr().String()
		}
		if forE2B != nil {
			s.E2B = "http://" + forE2B.Addr().String()
		}
		o.Ready(s)
	}
	// Starting verified 50 MB of programs and perhaps adopted hundreds of
	// sandboxes; a quiet server would keep that memory for good.
	debug.FreeOSMemory()
	err = n.server.Serve(ctx, listeners...)
	if context.Cause(ctx) == errBroken {
		err = errors.Join(errBroken, err)
	}
	return err
}

// errBroken ends a server that cannot tell any more what is on disk. Refusing
// for ever would need a person; a restart finds out, and sandboxes live on.
var errBroken = sandbox.Errorf("serve", sandbox.KindUnavailable, "a write to the data directory's disk failed, so nothing can be promised").
	WithHint("check the disk; start the server again, or let its service manager: sandboxes live on and are adopted")

// collectEvery is how often a server removes templates and layers nothing uses.
const collectEvery = time.Hour

// collect does so until ctx ends.
func (n *node) collect(ctx context.Context, log *slog.Logger) {
	t := time.NewTicker(collectEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := n.service.Collect(ctx); err != nil && ctx.Err() == nil {
			log.Error("collect templates", "error", err) // the next hour tries again
		}
	}
}

// listen opens the listeners, TCP first.
func listen(ctx context.Context, c *config.Config) (ls []*server.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range ls {
				_ = l.Close()
			}
		}
	}()
	if c.Listen != "" {
		l, err := server.ListenTCP(ctx, c.Listen)
		if err != nil {
			return ls, err
		}
		ls = append(ls, l)
	}
	if c.Socket != "" {
		if err := os.MkdirAll(filepath.Dir(c.Socket), 0o700); err != nil {
			return ls, sandbox.Wrap("listen", c.Socket, err)
		}
		l, err := server.ListenUnix(c.Socket, 0o600)
		var se *sandbox.Error
		if errors.As(err, &se) && se.Hint == "" {
			return ls, se.WithHint("choose another socket with --socket, or none with --socket ''")
		}
		if err != nil {
			return ls, err
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// exposed reports whether addr is reachable from other machines.
func exposed(addr string) bool {
	h, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(h)
	return h != "localhost" && (ip == nil || !ip.IsLoopback())
}

func logger(w io.Writer, c *config.Config) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, sandbox.Errorf("serve", sandbox.KindInvalid, "log_level: %w", err)
	}
	o := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, o)
	if c.LogFormat == "json" {
		h = slog.NewJSONHandler(w, o)
	}
	log := slog.New(h)
	for _, addr := range []string{c.Listen, c.E2BListen} {
		if addr != "" && exposed(addr) {
			log.Warn("listening beyond this machine without TLS: keys and code travel in the clear; put a TLS proxy in front", "listen", addr)
		}
	}
	return log, nil
}
