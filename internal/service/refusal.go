package service

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Refusal is a call that was refused because of who made it.
type Refusal struct {
	Method    string         // "SandboxService.Exec", or what a surface calls a route of its own
	Principal auth.Principal // zero: nobody knows who called
	Source    string         // where the call came from
	Key       string         // id of the key that was presented, if it was well-formed
	Err       error
}

// Refused records a refusal: "auth.failure" where the caller is not known, else
// the action the method would have recorded, denied.
//
// It never makes the caller wait for the disk for long, and a flood costs a
// bounded amount of it: beyond a burst refusals are counted and recorded
// together, once a minute and at Close. So are those that could not be recorded
// when they happened.
func (s *Service) Refused(ctx context.Context, r Refusal) {
	rec := sandbox.Record{Class: sandbox.Flow, Tenant: r.Principal.Tenant, Principal: r.Principal.ID, Outcome: sandbox.OutcomeDenied, Detail: map[string]string{}}
	var e *sandbox.Error
	if errors.As(r.Err, &e) {
		rec.Detail["why"] = clip(e.Message())
		if e.ID != "" {
			rec.Detail["id"] = clip(e.ID)
		}
	}
	if r.Principal.ID == "" {
		rec.Tenant, rec.Action, rec.Object = sandbox.DefaultTenant, "auth.failure", clip(r.Source)
		rec.Detail["method"] = r.Method
		if r.Key != "" {
			rec.Detail["key"] = r.Key
		}
	} else {
		rec.Action, rec.Object = s.access[r.Method].GetAction(), r.Method
		if rec.Action == "" {
			rec.Action = "api.refuse"
		}
	}
	s.refusals.add(ctx, rec)
}

// clip bounds a value of a record's detail.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 1000)], "\uFFFD") }

// refusalRate is how many refusals of one kind are recorded one by one.
type refusalRate struct{ burst, perSecond float64 }

// Whoever has a key is bounded by its rate of requests already.
var (
	strangerRate = refusalRate{burst: 100, perSecond: 0.1}
	knownRate    = refusalRate{burst: 1000, perSecond: 1}
)

const (
	countEvery   = time.Minute
	countSources = 16          // of an aggregate are named
	refusalWait  = time.Second // for a log that is slow
)

// refusals records refusals one by one as far as that is bounded, and the rest
// by number.
type refusals struct {
	to    sandbox.Recorder
	log   *slog.Logger
	every time.Duration

	flushing sync.Mutex // held while counts are recorded

	mu     sync.Mutex
	by     map[tallyKey]*tally // guarded by mu; as many as there are tenants, twice
	timer  *time.Timer         // guarded by mu; runs while something is counted
	closed bool                // guarded by mu
}

type tallyKey struct {
	tenant   sandbox.TenantID
	stranger bool
}

type tally struct {
	tokens  float64
	at      time.Time // when tokens was right
	count   int       // not recorded yet
	since   time.Time // of the first of them
	sources map[string]int
}

func newRefusals(to sandbox.Recorder, log *slog.Logger) *refusals {
	return &refusals{to: to, log: log, every: countEvery, by: map[tallyKey]*tally{}}
}

func (r *refusals) add(ctx context.Context, rec sandbox.Record) {
	if r.admit(rec) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refusalWait)
		defer cancel()
		if _, err := r.to.Record(ctx, rec); err == nil {
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold(rec)
}

// admit decides whether rec gets a record of its own.
func (r *refusals) admit(rec sandbox.Record) bool {
	rate := knownRate
	if stranger(rec) {
		rate = strangerRate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.of(rec, rate)
	now := time.Now()
	t.tokens = min(rate.burst, t.tokens+rate.perSecond*now.Sub(t.at).Seconds())
	t.at = now
	if t.tokens < 1 || r.closed {
		return false
	}
	t.tokens--
	return true
}

func stranger(rec sandbox.Record) bool { return rec.Action == "auth.failure" }

func (r *refusals) of(rec sandbox.Record, rate refusalRate) *tally {
	k := tallyKey{rec.Tenant, stranger(rec)}
	t := r.by[k]
	if t == nil {
		t = &tally{tokens: rate.burst, at: time.Now(), sources: map[string]int{}}
		r.by[k] = t
	}
	return t
}

// hold counts a refusal. Preconditions: r.mu is held.
func (r *refusals) hold(rec sandbox.Record) {
	t := r.of(rec, knownRate)
	if t.count == 0 {
		t.since = time.Now()
	}
	t.count++
	who := rec.Principal
	if stranger(rec) {
		who = rec.Object
	}
	if _, known := t.sources[who]; known || len(t.sources) < countSources {
		t.sources[who]++
	}
	r.arm()
}

// arm sees to it that what is counted gets recorded. Preconditions: r.mu is
// held.
func (r *refusals) arm() {
	if r.timer == nil && !r.closed {
		r.timer = time.AfterFunc(r.every, r.flush)
	}
}

// flush records what is counted. What cannot be recorded stays counted.
func (r *refusals) flush() {
	r.flushing.Lock()
	defer r.flushing.Unlock()
	r.mu.Lock()
	r.timer = nil
	taken := map[tallyKey]tally{}
	for k, t := range r.by {
		if t.count > 0 {
			taken[k] = *t
			t.count, t.sources = 0, map[string]int{}
		}
	}
	r.mu.Unlock()
	for k, t := range taken {
		ctx, cancel := context.WithTimeout(context.Background(), refusalWait)
		_, err := r.to.Record(ctx, aggregate(k, &t))
		cancel()
		if err != nil {
			r.log.Error("refused calls are counted and not yet recorded", "count", t.count, "error", err)
			r.restore(k, t)
		}
	}
}

// restore counts again what was taken.
func (r *refusals) restore(k tallyKey, old tally) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.by[k]
	t.count, t.since = t.count+old.count, old.since
	for s, n := range old.sources {
		t.sources[s] += n
	}
	r.arm()
}

// aggregate is the one record of what t counted.
func aggregate(k tallyKey, t *tally) sandbox.Record {
	rec := sandbox.Record{Class: sandbox.Flow, Tenant: k.tenant, Action: "api.refuse", Outcome: sandbox.OutcomeDenied,
		Detail: map[string]string{"count": strconv.Itoa(t.count), "since": t.since.UTC().Format(time.RFC3339Nano)}}
	if k.stranger {
		rec.Action = "auth.failure"
	}
	var named []string
	for _, s := range slices.Sorted(maps.Keys(t.sources)) {
		named = append(named, s+"="+strconv.Itoa(t.sources[s]))
	}
	rec.Detail["sources"] = clip(strings.Join(named, " "))
	return rec
}

// close records what is counted, for good.
func (r *refusals) close() {
	r.mu.Lock()
	r.closed = true
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
	r.flush()
}
