package template

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// background is for code that runs without a test.
var background = context.Background()

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }

func init() {
	helpers["resolve-host"] = func(dir string) error {
		s, err := New(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		for range 5 {
			h, err := s.Resolve(background, Host)
			if err != nil {
				return err
			}
			release, err := s.Acquire(h.Digest)
			if err != nil {
				return err
			}
			release()
			fmt.Println(h.Digest)
		}
		return nil
	}
}

// hostTemplate resolves the real machine's host template or skips.
func hostTemplate(t *testing.T) Template {
	t.Helper()
	if err := machine.usable(); err != nil {
		t.Skip("not run:", err)
	}
	h, err := newStore(t, t.TempDir()).Resolve(t.Context(), Host)
	must(t, err)
	return h
}

// The host template shows what packages installed and nothing else of this
// machine.
func TestHostShowsNothingElse(t *testing.T) {
	h := hostTemplate(t)
	if !h.Root.Mutable || !h.Runs(Shell) || h.Name != Host {
		t.Errorf("got %+v", h)
	}
	for _, m := range h.Root.Mounts {
		if !slices.Contains(hostTrees, m.Target[1:]) || m.Source != m.Target {
			t.Errorf("unexpected mount %+v", m)
		}
		for _, secret := range []string{"/usr/local", "/etc", "/home", "/root", "/var", "/opt", "/srv", "/usr/etc", "/usr/src"} {
			if below(secret, m.Source) || below(m.Source, secret) {
				t.Errorf("mount %+v shows %s", m, secret)
			}
		}
		if st, err := os.Lstat(filepath.Join(h.Root.Dir, m.Target)); err != nil || !st.IsDir() {
			t.Errorf("no mount point for %+v: %v", m, err)
		}
		for _, o := range h.Root.Mounts {
			if o != m && below(o.Target, m.Target) {
				t.Errorf("%+v lies inside %+v", o, m)
			}
		}
	}
	status, _ := os.ReadFile("/" + dpkgStatus) // not on every machine
	allowed := slices.Concat(hostEtcFiles, []string{caBundle, ldCache}, slices.Collect(maps.Keys(conffiles(status))))
	err := filepath.WalkDir(h.Root.Dir, func(p string, d fs.DirEntry, err error) error {
		must(t, err)
		rel := strings.TrimPrefix(p, h.Root.Dir+"/")
		if d.Type().IsRegular() && skeletonFiles[rel] == "" && !emptySkeleton(rel) && !slices.Contains(allowed, rel) {
			t.Errorf("unexpected file %s", rel)
		}
		return nil
	})
	must(t, err)
	checkSkeleton(t, h.Root.Dir)
	checkNoAccounts(t, h.Root.Dir)
}

// TestPackagedConfig: what a package brought is there, and nothing that somebody has
// changed, that leads elsewhere, or that is no Java's.
func TestPackagedConfig(t *testing.T) {
	const text, sum = "as packaged", "db48e035d1d5fc4ec64f085a2d2e67a1"
	files := map[string]string{"bin/sh": "#!", "etc/secret": text, "etc/java-9/linked": "-> ../secret", "etc/java-9/changed": "password", "etc/cron": text, "etc/java-9/obsolete": text,
		"etc/java-9/security/as-it-was": text}
	status := "Package: java\nConffiles:\n"
	for _, name := range []string{"java-9/security/as-it-was", "java-9/changed", "java-9/linked", "java-9/gone", "cron", "java-9/../secret"} {
		status += " /etc/" + name + " " + sum + "\n"
	}
	files[dpkgStatus] = status + " /etc/java-9/obsolete " + sum + " obsolete\nDescription: no /etc/java-9/changed " + sum + "\n"
	root := t.TempDir()
	must(t, fakeRoot(t, files).layConfig(root))
	var laid []string
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		must(t, err)
		if !d.IsDir() {
			laid = append(laid, strings.TrimPrefix(p, root+"/"))
		}
		return nil
	}))
	if !slices.Equal(laid, []string{"etc/java-9/security/as-it-was"}) {
		t.Errorf("there is %q", laid)
	}
}

