package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// imageLayout is the version of how images are unpacked and furnished. A
// template of another one is not used in place of a build.
const imageLayout = 1

// imageBuild is a template being made of an image or archive.
type imageBuild struct {
	s         *Store
	name      string
	reference string // what the name file says
	source    Source
	config    *v1.ConfigFile
	given     *givens
	report    func(Progress)
	percent   int
}

// buildImage is Build for images and archives.
func (s *Store) buildImage(ctx context.Context, name string, o BuildOptions, g *givens) (Template, error) {
	b := &imageBuild{s: s, name: name, given: g, report: o.Progress}
	digest, err := "", error(nil)
	switch {
	case o.Image != "" && o.Upload != "", o.Pack != "", len(o.Packages) > 0:
		err = sandbox.Errorf(opBuild, sandbox.KindInvalid, "an image, an archive and a pack exclude each other").WithHint("name one of them")
	case o.Image != "":
		digest, err = b.fromRegistry(ctx, o.Image)
	default:
		digest, err = b.fromUpload(ctx, o.Owner, o.Upload)
	}
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return Template{}, noSpace(err)
	}
	t, err := s.load(digest)
	return t.called(b.name, b.reference), err
}

// checkName refuses a name that is not for images. An empty one is derived by
// the caller.
func checkName(name string) error {
	switch {
	case !reName.MatchString(name):
		return sandbox.Errorf(opBuild, sandbox.KindInvalid, "%q is not a template name", clip(name)).
			WithHint("a lower-case letter, then up to 62 letters, digits, dots, dashes or underscores")
	case name == Host || isLanguage(name):
		return sandbox.Errorf(opBuild, sandbox.KindInvalid, "the name %s is kept for what Firebreak makes itself", name).
			WithHint("choose another name, such as my-%s", name)
	}
	return nil
}

func (b *imageBuild) progress(stage Stage, percent int, line string) {
	b.percent = max(b.percent, percent)
	if b.report != nil {
		b.report(Progress{stage, b.percent, line})
	}
}

// fromRegistry makes the template of an image in a registry.
func (b *imageBuild) fromRegistry(ctx context.Context, reference string) (string, error) {
	ref, err := parseReference(reference)
	if err != nil {
		return "", err
	}
	if b.name == "" {
		b.name = nameFor(ref)
	}
	if err := checkName(b.name); err != nil {
		return "", err
	}
	b.source = Source{Kind: "image", Reference: ref.Name()}
	r, err := openRegistry(ref, b.s.opts.Registries)
	if err != nil {
		return "", err
	}
	defer r.close()
	b.progress(StageResolve, 1, "asking "+ref.Context().RegistryStr())
	if d := r.head(ctx); d != "" { // the cheap question first
		b.source.Digest = d
		if digest, err := b.reuse(ctx); digest != "" || err != nil {
			return digest, err
		}
	}
	manifest, err := b.resolve(ctx, r)
	if err != nil {
		return "", err
	}
	if digest, err := b.reuse(ctx); digest != "" || err != nil {
		return digest, err
	}
	return b.fetchAndUnpack(ctx, r, manifest)
}

// resolve finds the manifest for this platform.
func (b *imageBuild) resolve(ctx context.Context, r *registry) (document, error) {
	id := b.source.Digest // the tag may move between two questions
	raw, digest, err := r.manifest(ctx, id)
	if err != nil {
		return document{}, err
	}
	d, err := parseDocument(raw)
	if err != nil {
		return d, err
	}
	b.source.Digest, b.source.Manifest = digest, digest
	if d.isIndex() {
		m, err := d.choose()
		if err != nil {
			return d, err
		}
		if raw, b.source.Manifest, err = r.manifest(ctx, m.Digest.String()); err != nil {
			return d, err
		}
		if d, err = parseDocument(raw); err != nil {
			return d, err
		}
	}
	return d, d.checkManifest(b.s.opts.Limits)
}

// reuse looks for a sound template of the same image and lets the name stand
// for it; empty when there is none.
func (b *imageBuild) reuse(ctx context.Context) (string, error) {
	if b.given.some() {
		return "", ctx.Err() // which of them is told by their content
	}
	unlock, err := b.s.lock() // so that nobody removes it meanwhile
	if err != nil {
		return "", err
	}
	defer unlock()
	entries, err := readDirNames(b.s.dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if !reEntry.MatchString(e) {
			continue
		}
		t, err := b.s.load(entryDigest(e))
		if err != nil || t.Boot != nil || t.Source == nil || t.Source.Kind != "image" ||
			t.Source.Layout != imageLayout || t.Source.Digest != b.source.Digest && (t.Source.Manifest != b.source.Manifest || b.source.Manifest == "") {
			continue
		}
		b.reference = b.source.Reference + " " + b.source.Digest
		if err := b.s.point(b.name, t.Digest, b.reference); err != nil {
			return "", err
		}
		b.progress(StageDone, 100, "unchanged")
		return t.Digest, nil
	}
	return "", ctx.Err()
}

