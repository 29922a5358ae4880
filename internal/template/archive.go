package template

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// fromUpload makes the template of an uploaded archive, and uses it up.
func (b *imageBuild) fromUpload(ctx context.Context, owner, id string) (digest string, err error) {
	if b.name == "" {
		return "", sandbox.Errorf(opBuild, sandbox.KindInvalid, "an archive says nothing to name the template by").WithHint("give it a name")
	}
	if err := checkName(b.name); err != nil {
		return "", err
	}
	u, err := b.s.take(owner, id)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, u.t.discard()) }()
	if u.size == 0 { // tar takes it for a root file system without a file
		return "", refuse(sandbox.KindInvalid, "the archive is empty")
	}
	f, err := os.Open(u.path())
	if err != nil {
		return "", err
	}
	defer f.Close()
	b.progress(StageResolve, 1, "looking into the archive")
	x, err := index(ctx, f, b.s.opts.Limits)
	if err != nil {
		return "", err
	}
	var layers []layer
	switch {
	case x.has("oci-layout") && x.has("index.json"):
		layers, err = b.ociLayout(x)
	case x.has("manifest.json") && x.dockerSave():
		layers, err = b.savedImage(x)
	default:
		b.source, b.config = Source{Kind: "archive"}, &v1.ConfigFile{}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return "", err
		}
		layers = []layer{{r: f, size: u.size}}
	}
	if err != nil {
		return "", err
	}
	return b.make(ctx, layers)
}

// archiveIndex says where in an archive its files are. Of a packed one it holds
// the few that decide what the archive is.
type archiveIndex struct {
	f     *os.File
	files map[string]span
	links map[string]string
}

type span struct{ offset, size int64 }

// maxIndexed bounds how many files of an archive are looked at: an image has a
// handful, a root file system any number.
const maxIndexed = 4096

// index reads the headers at the beginning of an archive. A packed archive is
// never an image: `docker save` and its kin pack nothing.
func index(ctx context.Context, f *os.File, l Limits) (*archiveIndex, error) {
	x := &archiveIndex{f: f, files: map[string]span{}, links: map[string]string{}}
	tr := tar.NewReader(f) // a file is sought through, not read
	for range maxIndexed {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if err != nil { // also of what is packed, or no archive at all: unpacking says so
			break
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			x.files[name] = span{at, h.Size}
		case tar.TypeSymlink, tar.TypeLink:
			to := h.Linkname
			if h.Typeflag == tar.TypeSymlink {
				to = path.Join(path.Dir(name), to)
			}
			x.links[name] = path.Clean(to)
		}
	}
	return x, nil
}

func (x *archiveIndex) has(name string) bool { _, ok := x.files[name]; return ok }

// find follows links within the archive: old versions of docker save one layer
// of several images once.
func (x *archiveIndex) find(name string) (span, bool) {
	for range 8 {
		if s, ok := x.files[name]; ok {
			return s, true
		}
		name = x.links[name]
	}
	return span{}, false
}

// open returns a file of the archive. Errors: KindInvalid when it is missing.
func (x *archiveIndex) open(name string) (*io.SectionReader, error) {
	s, ok := x.find(path.Clean(name))
	if !ok {
		return nil, refuse(sandbox.KindInvalid, "the archive has no %s, which its image needs", clip(name))
	}
	return io.NewSectionReader(x.f, s.offset, s.size), nil
}

// read returns a small file; digest, if not empty, is what it must hash to.
func (x *archiveIndex) read(name, digest string, limit int64) ([]byte, error) {
	r, err := x.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > limit {
		return nil, refuse(sandbox.KindTooLarge, "%s has %s", clip(name), sandbox.FormatSize(r.Size()))
	}
	b, err := io.ReadAll(r)
	if err == nil && digest != "" && "sha256:"+hexSum(b) != digest {
		err = refuse(sandbox.KindDenied, "%s is not what its digest says", clip(name))
	}
	return b, err
}

// blobPath is where a layout keeps a blob.
func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

