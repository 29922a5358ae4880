package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/snapimage"
)

var _ keeper = (*qemu)(nil)

// The files of an image: the monitor's state of processors and devices, the disk,
// which is packed, and the memory: packed, or as it is for a monitor that maps it.
const (
	imageState  = "state"
	imageRAM    = "ram"
	imageMemory = "memory"
	imageDisk   = "disk"
)

// ramDescriptor is the machine's memory in QEMU: a file without a name, its size
// sealed. Nothing of it is on a disk, and it goes with the last process that has it.
const (
	ramName       = "firebreak-ram"
	ramDescriptor = 3
	tapDescriptor = 4 // of a machine with a wire
	ramPath       = "/proc/self/fd/3"
)

// maxState bounds QEMU's state without the memory, which is a quarter of a megabyte.
const maxState = 64 << 20

// control bounds an exchange with QEMU. It answers within milliseconds, on a busy
// host within seconds.
const control = 30 * time.Second

// newRAM makes the memory of a machine.
func newRAM(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(ramName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "ram")
	err = f.Truncate(size)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("memory of the machine: %w", err)
	}
	return f, nil
}

// ramOf opens the memory of a running machine. Its monitor may have put anything
// there, which is then the guest's memory: of the right size and readable.
func ramOf(m vm) (*os.File, error) {
	name := fmt.Sprintf("/proc/%d/fd/%d", m.pid, ramDescriptor)
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() || fi.Size() != m.ramSize() || (process{m.pid, m.started}).gone() { // the pid may be another's by now
		f.Close()
		return nil, errors.New("the machine's memory is not where it was")
	}
	return f, nil
}

// controlOf connects to the control socket, which is one caller's at a time: who
// has it may stop the machine, and nobody else will let it go on meanwhile. The
// connection ends with ctx, and at the latest after patience.
func controlOf(ctx context.Context, dir string, patience time.Duration) (*qmp, error) {
	conn, err := dialIn(dir, fileControl)
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(patience)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	conn.SetDeadline(end)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	q, err := newQMP(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	return q, nil
}

// ignoreShared leaves shared memory, which is the machine's, out of the state.
func (q *qmp) ignoreShared() error {
	type capability struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	return q.call(nil, "migrate-set-capabilities", map[string]any{"capabilities": []capability{{"x-ignore-shared", true}}})
}

func (q *qemu) wake(ctx context.Context, dir string) error {
	c, err := controlOf(ctx, dir, control)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	defer context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })()
	return c.goOn()
}

func (q *qemu) builds(*images) ([]snapimage.Build, error) {
	v, err := q.version()
	return []snapimage.Build{{What: "monitor", Is: v.line}}, err
}

func (q *qemu) orders(_ context.Context, dir string) (net.Conn, error) {
	s, err := dialFIFOs(dir, fileOrders)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (q *qemu) save(ctx context.Context, m vm, to string) ([]string, error) {
	return nil, q.copy(ctx, m, to)
}

func (q *qemu) copy(ctx context.Context, m vm, to string) (err error) {
	c, err := controlOf(ctx, m.dir, control)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	ram, err := ramOf(m)
	if err != nil {
		return err
	}
	defer ram.Close()
	disk, err := os.OpenFile(m.disk, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	size, err := disk.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := c.ignoreShared(); err != nil {
		return err
	}
	defer func() {
		c.conn.SetDeadline(time.Now().Add(control)) // however long the copies took
		err = errors.Join(err, c.goOn())
	}()
	if err := c.call(nil, "stop", nil); err != nil {
		return err
	}
	failpoint.Hit("microvm.snapshot/after-stop")
	if err := c.writeState(ctx, filepath.Join(to, imageState)); err != nil {
		return err
	}
	failpoint.Hit("microvm.snapshot/after-state")
	if err := snapimage.Pack(ctx, filepath.Join(to, imageRAM), ram, m.ramSize()); err != nil {
		return err
	}
	return snapimage.Pack(ctx, filepath.Join(to, imageDisk), disk, size)
}

// writeState has QEMU write its state into a new file. It is given a pipe, not the
// file: so it can write no more than is taken.
func (q *qmp) writeState(ctx context.Context, name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	copied := make(chan error, 1)
	go func() {
		n, err := io.Copy(f, io.LimitReader(r, maxState))
		if err == nil && n == maxState {
			err = errors.New("the monitor's state is too large")
		}
		r.Close() // whoever writes on notices
		copied <- err
	}()
	err = q.callWith(w, nil, "getfd", map[string]any{"fdname": "state"})
	w.Close()
	if err == nil {
		err = q.call(nil, "migrate", map[string]any{"uri": "fd:state"})
	}
	if err == nil {
		err = q.migrated(ctx)
	}
	if err != nil {
		r.SetReadDeadline(time.Unix(1, 0))
	}
	return errors.Join(err, <-copied)
}

// migrated waits for what QEMU calls a migration to be over.
func (q *qmp) migrated(ctx context.Context) error {
	for ; ; time.Sleep(2 * time.Millisecond) {
		var s struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := q.call(&s, "query-migrate", nil); err != nil {
			return err
		}
		switch {
		case s.Status == "completed":
			return nil
		case s.Status == "failed", s.Status == "cancelled":
			return fmt.Errorf("the monitor's state: %s %s", s.Status, clip(printable(s.Error)))
		case ctx.Err() != nil:
			return errors.Join(ctx.Err(), q.call(nil, "migrate_cancel", nil))
		}
	}
}

// begin lets a machine run: what its arguments say, or from what was saved.
func (q *qemu) begin(ctx context.Context, m vm) error {
	if m.saved == nil {
		return nil
	}
	state, err := m.saved.Read(ctx, imageState, maxState)
	if err != nil {
		return err
	}
	c, err := firstControl(ctx, m)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	to, done := memoryOf(m)
	err = m.saved.Unpack(ctx, imageRAM, to, m.ramSize())
	done()
	if err != nil {
		return err
	}
	failpoint.Hit("microvm.restore/after-memory")
	c.conn.SetDeadline(time.Now().Add(control)) // however long that took
	defer context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })()
	if err := c.ignoreShared(); err != nil {
		return err
	}
	if err := c.readState(ctx, state); err != nil {
		return err
	}
	failpoint.Hit("microvm.restore/after-state")
	return c.call(nil, "cont", nil)
}

