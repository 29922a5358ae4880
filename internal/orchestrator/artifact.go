package orchestrator

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Bounds of what a run may leave behind.
const (
	maxArtifact      = 64 << 20  // one file
	maxArtifactTotal = 256 << 20 // all files of a run
	maxArtifacts     = 1000      // entries, failed ones included
	maxArtifactDepth = 64
	collectWait      = 2 * time.Minute

	artifactDir = "artifacts"
)

// Artifact is a file collected from a run, or one that could not be.
type Artifact struct {
	Path   string `json:"path"` // relative, slashes
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"`
	Error  string `json:"error,omitempty"` // why it was not collected
}

// artifactSource is what a collector reads from: a guest's session.
type artifactSource interface {
	Stat(ctx context.Context, path, user string) (guest.FileInfo, error)
	List(ctx context.Context, path string, o guest.ListOptions) ([]guest.FileInfo, bool, error)
	ReadFile(ctx context.Context, path string, o guest.ReadOptions) (*guest.FileReader, error)
}

// collector copies artifacts out of a sandbox. Names and contents are hostile:
// a name never becomes a host path but through an os.Root, nothing is followed
// out of it, nothing is overwritten, and every count and size is bounded here.
type collector struct {
	from artifactSource
	user string
	to   *os.Root
	left int64 // bytes
	list []Artifact
	tell func(Artifact)
}

// collect gathers the run's artifacts. One that is missing or refused is
// reported as such and does not fail the run.
func (r *run) collect() {
	if len(r.req.Artifacts) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, collectWait)
	defer cancel()
	list, err := r.gather(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Report.Artifacts = list
	if err != nil {
		r.rec.Report.Notes = append(r.rec.Report.Notes[:len(r.rec.Report.Notes):len(r.rec.Report.Notes)],
			"artifacts were not collected: "+clip(err.Error()))
	}
}

