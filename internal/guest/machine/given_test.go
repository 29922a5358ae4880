//go:build linux

package machine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFurnish: the layer over an image has what a sandbox needs, whatever stands in its
// place in the image, and nothing of the image's links is followed.
func TestFurnish(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: the home is given away, which takes root")
	}
	dir, outside := t.TempDir(), t.TempDir()
	at := filepath.Join(t.TempDir(), "ours")
	if err := errors.Join(os.Mkdir(at, 0o755), os.Symlink(outside, filepath.Join(dir, "home")), os.Symlink(outside, filepath.Join(dir, "tmp")),
		os.Mkdir(filepath.Join(dir, "etc"), 0o755), os.Symlink("/etc/passwd", filepath.Join(dir, "etc/passwd")),
		os.WriteFile(filepath.Join(dir, "etc/group"), []byte("staff:x:50:\nuser:x:7:\nbroken\nroot:x:0:a\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	image, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if err := furnishOver(image, at); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
		"etc/group":  "root:x:0:a\nuser:x:1000:\nstaff:x:50:\n",
	} {
		if b, err := os.ReadFile(filepath.Join(at, name)); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "home/user", ".firebreak"} {
		if st, err := os.Lstat(filepath.Join(at, d)); err != nil || !st.IsDir() {
			t.Errorf("%s: %v", d, err)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("written outside: %v", left)
	}
}

// TestLacking: what a kernel lacks is named, and nothing else.
func TestLacking(t *testing.T) {
	dir := t.TempDir()
	filesystems, virtio := filepath.Join(dir, "filesystems"), filepath.Join(dir, "virtio")
	if err := os.WriteFile(filesystems, []byte("nodev\tdevtmpfs\nnodev\ttmpfs\nnodev\tdevpts\n\terofs\n\text4\nnodev\toverlay\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"drivers/virtio_blk", "drivers/virtio_console", "devices/virtio0"} {
		if err := os.MkdirAll(filepath.Join(virtio, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := lacking(Settings{}, filesystems, virtio); err != nil {
		t.Errorf("a whole kernel: %v", err)
	}
	for what, c := range map[string]struct {
		s      Settings
		virtio string
		lacks  string
	}{
		"another file system": {Settings{Given: "squashfs"}, virtio, " lacks squashfs, and"},
		"vsock":               {Settings{VSock: 1024}, virtio, " lacks vmw_vsock_virtio_transport, and"},
		"no devices":          {Settings{Probe: true}, dir, " lacks virtio_console, virtio_pci or virtio_mmio, and"},
	} {
		if err := lacking(c.s, filesystems, c.virtio); err == nil || !strings.Contains(err.Error(), c.lacks) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
