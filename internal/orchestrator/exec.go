package orchestrator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ExecRequest names code or a command.
type ExecRequest struct {
	Code    *string // source text for Pack
	Command *string // a program, with Args
	Args    []string
	Pack    string // default the sandbox's
	Dir     string // default the user's home; for a command, what its image says
	Env     map[string]string
	Stdin   io.Reader // nil: end of file at once. Not with Open or PTY
	Open    bool      // keep its standard input open for WriteStdin
	// A terminal for all three standard streams; what it shows goes to Sink.Stdout.
	// What is typed comes by WriteStdin. nil: none.
	PTY     *guest.Size
	User    string // default "user"
	Timeout *time.Duration

	ofRun  bool // admitted with its run
	driver bool // start what keeps Pack's interpreter warm
}

// Sink takes what a process produces, as it comes. Its methods are called from
// the goroutine that called Exec. One that is slow slows the process, by the window of its output,
// and nobody else; one that fails kills it. Data must not be changed; it ends
// between characters where it is UTF-8. id is that of the sandbox's event with
// the same content, or 0 where there is none: who follows the events after it
// misses nothing and gets nothing twice.
type Sink interface {
	Started(pid int, id uint64) error
	Stdout(data []byte, id uint64) error
	Stderr(data []byte, id uint64) error
}

// witness is a Sink that must know how the process ended before anybody else
// is told.
type witness interface {
	Ended(ExecExit) error
}

// ExecExit is how a process ended.
type ExecExit struct {
	// Code is the program's own; 124 after its deadline, 137 when another
	// limit, or the end of the sandbox, killed it.
	Code     int            `json:"code"`
	Reason   sandbox.Reason `json:"reason"`
	Detail   string         `json:"detail,omitempty"`
	Duration time.Duration  `json:"duration"`
	// Result is what the program reported, as valid JSON, or nil. ResultError
	// says why something that was reported is not here.
	Result      json.RawMessage `json:"result,omitempty"`
	ResultError string          `json:"result_error,omitempty"`
	Event       uint64          `json:"-"` // the id of its event; 0 if there is none
}

// The exit codes of killed programs, as the shell and timeout(1) have them.
const (
	exitTimeout = 124
	exitKilled  = 137
)

// Exec runs a process to its end and returns how it ended: also by a limit, and
// by the end of the sandbox itself. When ctx ends, or the sink fails, the
// process is killed: nobody is there to use its result. When ctx ends because
// this server stops (its cause is KindUnavailable), or this server is killed,
// the process runs on, and the next server follows it from the first byte that
// is not yet among the sandbox's events.
//
// A connection to the agent that breaks is made again, and the process goes on
// as if nothing had been.
//
// Errors: KindNotFound, KindGone, KindInvalid (pack, arguments), KindNotFound
// (program, directory, user), KindCapacity, ctx's, the sink's; KindUnavailable
// when the connection to the agent broke before the program ran.
//
// Cost: one disk flush (the evidence), two round trips, a small file, and what
// fork and exec cost inside.
func (o *Orchestrator) Exec(ctx context.Context, who Caller, ref string, req ExecRequest, sink Sink) (ExecExit, error) {
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return ExecExit{}, err
	}
	defer done()
	free, err := o.admitExec(who.Tenant, req.ofRun)
	if err != nil {
		return ExecExit{}, err
	}
	defer free()
	return l.exec(ctx, who, req, sink)
}

func (l *live) exec(ctx context.Context, who Caller, req ExecRequest, sink Sink) (ExecExit, error) {
	x := l.execution(who, sink, &entry{})
	if err := l.prepare(ctx, req, x); err != nil {
		return ExecExit{}, err
	}
	return x.run(ctx)
}

