package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// explain turns a failed boot into a typed error that says what runsc said.
func (i *Instance) explain(ctx context.Context, err error) error {
	id := string(i.id)
	if cause := ctx.Err(); cause != nil {
		return sandbox.Errorf("create", sandbox.KindOf(cause), "the agent did not answer: %w", cause).WithID(id)
	}
	kind := sandbox.KindOf(err)
	if kind == sandbox.KindInternal || kind == sandbox.KindNotFound || kind == sandbox.KindExists {
		kind = sandbox.KindInternal
	}
	if i.said != "" {
		err = fmt.Errorf("%w: %s", err, i.said)
	}
	if kind == sandbox.KindInternal && nearlyFull(i.b.cfg.Dir) {
		kind = sandbox.KindNoSpace // a sentry whose files cannot grow dies without a word
	}
	if limit := fileLimit(); kind == sandbox.KindInternal && limit < 512 {
		return sandbox.Errorf("create", sandbox.KindCapacity, "gVisor does not start with %d descriptors: %w", limit, err).WithID(id).
			WithHint("raise the hard limit on open files that the server runs with (ulimit -Hn, LimitNOFILE=)")
	}
	if kind == sandbox.KindInternal {
		return sandbox.Errorf("create", kind, "%w", err).WithID(id)
	}
	switch kind {
	case sandbox.KindNoSpace:
		return sandbox.Errorf("create", kind, "the host's disk is full: %w", bare(err)).WithID(id).
			WithHint("free space, or inodes, on the disk of the data directory")
	case sandbox.KindCapacity:
		return exhausted(id, err)
	}
	return sandbox.Errorf("create", kind, "%w", err).WithID(id)
}

// exhausted is the answer when this process, or the host, has none left of
// something that starting a sandbox takes.
func exhausted(id string, err error) error {
	e := sandbox.Errorf("create", sandbox.KindCapacity, "the host has no more descriptors, tasks or memory for us: %w", bare(err)).WithID(id).
		WithHint("retry in a moment, or raise the limits the server runs with")
	e.RetryAfter = 5 * time.Second
	return e
}

// bare is an error of the host without the files it names: the reader may be a
// tenant.
func bare(err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}

// fileLimit is how many descriptors what we start can have at most.
func fileLimit() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return unix.RLIM_INFINITY
	}
	return l.Max
}

// nearlyFull reports whether dir's file system lacks the space, or the inodes,
// that starting a sandbox takes.
func nearlyFull(dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false
	}
	return int64(st.Bavail)*st.Bsize < 64<<20 || st.Files > 0 && st.Ffree < 64
}

// lastWords is what the runtime or the sentry wrote before it failed, at most
// a line of it.
func lastWords(dir string) string {
	if b := head(filepath.Join(dir, filePanicLog)); len(b) > 0 {
		line, _, _ := strings.Cut(string(b), "\n")
		return clip(line)
	}
	return lastLine(filepath.Join(dir, fileRunscLog))
}

// lastLine is the last message in a log of runsc.
func lastLine(name string) string {
	var last string
	for line := range strings.Lines(string(head(name))) {
		var m struct{ Msg string }
		if json.Unmarshal([]byte(line), &m) == nil && m.Msg != "" {
			last = m.Msg
		} else if t := strings.TrimSpace(line); t != "" {
			last = t
		}
	}
	return clip(last)
}

// head reads at most the first 64 KiB of a file.
func head(name string) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	n, _ := f.Read(b)
	return b[:n]
}

func clip(s string) string {
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
