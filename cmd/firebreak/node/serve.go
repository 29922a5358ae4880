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

	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
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
	owner, err := store.Lock(c.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, owner.Close()) }()
	listeners, err := listen(ctx, c)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			_ = l.Close() // Serve has closed them, if it came to that
		}
	}()
	n, err := w.open(ctx, options{
		dir: c.Data, audit: filepath.Join(c.Data, "audit", "server"), config: c, destroy: c.StopSandboxes, log: log,
	})
	if err != nil {
		return err
	}
	defer func() {
		cerr := n.close()
		if cerr != nil { // after a signal nobody prints the error
			log.Error("close", "error", cerr)
		}
		err = errors.Join(err, cerr)
	}()
	key, err := n.auth.Bootstrap(ctx, c.Data)
	if err != nil {
		return err
	}
	rctx, cancel := context.WithCancel(context.Background())
	var reaping sync.WaitGroup
	reaping.Go(func() { w.reap(rctx, c, log) })
	defer func() { cancel(); reaping.Wait() }()
	if o.Ready != nil {
		s := cli.Serving{KeyFile: key, Data: c.Data, Socket: c.Socket, Backend: n.auto(ctx)}
		if c.Listen != "" {
			s.URL = "http://" + listeners[0].Addr().String()
		}
		o.Ready(s)
	}
	// Starting verified 50 MB of programs and perhaps adopted hundreds of
	// sandboxes; a quiet server would keep that memory for good.
	debug.FreeOSMemory()
	return n.server.Serve(ctx, listeners...)
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
	if exposed(c.Listen) {
		log.Warn("listening beyond this machine without TLS: keys and code travel in the clear; put a TLS proxy in front", "listen", c.Listen)
	}
	return log, nil
}
