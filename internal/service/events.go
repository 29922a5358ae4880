package service

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// WatchEvents replays a sandbox's events after after_id and follows them until
// the sandbox has ended, or with no_follow up to now. send is called from the
// calling goroutine, as fast as it returns; where it was so slow that output was
// dropped meanwhile, it gets an event of type truncated.
func (s *Service) WatchEvents(ctx context.Context, req *v1.WatchEventsRequest, send func(*v1.Event) error) error {
	who, _, err := s.allow(ctx, "SandboxService.WatchEvents")
	if err != nil {
		return err
	}
	sb, err := s.Orchestrator.Get(ctx, who.Tenant, req.GetId())
	if err != nil {
		return err
	}
	defer s.Orchestrator.Keep(ctx, who.Tenant, string(sb.ID))() // being watched is being used
	return s.follow(ctx, sb.ID, req.GetAfterId(), req.GetNoFollow(), send)
}

// WatchRun replays and follows a run's events until it has ended and its record
// is final.
func (s *Service) WatchRun(ctx context.Context, req *v1.WatchRunRequest, send func(*v1.Event) error) error {
	who, _, err := s.allow(ctx, "RunService.WatchRun")
	if err != nil {
		return err
	}
	r, err := s.Orchestrator.GetRun(ctx, who.Tenant, req.GetId(), 0)
	if err != nil {
		return err
	}
	if err := s.follow(ctx, r.Sandbox, req.GetAfterId(), false, send); err != nil {
		return err
	}
	_, err = s.Orchestrator.GetRun(ctx, who.Tenant, req.GetId(), 10*time.Second)
	return err
}

// follow sends a sandbox's events; only those there are when present is set.
func (s *Service) follow(ctx context.Context, id sandbox.ID, after int64, present bool, send func(*v1.Event) error) error {
	sub, err := s.Events.Subscribe(ctx, id, uint64(max(0, after)))
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		var batch []*event.Event
		if present {
			batch, err = sub.Ready()
		} else {
			batch, err = sub.Next(ctx)
		}
		switch {
		case errors.Is(err, io.EOF) || err == nil && len(batch) == 0:
			return nil
		case err != nil:
			return sandbox.Wrap("watch", string(id), err)
		}
		for _, e := range batch {
			if err := send(toEvent(e)); err != nil {
				return err
			}
		}
	}
}

// toEvent converts one event. It looks at no other: an event keeps its id and
// its bytes wherever a reader begins.
func toEvent(e *event.Event) *v1.Event {
	out := &v1.Event{Id: int64(e.ID), Time: stamp(e.Time), Type: string(e.Type)}
	if pid, err := strconv.ParseInt(e.Process, 10, 64); err == nil {
		out.Pid = pid
	}
	switch e.Type {
	case event.Stdout, event.Stderr, event.PTY:
		if o := toOutput(e.Data); o != nil {
			out.Text, out.Data = o.GetText(), o.GetData()
		}
	case event.StateChange:
		var b orchestrator.StateEvent
		if json.Unmarshal(e.Data, &b) == nil {
			out.State, out.Reason, out.Detail = string(b.State), string(b.Reason), text(b.Detail)
		}
	case event.Exit, event.Limit:
		var b orchestrator.ExitEvent
		if json.Unmarshal(e.Data, &b) == nil {
			code := int32(b.Code)
			out.ExitCode, out.Reason, out.Detail = &code, string(b.Reason), text(b.Detail)
			if b.Duration > 0 {
				out.DurationMs = &b.Duration
			}
		}
	case event.Artifact:
		var b orchestrator.ArtifactEvent
		if json.Unmarshal(e.Data, &b) == nil {
			out.Text, out.Detail = text(b.Path), text(b.Error)
		}
	case event.Receipt:
		var b orchestrator.ReceiptEvent
		if json.Unmarshal(e.Data, &b) == nil {
			out.Detail = "clean"
			if !b.Clean {
				out.Detail = "not clean"
			}
		}
	case event.Egress:
		var b orchestrator.FlowEvent
		if json.Unmarshal(e.Data, &b) == nil {
			out.Egress, out.Reason, out.Detail = toFlow(&b), text(b.Reason), text(b.Hint)
		}
	case event.Started: // the process id says it all
	default: // result, truncated and what is to come: JSON or words
		out.Text = text(string(e.Data))
	}
	return out
}
