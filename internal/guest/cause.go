package guest

import (
	"errors"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Cause tells apart what has one kind in the files of a guest. It crosses the
// wire by this name; the words for people are the host's own, never the guest's.
type Cause string

// The causes, and under which kind they come.
const (
	CauseReadOnly Cause = "read_only"    // denied: the file system may not be written
	CauseName     Cause = "name"         // invalid: a name or a path is too long
	CauseLinks    Cause = "links"        // invalid: symbolic links lead nowhere, or too far
	CauseSpecial  Cause = "special"      // invalid: a FIFO, socket or device
	CauseDevices  Cause = "cross_device" // invalid: a move between file systems
	CauseArgument Cause = "argument"     // invalid: what no file system can do
	CauseBusy     Cause = "busy"         // conflict: in use, as a mount point is
	CauseNotEmpty Cause = "not_empty"    // conflict: a directory with something in it
	CauseSize     Cause = "size"         // too_large: of a file
	CauseTree     Cause = "tree"         // too_large: of what is watched
)

// causeHints say what to do about each cause.
var causeHints = map[Cause]string{
	CauseReadOnly: "this part of the sandbox cannot be written: use the home directory or /tmp, or create the sandbox without readonly_root",
	CauseName:     "a name has up to 255 bytes, a path up to 4095: choose a shorter one",
	CauseLinks:    "a symbolic link leads to itself, or there are too many in the path: use the path of the file itself",
	CauseSpecial:  "only regular files have content to read and write: use a program in the sandbox for FIFOs, sockets and devices",
	CauseDevices:  "between file systems only regular files are moved: copy it with a program in the sandbox, then remove it",
	CauseArgument: "a directory does not go into itself, and \".\" and \"..\" are no names to change",
	CauseBusy:     "it is in use, as a mount point or a program that runs: choose another path, or try again when that has ended",
	CauseSize:     "it is larger than a file may be: store less, or in parts",
	CauseTree:     "watch a directory further down, or several without recursive",
	CauseNotEmpty: "remove it with recursive, or what is in it first",
}

// caused is an error with a cause.
type caused struct {
	error
	cause Cause
}

// Unwrap returns the error.
func (c *caused) Unwrap() error { return c.error }

// Because gives err a cause, which the caller is told what to do about.
func Because(c Cause, err error) error { return &caused{err, c} }

// causeOf is the cause of err, if it has one.
func causeOf(err error) Cause {
	var c *caused
	if errors.As(err, &c) {
		return c.cause
	}
	return ""
}

// tooLong refuses a path that no system call takes.
func tooLong(op Op, p string) error {
	return sandbox.Errorf(string(op), sandbox.KindInvalid, "a path of %d bytes is too long", len(p)).WithHint("%s", causeHints[CauseName])
}
