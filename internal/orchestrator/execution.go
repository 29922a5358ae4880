package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/driver"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// execution is one process while it runs. It outlives sessions: when one
// breaks, it goes on over the next from the first byte it has not dealt with.
// And it outlives this program: what its entry in the journal and the sandbox's
// events say is all that the next one needs.
type execution struct {
	l       *live
	who     Caller
	sink    Sink
	warm    *warm // it keeps an interpreter warm; also its sink
	stdin   io.Reader
	entry   *entry
	place   *os.File // for the entry, which is not written yet; nil: none
	adopted bool     // begun by an earlier process of this program

	// The rest belongs to the goroutine that runs it; at and published, by
	// channel, to the pumps while there are any.
	s          *guest.Session
	proc       *guest.Process // nil until attached
	at         [2]int64       // where the next byte for the sink is
	published  [2]int64       // where the next byte for the events is
	broke      [2]error       // why a channel ended before its end
	pumps      sync.WaitGroup
	quit       chan struct{} // closed when nobody takes output any more
	violations int           // sessions that ended because the agent broke the protocol
	results    bool          // it left a result file
	announced  bool

	noting  sync.Mutex    // held while the entry changes
	gone    chan struct{} // closed when it is over and delisted
	first   uint64        // id of its first event; guarded by l.mu
	killer  string        // who killed it; guarded by l.mu
	verdict *ExecExit     // why it was killed, where nobody did it; guarded by l.mu
	end     *ExecExit     // guarded by l.mu
	retired bool          // guarded by l.mu
	over    sync.Once
}

// execution makes one that has not begun.
func (l *live) execution(who Caller, sink Sink, e *entry) *execution {
	e.Sandbox, e.Tenant, e.Principal = l.id, l.tenant, who.Principal
	return &execution{l: l, who: who, sink: sink, entry: e, gone: make(chan struct{})}
}

// maxViolations is how often the agent may break the protocol under one process
// before that is given up.
const maxViolations = 8

// begin starts the process and makes it known. On an error nothing of it is
// left but what the next session kills.
func (x *execution) begin(ctx context.Context, req ExecRequest, p program) error {
	l := x.l
	s, err := l.session(ctx)
	if err != nil {
		return err
	}
	if p.path != "" {
		if err := l.placeCode(ctx, s, req, p); err != nil {
			return l.settle(s, err)
		}
	}
	l.starting.RLock()
	defer l.starting.RUnlock()
	x.entry.Begun = time.Now()
	x.proc, err = s.Exec(ctx, guest.Command{Argv: p.argv, Env: p.env, Dir: p.cwd, User: req.User, Stdin: x.stdin != nil,
		PTY: req.PTY, Timeout: x.entry.Timeout, Hold: true, Sent: func(id uint32) { x.ahead(ctx, id) }})
	if err == nil {
		failpoint.Hit("exec/after-start")
		x.s, x.entry.ID, x.entry.PID = s, x.proc.ID(), x.proc.PID()
		if err = x.enlist(); err != nil {
			x.kill()
		}
	}
	if err != nil {
		l.o.journal.unplace(x.entry, x.place)
		x.tidy(s)
		return l.startError(s, err)
	}
	failpoint.Hit("exec/after-journal")
	return nil
}

// ahead does while the process starts what would else be done before the first byte of
// its output is passed on: files are made, and its sandbox is looked at.
func (x *execution) ahead(ctx context.Context, id uint32) {
	x.entry.ID, x.entry.OOM = id, x.l.oomKills(ctx)
	if !x.l.o.Alone {
		x.place = x.l.o.journal.placeFor(x.entry)
	}
	x.l.o.tellSoon(x.l.id, true)
}

