package gitsource

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Network is how repositories of other machines are reached. The zero value
// reaches public addresses, and reports nothing. Nothing of this machine's git
// configuration, no proxy and no credential has a part in it. All methods may be
// called at once.
type Network struct {
	// Private names servers, HOST or HOST:PORT, that may have an address of this
	// machine or of a private network. It counts for the server that a URL names;
	// none that redirects leads to another.
	Private []string
	// Progress, if not nil, is told how many bytes of the commit have arrived.
	Progress func(received int64)

	limits limits
	roots  *x509.CertPool // of tests; nil: this machine's
	lookup func(context.Context, string) ([]netip.Addr, error)
}

// limits are of one fetch.
type limits struct {
	pack    int64         // bytes of the answer that has the commit
	objects uint32        // in it
	answer  int64         // bytes of each other answer
	time    time.Duration // of all of it, resolving names and taking the pack apart included
	silence time.Duration // without a byte where one is waited for
}

var usual = limits{pack: 512 << 20, objects: 1 << 20, answer: 4 << 20, time: 10 * time.Minute, silence: time.Minute}

var (
	errTime    = errors.New("it takes too long")
	errSilence = errors.New("the server has fallen silent")
)

// Remote reports whether the repository is on another machine, behind a URL.
func (s Spec) Remote() bool {
	return strings.HasPrefix(s.Repo, "https://") || strings.HasPrefix(s.Repo, "http://")
}

// parseURL is the one spelling of an https or http URL. What it refuses is not
// repeated where a password may be in it.
func parseURL(repo string) (string, error) {
	invalid := func(format string, a ...any) (string, error) {
		return "", sandbox.Errorf("--git", sandbox.KindInvalid, format, a...).WithHint("write https://HOST/PATH, without user, password and query")
	}
	u, err := url.Parse(repo)
	switch {
	case err != nil:
		return invalid("the URL of the repository cannot be read")
	case u.User != nil:
		return invalid("the URL of the repository has a user name or a password, which are not used")
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(repo, "#"):
		return invalid("%q has a query or a fragment", repo)
	case strings.Trim(u.Path, "/") == "":
		return invalid("%q names a server and no repository", repo)
	}
	h, port, err := netaddr.ParseHostPort(u.Host)
	if err != nil {
		return invalid("%w", err)
	}
	host := h.String()
	switch {
	case port != 0 && port != defaultPort(u.Scheme):
		host = h.WithPort(port)
	case h.Addr().Is6():
		host = "[" + host + "]"
	}
	return u.Scheme + "://" + host + strings.TrimRight(u.EscapedPath(), "/"), nil
}

func defaultPort(scheme string) uint16 {
	if scheme == "http" {
		return 80
	}
	return 443
}

// open starts reading a repository, wherever it is.
func (n *Network) open(ctx context.Context, spec Spec) (*repository, error) {
	if !spec.Remote() {
		return open(ctx, spec.Repo)
	}
	r, err := n.fetch(ctx, spec)
	if err != nil && ctx.Err() != nil {
		err = sandbox.Wrap("--git", spec.Repo, context.Cause(ctx))
	}
	return r, err
}

// fetch brings one commit without its history into a repository of its own, which
// lives until it is closed.
func (n *Network) fetch(ctx context.Context, spec Spec) (_ *repository, err error) {
	l := cmp.Or(n.limits, usual)
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limited, stop := context.WithTimeoutCause(limited, l.time, errTime)
	defer stop()
	s := n.server(spec.Repo, l, cancel)
	defer s.transport.CloseIdleConnections()
	defer func() {
		if err != nil {
			err = s.explain(limited, err)
		}
	}()
	if err := s.greet(limited); err != nil {
		return nil, err
	}
	id, err := s.resolve(limited, spec.Ref)
	if err != nil {
		return nil, err
	}
	kept, err := keep(s.digits)
	if err != nil {
		return nil, sandbox.Wrap("--git", spec.Repo, err)
	}
	defer func() {
		if err != nil {
			kept.remove()
		}
	}()
	if err := s.fetch(limited, id, strings.EqualFold(id, spec.Ref), kept); err != nil {
		return nil, err
	}
	r, err := open(ctx, kept.dir)
	if err != nil {
		return nil, err
	}
	r.path, r.wanted, r.kept = spec.Repo, id, kept
	if s.base != spec.Repo {
		r.from = s.base
	}
	return r, nil
}

// server is one repository on a server, while it is asked.
type server struct {
	url       string // as it was asked for
	base      string // of requests: url, or where that redirected to
	digits    int    // of ids
	features  map[string]string
	limits    limits
	private   []string
	dialer    netaddr.Dialer
	transport *http.Transport
	client    *http.Client
	silence   *time.Timer // ends the fetch; runs while a byte is waited for
	progress  func(int64)

	mu     sync.Mutex
	pinned map[string][]netip.Addr // by HOST:PORT; guarded by mu
}

