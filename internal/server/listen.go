package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Listener is an address the Server answers on. It holds at most maxConns
// connections, and over TCP at most sourceConns of one source; see crowd for who
// makes room. Each listener has its own limit, so that a crowd on TCP never
// locks out the operator on the socket.
type Listener struct {
	net.Listener
	local   bool
	crowd   *crowd
	surface *surface // nil: the API
}

func newListener(l net.Listener, local bool) *Listener {
	most := connections()
	return &Listener{Listener: l, local: local, crowd: newCrowd(most, min(sourceConns, max(1, most/2)))}
}

// connections is how many a listener may hold: callers must not take the
// descriptors that sandboxes, files and evidence need.
func connections() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur/3 >= maxConns {
		return maxConns
	}
	return max(4, int(limit.Cur/3))
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		accepted := &conn{Conn: c, crowd: l.crowd}
		if l.local {
			accepted.peer = &peer{err: errors.New("not a unix socket")}
			if u, ok := c.(*net.UnixConn); ok {
				accepted.peer.uid, accepted.peer.err = peerUID(u)
			}
		} else {
			accepted.source = source(c.RemoteAddr().String())
		}
		if l.crowd.join(accepted) {
			return accepted, nil
		}
		c.Close()
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.crowd.close()
	return l.Listener.Close()
}

// ListenTCP listens on addr, such as "127.0.0.1:7878". Errors: KindExists when
// the address is in use.
func ListenTCP(ctx context.Context, addr string) (*Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		kind := sandbox.KindInvalid
		if isAddrInUse(err) {
			kind = sandbox.KindExists
		}
		return nil, sandbox.Errorf("listen", kind, "%w", err).WithHint("another server may be running; choose another address with --listen")
	}
	return newListener(l, false), nil
}

// ListenUnix listens on a unix socket with the given mode: 0600 for the owner,
// 0660 for its group, too. The directory must exist and should belong to the
// caller alone. A socket that a dead server left behind is replaced; one that
// answers is KindExists. The socket appears with its final mode and is removed
// by Close.
func ListenUnix(path string, mode fs.FileMode) (*Listener, error) {
	refuse := func(kind sandbox.Kind, err error) error {
		return &sandbox.Error{Op: "listen", ID: path, Kind: kind, Err: err}
	}
	switch fi, err := os.Lstat(path); {
	case err == nil && fi.Mode().Type() != fs.ModeSocket:
		return nil, refuse(sandbox.KindExists, errors.New("something that is not a socket is in the way"))
	case err == nil:
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, refuse(sandbox.KindExists, errors.New("another server answers on this socket"))
		} else if !isRefused(err) {
			return nil, refuse(sandbox.KindOf(err), fmt.Errorf("cannot tell whether a server answers: %w", err))
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, refuse(sandbox.KindOf(err), err)
	}
	// Bound under another name first: nobody can connect before the mode is
	// set, and the rename replaces a stale socket in one step.
	temp := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), os.Getpid()))
	os.Remove(temp)
	l, err := net.Listen("unix", temp)
	if err != nil {
		return nil, refuse(sandbox.KindOf(err), fmt.Errorf("%w (the path of a socket may have about 100 characters)", err))
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err = os.Chmod(temp, mode.Perm()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		l.Close()
		os.Remove(temp)
		return nil, refuse(sandbox.KindOf(err), err)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, refuse(sandbox.KindOf(err), err)
	}
	return newListener(&unixListener{Listener: l, path: path, made: fi}, true), nil
}

// unixListener removes its socket, and only its own, when it closes.
type unixListener struct {
	net.Listener
	path string
	made fs.FileInfo
	once sync.Once
}

// Close implements net.Listener.
func (l *unixListener) Close() error {
	l.once.Do(func() {
		if fi, err := os.Lstat(l.path); err == nil && os.SameFile(fi, l.made) {
			os.Remove(l.path)
		}
	})
	return l.Listener.Close()
}

// peer is the caller on the other end of a unix socket, by the kernel's word.
type peer struct {
	uid int
	err error
}

type peerKey struct{}

// peerFrom returns the peer of a connection over the unix socket, else nil.
func peerFrom(ctx context.Context) *peer {
	p, _ := ctx.Value(peerKey{}).(*peer)
	return p
}

// Serve answers on ls until ctx ends, and then drains: it stops accepting, ends
// the event streams (their callers resume elsewhere), waits up to Config.Drain
// for requests to end by themselves, cancels the rest and returns. It closes
// ls. It may be called once.
func (s *Server) Serve(ctx context.Context, ls ...*Listener) error {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errShutdown)
	var servers []*http.Server
	failed := make(chan error, len(ls))
	var running sync.WaitGroup
	for _, l := range ls {
		srv := s.httpServer(base)
		if f := l.surface; f != nil {
			srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(f, w, r) })
			s.metrics.prepare(f.op)
		}
		servers = append(servers, srv)
		running.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.drain()
	if !shutdown(servers, s.cfg.Drain) {
		s.log.Warn("requests did not end in time and are cancelled", "waited", s.cfg.Drain)
		cancel(errShutdown)
		if !shutdown(servers, 5*time.Second) {
			s.log.Error("requests ignore their cancellation")
		}
		for _, srv := range servers {
			srv.Close()
		}
	}
	running.Wait()
	return err
}

// shutdown shuts all servers down and reports whether all requests ended.
func shutdown(servers []*http.Server, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wait sync.WaitGroup
	results := make([]error, len(servers))
	for i, srv := range servers {
		wait.Go(func() { results[i] = srv.Shutdown(ctx) })
	}
	wait.Wait()
	return errors.Join(results...) == nil
}

// httpServer is the http.Server of one listener. HTTP/2 without TLS is on, so
// that gRPC works; its limits answer floods of streams and of resets.
func (s *Server) httpServer(base context.Context) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           s,
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:      maxStreams,
			MaxDecoderHeaderTableSize: 4096,
			SendPingTimeout:           time.Minute,
			PingTimeout:               15 * time.Second,
			WriteByteTimeout:          time.Minute,
		},
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnState:   connState,
		BaseContext: func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if accepted, ok := c.(*conn); ok && accepted.peer != nil {
				return context.WithValue(ctx, peerKey{}, accepted.peer)
			}
			return ctx
		},
	}
}
