package store

import (
	"context"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Request describes an operation that is to happen once per key.
type Request struct {
	Key    string        // the caller's Idempotency-Key, 1 to 255 bytes
	Hash   [32]byte      // of the request's canonical form
	Result string        // id of what the operation is going to make
	TTL    time.Duration // how long the result is remembered; zero: 24 h
}

const (
	defaultTTL        = 24 * time.Hour
	maxIdempotencyKey = 255
)

// Reservation is the outcome of Reserve: the answer of an earlier request, or
// the sole right to carry out this one.
//
//	res, err := t.Reserve(ctx, store.Request{Key: key, Hash: hash, Result: string(id)})
//	if err != nil {
//		return err                    // KindConflict: another body, or still in progress
//	}
//	defer res.Release(ctx)                // forget the key unless completed
//	if res.Done() {
//		return t.Sandbox(ctx, sandbox.ID(res.Result())) // somebody did it before
//	}
//	if prev := res.Abandoned(); prev != "" {
//		…                             // a process that died had begun making prev
//	}
//	…                                     // make res.Result()
//	err = res.Complete(ctx)
//
// It is for use by one goroutine.
type Reservation struct {
	t         *Tenant
	req       Request
	result    string
	abandoned string
	done      bool
	settled   bool          // Complete was tried, or Release ran
	wake      chan struct{} // closed when settled; nil when done
}

// Done reports whether the operation had been completed before: Result is then
// its result, and there is nothing to do.
func (r *Reservation) Done() bool { return r.done }

// Result is the id of what was made, or of what the holder is to make.
func (r *Reservation) Result() string { return r.result }

// Abandoned is the id of what a holder that died, or whose Complete failed,
// was making under this key with the same request, or empty. It may exist in
// part, in whole or not at all; the key is this caller's now.
func (r *Reservation) Abandoned() string { return r.abandoned }

// inflight lets requests wait for the holder of their key in this process.
type inflight struct {
	mu   sync.Mutex
	done map[tenantKey]chan struct{} // guarded by mu; closed and removed when the holder settles
}

func (f *inflight) get(k tenantKey) chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done[k]
}

func (f *inflight) set(k tenantKey, ch chan struct{}) {
	f.mu.Lock()
	f.done[k] = ch
	f.mu.Unlock()
}

func (f *inflight) settle(k tenantKey, ch chan struct{}) {
	f.mu.Lock()
	if f.done[k] == ch {
		delete(f.done, k)
	}
	f.mu.Unlock()
	close(ch)
}

// Reserve claims req.Key for the tenant.
//
// Three things might happen: the key is new (or its holder failed, or has
// expired), and the caller holds it now; the same request was completed
// before, and the Reservation is Done; or it is being carried out at this
// moment, and Reserve waits until that has settled. A wait that meets ctx's
// deadline fails with KindConflict and a hint to retry; KindCanceled when the
// caller goes away. The same key with a different Hash is KindConflict at once.
//
// A key whose holder's process died is taken over: see Abandoned. The claim
// itself costs no flush: it is durable at the latest when the first durable
// write after it is.
func (t *Tenant) Reserve(ctx context.Context, req Request) (*Reservation, error) {
	const op = "reserve idempotency key"
	if len(req.Key) < 1 || len(req.Key) > maxIdempotencyKey {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "the idempotency key has %d bytes", len(req.Key)).
			WithHint("1 to %d bytes", maxIdempotencyKey)
	}
	if !t.id.Valid() {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "malformed tenant id %q", t.id)
	}
	if req.TTL <= 0 {
		req.TTL = defaultTTL
	}
	for {
		r := &Reservation{t: t, req: req, result: req.Result}
		var wait chan struct{}
		err := t.s.writer.do(ctx, false, func(x *txn) (err error) {
			wait, err = x.reserve(r)
			return err
		})
		if err != nil {
			r.giveUp()
			return nil, fail(op, "", err)
		}
		if wait == nil {
			failpoint.Hit("idempotency/after-reserve")
			return r, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, fail(op, "", ctx.Err())
			}
			return nil, sandbox.Errorf(op, sandbox.KindConflict, "a request with this idempotency key is still in progress").
				WithHint("repeat the request with the same key in a few seconds")
		}
	}
}

