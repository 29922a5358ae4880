package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Never turns a timeout off, where zero would mean the server's default.
const Never time.Duration = -1

// CreateOptions says what sandbox to make. The zero value is the server's
// default for everything.
type CreateOptions struct {
	Name         string // unique among the tenant's live sandboxes
	Template     string // a name or digest; default "host"
	Backend      string // default "auto": the strongest that works
	MinIsolation string // refuse anything weaker
	Language     string // what runs Command.Code that names none: python, node, shell

	// Limits. A limit set here is demanded: a backend that cannot enforce it
	// refuses. Zero is the server's default.
	Memory int64 // bytes
	CPUs   float64
	PIDs   int64
	Disk   int64 // bytes

	Timeout     time.Duration // end it this long after its creation; Never
	IdleTimeout time.Duration // end it after this long unused; Never
	IdleAction  string        // what happens then: destroy; event, which only says so; pause

	// ExpireAction is what happens after Timeout: destroy; pause, which keeps it for 30
	// days and gives it its time again when it goes on.
	ExpireAction string
	Wake         string // what makes it go on when paused: use; resume, nothing but Resume

	Env          map[string]string // of every process in it
	Metadata     map[string]string // labels; List filters on them
	Tier         string            // L0 to L5
	Hostname     string
	ReadonlyRoot bool
	AcceptWeaker bool // run even if a limit set above cannot be enforced; audited

	// IdempotencyKey makes a repeated Create return the first one's sandbox.
	IdempotencyKey string
	// Snapshot, by id or name, is what the sandbox goes on from: its template, limits,
	// files, memory and programs. What is set beside has to be the same; Network and
	// Bindings, if any of the two is set, take the place of those that were saved.
	Snapshot string
	// Network is where the sandbox may connect; nil: it has no network device.
	Network *Network
	// Bindings are what the sandbox's requests may be made through, by name: it finds
	// each at http://NAME.binding.internal.
	Bindings []string
}

func (o CreateOptions) request() *v1.CreateSandboxRequest {
	r := &v1.CreateSandboxRequest{
		Name: o.Name, Template: o.Template, Backend: o.Backend, MinIsolation: o.MinIsolation,
		LanguagePack: o.Language, Env: o.Env, Metadata: o.Metadata, Tier: o.Tier, Hostname: o.Hostname,
		ReadonlyRoot: o.ReadonlyRoot, AcceptWeaker: o.AcceptWeaker,
		TimeoutMs: millis(o.Timeout), IdleTimeoutMs: millis(o.IdleTimeout), IdleAction: o.IdleAction,
		ExpireAction: o.ExpireAction, Wake: o.Wake,
		Network: o.Network.rules(), Bindings: o.Bindings, Snapshot: o.Snapshot,
	}
	l := &v1.Limits{
		MemoryBytes: optional(o.Memory), Cpus: optional(o.CPUs), Pids: optional(o.PIDs), DiskBytes: optional(o.Disk),
	}
	if l.MemoryBytes != nil || l.Cpus != nil || l.Pids != nil || l.DiskBytes != nil {
		r.Limits = l
	}
	return r
}

func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// millis maps a duration to the wire: zero is left out (the server's default),
// Never is 0. A positive one under a millisecond becomes one, because 0 would
// mean the opposite.
func millis(d time.Duration) *int64 {
	var ms int64
	switch {
	case d == 0:
		return nil
	case d > 0:
		ms = max(d.Milliseconds(), 1)
	}
	return &ms
}

// Sandbox is a handle on one sandbox. Making one costs nothing.
type Sandbox struct {
	c    *Client
	id   string
	info *v1.Sandbox // as of its creation, or nil
}

// ID returns the id, or the name the handle was made with.
func (s *Sandbox) ID() string { return s.id }

// Created returns what Create answered; nil on a handle from Client.Sandbox.
func (s *Sandbox) Created() *v1.Sandbox { return s.info }

// Create makes a sandbox and returns once it is ready to exec.
//
// Errors: KindInvalid, KindUnsupported (a limit or isolation that cannot be
// had), KindCapacity (with RetryAfter), KindExists (the name), KindConflict
// (the idempotency key with another body), KindNotFound (the template, a binding).
func (c *Client) Create(ctx context.Context, o CreateOptions) (*Sandbox, error) {
	req := connect.NewRequest(o.request())
	if o.IdempotencyKey != "" {
		req.Header().Set("Idempotency-Key", o.IdempotencyKey)
	}
	res, err := c.sandboxes.CreateSandbox(ctx, req)
	if err != nil {
		return nil, err
	}
	return &Sandbox{c: c, id: res.Msg.GetId(), info: res.Msg}, nil
}

// Sandbox returns a handle on the sandbox with this id or name without asking
// the server.
func (c *Client) Sandbox(id string) *Sandbox { return &Sandbox{c: c, id: id} }

