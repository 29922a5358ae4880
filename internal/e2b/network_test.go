package e2b

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/service"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// compiled is the table of what two lists make; nil for none.
func compiled(t interface{ Fatalf(string, ...any) }, n *networkRequest) (*policy.Table, error) {
	rules, err := n.rules()
	if err != nil || rules == nil {
		return nil, err
	}
	d, err := policy.Parse("document", []byte(rules.GetDocument()))
	if err != nil {
		t.Fatalf("%s: %v", rules.GetDocument(), err)
	}
	table, err := policy.Compile(policy.Options{}, d)
	if err != nil {
		t.Fatalf("%s: %v", rules.GetDocument(), err)
	}
	return table, nil
}

func TestNetworkRules(t *testing.T) {
	type want struct {
		to    string // HOST:PORT of a flow, or an address
		addr  string
		proto policy.Protocol
		allow bool
	}
	for name, c := range map[string]struct {
		req   networkRequest
		kind  sandbox.Kind
		none  bool
		flows []want
	}{
		"nothing":        {none: true},
		"deny alone":     {req: networkRequest{DenyOut: []string{"0.0.0.0/0", "10.0.0.0/8"}}, none: true},
		"hosts":          {req: networkRequest{AllowOut: []string{"api.example.com", "*.cdn.example.com"}, DenyOut: []string{"0.0.0.0/0"}}, flows: []want{{"api.example.com:443", "93.184.216.34", policy.ProtocolTLS, true}, {"api.example.com:80", "93.184.216.34", policy.ProtocolHTTP, true}, {"api.example.com:80", "93.184.216.34", policy.ProtocolTLS, false}, {"api.example.com:8443", "93.184.216.34", policy.ProtocolTLS, false}, {"x.cdn.example.com:443", "93.184.216.34", policy.ProtocolTLS, true}, {"other.example.com:443", "93.184.216.34", policy.ProtocolTLS, false}, {"api.example.com:443", "169.254.169.254", policy.ProtocolTLS, false}, {"api.example.com:443", "10.0.0.1", policy.ProtocolTLS, false}}},
		"networks":       {req: networkRequest{AllowOut: []string{"1.1.1.1", "8.8.8.0/24"}, DenyOut: []string{"0.0.0.0/0"}}, flows: []want{{"1.1.1.1:53", "1.1.1.1", policy.ProtocolTCP, true}, {"8.8.8.8:443", "8.8.8.8", policy.ProtocolTLS, true}, {"8.8.9.8:443", "8.8.9.8", policy.ProtocolTLS, false}}},
		"allow wins":     {req: networkRequest{AllowOut: []string{"8.8.8.8", "a.example.com"}, DenyOut: []string{"8.8.8.0/24"}}, flows: []want{{"8.8.8.8:443", "8.8.8.8", policy.ProtocolTLS, true}, {"8.8.8.9:443", "8.8.8.9", policy.ProtocolTLS, false}, {"a.example.com:443", "8.8.8.9", policy.ProtocolTLS, false}, {"a.example.com:443", "8.8.8.8", policy.ProtocolTLS, true}}},
		"deny elsewhere": {req: networkRequest{AllowOut: []string{"a.example.com"}, DenyOut: []string{"93.184.0.0/16"}}, flows: []want{{"a.example.com:443", "93.184.216.34", policy.ProtocolTLS, false}, {"a.example.com:443", "93.185.216.34", policy.ProtocolTLS, true}}},

		"everything":        {req: networkRequest{AllowOut: []string{"0.0.0.0/0"}}, kind: sandbox.KindUnsupported},
		"any name":          {req: networkRequest{AllowOut: []string{"*"}}, kind: sandbox.KindUnsupported},
		"carved out":        {req: networkRequest{AllowOut: []string{"8.8.0.0/16"}, DenyOut: []string{"8.8.8.0/24"}}, kind: sandbox.KindUnsupported},
		"both":              {req: networkRequest{AllowOut: []string{"8.8.8.8"}, DenyOut: []string{"8.8.8.8"}}, kind: sandbox.KindUnsupported},
		"a port":            {req: networkRequest{AllowOut: []string{"a.example.com:443"}}, kind: sandbox.KindInvalid},
		"a port of another": {req: networkRequest{AllowOut: []string{"1.1.1.1:53"}}, kind: sandbox.KindInvalid},
		"no host":           {req: networkRequest{AllowOut: []string{"https://a.example.com"}}, kind: sandbox.KindInvalid},
		"a public suffix":   {req: networkRequest{AllowOut: []string{"*.com"}}, kind: sandbox.KindInvalid},
		"metadata":          {req: networkRequest{AllowOut: []string{"169.254.169.254"}}, kind: sandbox.KindInvalid},
		"a denied name":     {req: networkRequest{DenyOut: []string{"a.example.com"}}, kind: sandbox.KindInvalid},
		"too many":          {req: networkRequest{AllowOut: make([]string, maxEntries+1)}, kind: sandbox.KindInvalid},
	} {
		table, err := compiled(t, &c.req)
		if sandbox.KindOf(err) != c.kind || (err == nil && (table == nil) != c.none) {
			t.Errorf("%s: %v, %v", name, table, err)
			continue
		}
		for _, w := range c.flows {
			h, port, err := netaddr.ParseHostPort(w.to)
			if err != nil {
				t.Fatal(err)
			}
			f := policy.Flow{Host: h, Port: port, Addr: netip.MustParseAddr(w.addr), Protocol: w.proto}
			if w.proto != policy.ProtocolTCP {
				f.Claimed = h
			}
			if d := table.Decide(t.Context(), f); d.Allow != w.allow {
				t.Errorf("%s: %s at %s as %s: %v", name, w.to, w.addr, w.proto, d.Reason)
			}
		}
	}
}