// prepare checks, records and starts a program. On an error nothing of it runs.
func (l *live) prepare(ctx context.Context, req ExecRequest, x *execution) error {
	l.mu.Lock()
	det := l.sb.Details
	l.mu.Unlock()
	p, err := req.program(det)
	if err == nil {
		err = l.o.checkUser(req.User)
	}
	if err == nil {
		err = req.checkInput()
	}
	if err != nil {
		return sandbox.Wrap("exec", string(l.id), err)
	}
	started, err := l.o.startTurn(ctx, l.tenant, req.ofRun)
	if err != nil {
		return err
	}
	defer started()
	e := x.entry
	e.Run, e.User, e.Dir, e.Timeout, e.PTY = det.Run, req.User, p.dir, given(req.Timeout, l.o.Defaults.ExecTimeout), req.PTY
	r := execRecord(req, p, e)
	e.Program = r.Object
	if req.driver {
		e.Program = p.pack
	}
	if err := l.record(ctx, x.who, r); err != nil {
		return err
	}
	failpoint.Hit("exec/after-evidence")
	x.stdin = req.Stdin
	if req.grows() {
		in, err := l.o.journal.input(l.id)
		if err != nil {
			return sandbox.Wrap("exec", string(l.id), err)
		}
		x.stdin = in
	}
	err = x.begin(ctx, req, p)
	if in, ok := x.stdin.(*input); ok && err != nil {
		l.o.journal.drop(in)
	}
	return err
}

// grows reports whether the standard input is written by WriteStdin.
func (req ExecRequest) grows() bool { return req.Open || req.PTY != nil }

func (req ExecRequest) checkInput() error {
	if req.PTY == nil {
		return nil
	}
	if req.Stdin != nil {
		return sandbox.Errorf("exec", sandbox.KindInvalid, "a program with a terminal takes no standard input when it starts").
			WithHint("write it to the process once that has started")
	}
	return req.PTY.Check()
}

// startError is fileError for a program that did not start.
func (l *live) startError(s *guest.Session, err error) error {
	err = l.settle(s, err)
	e, ok := err.(*sandbox.Error)
	if !ok {
		return err
	}
	if e.ID == "" {
		e.ID = string(l.id)
	}
	if e.Hint != "" {
		return e
	}
	switch e.Kind {
	case sandbox.KindNotFound:
		e.Hint = "check the program, the working directory and the user; they must exist in the sandbox, not here"
	case sandbox.KindDenied:
		e.Hint = "the user must be allowed to execute it and to enter the working directory"
	case sandbox.KindCapacity:
		e.Hint = "limits.pids allows more tasks"
	}
	return e
}

// execRecord is the evidence of an exec: what was run by its digest only, since
// code and arguments may hold secrets.
func execRecord(req ExecRequest, p program, e *entry) sandbox.Record {
	r := sandbox.Record{Action: "process.exec", Outcome: sandbox.OutcomeAllowed, Detail: map[string]string{"timeout": e.Timeout.String()}}
	if e.Background {
		r.Detail["background"] = "true"
	}
	if e.Tag != "" {
		r.Detail["tag"] = clip(e.Tag)
	}
	h := sha256.New()
	switch {
	case req.driver:
		r.Action, r.Object = "context.create", e.Context.ID
		r.Detail = contextDetail(req, p, e)
		return r
	case req.Code != nil:
		r.Object = p.pack
		io.WriteString(h, *req.Code)
	default:
		r.Object = clip(*req.Command)
		for _, arg := range append([]string{*req.Command}, req.Args...) { // as in /proc/PID/cmdline
			io.WriteString(h, arg+"\x00")
		}
	}
	r.Digest = hex.EncodeToString(h.Sum(nil))
	if req.User != "" {
		r.Detail["user"] = clip(req.User)
	}
	r.Detail["args"] = strconv.Itoa(len(req.Args))
	if req.PTY != nil {
		r.Detail["terminal"] = sizeText(*req.PTY)
	}
	switch in, ok := req.Stdin.(inMemory); {
	case req.grows(): // each piece is a record of its own
		r.Detail["stdin"] = "open"
	case ok:
		h.Reset()
		n, err := io.Copy(h, io.NewSectionReader(in, 0, in.Size()))
		if err == nil { // memory does not fail
			r.Detail["stdin"], r.Detail["stdin_bytes"] = hex.EncodeToString(h.Sum(nil)), strconv.FormatInt(n, 10)
		}
	case req.Stdin != nil:
		r.Detail["stdin"] = "live"
	}
	return r
}

// digestOf is the SHA-256 of content that is itself left out of the evidence.
func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func (l *live) placeCode(ctx context.Context, s *guest.Session, req ExecRequest, p program) error {
	if err := s.Mkdir(ctx, p.dir, req.User, 0o700, false); err != nil {
		return err
	}
	_, err := s.WriteFile(ctx, p.path, bytes.NewReader([]byte(*req.Code)), guest.WriteOptions{User: req.User, Mode: 0o600})
	return err
}
