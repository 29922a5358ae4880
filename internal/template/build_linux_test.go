package template

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func init() {
	helpers["build"] = func(dir string) error {
		s, err := New(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		_, err = s.Build(background, Shell, BuildOptions{Progress: func(p Progress) {
			if p.Percent >= 10 {
				os.Stdout.WriteString("downloading\n")
			}
		}})
		return err
	}
}

// needMirror skips unless packs can be built here.
func needMirror(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("not run: -short")
	}
	sources, err := buildSources()
	if err == nil {
		_, err = debstrapMode()
	}
	if err != nil {
		t.Skip("not run:", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, strings.TrimSuffix(sources[0].uri, "/")+"/dists/"+sources[0].suite+"/InRelease", nil)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Skip("not run: the Debian mirror does not answer")
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Skip("not run: the Debian mirror answers", resp.Status)
	}
}

// builders returns the processes that work for a build in dir.
func builders(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	procs, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p + "/cmdline")
		environ, _ := os.ReadFile(p + "/environ")
		if p != "/proc/self" && bytes.Contains(append(cmdline, environ...), []byte(dir)) {
			found = append(found, string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	return found
}

func noMounts(t *testing.T, dir string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(b), dir) {
		t.Errorf("a mount below %s is left", dir)
	}
}

// The smallest pack, built twice with a mirror, a little apart and in one store:
// same digest, and nothing of this machine or of the time in it.
func TestBuildIsReproducible(t *testing.T) {
	needMirror(t)
	dir := t.TempDir()
	s := newStore(t, dir)
	var packs [2]Template
	var errs [2]error
	var wg sync.WaitGroup
	for i := range packs {
		time.Sleep(time.Duration(i) * 2200 * time.Millisecond) // a time in seconds would differ
		wg.Go(func() {
			last := 0
			packs[i], errs[i] = s.Build(t.Context(), Shell, BuildOptions{Progress: func(p Progress) {
				if p.Percent < last {
					t.Errorf("progress fell from %d to %d", last, p.Percent)
				}
				last = p.Percent
			}})
			if errs[i] == nil && last != 100 {
				t.Errorf("progress ended at %d", last)
			}
		})
	}
	wg.Wait()
	must(t, errors.Join(errs[:]...))
	p := packs[1]
	if packs[0].Digest != p.Digest {
		t.Errorf("digests differ: %s, %s", packs[0].Digest, p.Digest)
	}
	if p.Name != Shell || !p.Runs(Shell) || len(p.Packages) < 20 || p.Size < 1<<20 {
		t.Errorf("got %+v", p)
	}
	noTemporaries(t, dir)
	noMounts(t, dir)
	checkSkeleton(t, p.Root.Dir)
	checkNoAccounts(t, p.Root.Dir)
	must(t, s.Verify(t.Context(), p.Digest))
	checkPack(t, p.Root.Dir)
}

