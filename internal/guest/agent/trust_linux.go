package agent

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// bundles are where systems keep the list of certificates that programs trust:
// Debian's and Alpine's, Red Hat's, SUSE's. The first is made where there is none.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/ssl1.1/cert.pem",
	"/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/tls/cert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/ssl/ca-bundle.pem", "/var/lib/ca-certificates/ca-bundle.pem",
}

// anchors are what those lists are made of when a package changes, by whom that
// concerns: only where the directory is there.
var anchors = []string{"/usr/local/share/ca-certificates/firebreak.crt", "/etc/pki/ca-trust/source/anchors/firebreak.pem"}

const (
	hashed     = "/etc/ssl/certs" // where OpenSSL looks by the subject's hash
	hashedFile = "firebreak-ca.pem"
	maxHashed  = 10 // certificates with one hash
)

// stores are where Java's stores are that belong to no one Java, and javas the
// directories that Javas are in.
var (
	stores = []string{"/etc/ssl/certs/java/cacerts", "/etc/pki/java/cacerts", "/etc/pki/ca-trust/extracted/java/cacerts"}
	javas  = []string{"/usr/lib/jvm", "/usr/lib64/jvm", "/usr/java", "/opt/java", "/opt"}
)

// Trust implements Truster. What is in the root file system may be anything, an
// image's author's: links are followed, as programs would that look for certificates,
// and only what is a list of certificates, or a store of Java's, is replaced.
func (s *Linux) Trust(c guest.TrustCall) error {
	s.trusting.Lock()
	defer s.trusting.Unlock()
	t := truster{call: c, dir: guest.TrustDir(c.ReadOnly), files: &userFiles{account{name: "root", home: "/"}, &s.files.temps}}
	found := t.find(bundles)
	t.list = []byte{}
	if len(found) > 0 {
		t.list = distrusting(found[0].content)
	}
	if c.ReadOnly {
		return t.own("")
	}
	if _, err := os.Lstat(bundles[0]); len(found) == 0 && errors.Is(err, fs.ErrNotExist) {
		found = []trusted{{path: bundles[0]}}
	}
	whole := "" // a list that is ours as well
	for i, f := range found {
		err := t.write(f.path, trusting(f.content, c.Certificate))
		if err == nil && i == 0 {
			whole = f.path
		}
		if err = changeable(err); err != nil {
			return err
		}
	}
	if err := t.own(whole); err != nil {
		return err
	}
	for _, p := range anchors {
		if isDirectory(path.Dir(p)) {
			if err := t.put(p, []byte(c.Certificate)); err != nil {
				return err
			}
		}
	}
	if err := t.link(); err != nil {
		return err
	}
	return t.java()
}

// truster is one call's work.
type truster struct {
	call  guest.TrustCall
	dir   string
	files *userFiles
	list  []byte // the system's list, without ours
}

// trusted is a file that programs read, by the path that no link is on.
type trusted struct {
	path    string
	content []byte
}

// find reads those of paths that are there, each file once.
func (t *truster) find(paths []string) (found []trusted) {
	for _, p := range paths {
		real, err := filepath.EvalSymlinks(p)
		if err != nil || slices.ContainsFunc(found, func(f trusted) bool { return f.path == real }) {
			continue
		}
		if b, err := readTrusted(real); err == nil && isBundle(b) {
			found = append(found, trusted{real, b})
		}
	}
	return found
}

// own writes the directory that is ours, which has to be. Where there is a list that
// is ours as well it is that file: it costs disk that is the sandbox's.
func (t *truster) own(list string) error {
	err := os.Mkdir(t.dir, 0o755)
	if st, lerr := os.Lstat(t.dir); errors.Is(err, fs.ErrExist) && lerr == nil && !st.IsDir() {
		if err = os.Remove(t.dir); err == nil {
			err = os.Mkdir(t.dir, 0o755)
		}
	}
	var st unix.Stat_t
	switch {
	case errors.Is(err, fs.ErrNotExist): // not even /etc
		err = os.MkdirAll(t.dir, 0o755)
	case errors.Is(err, fs.ErrExist):
		err = unix.Lstat(t.dir, &st)
	}
	if err == nil && st.Uid != 0 {
		return sandbox.Errorf(string(guest.OpTrust), sandbox.KindConflict, "%s is not root's", t.dir)
	}
	if err == nil {
		err = os.Chmod(t.dir, 0o755) // whatever the umask
	}
	if err != nil {
		return fileError(guest.OpTrust, err)
	}
	if err := t.write(t.dir+"/"+guest.TrustFile, []byte(t.call.Certificate)); err != nil {
		return err
	}
	bundle := t.dir + "/" + guest.TrustBundle
	if list != "" && share(list, bundle) == nil {
		return nil
	}
	return t.write(bundle, trusting(t.list, t.call.Certificate))
}

// share makes a name for the file that another one is of. Errors: also that they are
// on different file systems.
func share(from, name string) error {
	st, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if old, err := os.Lstat(name); err == nil && os.SameFile(old, st) {
		return nil
	}
	temp := path.Join(path.Dir(name), randomName(path.Base(name)))
	if err := os.Link(from, temp); err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		_ = os.Remove(temp)
		return err
	}
	return nil
}