// enlist makes the process known: to the journal, and to whoever opens the next
// session, which kills what nobody follows.
func (x *execution) enlist() error {
	var kept []byte
	switch r := x.stdin.(type) {
	case nil:
	case *input:
		x.entry.Stdin = stdinOpen
		if err := x.l.o.journal.keep(x.entry, r); err != nil {
			return err
		}
	case inMemory:
		x.entry.Stdin = stdinKept
		if x.l.o.Alone {
			break
		}
		kept = make([]byte, r.Size())
		if _, err := r.ReadAt(kept, 0); err != nil && err != io.EOF {
			return err
		}
	default:
		x.entry.Stdin = stdinLive
	}
	// A server that is killed ends nothing, whatever it does when it is stopped: the
	// next one has to know of this process. A process that is alone has no successor.
	if !x.l.o.Alone {
		if err := x.noted(x.l.o.journal.add(x.entry, x.place, kept)); err != nil {
			return err
		}
	}
	x.l.mu.Lock()
	defer x.l.mu.Unlock()
	x.l.execs[x.entry.ID] = x
	return nil
}

// noted is what a failed note means. Where sandboxes end with the server it is
// wanted only after a kill: the program is not refused for it.
func (x *execution) noted(err error) error {
	if err != nil && x.l.o.DestroyOnClose {
		x.l.o.Log.Warn("not in the journal: should the server be killed, the end of this process is not told", "sandbox", x.l.id, "error", err)
		return nil
	}
	return err
}

// amend changes the entry, in the journal first.
func (x *execution) amend(change func(*entry)) error {
	x.noting.Lock()
	defer x.noting.Unlock()
	x.l.mu.Lock()
	e := *x.entry
	x.l.mu.Unlock()
	change(&e)
	if !x.l.o.Alone {
		if err := x.noted(x.l.o.journal.update(&e)); err != nil {
			return err
		}
	}
	x.l.mu.Lock()
	change(x.entry)
	x.l.mu.Unlock()
	return nil
}

// delist is the opposite of enlist. It is idempotent. Whoever sees that the
// process is over, an end of the sandbox too, finds nothing of it in the journal
// but how it ended.
func (x *execution) delist() {
	l, forget := x.l, x.l.o.journal.remove
	if in, ok := x.stdin.(*input); ok {
		in.discard()
	}
	l.mu.Lock()
	kept := x.end != nil && x.entry.End != nil
	l.mu.Unlock()
	if kept {
		forget = l.o.journal.unread
	}
	errs := []error{forget(x.entry)}
	l.mu.Lock()
	delete(l.execs, x.entry.ID)
	stale := l.retire(x)
	if len(l.execs) == 0 && l.none != nil {
		close(l.none)
		l.none = nil
	}
	l.mu.Unlock()
	if !l.o.knows(l.id) { // else the sandbox's end takes it along
		stale = append(stale, x.entry)
	}
	for _, e := range stale {
		errs = append(errs, l.o.journal.remove(e))
	}
	if err := errors.Join(errs...); err != nil {
		l.o.Log.Error("journal", "sandbox", l.id, "error", err) // it is found to have ended, later
	}
}

// inMemory is a standard input that can be read again. *bytes.Reader,
// *strings.Reader and *io.SectionReader are some.
type inMemory interface {
	io.ReaderAt
	Size() int64
}

// output is a piece of what the process printed, or what a driver said.
type output struct {
	channel int
	data    []byte
	part    bool            // it is a driver's, not user code's
	said    *driver.Message // what that completes, if it does
	id      uint64
	taken   chan<- struct{}
}

// The channels of output.
const (
	chanStdout = iota
	chanStderr
)

var eventTypes = [2]event.Type{chanStdout: event.Stdout, chanStderr: event.Stderr}

