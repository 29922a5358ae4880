package agent

import (
	"bytes"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// defaultTerm is the TERM of a program that is given none: what every terminal in
// use understands, and every distribution describes.
const defaultTerm = "xterm-256color"

// terminal is a pseudoterminal that a program has for its standard streams.
type terminal struct {
	master *os.File
	// replica is ours as long as the program lives: what it prints after it has
	// closed all of its own, and opened it again, is not lost, and it is not
	// hung up because of that.
	replica *os.File
}

// ensureTerminals mounts devpts where the runtime did not. Where that fails there
// are no terminals, and whoever asks for one is told.
func ensureTerminals() {
	const dir, multiplexer = "/dev/pts", "/dev/ptmx"
	if _, err := os.Stat(dir + "/ptmx"); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o755); err == nil {
			_ = unix.Mount("devpts", dir, "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0600")
		}
	}
	if _, err := os.Lstat(multiplexer); errors.Is(err, fs.ErrNotExist) {
		_ = os.Symlink("pts/ptmx", multiplexer)
	}
}

// openTerminal makes one that belongs to a. Errors: KindCapacity when there are
// none left, KindUnsupported when there never were any.
func openTerminal(a account, size guest.Size) (t *terminal, err error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, terminalError(err)
	}
	t = &terminal{master: os.NewFile(uintptr(master), "terminal")}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, terminalError(err)
	}
	if err := resize(master, size); err != nil {
		return nil, terminalError(err)
	}
	// Not by its name: what is at that, root in the guest decides.
	replica, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, terminalError(errno)
	}
	t.replica = os.NewFile(replica, "terminal")
	if err := unix.Fchown(int(replica), a.uid, a.gid); err != nil {
		return nil, terminalError(err)
	}
	return t, nil
}

func terminalError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return sandbox.Errorf("exec", sandbox.KindCapacity, "the sandbox can make no more terminals")
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL):
		return sandbox.Errorf("exec", sandbox.KindUnsupported, "there are no terminals in this sandbox: /dev/ptmx is missing or no such device")
	}
	return sandbox.Errorf("exec", sandbox.KindOf(err), "no terminal: %w", err)
}

func resize(fd int, size guest.Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(size.Cols), Row: uint16(size.Rows)})
}

// close closes both ends: whoever still has it is hung up. Idempotent.
func (t *terminal) close() {
	t.master.Close()
	t.ended()
}

// ended makes the output end as soon as it has been read and no process has the
// terminal any more. Idempotent.
func (t *terminal) ended() {
	if t.replica != nil {
		t.replica.Close()
	}
}

// Resize implements Process.
func (p *program) Resize(size guest.Size) error {
	if p.tty == nil {
		return sandbox.Errorf("resize", sandbox.KindConflict, "the process has no terminal")
	}
	c, err := p.tty.master.SyscallConn()
	if err == nil {
		if cerr := c.Control(func(fd uintptr) { err = resize(int(fd), size) }); cerr != nil {
			err = cerr
		}
	}
	if errors.Is(err, os.ErrClosed) {
		return notFound("the process has ended")
	}
	return err
}

// keyboard is the input of a program with a terminal.
type keyboard struct{ p *program }

// Write implements io.Writer. It blocks while the terminal takes no more.
func (k keyboard) Write(b []byte) (n int, err error) {
	t := k.p.tty
	for len(b) > n {
		end := len(b)
		if i := t.signals(b[n:]); i > 0 {
			end = n + i
		} else if i == 0 {
			t.flush()
			end = n + 1
		}
		m, err := t.master.Write(b[n:end])
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// signals is the index of the first character that makes a signal and discards
// what has been typed and not been read; -1 without any.
func (t *terminal) signals(b []byte) (at int) {
	at = -1
	if bytes.IndexFunc(b, func(r rune) bool { return r < ' ' || r > '~' }) < 0 {
		return at // most of all input
	}
	t.control(func(fd int) {
		set, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil || set.Lflag&unix.ISIG == 0 || set.Lflag&unix.NOFLSH != 0 {
			return
		}
		at = bytes.IndexFunc(b, func(r rune) bool {
			return r != 0 && r < 0x80 && (byte(r) == set.Cc[unix.VINTR] || byte(r) == set.Cc[unix.VQUIT] || byte(r) == set.Cc[unix.VSUSP])
		})
	})
	return at
}

// flush discards what has been typed and not been read. Linux does so when it
// meets a character that makes a signal. gVisor would let the character wait
// behind it: ^C had no effect on a program that does not read.
func (t *terminal) flush() {
	t.control(func(fd int) { _ = unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH) }) // if it fails the character waits
}

// control calls f with the replica unless that is closed.
func (t *terminal) control(f func(fd int)) {
	if c, err := t.replica.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// Close implements io.Closer: it hangs up. The terminal itself stays, for what
// the program prints until it ends; one that ignores SIGHUP goes on.
func (k keyboard) Close() error {
	if err := k.p.Signal(sighup); err != nil {
		return err // it has ended
	}
	return k.p.Signal(int(unix.SIGCONT))
}
