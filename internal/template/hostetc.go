package template

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// hostEtcFiles are copied as they are: tables every Linux system has, the same
// on all of them but for additions. Nothing else of the machine's /etc is, and
// no link is followed.
var hostEtcFiles = []string{"etc/mime.types", "etc/protocols", "etc/services"}

// hostBundles are where distributions keep the CA certificates; the first one
// that exists is taken.
var hostBundles = []string{"etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/ca-bundle.pem", "etc/ssl/cert.pem"}

const (
	caBundle   = "etc/ssl/certs/ca-certificates.crt"
	ldCache    = "etc/ld.so.cache"
	maxEtcFile = 4 << 20
)

// caLinks are the other names programs know the bundle by.
var caLinks = map[string]string{
	"etc/ssl/cert.pem":                "certs/ca-certificates.crt",
	"etc/pki/tls/certs/ca-bundle.crt": "/etc/ssl/certs/ca-certificates.crt",
}

// layEtc adds to the synthetic /etc what programs of this machine need.
func (v hostView) layEtc(rootfs string) error {
	for _, name := range hostEtcFiles {
		b, err := readRegular(v.path(name))
		if err != nil {
			return err
		}
		if b == nil {
			continue
		}
		if err := replaceFile(filepath.Join(rootfs, name), b); err != nil {
			return err
		}
	}
	if err := v.layCertificates(rootfs); err != nil {
		return err
	}
	if err := v.layAlternatives(rootfs); err != nil {
		return err
	}
	if err := v.layConfig(rootfs); err != nil {
		return err
	}
	if _, ok := v.resolve("/usr/lib/os-release"); ok {
		if err := replaceLink(filepath.Join(rootfs, "etc/os-release"), "../usr/lib/os-release"); err != nil {
			return err
		}
	}
	cache, err := readRegular(v.path(ldCache))
	if err != nil || cache == nil {
		return err
	}
	// Without a cache the loader searches the standard directories, so one
	// we cannot read (musl, a new format) is left out.
	filtered := filterLoaderCache(cache, func(lib string) bool { return filepath.Clean(lib) == lib && v.visible(lib) })
	if filtered == nil {
		return nil
	}
	return replaceFile(filepath.Join(rootfs, ldCache), filtered)
}

// layCertificates copies the certificates of the machine's CA bundle, which a
// machine behind an inspecting proxy needs to reach anything, and drops
// whatever else is in that file.
func (v hostView) layCertificates(rootfs string) error {
	for _, name := range hostBundles {
		real, err := filepath.EvalSymlinks(v.path(name)) // only certificates are taken from wherever it is
		if err != nil {
			continue
		}
		b, err := readRegular(real)
		if err != nil {
			return err
		}
		if b == nil {
			continue
		}
		return writeBundle(rootfs, certificates(b))
	}
	return nil
}

func writeBundle(rootfs string, b []byte) error {
	if err := replaceFile(filepath.Join(rootfs, caBundle), b); err != nil {
		return err
	}
	for name, target := range caLinks {
		if err := replaceLink(filepath.Join(rootfs, name), target); err != nil {
			return err
		}
	}
	return nil
}

// certificates returns the certificates in a PEM file, without the comments.
func certificates(b []byte) []byte {
	var out bytes.Buffer
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return out.Bytes()
		}
		if block.Type == "CERTIFICATE" {
			pem.Encode(&out, &pem.Block{Type: block.Type, Bytes: block.Bytes}) // never fails on a buffer
		}
	}
}

// layAlternatives copies the links update-alternatives keeps, without the
// hundreds for manual pages.
func (v hostView) layAlternatives(rootfs string) error {
	entries, err := os.ReadDir(v.path(alternatives))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := alternatives + "/" + e.Name()
		if e.Type() != fs.ModeSymlink {
			continue
		}
		target, err := os.Readlink(v.path(name))
		if err != nil {
			return err
		}
		if strings.Contains(target, "/man/") {
			continue
		}
		if err := v.copyLink(rootfs, name); err != nil {
			return err
		}
	}
	return nil
}

// readRegular reads a small regular file; nil when path is missing, something
// else, or unreadable for this user.
func readRegular(path string) ([]byte, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxEtcFile))
	if err == nil && b == nil {
		b = []byte{}
	}
	return b, err
}
