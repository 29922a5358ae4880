package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"sort"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// onCall starts the call id. It waits for nobody.
func (l *link) onCall(id uint32, body []byte) error {
	l.s.mu.Lock()
	fresh := id >= l.s.nextID
	if fresh {
		l.s.nextID = id + 1
	}
	l.s.mu.Unlock()
	if !fresh || id == 1<<32-1 {
		return guest.Violation("call id %d was used before", id)
	}
	var c guest.Call
	if err := json.Unmarshal(body, &c); err != nil {
		return guest.Violation("call: %v", err)
	}
	switch c.Op {
	case guest.OpPing:
		l.async(id, c.Op, func(*transfer) (guest.Reply, error) { return guest.Reply{}, nil })
	case guest.OpExec:
		if c.Exec == nil || len(c.Exec.Argv) == 0 {
			return guest.Violation("exec without a program")
		}
		if c.Exec.PTY != nil && (!c.Exec.Stdin || c.Exec.PTY.Check() != nil) {
			return guest.Violation("a terminal without input, or of no size")
		}
		l.exec(id, c.Exec)
	case guest.OpProcesses:
		l.async(id, c.Op, func(*transfer) (guest.Reply, error) { return l.s.processes(), nil })
	case guest.OpSignal, guest.OpResize, guest.OpAttach, guest.OpDetach, guest.OpLimit:
		if c.Process == nil || c.Op == guest.OpResize && c.Process.Size == nil {
			return guest.Violation("%s without a process", c.Op)
		}
		l.async(id, c.Op, func(*transfer) (guest.Reply, error) { return l.process(c.Op, c.Process) })
	case guest.OpRead, guest.OpWrite, guest.OpStat, guest.OpList, guest.OpMkdir, guest.OpSymlink, guest.OpMove, guest.OpRemove, guest.OpWatch:
		if c.File == nil {
			return guest.Violation("%s without a file", c.Op)
		}
		l.file(id, c.Op, c.File)
	case guest.OpDial:
		if c.Dial == nil || c.Dial.Port < 1 || c.Dial.Port > 65535 {
			return guest.Violation("dial without a port")
		}
		l.dial(id, c.Dial.Port)
	case guest.OpTrust:
		if c.Trust == nil {
			return guest.Violation("trust without a certificate")
		}
		l.async(id, c.Op, func(*transfer) (guest.Reply, error) { return guest.Reply{}, l.s.trust(*c.Trust) })
	case guest.OpStandby:
		if c.Standby == nil || len(c.Standby.Argv) == 0 || len(c.Standby.Match) == 0 {
			return guest.Violation("standby without a program")
		}
		l.async(id, c.Op, func(*transfer) (guest.Reply, error) { return guest.Reply{}, l.s.standby.keep(c.Standby) })
	case guest.OpStandDown:
		l.async(id, c.Op, func(*transfer) (guest.Reply, error) { l.s.standby.down(); return guest.Reply{}, nil })
	default:
		l.async(id, c.Op, func(*transfer) (guest.Reply, error) {
			return guest.Reply{}, sandbox.Errorf(string(c.Op), sandbox.KindUnsupported, "this agent cannot do that")
		})
	}
	return nil
}

// async runs work for the call id in a goroutine of the server and sends what
// it returns. Too many at once are refused.
func (l *link) async(id uint32, op guest.Op, work func(*transfer) (guest.Reply, error)) {
	t := &transfer{}
	l.start(id, op, t, work)
}

func (l *link) start(id uint32, op guest.Op, t *transfer, work func(*transfer) (guest.Reply, error)) {
	t.ctx, t.cancel = context.WithCancel(l.ctx)
	running, most := &l.running, maxCalls
	switch op {
	case guest.OpWatch: // lasts, and is not work
		running, most = &l.watching, maxWatches
	case guest.OpDial:
		running, most = &l.conns, guest.MaxConns
	}
	l.mu.Lock()
	full := *running >= most
	if !full {
		*running++
		l.calls[id] = t
	}
	l.mu.Unlock()
	l.s.wg.Add(1)
	l.s.work.begin()
	go func() {
		defer l.s.wg.Done()
		defer t.cancel()
		if full {
			l.s.work.end(l.s.Idle)
			l.fail(id, op, capacity(op, "more than %d calls of this kind at once", most))
			return
		}
		if op == guest.OpWatch {
			l.s.work.end(l.s.Idle)
		} else {
			defer l.s.work.end(l.s.Idle)
		}
		r, err := work(t)
		l.mu.Lock()
		delete(l.calls, id)
		*running--
		l.mu.Unlock()
		switch {
		case errors.Is(err, errAnswered):
		case err != nil:
			l.fail(id, op, err)
		default:
			l.reply(id, r)
		}
	}()
}

