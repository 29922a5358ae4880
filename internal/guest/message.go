package guest

import (
	"errors"
	"io/fs"
	"strings"
	"time"
	"unicode"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// ProtocolVersion is what both hellos must carry.
const ProtocolVersion = 1

// Hello is the first JSON message in each direction.
type Hello struct {
	Protocol     int       `json:"protocol"`
	Version      string    `json:"version,omitempty"`      // of the program
	Nonce        string    `json:"nonce,omitempty"`        // →: the guest's nonce, in hex
	Capabilities []string  `json:"capabilities,omitempty"` // ←
	NextID       uint32    `json:"next_id,omitempty"`      // ←: lowest id never used
	Settings     *Settings `json:"settings,omitempty"`     // →
}

// Settings is what the host decides about a sandbox. The latest hello wins.
type Settings struct {
	User   string `json:"user,omitempty"`   // who runs code by default
	PIDs   int    `json:"pids,omitempty"`   // tasks user code may hold; 0: unlimited
	Memory int64  `json:"memory,omitempty"` // bytes user code may use; 0: unlimited
	Window int    `json:"window,omitempty"` // of each output channel
}

// Op names an operation of a call.
type Op string

// The operations. What an agent does not know it answers with KindUnsupported.
const (
	OpPing      Op = "ping"
	OpExec      Op = "exec"
	OpSignal    Op = "signal"
	OpResize    Op = "resize"
	OpAttach    Op = "attach"
	OpDetach    Op = "detach"
	OpLimit     Op = "limit"
	OpProcesses Op = "processes"
	OpRead      Op = "read"
	OpWrite     Op = "write"
	OpStat      Op = "stat"
	OpList      Op = "list"
	OpMkdir     Op = "mkdir"
	OpSymlink   Op = "symlink"
	OpMove      Op = "move"
	OpRemove    Op = "remove"
	OpWatch     Op = "watch"
	OpDial      Op = "dial"
	OpTrust     Op = "trust"
	OpStandby   Op = "standby"
	OpStandDown Op = "stand-down"
)

// Call asks the guest for something. Exactly the part that fits Op is set.
type Call struct {
	Op      Op         `json:"op"`
	Exec    *ExecCall  `json:"exec,omitempty"`
	Process *ProcCall  `json:"process,omitempty"`
	File    *FileCall  `json:"file,omitempty"`
	Dial    *DialCall  `json:"dial,omitempty"`
	Trust   *TrustCall `json:"trust,omitempty"`
	// Only for an agent with CapabilityStandby: others do not know the operation.
	Standby *StandbyCall `json:"standby,omitempty"`
}

// StandbyCall has the agent keep one interpreter ready, in place of the one it was
// asked for before: Argv, which waits on descriptor 3 for source text. It becomes
// the next program whose arguments begin with Match, followed by that text, if
// nothing that it could have seen when it started has changed since.
type StandbyCall struct {
	Argv  []string `json:"argv"`
	Match []string `json:"match"`
	Env   []string `json:"env,omitempty"` // as ExecCall has it
	User  string   `json:"user,omitempty"`
}

// ExecCall starts a program. The call's id becomes the process id of the
// protocol (not the PID).
type ExecCall struct {
	Argv  []string `json:"argv"`
	Env   []string `json:"env,omitempty"` // KEY=VALUE, on top of the base environment
	Dir   string   `json:"dir,omitempty"` // relative to the home, which is the default
	User  string   `json:"user,omitempty"`
	Stdin bool     `json:"stdin,omitempty"` // false: /dev/null
	// A terminal of this size for all three standard streams: what it prints is
	// stdout, stderr is at its end. Only for an agent with CapabilityPTY: others do
	// not know the field.
	PTY     *Size `json:"pty,omitempty"`
	Timeout int64 `json:"timeout_ms,omitempty"`
}

// Size is the size of a terminal, in characters.
type Size struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

// MaxSide is the most columns, and rows, of a terminal: programs allocate as many.
const MaxSide = 4096

// Check refuses what is no size of a terminal: KindInvalid.
func (s Size) Check() error {
	if s.Cols < 1 || s.Rows < 1 || s.Cols > MaxSide || s.Rows > MaxSide {
		return sandbox.Errorf("terminal", sandbox.KindInvalid, "a terminal of %d columns and %d rows", s.Cols, s.Rows).
			WithHint("both are from 1 to %d", MaxSide)
	}
	return nil
}

// Capabilities that an agent may lack, being of an older version.
const (
	CapabilityPTY    = "pty"    // it makes terminals
	CapabilityWindow = "window" // it keeps to FileCall.Window
	// It keeps interpreters ready.
	CapabilityStandby = "standby"
	// It can end the one that waits.
	CapabilityStandDown = "stand-down"
)

// ProcCall is about the process ID: signal, resize, attach, detach.
type ProcCall struct {
	ID     uint32 `json:"id"`
	Signal int    `json:"signal,omitempty"`
	Size   *Size  `json:"size,omitempty"`   // resize
	Stdout int64  `json:"stdout,omitempty"` // attach: offsets the host already has; -1: whatever is kept
	Stderr int64  `json:"stderr,omitempty"`
	Left   int64  `json:"left,omitempty"` // limit: milliseconds until the deadline; 0: none
}

// FileCall is a file operation.
type FileCall struct {
	Path    string      `json:"path"`
	To      string      `json:"to,omitempty"` // move; symlink: what it holds
	User    string      `json:"user,omitempty"`
	Offset  int64       `json:"offset,omitempty"` // read
	Length  int64       `json:"length,omitempty"` // read; 0: to the end
	Mode    fs.FileMode `json:"mode,omitempty"`   // write, mkdir: permission bits
	Parents bool        `json:"parents,omitempty"`
	Append  bool        `json:"append,omitempty"`
	MaxSize int64       `json:"max_size,omitempty"`  // write: refuse to grow beyond; 0: no cap
	Depth   int         `json:"depth,omitempty"`     // list: 1 is the directory itself
	Max     int         `json:"max,omitempty"`       // list: entries
	Force   bool        `json:"force,omitempty"`     // remove: a missing path is fine
	Tree    bool        `json:"recursive,omitempty"` // remove, watch
	Window  int         `json:"window,omitempty"`    // read, list, watch: in place of FileWindow. Only for an agent with CapabilityWindow
	// What else is kept of the file, names without AttributePrefix; only for an agent
	// with CapabilityAttributes: others do not know the field.
	Attributes map[string]string `json:"attributes,omitempty"` // write
}

// DialCall opens a connection to a port of the sandbox's own loopback. After
// the answer, file frames carry its bytes both ways.
type DialCall struct {
	Port int `json:"port"`
}

// TrustCall makes programs trust an authority beside those that they trust.
type TrustCall struct {
	Certificate string `json:"certificate"` // one, in PEM
	// Link is the hash of its subject by which OpenSSL looks for it in a directory.
	Link     string   `json:"link"`
	ReadOnly bool     `json:"read_only,omitempty"` // the root is: all there can be is TrustDir
	Java     []string `json:"java,omitempty"`      // directories of Java, besides those that are known
}

// Reply answers a call: Error, or what the operation returns.
type Reply struct {
	Error     *WireError    `json:"error,omitempty"`
	Process   *ProcessInfo  `json:"process,omitempty"`   // exec, attach
	Processes []ProcessInfo `json:"processes,omitempty"` // processes
	File      *FileInfo     `json:"file,omitempty"`      // stat, read, write
	More      bool          `json:"more,omitempty"`      // list, processes: entries were left out
}

// ProcessInfo describes a process of the sandbox that an exec started.
type ProcessInfo struct {
	ID      uint32    `json:"id"`
	PID     int       `json:"pid"`
	Argv    []string  `json:"argv,omitempty"` // shortened
	User    string    `json:"user,omitempty"`
	Started time.Time `json:"started"`
	Exit    *Exit     `json:"exit,omitempty"` // set when it has ended and is not acknowledged
	// Attach only: where each channel stands. Output resumes at these offsets,
	// input is expected from Stdin on.
	Stdin  int64 `json:"stdin,omitempty"`
	Stdout int64 `json:"stdout,omitempty"`
	Stderr int64 `json:"stderr,omitempty"`
}

// Exit is how a process ended, as the guest reports it.
type Exit struct {
	Code     int            `json:"code"`             // its own, or 128 + Signal
	Signal   int            `json:"signal,omitempty"` // that ended it
	Reason   sandbox.Reason `json:"reason"`           // done, timeout, memory, pids, disk, operator
	Detail   string         `json:"detail,omitempty"`
	Result   bool           `json:"result,omitempty"` // there is a result file: spares most hosts a question
	Duration time.Duration  `json:"duration_ns"`
	CPU      time.Duration  `json:"cpu_ns,omitempty"`  // user and system, children waited for
	MaxRSS   int64          `json:"max_rss,omitempty"` // bytes
}

// FileInfo describes a file inside a sandbox. Everything in it is the guest's
// claim.
type FileInfo struct {
	Path    string      `json:"path"` // absolute; in a listing relative to the directory
	Size    int64       `json:"size"`
	Mode    fs.FileMode `json:"mode"` // type and permission bits
	ModTime time.Time   `json:"mod_time"`
	UID     int         `json:"uid"`
	GID     int         `json:"gid"`
	Target  string      `json:"target,omitempty"` // of a symbolic link
	// Attributes are those of AttributePrefix, without it.
	Attributes map[string]string `json:"attributes,omitempty"`
}

// IsDir reports whether it is a directory.
func (f FileInfo) IsDir() bool { return f.Mode.IsDir() }

// Name is the last element of Path.
func (f FileInfo) Name() string { return f.Path[strings.LastIndexByte(f.Path, '/')+1:] }

// WireError is an error on the wire.
type WireError struct {
	Kind    sandbox.Kind `json:"kind"`
	Message string       `json:"message"`
	Cause   Cause        `json:"cause,omitempty"`
}

// guestKinds are the kinds a guest may claim. It has no say in
// authentication, capacity of the host and the like.
var guestKinds = map[sandbox.Kind]bool{
	sandbox.KindInvalid: true, sandbox.KindDenied: true, sandbox.KindNotFound: true,
	sandbox.KindExists: true, sandbox.KindConflict: true, sandbox.KindGone: true,
	sandbox.KindUnsupported: true, sandbox.KindCapacity: true, sandbox.KindTooLarge: true,
	sandbox.KindNoSpace: true, sandbox.KindTimeout: true, sandbox.KindCanceled: true,
	sandbox.KindIsDirectory: true, sandbox.KindNotDirectory: true, sandbox.KindInternal: true,
}

// ErrorOnWire turns err into what crosses the wire. Nil stays nil.
func ErrorOnWire(err error) *WireError {
	if err == nil {
		return nil
	}
	e := &WireError{Kind: sandbox.KindOf(err), Message: err.Error(), Cause: causeOf(err)}
	var typed *sandbox.Error
	if errors.As(err, &typed) {
		e.Message = typed.Message() // the host adds the operation
	}
	if len(e.Message) > maxMessage {
		e.Message = e.Message[:maxMessage]
	}
	return e
}

const maxMessage = 1 << 10

// clean makes a guest's text safe to show: bounded, valid UTF-8, and without what
// rewrites a terminal or the order of its text.
func clean(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strings.Map(func(r rune) rune {
		if Obeyed(r) {
			return -1
		}
		return r
	}, s)
}

// Obeyed tells characters that a terminal or a viewer obeys from those it shows:
// controls, what ends a line, what changes the direction of text. Names and
// messages from a guest must not have them shown.
func Obeyed(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp)
}

// unwire is the host's view of a guest's error.
func unwire(op string, e *WireError) error {
	if !guestKinds[e.Kind] {
		return lying(op, "%s", clean(e.Message, maxMessage))
	}
	out := sandbox.Errorf(op, e.Kind, "%s", clean(e.Message, maxMessage))
	out.Hint = causeHints[e.Cause] // of a cause that is not known: none
	return out
}