func (n *Network) server(repo string, l limits, cancel context.CancelCauseFunc) *server {
	s := &server{url: repo, base: repo, limits: l, private: n.Private, progress: n.Progress, pinned: map[string][]netip.Addr{}}
	s.silence = time.AfterFunc(l.silence, func() { cancel(errSilence) })
	s.silence.Stop()
	s.dialer = netaddr.Dialer{Lookup: n.lookup, Allow: func(h netaddr.Host, port uint16, _ netip.Addr, _ netaddr.Class) bool { return s.permitted(h, port) }}
	// HTTP/1.1 alone: what is asked for is asked for in order, and the less a
	// stranger can say the better.
	s.transport = &http.Transport{DialContext: s.dial, TLSClientConfig: &tls.Config{RootCAs: n.roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: l.silence, ResponseHeaderTimeout: l.silence, MaxResponseHeaderBytes: 64 << 10, DisableCompression: true, MaxConnsPerHost: 1}
	s.client = &http.Client{Transport: s.transport, CheckRedirect: s.redirected}
	return s
}

// permitted reports whether h is the server that was asked for, and named as one
// that may be private.
func (s *server) permitted(h netaddr.Host, port uint16) bool {
	asked, p, err := hostOf(s.url)
	return err == nil && asked == h && p == port && slices.ContainsFunc(s.private, func(name string) bool {
		named, p, err := netaddr.ParseHostPort(name)
		return err == nil && named == h && (p == 0 || p == port)
	})
}

func hostOf(address string) (netaddr.Host, uint16, error) {
	u, err := url.Parse(address)
	if err != nil {
		return netaddr.Host{}, 0, err
	}
	h, port, err := netaddr.ParseHostPort(u.Host)
	return h, cmp.Or(port, defaultPort(u.Scheme)), err
}

// dial resolves a name once for all connections of a fetch.
func (s *server) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	h, port, err := netaddr.ParseHostPort(addr)
	if err != nil {
		return nil, err
	}
	key := h.WithPort(port)
	s.mu.Lock()
	addrs := s.pinned[key]
	s.mu.Unlock()
	if addrs == nil {
		bounded, cancel := context.WithTimeout(ctx, s.limits.silence)
		defer cancel()
		if addrs, err = s.dialer.Resolve(bounded, h, port); err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.pinned[key] = addrs
		s.mu.Unlock()
	}
	return s.dialer.DialPinned(ctx, network, h, port, addrs)
}

// What a redirect must lead to: the same question.
const (
	refsPath  = "/info/refs"
	refsQuery = "service=git-upload-pack"
)

// redirected follows a repository that has moved, as git does: the first question
// only, never away from TLS, and to where the dialer goes.
func (s *server) redirected(to *http.Request, via []*http.Request) error {
	from := via[len(via)-1].URL
	refuse := func(why string) error {
		return s.errorf(sandbox.KindDenied, "it redirects to %.200q: %s", to.URL.Redacted(), why)
	}
	_, _, err := hostOf(to.URL.String())
	switch {
	case via[0].Method != http.MethodGet:
		return refuse("in the middle of the work")
	case len(via) > 5:
		return refuse("one redirect too many")
	case to.URL.Scheme != "https" && (to.URL.Scheme != "http" || from.Scheme != "http"):
		return refuse("that is not https")
	case to.URL.User != nil, err != nil:
		return refuse("that is no server's address")
	case !strings.HasSuffix(to.URL.Path, refsPath) || to.URL.RawQuery != refsQuery:
		return refuse("that is not a repository, or asks who you are")
	}
	to.Header.Del("Referer") // where one came from is nobody's business
	return nil
}

// errorf has the hint that helps with most of what a server does wrong.
func (s *server) errorf(kind sandbox.Kind, format string, a ...any) *sandbox.Error {
	return sandbox.Errorf("--git", kind, format, a...).WithID(s.url).WithHint("clone it by other means, and name the directory of the clone")
}

// explain turns what libraries return into what a person can act upon.
func (s *server) explain(ctx context.Context, err error) error {
	var typed *sandbox.Error
	var no *netaddr.RefusedError
	var odd *netaddr.HostError
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var timeout net.Error
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errTime):
		return s.errorf(sandbox.KindTimeout, "it takes longer than %s", s.limits.time)
	case errors.Is(cause, errSilence):
		return s.errorf(sandbox.KindTimeout, "the server has said nothing for %s", s.limits.silence)
	case errors.As(err, &no):
		e := s.errorf(sandbox.KindDenied, "%w", no)
		if h, port, herr := hostOf(s.url); herr == nil && h.String() == no.Host && no.Class.Openable() && !s.permitted(h, port) {
			return e.WithHint("if that server is yours to reach: --git-private %s, or git_private in firebreak.yaml", h.WithPort(port))
		}
		return e.WithHint("such addresses are never fetched from")
	case errors.As(err, &typed):
		return typed
	case errors.Is(err, errTooLarge):
		return s.errorf(sandbox.KindTooLarge, "the server answers with more than %s", sandbox.FormatSize(s.limits.answer))
	case errors.As(err, &odd):
		return s.errorf(sandbox.KindDenied, "%w", odd)
	case errors.As(err, &dns):
		return s.errorf(sandbox.KindUnavailable, "%s cannot be resolved", strings.TrimSuffix(dns.Name, ".")).WithHint("see that the name is right, and that this machine resolves names; proxies are not used")
	case errors.As(err, &cert):
		return s.errorf(sandbox.KindDenied, "%w", cert).WithHint("only servers whose certificates this machine trusts are fetched from")
	case errors.As(err, &timeout) && timeout.Timeout():
		return s.errorf(sandbox.KindTimeout, "the server does not answer").WithHint("see that this machine reaches it; proxies are not used")
	}
	var u *url.Error
	if errors.As(err, &u) { // it has the URL once more
		err = u.Err
	}
	return s.errorf(sandbox.KindUnavailable, "%w", err).WithHint("see that this machine reaches it; proxies are not used")
}
