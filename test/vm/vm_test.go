//go:build linux

// Package vm tests what needs another kernel configuration than this machine's:
// it boots an emulated machine whose cgroups are all of version 2.
//
//	FIREBREAK_QEMU=1 FIREBREAK_KERNEL=/boot/vmlinuz-… go test ./test/vm -v -timeout 40m
//
// Nothing of it touches this machine beyond a directory of the test's.
package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// step and outcome are those of ./init.
type step struct {
	Name      string
	UID       int
	Delegated bool
	Copies    int
	Argv      []string
	Timeout   time.Duration
}

type outcome struct {
	Name, Output, Error string
	Code                int
	Took                time.Duration
	Left                []string
	Alive               int
}

// machine says what to boot, or why not.
func machine(t *testing.T) (qemu, kernel string) {
	t.Helper()
	if os.Getenv("FIREBREAK_QEMU") == "" {
		t.Skip("not run: takes minutes; set FIREBREAK_QEMU=1")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("not run: no QEMU (apt-get install qemu-system-x86)")
	}
	kernel = os.Getenv("FIREBREAK_KERNEL")
	if kernel == "" {
		found, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
		if len(found) == 0 {
			t.Skip("not run: no kernel to boot (apt-get install linux-image-cloud-amd64, or set FIREBREAK_KERNEL)")
		}
		kernel = found[0]
	}
	return qemu, kernel
}

// build compiles a program without the C library and returns its path.
func build(t *testing.T, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", append(append(args[:len(args)-1:len(args)-1], "-o", out), args[len(args)-1])...)
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v\n%s", args, err, b)
	}
	return out
}

// boot runs the steps in a machine with the files, and returns what became of
// each.
func boot(t *testing.T, plan []step, files map[string]string) map[string]outcome {
	t.Helper()
	qemu, kernel := machine(t)
	dir := t.TempDir()
	p, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	planFile := filepath.Join(dir, "plan")
	if err := os.WriteFile(planFile, p, 0o644); err != nil {
		t.Fatal(err)
	}
	files["/plan.json"] = planFile
	files["/init"] = build(t, "build", "./test/vm/init")
	initrd, console, port := filepath.Join(dir, "initrd"), filepath.Join(dir, "console"), filepath.Join(dir, "port")
	if err := writeArchive(initrd, files); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	began := time.Now()
	out, err := exec.CommandContext(ctx, qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "3072",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet rdinit=/init",
		"-serial", "file:"+console, "-serial", "file:"+port).CombinedOutput()
	said, _ := os.ReadFile(console)
	t.Logf("the machine ran for %s\n%s", time.Since(began).Round(time.Second), tail(said, 4000))
	if err != nil {
		t.Errorf("qemu: %v\n%s", err, out)
	}
	results := map[string]outcome{}
	f, err := os.Open(port)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := json.NewDecoder(f); ; {
		var o outcome
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Error(err) // cut off
			break
		}
		results[o.Name] = o
	}
	return results
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

// writeArchive writes an initial file system in cpio's "newc" format: the files
// and every directory above them.
func writeArchive(name string, files map[string]string) error {
	var out bytes.Buffer
	ino := 0
	add := func(path string, mode uint32, content []byte) {
		ino++
		head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			ino, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path)+1, 0)
		out.WriteString(head + path + "\x00")
		pad(&out)
		out.Write(content)
		pad(&out)
	}
	made := map[string]bool{".": true}
	var parents func(path string)
	parents = func(path string) {
		if d := filepath.Dir(path); !made[d] {
			made[d] = true
			parents(d)
			add(d, 0o040755, nil)
		}
	}
	for to, from := range files {
		to = strings.TrimPrefix(to, "/")
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		fi, err := os.Stat(from)
		if err != nil {
			return err
		}
		parents(to)
		mode := uint32(0o100644)
		if fi.Mode()&0o111 != 0 {
			mode = 0o100755
		}
		add(to, mode, b)
	}
	add("TRAILER!!!", 0, nil)
	return os.WriteFile(name, out.Bytes(), fs.FileMode(0o600))
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
