package audit

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/sandbox"
)

const checkpointName = "checkpoint"

// maxNote bounds a signed note that is read: a hundred signatures, and a text.
const maxNote = 64 << 10

// Checkpoint states what the first Size records of a log are. As text it is a
// checkpoint of C2SP tlog-checkpoint, which is signed as a note.
type Checkpoint struct {
	Origin string    // which log
	Size   int64     // how many records
	Root   tlog.Hash // of the tree over them
}

// Text is what is signed.
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(c.Root[:]) + "\n"
}

// ParseCheckpoint decodes the text of a checkpoint; lines behind the third are
// extensions, which it ignores. It checks no signature. Errors: KindInvalid.
func ParseCheckpoint(text string) (Checkpoint, error) {
	var c Checkpoint
	bad := func(what string) (Checkpoint, error) {
		return Checkpoint{}, sandbox.Errorf("read checkpoint", sandbox.KindInvalid, "it is no checkpoint: %s", what)
	}
	if len(text) > maxNote || !strings.HasSuffix(text, "\n") {
		return bad("it does not end in a newline")
	}
	lines := strings.Split(text[:len(text)-1], "\n")
	if len(lines) < 3 {
		return bad("it has less than three lines")
	}
	for _, l := range lines {
		if l == "" {
			return bad("a line is empty")
		}
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || size > math.MaxInt64 || strconv.FormatUint(size, 10) != lines[1] {
		return bad("the size is no number")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(c.Root) || base64.StdEncoding.EncodeToString(root) != lines[2] {
		return bad("the root is no hash")
	}
	c.Origin, c.Size = lines[0], int64(size)
	copy(c.Root[:], root)
	return c, nil
}

// OpenCheckpoint decodes a signed checkpoint and checks the signatures of the
// verifiers given, of which at least one must have signed; those of others are
// ignored. Errors: KindInvalid.
func OpenCheckpoint(msg []byte, v ...note.Verifier) (Checkpoint, *note.Note, error) {
	if len(msg) > maxNote {
		return Checkpoint{}, nil, sandbox.Errorf("read checkpoint", sandbox.KindInvalid, "the note has %d bytes", len(msg))
	}
	n, err := note.Open(msg, note.VerifierList(v...))
	var unknown *note.UnverifiedNoteError
	if errors.As(err, &unknown) {
		return Checkpoint{}, nil, sandbox.Errorf("read checkpoint", sandbox.KindInvalid, "it is not signed by the key asked for").
			WithHint("the key may have been rotated, or the log may be another one")
	}
	if err != nil {
		return Checkpoint{}, nil, sandbox.Errorf("read checkpoint", sandbox.KindInvalid, "%w", err)
	}
	c, err := ParseCheckpoint(n.Text)
	return c, n, err
}

// ReadCheckpoint returns the newest signed checkpoint of the log in dir, in any
// process, also while the log is written. Errors: KindNotFound where there is
// none: in no log this program has opened.
func ReadCheckpoint(dir string) ([]byte, error) {
	b, err := readBounded(filepath.Join(dir, checkpointName), maxNote)
	return b, sandbox.Wrap("read checkpoint", dir, err)
}

// checkpointOf decodes a note and checks no signature.
func checkpointOf(msg []byte) (Checkpoint, error) {
	text, _, ok := strings.Cut(string(msg), "\n\n")
	if !ok {
		return ParseCheckpoint("")
	}
	return ParseCheckpoint(text + "\n")
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Size() > limit || !fi.Mode().IsRegular() {
		return nil, sandbox.Errorf("read audit log", sandbox.KindInternal, "%s is damaged", filepath.Base(path))
	}
	return os.ReadFile(path)
}

// readSigned returns the checkpoint in dir and which of the verifiers signed
// it; nil where there is no checkpoint.
func readSigned(dir string, v []note.Verifier) (Checkpoint, *note.Signature, error) {
	msg, err := readBounded(filepath.Join(dir, checkpointName), maxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return Checkpoint{}, nil, nil
	}
	if err != nil {
		return Checkpoint{}, nil, err
	}
	c, n, err := OpenCheckpoint(msg, v...)
	if err != nil {
		return c, nil, err
	}
	return c, &n.Sigs[len(n.Sigs)-1], nil
}

// GapError says that a log is not what was signed: records are missing, or are
// others. Open refuses such a log; see Acknowledge.
type GapError struct {
	Origin string
	Size   int64     // how many records were signed
	Root   tlog.Hash // of the tree over them
	Found  int64     // how many there are, as far as they can be read
	Other  tlog.Hash // the root over the records that are there; zero where there are too few
	Reason string    // what does not fit
}

// Error implements error.
func (e *GapError) Error() string {
	return "the audit log is not what was signed: " + e.Reason
}

// gap makes the error that Open refuses with.
func gap(g GapError) error {
	return sandbox.Errorf("open audit log", sandbox.KindConflict, "%w", &g).
		WithHint("keep the directory; restore a backup, or have an operator run `firebreak audit acknowledge`, which keeps it aside and records that")
}
