package client

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Command is a program: Path with Args or, if Path is empty, Code in Language
// with Args.
type Command struct {
	Code     string
	Language string // python, node, shell; default the sandbox's, else python

	Path string // looked up in the guest's PATH
	Args []string

	Dir     string // working directory; default the user's home
	Env     map[string]string
	Stdin   []byte
	User    string        // default "user" (uid 1000)
	Timeout time.Duration // wall clock; zero the server's default, Never none

	// PTY gives it a terminal of that size instead of the three standard streams:
	// what that shows goes to stdout, what is typed comes by Process.Write. nil:
	// none.
	PTY *Size
}

// Size is the size of a terminal, in characters, each from 1 to 4096.
type Size struct{ Cols, Rows int }

func (s *Size) pty() *v1.Pty {
	if s == nil {
		return nil
	}
	return &v1.Pty{Cols: int32(s.Cols), Rows: int32(s.Rows)}
}

// Exit is how a program ended.
type Exit struct {
	// Code is the program's own; 124 after a timeout, 137 after another limit.
	Code     int
	Reason   sandbox.Reason // done, timeout, memory, …
	Detail   string         // the reason in words: "limit 64 MiB"
	Duration time.Duration
	// Result is the JSON that the program reported with firebreak.result; nil
	// if it did not.
	Result json.RawMessage
}

// Exec runs cmd to its end and copies what it prints to stdout and stderr as it
// comes; nil discards. A program that fails or is killed is an Exit, not an
// error. Ending ctx kills the program.
//
// Output is never dropped: a slow writer slows the program down. When the server
// is stopped or dies, the program runs on; Exec waits for the next one, for some
// fifteen seconds, and goes on where it was. From then on a slow writer may miss
// output, which is an error.
//
// Errors: those of the server (KindNotFound, KindGone, KindInvalid, …), of the
// writers, and KindUnavailable when the connection broke and could not be made
// again.
func (s *Sandbox) Exec(ctx context.Context, cmd Command, stdout, stderr io.Writer) (Exit, error) {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := s.c.sandboxes.Exec(ctx, connect.NewRequest(cmd.exec(s.id)))
	if err != nil {
		return Exit{}, fromConnect(ctx, err)
	}
	defer func() {
		cancel() // first: Close would otherwise wait for the program
		_ = st.Close()
	}()
	var pid, after int64
	for st.Receive() {
		switch e := st.Msg().GetEvent().(type) {
		case *v1.ExecEvent_Started:
			pid = e.Started.GetPid()
		case *v1.ExecEvent_Stdout:
			err = write(stdout, e.Stdout)
		case *v1.ExecEvent_Pty:
			err = write(stdout, e.Pty)
		case *v1.ExecEvent_Stderr:
			err = write(stderr, e.Stderr)
		case *v1.ExecEvent_Exit:
			return exitOf(e.Exit), nil
		}
		if err != nil {
			return Exit{}, sandbox.Wrap("exec", s.id, err)
		}
		after = max(after, st.Msg().GetId())
	}
	err = fromConnect(ctx, st.Err())
	switch {
	case after > 0 && (err == nil || broken(err)) && outer.Err() == nil:
		return s.follow(outer, pid, after, stdout, stderr, cmd.PTY != nil)
	case err != nil:
		return Exit{}, err
	}
	return Exit{}, sandbox.Errorf("exec", sandbox.KindUnavailable, "the server ended the stream before the program did").WithID(s.id)
}

// follow sees a program to its end by the sandbox's events after an id.
func (s *Sandbox) follow(ctx context.Context, pid, after int64, stdout, stderr io.Writer, lossy bool) (Exit, error) {
	exit, err := collect(s.Events(ctx, WatchOptions{After: after}), pid, stdout, stderr, lossy)
	if err != nil && sandbox.KindOf(err) != sandbox.KindGone {
		s.abandon(ctx, pid) // as the end of an unbroken stream would
	}
	return exit, sandbox.Wrap("exec", s.id, err)
}

// collect copies the output of a program from events, to its exit. Of a terminal,
// lossy, what was dropped has scrolled away.
func collect(events iter.Seq2[*v1.Event, error], pid int64, stdout, stderr io.Writer, lossy bool) (Exit, error) {
	var result json.RawMessage
	for e, err := range events {
		if err != nil {
			return Exit{}, err
		}
		if e.GetType() == "truncated" && !lossy {
			return Exit{}, sandbox.Errorf("follow", sandbox.KindUnavailable, "output was dropped before it was read")
		}
		if e.GetPid() != pid {
			continue
		}
		switch e.GetType() {
		case "stdout", "pty":
			err = writeEvent(stdout, e)
		case "stderr":
			err = writeEvent(stderr, e)
		case "result":
			result = json.RawMessage(e.GetText())
		case "exit":
			return Exit{Code: int(e.GetExitCode()), Reason: sandbox.Reason(e.GetReason()), Detail: e.GetDetail(),
				Duration: time.Duration(e.GetDurationMs() * float64(time.Millisecond)), Result: result}, nil
		}
		if err != nil {
			return Exit{}, err
		}
	}
	return Exit{}, sandbox.Errorf("follow", sandbox.KindGone, "the sandbox ended, and nobody saw how the program did")
}

func write(w io.Writer, o *v1.Output) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(eventBytes(o.GetText(), o.GetData()))
	return err
}

func exitOf(e *v1.ProcessExit) Exit {
	x := Exit{
		Code: int(e.GetExitCode()), Reason: sandbox.Reason(e.GetReason()), Detail: e.GetDetail(),
		Duration: time.Duration(e.GetDurationMs() * float64(time.Millisecond)),
	}
	if e.GetResultJson() != "" {
		x.Result = json.RawMessage(e.GetResultJson())
	}
	return x
}

func (c Command) exec(id string) *v1.ExecRequest {
	r := &v1.ExecRequest{
		Id: id, Args: c.Args, LanguagePack: c.Language, Cwd: c.Dir, Env: c.Env,
		StdinData: c.Stdin, User: c.User, TimeoutMs: millis(c.Timeout), Pty: c.PTY.pty(),
	}
	if c.Path != "" {
		r.Command = &c.Path
	} else {
		r.Code = &c.Code
	}
	return r
}

func (c Command) program() *v1.RunProgram {
	r := &v1.RunProgram{
		Args: c.Args, LanguagePack: c.Language, Cwd: c.Dir, Env: c.Env,
		StdinData: c.Stdin, User: c.User, TimeoutMs: millis(c.Timeout),
	}
	if c.Path != "" {
		r.Command = &c.Path
	} else {
		r.Code = &c.Code
	}
	return r
}
