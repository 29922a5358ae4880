package template

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// epoch is the modification time of everything in a root, so that roots built
// at different times are the same. It also marks a root directory nobody added
// to or removed from: that would have moved its time.
var epoch = time.Unix(1767225600, 0) // 2026-01-01T00:00:00Z

// errLocked says that another process or goroutine uses a template.
var errLocked = errors.New("in use")

// manifestVersion is what is read. Version 1 had neither Source nor Image, and is
// read as what it is: a pack or the host template; version 2 no Boot, and is written
// where there is none.
const manifestVersion = 3

// manifest is what manifest.json holds below its own digest.
type manifest struct {
	Version     int               `json:"version"`
	Name        string            `json:"name"` // as first built
	Description string            `json:"description"`
	Digest      string            `json:"digest"`
	Listing     string            `json:"listing"` // digest of the listing; equals Digest for a pack
	Created     time.Time         `json:"created"`
	Size        int64             `json:"size"`
	Languages   []string          `json:"languages"`
	Env         map[string]string `json:"env"`
	Packages    []Package         `json:"packages,omitempty"`
	Mounts      []sandbox.Mount   `json:"mounts,omitempty"`
	Mutable     bool              `json:"mutable,omitempty"`
	Source      *Source           `json:"source,omitempty"`
	Image       *ImageConfig      `json:"image,omitempty"`
	LeftOut     int               `json:"left_out,omitempty"` // devices and pipes of the image
	Boot        *Boot             `json:"boot,omitempty"`
}

func (m manifest) version() int {
	if m.Boot == nil {
		return 2
	}
	return manifestVersion
}

// sealed is a manifest file: the digest covers the exact bytes of Manifest.
type sealed struct {
	SHA256   string          `json:"sha256"`
	Manifest json.RawMessage `json:"manifest"`
}

func (m manifest) encode() ([]byte, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(sealed{SHA256: hexSum(raw), Manifest: raw})
	return append(b, '\n'), err
}

func decodeManifest(b []byte) (manifest, error) {
	var s sealed
	var m manifest
	if err := json.Unmarshal(b, &s); err != nil {
		return m, fmt.Errorf("manifest cannot be read: %w", err)
	}
	if hexSum(s.Manifest) != s.SHA256 {
		return m, errors.New("manifest does not match its own digest")
	}
	d := json.NewDecoder(bytes.NewReader(s.Manifest))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, fmt.Errorf("manifest cannot be read: %w", err)
	}
	if m.Version < 1 || m.Version > manifestVersion {
		return m, fmt.Errorf("manifest has version %d, this program reads up to %d", m.Version, manifestVersion)
	}
	return m, nil
}

func hexSum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func damaged(id, why string) error {
	return sandbox.Errorf("template resolve", sandbox.KindUnavailable, "template is damaged: %s", why).WithID(id).
		WithHint("run `firebreak template rm %s` and build it again", id)
}

// cached is a loaded template, valid while its manifest file is the same.
type cached struct {
	t     Template
	size  int64
	mtime time.Time
}

// load reads the template with this digest and makes the cheap checks. The
// result is shared: clone it before handing it out.
func (s *Store) load(digest string) (Template, error) {
	dir := filepath.Join(s.dir, entryName(digest))
	st, err := os.Lstat(filepath.Join(dir, "manifest.json"))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(dir); err == nil {
			return Template{}, damaged(digest, "the manifest is missing")
		}
		return Template{}, notFound("template resolve", digest)
	}
	if err != nil {
		return Template{}, err
	}
	if err := checkRoot(filepath.Join(dir, "rootfs")); err != nil {
		return Template{}, damaged(digest, message(err))
	}
	s.mu.Lock()
	c, ok := s.cache[digest]
	s.mu.Unlock()
	if ok && c.size == st.Size() && c.mtime.Equal(st.ModTime()) {
		return c.t, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return Template{}, err
	}
	m, err := decodeManifest(b)
	if err != nil {
		return Template{}, damaged(digest, message(err))
	}
	if m.Digest != digest || m.expected() != digest {
		return Template{}, damaged(digest, "the manifest belongs to "+m.Digest)
	}
	t := m.template(dir)
	s.mu.Lock()
	s.cache[digest] = cached{t, st.Size(), st.ModTime()}
	s.mu.Unlock()
	return t, nil
}

// expected is the digest a template with this manifest must have.
func (m manifest) expected() string {
	if m.Boot != nil {
		base := m
		base.Boot = nil
		return m.Boot.identity(base.expected(), m.Languages)
	}
	switch {
	case m.Mutable:
		return m.Digest // a fingerprint
	case m.Source != nil:
		return m.identity()
	}
	return m.Listing
}

func (m manifest) template(dir string) Template {
	t := Template{
		Description: m.Description, Digest: m.Digest, Created: m.Created, Size: m.Size,
		Packs: m.Languages, Env: m.Env, Packages: m.Packages, Source: m.Source, Image: m.Image, Boot: m.Boot,
		Root: sandbox.Root{Digest: m.Digest, Dir: filepath.Join(dir, "rootfs"), Mounts: m.Mounts, Mutable: m.Mutable, Boot: m.Boot.root(dir)},
	}
	if m.Mutable {
		t.Name = Host
	}
	if len(t.Packs) > 0 {
		t.Default = t.Packs[0]
	}
	return t
}

// checkRoot makes sure that path is the root directory as it was sealed.
func checkRoot(path string) error {
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return errors.New("the root directory is missing")
	case st.Mode() != fs.ModeDir|0o755:
		return fmt.Errorf("the root directory has mode %v", st.Mode())
	case !st.ModTime().Equal(epoch):
		return errors.New("something was added to or removed from the root directory")
	}
	return nil
}

// Verify reads every file of a template and compares it with what was built.
// It takes seconds. KindUnavailable naming the first path that differs when the
// template is damaged; KindConflict when a mutable one (Host) is not current
// any more.
func (s *Store) Verify(ctx context.Context, digest string) error {
	const op = "template verify"
	if !reDigest.MatchString(digest) {
		return sandbox.Errorf(op, sandbox.KindInvalid, "%q is not a digest", clip(digest))
	}
	release, err := s.Acquire(digest)
	if err != nil {
		return sandbox.Wrap(op, digest, err)
	}
	defer release()
	t, err := s.load(digest)
	if err != nil {
		return sandbox.Wrap(op, digest, err)
	}
	dir := filepath.Join(s.dir, entryName(digest))
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return sandbox.Wrap(op, digest, err)
	}
	m, err := decodeManifest(b)
	if err != nil {
		return damaged(digest, message(err))
	}
	want, err := os.ReadFile(filepath.Join(dir, "listing"))
	if err != nil {
		return damaged(digest, "the listing is missing")
	}
	if "sha256:"+hexSum(want) != m.Listing {
		return damaged(digest, "the listing does not match its digest")
	}
	got, _, err := list(ctx, t.Root.Dir)
	if err != nil {
		return sandbox.Wrap(op, digest, err)
	}
	if !bytes.Equal(got, want) {
		return damaged(digest, firstDifference(want, got))
	}
	if err := m.Boot.verify(ctx, dir); err != nil {
		return damaged(digest, message(err))
	}
	if m.Mutable {
		return sandbox.Wrap(op, digest, s.host.current(digest))
	}
	return nil
}
