package netaddr

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

func TestClassify(t *testing.T) {
	for want, addrs := range map[Class][]string{
		Public: {"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0",
			"172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0", "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
			"198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255", "168.63.129.15",
			"::ffff:1.1.1.1", "64:ff9b::101:101", "2606:4700::1111", "2001:4860:4860::8888", "2001:200::1", "2000::1", "3ffe::1", "3fff:1000::", "2a00::1"},
		Loopback:    {"127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1"},
		Private:     {"10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255", "::ffff:10.1.1.1"},
		UniqueLocal: {"fc00::1", "fd00::1", "fdff::1", "fd00:ec3::254", "fd20:ce::255"},
		Shared:      {"100.64.0.0", "100.127.255.255", "100.100.100.201"},
		Benchmark:   {"198.18.0.0", "198.19.255.255", "2001:2::1"},
		Documentation: {"192.0.2.0", "192.0.2.255", "198.51.100.1", "203.0.113.255", "2001:db8::1", "2001:db8:ffff::1",
			"3fff::1", "3fff:fff::1"},
		Metadata: {"169.254.169.254", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
			"fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fd00:a9fe:a9fe::1", "fd00:100::100:200", "fe80::a9fe:a9fe", "64:ff9b::6464:64c8"},
		LinkLocal:   {"169.254.0.0", "169.254.170.2", "169.254.255.255", "fe80::1", "febf::1"},
		Multicast:   {"224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1", "233.252.0.1"},
		Broadcast:   {"255.255.255.255", "::ffff:255.255.255.255"},
		Unspecified: {"0.0.0.0", "0.1.2.3", "0.255.255.255", "::", "::ffff:0.0.0.0"},
		Reserved: {"240.0.0.0", "255.255.255.254", "192.0.0.1", "192.0.0.170", "100::1", "4000::1", "5f00::1", "fec0::1", "e000::1", "1::1", "200::1", "::ffff:0:1.2.3.4",
			"2001:10::1", "2001:20::1", "2001:1::1", "2001:1ff::1", "0:0:0:1::"},
		Compatible: {"::2", "::1.2.3.4", "::127.0.0.1", "::ffff", "::169.254.169.254"},
		NAT64:      {"64:ff9b::a00:1", "64:ff9b::7f00:1", "64:ff9b::", "64:ff9b:1::1", "64:ff9b:1:ffff::a9fe:a9fe", "64:ff9b:2::1", "64:ff9b::1:0:0"},
		SixToFour:  {"2002::", "2002:a9fe:a9fe::1", "2002:7f00:1::", "2002:808:808::1", "192.88.99.1"},
		Teredo:     {"2001::1", "2001:0:5ef5:79fd::1"},
		ISATAP:     {"2606:4700::5efe:a9fe:a9fe", "2606:4700::200:5efe:101:101", "2a00::5efe:7f00:1"},
	} {
		for _, s := range addrs {
			a := netip.MustParseAddr(s)
			if got := Classify(a); got != want {
				t.Errorf("%s is %s, want %s", s, got, want)
			}
			if a.Is4() {
				if got := Classify(netip.AddrFrom16(a.As16())); got != want {
					t.Errorf("::ffff:%s is %s, want %s", s, got, want)
				}
			} else if got := Classify(a.WithZone("eth0")); got != want && !a.Is4In6() {
				t.Errorf("%s with a zone is %s, want %s", s, got, want)
			}
		}
	}
	if c := Classify(netip.Addr{}); c != Invalid || c.Openable() {
		t.Errorf("no address is %s", c)
	}
	for _, c := range []Class{Invalid, Metadata, LinkLocal, Multicast, Broadcast, Unspecified, Reserved, Compatible, NAT64, SixToFour, Teredo, ISATAP, Class(200)} {
		if c.Openable() {
			t.Errorf("%s can be opened", c)
		}
	}
	if n := testing.AllocsPerRun(100, func() { Classify(linkLocalMetadata) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzClassify: nothing that the standard library knows not to be global
// unicast is public, whatever it is wrapped in.
func FuzzClassify(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "::1", "2002:a00:1::", "64:ff9b::a00:1", "2606:4700::1", "fe80::1", "169.254.169.254"} {
		f.Add(netip.MustParseAddr(s).AsSlice())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		in := func(a netip.Addr) bool {
			return !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified()
		}
		if Classify(a) == Public {
			e := Effective(a)
			if in(a.Unmap()) || in(e) || Classify(e) != Public {
				t.Errorf("%s (%s) is public", a, e)
			}
		}
		if a.Is4() {
			c := Classify(a)
			if got := Classify(netip.AddrFrom16(a.As16())); got != c {
				t.Errorf("%s is %s, mapped %s", a, c, got)
			}
			v4 := a.As4()
			wrap := func(prefix string) netip.Addr {
				w := netip.MustParseAddr(prefix).As16()
				copy(w[12:], v4[:])
				return netip.AddrFrom16(w)
			}
			if got := Classify(wrap("64:ff9b::")); got == Public && c != Public || got.Openable() || c == Metadata && got != Metadata {
				t.Errorf("%s is %s, in NAT64 %s", a, c, got)
			}
			for _, p := range []string{"64:ff9b:1::", "2606:4700::5efe:0:0", "2001::", "2002::"} {
				if got := Classify(wrap(p)); got == Public || got.Openable() {
					t.Errorf("%s in %s is %s", a, p, got)
				}
			}
		}
	})
}

func TestMachine(t *testing.T) {
	own := func(s string) net.Addr {
		p := netip.MustParsePrefix(s)
		return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	}
	list, err := []net.Addr{own("127.0.0.1/8"), own("::1/128"), own("10.1.2.3/24"), own("1.2.3.4/24"), own("2606:4700::5/64"), own("fe80::1/64")}, error(nil)
	m := &Machine{read: func() ([]net.Addr, error) { return list, err }}
	check := func(s string, want Class) {
		t.Helper()
		if got := m.Classify(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s is %s, want %s", s, got, want)
		}
	}
	check("1.2.3.4", Own)
	check("::ffff:1.2.3.4", Own)
	check("64:ff9b::102:304", Own)
	check("10.1.2.3", Own)
	check("2606:4700::5", Own)
	check("10.1.2.4", Private)
	check("1.2.3.5", Public)
	check("2606:4700::6", Public)
	check("127.0.0.1", Loopback)
	check("fe80::1", LinkLocal)
	check("169.254.169.254", Metadata)

	list = append(list, own("1.2.3.5/24"))
	check("1.2.3.5", Public) // what was read is believed for a moment
	m.known.Load().at = m.known.Load().at.Add(-2 * fresh)
	check("1.2.3.5", Own)
	err = errors.New("no netlink today")
	m.known.Load().at = m.known.Load().at.Add(-2 * fresh)
	check("9.9.9.9", Own) // whatever is not known to be another's
	err = nil
	m.known.Load().at = m.known.Load().at.Add(-2 * fresh)
	check("9.9.9.9", Public)
}

// TestThisMachine asks the kernel.
func TestThisMachine(t *testing.T) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var m Machine
	for _, x := range list {
		if a, _ := netip.AddrFromSlice(x.(*net.IPNet).IP); m.Classify(a) == Public || !m.Own(a) {
			t.Errorf("%s is %s", a, m.Classify(a))
		}
	}
}