func (r *run) gather(ctx context.Context) ([]Artifact, error) {
	l, done, err := r.o.use(ctx, r.who.Tenant, string(r.req.Sandbox.ID))
	if err != nil {
		return nil, err
	}
	defer done()
	s, err := l.session(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(r.dir(), artifactDir)
	if err := os.RemoveAll(dir); err != nil { // what an earlier server had begun
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var unrecorded error
	c := &collector{from: s, user: r.req.Exec.User, to: root, left: min(maxArtifactTotal, r.o.ledger.keepable(r.who.Tenant)), tell: func(a Artifact) {
		if a.Error == "" {
			err := l.record(ctx, r.who, sandbox.Record{Class: sandbox.Flow, Action: "run.artifact", Outcome: sandbox.OutcomeDone, Object: clip(a.Path),
				Digest: a.SHA256, Detail: map[string]string{"run": string(r.id), "bytes": strconv.FormatInt(a.Size, 10)}})
			unrecorded = cmp.Or(unrecorded, err)
		}
		r.o.publishJSON(l.id, event.Artifact, "", ArtifactEvent{Path: a.Path, Size: a.Size, Error: a.Error}, false)
	}}
	for _, p := range r.req.Artifacts {
		c.collect(ctx, p)
	}
	if unrecorded != nil {
		return nil, errors.Join(unrecorded, os.RemoveAll(dir))
	}
	return c.list, nil
}

// key is the name under which the guest's path p is kept: relative, clean, and
// without a way out.
func artifactKey(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

// collect gathers the file or directory p.
func (c *collector) collect(ctx context.Context, p string) {
	key := artifactKey(p)
	info, err := c.from.Stat(ctx, p, c.user)
	switch {
	case err != nil:
		c.add(Artifact{Path: pick(key, p), Error: reasonText(err)})
	case !info.IsDir(): // a symbolic link is followed by the guest, inside the guest
		c.file(ctx, p, key)
	default:
		c.tree(ctx, p, key)
	}
}

// tree gathers all regular files below the directory p.
func (c *collector) tree(ctx context.Context, p, key string) {
	list, more, err := c.from.List(ctx, p, guest.ListOptions{User: c.user, Depth: maxArtifactDepth, Max: maxArtifacts})
	if err != nil {
		c.add(Artifact{Path: pick(key, p), Error: reasonText(err)})
		return
	}
	for _, e := range list {
		switch {
		case e.IsDir() && strings.Count(e.Path, "/") >= maxArtifactDepth-1:
			c.add(Artifact{Path: path.Join(key, artifactKey(printable(e.Path))), Error: fmt.Sprintf("what is in it lies more than %d directories deep", maxArtifactDepth)})
		case e.IsDir():
		case !e.Mode.IsRegular():
			c.add(Artifact{Path: path.Join(key, artifactKey(printable(e.Path))), Error: "not a regular file"})
		case !safeName(e.Path):
			c.add(Artifact{Path: path.Join(key, artifactKey(printable(e.Path))), Error: "its name is not acceptable"})
		default:
			c.file(ctx, strings.TrimSuffix(p, "/")+"/"+e.Path, path.Join(key, e.Path))
		}
	}
	if more {
		c.add(Artifact{Path: pick(key, p), Error: fmt.Sprintf("the directory has more than %d entries; the rest is missing", maxArtifacts)})
	}
}

// safeName reports whether a name that a guest made up may be a relative path
// on the host.
func safeName(name string) bool {
	if !fs.ValidPath(name) || name == "." || len(name) > 4095 || !filepath.IsLocal(filepath.FromSlash(name)) {
		return false
	}
	for e := range strings.SplitSeq(name, "/") {
		if len(e) > 255 {
			return false
		}
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return guest.Obeyed(r) || r == '\\' || r == '\uFFFD' })
}

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if guest.Obeyed(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return s[:min(len(s), 200)]
}

// add lists an artifact, unless there are too many; the last says so.
func (c *collector) add(a Artifact) {
	switch {
	case len(c.list) >= maxArtifacts:
		return
	case len(c.list) == maxArtifacts-1 && a.Error == "":
		a = Artifact{Path: a.Path, Error: fmt.Sprintf("more than %d artifacts; the rest is missing", maxArtifacts-1)}
	}
	a.Path = strings.ToValidUTF8(a.Path, "?")
	c.list = append(c.list, a)
	c.tell(a)
}

// file copies one file and lists it.
func (c *collector) file(ctx context.Context, from, key string) {
	if len(c.list) >= maxArtifacts-1 {
		c.add(Artifact{Path: key})
		return
	}
	a := Artifact{Path: key}
	if !safeName(key) {
		a.Path, a.Error = printable(key), "its name is not acceptable"
		c.add(a)
		return
	}
	size, sum, err := c.copy(ctx, from, filepath.FromSlash(key))
	if err != nil {
		a.Error = reasonText(err)
	} else {
		a.Size, a.SHA256 = size, sum
		c.left -= size
	}
	c.add(a)
}

// copy writes the guest's file from to name below the root, which must not
// exist. On error nothing is left there.
func (c *collector) copy(ctx context.Context, from, name string) (size int64, sum string, err error) {
	limit := min(maxArtifact, c.left)
	r, err := c.from.ReadFile(ctx, from, guest.ReadOptions{User: c.user, Length: limit + 1})
	if err != nil {
		return 0, "", err
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	if dir := filepath.Dir(name); dir != "." {
		if err := c.to.MkdirAll(dir, 0o700); err != nil {
			return 0, "", err
		}
	}
	f, err := c.to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return 0, "", errors.New("another artifact has the same name")
	}
	if err != nil {
		return 0, "", err
	}
	failpoint.Hit("artifact/after-open")
	h := sha256.New()
	size, err = io.Copy(io.MultiWriter(f, h), r)
	if e := f.Close(); err == nil {
		err = e
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err == nil && size > limit && limit < maxArtifact:
		err = fmt.Errorf("the run's artifacts together are larger than %s", sandbox.FormatSize(maxArtifactTotal))
	case err == nil && size > limit:
		err = fmt.Errorf("it is larger than %s", sandbox.FormatSize(maxArtifact))
	}
	if err != nil {
		_ = c.to.Remove(name) // what stays is bounded, and goes with the run
		return 0, "", err
	}
	failpoint.Hit("artifact/after-copy")
	return size, hex.EncodeToString(h.Sum(nil)), nil
}

// reasonText is an error as an artifact's Error.
func reasonText(err error) string {
	var e *sandbox.Error
	switch {
	case sandbox.KindOf(err) == sandbox.KindNotFound:
		return "not found"
	case errors.As(err, &e):
		return clip(e.Message())
	}
	return clip(err.Error())
}
