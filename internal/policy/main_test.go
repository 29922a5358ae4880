package policy

import (
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t testing.TB, text string) *Document {
	t.Helper()
	d, err := Parse("p.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func compile(t testing.TB, o Options, texts ...string) *Table {
	t.Helper()
	var docs []*Document
	for _, text := range texts {
		docs = append(docs, parse(t, text))
	}
	table, err := Compile(o, docs...)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func host(t testing.TB, s string) netaddr.Host {
	t.Helper()
	h, err := netaddr.ParseHost(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// flow reads "HOST:PORT PROTOCOL ADDR [CLAIM]"; without a claim that of TLS and
// HTTP is the host.
func flow(t testing.TB, s string) Flow {
	t.Helper()
	part := strings.Fields(s)
	h, port, err := netaddr.ParseHostPort(part[0])
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParseProtocol(part[1])
	if err != nil {
		t.Fatal(err)
	}
	f := Flow{Host: h, Port: port, Protocol: p, Addr: netip.MustParseAddr(part[2])}
	switch {
	case len(part) > 3 && part[3] != "-":
		f.Claimed = host(t, part[3])
	case len(part) == 3 && p != ProtocolTCP && h.Name() != "":
		f.Claimed = h
	}
	return f
}

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}
