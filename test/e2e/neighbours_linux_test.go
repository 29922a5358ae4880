package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// settled waits until connections that are over send nothing more, and returns what
// was sent.
func settled(t *testing.T, n *internet.Internet) internet.Counts {
	t.Helper()
	last := n.Sink.Counts(t)
	for end := time.Now().Add(30 * time.Second); ; {
		time.Sleep(250 * time.Millisecond)
		now := n.Sink.Counts(t)
		if now.Since(last).Total().Packets == 0 {
			return now
		}
		if last = now; time.Now().After(end) {
			t.Fatal("packets go on")
		}
	}
}

// TestNetworkNeighbours: two sandboxes with different rules at once. What one may
// reach, the other does not: not by name, not by the address that the first one's
// name has, not by the real one, and not when the first one has ended.
func TestNetworkNeighbours(t *testing.T) {
	n := internet.New(t)
	s := newWorld(t).on(t, n).serve()
	hosts := [2]string{"a.example", "b.example"}
	var sites [2]netip.Addr
	var ids [2]string
	for i, host := range hosts {
		sites[i] = n.Site(host, internet.Reached)
		status, body, _ := s.do("POST", "/v1/sandboxes", fmt.Sprintf(`{"network":{"allow":[%q]}}`, host))
		var sb struct{ ID string }
		if err := json.Unmarshal([]byte(body), &sb); err != nil || status != http.StatusCreated {
			t.Fatalf("%d %s", status, body)
		}
		ids[i] = sb.ID
	}
	sh := func(i int, script string) string {
		t.Helper()
		cmd, _ := json.Marshal(map[string]any{"command": "sh", "args": []string{"-c", script}, "timeout_ms": 60_000})
		status, body, _ := s.do("POST", "/v1/sandboxes/"+ids[i]+"/exec", string(cmd))
		var out struct{ Stdout, Stderr string }
		if err := json.Unmarshal([]byte(body), &out); err != nil || status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
		return out.Stdout + out.Stderr
	}
	own := func(i int) {
		t.Helper()
		if said := sh(i, "curl -sS -k -m 20 https://"+hosts[i]+"/own"); !strings.Contains(said, "reached "+sites[i].String()) {
			t.Errorf("%s is not reached: %s", hosts[i], said)
		}
	}
	// Each knows its own name's address, many wires deal the same ones.
	var synthetic [2]string
	for i, host := range hosts {
		own(i)
		line := sh(i, "getent ahostsv4 "+host)
		fields := strings.Fields(line)
		if len(fields) == 0 || netip.MustParseAddr(fields[0]) == sites[i] {
			t.Fatalf("%s has no address of the sandbox's own: %q", host, line)
		}
		synthetic[i] = fields[0]
	}
	// foreign tries the other's host in every way there is.
	foreign := func(when string, i int) {
		t.Helper()
		host, asked := hosts[1-i], len(n.Names.Queries())
		before := settled(t, n)
		said := sh(i, fmt.Sprintf(`curl -sS -k -m 10 https://%[1]s/x; curl -sS -m 10 http://%[1]s/x
for a in %[2]s %[3]s; do curl -sS -k -m 10 --resolve %[1]s:443:$a https://%[1]s/x; curl -sS -k -m 10 https://$a/x; curl -sS -m 10 -H 'Host: %[1]s' http://$a/x; done; true`, host, synthetic[1-i], sites[1-i]))
		if strings.Contains(said, "reached "+sites[1-i].String()) {
			t.Errorf("%s: the sandbox of %s reaches %s: %s", when, hosts[i], host, said)
		}
		if strings.Count(said, "curl: (") < 8 {
			t.Errorf("%s: only some of what no rule allows was refused: %s", when, said)
		}
		if sent := n.Sink.Counts(t).Since(before).To(sites[1-i]); sent.Total().Packets != 0 {
			t.Errorf("%s: %s got %v", when, host, sent)
		}
		if slices.ContainsFunc(n.Names.Queries()[asked:], func(q internet.Query) bool { return strings.EqualFold(q.Name, host) }) {
			t.Errorf("%s: %s was asked for", when, host)
		}
	}
	foreign("at once", 0)
	foreign("at once", 1)
	own(0)
	own(1)
	// The records are each its own.
	for i := range ids {
		_, body, _ := s.do("GET", "/v1/sandboxes/"+ids[i], "")
		var sb struct{ Egress []flow }
		if err := json.Unmarshal([]byte(body), &sb); err != nil {
			t.Fatal(err)
		}
		has := func(host, decision string) bool {
			return slices.ContainsFunc(sb.Egress, func(f flow) bool { return f.Host == host && f.Decision == decision })
		}
		if !has(hosts[i], "allow") || !has(hosts[1-i], "deny") || has(hosts[1-i], "allow") {
			t.Errorf("the report of the sandbox of %s: %+v", hosts[i], sb.Egress)
		}
	}
	if status, body, _ := s.do("DELETE", "/v1/sandboxes/"+ids[0], ""); status != http.StatusOK || !strings.Contains(body, `"clean":true`) {
		t.Errorf("%d %s", status, body)
	}
	foreign("after the other's end", 1)
	own(1)
	for _, r := range n.Requests() {
		if r.Path != "/own" {
			t.Errorf("a request that no rule allows: %+v", r)
		}
	}
	if status, body, _ := s.do("DELETE", "/v1/sandboxes/"+ids[1], ""); status != http.StatusOK || !strings.Contains(body, `"clean":true`) {
		t.Errorf("%d %s", status, body)
	}
}
