package control

import (
	"bytes"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// Where systems keep the certificates of whom they trust, as crypto/x509 looks for
// them: the first file there is, and all files of the directories.
var (
	rootFiles = []string{
		"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/cacert.pem",
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
	}
	rootDirs = []string{"/etc/ssl/certs", "/etc/pki/tls/certs"}
)

const (
	maxRoots     = 2 << 20 // bytes of all
	maxRootFiles = 1024
)

// roots are the certificates that this process trusts, for a router, which opens
// no file: SSL_CERT_FILE and SSL_CERT_DIR say where they are, as for every program
// in Go.
func roots(log *slog.Logger) []byte {
	files, dirs := rootFiles, rootDirs
	if f := os.Getenv("SSL_CERT_FILE"); f != "" {
		files = []string{f}
	}
	if d := os.Getenv("SSL_CERT_DIR"); d != "" {
		dirs = strings.Split(d, ":")
	}
	var out bytes.Buffer
	seen := map[string]bool{}
	add := func(path string) bool {
		b, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
			// Nothing else that such a file may hold, as keys.
			if block.Type != "CERTIFICATE" || seen[string(block.Bytes)] {
				continue
			}
			seen[string(block.Bytes)] = true
			_ = pem.Encode(&out, &pem.Block{Type: block.Type, Bytes: block.Bytes}) // into memory
		}
		return true
	}
	for _, f := range files {
		if add(f) {
			break
		}
	}
	for _, dir := range dirs {
		list, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range list[:min(len(list), maxRootFiles)] {
			path := filepath.Join(dir, e.Name())
			if to, err := os.Readlink(path); err != nil || strings.Contains(to, "/") { // others are second names of what is here
				add(path)
			}
		}
	}
	if out.Len() > maxRoots {
		log.Warn("the router trusts nobody: the certificates of this machine are too many", "bytes", out.Len())
		return nil
	}
	return out.Bytes()
}
