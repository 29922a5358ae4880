package probe

import (
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// answerTime is how long a network may take, in seconds. None of this uses the
// dialer and the resolver of package net, which would be resident in every agent.
const answerTime = 10

// link is a device and what is set on it.
type link struct {
	Name      string
	Up        bool
	Addresses []string
}

// links lists the links.
func links([]string) error {
	out := []*link{}
	at := map[uint32]*link{}
	err := routes(syscall.RTM_GETLINK, func(b []byte, attrs []syscall.NetlinkRouteAttr) { // struct ifinfomsg
		l := &link{Up: binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_IFNAME {
				l.Name = strings.TrimRight(string(a.Value), "\x00")
			}
		}
		out, at[binary.NativeEndian.Uint32(b[4:])] = append(out, l), l
	})
	if err != nil {
		return err
	}
	err = routes(syscall.RTM_GETADDR, func(b []byte, attrs []syscall.NetlinkRouteAttr) { // struct ifaddrmsg
		for _, a := range attrs {
			addr, ok := netip.AddrFromSlice(a.Value)
			if l := at[binary.NativeEndian.Uint32(b[4:])]; ok && l != nil && a.Attr.Type == unix.IFA_ADDRESS {
				l.Addresses = append(l.Addresses, netip.PrefixFrom(addr, int(b[1])).String())
			}
		}
	})
	if err != nil {
		return err
	}
	return printJSON(out)
}

// routes calls f with each answer to a question about links.
func routes(question int, f func([]byte, []syscall.NetlinkRouteAttr)) error {
	b, err := syscall.NetlinkRIB(question, unix.AF_UNSPEC)
	if err != nil {
		return err
	}
	all, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return err
	}
	for _, m := range all {
		if int(m.Header.Type) != question-2 {
			continue // the end; an answer's type is two less than its question's
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return err
		}
		f(m.Data, attrs)
	}
	return nil
}

// resolve asks the name server of /etc/resolv.conf.
func resolve(a []string) error {
	addr, err := lookup(a[0])
	if err == nil {
		_, err = os.Stdout.WriteString(addr.String() + "\n")
	}
	return err
}

func lookup(name string) (netip.Addr, error) {
	conf, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return netip.Addr{}, err
	}
	for line := range strings.Lines(string(conf)) {
		f := strings.Fields(line)
		if len(f) != 2 || f[0] != "nameserver" {
			continue
		}
		s, err := open(unix.SOCK_DGRAM, f[1]+":53")
		if err != nil {
			return netip.Addr{}, err
		}
		defer unix.Close(s)
		query := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
		for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
			query = append(append(query, byte(len(label))), label...)
		}
		query = append(query, 0, 0, 1, 0, 1) // A, Internet
		if _, err := unix.Write(s, query); err != nil {
			return netip.Addr{}, err
		}
		b := make([]byte, 512)
		n, err := unix.Read(s, b)
		if err != nil {
			return netip.Addr{}, err
		}
		// The answer's record, whose name is two bytes, follows the question; its
		// address ends it.
		switch at := len(query) + 12; {
		case n < len(query) || b[3]&15 != 0:
			return netip.Addr{}, errors.New("no such host: code " + strconv.Itoa(int(b[3]&15)))
		case n >= at+4 && b[7] == 1:
			return netip.AddrFrom4([4]byte(b[at:])), nil
		}
		return netip.Addr{}, errors.New("no such address")
	}
	return netip.Addr{}, errors.New("no name server")
}

// open connects to HOST:PORT.
func open(kind int, where string) (int, error) {
	i := strings.LastIndexByte(where, ':')
	if i < 0 {
		return -1, errors.New("no port in " + where)
	}
	port, err := strconv.ParseUint(where[i+1:], 10, 16)
	if err != nil {
		return -1, err
	}
	host := strings.Trim(where[:i], "[]")
	addr, err := netip.ParseAddr(host)
	if err != nil {
		if addr, err = lookup(host); err != nil {
			return -1, err
		}
	}
	family, to := unix.AF_INET, unix.Sockaddr(nil)
	if addr.Is4() {
		to = &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
	} else {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port), Addr: addr.As16()}
	}
	s, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err == nil {
			err = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, o, &unix.Timeval{Sec: answerTime})
		}
	}
	if err == nil {
		err = unix.Connect(s, to)
	}
	if err != nil {
		unix.Close(s)
		return -1, err
	}
	return s, nil
}

// connect sends a text and no more, and prints what comes back.
func connect(a []string) error {
	s, err := open(unix.SOCK_STREAM, a[0])
	if err != nil {
		return err
	}
	c := os.NewFile(uintptr(s), a[0])
	defer c.Close()
	if _, err := io.WriteString(c, a[1]); err != nil {
		return err
	}
	if err := unix.Shutdown(s, unix.SHUT_WR); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, struct{ io.Reader }{c})
	return err
}

// converse sends what it reads and prints what comes back, until either ends.
func converse(a []string) error {
	s, err := open(unix.SOCK_STREAM, a[0])
	if err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{}); err != nil {
		return err
	}
	c := os.NewFile(uintptr(s), a[0])
	defer c.Close()
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(struct{ io.Writer }{c}, os.Stdin)
		ended <- err
	}()
	go func() {
		_, err := io.Copy(os.Stdout, struct{ io.Reader }{c})
		ended <- cmp.Or(err, io.EOF)
	}()
	return <-ended
}
