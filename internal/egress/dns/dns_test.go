package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

const text = `
allow:
  - api.example.com
  - {host: git.example.com, ports: 22, protocol: tcp}
  - {host: "*.wild.example.com", budget: {names: 2}}
  - 93.184.0.0
deny: [bad.wild.example.com]
`

func answerer(t testing.TB, text string) *Answerer {
	t.Helper()
	d, err := policy.Parse("p.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	table, err := policy.Compile(policy.Options{}, d)
	if err != nil {
		t.Fatal(err)
	}
	return &Answerer{Policy: policy.NewLive(table), Account: &policy.Accountant{}, Pool: NewPool(0)}
}

func ask(t testing.TB, name string, typ dnsmessage.Type, change func(*dnsmessage.Message)) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	if change != nil {
		change(&m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unpack(t testing.TB, b []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return m
}

func TestAnswer(t *testing.T) {
	a := answerer(t, text)
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "."
	for _, c := range []struct {
		name string
		typ  dnsmessage.Type
		want string // code, address
	}{
		{"api.example.com.", dnsmessage.TypeA, "RCodeSuccess 198.18.0.0"},
		{"API.eXample.COM.", dnsmessage.TypeA, "RCodeSuccess 198.18.0.0"},
		{"git.example.com.", dnsmessage.TypeA, "RCodeSuccess 198.18.0.1"},
		{"api.example.com.", dnsmessage.TypeAAAA, "RCodeSuccess"},
		{"api.example.com.", dnsmessage.TypeTXT, "RCodeSuccess"},
		{"api.example.com.", 65, "RCodeSuccess"}, // HTTPS
		{"api.example.com.", dnsmessage.TypeAXFR, "RCodeRefused"},
		{"api.example.com.", 251, "RCodeRefused"},
		{"api.example.com.", 255, "RCodeRefused"},
		{"api.example.com.", dnsmessage.TypeOPT, "RCodeRefused"},
		{"other.example.com.", dnsmessage.TypeA, "RCodeNameError"},
		{"other.example.com.", dnsmessage.TypeTXT, "RCodeNameError"},
		{"api.example.com.evil.org.", dnsmessage.TypeA, "RCodeNameError"},
		{"x.api.example.com.", dnsmessage.TypeA, "RCodeNameError"},
		{".", dnsmessage.TypeA, "RCodeNameError"},
		{"com.", dnsmessage.TypeNS, "RCodeNameError"},
		{"93.184.0.0.", dnsmessage.TypeA, "RCodeNameError"}, // an address is no name
		{"1.0.18.198.in-addr.arpa.", dnsmessage.TypePTR, "RCodeNameError"},
		{"_http._tcp.api.example.com.", dnsmessage.TypeSRV, "RCodeNameError"},
		{"api\x00.example.com.", dnsmessage.TypeA, "RCodeNameError"},
		{"api.example.com\r\n.", dnsmessage.TypeA, "RCodeNameError"},
		{long, dnsmessage.TypeA, "RCodeNameError"},
		{"one.wild.example.com.", dnsmessage.TypeA, "RCodeSuccess 198.18.0.2"},
		{"two.wild.example.com.", dnsmessage.TypeTXT, "RCodeSuccess"}, // a name all the same
		{"three.wild.example.com.", dnsmessage.TypeA, "RCodeRefused"},
		{"three.wild.example.com.", dnsmessage.TypeTXT, "RCodeRefused"},
		{"one.wild.example.com.", dnsmessage.TypeA, "RCodeSuccess 198.18.0.2"},
		{"bad.wild.example.com.", dnsmessage.TypeA, "RCodeNameError"},
	} {
		b, o := a.Answer(ask(t, c.name, c.typ, nil))
		m := unpack(t, b)
		got := m.RCode.GoString()[len("dnsmessage."):]
		for _, r := range m.Answers {
			got += " " + netip.AddrFrom4(r.Body.(*dnsmessage.AResource).A).String()
			if r.Header.Name.String() != c.name || r.Header.Class != dnsmessage.ClassINET {
				t.Errorf("%q: answers %+v", c.name, r.Header)
			}
		}
		if got != c.want || !m.Response || m.ID != 0x1234 || m.OpCode != 0 || !m.RecursionDesired || len(m.Authorities)+len(m.Additionals) != 0 ||
			len(m.Questions) != 1 || m.Questions[0].Name.String() != c.name || o.Code != m.RCode {
			t.Errorf("%q %s: %s, want %s; %+v", c.name, c.typ, got, c.want, m)
		}
		if o.Address.IsValid() {
			want, _ := netaddr.ParseHost(c.name)
			if h, ok := a.Pool.Host(o.Address); !ok || h != want {
				t.Errorf("%s is %s, %v", o.Address, h, ok)
			}
		}
	}
	_, o := a.Answer(ask(t, "four.wild.example.com.", dnsmessage.TypeA, nil))
	var used *policy.BudgetError
	if o.Decision.Allow || o.Decision.Reason != policy.ReasonBudget || !errors.As(o.Err, &used) || used.Budget != "names" {
		t.Errorf("%+v", o)
	}
	if _, ok := a.Pool.Host(netip.MustParseAddr("198.18.0.3")); ok {
		t.Error("a name that was refused has an address")
	}
}

func TestOddQueries(t *testing.T) {
	a := answerer(t, text)
	opt := func(ttl uint32, options ...dnsmessage.Option) func(*dnsmessage.Message) {
		return func(m *dnsmessage.Message) {
			m.Additionals = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeOPT, Class: 1232, TTL: ttl},
				Body: &dnsmessage.OPTResource{Options: options}}}
		}
	}
	query := func(change func(*dnsmessage.Message)) []byte {
		return ask(t, "api.example.com.", dnsmessage.TypeA, change)
	}
	resource := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("a."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{}}
	with := func(b []byte, i int, c byte) []byte { b[i] = c; return b }
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"plain":             {query(nil), "RCodeSuccess"},
		"EDNS":              {query(opt(0)), "RCodeSuccess"},
		"EDNS with DNSSEC":  {query(opt(0x8000)), "RCodeSuccess"},
		"EDNS with options": {query(opt(0, dnsmessage.Option{Code: 10, Data: []byte("12345678")}, dnsmessage.Option{Code: 12})), "RCodeSuccess"},
		"EDNS version":      {query(opt(1 << 16)), "bad version"},
		"EDNS code":         {query(opt(1 << 24)), "RCodeFormatError"},
		"EDNS flags":        {query(opt(1)), "RCodeFormatError"},
		"two EDNS":          {query(func(m *dnsmessage.Message) { opt(0)(m); m.Additionals = append(m.Additionals, m.Additionals[0]) }), "RCodeFormatError"},
		"EDNS cut":          {query(opt(0))[:len(query(opt(0)))-1], "RCodeFormatError"},
		"EDNS longer":       {with(query(opt(0)), len(query(opt(0)))-1, 9), "RCodeFormatError"},
		"option cut":        {with(query(opt(0, dnsmessage.Option{Code: 10, Data: []byte("1")})), len(query(opt(0)))+3, 9), "RCodeFormatError"},
		"additional":        {query(func(m *dnsmessage.Message) { m.Additionals = []dnsmessage.Resource{resource} }), "RCodeFormatError"},
		"answer":            {query(func(m *dnsmessage.Message) { m.Answers = []dnsmessage.Resource{resource} }), "RCodeFormatError"},
		"authority":         {query(func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{resource} }), "RCodeFormatError"},
		"no question":       {query(func(m *dnsmessage.Message) { m.Questions = nil }), "RCodeFormatError"},
		"two questions":     {query(func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }), "RCodeFormatError"},
		"CHAOS":             {query(func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }), "RCodeRefused"},
		"any class":         {query(func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassANY }), "RCodeRefused"},
		"opcode":            {query(func(m *dnsmessage.Message) { m.OpCode = 5 }), "RCodeNotImplemented"},
		"truncated":         {query(func(m *dnsmessage.Message) { m.Truncated = true }), "RCodeFormatError"},
		"code":              {query(func(m *dnsmessage.Message) { m.RCode = 3 }), "RCodeFormatError"},
		"reserved flag":     {with(query(nil), 3, 0x40), "RCodeFormatError"},
		"trailing":          {append(query(nil), 0), "RCodeFormatError"},
		"too long":          {append(query(nil), make([]byte, 512)...), "RCodeFormatError"},
		"question cut":      {query(nil)[:20], "RCodeFormatError"},
		"pointer":           {append(query(nil)[:12], 0xc0, 0, 0, 1, 0, 1), "RCodeFormatError"},
		"pointer to itself": {append(query(nil)[:12], 0xc0, 12, 0, 1, 0, 1), "RCodeFormatError"},
		"reply":             {query(func(m *dnsmessage.Message) { m.Response = true }), ""},
		"header cut":        {query(nil)[:11], ""},
		"nothing":           {nil, ""},
	} {
		b, o := a.Answer(c.b)
		if c.want == "" {
			if b != nil || o.Err == nil {
				t.Errorf("%s is answered", name)
			}
			continue
		}
		m := unpack(t, b)
		got := m.RCode.GoString()[len("dnsmessage."):]
		if o.Code == badVersion && m.RCode == 0 && m.Additionals[0].Header.ExtendedRCode(0) == 16 {
			got = "bad version"
		}
		if got != c.want || (o.Err == nil) != (c.want == "RCodeSuccess") || (len(m.Answers) == 1) != (c.want == "RCodeSuccess") || !m.Response || m.ID != 0x1234 {
			t.Errorf("%s: %s, %v, want %s", name, got, o.Err, c.want)
		}
	}
}

