package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What tells programs where they are lies outside of their root, and is bound over
// its files, read-only.
const (
	atWire     = "/wire"
	fileResolv = "resolv.conf"
	fileHosts  = "hosts"
)

// up makes the network of a machine: its device, and the files that speak of it
// over those of the root. It returns the one with the host's name, which a copy of
// the machine has another of.
func (n *Network) up(hostname string) (hosts *os.File, err error) {
	if err := await("the device "+n.Link, func() bool { _, err := os.Stat("/sys/class/net/" + n.Link); return err == nil }); err != nil {
		return nil, err
	}
	for _, of := range []string{"default", n.Link} { // a kernel without it has none to switch off
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+of+"/disable_ipv6", []byte("1"), 0)
	}
	if err := n.configure(); err != nil {
		return nil, fmt.Errorf("the network: %w", err)
	}
	if err := os.Mkdir(atWire, 0o755); err != nil {
		return nil, err
	}
	for name, content := range map[string]string{fileResolv: "nameserver " + n.Gateway.String() + "\n", fileHosts: n.hosts(hostname)} {
		path, target := filepath.Join(atWire, name), filepath.Join(atNew, "/etc", name)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if _, err := f.WriteString(content); err != nil {
			return nil, err
		}
		if name == fileHosts {
			hosts = f
		} else {
			f.Close()
		}
		if err := unix.Mount(path, target, "", unix.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("mount %s: %w", target, err)
		}
		if err := unix.Mount("none", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return nil, fmt.Errorf("mount %s: %w", target, err)
		}
	}
	return hosts, nil
}

// hosts is the file of that name.
func (n *Network) hosts(hostname string) string {
	s := "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	if !strings.ContainsAny(hostname, " \t\r\n#") {
		s += n.Address.Addr().String() + " " + hostname + "\n"
	}
	return s
}

// configure gives the device its address and the way out, whose hardware address is
// known: nobody has to be asked for it.
func (n *Network) configure() error {
	i, err := net.InterfaceByName(n.Link)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(n.GatewayMAC)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("netlink", err)
	}
	defer unix.Close(s)
	index, address, gateway := uint32(i.Index), n.Address.Addr().AsSlice(), n.Gateway.AsSlice()
	const made = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	return errors.Join(
		ask(s, unix.RTM_NEWADDR, made, []byte{unix.AF_INET, byte(n.Address.Bits()), 0, unix.RT_SCOPE_UNIVERSE}, u32(index),
			attribute(unix.IFA_LOCAL, address), attribute(unix.IFA_ADDRESS, address)),
		ask(s, unix.RTM_NEWLINK, 0, make([]byte, 4), u32(index), u32(unix.IFF_UP), u32(unix.IFF_UP), attribute(unix.IFLA_MTU, u32(mtu))),
		ask(s, unix.RTM_NEWNEIGH, made, []byte{unix.AF_INET, 0, 0, 0}, u32(index), u16(unix.NUD_PERMANENT), []byte{0, unix.RTN_UNICAST},
			attribute(unix.NDA_DST, gateway), attribute(unix.NDA_LLADDR, mac)),
		ask(s, unix.RTM_NEWROUTE, made, []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}, u32(0),
			attribute(unix.RTA_GATEWAY, gateway), attribute(unix.RTA_OIF, u32(index))),
	)
}

// mtu is that of every wire.
const mtu = 1500

// ask sends a request and returns the kernel's verdict.
func ask(s int, kind, flags uint16, parts ...[]byte) error {
	if err := request(s, kind, flags|unix.NLM_F_ACK, parts...); err != nil {
		return err
	}
	return answers(s, func(uint16, []byte) {})
}

func request(s int, kind, flags uint16, parts ...[]byte) error {
	m := make([]byte, unix.SizeofNlMsghdr)
	for _, p := range parts {
		m = append(m, p...)
	}
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|flags)
	return os.NewSyscallError("netlink", unix.Sendto(s, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

// answers calls f with what the kernel has to say, until it is done.
func answers(s int, f func(kind uint16, body []byte)) error {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(s, buf, 0)
		if err != nil {
			return os.NewSyscallError("netlink", err)
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size, kind := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return errors.New("netlink: a message that is none")
			}
			body := b[unix.SizeofNlMsghdr:size]
			switch {
			case kind == unix.NLMSG_DONE:
				return nil
			case kind == unix.NLMSG_ERROR && len(body) >= 4:
				if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
					return os.NewSyscallError("netlink", unix.Errno(-code))
				}
				return nil
			}
			f(kind, body)
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

func attribute(kind uint16, value []byte) []byte {
	b := append(append(u16(uint16(4+len(value))), u16(kind)...), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func u16(n uint16) []byte { return binary.NativeEndian.AppendUint16(nil, n) }
func u32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// Of the kernel's socket diagnosis (linux/sock_diag.h, linux/inet_diag.h).
const (
	diagByFamily = 20
	diagDestroy  = 21
	diagListen   = 1 << 10 // states, by their bits: TCP_LISTEN
	diagSource   = 8       // in inet_diag_msg: 4 bytes of state, the ports, then the addresses
	diagID       = 48      // of inet_diag_sockid, behind the first 4 bytes
)

// reset ends the connections that went over the device of the machine this one is a
// copy of. Programs are told; listening sockets, and what is within the machine,
// stay.
func (n *Network) reset() error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return os.NewSyscallError("netlink", err)
	}
	defer unix.Close(s)
	var errs []error
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		var ids [][]byte
		query := []byte{family, unix.IPPROTO_TCP, 0, 0}
		err := request(s, diagByFamily, unix.NLM_F_DUMP, query, u32(^uint32(diagListen)), make([]byte, diagID))
		if err == nil {
			err = answers(s, func(_ uint16, m []byte) {
				if len(m) < 4+diagID {
					return
				}
				if from, ok := netip.AddrFromSlice(m[diagSource : diagSource+map[byte]int{unix.AF_INET: 4, unix.AF_INET6: 16}[family]]); ok && from.Unmap() == n.Address.Addr() {
					ids = append(ids, append([]byte(nil), m[4:4+diagID]...))
				}
			})
		}
		if err != nil && !(family == unix.AF_INET6 && errors.Is(err, unix.ENOENT)) { // a kernel without it
			errs = append(errs, err)
		}
		for _, id := range ids {
			if err := ask(s, diagDestroy, 0, query, u32(^uint32(0)), id); err != nil && !errors.Is(err, unix.ENOENT) { // it has ended meanwhile
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
