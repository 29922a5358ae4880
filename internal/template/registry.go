package template

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// registry fetches one image.
type registry struct {
	ref    name.Reference
	puller *remote.Puller
	guard  *guard
	http   *http.Transport
}

// How long a registry may be silent, how often it is asked again and how large
// what describes an image may be. The last two are variables for tests.
const (
	silence     = 30 * time.Second
	maxManifest = 4 << 20
	maxConfig   = 4 << 20
	attempts    = 3
)

var backoff = remote.Backoff{Duration: time.Second, Factor: 3, Jitter: 0.1, Steps: attempts}

// openRegistry prepares to fetch ref; nothing is dialled yet.
func openRegistry(ref name.Reference, o Registries) (*registry, error) {
	keys, err := loadCredentials(o.AuthFile)
	if err != nil {
		return nil, err
	}
	g := newGuard(o)
	t := &http.Transport{
		DialContext: g.dial, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: silence,
		IdleConnTimeout: silence, MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
		// No proxy: it would dial for us, and look at no address.
	}
	r := &registry{ref: ref, guard: g, http: t}
	r.puller, err = remote.NewPuller(remote.WithTransport(&careful{inner: t, registries: o, host: ref.Context().RegistryStr()}),
		remote.WithAuthFromKeychain(keys), remote.WithRetryBackoff(backoff), remote.WithUserAgent("firebreak"))
	return r, err
}

func (r *registry) close() { r.http.CloseIdleConnections() }

// head asks for the digest the reference stands for now; empty when the
// registry does not tell without the whole manifest.
func (r *registry) head(ctx context.Context) string {
	if d, ok := r.ref.(name.Digest); ok {
		return d.DigestStr()
	}
	d, err := r.puller.Head(ctx, r.ref)
	if err != nil || d.Digest.Algorithm != "sha256" {
		return ""
	}
	return d.Digest.String()
}

// manifest fetches the manifest called id: a tag, a digest, or empty for what
// the reference says. A digest has been checked.
func (r *registry) manifest(ctx context.Context, id string) (raw []byte, digest string, err error) {
	ref := r.ref
	if id != "" {
		ref = r.ref.Context().Digest(id)
	}
	d, err := r.puller.Get(context.WithValue(ctx, bodyLimit{}, int64(maxManifest)), ref)
	if err != nil {
		return nil, "", r.explain(ctx, err)
	}
	if !reDigest.MatchString(d.Digest.String()) {
		return nil, "", refuse(sandbox.KindUnsupported, "the digest %s", clip(d.Digest.String())).WithHint("only sha256 is understood")
	}
	return d.Manifest, d.Digest.String(), nil
}

// blob fetches a blob into w, several times if the connection breaks. What
// arrives is the caller's to check.
func (r *registry) blob(ctx context.Context, digest string, w *blobWriter) error {
	wait := backoff.Duration
	for try := 1; ; try++ {
		err := r.blobOnce(ctx, digest, w)
		var e *sandbox.Error
		if err == nil || errors.As(err, &e) && e.Kind != sandbox.KindUnavailable || try == attempts || ctx.Err() != nil || r.guard.refusal() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = time.Duration(float64(wait) * backoff.Factor)
		if err := w.rewind(); err != nil {
			return err
		}
	}
}

func (r *registry) blobOnce(ctx context.Context, digest string, w *blobWriter) error {
	l, err := r.puller.Layer(ctx, r.ref.Context().Digest(digest))
	if err != nil {
		return r.explain(ctx, err)
	}
	body, err := l.Compressed()
	if err != nil {
		return r.explain(ctx, err)
	}
	defer body.Close() // its error says nothing that reading did not
	_, err = io.Copy(w, source{body})
	var broken sourceError
	if errors.As(err, &broken) { // theirs, not our disk's
		return r.explain(ctx, broken.error)
	}
	return err
}

// source marks errors as those of the reader, in a copy that has two ends.
type source struct{ io.Reader }

type sourceError struct{ error }

// Read implements io.Reader.
func (s source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = sourceError{err}
	}
	return n, err
}

// explain says what an error of the registry means to whoever asked.
func (r *registry) explain(ctx context.Context, err error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.guard.refusal(); err != nil {
		return err
	}
	var e *sandbox.Error
	if errors.As(err, &e) {
		return e
	}
	host := r.ref.Context().RegistryStr()
	fail := func(k sandbox.Kind, hint, what string) error {
		return sandbox.Errorf(opBuild, k, "%s: %s", clip(r.ref.Name()), what).WithHint("%s", hint)
	}
	var status *transport.Error
	if errors.As(err, &status) {
		switch status.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fail(sandbox.KindDenied, "it may not exist, or need credentials in the server's registry_auth_file", "the registry refuses it")
		case http.StatusNotFound:
			return fail(sandbox.KindNotFound, "check the name and the tag", "the registry has no such image")
		case http.StatusTooManyRequests:
			return fail(sandbox.KindCapacity, "try again later, or with credentials in registry_auth_file", "the registry wants fewer requests")
		}
		return fail(sandbox.KindUnavailable, "try again; ask the operator of the registry", "the registry answers "+http.StatusText(status.StatusCode))
	}
	// The library's types for these are its own.
	if strings.Contains(err.Error(), "does not match requested digest") || strings.Contains(err.Error(), "error verifying") {
		return fail(sandbox.KindDenied, "no sound registry does this; do not use it", "what the registry sent is not what the digest says")
	}
	return fail(sandbox.KindUnavailable, "see that this machine reaches "+clip(host)+" by https, or name it in registry_insecure", clip(err.Error()))
}

// bodyLimit is the context key of how long an answer may be.
type bodyLimit struct{}

// careful is what every request passes, redirects and requests for tokens
// included: TLS where it is due, credentials only where they belong, no answer
// that is endless or stalls.
type careful struct {
	inner      http.RoundTripper
	registries Registries
	host       string
}

// RoundTrip implements http.RoundTripper.
func (c *careful) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !c.registries.insecure(req.URL.Host) {
		return nil, sandbox.Errorf(opBuild, sandbox.KindDenied, "%s would be spoken to without TLS", clip(req.URL.Host)).
			WithHint("if that is meant, the operator names it in registry_insecure")
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	out := req.Clone(ctx)
	if req.Response != nil && req.URL.Host != c.host { // a redirect elsewhere
		out.Header.Del("Authorization")
	}
	res, err := c.inner.RoundTrip(out)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	b := &timedBody{ReadCloser: res.Body, cancel: cancel, left: -1}
	if n, ok := req.Context().Value(bodyLimit{}).(int64); ok {
		b.left = n
	}
	b.timer = time.AfterFunc(silence, func() { cancel(errSilent) })
	res.Body = b
	return res, nil
}

var errSilent = errors.New("the registry went silent")

// timedBody is an answer's body that ends when it stalls or is too long.
type timedBody struct {
	io.ReadCloser
	timer  *time.Timer
	cancel context.CancelCauseFunc
	left   int64 // negative: no limit
}

// Read implements io.Reader.
func (b *timedBody) Read(p []byte) (int, error) {
	b.timer.Reset(silence)
	n, err := b.ReadCloser.Read(p)
	if b.left >= 0 {
		if b.left -= int64(n); b.left < 0 {
			return 0, refuse(sandbox.KindTooLarge, "the registry's answer is larger than a description of an image can be")
		}
	}
	return n, err
}

// Close implements io.Closer.
func (b *timedBody) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
