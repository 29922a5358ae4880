package e2b

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/e2b/gen/process"
	"github.com/firebreak-dev/firebreak/internal/e2b/gen/process/processconnect"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxMessage bounds a message of envd's services: what a process can be given as
// input at once is more than any other.
const maxMessage = 8 << 20

// registerProcess enters the process service.
func (s *Server) registerProcess(mux *http.ServeMux) {
	path, h := processconnect.NewProcessHandler(processes{s}, s.rpcOptions()...)
	mux.Handle(path, h)
}

func (s *Server) rpcOptions() []connect.HandlerOption {
	return []connect.HandlerOption{connect.WithReadMaxBytes(maxMessage), connect.WithCompressMinBytes(4096)}
}

// processes is envd's process service.
type processes struct{ s *Server }

var _ processconnect.ProcessHandler = processes{}

// Start implements processconnect.ProcessHandler. The program is detached from
// the call, whose deadline is the program's.
func (p processes) Start(ctx context.Context, r *connect.Request[process.StartRequest], st *connect.ServerStream[process.StartResponse]) error {
	v, c := visitOf(ctx), r.Msg.GetProcess()
	timeout, err := deadlineOf(r.Header())
	if err != nil {
		return p.s.rpcError(ctx, err)
	}
	req := &v1.StartProcessRequest{Id: v.id, Command: proto.String(c.GetCmd()), Args: c.GetArgs(), Env: c.GetEnvs(), Cwd: homeless(c.GetCwd()),
		User: v.user, Tag: r.Msg.GetTag(), OpenStdin: r.Msg.Stdin == nil || r.Msg.GetStdin()}
	if r.Msg.GetPty() != nil { // its input is always open
		req.Pty, req.OpenStdin = terminal(r.Msg.GetPty()), false
	}
	if timeout > 0 {
		req.TimeoutMs = proto.Int64(timeout.Milliseconds())
	}
	if err := p.s.rules.Check(req); err != nil {
		return p.s.rpcError(ctx, err)
	}
	out := p.s.stream(r.Header(), func(e *process.ProcessEvent) error { return st.Send(&process.StartResponse{Event: e}) })
	defer out.stop()
	ctx, cancel := p.s.untilDrain(ctx)
	defer cancel()
	return p.s.rpcError(ctx, p.s.api.RunProcess(ctx, req, func(e *v1.ExecEvent) error {
		switch e := e.GetEvent().(type) {
		case *v1.ExecEvent_Started:
			return out.start(uint32(e.Started.GetPid()))
		case *v1.ExecEvent_Stdout:
			return out.send(stdout(outputOf(e.Stdout)))
		case *v1.ExecEvent_Stderr:
			return out.send(stderr(outputOf(e.Stderr)))
		case *v1.ExecEvent_Pty:
			return out.send(shown(outputOf(e.Pty)))
		case *v1.ExecEvent_Exit:
			return out.end(e.Exit.GetExitCode(), e.Exit.GetReason(), e.Exit.GetDetail())
		}
		return nil
	}))
}

