package template

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// BuildOptions says what to build.
type BuildOptions struct {
	// Pack is the recipe. Empty means the recipe called like the template.
	Pack string
	// Packages are further Debian packages to put in.
	Packages []string
	// Progress is called from the goroutine of Build; nil for silence.
	Progress func(Progress)
}

// Stage is a step of a build.
type Stage string

// The stages, in order.
const (
	StageDownload Stage = "download" // resolve and fetch packages
	StageUnpack   Stage = "unpack"   // into the root directory
	StageSetUp    Stage = "set up"   // library cache, certificates, compiled Python
	StageSeal     Stage = "seal"     // check, hash, put on stable storage
	StageDone     Stage = "done"
)

// Progress is one report of a build.
type Progress struct {
	Stage   Stage
	Percent int    // of the whole build, never falling
	Line    string // for people
}

// Build makes a pack and lets name stand for it.
//
// It needs a Debian machine with mmdebstrap and a reachable Debian mirror; as
// an ordinary user also unprivileged user namespaces. It takes ten seconds to a
// minute and is done in full each time: the result is the same template, by
// digest, if the mirror's packages are the same. What name stood for before
// stays, under its digest.
//
// KindInvalid for a bad name, KindNotFound for an unknown recipe,
// KindUnavailable with a hint when something is missing here or the mirror does
// not answer, KindCanceled when ctx ends. After any error nothing of the build
// is left: no process, no file. Concurrent builds do not disturb each other.
func (s *Store) Build(ctx context.Context, name string, o BuildOptions) (Template, error) {
	r, err := s.plan("template build", name, o)
	if err != nil {
		return Template{}, err
	}
	return s.buildRecipe(ctx, name, r, o)
}

func (s *Store) buildRecipe(ctx context.Context, name string, r recipe, o BuildOptions) (Template, error) {
	const op = "template build"
	digest, err := s.build(ctx, name, r, o)
	if ctx.Err() != nil && err != nil {
		err = ctx.Err() // the rest only says that it was interrupted
	}
	if err != nil {
		return Template{}, sandbox.Wrap(op, name, err)
	}
	t, err := s.load(digest)
	t.Name = name
	return t.clone(), sandbox.Wrap(op, name, err)
}

// plan checks the request and finds the recipe.
func (s *Store) plan(op, name string, o BuildOptions) (recipe, error) {
	invalid := func(hint, format string, args ...any) error {
		return sandbox.Errorf(op, sandbox.KindInvalid, format, args...).WithHint("%s", hint)
	}
	pack := o.Pack
	if pack == "" {
		pack = name
	}
	switch {
	case !reName.MatchString(name):
		return recipe{}, invalid("a lower-case letter, then up to 62 letters, digits, dots, dashes or underscores", "%q is not a template name", clip(name))
	case name == Host:
		return recipe{}, invalid("it needs no build; just use it", "the host template is the machine itself")
	case isLanguage(name) && (pack != name || len(o.Packages) > 0):
		return recipe{}, invalid("choose another name for a variant, such as my-"+name, "the name %s is kept for that pack", name)
	}
	if i := slices.IndexFunc(o.Packages, func(p string) bool { return !rePackage.MatchString(p) }); i >= 0 {
		return recipe{}, invalid("such as python3-numpy", "%q is not a Debian package name", clip(o.Packages[i]))
	}
	r, err := loadRecipe(pack)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(r.Languages) == 0 { // the base alone is none
		return recipe{}, sandbox.Errorf(op, sandbox.KindNotFound, "no recipe called %q", clip(pack)).WithID(name).
			WithHint("one of python, node, shell; name your own template with `firebreak template build NAME --pack python`")
	}
	r.Packages = append(r.Packages, o.Packages...)
	return r, sandbox.Wrap(op, name, err)
}

// build does the work of Build and returns the digest.
func (s *Store) build(ctx context.Context, name string, r recipe, o BuildOptions) (digest string, err error) {
	t, err := s.newTemporary()
	if err != nil {
		return "", err
	}
	published := false
	defer func() {
		if !published {
			err = errors.Join(err, t.discard())
		}
	}()
	b := &builder{recipe: r, tmp: t, rootfs: filepath.Join(t.dir, "rootfs"), work: filepath.Join(t.dir, "work"), report: o.Progress}
	if err := b.run(ctx); err != nil {
		return "", err
	}
	b.progress(StageSeal, 94, "hashing")
	listing, size, err := list(ctx, b.rootfs)
	if err != nil {
		return "", err
	}
	digest = "sha256:" + hexSum(listing)
	m := manifest{
		Version: manifestVersion, Name: name, Description: r.Description, Digest: digest, Listing: digest,
		Created: time.Now().UTC(), Size: size, Languages: r.Languages, Env: r.Env, Packages: b.packages,
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	b.progress(StageSeal, 97, "writing to disk")
	if err := syncTree(t.dir); err != nil { // before the store's lock: this is the slow part
		return "", err
	}
	unlock, err := s.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	published = true // publish uses it up, whatever comes of it
	if err := s.publish(t, m, listing); err != nil {
		return "", err
	}
	if err := s.point(name, digest); err != nil {
		return "", err
	}
	b.progress(StageDone, 100, digest)
	return digest, nil
}

// builder is one build under way.
type builder struct {
	recipe   recipe
	tmp      *temporary
	rootfs   string
	work     string // packages and temporary files; gone before sealing
	report   func(Progress)
	percent  int
	packages []Package
}

func (b *builder) progress(stage Stage, percent int, line string) {
	b.percent = max(b.percent, percent)
	if b.report != nil {
		b.report(Progress{stage, b.percent, line})
	}
}

// run fills rootfs and leaves it settled.
func (b *builder) run(ctx context.Context) error {
	for _, d := range []string{b.rootfs, b.work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	debs, err := b.download(ctx)
	if err != nil {
		return err
	}
	if err := b.unpack(ctx, debs); err != nil {
		return err
	}
	b.progress(StageSetUp, 75, "setting up")
	if err := b.setUp(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(b.work); err != nil {
		return err
	}
	b.progress(StageSeal, 90, "checking libraries")
	if err := checkLibraries(b.rootfs); err != nil {
		return sandbox.Errorf("template build", sandbox.KindInternal, "the pack is incomplete: %w", err)
	}
	return settle(b.rootfs)
}
