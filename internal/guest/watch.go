package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// WatchOptions are the options of Watch.
type WatchOptions struct {
	User      string
	Recursive bool // directories below it, too
}

// Watch is a directory being watched. Close it. One goroutine may call Next.
type Watch struct {
	s     *Session
	id    uint32
	in    *Stream
	lines *bufio.Scanner
}

// Watch watches a directory: what happens in it once Watch has returned, and with
// Recursive below it, is an event. Symbolic links below it are not followed.
// Directories that appear are watched, and what they hold by then is reported as
// created. What the user may not read is not seen.
//
// Errors: those of files; KindTooLarge for a tree of more than 8192 directories or
// 128 levels; KindCapacity beyond 16 watches in a sandbox; KindUnsupported where
// changes are not reported (/proc, /sys).
//
// Cost: one round trip, and two system calls for each directory.
func (s *Session) Watch(ctx context.Context, path string, o WatchOptions) (*Watch, error) {
	if err := checkPath(OpWatch, path); err != nil {
		return nil, err
	}
	_, id, in, err := s.download(ctx, OpWatch, &FileCall{Path: path, User: o.User, Tree: o.Recursive})
	if err != nil {
		return nil, err
	}
	w := &Watch{s: s, id: id, in: in, lines: bufio.NewScanner(in)}
	w.lines.Buffer(nil, MaxControl)
	return w, nil
}

// Next waits for the next event. It returns io.EOF when the watched directory was
// removed, renamed or unmounted, and the session's error when that has ended. The
// end of ctx ends the watch.
func (w *Watch) Next(ctx context.Context) (FileEvent, error) {
	stop := context.AfterFunc(ctx, func() { w.in.Fail(sandbox.Wrap("watch", "", ctx.Err())) })
	defer stop()
	if !w.lines.Scan() {
		if err := w.lines.Err(); err != nil {
			return FileEvent{}, sandbox.Wrap("watch", "", err)
		}
		return FileEvent{}, io.EOF
	}
	e, err := decodeEvent(w.lines.Bytes())
	if err != nil {
		w.Close()
	}
	return e, err
}

// decodeEvent reads an event of a guest's. Names keep their control characters.
func decodeEvent(line []byte) (e FileEvent, err error) {
	if json.Unmarshal(line, &e) != nil || !e.valid() {
		return FileEvent{}, lying("watch", "the guest sent a bad event")
	}
	return e, nil
}

// Close ends the watch. Idempotent; always nil.
func (w *Watch) Close() error {
	w.s.abandon(w.id)
	return w.in.Close()
}
