package microvm

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// wireFiles are what a machine's first process binds over those of the root file
// system. Without a wire the template's serve: nothing can be resolved.
var wireFiles = []string{"/etc/resolv.conf", "/etc/hosts"}

// wireless says why no machine can be put on a wire.
func (b *Backend) wireless(p probed) error {
	refuse := func(hint, format string, args ...any) error {
		return sandbox.Errorf("", sandbox.KindUnsupported, format, args...).WithHint("%s", hint)
	}
	switch {
	case os.Geteuid() != 0:
		return refuse("run the server as root, or leave the network rules out", "machines have networks for root only")
	case b.cfg.Wires == nil:
		return refuse("leave the network rules out", "this server attaches none")
	}
	err := b.cfg.Wires.Probe()
	var e *sandbox.Error
	if errors.As(err, &e) {
		return refuse(e.Hint, "%s", e.Message())
	}
	if err != nil {
		return err
	}
	if err := p.modulesFor("", true); err != nil {
		return refuse("install the kernel's modules, or name another kernel", "%w", bare(err))
	}
	return nil
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
	if _, err := wireNamespace(w.NetNS); err != nil {
		return bad("wire: %w", err)
	}
	if b := s.Root.Boot; b != nil && b.Image.Path != "" {
		return nil // its first process makes what is missing
	}
	for _, f := range wireFiles {
		base, rest := carrier(s.Root, f)
		root, err := os.OpenRoot(base)
		if err != nil {
			return bad("root file system: %w", bare(err))
		}
		fi, err := root.Lstat(rest)
		root.Close()
		if err != nil || !fi.Mode().IsRegular() {
			return bad("root file system lacks the file %s", f).WithHint("build the template again")
		}
	}
	return nil
}

// wireNamespace names the network namespace at path as /proc does. This process's
// own is not one.
func wireNamespace(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return "", fmt.Errorf("%s is no network namespace", path)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	name := fmt.Sprintf("net:[%d]", st.Ino)
	if own, err := os.Readlink("/proc/self/ns/net"); err != nil || own == name {
		return "", errors.Join(errors.New("it is the host's own network"), err)
	}
	return name, nil
}

// networkOf is what a machine is told of its wire.
func (b *Backend) networkOf(s sandbox.Spec) *machine.Network {
	if s.Wire == nil {
		return nil
	}
	_, _, gateway := b.cfg.Wires.Device()
	return &machine.Network{Link: s.Wire.Link, Address: s.Wire.Address, Gateway: s.Wire.Gateway, GatewayMAC: gateway.String()}
}

// nic is a machine's network device; nil for a machine without one.
type nic struct {
	mac   net.HardwareAddr
	tap   *os.File // for a monitor that is handed a descriptor
	link  string   // for one that attaches by name,
	netns string   // in this namespace
}

// plug makes the monitor's end of the wire. Nothing passes it before connect.
func (i *Instance) plug(s sandbox.Spec, m *vm) error {
	if s.Wire == nil {
		return nil
	}
	owner := 0
	if i.intent.VMM == vmmFirecracker {
		owner = m.uid
	}
	wires := i.b.cfg.Wires
	link, mac, _ := wires.Device()
	tap, err := wires.Plug(*s.Wire, string(i.id), owner)
	if err != nil {
		return err
	}
	m.nic = &nic{mac: mac, tap: tap, link: link, netns: s.Wire.NetNS}
	failpoint.Hit("microvm.create/after-plug")
	return nil
}

// connect lets frames pass.
func (i *Instance) connect(s sandbox.Spec) error {
	if s.Wire == nil {
		return nil
	}
	return i.b.cfg.Wires.Connect(*s.Wire)
}

// unplug removes the monitor's end of the wire, which is all of it that is the
// instance's, and looks for it again.
func (i *Instance) unplug() ([]sandbox.Object, error) {
	if i.intent.NetNS == "" {
		return nil, nil
	}
	if i.b.cfg.Wires == nil {
		err := errors.New("this server attaches no networks, an earlier one did")
		return []sandbox.Object{{Kind: "link", Name: i.intent.NetNS, Check: "not looked for"}}, err
	}
	return i.b.cfg.Wires.Unplug(i.intent.NetNS)
}

// device are the arguments of a QEMU of that version for it. It may leave checksums
// and segments of TCP over IPv4 to the other side, and that side to it, as the wire's
// own link does, and nothing else: what is not there cannot be wrong. It has no boot
// program and does not announce itself.
func (n *nic) device(version [2]int) []string {
	if n == nil {
		return nil
	}
	features := "csum=on,guest_csum=on,host_tso4=on,guest_tso4=on,gso=off,host_tso6=off,guest_tso6=off,host_ecn=off,guest_ecn=off," +
		"host_ufo=off,guest_ufo=off,guest_announce=off,mq=off,ctrl_vq=off,ctrl_rx=off,ctrl_vlan=off,ctrl_rx_extra=off,ctrl_mac_addr=off,ctrl_guest_offloads=off"
	if version[0] > 8 || version[0] == 8 && version[1] >= 1 { // which has more
		features += ",host_uso=off,guest_uso4=off,guest_uso6=off"
	}
	return []string{
		"-netdev", fmt.Sprintf("tap,id=wire,fd=%d,vhost=off", tapDescriptor),
		"-device", "virtio-net-pci,netdev=wire,mac=" + n.mac.String() + ",romfile=," + features,
	}
}
