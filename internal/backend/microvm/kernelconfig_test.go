//go:build linux

package microvm

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest/machine"
)

var reOption = regexp.MustCompile(`(?m)^(?:CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set)$`)

// options reads a kernel's configuration: "n" is what is not set.
func options(t *testing.T, path string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	for _, m := range reOption.FindAllStringSubmatch(string(b), -1) {
		if m[1] == "" {
			m[1], m[2] = m[3], "n"
		}
		if _, twice := list[m[1]]; twice {
			t.Errorf("%s: %s is there twice", path, m[1])
		}
		list[m[1]] = m[2]
	}
	return list
}

// TestKernelConfig: the configuration for a kernel of one's own builds in whatever a
// machine is made of, and is what Debian's kernel, which boots, has in some form.
func TestKernelConfig(t *testing.T) {
	ours := options(t, "../../../images/kernel/microvm.config")
	drivers := map[string]string{"virtio_pci": "VIRTIO_PCI", "virtio_mmio": "VIRTIO_MMIO", "virtio_blk": "VIRTIO_BLK", "virtio_console": "VIRTIO_CONSOLE",
		"erofs": "EROFS_FS", "overlay": "OVERLAY_FS", "vmw_vsock_virtio_transport": "VIRTIO_VSOCKETS"}
	needed := []string{"BLK_DEV_INITRD", "PVH", "ACPI", "VIRTIO_MMIO_CMDLINE_DEVICES", "SERIAL_8250_CONSOLE", "DEVTMPFS", "TMPFS", "EXT4_FS", "SQUASHFS",
		"UNIX98_PTYS", "VIRTIO_NET", "HW_RANDOM_VIRTIO", "VMGENID", "CGROUP_PIDS"}
	for _, m := range slices.Concat(machine.Modules, machine.VSockModules) {
		if drivers[m] == "" {
			t.Errorf("it is not known what configures the module %s", m)
		}
		needed = append(needed, drivers[m])
	}
	for _, o := range needed {
		if ours[o] != "y" {
			t.Errorf("%s is not built in", o)
		}
	}
	debian, _ := filepath.Glob("/boot/config-*-cloud-amd64")
	if len(debian) == 0 {
		t.Skip("not run: there is no /boot/config-*-cloud-amd64 to compare with")
	}
	theirs := options(t, slices.MaxFunc(debian, compareReleases))
	// Devices on the command line are for Firecracker without ACPI; the other came to
	// Linux and to Debian later.
	beyond := []string{"VIRTIO_MMIO_CMDLINE_DEVICES", "VMGENID"}
	for o, v := range ours {
		switch have := theirs[o]; {
		case v == "y" && have != "y" && have != "m" && !slices.Contains(beyond, o):
			t.Errorf("%s is %q with Debian: it is not needed, or it is called otherwise", o, have)
		case v == "n" && have == "":
			t.Errorf("%s, which is left out, is not there at all", o)
		}
	}
}