// ociLayout reads an archive of an OCI image layout with one image, for
// whichever platforms.
func (b *imageBuild) ociLayout(x *archiveIndex) ([]layer, error) {
	raw, err := x.read("index.json", "", maxManifest)
	if err != nil {
		return nil, err
	}
	d, err := parseDocument(raw)
	if err != nil {
		return nil, err
	}
	b.source = Source{Kind: "archive"}
	for depth := 0; d.isIndex(); depth++ {
		var m v1.Descriptor
		switch {
		case depth > 2:
			return nil, refuse(sandbox.KindInvalid, "lists of images within lists of images")
		case len(d.Manifests) == 1: // a layout's only one often names no platform
			m = d.Manifests[0]
		default:
			if m, err = d.choose(); err != nil {
				return nil, err
			}
		}
		if depth == 0 {
			b.source.Digest = m.Digest.String()
			b.source.Reference = tagOf(m.Annotations["io.containerd.image.name"], m.Annotations["org.opencontainers.image.ref.name"])
		}
		b.source.Manifest = m.Digest.String()
		if !reDigest.MatchString(b.source.Manifest) {
			return nil, refuse(sandbox.KindUnsupported, "the digest %s", clip(b.source.Manifest))
		}
		if raw, err = x.read(blobPath(b.source.Manifest), b.source.Manifest, maxManifest); err != nil {
			return nil, err
		}
		if d, err = parseDocument(raw); err != nil {
			return nil, err
		}
	}
	if err := d.checkManifest(b.s.opts.Limits); err != nil {
		return nil, err
	}
	if raw, err = x.read(blobPath(d.Config.Digest.String()), d.Config.Digest.String(), maxConfig); err != nil {
		return nil, err
	}
	if b.config, err = parseConfig(raw, len(d.Layers)); err != nil {
		return nil, err
	}
	layers := make([]layer, len(d.Layers))
	for i, l := range d.Layers {
		r, err := x.open(blobPath(l.Digest.String()))
		if err != nil {
			return nil, err
		}
		layers[i] = layer{r: r, size: r.Size(), digest: l.Digest.String(), diffID: b.config.RootFS.DiffIDs[i].String()}
		b.source.Layers = append(b.source.Layers, l.Digest.String())
	}
	return layers, nil
}

// saved is the manifest.json of `docker save`.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerSave reports whether manifest.json is docker's: a root file system may
// have a file of that name, too.
func (x *archiveIndex) dockerSave() bool {
	raw, err := x.read("manifest.json", "", maxManifest)
	var list []saved
	return err == nil && json.Unmarshal(raw, &list) == nil && len(list) > 0 && list[0].Config != "" && bytes.HasPrefix(bytes.TrimSpace(raw), []byte("["))
}

// savedImage reads an archive of `docker save` with one image.
func (b *imageBuild) savedImage(x *archiveIndex) ([]layer, error) {
	raw, err := x.read("manifest.json", "", maxManifest)
	if err != nil {
		return nil, err
	}
	var list []saved
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, refuse(sandbox.KindInvalid, "manifest.json cannot be read: %w", err)
	}
	if len(list) != 1 {
		return nil, refuse(sandbox.KindInvalid, "%d images in one archive", len(list)).WithHint("save one image: docker save IMAGE")
	}
	m := list[0]
	if len(m.Layers) > b.s.opts.Limits.Layers {
		return nil, refuse(sandbox.KindTooLarge, "more than %d layers", b.s.opts.Limits.Layers)
	}
	if raw, err = x.read(m.Config, "", maxConfig); err != nil {
		return nil, err
	}
	if b.config, err = parseConfig(raw, len(m.Layers)); err != nil {
		return nil, err
	}
	// Such an image has no manifest of its own; its id is the config's digest.
	b.source = Source{Kind: "archive", Digest: "sha256:" + hexSum(raw), Manifest: "sha256:" + hexSum(raw), Reference: tagOf(m.RepoTags...)}
	layers := make([]layer, len(m.Layers))
	for i, l := range m.Layers {
		r, err := x.open(l)
		if err != nil {
			return nil, err
		}
		layers[i] = layer{r: r, size: r.Size(), diffID: b.config.RootFS.DiffIDs[i].String()}
	}
	return layers, nil
}

// tagOf is the first of what an archive says its image is called that is a
// complete reference.
func tagOf(tags ...string) string {
	for _, t := range tags {
		if ref, err := name.NewTag(t, name.StrictValidation); err == nil && len(t) < 1024 {
			return ref.Name()
		}
	}
	return ""
}