// reserve decides the outcome for r, or returns the channel to wait on.
func (x *txn) reserve(r *Reservation) (wait chan struct{}, err error) {
	t, s, hash := r.t, r.t.s, hex.EncodeToString(r.req.Hash[:])
	k := tenantKey{t.id, r.req.Key}
	var have struct {
		hash, result, owner string
		done, expires       int64
	}
	err = x.row([]any{&have.hash, &have.result, &have.owner, &have.done, &have.expires},
		`SELECT hash, result, owner, done, expires FROM idempotency WHERE tenant = ? AND name = ?`, string(t.id), r.req.Key)
	at := time.Now()
	holder := s.inflight.get(k)
	switch {
	case sandbox.KindOf(fail("", "", err)) == sandbox.KindNotFound:
	case err != nil:
		return nil, err
	case have.expires <= at.UnixNano() && holder == nil:
	case have.hash != hash:
		return nil, sandbox.Errorf("reserve idempotency key", sandbox.KindConflict,
			"the idempotency key was used for a different request").
			WithHint("use a new key for a new request, or repeat the first request unchanged")
	case have.done != 0:
		r.done, r.result = true, have.result
		return nil, nil
	case holder != nil:
		return holder, nil
	default:
		r.abandoned = have.result
	}
	if _, err = x.exec(`DELETE FROM idempotency WHERE tenant = ? AND name = ?`, string(t.id), r.req.Key); err != nil {
		return nil, err
	}
	if _, err = x.exec(`INSERT INTO idempotency (tenant, name, hash, result, owner, done, expires)
		VALUES (?, ?, ?, ?, ?, 0, ?)`, string(t.id), r.req.Key, hash, r.result, s.epoch,
		at.Add(r.req.TTL).UnixNano()); err != nil {
		return nil, err
	}
	r.wake = make(chan struct{})
	s.inflight.set(k, r.wake)
	return nil, nil
}

// giveUp wakes whoever waits for this holder.
func (r *Reservation) giveUp() {
	if r.wake != nil && !r.settled {
		r.t.s.inflight.settle(tenantKey{r.t.id, r.req.Key}, r.wake)
	}
	r.settled = true
}

// Complete records that the operation succeeded, for req.TTL from now. Release
// is then a no-op. It works even when ctx has ended. After an error the key is
// taken over by the next request, which sees the result as Abandoned.
func (r *Reservation) Complete(ctx context.Context) error {
	if r.done || r.settled {
		return nil
	}
	defer r.giveUp()
	failpoint.Hit("idempotency/before-complete")
	err := r.t.s.writer.do(context.WithoutCancel(ctx), false, func(x *txn) error {
		_, err := x.exec(`UPDATE idempotency SET done = 1, expires = ? WHERE tenant = ? AND name = ? AND owner = ?`,
			time.Now().Add(r.req.TTL).UnixNano(), string(r.t.id), r.req.Key, r.t.s.epoch)
		return err
	})
	failpoint.Hit("idempotency/after-complete")
	return fail("complete idempotency key", "", err)
}

// Release gives the key back after a failure, as if it had never been used. It
// is a no-op after Complete and on a Done reservation, and works even when ctx
// has ended.
func (r *Reservation) Release(ctx context.Context) error {
	if r.done || r.settled {
		return nil
	}
	defer r.giveUp()
	err := r.t.s.writer.do(context.WithoutCancel(ctx), false, func(x *txn) error {
		_, err := x.exec(`DELETE FROM idempotency WHERE tenant = ? AND name = ? AND owner = ? AND done = 0`,
			string(r.t.id), r.req.Key, r.t.s.epoch)
		return err
	})
	return fail("release idempotency key", "", err)
}
