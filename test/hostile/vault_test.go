package hostile

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/test/image"
)

// vault is a server that wants its key, and gives everything back that it is sent, in
// whatever way it is asked to.
type vault struct {
	tells bool // gives its key to everybody

	mu  sync.Mutex
	got []arrival // guarded by mu
}

// arrival is a request as it arrived.
type arrival struct {
	text                 string
	authorized, complete bool
}

// took returns what has arrived, and forgets it.
func (v *vault) took() []arrival {
	v.mu.Lock()
	defer v.mu.Unlock()
	got := v.got
	v.got = nil
	return got
}

func (v *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s for %s\n", r.Method, r.RequestURI, r.Host)
	_ = r.Header.Write(&b)
	fmt.Fprintf(&b, "\n%s", body)
	key := r.Header.Get("Authorization")
	v.mu.Lock()
	v.got = append(v.got, arrival{b.String(), key == "Bearer "+vaultKey, err == nil})
	v.mu.Unlock()
	how, echo := strings.CutPrefix(r.URL.Path, "/v1/echo/")
	switch {
	case echo && v.tells:
		giveBack(w, how, vaultKey)
	case echo:
		giveBack(w, how, strings.TrimPrefix(key, "Bearer "))
	case r.URL.Path == "/v1/moved":
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusTemporaryRedirect)
	default:
		_, _ = io.WriteString(w, "welcome\n")
	}
}

// giveBack answers with a key.
func giveBack(w http.ResponseWriter, how, key string) {
	say := func(text string) { _, _ = io.WriteString(w, text) }
	h := w.Header()
	switch how {
	case "header":
		h.Set("X-Your-Key", "Bearer "+key)
	case "cookie":
		http.SetCookie(w, &http.Cookie{Name: "k", Value: url.QueryEscape(key)})
		h.Add("Set-Cookie", "key="+key)
	case "location":
		h.Set("Location", "https://api.vault.example/?key="+url.QueryEscape(key))
		w.WriteHeader(http.StatusFound)
	case "status":
		http.Error(w, "no such key: "+key, http.StatusForbidden)
	case "hex":
		say(hex.EncodeToString([]byte(key)))
	case "base64":
		say(base64.StdEncoding.EncodeToString([]byte("Bearer "+key)) + "\n" + base64.RawURLEncoding.EncodeToString([]byte(key)))
	case "url":
		say(url.QueryEscape(key))
	case "json":
		text, _ := json.Marshal(map[string]string{"authorization": "Bearer " + key})
		say(string(text))
	case "pieces":
		for i := range key {
			say(key[i : i+1])
			_ = http.NewResponseController(w).Flush()
		}
	case "trailer":
		h.Set("Trailer", "X-Key")
		say("see below")
		h.Set("X-Key", key)
	case "gzip":
		h.Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, "your key is "+key)
		_ = z.Close()
	case "long":
		say(strings.Repeat("x", 65530) + key + strings.Repeat("x", 32760) + key)
	default:
		say("your key is " + key + "\n")
	}
}

// secretForms are the secret as it is, and in the encodings that people and programs
// use, wherever in a base64 text it begins.
var secretForms = func() map[string][]byte {
	forms := map[string][]byte{"raw": []byte(vaultKey), "hex": []byte(hex.EncodeToString([]byte(vaultKey))), "url": []byte(url.QueryEscape(vaultKey)),
		"HEX": []byte(strings.ToUpper(hex.EncodeToString([]byte(vaultKey)))), "path": []byte(url.PathEscape(vaultKey)), "json": []byte(strings.ReplaceAll(vaultKey, "/", `\/`))}
	for shift := range 3 {
		for name, enc := range map[string]*base64.Encoding{"base64": base64.StdEncoding, "base64url": base64.URLEncoding} {
			text := enc.EncodeToString(append(make([]byte, shift), vaultKey...))
			from := 0
			if shift > 0 {
				from = 4
			}
			forms[fmt.Sprint(name, " ", shift)] = []byte(text[from : len(text)-4])
		}
	}
	return forms
}()

// contains is the form in which the secret is in b; empty for none.
func contains(b []byte) string {
	for name, form := range secretForms {
		if bytes.Contains(b, form) {
			return name
		}
	}
	return ""
}

// sighting is what was seen in something that was searched.
type sighting struct {
	form   string // of the secret
	canary bool
	size   int64
}

// look searches all that r has, piece by piece.
func look(r io.Reader) (s sighting) {
	const overlap = 512
	buf := make([]byte, 1<<20+overlap)
	for kept := 0; ; {
		n, err := io.ReadFull(r, buf[kept:])
		s.size += int64(n)
		seen := buf[:kept+n]
		if f := contains(seen); f != "" {
			s.form = f
		}
		s.canary = s.canary || bytes.Contains(seen, []byte(canary))
		if err != nil {
			return s
		}
		kept = copy(buf, seen[len(seen)-overlap:])
	}
}