// TestNeverWeaker: whatever two lists say, what passes here is what E2B's rules
// let pass: all that allowOut names, and what denyOut does not.
func TestNeverWeaker(t *testing.T) {
	hosts := []string{"a.example.com", "b.example.com", "x.b.example.com"}
	rapid.Check(t, func(t *rapid.T) {
		addr := rapid.Custom(func(t *rapid.T) netip.Addr {
			return netip.AddrFrom4([4]byte{8, 8, rapid.Byte().Draw(t, "third") & 3, rapid.Byte().Draw(t, "fourth") & 7})
		})
		network := rapid.Custom(func(t *rapid.T) string {
			return netip.PrefixFrom(addr.Draw(t, "addr"), rapid.IntRange(20, 32).Draw(t, "bits")).Masked().String()
		})
		req := networkRequest{
			AllowOut: rapid.SliceOfN(rapid.OneOf(network, rapid.SampledFrom([]string{"a.example.com", "*.b.example.com"})), 0, 4).Draw(t, "allow"),
			DenyOut:  rapid.SliceOfN(network, 0, 4).Draw(t, "deny"),
		}
		table, err := compiled(t, &req)
		if err != nil || table == nil {
			return
		}
		inside := func(list []string, a netip.Addr) bool {
			return slices.ContainsFunc(list, func(s string) bool { p, err := netip.ParsePrefix(s); return err == nil && p.Contains(a) })
		}
		for range 20 {
			f := policy.Flow{Addr: addr.Draw(t, "to"), Port: 443, Protocol: policy.ProtocolTLS}
			name := rapid.SampledFrom(append(hosts, "")).Draw(t, "name")
			var err error
			if f.Host, err = netaddr.ParseHost(name); name == "" {
				f.Host, err = netaddr.ParseHost(f.Addr.String())
			}
			if err != nil {
				t.Fatal(err)
			}
			f.Claimed = f.Host
			named := slices.Contains(req.AllowOut, name) || name == "x.b.example.com" && slices.Contains(req.AllowOut, "*.b.example.com")
			theirs := named || inside(req.AllowOut, f.Addr) || !inside(req.DenyOut, f.Addr)
			ours := table.Decide(context.Background(), f).Allow
			if ours && !theirs {
				t.Fatalf("%+v lets %s at %s pass", req, f.Host, f.Addr)
			}
			if name == "" && inside(req.AllowOut, f.Addr) && !ours {
				t.Fatalf("%+v does not let %s pass, which it names", req, f.Addr)
			}
		}
	})
}

// wire is an API that notes what the network routes make of requests.
type wire struct {
	API
	made    *v1.CreateSandboxRequest
	updated *v1.UpdateNetworkRequest
	sb      *v1.Sandbox
}

func (w *wire) CreateSandbox(_ context.Context, r *v1.CreateSandboxRequest) (*v1.Sandbox, error) {
	w.made = r
	return w.sb, nil
}
func (w *wire) GetSandbox(context.Context, *v1.GetSandboxRequest) (*v1.Sandbox, error) {
	return w.sb, nil
}
func (w *wire) UpdateNetwork(_ context.Context, r *v1.UpdateNetworkRequest) (*v1.UpdateNetworkResponse, error) {
	w.updated = r
	return &v1.UpdateNetworkResponse{}, nil
}
func (w *wire) SandboxTokens(context.Context, string) (service.SandboxTokens, error) {
	return service.SandboxTokens{Inside: "i", Traffic: "t"}, nil
}

type openDoor struct{}

func (openDoor) Known(context.Context, auth.Principal) error { return nil }
func (openDoor) Unknown(_ context.Context, err error) error  { return err }
func (openDoor) Draining() <-chan struct{}                   { return nil }
func (openDoor) Bearer(context.Context, string) (auth.Principal, error) {
	return auth.Principal{Tenant: "default", ID: "k", Role: auth.Owner}, nil
}

