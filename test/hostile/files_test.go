package hostile

import (
	"context"
	"encoding/json"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const secret = "a secret of the host, 6f1d"

// canary is a file of the host that no sandbox must reach.
func (w *world) canary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(w.dir, "out", "canary")
	if _, err := os.Stat(path); err == nil {
		return path // another case's, and to be found as it is
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(secret), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func (w *world) checkCanary(t *testing.T, path string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != secret {
		t.Errorf("the host's file was changed: %q %v", b, err)
	}
}

// read reads a file through the API, briefly.
func (w *world) read(t *testing.T, id, path string) (int, reply) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return w.doContext(ctx, "GET", "/v1/sandboxes/"+id+"/files?length=65536&path="+url.QueryEscape(path), "")
}

// fileAttacks are about what leaves a sandbox as a file, or enters it.
var fileAttacks = []attack{
	{number: 40, name: "paths, links and special files", verdict: deny, act: filePaths},
	{number: 40, name: "links swapped under the API", verdict: deny, act: swappedLinks},
	{number: 41, name: "artifacts that attack who collects them", verdict: contain, also: []int{42, 43}, act: artifacts},
	{number: 42, name: "a hundred thousand empty files", verdict: survive, limits: `"memory_bytes":536870912`, act: manyFiles},
}

// TestFiles carries them out side by side.
func TestFiles(t *testing.T) {
	w := serve(t, built(t))
	n := w.neighbours(t)
	canary := w.canary(t)
	t.Run("all", func(t *testing.T) {
		for _, a := range fileAttacks {
			t.Run(a.title(), func(t *testing.T) {
				t.Parallel()
				w.carryOut(t, n, a)
			})
		}
	})
	w.checkCanary(t, canary)
	for _, id := range n.ids {
		w.destroy(t, id)
	}
}

// filePaths is case 40: paths, links and files that lead elsewhere are refused,
// or resolved inside the guest and with its user's permissions.
func filePaths(t *testing.T, w *world, id string) {
	canary := w.canary(t)
	w.upload(t, id, "traps.py")
	if _, r := w.exec(id, 20*time.Second, "python3", "traps.py", canary); r.ExitCode != 0 || strings.Contains(r.Stdout, "made d") {
		t.Fatalf("traps: %s", r.body)
	}
	hostPasswd, _ := os.ReadFile("/etc/passwd")
	paths := []string{canary, "../.." + canary, strings.Repeat("../", 40) + canary, "/proc/self/root" + canary, "/proc/1/root" + canary,
		"/proc/1/cwd/../" + canary, "/.firebreak/../.." + canary, "/proc/self/fd/0", "/proc/1/fd/1", "/proc/1/mem", "/proc/1/environ",
		"/etc/shadow", "/proc/kcore", "/dev/mem", "/dev/kmsg"}
	for _, name := range []string{"absolute", "canary", "relative", "root", "one", "loop", "environ", "mem", "kcore", "zero", "stdin", "dir", "fifo", "device", "cwd"} {
		paths = append(paths, "traps/"+name)
	}
	for _, p := range paths {
		status, r := w.read(t, id, p)
		if strings.Contains(r.body, secret) || status == http.StatusOK && p != "/proc/self/fd/0" && p != "traps/zero" && len(r.body) > 0 {
			t.Errorf("read %s: %d %.100q", p, status, r.body)
		}
		if status == 0 || status >= 400 && r.Error.Kind == "" {
			t.Errorf("read %s: %d, not a typed error: %.200s %s", p, status, r.body, r.Error.Message)
		}
	}
	for _, p := range []string{"../../../../etc/passwd", "traps/../../../etc/passwd", "traps/hardlink"} {
		if status, r := w.read(t, id, p); status == http.StatusOK && r.body == string(hostPasswd) {
			t.Errorf("read %s: the host's own file", p)
		}
	}
	for _, p := range []string{"a\x00b", "/etc/passwd\x00.txt", "", strings.Repeat("p/", 4000)} {
		if status, r := w.read(t, id, p); status != http.StatusBadRequest || r.Error.Kind != "invalid" {
			t.Errorf("read %.20q: %d %.200s", p, status, r.body)
		}
	}
	for _, p := range []string{canary, "traps/canary", "traps/root", "traps/one", "/etc/passwd", "/.firebreak/firebreak-guest", "/proc/sysrq-trigger", "traps/fifo", "/dev/null/x"} {
		status, r := w.do("PUT", "/v1/sandboxes/"+id+"/files?path="+url.QueryEscape(p), "written")
		if status == 0 || status >= 500 {
			t.Errorf("write %s: %d %s %s", p, status, r.body, r.Error.Message)
		}
	}
	w.checkCanary(t, canary)
	for _, body := range []string{`{"from":"traps/canary","to":"/etc/x"}`, `{"from":"/etc/passwd","to":"mine"}`, `{"from":"traps","to":"/proc/1/root/x"}`} {
		if status, r := w.do("POST", "/v1/sandboxes/"+id+"/files/move", body); status < 400 {
			t.Errorf("move %s: %d %s", body, status, r.body)
		}
	}
	if status, r := w.do("DELETE", "/v1/sandboxes/"+id+"/files?recursive=true&path=traps", ""); status/100 != 2 {
		t.Errorf("remove: %d %s", status, r.body)
	}
	w.checkCanary(t, canary)
}

// swappedLinks is case 40's race: a name is swapped between a file and links
// while the API reads, writes, lists and collects.
func swappedLinks(t *testing.T, w *world, id string) {
	canary := w.canary(t)
	w.upload(t, id, "swap.py")
	var swapping sync.WaitGroup
	swapping.Go(func() { w.exec(id, 6*time.Second, "python3", "swap.py", canary) })
	files := "/v1/sandboxes/" + id + "/files"
	reads := 0
	for start := time.Now(); time.Since(start) < 5*time.Second; {
		for _, p := range []string{"swap/x", "swap/d/x", "swap/d/canary"} {
			status, r := w.read(t, id, p)
			if status == http.StatusOK && r.body != "mine" && r.body != "written" {
				if p != "swap/x" || strings.Contains(r.body, secret) || !strings.HasPrefix(r.body, "\x7fELF") { // the agent's own program may be read
					t.Fatalf("read %s: %.200q", p, r.body)
				}
			}
			if status == http.StatusOK {
				reads++
			}
			if status == 0 || status >= 500 {
				t.Fatalf("read %s: %d %s", p, status, r.body)
			}
			if status, r := w.do("PUT", files+"?path="+p, "written"); status == 0 || status >= 500 {
				t.Fatalf("write %s: %d %s", p, status, r.body)
			}
		}
		if _, r := w.do("GET", files+"/list?depth=3&path=swap", ""); strings.Contains(r.body, `"shadow"`) {
			t.Fatalf("a listing followed a link: %s", r.body)
		}
	}
	swapping.Wait()
	if reads == 0 {
		t.Error("nothing could ever be read")
	}
	w.checkCanary(t, canary)
}

// artifacts is cases 41 to 43: what a run leaves behind is collected by
// `firebreak run --artifact` and `firebreak cp` without harm to the machine or
// the terminal of whoever asked.
func artifacts(t *testing.T, w *world, id string) {
	canary := w.canary(t)
	program, err := filepath.Abs("programs/artifacts.py")
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(w.dir, "out", "run")
	stdout, stderr, code := w.cli("run", "--timeout", "60s", "--json", "--artifact", "out:"+out, program, "300")
	if code != 0 {
		t.Fatalf("run: %d %s %s", code, stdout, stderr)
	}
	harmless(t, "run", stderr, out)
	var result struct {
		Artifacts []struct{ Path, Error string }
	}
	if err := json.Unmarshal([]byte(stdout), &result); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	refused := map[string]string{}
	for _, a := range result.Artifacts {
		if bad := obeyed(a.Path + a.Error); bad != "" {
			t.Errorf("an artifact is called %q", a.Path)
		}
		refused[a.Path] = a.Error
	}
	for _, p := range []string{"out/link", "out/up", "out/through", "out/fifo", "out/sparse"} {
		if refused[p] == "" {
			t.Errorf("%s was collected", p)
		}
	}

	w.upload(t, id, "artifacts.py")
	if _, r := w.exec(id, time.Minute, "python3", "artifacts.py", "300"); r.ExitCode != 0 {
		t.Fatalf("artifacts.py: %s", r.body)
	}
	w.exec(id, time.Minute, "rm", "-f", "out/sparse") // cp copies what is asked for, of any size
	copied := filepath.Join(w.dir, "out", "cp")
	stdout, stderr, code = w.cli("cp", id+":out", copied)
	if code != 0 {
		t.Errorf("cp: %d %s", code, stderr)
	}
	harmless(t, "cp", stdout+stderr, copied)
	if !strings.Contains(stderr, "skipped") {
		t.Errorf("cp says nothing of what it left out: %s", stderr)
	}
	w.checkCanary(t, canary)
	for _, p := range []string{"out/escape", "escape", "out/canary/bottom"} {
		if _, err := os.Lstat(filepath.Join(w.dir, p)); err == nil {
			t.Errorf("%s was written outside of the destination", p)
		}
	}
}

// harmless looks at what was collected: plain files and directories with plain
// names, no more of them than asked for, and a terminal that was told nothing.
func harmless(t *testing.T, what, said, dir string) {
	t.Helper()
	if bad := obeyed(said); bad != "" {
		t.Errorf("%s prints %s:\n%q", what, bad, said)
	}
	good := 0
	var bytes int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if bad := obeyed(d.Name()); bad != "" || strings.Contains(d.Name(), "\n") {
			t.Errorf("%s made a file called %q", what, d.Name())
		}
		if !st.IsDir() && !st.Mode().IsRegular() || st.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 || st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			t.Errorf("%s made %s with mode %v", what, path, st.Mode())
		}
		if d.Name() == "good.txt" || strings.HasPrefix(d.Name(), "empty-") {
			good++
		}
		bytes += st.Size()
		return nil
	})
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if good != 302 {
		t.Errorf("%s brought %d of 302 harmless files", what, good)
	}
	if bytes > 64<<20 {
		t.Errorf("%s brought %s", what, mib(bytes))
	}
}

