package agent

import (
	"context"
	"io"
	"io/fs"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// System is the machine an agent serves: the real Linux guest (NewLinux), or a
// model of one. Implementations are safe for concurrent use. Errors are
// *sandbox.Error or file system errors that sandbox.KindOf understands.
type System interface {
	// Start starts a program. Errors: KindNotFound for a missing program,
	// directory or user, KindDenied, KindCapacity when no task or no terminal can be
	// made, KindUnsupported where there are no terminals.
	Start(Program) (Process, error)
	// Files returns the file system as the named user may use it. "" is the
	// default user. Errors: KindNotFound for an unknown user.
	Files(user string) (Files, error)
	// Dial connects to a TCP port of the sandbox's loopback. Errors:
	// KindNotFound when nothing listens there, KindTimeout.
	Dial(ctx context.Context, port int) (Conn, error)
	// Sample measures what user code uses now. It is called every 25 ms while
	// something runs, so it must be cheap.
	Sample() (Sample, error)
	// KillAll kills all user code, programs that detached included, and
	// returns when none is left.
	KillAll() error
	// KillLargest kills the process with the most memory and everything of the
	// program it belongs to, which it returns; nil when it belonged to none.
	KillLargest(running []Process) (Process, error)
}

// Truster is a System whose programs can be made to trust an authority.
type Truster interface {
	// Trust puts the certificate where programs look for those they trust, in the
	// place of what an earlier call put there. Errors: KindInvalid, and those of files
	// about guest.TrustDir or the system's own list, when not all is done; where nothing
	// can be written nothing is.
	Trust(guest.TrustCall) error
}

// Conn is a connection to a program of the sandbox.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Program is what Start starts.
type Program struct {
	ID    uint32      // the exec's id, unique for the life of the sandbox
	Argv  []string    // Argv[0] is looked up in the environment's PATH
	Env   []string    // KEY=VALUE, on top of the base environment
	Dir   string      // relative to the home, which is the default
	User  string      // name or number; "" is the default user
	Stdin bool        // give it a pipe instead of /dev/null
	PTY   *guest.Size // give it a terminal instead of all three; Stdin is set, too
	// The sandbox's limits, for what a System can do beside the agent; 0: none.
	PIDs   int   // may be backed with RLIMIT_NPROC
	Memory int64 // bytes; Sample need not be exact far below
	// Untouched says that the host has changed no file since the Standby was begun that
	// is to become it.
	Untouched bool
}

// Process is a started program: a process that leads its own session and
// process group.
type Process interface {
	PID() int
	// Stdio returns the program's standard streams. in is nil without
	// Program.Stdin; closing it gives the program end of file, and hangs up a
	// terminal: SIGHUP. out and errs
	// end no later than a short grace after the program itself, even when a
	// process it left behind still holds them.
	Stdio() (in io.WriteCloser, out, errs io.ReadCloser)
	// Signal sends a signal to the process group. Errors: KindNotFound when
	// the program has ended.
	Signal(sig int) error
	// Resize changes the size of the program's terminal. Errors: KindConflict
	// without one, KindNotFound when the program has ended.
	Resize(guest.Size) error
	// Kill kills the program and all its descendants, also those that left its
	// process group or session.
	Kill() error
	// Wait blocks until the program has ended and what was left of its process
	// group and session has been killed. It is called once.
	Wait() Status
}

// Status is how a program ended.
type Status struct {
	Code     int // its own, or 128 + Signal
	Signal   int
	CPU      time.Duration
	MaxRSS   int64 // bytes
	DiskFull bool  // it failed and the file systems it writes to are full
	Result   bool  // it left a result file
}

// Sample is a measurement. A negative value means unknown.
type Sample struct {
	Tasks  int   // processes and threads of user code
	Memory int64 // bytes used by user code
}

// Files is the file system as one user may use it. Relative paths start at the
// user's home.
type Files interface {
	FileReader
	FileChanger
}

// FileReader is the reading half of Files.
type FileReader interface {
	// Open opens a regular file. Errors: KindIsDirectory; KindInvalid for
	// what is neither file nor directory.
	Open(path string) (File, error)
	// Stat does not follow a final symbolic link.
	Stat(path string) (guest.FileInfo, error)
	// List returns a directory's entries, depth levels deep, in order of name,
	// paths relative to it; more says that there were over max.
	List(path string, depth, max int) (entries []guest.FileInfo, more bool, err error)
	// Watch reports to q what happens in a directory, and with recursive below
	// it, until it is closed; then nothing more comes. It ends q when the
	// directory is not at path any more. See guest.Session.Watch.
	Watch(path string, recursive bool, q *guest.FileEvents) (io.Closer, error)
}

// File is a regular file open for reading.
type File interface {
	io.ReaderAt
	io.Closer
	Info() guest.FileInfo
}

// FileChanger is the writing half of Files.
type FileChanger interface {
	// Create opens path for writing. Nothing is visible at path until Commit,
	// unless it appends.
	Create(path string, o CreateOptions) (Writer, error)
	// Mkdir makes a directory. With parents it makes what is missing on the
	// way and an existing directory is fine.
	Mkdir(path string, perm fs.FileMode, parents bool) error
	// Symlink makes a symbolic link, replacing a file or link at path, and
	// missing directories.
	Symlink(target, path string) error
	// Move renames, replacing a file at to.
	Move(from, to string) error
	// Remove removes a file or an empty directory, or a tree. With force, a
	// missing path is fine.
	Remove(path string, tree, force bool) error
}

// CreateOptions are the options of Create.
type CreateOptions struct {
	Perm    fs.FileMode // 0: 0644, or the existing file's
	Parents bool
	Append  bool
	// Attributes, names without their prefix, are the file's, and no others.
	Attributes map[string]string
}

// Writer is a file being written. Exactly one of Commit and Abort ends it.
type Writer interface {
	io.Writer
	Commit() (guest.FileInfo, error)
	Abort()
}