func TestObserved(t *testing.T) {
	a := answerer(t, "mode: observe\nallow: []\ndeny: [bad.example.com]")
	if _, o := a.Answer(ask(t, "any.example.com.", dnsmessage.TypeA, nil)); !o.Address.IsValid() || !o.Decision.Observed() {
		t.Errorf("%+v", o)
	}
	if _, o := a.Answer(ask(t, "bad.example.com.", dnsmessage.TypeA, nil)); o.Address.IsValid() || o.Code != dnsmessage.RCodeNameError {
		t.Errorf("%+v", o)
	}
}

// TestPool: a full pool gives nothing more and takes nothing back, and pools of
// different epochs share nothing.
func TestPool(t *testing.T) {
	a := answerer(t, "mode: observe\nallow: []")
	seen := map[netip.Addr]bool{}
	for i := range PoolSize {
		_, o := a.Answer(ask(t, fmt.Sprintf("h%d.example.com.", i), dnsmessage.TypeA, nil))
		if seen[o.Address] || !Range.Contains(o.Address) {
			t.Fatalf("h%d has %s, %v", i, o.Address, o.Err)
		}
		seen[o.Address] = true
	}
	if b, o := a.Answer(ask(t, "more.example.com.", dnsmessage.TypeA, nil)); !errors.Is(o.Err, ErrFull) || unpack(t, b).RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("one more: %+v", o)
	}
	if _, o := a.Answer(ask(t, "h0.example.com.", dnsmessage.TypeA, nil)); o.Address != Range.Addr() {
		t.Errorf("the first: %+v", o)
	}
	h, _ := netaddr.ParseHost("a.example.com")
	for epoch := range Epochs {
		p := NewPool(epoch)
		addr, err := p.Addr(h)
		if err != nil || !Range.Contains(addr) || seen[addr] != (epoch == 0) {
			t.Errorf("epoch %d: %s, %v", epoch, addr, err)
		}
		for _, s := range []string{"198.17.255.255", "198.20.0.0", "0.0.0.0", "255.255.255.255", "::1", "1.1.1.1"} {
			if h, ok := p.Host(netip.MustParseAddr(s)); ok {
				t.Errorf("%s is %s", s, h)
			}
		}
	}
	if a, _ := NewPool(-1).Addr(h); a != netip.MustParseAddr("198.19.240.0") {
		t.Errorf("epoch -1 is %s", a)
	}
}