// Info reports the sandbox, also after its end. Errors: KindNotFound.
func (s *Sandbox) Info(ctx context.Context) (*v1.Sandbox, error) {
	res, err := s.c.sandboxes.GetSandbox(ctx, connect.NewRequest(&v1.GetSandboxRequest{Id: s.id}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// Metrics returns what the sandbox used over its life, at most 240 moments of
// it, also after its end; between start and end where those are not zero.
// Errors: KindNotFound.
func (s *Sandbox) Metrics(ctx context.Context, start, end time.Time) (*v1.SandboxMetrics, error) {
	req := &v1.GetMetricsRequest{Id: s.id}
	if !start.IsZero() {
		req.Start = timestamppb.New(start)
	}
	if !end.IsZero() {
		req.End = timestamppb.New(end)
	}
	res, err := s.c.sandboxes.GetMetrics(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// Destroy ends the sandbox and returns what was owned and removed. It is
// idempotent: later calls give the same receipt. Errors: KindNotFound.
func (s *Sandbox) Destroy(ctx context.Context) (*v1.DestroySandboxResponse, error) {
	res, err := s.c.sandboxes.DestroySandbox(ctx, connect.NewRequest(&v1.DestroySandboxRequest{Id: s.id}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// SetTimeout moves the sandbox's end to d from now; Never removes it. With
// extendOnly it never moves closer. Errors: KindInvalid for a d of 0, KindGone,
// KindNotFound.
func (s *Sandbox) SetTimeout(ctx context.Context, d time.Duration, extendOnly bool) (*v1.Sandbox, error) {
	req := &v1.SetTimeoutRequest{Id: s.id, TimeoutMs: millis(d), ExtendOnly: extendOnly}
	res, err := s.c.sandboxes.SetTimeout(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// ListOptions selects sandboxes.
type ListOptions struct {
	State    string            // creating, running, paused, stopping, ended, all; empty: all but ended
	Metadata map[string]string // every pair must match
}

// List iterates over the caller's sandboxes, newest first, fetching pages as
// it goes. An error ends the iteration.
func (c *Client) List(ctx context.Context, o ListOptions) iter.Seq2[*v1.Sandbox, error] {
	return func(yield func(*v1.Sandbox, error) bool) {
		req := &v1.ListSandboxesRequest{State: o.State, Metadata: o.Metadata, PageSize: 100}
		for {
			res, err := c.sandboxes.ListSandboxes(ctx, connect.NewRequest(req))
			if err != nil {
				yield(nil, err)
				return
			}
			for _, sb := range res.Msg.GetSandboxes() {
				if !yield(sb, nil) {
					return
				}
			}
			if req.PageToken = res.Msg.GetNextPageToken(); req.PageToken == "" {
				return
			}
		}
	}
}

// WatchOptions says which events to see.
type WatchOptions struct {
	After    int64 // last event already seen
	NoFollow bool  // stop at the present
}

// Events replays the sandbox's events after o.After and follows them until the
// sandbox has ended. A broken connection is taken up again where it broke. An
// error ends the iteration.
func (s *Sandbox) Events(ctx context.Context, o WatchOptions) iter.Seq2[*v1.Event, error] {
	return follow(ctx, o.After, func(ctx context.Context, after int64) (stream[v1.Event], error) {
		return s.c.sandboxes.WatchEvents(ctx, connect.NewRequest(&v1.WatchEventsRequest{Id: s.id, AfterId: after, NoFollow: o.NoFollow}))
	})
}

// stream is what *connect.ServerStreamForClient offers.
type stream[T any] interface {
	Receive() bool
	Msg() *T
	Err() error
	Close() error
}

// numbered is a message of a stream that can be taken up behind it.
type numbered[T any] interface {
	*T
	GetId() int64
}

const (
	resumeTries = 8 // without a single event in between
	resumeFirst = 100 * time.Millisecond
	resumeMax   = 5 * time.Second
)

// follow iterates over events, reopening the stream after the last id seen when
// the connection breaks.
func follow[T any, P numbered[T]](ctx context.Context, after int64, open func(context.Context, int64) (stream[T], error)) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		wait := resumeFirst
		for try := 0; ; try++ {
			last := after
			more, err := followOnce[T, P](ctx, &after, open, yield)
			switch {
			case !more || err == nil:
				return
			case after > last:
				try, wait = 0, resumeFirst
			}
			if ctx.Err() != nil || try >= resumeTries || !broken(err) {
				yield(nil, err)
				return
			}
			select {
			case <-ctx.Done():
				yield(nil, sandbox.Wrap("watch", "", context.Cause(ctx)))
				return
			case <-time.After(wait):
				wait = min(2*wait, resumeMax)
			}
		}
	}
}

// followOnce reads one stream to its end. more is false once yield wants no
// more.
func followOnce[T any, P numbered[T]](ctx context.Context, after *int64, open func(context.Context, int64) (stream[T], error), yield func(*T, error) bool) (more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := open(ctx, *after)
	if err != nil {
		return true, fromConnect(ctx, err)
	}
	defer func() {
		cancel() // Close would otherwise read a followed stream to its end
		_ = st.Close()
	}()
	for st.Receive() {
		e := st.Msg()
		id := P(e).GetId()
		if id != 0 && id <= *after {
			continue // seen before the connection broke
		}
		if id != 0 {
			*after = id
		}
		if !yield(e, nil) {
			return false, nil
		}
	}
	return true, fromConnect(ctx, st.Err())
}

// broken reports whether err says that the connection, not the request, failed.
func broken(err error) bool {
	k := sandbox.KindOf(err)
	return k == sandbox.KindUnavailable || errors.Is(err, io.ErrUnexpectedEOF)
}

// Bytes returns the output an event or exec carries.
func eventBytes(text string, data []byte) []byte {
	if len(data) > 0 {
		return data
	}
	return []byte(text)
}