// fetchAndUnpack fetches what the cache lacks and makes the template.
func (b *imageBuild) fetchAndUnpack(ctx context.Context, r *registry, d document) (string, error) {
	cache, err := b.s.blobs()
	if err != nil {
		return "", err
	}
	var held []*os.File
	defer func() {
		for _, f := range held {
			f.Close() // read only
		}
	}()
	var total, done int64
	for _, l := range d.Layers {
		total += l.Size
	}
	get := func(l v1.Descriptor, line string) (*os.File, error) {
		f, err := cache.open(ctx, l.Digest.String(), l.Size, func(ctx context.Context, w *blobWriter) error {
			w.progress = func(n int64) {
				b.progress(StageDownload, 2+int(50*float64(done+n)/float64(total+1)),
					fmt.Sprintf("%s: %s of %s", line, sandbox.FormatSize(n), sandbox.FormatSize(l.Size)))
			}
			return r.blob(ctx, l.Digest.String(), w)
		})
		if err == nil {
			held = append(held, f)
		}
		return f, err
	}
	f, err := get(*d.Config, "config")
	if err != nil {
		return "", err
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err != nil {
		return "", err
	}
	if b.config, err = parseConfig(raw, len(d.Layers)); err != nil {
		return "", err
	}
	layers := make([]layer, len(d.Layers))
	for i, l := range d.Layers {
		f, err := get(l, fmt.Sprintf("layer %d of %d", i+1, len(d.Layers)))
		if err != nil {
			return "", err
		}
		done += l.Size
		layers[i] = layer{r: f, size: l.Size, digest: l.Digest.String(), diffID: b.config.RootFS.DiffIDs[i].String()}
		b.source.Layers = append(b.source.Layers, l.Digest.String())
	}
	return b.make(ctx, layers)
}

// make unpacks layers and seals the result.
func (b *imageBuild) make(ctx context.Context, layers []layer) (digest string, err error) {
	t, err := b.s.newTemporary()
	if err != nil {
		return "", err
	}
	sealed := false
	defer func() {
		if !sealed {
			err = errors.Join(err, t.discard())
		}
	}()
	failpoint.Hit("template.image/after-temporary")
	m, err := b.unpack(ctx, filepath.Join(t.dir, "rootfs"), layers)
	if err != nil {
		return "", err
	}
	failpoint.Hit("template.image/after-unpack")
	sealed = true // or discarded by it
	if b.source.Kind == "image" {
		b.reference = b.source.Reference + " " + b.source.Digest
	}
	return b.s.seal(ctx, t, b.name, b.reference, m, b.given, b.progress)
}

func (b *imageBuild) unpack(ctx context.Context, rootfs string, layers []layer) (m manifest, err error) {
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		return m, err
	}
	if err := os.Chmod(rootfs, 0o755); err != nil {
		return m, err
	}
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return m, err
	}
	defer root.Close()
	u := newUnpacker(root, b.s.opts.Limits)
	u.layers, u.owners = true, os.Geteuid() == 0
	for i, l := range layers {
		line := fmt.Sprintf("unpacking layer %d of %d", i+1, len(layers))
		from, to := 52+40*i/len(layers), 52+40*(i+1)/len(layers)
		shown := -1
		err := u.apply(ctx, l, func(n int64) {
			if p := from + int(float64(to-from)*float64(n)/float64(l.size+1)); p != shown {
				shown = p
				b.progress(StageUnpack, p, line)
			}
		})
		if err != nil {
			return m, err
		}
	}
	b.progress(StageSetUp, 92, "mount points and account")
	if err := furnish(root, u.owners); err != nil {
		return m, err
	}
	m = b.describe(root)
	m.LeftOut = u.leftOut
	return m, settle(rootfs, false)
}

// describe is the manifest of what root holds.
func (b *imageBuild) describe(root *os.Root) manifest {
	config, image := environmentOf(b.config), configOf(b.config)
	if image.WorkDir != "" {
		if st, ok := lookIn(root, image.WorkDir[1:]); !ok || !st.IsDir() {
			image.WorkDir = ""
		}
	}
	if image.WorkDir == "/" {
		image.WorkDir = "" // what every config that says nothing says
	}
	description := "image " + b.source.Reference
	if b.source.Kind == "archive" {
		description = "from an archive"
		if b.source.Reference != "" { // which nobody has checked
			description += " that calls itself " + b.source.Reference
		}
	}
	source := b.source
	source.Layout = imageLayout
	source.Layers = slices.Clone(source.Layers)
	return manifest{Name: b.name, Description: description, Languages: languagesIn(root, config), Env: config, Source: &source, Image: &image}
}

// blobs is the layer cache, made on first use.
func (s *Store) blobs() (blobs, error) {
	c := blobs{filepath.Join(s.dir, "blobs")}
	return c, os.MkdirAll(c.dir, 0o700)
}

// sweepBlobs removes what fetches that died left in the cache.
func (s *Store) sweepBlobs() error {
	err := blobs{filepath.Join(s.dir, "blobs")}.sweep()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