// emptySkeleton reports whether a file is the skeleton's, and has nothing in it.
func emptySkeleton(name string) bool {
	content, ours := skeletonFiles[name]
	return ours && content == ""
}

// checkSkeleton asserts what every root promises.
func checkSkeleton(t *testing.T, root string) {
	t.Helper()
	for _, d := range skeletonDirs {
		st, err := os.Lstat(filepath.Join(root, d.path))
		if err != nil || st.Mode() != d.mode|fs.ModeDir && d.path != UserHome[1:] {
			t.Errorf("/%s: %v %v, want mode %v", d.path, st, err, d.mode)
		}
	}
	left, err := os.ReadDir(filepath.Join(root, GuestDir))
	if err != nil || len(left) > 0 {
		t.Errorf("%s holds %v, %v", GuestDir, left, err)
	}
	home, err := os.Stat(filepath.Join(root, UserHome))
	must(t, err)
	if os.Geteuid() == 0 && ownerOf(home) != (ownership{UserID, UserID}) {
		t.Errorf("home belongs to %v", ownerOf(home))
	}
	left, err = os.ReadDir(filepath.Join(root, "usr/local/bin"))
	if err != nil || len(left) > 0 {
		t.Errorf("/usr/local/bin holds %v, %v", left, err)
	}
}

