package template

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// BuildOptions says what to build.
type BuildOptions struct {
	// Pack is the recipe. Empty means the recipe called like the template.
	Pack string
	// Packages are further Debian packages to put in.
	Packages []string
	// Image is a container image to make the template of, instead of a pack: a
	// reference with a tag, which is resolved now, or with a digest.
	Image string
	// Upload is the id of an archive that Receive took from Owner, instead of a
	// pack. The build uses it up.
	Upload, Owner string
	// Kernel is what machines of the template boot, beside any of the above; Rootfs
	// an image that takes the place of all of them. The zero value is none.
	Kernel, Rootfs Given
	// Languages are what Rootfs can run, into which nobody looks.
	Languages []string
	// Progress is called from the goroutine of Build; nil for silence.
	Progress func(Progress)
}

// Stage is a step of a build.
type Stage string

// The stages, in order.
const (
	StageResolve  Stage = "resolve"  // what an image's tag stands for
	StageDownload Stage = "download" // packages or layers
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

// Build makes a template and lets name stand for it: a pack, an image or an
// uploaded archive. An empty name is derived from the image's reference.
//
// An image is fetched layer by layer; what the cache has is not fetched again,
// and nothing is when there is a template of it already, as there is when a tag
// still means the same. Its errors are KindDenied (a digest that does not match,
// a name that leads out, an address that must not be dialled, a registry that
// refuses), KindTooLarge, KindUnsupported (another platform), KindNotFound and
// KindUnavailable.
//
// A pack takes what follows.
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
	g, err := s.open(name, o)
	if err != nil {
		return Template{}, sandbox.Wrap(opBuild, name, err)
	}
	t, err := s.buildFrom(ctx, name, o, g)
	if left := g.close(); err == nil {
		err = left
	}
	return t, sandbox.Wrap(opBuild, name, err)
}

// buildFrom is Build with what a machine is to boot opened.
func (s *Store) buildFrom(ctx context.Context, name string, o BuildOptions, g *givens) (Template, error) {
	switch {
	case o.Image != "" || o.Upload != "":
		return s.buildImage(ctx, name, o, g)
	case g.rootfs != nil:
		return s.buildRootfs(ctx, name, o, g)
	}
	r, err := s.plan("template build", name, o)
	if err != nil {
		return Template{}, err
	}
	return s.buildRecipe(ctx, name, r, o, g)
}

func (s *Store) buildRecipe(ctx context.Context, name string, r recipe, o BuildOptions, g *givens) (Template, error) {
	const op = "template build"
	digest, err := s.build(ctx, name, r, o, g)
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
	case isLanguage(name) && (pack != name || len(o.Packages) > 0 || o.Kernel != Given{}):
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
func (s *Store) build(ctx context.Context, name string, r recipe, o BuildOptions, g *givens) (digest string, err error) {
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
	published = true // seal uses it up, whatever comes of it
	m := manifest{Name: name, Description: r.Description, Languages: r.Languages, Env: r.Env, Packages: b.packages}
	return s.seal(ctx, t, name, "", m, g, b.progress)
}

// seal completes m with what is in t's root and what g gives, publishes the whole and
// lets name, if there is one, stand for it, as reference. t is used up, whatever comes
// of it.
func (s *Store) seal(ctx context.Context, t *temporary, name, reference string, m manifest, g *givens, progress func(Stage, int, string)) (digest string, err error) {
	published := false
	defer func() {
		if !published {
			err = errors.Join(err, t.discard())
		}
	}()
	if m.Boot, err = g.copy(ctx, filepath.Join(t.dir, bootName), s.opts.Limits); err != nil {
		return "", noSpace(err)
	}
	progress(StageSeal, 94, "hashing")
	root := filepath.Join(t.dir, "rootfs")
	stamp, err := stampOf(ctx, t.dir, m.Boot != nil) // first: what changes while it is read shows
	if err != nil {
		return "", err
	}
	listing, size, err := list(ctx, root)
	if err != nil {
		return "", err
	}
	if err := keepStamp(filepath.Join(t.dir, stampName), stamp); err != nil {
		return "", noSpace(err)
	}
	failpoint.Hit("template.build/after-hash")
	m.Version, m.Listing, m.Size, m.Created = m.version(), "sha256:"+hexSum(listing), size+m.Boot.size(), time.Now().UTC()
	m.Digest = m.expected()
	progress(StageSeal, 97, "writing to disk")
	if err := syncTree(t.dir); err != nil { // before the store's lock: this is the slow part
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	unlock, err := s.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	published = true // publish uses it up
	if err := s.publish(t, m, listing); err != nil {
		return "", noSpace(err)
	}
	failpoint.Hit("template.build/after-publish")
	if name != "" {
		if err := s.point(name, m.Digest, reference); err != nil {
			return "", noSpace(err)
		}
	}
	failpoint.Hit("template.build/after-point")
	progress(StageDone, 100, m.Digest)
	return m.Digest, nil
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
	return settle(b.rootfs, true)
}
