package client

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"path"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Input is a file put into the sandbox before a run's program starts, or a
// symbolic link.
type Input struct {
	Path string // in the sandbox; relative ones start at the home
	Mode uint32 // permission bits; zero 0644
	// Open yields the content; it is called once, when it is needed.
	Open func() (io.ReadCloser, error)
	Size int64
	// Link is what a symbolic link holds, which stays in the home, or below the root of
	// an absolute Path;
	// then there is no content.
	Link string
}

// RunOptions says what to run and in what. Sandbox.Timeout bounds the whole
// run, Program.Timeout the program.
type RunOptions struct {
	Sandbox   CreateOptions
	Program   Command
	Inputs    []Input
	Artifacts []string // files or directories to keep when the program has ended

	// Stdout and Stderr get the program's output as it comes; nil discards. It
	// travels as events, which never slow the run down: a reader that falls
	// megabytes behind sees an event of type "truncated" in place of what it
	// missed. Who must have every byte uses Create, Exec and Destroy.
	Stdout, Stderr io.Writer
	// Started, if set, is called once the run has an id, and again once it has
	// a sandbox.
	Started func(*v1.Run)
	// Event, if set, is called for every event that is not output.
	Event func(*v1.Event)
}

// inlineInputs is how many bytes of inputs travel in CreateRun itself. More is
// written with the file operations, which stream.
const inlineInputs = 1 << 20

// Run creates a sandbox, executes a program to its end, keeps its artifacts,
// destroys the sandbox, and returns the record: exit code, reason, result,
// usage and receipt.
//
// A program that fails or is killed is a Run, not an error; so is a run whose
// record says that Firebreak failed (see RunError). When ctx ends, the run is
// cancelled and Run waits, at most ten seconds, for its sandbox to be gone; it
// then returns the record, if it could be had, with an error of KindCanceled.
func (c *Client) Run(ctx context.Context, o RunOptions) (*v1.Run, error) {
	run, err := c.startRun(ctx, o)
	if err != nil {
		if run != nil {
			return c.abandon(run.GetId(), err)
		}
		return nil, err
	}
	if err := c.copyEvents(ctx, run, o); err != nil {
		return c.abandon(run.GetId(), err)
	}
	final, err := c.AwaitRun(ctx, run.GetId())
	if err != nil {
		return c.abandon(run.GetId(), err)
	}
	return final, nil
}

// startRun creates the run and gets it going, inputs in place. On an error, a
// run that exists is returned with it.
func (c *Client) startRun(ctx context.Context, o RunOptions) (*v1.Run, error) {
	if o.Program.PTY != nil {
		return nil, sandbox.Errorf("run", sandbox.KindInvalid, "a run's program has no terminal").WithHint("Start or Exec it in a sandbox")
	}
	req := &v1.CreateRunRequest{Sandbox: o.Sandbox.request(), Program: o.Program.program(), Artifacts: o.Artifacts}
	var total int64
	inline := len(o.Inputs) <= 256
	for _, in := range o.Inputs {
		total += in.Size
		inline = inline && in.Link == ""
	}
	inline = inline && total <= inlineInputs
	if inline {
		for _, in := range o.Inputs {
			data, err := in.read()
			if err != nil {
				return nil, err
			}
			req.Inputs = append(req.Inputs, &v1.InputFile{Path: in.Path, Data: data, Mode: octal(in.Mode)})
		}
	}
	req.AwaitInputs = !inline
	creq := connect.NewRequest(req)
	if o.Sandbox.IdempotencyKey != "" {
		creq.Header().Set("Idempotency-Key", o.Sandbox.IdempotencyKey)
	}
	run, err := message(c.runs.CreateRun(ctx, creq))
	if err != nil {
		return nil, err
	}
	o.started(run)
	if inline {
		return run, nil
	}
	id := run.GetId()
	run, err = c.awaitInputs(ctx, run)
	if err != nil {
		return &v1.Run{Id: id}, err
	}
	if run.GetState() == "ended" {
		return run, nil // it failed before it could take inputs; the record says why
	}
	o.started(run)
	sb := c.Sandbox(run.GetSandboxId())
	for _, in := range o.Inputs {
		if err := sb.Put(ctx, in); err != nil {
			return run, err
		}
	}
	started, err := message(c.runs.StartRun(ctx, connect.NewRequest(&v1.StartRunRequest{Id: id})))
	if err != nil {
		return run, err
	}
	return started, nil
}

func (o RunOptions) started(run *v1.Run) {
	if o.Started != nil {
		o.Started(run)
	}
}

// awaitInputs waits until the run's sandbox is there.
func (c *Client) awaitInputs(ctx context.Context, run *v1.Run) (*v1.Run, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		switch run.GetState() {
		case "awaiting_inputs", "ended":
			return run, nil
		}
		select {
		case <-ctx.Done():
			return nil, sandbox.Wrap("run", run.GetId(), context.Cause(ctx))
		case <-time.After(wait):
		}
		var err error
		if run, err = c.GetRun(ctx, run.GetId(), 0); err != nil {
			return nil, err
		}
	}
}