// errAnswered says that a call has sent its own answer.
var errAnswered = errors.New("answered")

// processes lists what the host may ask about.
func (s *Server) processes() guest.Reply {
	s.mu.Lock()
	procs := make([]*proc, 0, len(s.procs))
	for _, p := range s.procs {
		procs = append(procs, p)
	}
	s.mu.Unlock()
	sort.Slice(procs, func(i, j int) bool { return procs[i].id > procs[j].id })
	r := guest.Reply{Processes: []guest.ProcessInfo{}}
	size := 0
	for _, p := range procs { // newest first, as many as fit
		info := p.info()
		b, err := json.Marshal(info)
		if size += len(b) + 1; err != nil || size > guest.MaxControl-1024 {
			r.More = true
			break
		}
		r.Processes = append(r.Processes, info)
	}
	return r
}

// process handles the calls about one program.
func (l *link) process(op guest.Op, c *guest.ProcCall) (guest.Reply, error) {
	p := l.s.proc(c.ID)
	if p == nil {
		return guest.Reply{}, sandbox.Errorf(string(op), sandbox.KindNotFound, "no process %d", c.ID)
	}
	switch op {
	case guest.OpAttach:
		info, err := p.attach(l, c)
		return guest.Reply{Process: &info}, err
	case guest.OpDetach:
		p.detach(l)
		return guest.Reply{}, nil
	}
	p.mu.Lock()
	sys, over := p.p, p.exit != nil
	p.mu.Unlock()
	if sys == nil || over {
		return guest.Reply{}, sandbox.Errorf(string(op), sandbox.KindNotFound, "process %d does not run", c.ID)
	}
	if op == guest.OpLimit {
		p.limit(time.Duration(min(max(0, c.Left), maxLeft)) * time.Millisecond)
		return guest.Reply{}, nil
	}
	if op == guest.OpResize {
		if err := c.Size.Check(); err != nil {
			return guest.Reply{}, err
		}
		return guest.Reply{}, sys.Resize(*c.Size)
	}
	if c.Signal == sigkill {
		return guest.Reply{}, sys.Kill()
	}
	return guest.Reply{}, sys.Signal(c.Signal)
}

// maxLeft is a deadline that no program meets: a hundred years, in milliseconds.
const maxLeft = 100 * 365 * 24 * 3600 * 1000

// file starts a call about the file system.
func (l *link) file(id uint32, op guest.Op, c *guest.FileCall) {
	t := &transfer{}
	switch op {
	case guest.OpWrite:
		t.up = guest.NewStream(id, guest.TypeFile, guest.FileWindow, 0,
			func(at uint64) { _ = l.mark(guest.TypeWindow, id, guest.TypeFile, at) })
	case guest.OpRead, guest.OpList, guest.OpWatch:
		window := guest.FileWindow
		if c.Window >= guest.MinWindow {
			window = min(window, c.Window)
		}
		t.down = newCredit(uint64(window))
	}
	l.start(id, op, t, func(t *transfer) (guest.Reply, error) {
		fs, err := l.s.sys.Files(l.s.userOf(c.User))
		if err != nil {
			return guest.Reply{}, err
		}
		switch op {
		case guest.OpRead:
			return guest.Reply{}, l.read(id, fs, t, c)
		case guest.OpWrite:
			defer l.s.standby.changed(c.Path)
			return l.write(fs, t, c)
		case guest.OpList:
			return guest.Reply{}, l.list(id, fs, t, c)
		case guest.OpWatch:
			return guest.Reply{}, l.watch(id, fs, t, c)
		case guest.OpStat:
			info, err := fs.Stat(c.Path)
			return guest.Reply{File: &info}, err
		case guest.OpMkdir:
			return guest.Reply{}, fs.Mkdir(c.Path, c.Mode.Perm(), c.Parents)
		}
		defer l.s.standby.changed(c.Path)
		switch op {
		case guest.OpSymlink:
			return guest.Reply{}, fs.Symlink(c.To, c.Path)
		case guest.OpMove:
			defer l.s.standby.changed(c.To)
			return guest.Reply{}, fs.Move(c.Path, c.To)
		}
		return guest.Reply{}, fs.Remove(c.Path, c.Tree, c.Force)
	})
}