// deadlineOf is the time a call may take, which the client sent: 0 is for ever.
func deadlineOf(h http.Header) (time.Duration, error) {
	text := h.Get("Connect-Timeout-Ms")
	if text == "" {
		return 0, nil
	}
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil || ms < 0 || ms > 10*365*24*3600*1000 {
		return 0, invalid("Connect-Timeout-Ms %.20q is no time", text)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// untilDrain is ctx until the server stops: programs go on, and clients connect
// again.
func (s *Server) untilDrain(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		select {
		case <-s.door.Draining():
			cancel(sandbox.Errorf("follow", sandbox.KindUnavailable, "the server is shutting down").WithHint("connect again in a moment"))
		case <-done:
		}
	}()
	return ctx, sync.OnceFunc(func() { close(done); cancel(nil) })
}

// Connect implements processconnect.ProcessHandler.
func (p processes) Connect(ctx context.Context, r *connect.Request[process.ConnectRequest], st *connect.ServerStream[process.ConnectResponse]) error {
	v := visitOf(ctx)
	who, err := selector(r.Msg.GetProcess())
	if err != nil {
		return p.s.rpcError(ctx, err)
	}
	found, err := p.find(ctx, who)
	if err != nil {
		return p.s.rpcError(ctx, err)
	}
	out := p.s.stream(r.Header(), func(e *process.ProcessEvent) error { return st.Send(&process.ConnectResponse{Event: e}) })
	defer out.stop()
	if err := out.start(uint32(found.GetPid())); err != nil {
		return err
	}
	ctx, cancel := p.s.untilDrain(ctx)
	defer cancel()
	err = p.s.api.FollowProcess(ctx, &v1.StreamProcessRequest{Id: v.id, Process: strconv.FormatInt(found.GetPid(), 10)}, func(e *v1.Event) error {
		switch e.GetType() {
		case "stdout":
			return out.send(stdout(eventBytes(e)))
		case "stderr":
			return out.send(stderr(eventBytes(e)))
		case "pty":
			return out.send(shown(eventBytes(e)))
		case "exit":
			return out.end(e.GetExitCode(), e.GetReason(), e.GetDetail())
		}
		return nil
	})
	return p.s.rpcError(ctx, err)
}

// find returns one process of the sandbox. Errors: KindNotFound.
func (p processes) find(ctx context.Context, which string) (*v1.Process, error) {
	all, err := p.s.api.ListProcesses(ctx, &v1.ListProcessesRequest{Id: visitOf(ctx).id})
	if err != nil {
		return nil, err
	}
	var found *v1.Process
	for _, one := range all.GetProcesses() { // ended ones first: what runs wins
		if strconv.FormatInt(one.GetPid(), 10) == which || one.GetTag() != "" && one.GetTag() == which {
			found = one
		}
	}
	if found == nil {
		return nil, sandbox.Errorf("find process", sandbox.KindNotFound, "no process %.40q", which)
	}
	return found, nil
}

// List implements processconnect.ProcessHandler. Arguments and environment are
// not kept: they may hold secrets.
func (p processes) List(ctx context.Context, _ *connect.Request[process.ListRequest]) (*connect.Response[process.ListResponse], error) {
	all, err := p.s.api.ListProcesses(ctx, &v1.ListProcessesRequest{Id: visitOf(ctx).id})
	if err != nil {
		return nil, p.s.rpcError(ctx, err)
	}
	out := &process.ListResponse{}
	for _, one := range all.GetProcesses() {
		if one.GetState() != "running" {
			continue
		}
		info := &process.ProcessInfo{Pid: uint32(one.GetPid()), Config: &process.ProcessConfig{Cmd: one.GetProgram()}}
		if one.GetTag() != "" {
			info.Tag = proto.String(one.GetTag())
		}
		out.Processes = append(out.Processes, info)
	}
	return connect.NewResponse(out), nil
}

// The size of a terminal where a client names none.
const (
	defaultCols = 80
	defaultRows = 24
)

func terminal(p *process.PTY) *v1.Pty {
	cols, rows := p.GetSize().GetCols(), p.GetSize().GetRows()
	if cols == 0 && rows == 0 {
		cols, rows = defaultCols, defaultRows
	}
	return &v1.Pty{Cols: int32(min(cols, 1<<30)), Rows: int32(min(rows, 1<<30))}
}

// Update implements processconnect.ProcessHandler.
func (p processes) Update(ctx context.Context, r *connect.Request[process.UpdateRequest]) (*connect.Response[process.UpdateResponse], error) {
	who, err := selector(r.Msg.GetProcess())
	if err == nil && r.Msg.GetPty() != nil {
		size := terminal(r.Msg.GetPty())
		_, err = checked(ctx, p.s, p.s.api.ResizeProcess, &v1.ResizeProcessRequest{Id: visitOf(ctx).id, Process: who, Cols: size.GetCols(), Rows: size.GetRows()})
	}
	return connect.NewResponse(&process.UpdateResponse{}), p.s.rpcError(ctx, err)
}

// SendInput implements processconnect.ProcessHandler.
func (p processes) SendInput(ctx context.Context, r *connect.Request[process.SendInputRequest]) (*connect.Response[process.SendInputResponse], error) {
	who, err := selector(r.Msg.GetProcess())
	if err == nil {
		err = p.input(ctx, who, r.Msg.GetInput(), false)
	}
	return connect.NewResponse(&process.SendInputResponse{}), p.s.rpcError(ctx, err)
}

// CloseStdin implements processconnect.ProcessHandler.
func (p processes) CloseStdin(ctx context.Context, r *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	who, err := selector(r.Msg.GetProcess())
	if err == nil {
		err = p.input(ctx, who, nil, true)
	}
	return connect.NewResponse(&process.CloseStdinResponse{}), p.s.rpcError(ctx, err)
}

// StreamInput implements processconnect.ProcessHandler.
func (p processes) StreamInput(ctx context.Context, st *connect.ClientStream[process.StreamInputRequest]) (*connect.Response[process.StreamInputResponse], error) {
	who := ""
	for st.Receive() {
		var err error
		switch e := st.Msg().GetEvent().(type) {
		case *process.StreamInputRequest_Start:
			who, err = selector(e.Start.GetProcess())
		case *process.StreamInputRequest_Data:
			if who == "" {
				err = invalid("the first message has to name the process")
			} else {
				err = p.input(ctx, who, e.Data.GetInput(), false)
			}
		}
		if err != nil {
			return nil, p.s.rpcError(ctx, err)
		}
	}
	return connect.NewResponse(&process.StreamInputResponse{}), st.Err()
}

// input writes to a process, or closes its standard input.
func (p processes) input(ctx context.Context, who string, in *process.ProcessInput, end bool) error {
	data := in.GetStdin()
	if typed, ok := in.GetInput().(*process.ProcessInput_Pty); ok {
		data = typed.Pty
	}
	_, err := checked(ctx, p.s, p.s.api.WriteStdin, &v1.WriteStdinRequest{Id: visitOf(ctx).id, Process: who, Data: data, Close: end})
	return err
}

// SendSignal implements processconnect.ProcessHandler.
func (p processes) SendSignal(ctx context.Context, r *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	who, err := selector(r.Msg.GetProcess())
	if sig := r.Msg.GetSignal(); err == nil && sig != process.Signal_SIGNAL_SIGTERM && sig != process.Signal_SIGNAL_SIGKILL {
		err = invalid("no signal %d", sig)
	}
	if err == nil {
		_, err = checked(ctx, p.s, p.s.api.SignalProcess, &v1.SignalProcessRequest{Id: visitOf(ctx).id, Process: who, Signal: strconv.Itoa(int(r.Msg.GetSignal()))})
	}
	return connect.NewResponse(&process.SendSignalResponse{}), p.s.rpcError(ctx, err)
}

// selector names a process as the service does.
func selector(sel *process.ProcessSelector) (string, error) {
	switch by := sel.GetSelector().(type) {
	case *process.ProcessSelector_Pid:
		return strconv.FormatUint(uint64(by.Pid), 10), nil
	case *process.ProcessSelector_Tag:
		if by.Tag != "" {
			return by.Tag, nil
		}
	}
	return "", invalid("a process is named by its pid or its tag")
}