// run sees the process to its end and makes that known.
func (x *execution) run(ctx context.Context) (ExecExit, error) {
	exit, err := x.toEnd(ctx)
	if err != nil && x.leaving(ctx) {
		if x.proc != nil {
			x.proc.Close() // it runs on; the journal has it
		}
		x.pumps.Wait()
		return ExecExit{}, stopping("exec").WithID(string(x.l.id))
	}
	if err != nil {
		x.kill()
		exit = ExecExit{Code: exitKilled, Reason: sandbox.ReasonOperator, Detail: clip(err.Error()), Duration: time.Since(x.entry.Begun)}
	}
	x.pumps.Wait()
	return x.conclude(ctx, exit, err)
}

// leaving reports whether the process is to be left to the next server.
func (x *execution) leaving(ctx context.Context) bool {
	if x.l.o.DestroyOnClose {
		return false
	}
	return x.l.o.ctx.Err() != nil || ctx.Err() != nil && sandbox.KindOf(context.Cause(ctx)) == sandbox.KindUnavailable
}

// toEnd follows the process until it has ended and everything is delivered,
// over as many sessions as that takes. The error is ctx's or the sink's, and
// nobody wants the process any more.
func (x *execution) toEnd(ctx context.Context) (ExecExit, error) {
	if x.proc != nil && !x.announced {
		if err := x.announce(); err != nil {
			return ExecExit{}, err
		}
	}
	for cause := error(nil); ; {
		if x.proc == nil {
			if exit, err := x.attach(ctx, cause); err != nil || exit != nil {
				return deref(exit), err
			}
		}
		g, unknown, err := x.follow(ctx)
		if err != nil {
			return ExecExit{}, err
		}
		if unknown == nil || g.Reason == sandbox.ReasonTimeout && sandbox.KindOf(unknown) == sandbox.KindTimeout {
			x.results = g.Result
			return x.classify(ctx, g, unknown), nil
		}
		x.proc, cause = nil, unknown
	}
}

// announce makes the start an event, and tells the sink.
func (x *execution) announce() error {
	x.announced = true
	id := x.l.o.publishJSON(x.l.id, event.Started, x.process(), struct{}{}, false)
	x.l.mu.Lock()
	x.first = id
	x.l.mu.Unlock()
	failpoint.Hit("exec/after-started")
	return sandbox.Wrap("exec", string(x.l.id), x.sink.Started(x.entry.PID, id))
}

func deref(e *ExecExit) ExecExit {
	if e == nil {
		return ExecExit{}
	}
	return *e
}

// process is how events name it.
func (x *execution) process() string { return strconv.Itoa(x.entry.PID) }

// attach takes the process up over a session of its own time, after cause broke
// the last one. It returns an exit where there is nothing to take up any more.
func (x *execution) attach(ctx context.Context, cause error) (*ExecExit, error) {
	exit := ExecExit{Duration: time.Since(x.entry.Begun)}
	give := func(reason sandbox.Reason, detail string) (*ExecExit, error) {
		exit.Code, exit.Reason, exit.Detail = exitKilled, reason, detail
		x.kill()
		return &exit, nil
	}
	if x.entry.Stdin == stdinLive && x.adopted {
		return give(sandbox.ReasonLost, "its standard input was lost when the server stopped")
	}
	for {
		if err := x.l.awake(ctx); err != nil && (ctx.Err() != nil || x.leaving(ctx)) {
			return nil, err
		}
		if sandbox.KindOf(cause) == sandbox.KindProtocol {
			if x.violations++; x.violations > maxViolations {
				return give(sandbox.ReasonCrashed, "the agent keeps breaking the protocol: "+clip(cause.Error()))
			}
		}
		wait, cancel := x.deadline(ctx)
		err := x.reattach(wait)
		late := wait.Err() != nil
		cancel()
		switch {
		case err == nil:
			return nil, nil
		case ctx.Err() != nil || x.leaving(ctx):
			return nil, sandbox.Wrap("exec", string(x.l.id), err)
		case late:
			exit.Code, exit.Reason, exit.Detail = exitTimeout, sandbox.ReasonTimeout, "limit "+short(x.entry.Timeout)
			x.kill()
			return &exit, nil
		case sandbox.KindOf(err) == sandbox.KindNotFound:
			return give(sandbox.ReasonLost, "the agent does not know it any more")
		case errors.Is(err, errInputLost):
			return give(sandbox.ReasonCrashed, "the connection to the agent broke under its standard input")
		case x.s == nil || x.s.Err() == nil: // the sandbox ended, or the agent said something else
			exit = x.broken(exit, err)
			return &exit, nil
		}
		cause = err
	}
}