// copyEvents follows the run to its end and copies its output.
func (c *Client) copyEvents(ctx context.Context, run *v1.Run, o RunOptions) error {
	if o.Stdout == nil && o.Stderr == nil && o.Event == nil {
		return nil // nobody looks; the record says it all
	}
	for e, err := range c.WatchRun(ctx, run.GetId(), 0) {
		if err != nil {
			return err
		}
		switch e.GetType() {
		case "stdout":
			err = writeEvent(o.Stdout, e)
		case "stderr":
			err = writeEvent(o.Stderr, e)
		default:
			if o.Event != nil {
				o.Event(e)
			}
		}
		if err != nil {
			return sandbox.Wrap("run", run.GetId(), err)
		}
	}
	return nil
}

func writeEvent(w io.Writer, e *v1.Event) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(eventBytes(e.GetText(), e.GetData()))
	return err
}

// abandon cancels a run that nobody follows any more and waits for its sandbox
// to be gone.
func (c *Client) abandon(id string, cause error) (*v1.Run, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := c.CancelRun(ctx, id); err != nil {
		return nil, errors.Join(cause, err)
	}
	run, err := c.AwaitRun(ctx, id)
	if err != nil {
		return nil, errors.Join(cause, err)
	}
	return run, cause
}

// GetRun returns a run; with wait, once it has ended or wait is over. Errors:
// KindNotFound.
func (c *Client) GetRun(ctx context.Context, id string, wait time.Duration) (*v1.Run, error) {
	return message(c.runs.GetRun(ctx, connect.NewRequest(&v1.GetRunRequest{Id: id, WaitMs: wait.Milliseconds()})))
}

// AwaitRun waits for a run's end.
func (c *Client) AwaitRun(ctx context.Context, id string) (*v1.Run, error) {
	for try := 0; ; try++ {
		run, err := c.GetRun(ctx, id, 30*time.Second)
		switch {
		case err == nil && run.GetState() == "ended":
			return run, nil
		case err == nil:
			try = 0
		case !broken(err) || try >= resumeTries:
			return nil, err
		}
		if err != nil {
			select {
			case <-ctx.Done():
				return nil, sandbox.Wrap("run", id, context.Cause(ctx))
			case <-time.After(resumeFirst << min(try, 5)):
			}
		}
	}
}

// CancelRun ends a run early. A run that has ended stays as it is.
func (c *Client) CancelRun(ctx context.Context, id string) (*v1.Run, error) {
	return message(c.runs.CancelRun(ctx, connect.NewRequest(&v1.CancelRunRequest{Id: id})))
}

// WatchRun replays a run's events after an id and follows them until the run
// has ended. A broken connection is taken up again where it broke.
func (c *Client) WatchRun(ctx context.Context, id string, after int64) iter.Seq2[*v1.Event, error] {
	return follow(ctx, after, func(ctx context.Context, after int64) (stream[v1.Event], error) {
		return c.runs.WatchRun(ctx, connect.NewRequest(&v1.WatchRunRequest{Id: id, AfterId: after}))
	})
}

// ReadArtifact copies a run's artifact, named as in Run.artifacts, to w.
// Errors: KindNotFound.
func (c *Client) ReadArtifact(ctx context.Context, run, path string, w io.Writer) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := c.runs.ReadArtifact(ctx, connect.NewRequest(&v1.ReadArtifactRequest{Id: run, Path: path}))
	if err != nil {
		return 0, fromConnect(ctx, err)
	}
	defer func() {
		cancel()
		_ = st.Close()
	}()
	var n int64
	for st.Receive() {
		m, err := w.Write(st.Msg().GetData())
		n += int64(m)
		if err != nil {
			return n, sandbox.Wrap("read artifact", run, err)
		}
	}
	return n, fromConnect(ctx, st.Err())
}

// RunError returns the error of a run that Firebreak could not carry out, or
// nil.
func RunError(run *v1.Run) error {
	e := run.GetError()
	if e == nil {
		return nil
	}
	return &sandbox.Error{Op: "run", ID: run.GetId(), Kind: sandbox.Kind(e.GetKind()), Hint: e.GetHint(), Err: errors.New(e.GetMessage())}
}

func (in Input) read() ([]byte, error) {
	r, err := in.Open()
	if err != nil {
		return nil, sandbox.Wrap("read input", in.Path, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, 2*inlineInputs))
	if err == nil && int64(len(data)) != in.Size {
		err = errors.New("it changed while it was read")
	}
	if err != nil {
		return nil, sandbox.Wrap("read input", in.Path, err)
	}
	return data, nil
}

// Put writes one input into a sandbox; it streams.
func (s *Sandbox) Put(ctx context.Context, in Input) error {
	if in.Link != "" {
		return s.putLink(ctx, in)
	}
	r, err := in.Open()
	if err != nil {
		return sandbox.Wrap("read input", in.Path, err)
	}
	defer r.Close()
	_, err = s.WriteFile(ctx, in.Path, r, modeOf(in.Mode))
	return err
}

// putLink makes a symbolic link, as an archive that holds nothing else. A target
// that climbs is seen from the link's own path where that is relative, else from /.
func (s *Sandbox) putLink(ctx context.Context, in Input) error {
	dir, name := ".", path.Clean(in.Path)
	if path.IsAbs(name) {
		dir, name = "/", name[1:]
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: in.Link, Mode: 0o777})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return sandbox.Errorf("put", sandbox.KindInvalid, "%w", err).WithID(in.Path)
	}
	_, err = s.WriteArchive(ctx, dir, &b)
	return err
}
