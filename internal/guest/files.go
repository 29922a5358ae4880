package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ResultPath is the result file of the process id.
func ResultPath(id uint32) string { return ResultPrefix + strconv.FormatUint(uint64(id), 10) }

// Paths are absolute or relative to the user's home. Every file operation acts
// with the permissions of its user ("" is the default user) and fails with
// KindNotFound, KindExists, KindIsDirectory, KindNotDirectory, KindDenied,
// KindConflict, KindNoSpace, KindTooLarge or KindInvalid, or with the session's
// error. A Cause says more, in the error's hint.

// MaxPath is the longest path accepted, in bytes.
const MaxPath = 4095

func checkPath(op Op, paths ...string) error {
	for _, p := range paths {
		switch {
		case len(p) > MaxPath:
			return tooLong(op, p)
		case p == "" || strings.IndexByte(p, 0) >= 0:
			return sandbox.Errorf(string(op), sandbox.KindInvalid, "bad path %q", clean(p, 64)).
				WithHint("a path is not empty and has no NUL byte")
		}
	}
	return nil
}

// ReadOptions are the options of ReadFile.
type ReadOptions struct {
	User   string
	Offset int64
	Length int64 // 0: to the end
}

// FileReader is a file of a sandbox, open for reading. Close it.
type FileReader struct {
	Info FileInfo // as of the start
	s    *Session
	id   uint32
	in   *Stream
	left int64 // the host's own idea of what may come; -1: unlimited
}

// ReadFile opens a regular file. The content comes as it is read, so that a
// file of any size takes bounded memory. The guest decides what the content is:
// it may be longer or shorter than Info says, but never longer than Length.
func (s *Session) ReadFile(ctx context.Context, path string, o ReadOptions) (*FileReader, error) {
	if err := checkPath(OpRead, path); err != nil {
		return nil, err
	}
	if o.Offset < 0 || o.Length < 0 {
		return nil, sandbox.Errorf("read", sandbox.KindInvalid, "negative offset or length")
	}
	r, id, in, err := s.download(ctx, OpRead, &FileCall{Path: path, User: o.User, Offset: o.Offset, Length: o.Length})
	if err != nil {
		return nil, err
	}
	if r.File == nil {
		s.abandon(id)
		return nil, lying("read", "the guest's answer lacks the file")
	}
	f := &FileReader{Info: cleanInfo(*r.File), s: s, id: id, in: in, left: -1}
	if o.Length > 0 {
		f.left = o.Length
	}
	return f, nil
}

// download makes a call whose answer is followed by data.
func (s *Session) download(ctx context.Context, op Op, f *FileCall) (Reply, uint32, *Stream, error) {
	c := &call{}
	id, err := s.start(ctx, op, Call{File: f}, c, func(id uint32) { c.in = s.newStream(id, TypeFile, FileWindow, 0) })
	if err != nil {
		return Reply{}, 0, nil, err
	}
	r, err := s.await(ctx, op, id, c)
	return r, id, c.in, err
}

// Read implements io.Reader.
func (f *FileReader) Read(p []byte) (int, error) {
	n, err := f.in.Read(p)
	if f.left >= 0 {
		if int64(n) > f.left {
			f.Close()
			return 0, lying("read", "the guest sent more than was asked for")
		}
		f.left -= int64(n)
	}
	return n, err
}

// WriteTo implements io.WriterTo.
func (f *FileReader) WriteTo(w io.Writer) (int64, error) {
	if f.left >= 0 {
		return io.Copy(w, struct{ io.Reader }{f})
	}
	return f.in.WriteTo(w)
}

// Close stops the transfer if it still goes on. Idempotent; always nil.
func (f *FileReader) Close() error {
	f.s.abandon(f.id)
	return f.in.Close()
}