// deadline bounds ctx by the process's own limit, which the host keeps even
// where it cannot reach the agent.
func (x *execution) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if x.entry.Timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, x.ends().Add(time.Second))
}

var errInputLost = errors.New("the standard input cannot be read again")

// reattach makes x.s and x.proc from the sandbox's session.
func (x *execution) reattach(ctx context.Context) (err error) {
	x.s = nil
	s, err := x.l.sessionLater(ctx)
	if err != nil {
		return err
	}
	x.s = s
	pos := guest.Position{Stdout: x.at[chanStdout], Stderr: x.at[chanStderr], Hold: true}
	if x.entry.Timeout > 0 {
		pos.Timeout = max(time.Millisecond, time.Until(x.ends()))
	}
	p, err := s.Reattach(ctx, x.entry.ID, pos)
	if err != nil {
		return err
	}
	if x.entry.Timeout > 0 { // it may have been lifted; an agent that moves none keeps its own
		if err := s.Limit(ctx, x.entry.ID, pos.Timeout); err != nil && !knownEnd(err) {
			p.Close()
			return err
		}
	}
	switch x.stdin.(type) {
	case nil, *input, inMemory:
	default:
		p.Close()
		return errInputLost
	}
	x.proc = p
	for c, st := range [2]*guest.Stream{p.Stdout(), p.Stderr()} {
		x.at[c] = st.Offset()
		x.published[c] = max(x.published[c], x.at[c])
	}
	return nil
}

// follow moves the process's output until it has ended and everything is
// delivered, or the session broke: unknown says so.
func (x *execution) follow(ctx context.Context) (exit guest.Exit, unknown, err error) {
	out := make(chan output)
	x.quit = make(chan struct{})
	x.pumps.Go(func() { x.pump(chanStdout, x.proc.Stdout(), out) })
	x.pumps.Go(func() { x.pump(chanStderr, x.proc.Stderr(), out) })
	go func() { x.pumps.Wait(); close(out) }() // ends with the pumps
	if x.stdin != nil {
		// Not waited for: a reader may block for ever, and what it feeds ends
		// with the process. The reader is the caller's to end.
		stop := make(chan struct{})
		defer close(stop)
		go feed(x.proc.Stdin(), x.input(stop))
	}
	if err = x.deliver(ctx, out); err == nil {
		// A program may close its output and go on; a broken session ends this.
		exit, unknown = x.proc.Wait(ctx)
		if unknown == nil { // the end was heard of, but was all that came before it?
			unknown = cmp.Or(x.broke[chanStdout], x.broke[chanStderr])
		}
		err = sandbox.Wrap("exec", string(x.l.id), ctx.Err())
	}
	if err != nil {
		close(x.quit)
	}
	return exit, unknown, err
}