// checkNoAccounts asserts that no account and no password of this machine is
// in root's own files.
func checkNoAccounts(t *testing.T, root string) {
	t.Helper()
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	must(t, err)
	if n := strings.Count(string(passwd), "\n"); n != 3 {
		t.Errorf("%d accounts", n)
	}
	var secrets []string
	if shadow, err := os.ReadFile("/etc/shadow"); err == nil {
		for line := range strings.SplitSeq(string(shadow), "\n") {
			if f := strings.Split(line, ":"); len(f) > 1 {
				if len(f[1]) > 4 {
					secrets = append(secrets, f[1])
				}
				secrets = append(secrets, line)
			}
		}
	}
	if id, err := os.ReadFile("/etc/machine-id"); err == nil {
		secrets = append(secrets, strings.TrimSpace(string(id)))
	}
	if name, err := os.ReadFile("/etc/hostname"); err == nil && len(name) > 6 {
		secrets = append(secrets, strings.TrimSpace(string(name))+"\n")
	}
	err = filepath.WalkDir(filepath.Join(root, "etc"), func(p string, d fs.DirEntry, err error) error {
		must(t, err)
		if d.Name() == "shadow" {
			t.Errorf("%s exists", p)
		}
		if d.Name() == "machine-id" { // for a sandbox's own to be bound over
			if b, err := os.ReadFile(p); err != nil || len(b) != 0 {
				t.Errorf("%s holds %q, %v", p, b, err)
			}
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(p)
		must(t, err)
		for _, s := range secrets {
			if s != "" && strings.Contains(string(b), s) {
				t.Errorf("%s holds something of this machine's own", p)
			}
		}
		return nil
	})
	must(t, err)
}

const testCA = `# a comment naming our company
-----BEGIN CERTIFICATE-----
AQID
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
AQID
-----END PRIVATE KEY-----
`

// A machine with traps: what leads out of the packaged trees is not followed.
func TestHostTraps(t *testing.T) {
	s := newStore(t, t.TempDir())
	s.host = fakeRoot(t, map[string]string{
		"bin": "-> usr/bin", "lib": "-> usr/lib", "sbin": "-> /usr/local/sbin", "lib64": "-> usr/lib64",
		"usr/bin/sh": "#!", "usr/bin/python3": "-> /usr/local/bin/python3", "usr/local/bin/python3": "secret",
		"usr/bin/node": "-> /etc/alternatives/node", "etc/alternatives/node": "-> /usr/lib/node/bin/node", "usr/lib/node/bin/node": "#!",
		"etc/alternatives/out": "-> /opt/vendor/bin/tool", "opt/vendor/bin/tool": "secret",
		"etc/alternatives/up": "-> ../../root/.ssh/id", "root/.ssh/id": "secret",
		"etc/alternatives/chain": "-> /usr/bin/hop", "usr/bin/hop": "-> /usr/local/bin/python3",
		"etc/alternatives/loop": "-> /etc/alternatives/loop",
		"etc/alternatives/file": "secret",
		"etc/alternatives/man":  "-> /usr/share/man/man1/x", "usr/share/man/man1/x": "",
		"usr/lib64/ld.so": "-> /lib/ld.so", "usr/lib64/leak": "-> /etc/shadow", "usr/lib/ld.so": "",
		"etc/shadow": "secret", "etc/passwd": "alice:x:1:1::/:/bin/sh", "usr/local/lib/x": "secret", "usr/etc/npmrc": "secret",
		"etc/services": "-> /etc/shadow", "etc/protocols": "tcp 6\n",
		"etc/ssl/certs/ca-certificates.crt": testCA,
	})
	h, err := s.Resolve(t.Context(), Host)
	must(t, err)
	if !slices.Equal(h.Packs, []string{Node, Shell}) {
		t.Errorf("packs %q, want node and shell only", h.Packs)
	}
	var targets []string
	for _, m := range h.Root.Mounts {
		targets = append(targets, m.Target)
	}
	if wantTargets := []string{"/usr/bin", "/usr/lib", "/usr/share"}; !slices.Equal(targets, wantTargets) {
		t.Errorf("mounts %q, want %q", targets, wantTargets)
	}
	for name, there := range map[string]bool{
		"bin": true, "lib": true, "lib64": true, "sbin": false, "usr/lib64/ld.so": true, "usr/lib64/leak": false,
		"etc/alternatives/node": true, "etc/alternatives/out": false, "etc/alternatives/up": false, "etc/alternatives/chain": false,
		"etc/alternatives/loop": false, "etc/alternatives/file": false, "etc/alternatives/man": false,
		"etc/services": false, "etc/protocols": true, "usr/etc": false, "etc/shadow": false,
	} {
		if _, err := os.Lstat(filepath.Join(h.Root.Dir, name)); (err == nil) != there {
			t.Errorf("%s there: %v, want %v", name, err == nil, there)
		}
	}
	bundle, err := os.ReadFile(filepath.Join(h.Root.Dir, caBundle))
	must(t, err)
	if got := string(bundle); got != "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n" {
		t.Errorf("bundle:\n%s", got)
	}
	checkSkeleton(t, h.Root.Dir)
}

func TestHostWithoutMergedUsr(t *testing.T) {
	s := newStore(t, t.TempDir())
	s.host = fakeRoot(t, map[string]string{"bin/sh": "#!", "lib/ld.so": "", "usr/bin/python3": "-> python3.9", "usr/bin/python3.9": "#!", "usr/lib/x": ""})
	h, err := s.Resolve(t.Context(), Host)
	must(t, err)
	if !slices.Equal(h.Packs, []string{Python, Shell}) || len(h.Root.Mounts) != 4 {
		t.Errorf("got %+v", h)
	}
	s.host = fakeRoot(t, map[string]string{"usr/bin/env": "#!"})
	_, err = s.Resolve(t.Context(), Host)
	want(t, err, sandbox.KindUnavailable, "firebreak template build")
	if _, err := s.List(t.Context()); err != nil {
		t.Error("List without a host template:", err)
	}
	_, err = s.Choose(t.Context(), Python)
	want(t, err, sandbox.KindNotFound, "firebreak template build python")
}

func TestHostFingerprint(t *testing.T) {
	s := newStore(t, t.TempDir())
	s.host = fakeRoot(t, map[string]string{"bin/sh": "#!", "usr/bin/python3": "#!", "var/lib/dpkg/status": "a", "etc/services": "x"})
	old, err := s.Resolve(t.Context(), Host)
	must(t, err)
	if again, _ := s.Resolve(t.Context(), Host); again.Digest != old.Digest || again.Root.Dir != old.Root.Dir {
		t.Errorf("unchanged machine, other template: %+v", again)
	}
	last := old
	for _, name := range []string{"var/lib/dpkg/status", "usr/bin/python3", "etc/services", "bin"} {
		at := time.Now().Add(time.Hour)
		must(t, os.Chtimes(s.host.path(name), at, at))
		now, err := s.Resolve(t.Context(), Host)
		must(t, err)
		if now.Digest == last.Digest {
			t.Errorf("a change of %s is not seen", name)
		}
		last = now
	}
	_, err = s.Resolve(t.Context(), old.Digest)
	want(t, err, sandbox.KindConflict, Host)
	want(t, s.Verify(t.Context(), old.Digest), sandbox.KindConflict, Host)
	must(t, s.Verify(t.Context(), last.Digest))
	must(t, s.Remove(t.Context(), old.Digest))

	// a damaged layout is laid out again by itself, unless it is in use
	must(t, os.Remove(filepath.Join(filepath.Dir(last.Root.Dir), "manifest.json")))
	again, err := s.Resolve(t.Context(), Host)
	if err != nil || again.Digest != last.Digest {
		t.Errorf("got %+v, %v", again, err)
	}
	noTemporaries(t, s.dir)
}

// Several processes may want the host template for the first time at once.
func TestHostFromSeveralProcesses(t *testing.T) {
	if err := machine.usable(); err != nil {
		t.Skip("not run:", err)
	}
	dir := t.TempDir()
	const n = 6
	var procs []*exec.Cmd
	outs := make([]strings.Builder, n)
	for i := range n {
		cmd := exec.Command(os.Args[0], dir)
		cmd.Env = append(os.Environ(), helperEnv+"=resolve-host")
		cmd.Stdout, cmd.Stderr = &outs[i], &outs[i]
		must(t, cmd.Start())
		procs = append(procs, cmd)
	}
	for i, p := range procs {
		if err := p.Wait(); err != nil {
			t.Errorf("process %d: %v: %s", i, err, outs[i].String())
		}
		if outs[i].String() != outs[0].String() || strings.Count(outs[i].String(), "sha256:") != 5 {
			t.Errorf("process %d: %s", i, outs[i].String())
		}
	}
	noTemporaries(t, dir)
	names, err := readDirNames(dir)
	must(t, err)
	if len(names) != 3 { // .lock, names, one layout
		t.Errorf("%q", names)
	}
}

// An ordinary user gets the same view, and a home to write to.
func TestHostAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: this test gives up root, which it does not have")
	}
	if err := machine.usable(); err != nil {
		t.Skip("not run:", err)
	}
	dir, err := os.MkdirTemp("", "firebreak-template-") // t.TempDir lies in a directory only root may enter
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "test"), exe, 0o755))
	data := filepath.Join(dir, "data")
	must(t, os.Mkdir(data, 0o755))
	must(t, os.Chown(data, 65534, 65534))
	cmd := exec.Command(filepath.Join(dir, "test"), data)
	cmd.Env = []string{helperEnv + "=resolve-host"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	digest, _, _ := strings.Cut(string(out), "\n")
	root := filepath.Join(data, entryName(digest), "rootfs")
	home, err := os.Stat(filepath.Join(root, UserHome))
	must(t, err)
	if home.Mode().Perm() != 0o777 {
		t.Errorf("home has mode %v", home.Mode())
	}
	if _, err := os.Stat(filepath.Join(root, GuestDir)); err != nil {
		t.Error(err)
	}
}

func BenchmarkResolveHost(b *testing.B) {
	if err := machine.usable(); err != nil {
		b.Skip("not run:", err)
	}
	s, err := New(b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Resolve(background, Host); err != nil {
			b.Fatal(err)
		}
	}
}
