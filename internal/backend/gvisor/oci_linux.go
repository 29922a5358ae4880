package gvisor

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// The part of the OCI runtime specification that we write. Having it here
// keeps this program free of the runtime's modules.
type (
	ociSpec struct {
		Version     string            `json:"ociVersion"`
		Process     ociProcess        `json:"process"`
		Root        ociRoot           `json:"root"`
		Hostname    string            `json:"hostname"`
		Mounts      []ociMount        `json:"mounts"`
		Annotations map[string]string `json:"annotations,omitempty"`
		Linux       ociLinux          `json:"linux"`
	}
	ociProcess struct {
		User            ociUser             `json:"user"`
		Args            []string            `json:"args"`
		Env             []string            `json:"env"`
		Cwd             string              `json:"cwd"`
		Capabilities    map[string][]string `json:"capabilities"`
		Rlimits         []ociRlimit         `json:"rlimits"`
		NoNewPrivileges bool                `json:"noNewPrivileges"`
	}
	ociUser struct {
		UID int `json:"uid"`
		GID int `json:"gid"`
	}
	ociRlimit struct {
		Type string `json:"type"`
		Hard uint64 `json:"hard"`
		Soft uint64 `json:"soft"`
	}
	ociRoot struct {
		Path     string `json:"path"`
		Readonly bool   `json:"readonly"`
	}
	ociMount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source,omitempty"`
		Options     []string `json:"options,omitempty"`
	}
	ociLinux struct {
		Namespaces []ociNamespace `json:"namespaces"`
	}
	ociNamespace struct {
		Type string `json:"type"`
		Path string `json:"path,omitempty"`
	}
)

// Annotations firebreak-runsc's boot command reads. runsc itself would take
// these from the cgroup, which it does not manage here.
const (
	annotationMemory = "dev.firebreak.memory" // bytes, shown as MemTotal
	annotationCPUs   = "dev.firebreak.cpus"   // whole CPUs, shown by nproc
)

// agentCaps is what PID 1 needs to serve all users of the guest: change to
// them, act on their files and processes, and give everything up for them.
// They hold inside the sandbox only, where the sentry is the kernel.
var agentCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_SYS_RESOURCE",
}

// writable are the places that stay writable with Spec.ReadonlyRoot.
var writable = []struct {
	target, source string
	mode           os.FileMode
	uid            int
}{
	{"/tmp", "tmp", 0o777 | os.ModeSticky, 0},
	{guest.DefaultHome, "home", 0o755, guest.DefaultUID},
}

// buildSpec describes the sandbox to runsc.
func (b *Backend) buildSpec(dir string, s sandbox.Spec) ociSpec {
	o := ociSpec{
		Version:  "1.0.2",
		Hostname: s.Hostname,
		Root:     ociRoot{Path: s.Root.Dir, Readonly: s.ReadonlyRoot},
		Process: ociProcess{
			Args: b.agent,
			Env:  []string{"PATH=" + guest.DefaultPath},
			Cwd:  "/",
			Capabilities: map[string][]string{
				"bounding": agentCaps, "effective": agentCaps, "permitted": agentCaps,
			},
			Rlimits:         []ociRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 16, Soft: 1 << 16}},
			NoNewPrivileges: true,
		},
		Mounts: []ociMount{
			bind(RuntimeTarget, b.cfg.Runtime),
			{Destination: "/dev/shm", Type: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", "size=" + strconv.Itoa(shmSize)}},
		},
		Annotations: map[string]string{
			annotationMemory: strconv.FormatInt(s.Limits.Memory, 10),
			annotationCPUs:   strconv.Itoa(guestCPUs(s.Limits.CPUs)),
		},
	}
	for _, ns := range []string{"pid", "ipc", "uts", "mount"} {
		o.Linux.Namespaces = append(o.Linux.Namespaces, ociNamespace{Type: ns})
	}
	network := ociNamespace{Type: "network"}
	if s.Wire != nil {
		network.Path = s.Wire.NetNS
	}
	o.Linux.Namespaces = append(o.Linux.Namespaces, network)
	mounts := slices.Clone(s.Root.Mounts) // parents first
	slices.SortStableFunc(mounts, func(a, b sandbox.Mount) int { return len(a.Target) - len(b.Target) })
	for _, m := range mounts {
		o.Mounts = append(o.Mounts, bind(m.Target, m.Source))
	}
	if s.Wire != nil {
		for _, f := range wireFiles {
			o.Mounts = append(o.Mounts, bind(f.target, filepath.Join(dir, f.name)))
		}
	}
	for _, f := range identityFiles(s) {
		o.Mounts = append(o.Mounts, bind(f.target, filepath.Join(dir, f.name)))
	}
	if s.ReadonlyRoot {
		for _, w := range writable {
			o.Mounts = append(o.Mounts, ociMount{
				Destination: w.target, Type: "bind", Source: filepath.Join(dir, w.source),
				Options: []string{"bind", "rw", "nosuid", "nodev"},
			})
		}
	} else {
		// Without a mount of its own runsc would put a tmpfs on an empty /tmp,
		// and files there would count as memory. It skips types it does not
		// know, so this keeps /tmp on the root's writable layer.
		o.Mounts = append(o.Mounts, ociMount{Destination: "/tmp", Type: "firebreak-root"})
	}
	return o
}

