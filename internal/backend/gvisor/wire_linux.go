package gvisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// What tells a guest's programs where they are. Without a wire the template's
// serve: nothing can be resolved.
const (
	fileResolv = "resolv.conf"
	fileHosts  = "hosts"
)

// wireFiles are bound over those of the root file system.
var wireFiles = []struct{ name, target string }{
	{fileResolv, "/etc/resolv.conf"},
	{fileHosts, "/etc/hosts"},
}

// probeWires says why no sandbox can be put on a wire.
func (b *Backend) probeWires(root bool) error {
	refuse := func(hint, format string, args ...any) error {
		return sandbox.Errorf("", sandbox.KindUnsupported, format, args...).WithHint("%s", hint)
	}
	switch {
	case !root:
		return refuse("run the server as root, or leave the network rules out", "gVisor attaches networks for root only")
	case b.cfg.Wires == nil:
		return refuse("leave the network rules out", "this server attaches none")
	}
	err := b.cfg.Wires()
	var e *sandbox.Error
	if errors.As(err, &e) {
		return refuse(e.Hint, "%s", e.Message())
	}
	return err
}

// refuseWire is the error of a sandbox that needs a network and cannot have one.
func (p probed) refuseWire(s sandbox.Spec) error {
	e := sandbox.Errorf("create", sandbox.KindUnsupported, "the sandbox cannot have a network here: %w", p.noWires).WithID(string(s.Sandbox))
	var why *sandbox.Error
	if errors.As(p.noWires, &why) {
		e.Err, e.Hint = fmt.Errorf("the sandbox cannot have a network here: %s", why.Message()), why.Hint
	}
	return e
}

// checkWire refuses a wire that cannot be plugged in.
func checkWire(s sandbox.Spec) error {
	if s.Wire == nil {
		return nil
	}
	bad := func(format string, args ...any) *sandbox.Error {
		return sandbox.Errorf("create", sandbox.KindInvalid, format, args...).WithID(string(s.Instance))
	}
	w := *s.Wire
	if !filepath.IsAbs(w.NetNS) || w.Link == "" || !w.Address.IsValid() || !w.Gateway.IsValid() {
		return bad("wire %+v: a path, a link, an address and a gateway are needed", w)
	}
	if _, err := wireNamespace(w); err != nil {
		return bad("wire: %w", err)
	}
	for _, f := range wireFiles {
		base, rest := carrier(s.Root, f.target)
		root, err := os.OpenRoot(base)
		if err != nil {
			return bad("root file system: %w", err)
		}
		fi, err := root.Lstat(rest)
		root.Close()
		if err != nil || !fi.Mode().IsRegular() {
			return bad("root file system lacks the file %s", f.target).WithHint("build the template again")
		}
	}
	return nil
}

// wireNamespace names a wire's network namespace as /proc does. This process's
// own is not one.
func wireNamespace(w sandbox.Wire) (string, error) {
	f, err := os.OpenFile(w.NetNS, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return "", fmt.Errorf("%s is no network namespace", w.NetNS)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: w.NetNS, Err: err}
	}
	name := fmt.Sprintf("net:[%d]", st.Ino)
	if own, err := os.Readlink("/proc/self/ns/net"); err != nil || own == name {
		return "", errors.Join(errors.New("it is the host's own network"), err)
	}
	return name, nil
}

// writeWireFiles writes the files that are bound over the root's.
func writeWireFiles(dir string, s sandbox.Spec) error {
	hosts := "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	if !strings.ContainsAny(s.Hostname, " \t\r\n#") {
		hosts += s.Wire.Address.Addr().String() + " " + s.Hostname + "\n"
	}
	for name, content := range map[string]string{
		fileResolv: "nameserver " + s.Wire.Gateway.String() + "\n",
		fileHosts:  hosts,
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o644); err != nil { // whatever the umask: the guest's user reads it
			return err
		}
	}
	return nil
}

// networkArgs are the flags that decide what network a sandbox has. Without a
// wire it has none: no device but the loopback.
func networkArgs(s sandbox.Spec) []string {
	if s.Wire == nil {
		return []string{"--network=none"}
	}
	return []string{
		"--network=sandbox", // that of the bundle, whose links the sentry takes over
		// What comes over the wire has partial checksums and large segments, as over
		// a virtual machine's device. Without the first the guest would drop all of it.
		"--rx-checksum-offload=true",
		"--gso=true",
	}
}
