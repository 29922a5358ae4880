// Package client is Firebreak's Go SDK.
//
//	c, err := client.New(client.Options{URL: "unix:///run/firebreak/firebreak.sock"})
//	sb, err := c.Create(ctx, client.CreateOptions{Memory: 256 << 20})
//	exit, err := sb.Exec(ctx, client.Command{Code: "print(6*7)"}, os.Stdout, os.Stderr)
//	receipt, err := sb.Destroy(ctx) // every object it owned, removed and re-checked
//
// or, in one go, with a structured result and artifacts:
//
//	run, err := c.Run(ctx, client.RunOptions{
//		Program: client.Command{Code: src},
//		Stdout:  os.Stdout,
//	})
//
// Errors are *sandbox.Error with the Kind and Hint the server gave; what could
// not reach a server at all is KindUnavailable. Reports (Sandbox, Run, Receipt,
// Usage, …) are the wire's own messages, from api/gen.
//
// A Client and everything made from it is safe for concurrent use. The package
// uses nothing of Firebreak but the wire.
package client

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Options says which server to talk to.
type Options struct {
	// URL is http://host:port, https://host:port or unix:///path/to/socket.
	URL string
	// APIKey is sent as a bearer token. Not needed on a unix socket, where the
	// caller's uid is the credential.
	APIKey string
	// Dial, if set, makes every connection in place of URL's own address; URL
	// may then be left out. For servers in the same process.
	Dial func(context.Context) (net.Conn, error)
	// HTTPClient, if set, is used as it is; Dial and a unix URL then have no
	// effect.
	HTTPClient *http.Client
	// UserAgent is sent with every call; default "firebreak-go".
	UserAgent string
}

// Client talks to one server.
type Client struct {
	base      string // http(s)://host, no final slash
	http      *http.Client
	key       string
	userAgent string

	sandboxes firebreakv1connect.SandboxServiceClient
	files     firebreakv1connect.FileServiceClient
	runs      firebreakv1connect.RunServiceClient
	processes firebreakv1connect.ProcessServiceClient
	contexts  firebreakv1connect.ContextServiceClient
	system    firebreakv1connect.SystemServiceClient
	policies  firebreakv1connect.PolicyServiceClient
	secrets   firebreakv1connect.SecretServiceClient
	snapshots firebreakv1connect.SnapshotServiceClient
	keys      firebreakv1connect.KeyServiceClient
	audit     firebreakv1connect.AuditServiceClient
}

// New returns a client. It does not connect yet. Errors: KindInvalid for a URL
// it cannot use.
func New(o Options) (*Client, error) {
	base, dial, err := target(o)
	if err != nil {
		return nil, err
	}
	c := &Client{base: base, http: o.HTTPClient, key: o.APIKey, userAgent: o.UserAgent}
	if c.userAgent == "" {
		c.userAgent = "firebreak-go"
	}
	if c.http == nil {
		c.http = &http.Client{Transport: transport(dial)}
	}
	opts := connect.WithInterceptors(&headers{key: c.key, userAgent: c.userAgent})
	c.sandboxes = firebreakv1connect.NewSandboxServiceClient(c.http, base, opts)
	c.files = firebreakv1connect.NewFileServiceClient(c.http, base, opts)
	c.runs = firebreakv1connect.NewRunServiceClient(c.http, base, opts)
	c.processes = firebreakv1connect.NewProcessServiceClient(c.http, base, opts)
	c.contexts = firebreakv1connect.NewContextServiceClient(c.http, base, opts)
	c.system = firebreakv1connect.NewSystemServiceClient(c.http, base, opts)
	c.policies = firebreakv1connect.NewPolicyServiceClient(c.http, base, opts)
	c.secrets = firebreakv1connect.NewSecretServiceClient(c.http, base, opts)
	c.snapshots = firebreakv1connect.NewSnapshotServiceClient(c.http, base, opts)
	c.keys = firebreakv1connect.NewKeyServiceClient(c.http, base, opts)
	c.audit = firebreakv1connect.NewAuditServiceClient(c.http, base, opts)
	return c, nil
}

type dialer = func(context.Context) (net.Conn, error)

// target turns Options into a base URL and, where it is not the URL's own
// address, a way to connect.
func target(o Options) (base string, dial dialer, err error) {
	if o.URL == "" && (o.Dial != nil || o.HTTPClient != nil) {
		return "http://firebreak", o.Dial, nil
	}
	u, err := url.Parse(o.URL)
	bad := func(why string) (string, dialer, error) {
		return "", nil, sandbox.Errorf("connect", sandbox.KindInvalid, "%q is not a server URL: %s", o.URL, why).
			WithHint("write http://127.0.0.1:7878, https://HOST or unix:///path/to/socket")
	}
	if err != nil {
		return bad("it cannot be parsed")
	}
	switch u.Scheme {
	case "http", "https":
		switch {
		case u.Host == "":
			return bad("the host is missing")
		case u.User != nil:
			return bad("a URL carries no credentials here, pass the key apart from it")
		case u.RawQuery != "" || u.Fragment != "":
			return bad("it has a query or a fragment")
		}
		return u.Scheme + "://" + u.Host + strings.TrimRight(u.EscapedPath(), "/"), o.Dial, nil
	case "unix":
		path := u.Path
		if u.Host != "" || path == "" {
			return bad("a socket needs an absolute path, with three slashes")
		}
		if o.Dial != nil {
			return "http://firebreak", o.Dial, nil
		}
		return "http://firebreak", func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}, nil
	}
	return bad("the scheme must be http, https or unix")
}

// transport is net/http's own with what long streams and sockets need.
func transport(dial dialer) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 32
	t.ReadBufferSize, t.WriteBufferSize = 64<<10, 64<<10
	t.DisableCompression = true // bodies are programs' output and files; CPU is the scarcer good
	if dial != nil {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }
	} else {
		d := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
		t.DialContext = d.DialContext
	}
	return t
}

// Close drops idle connections. The client stays usable.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// headers adds what every call carries and turns errors into *sandbox.Error.
type headers struct{ key, userAgent string }

func (h *headers) set(to http.Header) {
	if h.key != "" {
		to.Set("Authorization", "Bearer "+h.key)
	}
	to.Set("User-Agent", h.userAgent)
}

// WrapUnary implements connect.Interceptor.
func (h *headers) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		h.set(req.Header())
		res, err := next(ctx, req)
		return res, fromConnect(ctx, err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (h *headers) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		h.set(conn.RequestHeader())
		return conn
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (h *headers) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