// deliver hands everything to the sink, until the output ends, the sink fails
// or ctx ends.
func (x *execution) deliver(ctx context.Context, out <-chan output) (err error) {
	for err == nil {
		select {
		case o, more := <-out:
			if !more {
				return nil
			}
			switch {
			case o.said != nil:
				x.warm.heard(o.channel, o.said, o.id)
			case o.channel == chanStdout:
				err = x.sink.Stdout(o.data, o.id)
			default:
				err = x.sink.Stderr(o.data, o.id)
			}
			if err == nil {
				o.taken <- struct{}{}
			}
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return sandbox.Wrap("exec", string(x.l.id), err)
}

// chunk is the most that is delivered at once.
const chunk = 32 << 10

// peeker is a *guest.Stream.
type peeker interface {
	Peek(seen, limit int) ([]byte, error)
	Discard(n int)
}

// pump passes one channel of output on until it ends, or breaks: then the
// process's Wait says why. Pieces end between characters where the output is
// UTF-8, so that every piece of text is text. The guest may forget a byte only
// once it is among the events and the sink has it. After quit it only drains.
func (x *execution) pump(channel int, r peeker, out chan<- output) {
	taken := make(chan struct{}, 1)
	for seen := 0; ; {
		data, err := r.Peek(seen, chunk)
		for len(data) > 0 {
			o := x.piece(channel, data, err == io.EOF)
			n := len(o.data)
			if n == 0 {
				break
			}
			x.tell(&o)
			failpoint.Hit("exec/after-output")
			o.taken = taken
			x.pass(o, out, taken)
			x.at[channel] += int64(n)
			r.Discard(n)
			data = data[n:]
		}
		seen = len(data)
		if err != nil {
			if x.broke[channel] = err; err == io.EOF {
				x.broke[channel] = nil
			}
			return
		}
	}
}

// piece is what of data can be dealt with now: all of it, but for a character
// whose end is still to come, or what a driver said. At the end, with eof,
// nothing is to come; what the end of a session cuts off comes again.
func (x *execution) piece(channel int, data []byte, eof bool) output {
	if x.warm != nil {
		return x.warm.piece(channel, data, eof)
	}
	n := len(data)
	if !eof {
		n -= partial(data)
	}
	return output{channel: channel, data: data[:n:n]}
}

// tell makes an event of o.
func (x *execution) tell(o *output) {
	switch {
	case o.said != nil:
		o.id = x.warm.tell(o.said)
	case !o.part:
		o.id = x.publish(o.channel, o.data)
	}
}

// pass hands o to deliver and waits until it has been taken. Part of what a
// driver says is nobody's.
func (x *execution) pass(o output, out chan<- output, taken <-chan struct{}) {
	if o.part && o.said == nil {
		return
	}
	select {
	case out <- o:
		select {
		case <-taken:
		case <-x.quit:
		}
	case <-x.quit:
	}
}

// publish makes output an event, without what already is one, and returns its
// id.
func (x *execution) publish(channel int, data []byte) uint64 {
	at := x.at[channel]
	if known := x.published[channel] - at; known > 0 {
		skip := min(known, int64(len(data)))
		at, data = at+skip, data[skip:]
	}
	if len(data) == 0 {
		return 0
	}
	x.published[channel] = at + int64(len(data))
	return x.l.o.publish(x.l.id, event.Event{Type: x.eventType(channel), Process: x.process(), Offset: uint64(at), Data: data})
}

// partial is the length of the unfinished character at the end of b, or 0.
func partial(b []byte) int {
	for i := 1; i <= min(utf8.UTFMax-1, len(b)); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-i:]) {
				return i
			}
			return 0
		}
	}
	return 0
}

// kill ends the process for good, over whatever session there is. One that
// cannot be reached is nobody's any more, and the next session kills it.
func (x *execution) kill() {
	ctx, cancel := context.WithTimeout(context.Background(), settleWait)
	defer cancel()
	if x.proc == nil || x.s.Err() != nil {
		x.delist()
		if s, err := x.l.sessionLater(ctx); err == nil {
			_ = s.Signal(ctx, x.entry.ID, sigKill) // it fails if the session has just done so
		}
		return
	}
	err := x.proc.Signal(ctx, sigKill)
	if err == nil {
		_, err = x.proc.Wait(ctx)
	}
	if err != nil && sandbox.KindOf(err) != sandbox.KindNotFound && x.s.Err() == nil {
		x.delist()
		x.s.Close() // the next session kills what nobody follows
	}
	x.proc.Close()
}
