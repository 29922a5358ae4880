package template

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Source says what a template was made of, when that was an image or archive.
type Source struct {
	// Kind is "image", from a registry, or "archive", uploaded.
	Kind string `json:"kind"`
	// Layout is the version of what turned it into a root file system.
	Layout int `json:"layout"`
	// Reference is the image as it was asked for, written in full; of an archive,
	// what it calls itself.
	Reference string `json:"reference,omitempty"`
	// Digest is what Reference stood for when the template was built: of a list
	// of images for several platforms, where it is one.
	Digest string `json:"digest,omitempty"`
	// Manifest is the digest of the image for this platform.
	Manifest string `json:"manifest,omitempty"`
	// Layers are the digests of its packed layers.
	Layers []string `json:"layers,omitempty"`
}

// ImageConfig is what an image says about running it. Of this only WorkDir and,
// in Template.Env, its environment have an effect: user code always runs as
// UserName, and what runs is what the caller says.
type ImageConfig struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	// WorkDir is empty when the image has no such directory.
	WorkDir string            `json:"work_dir,omitempty"`
	User    string            `json:"user,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// parseReference reads an image reference, complete with registry and tag.
// Errors: KindInvalid.
func parseReference(s string) (name.Reference, error) {
	bad := func(why string) error {
		return sandbox.Errorf(opBuild, sandbox.KindInvalid, "%q is not an image reference: %s", clip(s), why).
			WithHint("such as docker.io/library/python:3.13, or REPOSITORY@sha256: and 64 hex digits")
	}
	if len(s) > 1024 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, bad("too long, or characters that none has")
	}
	ref, err := name.ParseReference(s, name.WithDefaultTag("latest"))
	if err != nil {
		return nil, bad(clip(err.Error()))
	}
	if d, ok := ref.(name.Digest); ok && !reDigest.MatchString(d.DigestStr()) {
		return nil, bad("only sha256 digests are understood")
	}
	return ref, nil
}

var reImageLike = regexp.MustCompile(`^[A-Za-z0-9[][^/:@]*[/:@]`)

// LooksLikeImage reports whether what was given as a template's name can only
// have been meant as an image reference.
func LooksLikeImage(s string) bool {
	if !reImageLike.MatchString(s) || strings.HasPrefix(s, "sha256:") {
		return false
	}
	_, err := parseReference(s)
	return err == nil
}

var notInName = regexp.MustCompile(`[^a-z0-9._-]+`)

// nameFor derives a template's name from an image reference: "python-3.13" for
// docker.io/library/python:3.13, "ghcr.io-owner-app-v1" for one that is not
// Docker's own.
func nameFor(ref name.Reference) string {
	repo := ref.Context()
	s := repo.RegistryStr() + "-" + repo.RepositoryStr()
	if repo.RegistryStr() == name.DefaultRegistry {
		s = strings.TrimPrefix(repo.RepositoryStr(), "library/")
	}
	if d, ok := ref.(name.Digest); ok {
		s += "-" + strings.TrimPrefix(d.DigestStr(), "sha256:")[:12]
	} else {
		s += "-" + ref.Identifier()
	}
	s = notInName.ReplaceAllString(strings.ToLower(s), "-")
	if s[0] < 'a' || s[0] > 'z' {
		s = "image-" + s
	}
	if len(s) > 63 { // the hash tells apart what the cut makes equal
		s = s[:50] + "-" + hexSum([]byte(ref.Name()))[:12]
	}
	return s
}

// document is a manifest or an index; which of the two must be beyond doubt,
// whatever the server said it is.
type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     types.MediaType   `json:"mediaType"`
	Config        *v1.Descriptor    `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Manifests     []v1.Descriptor   `json:"manifests"`
	FSLayers      []json.RawMessage `json:"fsLayers"`
}

func parseDocument(raw []byte) (document, error) {
	var d document
	if err := json.Unmarshal(raw, &d); err != nil {
		return d, refuse(sandbox.KindInvalid, "the image's manifest cannot be read: %w", err)
	}
	switch {
	case d.FSLayers != nil || d.SchemaVersion == 1:
		return d, refuse(sandbox.KindUnsupported, "the image is in the format of 2015").WithHint("push it again with a current tool")
	case d.Manifests != nil && (d.Config != nil || d.Layers != nil):
		return d, refuse(sandbox.KindDenied, "a manifest that is also a list of manifests")
	case d.Manifests == nil && d.Config == nil:
		return d, refuse(sandbox.KindInvalid, "a manifest of neither an image nor a list of images")
	}
	return d, nil
}

func (d document) isIndex() bool { return d.Manifests != nil }

