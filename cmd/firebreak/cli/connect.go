package cli

import (
	"context"
	"net"
	"os"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// session is a client and, where the server runs in this process, that server.
type session struct {
	*client.Client
	local Local
}

// close ends the session. Its error matters: an in-process server that could
// not clean up has left something behind.
func (s *session) close() error {
	s.Client.Close()
	if s.local == nil {
		return nil
	}
	return s.local.Close()
}

// connect finds the server a command talks to: the one named by url, else the
// one on the local socket. Errors: KindUnavailable with what to do.
func (a *App) connect(ctx context.Context) (*session, error) {
	s, err := a.remote(ctx)
	if s != nil || err != nil {
		return s, err
	}
	c, _ := a.config()
	return nil, sandbox.Errorf("", sandbox.KindUnavailable, "no server answers on %s", c.Socket).
		WithHint("start one with `firebreak serve`, or name one in FIREBREAK_URL")
}

// connectOrLocal is connect for commands that can do without a server: it
// starts what they need in this process.
func (a *App) connectOrLocal(ctx context.Context) (*session, error) {
	s, err := a.remote(ctx)
	if s != nil || err != nil {
		return s, err
	}
	return a.local(ctx)
}

// local starts what a session needs in this process.
func (a *App) local(ctx context.Context) (*session, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	if a.Local == nil {
		return nil, sandbox.Errorf("", sandbox.KindUnsupported, "this build cannot run sandboxes itself and no server answers").
			WithHint("name a server in FIREBREAK_URL")
	}
	o := LocalOptions{Config: c}
	if terminal(a.Err) {
		o.Progress = func(what string) { a.say("%s", what) }
	}
	local, err := a.Local(ctx, o)
	if err != nil {
		return nil, err
	}
	cl, err := client.New(client.Options{Dial: local.Dial, APIKey: local.Key(), UserAgent: a.userAgent()})
	if err != nil {
		_ = local.Close()
		return nil, err
	}
	return &session{Client: cl, local: local}, nil
}

// remote returns a session with a server that is already there, or nil.
func (a *App) remote(ctx context.Context) (*session, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	o := client.Options{URL: c.URL, UserAgent: a.userAgent()}
	switch {
	case c.URL != "":
		if o.APIKey, err = a.apiKey(); err != nil {
			return nil, err
		}
	case answers(ctx, c.Socket):
		o.URL = "unix://" + c.Socket
	default:
		return nil, nil
	}
	cl, err := client.New(o)
	if err != nil {
		return nil, err
	}
	return &session{Client: cl}, nil
}

func (a *App) userAgent() string { return "firebreak-cli/" + a.Build.Version }

// apiKey returns the key for the configured URL, or "".
func (a *App) apiKey() (string, error) {
	c, err := a.config()
	if err != nil || c.APIKey != "" || c.APIKeyFile == "" {
		return strings.TrimSpace(c.APIKey), err
	}
	data, err := os.ReadFile(c.APIKeyFile)
	if err != nil {
		return "", sandbox.Wrap("read api_key_file", c.APIKeyFile, err)
	}
	return strings.TrimSpace(string(data)), nil
}

// answers reports whether somebody accepts connections on a socket. A socket
// left by a server that died refuses.
func answers(ctx context.Context, socket string) bool {
	if socket == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