// shmSize bounds /dev/shm, whose files are memory.
const shmSize = 64 << 20

func bind(target, source string) ociMount {
	return ociMount{Destination: target, Type: "bind", Source: source, Options: []string{"bind", "ro", "nosuid", "nodev"}}
}

// guestCPUs is the number of CPUs a guest sees. Not below two where the host
// has them: with one, programs leave out locks that they need all the same,
// because the sentry runs their threads on any CPU.
func guestCPUs(share float64) int {
	n := max(int(math.Ceil(share)), 2)
	return min(n, runtime.NumCPU())
}

// overlay is the --overlay2 flag: the writable layer, a file in dir.
func overlay(dir string, s sandbox.Spec) string {
	if s.ReadonlyRoot {
		return fmt.Sprintf("all:dir=%s,size=%d", dir, s.Limits.Disk/int64(len(writable)))
	}
	return fmt.Sprintf("root:dir=%s,size=%d", dir, s.Limits.Disk)
}

// writeBundle writes the OCI bundle and the sources of its mounts.
func (b *Backend) writeBundle(dir string, s sandbox.Spec) error {
	if s.ReadonlyRoot {
		for _, w := range writable {
			p := filepath.Join(dir, w.source)
			if err := os.Mkdir(p, 0o700); err != nil {
				return err
			}
			mode := w.mode
			if err := os.Chown(p, w.uid, w.uid); err != nil {
				if os.Geteuid() == 0 {
					return err
				}
				mode |= 0o777 // this user's directory, in a private one, for the guest's user
			}
			if err := os.Chmod(p, mode); err != nil {
				return err
			}
		}
	}
	if s.Wire != nil {
		if err := writeWireFiles(dir, s); err != nil {
			return err
		}
	}
	if err := writeIdentity(dir, s); err != nil {
		return err
	}
	j, err := json.Marshal(b.buildSpec(dir, s))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fileBundle), j, 0o600)
}

// mountPoints are what every root file system has to have, besides the home.
var mountPoints = []string{RuntimeTarget, "/proc", "/sys", "/dev", "/tmp"}

// checkRoot refuses a root file system that lacks a mount point. The gofer
// would make it, in the directory all sandboxes of the template share.
func checkRoot(s sandbox.Spec) error {
	bad := func(format string, args ...any) *sandbox.Error {
		return sandbox.Errorf("create", sandbox.KindInvalid, format, args...).WithID(string(s.Instance))
	}
	if !filepath.IsAbs(s.Root.Dir) {
		return bad("root directory %q is not an absolute path", s.Root.Dir)
	}
	need := append([]string{guest.DefaultHome}, mountPoints...)
	for _, m := range s.Root.Mounts {
		if !filepath.IsAbs(m.Source) || !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) == "/" {
			return bad("mount of %q at %q: both must be absolute paths below /", m.Source, m.Target)
		}
		if fi, err := os.Stat(m.Source); err != nil || !fi.IsDir() {
			return bad("mount source %q is not a directory", m.Source)
		}
		need = append(need, m.Target)
	}
	for _, p := range need {
		base, rest := carrier(s.Root, p)
		root, err := os.OpenRoot(base)
		if sandbox.KindOf(err) == sandbox.KindCapacity {
			return exhausted(string(s.Instance), err)
		}
		if err != nil {
			return bad("root file system: %w", err)
		}
		fi, err := root.Stat(rest)
		root.Close()
		if sandbox.KindOf(err) == sandbox.KindCapacity {
			return exhausted(string(s.Instance), err)
		}
		if err != nil || !fi.IsDir() {
			return bad("root file system lacks the mount point %s", p).WithHint("build the template again")
		}
	}
	return nil
}

// carrier returns the directory that path p of the guest lies in, which may be
// one of the mounts, and the path below it.
func carrier(r sandbox.Root, p string) (base, rest string) {
	p = filepath.Clean(p)
	base, at := r.Dir, "/"
	for _, m := range r.Mounts {
		t := filepath.Clean(m.Target)
		if len(t) > len(at) && strings.HasPrefix(p, t+"/") {
			base, at = m.Source, t
		}
	}
	rest, _ = filepath.Rel(at, p)
	return base, rest
}
