package netaddr

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"
)

func TestParseHost(t *testing.T) {
	long := strings.Repeat("a", 63)
	longest := strings.Join([]string{long, long, long, strings.Repeat("a", 61)}, ".")
	for in, want := range map[string]string{
		"example.com": "example.com", "EXAMPLE.com": "example.com", "example.com.": "example.com", "localhost": "localhost", "a": "a",
		"r1---sn-4g5e6nez.googlevideo.com": "r1---sn-4g5e6nez.googlevideo.com", "1.a": "1.a", "3com.com": "3com.com", "0x7f.1.a": "0x7f.1.a",
		"bücher.example": "xn--bcher-kva.example", "xn--bcher-kva.example": "xn--bcher-kva.example", "XN--BCHER-KVA.example": "xn--bcher-kva.example",
		"faß.de": "xn--fa-hia.de", "例え.jp": "xn--r8jz45g.jp", longest: longest, longest + ".": longest,
		"1.2.3.4": "1.2.3.4", "::1": "::1", "[::1]": "::1", "::ffff:1.2.3.4": "1.2.3.4", "[::FFFF:102:304]": "1.2.3.4", "2001:DB8:0:0::1": "2001:db8::1",
		"0.0.0.0": "0.0.0.0", "::1.2.3.4": "::102:304", "0xfoo.example": "0xfoo.example", "abc.0xzz": "abc.0xzz",
	} {
		h, err := ParseHost(in)
		if err != nil || h.String() != want {
			t.Errorf("%q is %q, %v; want %q", in, h, err, want)
		}
		if again, err := ParseHost(h.String()); err != nil || again != h {
			t.Errorf("%q again is %q, %v", h, again, err)
		}
	}
	for _, in := range []string{
		"", ".", "..", "a..b", ".a", "a..", longest + "a", longest + "a.", long + "a.b", strings.Repeat("a.", 200), strings.Repeat("ü", 2000),
		"a b", "a\x00b", "a\x00", "a\r\nb", "a\tb", "a_b", "_a.b", "a%00b", "a%2eb", "user@a", "a@b", "a/b", "a\\b", "a?b", "a#b", "a;b", "*", "*.a", "a:80", "a:", ":80",
		"-a", "a-", "a.-b", "a-.b", "a*b", "a,b", "a+b", "a'b", "a\"b", "(a)", "{a}", "a|b", "a~b", "a\x7fb", "a\xffb", "\xff",
		// Every way inet_aton, browsers or libc write an IPv4 address.
		"2130706433", "0x7f000001", "017700000001", "127.1", "127.0.1", "0x7f.1", "0177.0.0.1", "127.0.0.01", "1.2.3.4.", "1.2.3.4.5", "256.1.1.1", "1.2.3",
		"0x", "0x7F.0.0.0x1", "a.0x10", "a.1", "1.", "0", "1.2.3.4 ", " 1.2.3.4", "1.2.3.4/8", "+1.2.3.4", "1.2.3.-4", "1..2.3", "0.0.0.0x0",
		// IPv6 that is not, or only here.
		"[::1", "::1]", "[1.2.3.4]", "[a]", "[]", "[::1]:80", "fe80::1%eth0", "[fe80::1%25eth0]", "::1%", ":::", "1:2:3:4:5:6:7:8:9", "::g", "[[::1]]", "::ffff:1.2.3.256",
		// What only looks like letters, digits and dots.
		"ｅxample.com", "example。com", "example．com", "１２７.0.0.1", "①.com", "a\u00adb.com", "a\u200bb.com", "exam\u202eple.com", "\u212a.com", "℀.com",
		"bu\u0308cher.example", "BÜCHER.example", "xn--", "xn--a", "xn--example-.com", "xn--\x00", "xn--0.com", "xn--xn---.com", "xn--99999999999.com",
		"\u0301a.com", "a.١٢٣", "אa.com",
	} {
		h, err := ParseHost(in)
		var e *HostError
		if err == nil || h.IsValid() || !errors.As(err, &e) || e.Why == "" || len(e.Host) > 80 {
			t.Errorf("%q is %q, %v", in, h, err)
		}
	}
	if (Host{}).IsValid() || (Host{}).String() != "" {
		t.Error("the zero Host is one")
	}
}

func TestParseHostPort(t *testing.T) {
	for in, want := range map[string]string{
		"a.b": "a.b:0", "a.b:443": "a.b:443", "A.b.:1": "a.b:1", "1.2.3.4:65535": "1.2.3.4:65535", "::1": "[::1]:0", "[::1]": "[::1]:0", "[::1]:80": "[::1]:80",
	} {
		if h, p, err := ParseHostPort(in); err != nil || h.WithPort(p) != want {
			t.Errorf("%q is %s, %v", in, h.WithPort(p), err)
		}
	}
	for _, in := range []string{"", ":", ":1", "a:", "a:0", "a:65536", "a:080", "a:+1", "a:1:2", "[::1]80", "[::1]:", "::1]:80", "[a]:80", "a:http", "a: 1", "a:-1", "[:1"} {
		if h, p, err := ParseHostPort(in); err == nil {
			t.Errorf("%q is %s", in, h.WithPort(p))
		}
	}
}

func TestParseHostIsCheap(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		if _, err := ParseHost("api.example.com"); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParseHost: what is accepted is canonical, is a name that DNS can carry or
// an address, and reads back the same however it is spelled.
func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"example.com", "EXAMPLE.com.", "bücher.example", "xn--bcher-kva.example", "1.2.3.4", "[::1]", "::ffff:1.2.3.4", "0x7f.1", "a\x00b", "a..b",
		"fe80::1%eth0", "faß.de", "r1---sn-4g5e6nez.googlevideo.com", "xn--a", "例え.jp", "א.ב", "a\u200db"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHost(s)
		if err != nil {
			if h.IsValid() {
				t.Errorf("%q is refused and is %q", s, h)
			}
			return
		}
		c := h.String()
		if h.Name() != "" && h.Addr().IsValid() || !h.IsValid() {
			t.Fatalf("%q is both or neither", s)
		}
		for _, spelling := range []string{c, strings.ToUpper(c)} {
			if again, err := ParseHost(spelling); err != nil || again != h {
				t.Errorf("%q is %q, and as %q it is %q, %v", s, c, spelling, again, err)
			}
		}
		if h.Addr().IsValid() {
			if a, err := netip.ParseAddr(c); err != nil || a != h.Addr() || a.Is4In6() || a.Zone() != "" {
				t.Errorf("%q is the address %q", s, c)
			}
			return
		}
		if again, err := ParseHost(c + "."); err != nil || again != h {
			t.Errorf("%q with a final dot is %q, %v", c, again, err)
		}
		if len(c) > MaxName || !utf8.ValidString(c) || strings.Trim(c, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" {
			t.Errorf("%q is the name %q", s, c)
		}
		if _, err := netip.ParseAddr(c); err == nil {
			t.Errorf("%q is a name and an address", c)
		}
		b := dnsmessage.NewBuilder(nil, dnsmessage.Header{})
		if err := b.StartQuestions(); err != nil {
			t.Fatal(err)
		}
		if name, err := dnsmessage.NewName(c + "."); err != nil || b.Question(dnsmessage.Question{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}) != nil {
			t.Errorf("DNS cannot carry %q: %v", c, err)
		}
	})
}
