package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sdk "github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/vmimage"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/test/roots"
)

// brought is a directory of an operator's images: a kernel and a root file system, a
// squashfs where the machine can make one.
func brought(t *testing.T) (dir, kernel, rootfs string) {
	t.Helper()
	found, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil || len(found) == 0 {
		t.Skip("not run: there is no QEMU, or no kernel to boot")
	}
	dir = t.TempDir()
	kernel, rootfs = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "rootfs")
	b, err := os.ReadFile(found[0])
	if err == nil {
		err = os.WriteFile(kernel, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	root := roots.Python(t)
	if _, err := exec.LookPath("mksquashfs"); err == nil {
		if out, err := exec.Command("mksquashfs", root, rootfs, "-quiet", "-no-progress", "-all-root").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return dir, kernel, rootfs
	}
	f, err := os.Create(rootfs)
	if err == nil {
		err = errors.Join(vmimage.WriteRoot(f, vmimage.Tree{Dir: root, Owner: func(string, uint32, uint32) (uint32, uint32) { return 0, 0 }}), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, kernel, rootfs
}

// TestCreateWorkspace: an agent is given a workspace with a kernel and a root file
// system by path, runs in it, and forks it. Nobody else has the server read or boot
// anything, and what was changed is not booted.
func TestCreateWorkspace(t *testing.T) {
	dir, kernel, rootfs := brought(t)
	w := newWorld(t)
	w.env = append(w.env, "FIREBREAK_IMAGE_DIRS="+dir)
	s := w.serve()
	c := s.connect()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	files := sdk.WorkspaceOptions{CreateOptions: sdk.CreateOptions{Language: "python", Memory: 256 << 20}, KernelImagePath: kernel, RootfsImagePath: rootfs}
	ws, err := c.CreateWorkspace(ctx, "my-agent", files)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if exit, err := ws.Exec(ctx, sdk.Command{Code: "import os, pwd; print(6*7, pwd.getpwuid(os.getuid()).pw_name); open('kept', 'w').write('kept')"}, &out, &out); err != nil || exit.Code != 0 || out.String() != "42 user\n" {
		t.Fatalf("%+v, %v: %s", exit, err, out.String())
	}
	snap, err := c.Snapshot(ctx, "my-agent")
	if err != nil {
		t.Fatal(err)
	}
	fork, err := c.ForkWorkspace(ctx, snap.GetId(), "plan-b")
	if err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if exit, err := fork.Exec(ctx, sdk.Command{Code: "print(open('kept').read())"}, &out, &out); err != nil || exit.Code != 0 || out.String() != "kept\n" {
		t.Errorf("the fork: %+v, %v: %s", exit, err, out.String())
	}
	digest := ws.Created().GetTemplateDigest()
	if d := fork.Created().GetTemplateDigest(); d != digest {
		t.Errorf("the fork is of %s, the first of %s", d, digest)
	}

	// No other backend boots anything, and none is given what it cannot have.
	_, err = c.Create(ctx, sdk.CreateOptions{Template: digest, Backend: "sim"})
	var e *sandbox.Error
	if !errors.As(err, &e) || e.Kind != sandbox.KindUnsupported || !strings.Contains(e.Hint, "microvm") {
		t.Errorf("on another backend: %v", err)
	}
	elsewhere := files
	elsewhere.RootfsImagePath = "/etc/shadow"
	if _, err := c.CreateWorkspace(ctx, "", elsewhere); sandbox.KindOf(err) != sandbox.KindDenied {
		t.Errorf("a path of the machine's: %v", err)
	}
	var made struct{ Secret string }
	if err := json.Unmarshal([]byte(w.must("", "key", "create", "--name", "dev", "--role", "developer", "--json")), &made); err != nil {
		t.Fatal(err)
	}
	dev, err := sdk.New(sdk.Options{URL: s.url, APIKey: made.Secret})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if _, err := dev.CreateWorkspace(ctx, "", files); sandbox.KindOf(err) != sandbox.KindDenied {
		t.Errorf("a developer: %v", err)
	}
	if _, err := dev.BuildTemplateFrom(ctx, sdk.TemplateOptions{Rootfs: bytes.NewReader([]byte("hsqs"))}, nil); sandbox.KindOf(err) != sandbox.KindDenied {
		t.Errorf("a developer's own: %v", err)
	}

	// The same by the command line, from files of who calls; and a changed one.
	built := w.must("", "template", "build", "mine", "--kernel", kernel, "--rootfs", rootfs, "--language", "python")
	if strings.TrimSpace(built) != digest {
		t.Errorf("built as %s, by path as %s", built, digest)
	}
	if err := c.RemoveSnapshot(ctx, snap.GetId()); err != nil {
		t.Error(err)
	}
	for _, sb := range []*sdk.Sandbox{fork, ws} {
		if _, err := sb.Destroy(ctx); err != nil {
			t.Error(err)
		}
	}
	copied := filepath.Join(w.dir, "data/templates/sha256-"+strings.TrimPrefix(digest, "sha256:"), "boot/rootfs")
	if err := errors.Join(os.Chmod(copied, 0o600), os.Truncate(copied, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(ctx, sdk.CreateOptions{Template: "mine", Backend: "microvm"}); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("a changed root file system: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(w.dir, "data/machines")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
