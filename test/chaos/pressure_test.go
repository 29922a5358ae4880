//go:build linux

package chaos

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// mounted mounts a file system of the test's own as a data directory, and
// unmounts it when everything else is over.
func mounted(t *testing.T, what, fstype, options string) (data string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root for mounts")
	}
	data = filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", fstype, "-o", options, what, data).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", data).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
			syscall.Unmount(data, syscall.MNT_DETACH)
		}
	})
	if err := os.Chmod(data, 0o700); err != nil {
		t.Fatal(err)
	}
	return data
}

// image makes an ext4 file system in a sparse file.
func image(t *testing.T, size int64, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root for mounts")
	}
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", append(append([]string{"-q", "-F"}, args...), name)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	return name
}

// under makes the world's next servers begin with a shell script, as a service
// manager would prepare them: limits, control groups.
func (w *world) under(script string) {
	w.t.Helper()
	name := filepath.Join(w.t.TempDir(), "firebreak")
	if err := os.WriteFile(name, fmt.Appendf(nil, "#!/bin/bash\nset -e\n%s\nexec '%s' \"$@\"\n", script, w.bin), 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.bin = name
}

// tidy ends what a test that failed left running, so that it disturbs no other.
func (w *world) tidy() {
	w.t.Cleanup(func() {
		if !w.t.Failed() {
			return
		}
		cmd, out := w.command("serve", "--listen", "127.0.0.1:0", "--stop-sandboxes"), &output{}
		cmd.Stdout, cmd.Stderr = out, out
		if cmd.Start() != nil {
			return
		}
		for range 500 {
			if strings.Contains(out.String(), "http://") {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
}

// answer is what came back, whatever it was.
type answer struct {
	status int // 0: no answer
	body   []byte
	reply  reply
	hint   string
	about  string // the object an error names
	err    error  // the transport's
}

// String returns it for a person.
func (a answer) String() string {
	if a.status == 0 {
		return a.err.Error()
	}
	return fmt.Sprintf("%d %.2500s", a.status, a.body)
}

// ask sends a request and takes any answer.
func (s *server) ask(method, path string, body io.Reader) (a answer) {
	req, err := http.NewRequest(method, s.url+path, body)
	if err != nil {
		return answer{err: err}
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	resp, err := s.http.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		return answer{err: err}
	}
	a.status = resp.StatusCode
	if json.Unmarshal(a.body, &a.reply) == nil {
		var e struct{ Error struct{ Hint, ID string } }
		_ = json.Unmarshal(a.body, &e)
		a.hint, a.about = e.Error.Hint, e.Error.ID
	}
	return a
}

func (s *server) send(method, path, body string) answer {
	return s.ask(method, path, strings.NewReader(body))
}

// refused checks that an answer is a typed refusal, of one of those kinds, that
// tells a person what to do.
func (a answer) refused(t *testing.T, what string, kinds ...string) {
	t.Helper()
	if a.status < 400 || !slices.Contains(kinds, a.reply.Error.Kind) || a.hint == "" {
		t.Errorf("%s: %v; want one of %q with a hint", what, a, kinds)
	}
}

// soon tries until ok says yes: what was under pressure is over it by itself.
func soon(t *testing.T, what string, patience time.Duration, ok func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s, after %s: %v", what, patience, err)
		}
	}
}

// works makes a sandbox, uses it in every way and ends it.
func (s *server) works() error {
	a := s.send("POST", "/v1/sandboxes", `{}`)
	if a.status != http.StatusCreated {
		return fmt.Errorf("create: %v", a)
	}
	id := a.reply.ID
	text := strings.Repeat("all is well\n", 1000)
	if a := s.send("PUT", "/v1/sandboxes/"+id+"/files?path=f", text); a.status/100 != 2 {
		return fmt.Errorf("write: %v", a)
	}
	if a := s.send("POST", "/v1/sandboxes/"+id+"/exec", `{"code":"print(open('f').read(),end='')"}`); a.reply.Stdout != text {
		return fmt.Errorf("exec: %v", a)
	}
	if a := s.send("GET", "/v1/sandboxes/"+id+"/files?path=f", ""); string(a.body) != text {
		return fmt.Errorf("read: %v", a)
	}
	if a := s.send("DELETE", "/v1/sandboxes/"+id, ""); a.status != http.StatusOK || a.reply.Receipt == nil || !a.reply.Receipt.Clean {
		return fmt.Errorf("destroy: %v", a)
	}
	return nil
}

// churn fills the disk and frees it, over and over, until stop is called.
func churn(name string) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer os.Remove(name)
		for {
			full(name)
			select {
			case <-quit:
				return
			case <-time.After(20 * time.Millisecond):
			}
			os.Remove(name)
			select {
			case <-quit:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return sync.OnceFunc(func() { close(quit); <-done })
}

// full is fill for goroutines that are not the test's.
func full(name string) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return // no space for its name
	}
	defer f.Close()
	for block := bytes.Repeat([]byte{1}, 1<<20); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) || errors.Is(err, io.ErrShortWrite) {
			block = block[:len(block)/16]
		} else if err != nil {
			return
		}
	}
}