// checkPack asserts what a built pack must and must not contain, and runs it.
func checkPack(t *testing.T, root string) {
	t.Helper()
	for _, gone := range []string{"etc/apt", "var/lib/apt", "var/cache/apt", "var/lib/dpkg", "usr/bin/perl", "var/cache/ldconfig"} {
		if _, err := os.Lstat(filepath.Join(root, gone)); err == nil {
			t.Errorf("/%s is in the pack", gone)
		}
	}
	sources, err := buildSources()
	must(t, err)
	host := strings.Split(sources[0].uri, "/")[2]
	if out, err := exec.Command("grep", "-rIlF", host, filepath.Join(root, "etc"), filepath.Join(root, "var")).Output(); err == nil {
		t.Errorf("the mirror's name is in %s", out)
	}
	listing, _, err := list(t.Context(), root)
	must(t, err)
	for line := range strings.SplitSeq(string(listing), "\n") {
		f := strings.Fields(line)
		if len(f) > 1 && (f[1] > "1777" || f[0] == "f" && f[1][3]&2 != 0) {
			t.Errorf("setuid, setgid or open to all: %s", line)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", "echo $((6*7)); awk 'BEGIN{print \"awk\"}' </dev/null; jq --version; id -un user")
	cmd.Err = nil
	cmd.Env = []string{"PATH=" + rootPath}
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := runChroot(root, cmd); err != nil || !strings.HasPrefix(out.String(), "42\n") || !strings.Contains(out.String(), "jq-") || !strings.HasSuffix(out.String(), "user\n") {
		t.Errorf("%v: %s", err, out.String())
	}
}

func TestBuildCancelLeavesNothing(t *testing.T) {
	needMirror(t)
	few := recipe{Languages: []string{Shell}, Packages: []string{"dash", "libc-bin", "ca-certificates"}}
	for _, at := range []int{10, 60} {
		dir := t.TempDir()
		s := newStore(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var since time.Time
		_, err := s.buildRecipe(ctx, Shell, few, BuildOptions{Progress: func(p Progress) {
			if p.Percent >= at && since.IsZero() {
				since = time.Now()
				time.AfterFunc(20*time.Millisecond, cancel)
			}
		}}, &givens{})
		want(t, err, sandbox.KindCanceled, "")
		if d := time.Since(since); d > 10*time.Second {
			t.Errorf("at %d %%: cancelling took %v", at, d)
		}
		noTemporaries(t, dir)
		noMounts(t, dir)
		if left := builders(t, dir); len(left) > 0 {
			t.Errorf("at %d %%: still running: %q", at, left)
		}
		if names, _ := readDirNames(filepath.Join(dir, "names")); len(names) > 0 {
			t.Errorf("at %d %%: names %q", at, names)
		}
	}
}

// A builder killed in the middle leaves a temporary that the next start removes.
func TestBuildKilled(t *testing.T) {
	needMirror(t)
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), helperEnv+"=build")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if n, err := out.Read(make([]byte, 1)); n != 1 {
		t.Fatalf("the helper said nothing: %v, %v", err, cmd.Wait())
	}
	newStore(t, dir) // must not sweep what is being built
	if len(builders(t, dir)) < 2 {
		t.Error("the test does not see a running build; it cannot see the end of one either")
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for len(builders(t, dir)) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if left := builders(t, dir); len(left) > 0 {
		t.Errorf("still running: %q", left)
	}
	names, err := readDirNames(dir)
	must(t, err)
	if len(names) != 3 {
		t.Errorf("after the kill: %q, want .lock, names and one temporary", names)
	}
	// A dying process gives up its memory, where its name is, before its files,
	// where the lock is.
	for {
		newStore(t, dir)
		names, err := readDirNames(dir)
		must(t, err)
		if len(names) == 2 || time.Now().After(deadline) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	noTemporaries(t, dir)
	noMounts(t, dir)
}

func TestBuildWithoutTheTool(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	s := newStore(t, t.TempDir())
	_, err := s.Build(t.Context(), Python, BuildOptions{})
	want(t, err, sandbox.KindUnavailable, "apt-get install mmdebstrap")
	noTemporaries(t, s.dir)
}

func TestUntar(t *testing.T) {
	entry := func(h tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h.Size = int64(len("content"))
		if h.Typeflag != tar.TypeReg {
			h.Size = 0
		}
		must(t, w.WriteHeader(&h))
		if h.Size > 0 {
			w.Write([]byte("content"))
		}
		must(t, w.Flush())
		return b.Bytes()
	}
	outside := t.TempDir()
	for name, c := range map[string]struct {
		entries []tar.Header
		path    string // where content must be; empty: refused
		mode    os.FileMode
	}{
		"plain":        {[]tar.Header{{Name: "./usr/bin/x", Mode: 0o755, Typeflag: tar.TypeReg}}, "usr/bin/x", 0o755},
		"merged":       {[]tar.Header{{Name: "./bin/x", Mode: 0o644, Typeflag: tar.TypeReg}}, "usr/bin/x", 0o644},
		"setuid":       {[]tar.Header{{Name: "./x", Mode: 0o6755, Typeflag: tar.TypeReg}}, "x", 0o755},
		"open to all":  {[]tar.Header{{Name: "./x", Mode: 0o666, Typeflag: tar.TypeReg}}, "x", 0o644},
		"absolute":     {[]tar.Header{{Name: "/x", Mode: 0o644, Typeflag: tar.TypeReg}}, "x", 0o644},
		"twice":        {[]tar.Header{{Name: "x", Mode: 0o600, Typeflag: tar.TypeReg}, {Name: "x", Mode: 0o644, Typeflag: tar.TypeReg}}, "x", 0o644},
		"hard link":    {[]tar.Header{{Name: "bin/y", Mode: 0o644, Typeflag: tar.TypeReg}, {Name: "x", Linkname: "./bin/y", Typeflag: tar.TypeLink}}, "x", 0o644},
		"up":           {[]tar.Header{{Name: "../x", Mode: 0o644, Typeflag: tar.TypeReg}}, "", 0},
		"through link": {[]tar.Header{{Name: "a", Linkname: outside, Typeflag: tar.TypeSymlink}, {Name: "a/x", Mode: 0o644, Typeflag: tar.TypeReg}}, outside[1:] + "/x", 0o644},
		"device":       {[]tar.Header{{Name: "x", Mode: 0o644, Typeflag: tar.TypeChar}}, "", 0},
		"link up":      {[]tar.Header{{Name: "x", Linkname: "../../etc/passwd", Typeflag: tar.TypeLink}}, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			root, err := os.OpenRoot(dir)
			must(t, err)
			defer root.Close()
			must(t, root.MkdirAll("usr/bin", 0o755))
			var archive []byte
			for _, h := range c.entries {
				archive = append(archive, entry(h)...)
			}
			err = untar(t.Context(), root, bytes.NewReader(append(archive, make([]byte, 1024)...)))
			if c.path == "" {
				if err == nil {
					t.Error("accepted")
				}
				return
			}
			must(t, err)
			b, err := os.ReadFile(filepath.Join(dir, c.path))
			st, _ := os.Lstat(filepath.Join(dir, c.path))
			if err != nil || string(b) != "content" || st.Mode() != c.mode {
				t.Errorf("%q, %v, mode %v, want %v", b, err, st.Mode(), c.mode)
			}
		})
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("written outside: %v, %v", left, err)
	}
}

// A missing library is found even though no program was run.
func TestCheckLibraries(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755))
	b, err := os.ReadFile("/bin/ls")
	if err != nil {
		t.Skip("not run:", err)
	}
	must(t, os.WriteFile(filepath.Join(root, "usr/bin/ls"), b, 0o755))
	libs, err := neededBy("/bin/ls")
	if err != nil || len(libs) == 0 {
		t.Skip("not run: /bin/ls of this machine needs no libraries", err)
	}
	if err := checkLibraries(root); err == nil || !strings.Contains(err.Error(), "/usr/bin/ls needs "+libs[0]) {
		t.Errorf("got %v", err)
	}
	for _, l := range libs {
		must(t, os.WriteFile(filepath.Join(root, "usr", l), nil, 0o644))
	}
	if err := errors.Join(checkLibraries(root)); err != nil {
		t.Error(err)
	}
}