// write stores what the host sends.
func (l *link) write(fs Files, t *transfer, c *guest.FileCall) (guest.Reply, error) {
	w, err := fs.Create(c.Path, CreateOptions{Perm: c.Mode.Perm(), Parents: c.Parents, Append: c.Append, Attributes: c.Attributes})
	if err != nil {
		return guest.Reply{}, err
	}
	var dst io.Writer = w
	if c.MaxSize > 0 {
		dst = &capped{w: w, left: c.MaxSize}
	}
	if _, err := t.up.WriteTo(dst); err != nil {
		w.Abort()
		return guest.Reply{}, err
	}
	if t.ctx.Err() != nil {
		w.Abort()
		return guest.Reply{}, t.ctx.Err()
	}
	info, err := w.Commit()
	return guest.Reply{File: &info}, err
}

// capped refuses to write more than left bytes.
type capped struct {
	w    io.Writer
	left int64
}

func (c *capped) Write(p []byte) (int, error) {
	if int64(len(p)) > c.left {
		return 0, sandbox.Errorf("write", sandbox.KindTooLarge, "the file is larger than allowed")
	}
	c.left -= int64(len(p))
	return c.w.Write(p)
}

// read sends a range of a file: the answer, then data, then the end.
func (l *link) read(id uint32, fs Files, t *transfer, c *guest.FileCall) error {
	f, err := fs.Open(c.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	info := f.Info()
	l.reply(id, guest.Reply{File: &info})
	left := int64(1<<63 - 1 - c.Offset)
	if c.Length > 0 {
		left = min(left, c.Length)
	}
	return l.sendAll(id, t, io.NewSectionReader(f, c.Offset, left), min(left, max(info.Size-c.Offset, 0)))
}

// list sends a directory: the answer, then a FileInfo per line, then the end.
func (l *link) list(id uint32, fs Files, t *transfer, c *guest.FileCall) error {
	entries, more, err := fs.List(c.Path, c.Depth, c.Max)
	if err != nil {
		return err
	}
	l.reply(id, guest.Reply{More: more})
	r, w := io.Pipe()
	l.s.wg.Add(1)
	go func() {
		defer l.s.wg.Done()
		enc := json.NewEncoder(w)
		for _, e := range entries {
			if enc.Encode(e) != nil {
				return // nobody reads any more
			}
		}
		w.Close()
	}()
	defer r.Close()
	return l.sendAll(id, t, r, 16<<10)
}

// watch sends what happens in a directory: the answer, then a FileEvent per line.
func (l *link) watch(id uint32, fs Files, t *transfer, c *guest.FileCall) error {
	q := guest.NewFileEvents()
	w, err := fs.Watch(c.Path, c.Tree, q)
	if err != nil {
		return err
	}
	defer w.Close()
	l.reply(id, guest.Reply{})
	var at uint64
	for {
		select {
		case <-q.Ready():
		case <-t.ctx.Done():
			return errAnswered
		}
		events, over, err := q.Take()
		var lines bytes.Buffer
		enc := json.NewEncoder(&lines)
		for _, e := range events {
			_ = enc.Encode(e) // strings only
		}
		for b := lines.Bytes(); len(b) > 0; {
			offset, room := t.down.take(t.ctx.Done(), min(len(b), guest.MaxData))
			if room == 0 || l.data(guest.TypeFile, id, offset, b[:room], nil) != nil {
				return errAnswered
			}
			b, at = b[room:], offset+uint64(room)
		}
		switch {
		case over && err != nil:
			return err
		case over:
			_ = l.mark(guest.TypeEnd, id, guest.TypeFile, at)
			return errAnswered
		}
	}
}

// sendAll sends what r yields and the end. size is a hint. The call has been
// answered, so a failure is a second answer.
func (l *link) sendAll(id uint32, t *transfer, r io.Reader, size int64) error {
	buf := make([]byte, min(max(size, 512)+1, guest.MaxData))
	var at uint64
	for {
		offset, room := t.down.take(t.ctx.Done(), len(buf))
		if room == 0 {
			return errAnswered // cancelled
		}
		n, err := io.ReadFull(r, buf[:room])
		t.down.untake(room - n)
		at = offset + uint64(n)
		if n > 0 {
			if l.data(guest.TypeFile, id, offset, buf[:n], nil) != nil {
				return errAnswered
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			_ = l.mark(guest.TypeEnd, id, guest.TypeFile, at)
			return errAnswered
		case err != nil:
			return err
		case t.ctx.Err() != nil:
			return errAnswered
		}
	}
}

// untake gives back the last n bytes of credit taken.
func (c *credit) untake(n int) {
	c.mu.Lock()
	c.sent -= uint64(n)
	c.mu.Unlock()
}