// write makes content that of a file, whole or not at all, unless it is already.
func (t *truster) write(p string, content []byte) error {
	if old, err := readTrusted(p); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if st, err := os.Lstat(p); err == nil && st.Mode().Type() == fs.ModeSymlink {
		if err := os.Remove(p); err != nil { // it would be followed
			return fileError(guest.OpTrust, err)
		}
	}
	w, err := t.files.Create(p, CreateOptions{Parents: true})
	if err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		w.Abort()
		return err
	}
	_, err = w.Commit()
	return err
}

// put is write for a file that is the system's. Where that cannot be changed it is
// left as it is: programs have the environment.
func (t *truster) put(p string, content []byte) error { return changeable(t.write(p, content)) }

func changeable(err error) error {
	switch sandbox.KindOf(err) {
	case sandbox.KindDenied, sandbox.KindNotDirectory, sandbox.KindIsDirectory, sandbox.KindConflict, sandbox.KindInvalid:
		return nil // read-only, or something else has the name
	}
	return err
}

// link has OpenSSL find the certificate by its subject.
func (t *truster) link() error {
	if !isDirectory(hashed) {
		return nil
	}
	if err := t.put(hashed+"/"+hashedFile, []byte(t.call.Certificate)); err != nil {
		return err
	}
	for n := range maxHashed {
		name := hashed + "/" + t.call.Link + "." + itoa(n)
		if target, err := os.Readlink(name); err == nil && target == hashedFile {
			return nil
		}
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return changeable(t.files.Symlink(hashedFile, name))
		}
	}
	return nil // so many have the hash that there is an intent; programs have the environment
}

// java writes the stores that Javas read. Where one cannot be changed there is one
// in the directory that is ours, which its programs can be told of.
func (t *truster) java() error {
	names := t.javaStores()
	if len(names) == 0 {
		return nil
	}
	certificate := certificatesOf([]byte(t.call.Certificate))[0]
	fresh := sync.OnceValue(func() []byte { return keystore(nil, t.list, certificate) })
	var done []string
	kept := false // some other one
	for _, name := range names {
		p, missing := follow(name)
		if slices.Contains(done, p) {
			continue
		}
		done = append(done, p)
		content := fresh
		switch {
		case missing && !strings.HasPrefix(p, "/etc/ssl/") && !strings.HasPrefix(p, "/etc/pki/"):
			continue
		case !missing && unix.Access(path.Dir(p), unix.W_OK) != nil:
			kept = true
			continue
		case !missing:
			old, err := readTrusted(p)
			if err != nil || !isKeystore(old) {
				continue
			}
			if _, err := decodeJKS(old); err == nil {
				content = func() []byte { return keystore(old, nil, certificate) }
			}
		}
		if err := t.put(p, content()); err != nil {
			return err
		}
	}
	if !kept {
		return nil
	}
	return t.write(t.dir+"/cacerts", fresh())
}

// javaStores are the names of the stores that Javas here read.
func (t *truster) javaStores() (names []string) {
	homes := t.call.Java
	for _, dir := range javas {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries[:min(len(entries), maxJava)] {
			if e.IsDir() { // links lead to others
				homes = append(homes, dir+"/"+e.Name())
			}
		}
	}
	for _, h := range homes[:min(len(homes), 2*maxJava)] {
		for _, dir := range []string{"/lib/security", "/jre/lib/security"} {
			if path.IsAbs(h) && isDirectory(h+dir) {
				names = append(names, h+dir+"/cacerts")
				break
			}
		}
	}
	for _, s := range stores {
		if _, err := os.Stat(s); err == nil {
			names = append(names, s)
		}
	}
	return names
}

// follow is where a path leads, as far as the links go that are there.
func follow(p string) (real string, missing bool) {
	if real, err := filepath.EvalSymlinks(p); err == nil {
		return real, false
	}
	for range 40 {
		target, err := os.Readlink(p)
		if err != nil {
			break
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(p), target)
		}
		p = path.Clean(target)
	}
	if dir, err := filepath.EvalSymlinks(path.Dir(p)); err == nil {
		p = path.Join(dir, path.Base(p))
	}
	return p, true
}

func isDirectory(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.IsDir()
}

// readTrusted reads a file that is regular, and not too long.
func readTrusted(p string) ([]byte, error) {
	fd, st, err := openRegular(guest.OpTrust, p, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	if st.Size > maxBundle {
		return nil, sandbox.Errorf(string(guest.OpTrust), sandbox.KindTooLarge, "%s has %s", p, sandbox.FormatSize(st.Size))
	}
	b := make([]byte, 0, st.Size+1)
	for len(b) <= maxBundle {
		n, err := f.Read(b[len(b):cap(b)])
		if b = b[:len(b)+n]; errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
		if len(b) == cap(b) {
			b = slices.Grow(b, len(b))
		}
	}
	return nil, sandbox.Errorf(string(guest.OpTrust), sandbox.KindTooLarge, "%s grows", p)
}