// manyFiles is case 42: a directory whose entries alone are a bomb. Listing and
// collecting it stop at a number, and say so.
func manyFiles(t *testing.T, w *world, id string) {
	w.upload(t, id, "many_files.py")
	if _, r := w.exec(id, 90*time.Second, "python3", "many_files.py", "100000"); r.Stdout != "made 100000\n" {
		t.Fatalf("many_files.py: %.500s", r.body)
	}
	grown := w.memory()
	start := time.Now()
	status, r := w.do("GET", "/v1/sandboxes/"+id+"/files/list?path=many", "")
	took := time.Since(start)
	var page struct {
		Files     []struct{ Path string }
		Truncated bool
	}
	if err := json.Unmarshal([]byte(r.body), &page); status != http.StatusOK || err != nil || len(page.Files) == 0 || !page.Truncated || len(page.Files) >= 100_000 {
		t.Errorf("list: %d, %d entries, truncated %v, %v: %.300s", status, len(page.Files), page.Truncated, err, r.body)
	}
	heap, _ := grown()
	if heap > 48<<20 || took > 30*time.Second {
		t.Errorf("a listing took %v and %s of the server's heap", took, mib(heap))
	}

	program, err := filepath.Abs("programs/many_files.py")
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(w.dir, "out", "many")
	stdout, stderr, code := w.cli("run", "--memory", "128MiB", "--timeout", "90s", "--json", "--artifact", "many:"+out, program, "5000")
	var result struct {
		Artifacts []struct{ Path, Error string }
	}
	if err := json.Unmarshal([]byte(stdout), &result); err != nil || code != 0 {
		t.Fatalf("run: %d %v %.300s %s", code, err, stdout, stderr)
	}
	files, err := os.ReadDir(out)
	last := result.Artifacts[max(0, len(result.Artifacts)-1):]
	if err != nil || len(files) > 1000 || len(files) < 900 || len(last) == 0 || !strings.Contains(last[0].Error, "the rest is missing") {
		t.Errorf("%d of 5000 files were collected (%v), and the last says %v", len(files), err, last)
	}
}