// FuzzAnswer: whatever arrives, a reply is a well-formed one to that query, not
// much larger, and an address is answered for names that are allowed only.
func FuzzAnswer(f *testing.F) {
	f.Add(ask(f, "api.example.com.", dnsmessage.TypeA, nil))
	f.Add(ask(f, "x.wild.example.com.", dnsmessage.TypeAAAA, nil))
	f.Add(ask(f, "other.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.OpCode = 2 }))
	f.Add(ask(f, "api.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) {
		m.Additionals = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeOPT, Class: 1232},
			Body: &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 10, Data: []byte("12345678")}}}}}
	}))
	a := answerer(f, text)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := string(b)
		out, o := a.Answer(b)
		if string(b) != before {
			t.Error("the query was changed")
		}
		if out == nil {
			if o.Address.IsValid() {
				t.Errorf("%x has an address and no reply", b)
			}
			return
		}
		m := unpack(t, out)
		if len(out) > MaxQuery || len(out) > len(b)+27 || !m.Response || len(b) < 12 || out[0] != b[0] || out[1] != b[1] || b[2]&0x80 != 0 {
			t.Errorf("%x: reply %x", b, out)
		}
		if (len(m.Answers) == 1) != o.Address.IsValid() || len(m.Answers) > 1 {
			t.Errorf("%x: answers %v", b, m.Answers)
		}
		if o.Address.IsValid() {
			h, ok := a.Pool.Host(o.Address)
			if !ok || h != o.Host || !a.Policy.Table().Could(policy.Flow{Host: h}).Allow || m.RCode != 0 || o.Type != dnsmessage.TypeA {
				t.Errorf("%x: %s for %s", b, o.Address, h)
			}
		}
	})
}
