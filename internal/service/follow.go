package service

import (
	"context"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// RunProcess is StartProcess and, at once, everything the program prints: send
// gets started, then output, then exit, from the calling goroutine. Nothing is
// left out: a slow send slows the program. An error from send, or the end of ctx,
// leaves the program to itself.
//
// Errors: those of StartProcess, send's, ctx's; KindUnavailable when this server
// stops, and the program goes on.
func (s *Service) RunProcess(ctx context.Context, req *v1.StartProcessRequest, send func(*v1.ExecEvent) error) error {
	who, _, err := s.allow(ctx, "ProcessService.StartProcess")
	if err != nil {
		return err
	}
	x, err := startRequest(req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &following{ctx: ctx, out: make(chan *v1.ExecEvent), over: make(chan struct{})}
	f.stream = stream{f.pass, x.PTY != nil}
	x.Follower = f
	p, err := s.Orchestrator.StartProcess(ctx, who, req.GetId(), x)
	if err != nil {
		return err
	}
	event := &v1.ExecEvent{Event: &v1.ExecEvent_Started{Started: &v1.ProcessStarted{Pid: int64(p.PID)}}}
	for {
		if err := send(event); err != nil {
			return err
		}
		select {
		case event = <-f.out:
		case <-f.over: // after the last output was taken
			if f.err != nil {
				return f.err
			}
			return send(&v1.ExecEvent{Event: &v1.ExecEvent_Exit{Exit: toExit(f.exit)}})
		case <-ctx.Done():
			return sandbox.Wrap("follow", req.GetId(), context.Cause(ctx))
		}
	}
}

// following is the Follower of a caller. What it has taken may still be on its
// way to the caller: that is what makes a slow one slow the program.
type following struct {
	stream
	ctx  context.Context // of the caller
	out  chan *v1.ExecEvent
	over chan struct{}
	exit orchestrator.ExecExit // set before over is closed
	err  error                 // likewise
}

var _ orchestrator.Follower = (*following)(nil)

// Started implements orchestrator.Sink. Who follows knows it already.
func (f *following) Started(int, uint64) error { return nil }

func (f *following) pass(e *v1.ExecEvent) error {
	select {
	case f.out <- e:
		return nil
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
}

// Over implements orchestrator.Follower.
func (f *following) Over(exit orchestrator.ExecExit, err error) {
	f.exit, f.err = exit, err
	close(f.over)
}

// FollowProcess is StreamProcess for what a process prints from now on. One that
// has ended has nothing but its end.
func (s *Service) FollowProcess(ctx context.Context, req *v1.StreamProcessRequest, send func(*v1.Event) error) error {
	who, _, err := s.allow(ctx, "ProcessService.StreamProcess")
	if err != nil {
		return err
	}
	sb, err := s.Orchestrator.Get(ctx, who.Tenant, req.GetId())
	if err != nil {
		return err
	}
	last, err := s.Events.Last(sb.ID)
	if err != nil {
		return err
	}
	// Its end may be among the events already, and not yet be known otherwise: so
	// they are read from its beginning.
	return s.StreamProcess(ctx, req, func(e *v1.Event) error {
		if e.GetId() <= int64(last) && e.GetType() != "exit" {
			return nil
		}
		return send(e)
	})
}
