package e2b

import (
	"math"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// keptPaused is how long a paused sandbox waits for somebody to connect.
const keptPaused = 30 * 24 * time.Hour

// lifecycleRoutes are those that stop a sandbox and let it go on.
func (s *Server) lifecycleRoutes(mux *http.ServeMux) {
	for _, version := range []string{"", "/v2"} {
		mux.HandleFunc("POST "+version+"/sandboxes/{id}/connect", s.keyed(s.connect))
	}
	mux.HandleFunc("POST /sandboxes/{id}/pause", s.keyed(s.pause))
	mux.HandleFunc("POST /sandboxes/{id}/resume", s.keyed(s.resume))
	mux.HandleFunc("POST /sandboxes/{id}/fork", s.keyed(s.fork))
}

// atEnd sets what happens when a sandbox's time is over, and what wakes it.
func (c *createRequest) atEnd(req *v1.CreateSandboxRequest) {
	req.Wake = "resume" // E2B's default: what comes to a paused sandbox's address is lost
	if c.AutoResume != nil && c.AutoResume.Enabled {
		req.Wake = "use"
	}
	if c.AutoPause {
		req.ExpireAction = "pause"
	}
}

func toLifecycle(sb *v1.Sandbox) lifecycleDetail {
	d := lifecycleDetail{OnTimeout: "kill", AutoResume: sb.GetWake() == "use"}
	if sb.GetExpireAction() == "pause" {
		d.OnTimeout = "pause"
	}
	return d
}

// inTime reads a time in seconds; nil is the default.
func inTime(seconds *int64) (time.Duration, error) {
	switch {
	case seconds == nil:
		return defaultTimeout, nil
	case *seconds <= 0 || *seconds > math.MaxInt32:
		return 0, invalid("timeout %d is out of range", *seconds).WithHint("seconds, at least 1")
	}
	return time.Duration(*seconds) * time.Second, nil
}

// withMemory refuses what would lose a sandbox's memory: it is a reboot.
func withMemory(memory *bool) error {
	if memory != nil && !*memory {
		return notYet("saving or restoring a sandbox's files without its memory")
	}
	return nil
}

// pause keeps a sandbox until somebody connects. Its time stands still.
func (s *Server) pause(w http.ResponseWriter, r *http.Request) error {
	var c struct {
		Memory              *bool `json:"memory"`
		RequireHealthyGuest *bool `json:"requireHealthyGuest"` // as always here: its agent has to answer
	}
	if err := read(w, r, &c); err != nil {
		return err
	}
	if err := withMemory(c.Memory); err != nil {
		return err
	}
	sb, err := s.alive(r)
	if err != nil {
		return err
	}
	if sb.GetState() == "paused" { // to the clients a conflict means this, and nothing else
		return sandbox.Errorf("pause", sandbox.KindConflict, "the sandbox is paused already").WithID(sb.GetId())
	}
	_, err = checked(r.Context(), s, s.api.PauseSandbox, &v1.PauseSandboxRequest{Id: sb.GetId(), KeepMs: proto.Int64(keptPaused.Milliseconds())})
	if sandbox.KindOf(err) == sandbox.KindConflict {
		err = invalid("the sandbox cannot be paused: %s", explain(err))
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// connect hands out a sandbox, which runs then. It never takes time away from one: one
// that runs ends no earlier than it would have, one that was paused has its time anew.
func (s *Server) connect(w http.ResponseWriter, r *http.Request) error {
	var c struct {
		Timeout *int64 `json:"timeout"`
		Memory  *bool  `json:"memory"` // of one that is paused
	}
	if err := read(w, r, &c); err != nil {
		return err
	}
	timeout, err := inTime(c.Timeout)
	if err != nil {
		return err
	}
	sb, err := s.alive(r)
	if err != nil {
		return err
	}
	if sb.GetState() == "paused" {
		if err := withMemory(c.Memory); err != nil {
			return err
		}
		return s.goOn(w, r, timeout)
	}
	if sb, err = s.extend(r, int64(timeout/time.Second), true); err != nil {
		return err
	}
	if sb.GetState() == "paused" { // just now
		return s.goOn(w, r, timeout)
	}
	return s.handOut(w, r, sb, http.StatusOK)
}

// resume is connect as old clients call it for a sandbox that is paused.
func (s *Server) resume(w http.ResponseWriter, r *http.Request) error {
	var c struct {
		Timeout   *int64 `json:"timeout"`
		AutoPause *bool  `json:"autoPause"`
		Memory    *bool  `json:"memory"`
	}
	if err := read(w, r, &c); err != nil {
		return err
	}
	timeout, err := inTime(c.Timeout)
	if err == nil {
		err = withMemory(c.Memory)
	}
	if err != nil {
		return err
	}
	sb, err := s.alive(r)
	if err != nil {
		return err
	}
	switch {
	case sb.GetState() != "paused":
		return sandbox.Errorf("resume", sandbox.KindConflict, "the sandbox runs already").WithID(sb.GetId())
	case c.AutoPause != nil && *c.AutoPause != (sb.GetExpireAction() == "pause"):
		return notYet("changing what happens at the end of a sandbox's time")
	}
	return s.goOn(w, r, timeout)
}

// goOn resumes a paused sandbox, for a time from now.
func (s *Server) goOn(w http.ResponseWriter, r *http.Request, timeout time.Duration) error {
	sb, err := checked(r.Context(), s, s.api.ResumeSandbox, &v1.ResumeSandboxRequest{Id: r.PathValue("id"), TimeoutMs: proto.Int64(timeout.Milliseconds())})
	if err != nil {
		return err
	}
	return s.handOut(w, r, sb, http.StatusCreated)
}

// handOut answers how a sandbox is reached.
func (s *Server) handOut(w http.ResponseWriter, r *http.Request, sb *v1.Sandbox, status int) error {
	h, err := s.handle(r, sb)
	if err != nil {
		return err
	}
	answer(w, status, h)
	return nil
}

// forked is what became of one fork: a sandbox, or why there is none.
type forked struct {
	Sandbox *handle   `json:"sandbox,omitempty"`
	Error   *apiError `json:"error,omitempty"`
}

// fork makes sandboxes that go on where the one is now, which goes on itself.
func (s *Server) fork(w http.ResponseWriter, r *http.Request) error {
	c := struct {
		Timeout *int64 `json:"timeout"`
		Count   int32  `json:"count"`
	}{Count: 1}
	if err := read(w, r, &c); err != nil {
		return err
	}
	timeout, err := inTime(c.Timeout)
	if err != nil {
		return err
	}
	if c.Count < 1 {
		return invalid("count %d is out of range", c.Count).WithHint("1 or more")
	}
	sb, err := s.alive(r)
	if err != nil {
		return err
	}
	res, err := checked(r.Context(), s, s.api.ForkSandbox, &v1.ForkSandboxRequest{Id: sb.GetId(), Count: c.Count, TimeoutMs: proto.Int64(timeout.Milliseconds())})
	if err != nil {
		return err
	}
	out := []forked{}
	for _, child := range res.GetChildren() {
		one := forked{}
		if e := child.GetError(); e != nil {
			one.Error = &apiError{Code: codeOf(sandbox.Kind(e.GetKind())).http, Message: e.GetMessage()}
		} else if h, err := s.handle(r, child.GetSandbox()); err == nil {
			one.Sandbox = &h
		} else { // it has ended meanwhile, or its owner may not have it
			one.Error = &apiError{Code: codeOf(sandbox.KindOf(err)).http, Message: explain(err)}
		}
		out = append(out, one)
	}
	answer(w, http.StatusCreated, out)
	return nil
}

// sleeps answers for a sandbox that is paused, and that this request does not wake.
// What only asks whether it runs wakes none.
func (s *Server) sleeps(w http.ResponseWriter, id, path string) bool {
	paused, wakes := s.api.Asleep(id)
	if !paused || wakes && path != "/health" {
		return false
	}
	answer(w, http.StatusBadGateway, apiError{Code: http.StatusBadGateway, Message: "The sandbox is paused: connect resumes it", SandboxID: id})
	return true
}
