//go:build linux

package control

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestServers(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "[127.0.0.1:53]",
		"search a\nnameserver x\n":   "[127.0.0.1:53]",
		"nameserver 1.1.1.1 # one\n": "[1.1.1.1:53]",
		"# nameserver 9.9.9.9\nnameserver 1.1.1.1\n nameserver\t2606:4700::1\nnameserver 1.0.0.1\nnameserver 8.8.8.8": "[1.1.1.1:53 [2606:4700::1]:53 1.0.0.1:53]",
		"nameserver fe80::1%eth0\n": "[[fe80::1%eth0]:53]",
	} {
		if got := fmt.Sprint(servers([]byte(text))); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestHosts(t *testing.T) {
	a := netip.MustParseAddr
	got := hosts([]byte("127.0.0.1 localhost\n::1 localhost # and\n10.0.0.1 DB.Example. db\nx y\n10.0.0.2\n10.0.0.3 0x7f.1 a_b\nfe80::1%lo zone\n" + strings.Repeat("x", 100_000)))
	want := map[string][]netip.Addr{"localhost": {a("127.0.0.1"), a("::1")}, "db.example": {a("10.0.0.1")}, "db": {a("10.0.0.1")}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

// TestLookup: the hosts file answers before anybody is asked, and with what cannot
// be changed.
func TestLookup(t *testing.T) {
	var r resolver
	r.set(names{Hosts: []byte("10.0.0.1 db\n")})
	for range 2 {
		got, err := r.lookup(context.Background(), "db")
		if err != nil || len(got) != 1 || got[0] != netip.MustParseAddr("10.0.0.1") {
			t.Fatal(got, err)
		}
		got[0] = netip.Addr{}
	}
}

// TestNameFiles: a file that is too long, or not there, says nothing.
func TestNameFiles(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, "long")
	must(t, os.WriteFile(long, make([]byte, maxNames+1), 0o600))
	k := &Keeper{o: Options{Resolv: filepath.Join(dir, "none"), Hosts: long}, log: quiet}
	if n := k.names(); n.Resolv != nil || n.Hosts != nil {
		t.Errorf("%d and %d bytes", len(n.Resolv), len(n.Hosts))
	}
}
