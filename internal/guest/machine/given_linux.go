package machine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// atOurs is where a root image that somebody else made gets what a sandbox needs.
const atOurs = "/ours"

// needed are the file systems a sandbox is made of.
var needed = []string{"devtmpfs", "tmpfs", "devpts", "erofs", "ext4", "overlay"}

// lacking says what the kernel has neither built in nor been given as a module: at
// once, and not by waiting for what never appears.
func lacking(s Settings, filesystems, virtio string) error {
	var miss []string
	have := map[string]bool{}
	list, err := os.ReadFile(filesystems)
	if err != nil {
		return err
	}
	for _, f := range strings.Fields(string(list)) {
		have[f] = true
	}
	drivers := []string{"virtio_console"}
	if s.VSock != 0 {
		drivers[0] = VSockModules[0]
	}
	if s.Network != nil {
		drivers = append(drivers, "virtio_net")
	}
	if !s.Probe {
		drivers = append(drivers, "virtio_blk")
		need := needed
		if s.Given != "" {
			need = append(need[:len(need):len(need)], s.Given)
		}
		for _, n := range need {
			if !have[n] {
				miss = append(miss, n)
			}
		}
	}
	for _, d := range drivers {
		if _, err := os.Stat(filepath.Join(virtio, "drivers", d)); err != nil {
			miss = append(miss, d)
		}
	}
	if devices, err := os.ReadDir(filepath.Join(virtio, "devices")); err != nil || len(devices) == 0 {
		miss = append(miss, "virtio_pci or virtio_mmio")
	}
	if len(miss) > 0 {
		return fmt.Errorf("the kernel %s lacks %s, and there is no module of it", release(), strings.Join(miss, ", "))
	}
	return nil
}

// release is the running kernel's.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// mountImage mounts the root image. A journal is not played back: the disk it is on
// cannot be written.
func mountImage(given string) error {
	kind, options := "erofs", ""
	if given != "" {
		kind = given
	}
	if kind == "ext4" {
		options = "noload"
	}
	return mount(deviceRoot, atRoot, kind, unix.MS_RDONLY|unix.MS_NODEV, options)
}

// account is the line user code's account has in a root image's file, and root's
// where it has none.
var account = map[string][2]string{
	"passwd": {fmt.Sprintf("user:x:%d:%d:user:%s:/bin/sh", guest.DefaultUID, guest.DefaultUID, guest.DefaultHome), "root:x:0:0:root:/root:/bin/sh"},
	"group":  {fmt.Sprintf("user:x:%d:", guest.DefaultUID), "root:x:0:"},
}

// furnish makes the layer over a root image that somebody else made: the mount
// points, the account user code runs as, the files that name the machine. The image
// is not written, and no link of it is followed.
func furnish() error {
	if err := mount("ours", atOurs, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "mode=755,size=8m"); err != nil {
		return err
	}
	image, err := os.OpenRoot(atRoot)
	if err != nil {
		return err
	}
	defer image.Close()
	return furnishOver(image, atOurs)
}

// furnishOver writes that layer for an image into the directory at.
func furnishOver(image *os.Root, at string) error {
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"proc", 0o755}, {"sys", 0o755}, {"dev", 0o755}, {"tmp", 0o777 | os.ModeSticky}, {"etc", 0o755}, {"home", 0o755}, {"root", 0o700},
		{guest.DefaultHome[1:], 0o755}, {filepath.Dir(guest.AgentPath)[1:], 0o755}} {
		p := filepath.Join(at, d.name)
		if err := errors.Join(os.MkdirAll(p, 0o755), os.Chmod(p, d.mode)); err != nil {
			return err
		}
	}
	for name, lines := range account {
		if err := writeNew(at+"/etc/"+name, accounts(readSmall(image, "etc/"+name), lines)); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"hosts": "127.0.0.1 localhost\n::1 localhost\n", "resolv.conf": "# no network\n"} {
		if err := writeNew(at+"/etc/"+name, text); err != nil {
			return err
		}
	}
	return os.Chown(at+guest.DefaultHome, guest.DefaultUID, guest.DefaultUID)
}

func writeNew(path, text string) error {
	return errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chmod(path, 0o644))
}

// accounts is an image's file with our account in it: first after root, because
// whoever asks for the name of its number gets the first line.
func accounts(old string, lines [2]string) string {
	ours, root := lines[0], lines[1]
	var rest []string
	for line := range strings.Lines(old) {
		line = strings.TrimRight(line, "\r\n")
		switch name, _, ok := strings.Cut(line, ":"); {
		case !ok || name == "user":
		case name == "root":
			root = line
		default:
			rest = append(rest, line)
		}
	}
	return strings.Join(append([]string{root, ours}, rest...), "\n") + "\n"
}

// readSmall reads a small file of an image; "" when there is none.
func readSmall(image *os.Root, name string) string {
	st, err := image.Lstat(name)
	if err != nil || !st.Mode().IsRegular() {
		return ""
	}
	f, err := image.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return ""
	}
	return string(b)
}
