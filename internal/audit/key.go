package audit

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxKeyFile bounds the files of keys.
const maxKeyFile = 64 << 10

// key signs checkpoints. All logs of a data directory share one.
type key struct {
	secret   string // as note.GenerateKey writes it
	public   string // the vkey
	signer   note.Signer
	verifier note.Verifier
}

func (k *key) name() string { return k.signer.Name() }

// parseKey decodes a private key.
func parseKey(secret string) (*key, error) {
	bad := errors.New("it holds no signing key")
	signer, err := note.NewSigner(secret)
	if err != nil {
		return nil, bad
	}
	// NewSigner has checked the form: PRIVATE+KEY+<name>+<hash>+<base64>.
	raw, err := base64.StdEncoding.DecodeString(strings.SplitN(secret, "+", 5)[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, bad
	}
	public, err := note.NewEd25519VerifierKey(signer.Name(), ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey))
	if err != nil {
		return nil, bad
	}
	verifier, err := note.NewVerifier(public)
	if err != nil || verifier.KeyHash() != signer.KeyHash() {
		return nil, bad
	}
	return &key{secret, public, signer, verifier}, nil
}

// newKey makes a key with a name of its own.
func newKey() (*key, error) {
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	secret, _, err := note.GenerateKey(rand.Reader, "firebreak/"+hex.EncodeToString(id[:]))
	if err != nil {
		return nil, err
	}
	return parseKey(secret)
}

// readKey reads a key file. fs.ErrNotExist where there is none.
func readKey(path string) (*key, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, sandbox.Errorf("read signing key", sandbox.KindDenied, "%s is accessible to others than its owner (%v)", path, fi.Mode().Perm()).
			WithHint("find out who has read it; then `firebreak audit rotate-key`, after chmod 600")
	}
	b, err := readBounded(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	k, err := parseKey(strings.TrimSuffix(string(b), "\n"))
	if err != nil {
		return nil, sandbox.Errorf("read signing key", sandbox.KindInternal, "%s: %w", path, err).
			WithHint("restore it from a backup")
	}
	return k, nil
}

// makeKey makes the key at path, or reads the one that somebody else has made
// meanwhile: several processes may come to a new data directory at once. It is
// durable before it is used.
func makeKey(path string) (*key, error) {
	k, err := newKey()
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, ".key-*") // 0600
	if err != nil {
		return nil, err
	}
	tmp := f.Name()
	defer os.Remove(tmp)
	_, err = f.WriteString(k.secret + "\n")
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	failpoint.Hit("audit/key-written")
	if err == nil {
		err = os.Link(tmp, path)
	}
	if errors.Is(err, fs.ErrExist) {
		return readKey(path)
	}
	if err != nil {
		return nil, err
	}
	failpoint.Hit("audit/key-linked")
	return k, syncDir(dir)
}

// publish writes the public key beside the private one, if it is not there.
func (k *key) publish(path string) error {
	b, err := os.ReadFile(publicPath(path))
	if err == nil && string(b) == k.public+"\n" {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Several processes may do this at once; each writes the same.
	f, err := os.CreateTemp(filepath.Dir(path), ".key.pub-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(k.public + "\n")
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), publicPath(path))
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func publicPath(path string) string { return path + ".pub" }
func formerPath(path string) string { return path + ".old" }

// former are the verifiers of the keys that the data directory had before.
func former(path string) ([]note.Verifier, error) {
	b, err := readBounded(formerPath(path), maxKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []note.Verifier
	for s := bufio.NewScanner(strings.NewReader(string(b))); s.Scan(); {
		v, err := note.NewVerifier(s.Text())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", formerPath(path), err)
		}
		list = append(list, v)
	}
	return list, nil
}