// searchMemory looks at all memory of the processes that are a sandbox's boundary: the
// file that is the guest's memory, which a checkpoint would write, and their own.
func (w *world) searchMemory(t *testing.T, instance string) {
	t.Helper()
	var total sighting
	pids := 0
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		argv, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || readErr != nil || !bytes.Contains(argv, []byte(instance)) {
			continue
		}
		pids++
		for what, s := range memoryOf(pid) {
			if s.form != "" {
				t.Errorf("process %d has the secret %s in %s", pid, s.form, what)
			}
			total.canary, total.size = total.canary || s.canary, total.size+s.size
		}
	}
	t.Logf("%s of %d processes were searched", mib(total.size), pids)
	if !total.canary {
		t.Errorf("the search is blind: the canary is not in %s of %d processes", mib(total.size), pids)
	}
}

// memoryOf searches a process's memory files and what it has mapped.
func memoryOf(pid int) map[string]sighting {
	found := map[string]sighting{}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "/memfd:") {
			if f, err := os.Open(fd); err == nil {
				found[to] = look(&sparse{f: f})
				f.Close()
			}
		}
	}
	maps, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return found
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var low, high int64
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &low, &high, &mode); n != 3 || !strings.HasPrefix(mode, "rw") || high-low > 4<<30 || strings.Contains(line, "/memfd:") {
			continue
		}
		found[strings.TrimSpace(line)] = look(io.NewSectionReader(mem, low, high-low))
	}
	return found
}

// searchImages has the sandbox write all of its memory and files, by itself and as a
// snapshot, and looks at both.
func (w *world) searchImages(t *testing.T, id string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	if err := image.Take(t.Context(), filepath.Join(w.dir, "data"), w.instance(t, id), dir); err != nil {
		t.Fatal(err)
	}
	searchImage(t, dir)
	status, snap := w.do("POST", "/v1/sandboxes/"+id+"/snapshots", "{}")
	if status/100 != 2 {
		t.Fatalf("snapshot: %d %s", status, snap.body)
	}
	searchImage(t, filepath.Join(w.dir, "data", "snapshots", snap.ID, "image"))
	if status, r := w.do("DELETE", "/v1/snapshots/"+snap.ID, ""); status/100 != 2 {
		t.Errorf("snapshot: %d %s", status, r.body)
	}
}

// searchImage looks for the secret in an image, which has the canary.
func searchImage(t *testing.T, dir string) {
	t.Helper()
	needles, names := [][]byte{[]byte(canary)}, []string{""}
	for name, form := range secretForms {
		needles, names = append(needles, form), append(names, name)
	}
	found, size, err := image.Search(dir, needles...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("an image of %s was searched", mib(size))
	if found[0] == 0 {
		t.Error("the search is blind: the canary is not in the image")
	}
	for i, n := range found[1:] {
		if n > 0 {
			t.Errorf("the image has the secret %s, %d times", names[i+1], n)
		}
	}
}

// sparse reads a file without its holes.
type sparse struct {
	f         *os.File
	at, until int64
}

// Read implements io.Reader.
func (s *sparse) Read(p []byte) (int, error) {
	if s.at >= s.until {
		data, err := unix.Seek(int(s.f.Fd()), s.at, unix.SEEK_DATA)
		if err != nil {
			return 0, io.EOF
		}
		hole, err := unix.Seek(int(s.f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return 0, err
		}
		s.at, s.until = data, hole
	}
	n, err := s.f.ReadAt(p[:min(int64(len(p)), s.until-s.at)], s.at)
	s.at += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// searchServer looks at everything that the server answers, has logged and keeps.
func (w *world) searchServer(t *testing.T, id string) {
	t.Helper()
	canaries := 0
	note := func(what string, s sighting) {
		if s.form != "" {
			t.Errorf("%s has the secret %s", what, s.form)
		}
		if s.canary {
			canaries++
		}
	}
	for _, path := range []string{"/v1/sandboxes/" + id, "/v1/sandboxes", "/v1/sandboxes/" + id + "/events?no_follow=true", "/v1/secrets", "/v1/bindings", "/v1/bindings/vault",
		"/v1/audit/entries?page_size=500&payloads=true", "/metrics", "/v1/backends", "/v1/policies"} {
		_, r := w.do("GET", path, "")
		if r.body == "" {
			t.Errorf("%s answers nothing", path)
		}
		note(path, look(strings.NewReader(r.body)))
	}
	for _, args := range [][]string{{"secret", "ls"}, {"binding", "ls"}, {"secret", "ls", "--json"}, {"inspect", id}, {"events", id}, {"network", id}} {
		out, errs, _ := w.cli(args...)
		note(strings.Join(args, " "), look(strings.NewReader(out+errs)))
	}
	note("the log", look(strings.NewReader(w.text())))
	files := 0
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "/data/libexec/") || strings.Contains(path, "/data/templates/") {
			return nil // gone meanwhile, or the program's own
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		files++
		note(path, look(f))
		return nil
	})
	if err != nil || files < 5 || canaries < 3 {
		t.Errorf("the search is blind: %d files, %d places with the canary, %v", files, canaries, err)
	}
}