// memoryOf is where the machine's memory is written to: where QEMU has it mapped, so
// that the pages are its and in its control group, not this process's. Who may not
// look into QEMU writes to the file, and has them in its own.
func memoryOf(m vm) (to io.WriterAt, done func()) {
	parts, err := mapped(m)
	if err == nil {
		if f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", m.pid), os.O_WRONLY, 0); err == nil {
			return &remote{f, parts}, func() { f.Close() }
		}
	}
	return m.ram, func() {}
}

// remote is memory of another process that is a file's, by the file's offsets.
type remote struct {
	mem   *os.File
	parts []part
}

// part of a file, and where it is mapped.
type part struct{ offset, size, address int64 }

// mapped lists where QEMU has the machine's memory, all of it.
func mapped(m vm) (parts []part, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.pid))
	if err != nil {
		return nil, err
	}
	left := m.ramSize()
	for line := range strings.Lines(string(b)) {
		var from, to, offset int64
		var perms string
		if !strings.Contains(line, "/memfd:"+ramName) {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x %s %x", &from, &to, &perms, &offset); err != nil || perms != "rw-s" {
			continue
		}
		parts, left = append(parts, part{offset, to - from, from}), left-(to-from)
	}
	if left != 0 {
		return nil, errors.New("the machine's memory is not mapped once")
	}
	return parts, nil
}

func (r *remote) WriteAt(b []byte, at int64) (n int, err error) {
	for _, p := range r.parts {
		for n < len(b) && at >= p.offset && at < p.offset+p.size {
			k, err := r.mem.WriteAt(b[n:min(int64(len(b)), int64(n)+p.offset+p.size-at)], p.address+at-p.offset)
			n, at = n+k, at+int64(k)
			if err != nil {
				return n, err
			}
		}
	}
	if n < len(b) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// firstControl connects to a monitor that has been started just now.
func firstControl(ctx context.Context, m vm) (*qmp, error) {
	p, ok := identify(m.pid)
	for ok && !p.gone() {
		c, err := controlOf(ctx, m.dir, control)
		switch {
		case err == nil:
			return c, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED):
			return nil, err
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil, errMonitor
}

// readState gives QEMU the state of a machine whose memory is there.
func (q *qmp) readState(ctx context.Context, state []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = w.Write(state) // what QEMU makes of it, it says
		w.Close()
	}()
	defer func() {
		w.SetWriteDeadline(time.Unix(1, 0))
		<-written
	}()
	err = q.callWith(r, nil, "getfd", map[string]any{"fdname": "state"})
	r.Close()
	if err != nil {
		return err
	}
	if err := q.call(nil, "migrate-incoming", map[string]any{"uri": "fd:state"}); err != nil {
		return err
	}
	return q.migrated(ctx)
}