// ReadAll reads a whole file of at most limit bytes. Errors: KindTooLarge.
func (s *Session) ReadAll(ctx context.Context, path, user string, limit int64) ([]byte, error) {
	f, err := s.ReadFile(ctx, path, ReadOptions{User: user, Length: limit + 1})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.in.Fail(sandbox.Wrap("read", "", ctx.Err())) })
	defer stop()
	b, err := io.ReadAll(f)
	if err == nil && int64(len(b)) > limit {
		err = sandbox.Errorf("read", sandbox.KindTooLarge, "%s is larger than %s", clean(path, 256), sandbox.FormatSize(limit))
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// WriteOptions are the options of WriteFile.
type WriteOptions struct {
	User    string
	Mode    fs.FileMode // permission bits; 0: 0644, or those of the file replaced
	Parents bool        // make missing directories
	Append  bool        // to an existing file, in place
	MaxSize int64       // KindTooLarge beyond it; 0: no cap
	// Attributes take the place of those of the file replaced. Not with Append.
	Attributes map[string]string
}

// uploadWindow is how much of a file is under way to the guest: two steps of what
// it acknowledges at a time. All of FileWindow, which it would take, keeps it no
// busier, and what it has to hold it has to get from its kernel first.
const uploadWindow = FileWindow / 2

// WriteFile writes what r yields to a file. Without Append the content appears
// at path whole or not at all: on any error an existing file is untouched.
// It returns what the file is afterwards.
//
// ctx does not interrupt r.Read. Cost: one round trip; up to uploadWindow is under way.
func (s *Session) WriteFile(ctx context.Context, path string, r io.Reader, o WriteOptions) (FileInfo, error) {
	if err := checkPath(OpWrite, path); err != nil {
		return FileInfo{}, err
	}
	if err := CheckAttributes(o.Attributes); err != nil {
		return FileInfo{}, err
	}
	if len(o.Attributes) > 0 && !slices.Contains(s.agent.Capabilities, CapabilityAttributes) {
		return FileInfo{}, unsupported("write", "keeps no metadata of files")
	}
	c := &call{up: newOutflow(s, TypeFile, uploadWindow)}
	id, err := s.start(ctx, OpWrite, Call{File: &FileCall{Path: path, User: o.User, Mode: o.Mode.Perm(),
		Parents: o.Parents, Append: o.Append, MaxSize: o.MaxSize, Attributes: o.Attributes}}, c, func(id uint32) { c.up.id = id })
	if err != nil {
		return FileInfo{}, err
	}
	if err := c.up.copyFrom(ctx, r); err != nil && err != errAnswered {
		s.abandon(id)
		if s.Err() != nil || ctx.Err() != nil {
			err = s.ended(ctx, OpWrite)
		}
		return FileInfo{}, sandbox.Wrap("write", "", err)
	}
	failpoint.Hit("guest.write/before-commit")
	reply, err := s.await(ctx, OpWrite, id, c)
	if err != nil {
		return FileInfo{}, err
	}
	if reply.File == nil {
		return FileInfo{}, lying("write", "the guest's answer lacks the file")
	}
	return cleanInfo(*reply.File), nil
}

// copyFrom sends all of r and then end. It takes a slot only when the bytes are
// there: a slow r must not keep others waiting.
func (o *outflow) copyFrom(ctx context.Context, r io.Reader) error {
	for {
		offset, room, err := o.reserve(ctx, MaxData)
		if err != nil {
			return err
		}
		buf := bulkPool.Get().(*bulkBuf)
		n, err := io.ReadFull(r, buf.data()[:room])
		o.unreserve(room - n)
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		failpoint.Hit("guest.write/after-read")
		if last {
			err = nil
		}
		if err == nil && n > 0 {
			err = o.s.out.slot(ctx, o.s.done)
		}
		if err != nil || n == 0 {
			bulkPool.Put(buf)
		} else {
			o.s.out.send(o.channel, o.id, offset, buf, n)
		}
		switch {
		case err != nil:
			return err
		case last:
			o.end()
			return nil
		}
	}
}

// unreserve gives back the last n bytes of credit taken.
func (o *outflow) unreserve(n int) {
	o.mu.Lock()
	o.sent -= uint64(n)
	o.mu.Unlock()
}

// Stat describes a file without following a final symbolic link.
func (s *Session) Stat(ctx context.Context, path, user string) (FileInfo, error) {
	r, err := s.file(ctx, OpStat, &FileCall{Path: path, User: user})
	if err != nil {
		return FileInfo{}, err
	}
	if r.File == nil {
		return FileInfo{}, lying("stat", "the guest's answer lacks the file")
	}
	return cleanInfo(*r.File), nil
}

// file makes a call that is one question and one answer about a path.
func (s *Session) file(ctx context.Context, op Op, f *FileCall) (Reply, error) {
	paths := []string{f.Path}
	if op == OpMove || op == OpSymlink {
		paths = append(paths, f.To)
	}
	if err := checkPath(op, paths...); err != nil {
		return Reply{}, err
	}
	return s.do(ctx, op, Call{File: f})
}

// Bounds of a listing.
const (
	MaxEntries     = 100_000
	defaultEntries = 10_000
	maxListing     = 16 << 20 // bytes of JSON: twice that may be held at once
	entryRoom      = 512      // bytes of JSON for an entry, on average
)

// ListOptions are the options of List.
type ListOptions struct {
	User  string
	Depth int // 0 and 1: the directory itself; 2: its subdirectories too; …
	Max   int // entries; 0: 10,000; at most MaxEntries
}

// List lists a directory, sorted by path; paths are relative to it. Symbolic
// links are listed, not followed. more says that there were over Max entries.
//
// Errors: also KindTooLarge when the names are so long that the listing exceeds
// 512 bytes for each entry asked for, or 16 MiB.
func (s *Session) List(ctx context.Context, path string, o ListOptions) (entries []FileInfo, more bool, err error) {
	if err := checkPath(OpList, path); err != nil {
		return nil, false, err
	}
	if o.Max == 0 {
		o.Max = defaultEntries
	}
	if o.Max < 0 || o.Max > MaxEntries || o.Depth < 0 || o.Depth > 1000 {
		return nil, false, sandbox.Errorf("list", sandbox.KindInvalid, "depth or number of entries is out of range")
	}
	r, id, in, err := s.download(ctx, OpList, &FileCall{Path: path, User: o.User, Depth: max(1, o.Depth), Max: o.Max})
	if err != nil {
		return nil, false, err
	}
	defer s.abandon(id)
	defer in.Close()
	stop := context.AfterFunc(ctx, func() { in.Fail(sandbox.Wrap("list", "", ctx.Err())) })
	defer stop()
	entries, err = decodeListing(in, o.Max)
	return entries, r.More, err
}

// decodeListing reads one FileInfo per line, as they come: what a guest sends
// beyond what was asked for is never held.
func decodeListing(r io.Reader, most int) ([]FileInfo, error) {
	entries := []FileInfo{}
	left := min(MaxControl+most*entryRoom, maxListing)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, MaxControl)
	for lines.Scan() {
		if left -= len(lines.Bytes()); left < 0 {
			return nil, sandbox.Errorf("list", sandbox.KindTooLarge, "the names of its entries are too long for one listing").
				WithHint("list fewer levels, or a directory below it")
		}
		var f FileInfo
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil || len(entries) == most {
			return nil, lying("list", "the guest sent a bad listing")
		}
		entries = append(entries, cleanInfo(f))
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, lying("list", "the guest sent a bad listing")
	} else if err != nil {
		return nil, sandbox.Wrap("list", "", err)
	}
	return entries, nil
}

