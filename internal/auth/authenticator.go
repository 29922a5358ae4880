package auth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Options tunes an Authenticator; zero values are the defaults.
type Options struct {
	// CacheFor is how long a verified key is believed without asking the
	// store again; default 30 s. A key revoked through this Authenticator is
	// refused at once, its expiry is always checked.
	CacheFor time.Duration
	// TouchEvery is how often last-used times are written; default 1 min.
	TouchEvery time.Duration
	// UID is the daemon's own; zero: os.Getuid().
	UID int
}

// cacheEntries bounds the cache of verified keys.
const cacheEntries = 1024

// Authenticator turns credentials into principals. It is safe for concurrent
// use.
type Authenticator struct {
	st   *store.Store
	o    Options
	stop chan struct{}
	done chan struct{} // closed when the toucher has ended

	boot sync.Mutex // serialises Bootstrap

	mu     sync.Mutex
	keys   map[string]*verified // by key id; guarded by mu
	gen    uint64               // counts revocations; guarded by mu
	closed bool                 // guarded by mu
}

// verified is a key as the store had it.
type verified struct {
	p       Principal
	hash    [32]byte
	expires time.Time // the key's own; zero: never
	until   time.Time // of the cache
	used    time.Time // since last written; zero: not
}

// New returns an Authenticator over st, which must outlive it. Close stops its
// goroutine.
func New(st *store.Store, o Options) *Authenticator {
	if o.CacheFor <= 0 {
		o.CacheFor = 30 * time.Second
	}
	if o.TouchEvery <= 0 {
		o.TouchEvery = time.Minute
	}
	if o.UID == 0 {
		o.UID = os.Getuid()
	}
	a := &Authenticator{st: st, o: o, stop: make(chan struct{}), done: make(chan struct{}), keys: map[string]*verified{}}
	go a.touch()
	return a
}

// errKey is the one answer to every wrong key, so that it tells nothing about
// which keys exist.
func errKey() error {
	return sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "unknown, expired or revoked API key").
		WithHint("`firebreak key create` on the server makes a new one")
}

// Bearer authenticates an API key.
//
// Errors: KindUnauthenticated for a malformed, unknown, expired or revoked
// key; KindUnavailable when the store cannot be asked.
//
// Cost: about a microsecond for a key seen lately, else one read of the store.
func (a *Authenticator) Bearer(ctx context.Context, token string) (Principal, error) {
	id, secret, err := Parse(token)
	if err != nil {
		return Principal{}, err
	}
	hash, at := Hash(secret), time.Now()
	a.mu.Lock()
	v, gen := a.keys[id], a.gen
	if v != nil && at.Before(v.until) {
		defer a.mu.Unlock()
		return v.check(hash, at)
	}
	a.mu.Unlock()

	k, err := a.st.System().Key(ctx, id)
	switch {
	case sandbox.KindOf(err) == sandbox.KindNotFound:
		return Principal{}, errKey()
	case err != nil:
		return Principal{}, err
	case !k.Revoked.IsZero():
		return Principal{}, errKey()
	}
	v = &verified{p: principal(k), hash: k.Hash, expires: k.Expires, until: at.Add(a.o.CacheFor)}
	p, err := v.check(hash, at)
	if err != nil {
		return Principal{}, err
	}
	a.keep(id, v, gen)
	return p, nil
}

// check compares what was presented with the key. Preconditions: v is the
// caller's alone, or a.mu is held.
func (v *verified) check(hash [32]byte, at time.Time) (Principal, error) {
	if !same(v.hash, hash) || (!v.expires.IsZero() && !at.Before(v.expires)) {
		return Principal{}, errKey()
	}
	v.used = at
	return v.p, nil
}

// keep remembers a verified key, unless a key was revoked since it was read:
// it may be this one, so the next request asks the store again.
func (a *Authenticator) keep(id string, v *verified, gen uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gen != gen {
		return
	}
	if old := a.keys[id]; old != nil && old.used.After(v.used) {
		v.used = old.used
	}
	for victim := range a.keys { // any will do: at worst a last-used time is lost
		if len(a.keys) < cacheEntries {
			break
		}
		delete(a.keys, victim)
	}
	a.keys[id] = v
}

func principal(k store.Key) Principal {
	p := Principal{Tenant: k.Tenant, ID: k.ID, Role: Role(k.Role)}
	for _, s := range k.Scopes {
		p.Scopes = append(p.Scopes, Scope(s))
	}
	return p
}

// Peer authenticates the caller of the local socket by its uid: root and the
// daemon's own user own the default tenant. Errors: KindDenied for others.
func (a *Authenticator) Peer(uid int) (Principal, error) {
	if uid != 0 && uid != a.o.UID {
		return Principal{}, sandbox.Errorf("authenticate", sandbox.KindDenied, "uid %d may not use the local socket", uid).
			WithHint("run as root or as uid %d, or use an API key over TCP (FIREBREAK_URL, FIREBREAK_API_KEY)", a.o.UID)
	}
	return Principal{Tenant: sandbox.DefaultTenant, ID: fmt.Sprintf("uid:%d", uid), Role: Owner}, nil
}

// touch writes last-used times now and then.
func (a *Authenticator) touch() {
	defer close(a.done)
	t := time.NewTicker(a.o.TouchEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			// Nobody waits for these times; what fails is tried again
			// with the next ones, and Close reports.
			_ = a.writeUsed(context.Background())
		case <-a.stop:
			return
		}
	}
}

// writeUsed writes pending last-used times and forgets keys that the cache
// believes no more.
func (a *Authenticator) writeUsed(ctx context.Context) error {
	type use struct {
		tenant sandbox.TenantID
		id     string
		at     time.Time
	}
	var uses []use
	a.mu.Lock()
	for id, v := range a.keys {
		if !v.used.IsZero() {
			uses = append(uses, use{v.p.Tenant, id, v.used})
		} else if !time.Now().Before(v.until) {
			delete(a.keys, id)
		}
	}
	a.mu.Unlock()
	var errs []error
	for _, u := range uses {
		err := a.st.Tenant(u.tenant).TouchKey(ctx, u.id, u.at)
		if err != nil && sandbox.KindOf(err) != sandbox.KindNotFound {
			errs = append(errs, err)
			continue
		}
		a.mu.Lock()
		if v := a.keys[u.id]; v != nil && v.used.Equal(u.at) {
			v.used = time.Time{}
		}
		a.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Close stops the goroutine and writes pending last-used times. It is
// idempotent and comes before the store's own Close.
func (a *Authenticator) Close() error {
	a.mu.Lock()
	first := !a.closed
	a.closed = true
	a.mu.Unlock()
	if !first {
		<-a.done
		return nil
	}
	close(a.stop)
	<-a.done
	return a.writeUsed(context.Background())
}