// choose picks the image for this machine out of an index.
func (d document) choose() (v1.Descriptor, error) {
	best, rank := v1.Descriptor{}, -1
	var have []string
	for _, m := range d.Manifests {
		p := m.Platform
		if p == nil || p.OS == "unknown" || len(have) > 1000 { // attestations
			continue
		}
		have = append(have, p.String())
		if p.OS != "linux" || p.Architecture != runtime.GOARCH {
			continue
		}
		r := 1
		if p.Variant == "" || runtime.GOARCH == "arm64" && p.Variant == "v8" {
			r = 2
		}
		if r > rank {
			best, rank = m, r
		}
	}
	if rank < 0 {
		return best, wrongPlatform(have)
	}
	if !reDigest.MatchString(best.Digest.String()) {
		return best, refuse(sandbox.KindUnsupported, "the digest %s", clip(best.Digest.String()))
	}
	return best, nil
}

func wrongPlatform(have []string) error {
	slices.Sort(have)
	return sandbox.Errorf(opBuild, sandbox.KindUnsupported, "the image does not run on linux/%s", runtime.GOARCH).
		WithHint("it is for %s; choose another, or build it for this machine", clip(strings.Join(slices.Compact(have), ", ")))
}

// checkManifest refuses what is an artifact and not an image, and layers that
// would come from elsewhere.
func (d document) checkManifest(l Limits) error {
	if d.isIndex() {
		return refuse(sandbox.KindInvalid, "a list of images within a list of images")
	}
	if len(d.Layers) > l.Layers {
		return refuse(sandbox.KindTooLarge, "more than %d layers", l.Layers)
	}
	var total int64
	for _, b := range append([]v1.Descriptor{*d.Config}, d.Layers...) {
		switch {
		case !reDigest.MatchString(b.Digest.String()):
			return refuse(sandbox.KindUnsupported, "the digest %s", clip(b.Digest.String()))
		case b.Size < 0:
			return refuse(sandbox.KindInvalid, "a layer of %d bytes", b.Size)
		case len(b.URLs) > 0 || !b.MediaType.IsDistributable():
			return refuse(sandbox.KindUnsupported, "a layer that has to be fetched from somewhere else").WithHint("such are Windows' own; choose a Linux image")
		}
		if b.Size > l.Download-total {
			return refuse(sandbox.KindTooLarge, "more than %s to download", sandbox.FormatSize(l.Download))
		}
		total += b.Size
	}
	if d.Config.Size > maxConfig {
		return refuse(sandbox.KindTooLarge, "an image config of %s", sandbox.FormatSize(d.Config.Size))
	}
	return nil
}

// parseConfig reads an image's config and checks that it is one of this
// platform with as many layers as the manifest has.
func parseConfig(raw []byte, layers int) (*v1.ConfigFile, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, refuse(sandbox.KindInvalid, "the image's config cannot be read: %w", err)
	}
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != runtime.GOARCH {
		return nil, wrongPlatform([]string{c.OS + "/" + c.Architecture})
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, refuse(sandbox.KindInvalid, "%d layers where the image's config has %d", layers, len(c.RootFS.DiffIDs)).
			WithHint("this is no container image, or a broken one")
	}
	for _, d := range c.RootFS.DiffIDs {
		if !reDigest.MatchString(d.String()) {
			return nil, refuse(sandbox.KindUnsupported, "the digest %s", clip(d.String()))
		}
	}
	return c, nil
}

// notFromImages are variables that say who and where a process is. That is the
// sandbox's to say.
var notFromImages = []string{"HOME", "USER", "LOGNAME", "HOSTNAME", "PWD"}

// environmentOf is an image's environment, without what cannot be one.
func environmentOf(c *v1.ConfigFile) map[string]string {
	env := map[string]string{"PATH": rootPath}
	for _, e := range c.Config.Env {
		k, v, ok := strings.Cut(e, "=")
		if !ok || k == "" || strings.IndexByte(e, 0) >= 0 || slices.Contains(notFromImages, k) || strings.HasPrefix(k, "FIREBREAK_") {
			continue
		}
		env[k] = v
	}
	return env
}

func configOf(c *v1.ConfigFile) ImageConfig {
	dir := c.Config.WorkingDir
	if dir != "" {
		dir = path.Clean("/" + dir)
	}
	return ImageConfig{Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, WorkDir: dir, User: c.Config.User, Labels: maps.Clone(c.Config.Labels)}
}

// identity is the digest of a template made of an image or archive: of what is
// in it and of what it says about running it, not of when and under which tag
// it was fetched.
func (m manifest) identity() string {
	raw, err := json.Marshal(struct {
		Layout    int
		Listing   string
		Manifest  string
		Languages []string
		Env       map[string]string
		Config    *ImageConfig
	}{m.Source.Layout, m.Listing, m.Source.Manifest, m.Languages, m.Env, m.Image})
	if err != nil { // strings and slices of them
		panic(fmt.Sprintf("encode: %v", err))
	}
	return "sha256:" + hexSum(raw)
}