// cleanInfo bounds what a guest says about a file. Names keep their control
// characters, or they would name another file.
func cleanInfo(f FileInfo) FileInfo {
	f.Path = strings.ToValidUTF8(f.Path[:min(len(f.Path), MaxPath)], "\uFFFD")
	f.Target = strings.ToValidUTF8(f.Target[:min(len(f.Target), MaxPath)], "\uFFFD")
	f.Size, f.Attributes = max(0, f.Size), cleanAttributes(f.Attributes)
	return f
}

// Mkdir makes a directory. With parents, what is missing on the way is made
// and an existing directory is fine; else KindExists.
func (s *Session) Mkdir(ctx context.Context, path, user string, perm fs.FileMode, parents bool) error {
	_, err := s.file(ctx, OpMkdir, &FileCall{Path: path, User: user, Mode: perm.Perm(), Parents: parents})
	return err
}

// Symlink makes a symbolic link at path, which replaces a file or link there, and
// missing directories. Whether there is something at target, and where, is nobody's
// concern. Errors: also KindUnsupported, by an agent older than this.
func (s *Session) Symlink(ctx context.Context, target, path, user string) error {
	_, err := s.file(ctx, OpSymlink, &FileCall{Path: path, To: target, User: user})
	return err
}

// Move renames a file or directory, replacing a file that is at to.
func (s *Session) Move(ctx context.Context, from, to, user string) error {
	_, err := s.file(ctx, OpMove, &FileCall{Path: from, To: to, User: user})
	return err
}

// RemoveOptions are the options of Remove.
type RemoveOptions struct {
	User      string
	Recursive bool // a directory and all in it; never follows symbolic links
	Force     bool // a missing path is fine
}

// Remove removes a file or an empty directory, or a tree.
func (s *Session) Remove(ctx context.Context, path string, o RemoveOptions) error {
	_, err := s.file(ctx, OpRemove, &FileCall{Path: path, User: o.User, Tree: o.Recursive, Force: o.Force})
	return err
}
