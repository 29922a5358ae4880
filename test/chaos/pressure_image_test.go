//go:build linux

package chaos

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDiskFullDuringImageBuild has a template built of an archive with less and
// less room for it, so that the disk is full in a later step each time: in the
// upload, in the unpacking, in what is made beside it. Whatever the step, the build
// works or is refused as no_space; then there is no template, and the disk is as it
// was.
func TestDiskFullDuringImageBuild(t *testing.T) {
	w := newWorld(t, mounted(t, "chaos", "tmpfs", "size=128m,mode=700,nosuid,nodev"))
	w.tidy()
	s := w.serve("", "--stop-sandboxes", "--disk-reserve", "1") // so that builds begin, and meet the end
	s.execs(s.create())                                         // so that everything a sandbox needs is unpacked
	const files, size = 200, 32 << 10
	archive := noise(t, files, size)
	upload := func() answer { return s.ask("PUT", "/v1/templates/uploads", bytes.NewReader(archive)) }
	build := func(id string) answer { return s.send("POST", "/v1/templates", `{"name":"noise","upload":"`+id+`"}`) }
	ballast := filepath.Join(w.data, "ballast")
	templates := entries(t, filepath.Join(w.data, "templates"))
	whole := int64(files * (size + 512)) // of the archive, and about what its template needs

	outcome := map[string]int{}
	try := func(name string, room int64, during bool) {
		a := upload()
		if a.status != http.StatusCreated {
			t.Fatalf("%s: upload: %v", name, a)
		}
		id := a.reply.ID
		before := free(t, w.data)
		stop := func() { os.Remove(ballast) }
		if during {
			stop = churn(ballast)
		} else {
			leave(t, ballast, w.data, room)
		}
		a = build(id)
		stop()
		outcome[fmt.Sprintf("%d %s", a.status, a.reply.Error.Kind)]++
		if a.status != http.StatusCreated {
			a.refused(t, name, "no_space")
			// Refused before it began, a build leaves its upload to the next one. What
			// the server knows of its disk may be a second old.
			soon(t, name+", with space again", 20*time.Second, func() error {
				if a = build(id); a.reply.Error.Kind == "no_space" {
					return fmt.Errorf("build: %v", a)
				}
				return nil
			})
			if a.status != http.StatusCreated {
				a.refused(t, name+", with space again", "not_found")
				outcome["in the middle"]++
			}
		}
		if a.status != http.StatusCreated {
			if got := entries(t, filepath.Join(w.data, "templates")); got != templates {
				t.Errorf("%s: left behind in templates: %s; before: %s", name, got, templates)
			}
		} else if a := s.send("DELETE", "/v1/templates/noise", ""); a.status/100 != 2 {
			t.Errorf("%s: %v", name, a)
		} else if a := s.send("POST", "/v1/templates/collect", `{"unused_ms":0,"layer_age_ms":0}`); a.status/100 != 2 {
			t.Errorf("%s: %v", name, a)
		}
		soon(t, name, 20*time.Second, func() error {
			// The upload went with the build; records of all this remain.
			if lost := before - free(t, w.data); lost > 1<<20 {
				return fmt.Errorf("%d KiB of the disk are not given back", lost>>10)
			}
			return nil
		})
	}
	leave(t, ballast, w.data, whole/2)
	if a := upload(); a.status == http.StatusCreated {
		t.Error("an upload larger than the room for it was accepted")
	} else {
		a.refused(t, "upload", "no_space")
	}
	os.Remove(ballast)
	for i := range int64(9) {
		try(fmt.Sprintf("%d/8 of the room", i), whole*i/8, false)
	}
	for range 4 {
		try("on and off", 0, true)
	}
	try("all the room", 4*whole, false)
	t.Logf("%v", outcome)
	if outcome["201 "] == 0 || outcome["507 no_space"] < 5 || outcome["in the middle"] < 3 {
		t.Errorf("the outcomes are %v: want some of each kind", outcome)
	}
	soon(t, "with space again", 20*time.Second, s.works)
	s.stop()
	w.verified()
}

// noise is an archive of files that nothing packs smaller.
func noise(t *testing.T, files, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	random := rand.NewChaCha8([32]byte{7})
	body := make([]byte, size)
	for i := range files {
		random.Read(body)
		if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("srv/%d", i), Mode: 0o644, Size: int64(size)}); err != nil {
			t.Fatal(err)
		}
		tw.Write(body)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// entries are the names in a directory.
func entries(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// free is what the disk of dir has left.
func free(t *testing.T, dir string) int64 {
	t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	return int64(s.Bavail) * s.Bsize
}

// leave fills the disk of dir but for room bytes. The server writes meanwhile.
func leave(t *testing.T, ballast, dir string, room int64) {
	t.Helper()
	soon(t, "ballast", 10*time.Second, func() error {
		os.Remove(ballast)
		n := free(t, dir) - room
		if n <= 0 {
			return nil
		}
		f, err := os.Create(ballast)
		if err != nil {
			return err
		}
		defer f.Close()
		return syscall.Fallocate(int(f.Fd()), 0, 0, n)
	})
}
