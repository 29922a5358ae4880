//go:build linux

package chaos

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestDiskFull fills the disk of the data directory under a server with a
// living sandbox. Nothing runs without evidence, nothing hangs, what must go
// goes, and it is over when there is space again.
func TestDiskFull(t *testing.T) {
	data := smallDisk(t)
	w := newWorld(t, data)
	s := w.serve("", "--stop-sandboxes")
	spare, doomed := s.create(), s.create()
	s.execs(spare)

	ballast := filepath.Join(data, "ballast")
	fill(t, ballast)
	// What is buffered or preallocated may still be used up.
	var status int
	var r reply
	var ran int
	for deadline := time.Now().Add(20 * time.Second); ; ran++ {
		status, r = s.do("POST", "/v1/sandboxes/"+spare+"/exec", `{"code":"open('/dev/shm/ran','a').write('x')"}`)
		if status != http.StatusOK {
			break
		}
		fill(t, ballast)
		if time.Now().After(deadline) {
			t.Fatalf("%d execs were recorded on a full disk", ran)
		}
	}
	if status != http.StatusInsufficientStorage || r.Error.Kind != "no_space" {
		t.Errorf("exec on a full disk: %d %+v", status, r)
	}
	for path, body := range map[string]string{"/v1/sandboxes": `{}`, "/v1/runs": `{"program":{"code":"1"}}`} {
		if status, r := s.do("POST", path, body); status != http.StatusInsufficientStorage || r.Error.Kind != "no_space" {
			t.Errorf("POST %s on a full disk: %d %+v", path, status, r)
		}
	}
	// An end is done all the same; that it could not be recorded is said.
	before := w.seeDirs(filepath.Join(data, "instances"))
	status, r = s.do("DELETE", "/v1/sandboxes/"+doomed, "")
	t.Logf("destroy on a full disk: %d %+v", status, r)
	if n := w.seeDirs(filepath.Join(data, "instances")); n != before-1 {
		t.Errorf("%d instances live after a destroy on a full disk, want %d", n, before-1)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if status, r = s.do("POST", "/v1/sandboxes", `{}`); status == http.StatusCreated {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("create, with space again: %d %+v\n%s", status, r, s.log)
		}
	}
	s.execs(r.ID)
	s.destroy(r.ID)
	// The refused exec did not run.
	if _, out := s.do("POST", "/v1/sandboxes/"+spare+"/exec", `{"code":"import os\nprint(os.path.getsize('/dev/shm/ran') if os.path.exists('/dev/shm/ran') else 0)"}`); out.Stdout != strconv.Itoa(ran)+"\n" {
		t.Errorf("the program ran %q times, recorded were %d", out.Stdout, ran)
	}
	s.destroy(spare)
	s.destroy(doomed) // on record with its receipt by now, or soon
	s.stop()
}

// smallDisk makes a data directory with a disk of its own, which a test can fill.
func smallDisk(t *testing.T) string {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("chaos", data, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "size=112m,mode=700"); errors.Is(err, syscall.EPERM) {
		t.Skip("not run: needs mount")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(data, 0); err != nil {
			t.Errorf("unmount: %v", err)
			syscall.Unmount(data, syscall.MNT_DETACH)
		}
	})
	return data
}

// fill appends to a file until the disk is full.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) || errors.Is(err, io.ErrShortWrite) {
			block = block[:len(block)/16]
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
