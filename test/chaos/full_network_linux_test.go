package chaos

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// tries is a program that has a connection for all its life and makes new ones all
// the time, to a name that it knows and to names that nobody has heard of.
const tries = `curl -sSN http://api.example/slow >/dev/null &
while true; do curl -sS -k -m 10 https://api.example/new; sleep 0.05; done >/dev/shm/said 2>&1 &
i=0; while true; do i=$((i+1)); curl -sS -k -m 10 https://n$i.new.example/; sleep 0.05; done >/dev/null 2>&1`

// TestDiskFullNetwork fills the disk of the data directory under a sandbox that
// uses its network. What cannot be recorded does not begin: no connection, and no
// query for a name that was not on record before. What was there goes on, it is over when there is space again, and what
// was denied meanwhile is told then.
func TestDiskFullNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root for enforced limits")
	}
	n := internet.New(t)
	w := newWorld(t, smallDisk(t))
	tr := n.Transport()
	t.Cleanup(tr.CloseIdleConnections)
	w.begin, w.transport = n.Start, tr
	slow, site := internet.Trickle(10*time.Millisecond), http.NewServeMux()
	site.Handle("/", internet.Reached)
	site.Handle("/slow", slow)
	api := n.Site("api.example", site)
	n.Names.Set("*.new.example", api.String())
	s := w.serve("", "--stop-sandboxes")
	status, r := s.do("POST", "/v1/sandboxes", `{"network":{"document":"allow: [{host: api.example, ports: [80, 443]}, {host: '*.new.example', budget: {names: 100000}}]"}}`)
	if status != http.StatusCreated {
		t.Fatalf("create: %d %+v", status, r)
	}
	id := r.ID
	program, _ := json.Marshal(map[string]any{"command": "sh", "args": []string{"-c", tries}, "tag": "tries"})
	if status, r := s.do("POST", "/v1/sandboxes/"+id+"/processes", string(program)); status != http.StatusCreated {
		t.Fatalf("start: %d %+v", status, r)
	}
	began := func() int { return len(n.Starts(api)) + len(n.Names.Asked("new.example")) }
	wait := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s\n%s", what, s.log)
			}
		}
	}
	wait("connections before", func() bool { return began() > 2 && slow.Taken() > 0 })

	ballast := filepath.Join(w.data, "ballast")
	told := func(host string) bool { // the operator
		for line := range strings.Lines(s.log.String()) {
			if strings.Contains(line, "a denial is not recorded") && strings.Contains(line, host) {
				return true
			}
		}
		return false
	}
	// What is buffered or preallocated may still be used up; then nothing begins for
	// as long as the program tries.
	full, since, taken, was := time.Now(), time.Now(), slow.Taken(), began()
	var before internet.Counts
	for time.Since(since) < 2*time.Second || slow.Taken() < taken+50 || !told("api.example") || !told("new.example") {
		fill(t, ballast)
		if now := began(); now != was || before == nil {
			since, was, taken, before = time.Now(), now, slow.Taken(), n.Sink.Counts(t)
		}
		if time.Since(full) > 90*time.Second {
			t.Fatalf("connections begin or new names are asked for on a full disk, or the one that was there does not go on: %d began, %d bytes of the other\n%s", was, slow.Taken(), s.log)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if slow.Ended() != 0 {
		t.Error("the connection that was there has ended")
	}
	for f := range n.Sink.Counts(t).Since(before) {
		asks := f.To.Port() == 53 && slices.Contains(internet.NameServers(), f.To.Addr())         // about the name that is known
		if !asks && f.To != netip.AddrPortFrom(api, 80) && f.To != netip.AddrPortFrom(api, 443) { // acknowledgements of what is over
			t.Errorf("on a full disk packets went to %v", f)
		}
	}

	starts, names := len(n.Starts(api)), len(n.Names.Asked("new.example"))
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	wait("connections afterwards", func() bool { return len(n.Starts(api)) > starts+2 && len(n.Names.Asked("new.example")) > names })
	if slow.Ended() != 0 {
		t.Error("the connection that was there has ended")
	}
	if status, r := s.do("POST", "/v1/sandboxes/"+id+"/exec", `{"command":"cat","args":["/dev/shm/said"]}`); status != http.StatusOK || !strings.Contains(r.Stdout, "curl: (") {
		t.Errorf("the program was told: %d %+v", status, r)
	}
	s.destroy(id)
	type denial struct {
		Host, Decision, Reason string
		Count                  int64
	}
	var sb struct{ Egress []denial }
	if status := s.get("/v1/sandboxes/"+id, &sb); status != http.StatusOK {
		t.Errorf("%d", status)
	}
	for _, host := range []string{"api.example", ".new.example"} {
		if !slices.ContainsFunc(sb.Egress, func(f denial) bool {
			return strings.HasSuffix(f.Host, host) && f.Decision == "deny" && f.Reason == "unrecorded" && f.Count > 0
		}) {
			t.Errorf("the report does not tell what was denied of %s: %+v", host, sb)
		}
	}
	s.stop()
}