// TestNetworkRoutes: create, update and what is told of it.
func TestNetworkRoutes(t *testing.T) {
	api := &wire{sb: &v1.Sandbox{Id: string(sandbox.NewID()), State: "running", Template: "host"}}
	s, err := New(Config{API: api, Auth: openDoor{}, Door: openDoor{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, path, body string, want int) string {
		t.Helper()
		r := httptest.NewRequest(method, "http://127.0.0.1"+path, strings.NewReader(body))
		r.Header.Set("X-Api-Key", "e2b_x")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s %s %s: %d %s", method, path, body, w.Code, w.Body)
		}
		return w.Body.String()
	}
	const lists = `"allowOut":["a.example.com"],"denyOut":["0.0.0.0/0"]`
	for body, rules := range map[string]bool{
		`{}`: false, `{"allow_internet_access":true}`: false, `{"network":{}}`: false, `{"network":{"denyOut":["0.0.0.0/0"]}}`: false,
		`{"network":{` + lists + `}}`: true, `{"allow_internet_access":false,"network":{` + lists + `}}`: true,
	} {
		api.made = nil
		call("POST", "/v2/sandboxes", body, http.StatusCreated)
		if api.made == nil || (api.made.Network != nil) != rules || rules && !strings.Contains(api.made.Network.Document, "a.example.com") {
			t.Errorf("%s: %+v", body, api.made)
		}
	}
	for body, code := range map[string]int{`{"network":{"allowOut":["0.0.0.0/0"]}}`: 501, `{"network":{"allowOut":["a b"]}}`: 400, `{"network":{"allowOut":["a.example.com"],"rules":{"a":[1]}}}`: 400, `{"network":{"rules":{"1.2.3.4":[]}}}`: 501, `{"network":{"rules":{"*.com":[]}}}`: 400, `{"network":{"rules":{"a.example.com":[{"new":1}]}}}`: 400,
		`{"network":{"rules":{"a.example.com":[],"A.example.com":[]}}}`: 400,
		`{"network":{"egressProxy":{"address":"x"}}}`:                   501, `{"network":{"new":1}}`: 400} {
		api.made = nil
		if out := call("POST", "/sandboxes", body, code); api.made != nil || !strings.Contains(out, `"message"`) {
			t.Errorf("%s: %+v, %s", body, api.made, out)
		}
	}
	path := "/sandboxes/" + api.sb.Id + "/network"
	for body, rules := range map[string]bool{`{}`: false, `{"allow_internet_access":false}`: false, `{` + lists + `,"allow_internet_access":true}`: true} {
		api.updated = nil
		call("PUT", path, body, http.StatusNoContent)
		if api.updated == nil || api.updated.Id != api.sb.Id || (api.updated.Document != "") != rules {
			t.Errorf("%s: %+v", body, api.updated)
		}
	}
	for body, code := range map[string]int{`{"allowOut":["*"]}`: 501, `{"denyOut":["a.example.com"]}`: 400, `{"rules":{"a":[1]}}`: 400, `{"x":1}`: 400} {
		api.updated = nil
		if call("PUT", path, body, code); api.updated != nil {
			t.Errorf("%s: %+v", body, api.updated)
		}
	}
	// What is told is what holds.
	for document, want := range map[string]string{
		"": `{"allowOut":[],"denyOut":["0.0.0.0/0"],"allowPublicTraffic":false}`,
		"allow: [a.example.com, '*.b.example.com', {cidr: 8.8.8.8/32, ports: 53, protocol: tcp}]\ndeny: [{cidr: 1.1.1.0/24}]": `{"allowOut":["a.example.com","*.b.example.com","8.8.8.8/32"],"denyOut":["1.1.1.0/24","0.0.0.0/0"],"allowPublicTraffic":false}`,
	} {
		api.sb.Network = &v1.SandboxNetwork{Mode: "enforce"}
		if document != "" {
			api.sb.Network.Documents = []*v1.NetworkDocument{{Text: document}, {Text: document}}
		}
		var info struct {
			Network json.RawMessage `json:"network"`
			Open    bool            `json:"allowInternetAccess"`
		}
		if err := json.Unmarshal([]byte(call("GET", "/sandboxes/"+api.sb.Id, "", 200)), &info); err != nil || string(info.Network) != want || info.Open {
			t.Errorf("%q: %s, %v", document, info.Network, err)
		}
	}
	api.sb.Network = &v1.SandboxNetwork{Mode: "observe"}
	if out := call("GET", "/sandboxes/"+api.sb.Id, "", 200); !strings.Contains(out, `"allowInternetAccess":true`) || !strings.Contains(out, fmt.Sprintf("%q:[%q]", "allowOut", "0.0.0.0/0")) {
		t.Errorf("observing: %s", out)
	}
}
