package orchestrator

import (
	"context"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Authorities is a Network that looks into TLS: each wire has an authority, which the
// programs of its sandbox are made to trust.
type Authorities interface {
	// Authority is the certificate, in PEM, of whom an instance's programs are to trust
	// as of the latest Open, Adopt or Update, and what OpenSSL calls its subject; empty
	// of a wire that nobody serves. It is cheap.
	Authority(id sandbox.InstanceID) (certificate, hash string, err error)
}

// trustWait bounds how long an agent may take to have an authority trusted. It is
// hostile: an update of the policy holds whatever it does.
const trustWait = 5 * time.Second

// trusts are the variables by which programs find whom they trust, where that is not
// in the files that they read by themselves, or might not be: a language's own list
// takes the place of the system's. True: of all there are, and not in addition.
var trusts = map[string]bool{
	"SSL_CERT_FILE": true, "CURL_CA_BUNDLE": true, "REQUESTS_CA_BUNDLE": true, "PIP_CERT": true, "GIT_SSL_CAINFO": true, "AWS_CA_BUNDLE": true,
	"CARGO_HTTP_CAINFO": true, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": true, "NODE_EXTRA_CA_CERTS": false, "DENO_CERT": false,
}

// trustEnv is what every program in a sandbox with a wire finds in its environment.
func (r *CreateRequest) trustEnv() map[string]string {
	if r.Network == nil {
		return nil
	}
	env := map[string]string{}
	for name, all := range trusts {
		file := guest.TrustFile
		if all {
			file = guest.TrustBundle
		}
		env[name] = guest.TrustDir(r.ReadonlyRoot) + "/" + file
	}
	return env
}

// trust makes the programs of the sandbox trust the authority of its wire, if it has
// one, as it is now. Idempotent.
func (l *live) trust(ctx context.Context, s *guest.Session) error {
	a, ok := l.o.Network.(Authorities)
	if !ok || l.network() == nil {
		return nil
	}
	l.trusting.Lock() // who comes later puts the later one there
	defer l.trusting.Unlock()
	certificate, hash, err := a.Authority(l.instance)
	if err != nil || certificate == "" {
		return err
	}
	l.mu.Lock()
	c := guest.TrustCall{Certificate: certificate, Link: hash, ReadOnly: l.sb.ReadonlyRoot}
	if home := l.sb.Details.Env["JAVA_HOME"]; home != "" {
		c.Java = []string{home}
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, trustWait)
	defer cancel()
	return s.Trust(ctx, c)
}

// trustAgain is trust for a sandbox that runs: what fails is in its report, until the
// next time.
func (l *live) trustAgain(ctx context.Context, s *guest.Session) {
	if l.network() == nil {
		return
	}
	err := l.trust(ctx, s)
	failpoint.Hit("network/after-trust")
	if err != nil {
		l.o.Log.Warn("programs of a sandbox may not trust its authority", "sandbox", l.id, "error", err)
	}
	l.distrust(err)
}

// distrust notes why programs may not trust the sandbox's authority; nil: they do.
func (l *live) distrust(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := *l.sb.Details.Network
	if n.Untrusted = ""; err != nil {
		n.Untrusted = clip("the sandbox's certificate is not in place: " + problem(err))
	}
	l.sb.Details.Network = &n
}

// trustNext has the authority of now trusted by the programs of a sandbox whose wire
// has been taken up or updated. Preconditions: l.wiring is held.
func (l *live) trustNext(ctx context.Context) {
	if _, ok := l.o.Network.(Authorities); !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, trustWait)
	defer cancel()
	s, err := l.session(ctx)
	if err != nil {
		l.distrust(err)
		return
	}
	l.trustAgain(ctx, s)
}
