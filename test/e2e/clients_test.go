package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// client is one of many callers, with connections of its own.
type client struct {
	s *server
	c *http.Client
}

// call sends a request; any answer but one of the 2xx is an error.
func (c *client) call(method, path, body string) (string, error) {
	req, err := http.NewRequest(method, c.s.url+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+c.s.key)
	res, err := c.c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %d %.300s", method, path, res.StatusCode, b)
	}
	return string(b), err
}

// expect is call, whose answer must hold want.
func (c *client) expect(want, method, path, body string) error {
	got, err := c.call(method, path, body)
	if err == nil && !strings.Contains(got, want) {
		err = fmt.Errorf("%s %s: %.300q, want %q", method, path, got, want)
	}
	return err
}

// created makes a sandbox and returns its path.
func (c *client) created() (string, error) {
	body, err := c.call("POST", "/v1/sandboxes", `{"limits":{"memory_bytes":134217728}}`)
	var sb struct{ ID string }
	if err == nil {
		err = json.Unmarshal([]byte(body), &sb)
	}
	return "/v1/sandboxes/" + sb.ID, err
}

// mixed does one of the things clients do, and tells how long an exec took.
func (c *client) mixed(sb string, me, i int) (exec time.Duration, err error) {
	name := fmt.Sprintf("f%d", me)
	switch rand.IntN(10) {
	case 0:
		if err = c.expect(name, "PUT", sb+"/files?path="+name, strings.Repeat("x", 100_000)); err == nil {
			var got string
			if got, err = c.call("GET", sb+"/files?path="+name, ""); err == nil && len(got) != 100_000 {
				err = fmt.Errorf("%d bytes came back", len(got))
			}
		}
	case 1:
		err = c.expect(`"files"`, "GET", sb+"/files/list?path=/", "")
	case 2:
		err = c.expect(fmt.Sprintf(`"text":"%d"`, me*i), "POST", sb+"/contexts/default/eval", fmt.Sprintf(`{"code":"%d*%d"}`, me, i))
	case 3:
		err = c.expect(`"stdout":"in`, "POST", sb+"/exec", `{"command":"cat","stdin":"in"}`)
	case 4:
		err = c.expect(`"state":"running"`, "GET", sb, "")
	default:
		began := time.Now()
		err = c.expect(`"exit_code":0`, "POST", sb+"/exec", `{"command":"true"}`)
		exec = time.Since(began)
	}
	return exec, err
}

// rss is what a process holds, in bytes.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(b, []byte("VmRSS:"))
	var kib int64
	if _, err := fmt.Sscan(string(rest), &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// TestManyClients has 64 clients do what clients do to eight sandboxes, for a
// minute: nothing fails, a small exec does not take much longer for some than for
// others, and the server's memory does not grow.
func TestManyClients(t *testing.T) {
	const clients, sandboxes = 64, 8
	long := time.Minute
	if testing.Short() {
		long = 5 * time.Second
	}
	w := newWorld(t)
	s := w.serve()
	all := make([]*client, clients)
	for i := range all {
		tr := &http.Transport{}
		t.Cleanup(tr.CloseIdleConnections)
		all[i] = &client{s, &http.Client{Transport: tr, Timeout: 2 * time.Minute}}
	}
	var paths []string
	for range sandboxes {
		path, err := all[0].created()
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
		// The interpreters are there before anything is measured.
		if err := all[0].expect(`"text":"2"`, "POST", path+"/contexts/default/eval", `{"code":"1+1"}`); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var execs []time.Duration
	var calls, failures atomic.Int64
	round := func(d time.Duration) {
		execs = nil
		var wg sync.WaitGroup
		for me, c := range all {
			wg.Go(func() {
				for end, i := time.Now().Add(d), 0; time.Now().Before(end); i++ {
					took, err := c.mixed(paths[me%sandboxes], me, i)
					calls.Add(1)
					if err != nil && failures.Add(1) < 5 {
						t.Error(err)
					}
					if took > 0 {
						mu.Lock()
						execs = append(execs, took)
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
	}
	round(long / 4) // caches fill
	before := rss(t, s.cmd.Process.Pid)
	// How even it is depends on who else has the CPUs: the best of four counts.
	var median, p99 time.Duration
	for try := range 4 {
		round(long * 3 / time.Duration(4+4*min(try, 1)))
		slices.Sort(execs)
		median, p99 = execs[len(execs)/2], execs[len(execs)*99/100]
		t.Logf("%d execs, median %s, p99 %s", len(execs), median, p99)
		if p99 <= 3*median {
			break
		}
	}
	if p99 > 3*median {
		t.Errorf("p99 of a small exec is %s, its median %s", p99, median)
	}
	after := rss(t, s.cmd.Process.Pid)
	t.Logf("%d calls, %d failed; the server holds %d MiB, before %d MiB", calls.Load(), failures.Load(), after>>20, before>>20)
	if failures.Load() > 0 {
		t.Errorf("%d of %d calls failed", failures.Load(), calls.Load())
	}
	if after > before+before/4+8<<20 {
		t.Errorf("the server grew from %d to %d MiB", before>>20, after>>20)
	}
	for _, path := range paths {
		if err := all[0].expect(`"clean":true`, "DELETE", path, ""); err != nil {
			t.Error(err)
		}
	}
}

// TestNeighboursAreUnseen: of two sandboxes of one tenant, neither sees the
// other's processes, files, ports or contexts.
func TestNeighboursAreUnseen(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	c := &client{s, http.DefaultClient}
	one, err := c.created()
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.created()
	if err != nil {
		t.Fatal(err)
	}
	do := func(want, method, path, body string) {
		t.Helper()
		if err := c.expect(want, method, path, body); err != nil {
			t.Error(err)
		}
	}
	do(`"pid"`, "POST", one+"/processes", `{"command":"python3","args":["-m","http.server","8000","--bind","127.0.0.1"],"tag":"secret-tag"}`)
	do("secret.txt", "PUT", one+"/files?path=secret.txt", "content")
	do(`"text":"1"`, "POST", one+"/contexts/default/eval", `{"code":"secret = 1\nsecret"}`)
	// One's server answers in one, so that it would in two, if it were to be seen.
	do(`"stdout":"200`, "POST", one+"/exec", `{"code":"import time, urllib.request\nfor i in range(600):\n  try: print(urllib.request.urlopen('http://127.0.0.1:8000').status); break\n  except OSError: time.sleep(.1)"}`)

	do(`"stdout":"refused`, "POST", two+"/exec", `{"code":"import socket\ntry: socket.create_connection(('127.0.0.1', 8000)); print('open')\nexcept ConnectionRefusedError: print('refused')"}`)
	do(`"stdout":"none`, "POST", two+"/exec", `{"code":"import glob, os\nfound = [p for p in glob.glob('/proc/[0-9]*/cmdline') if str(os.getpid()) not in p and b'http.server' in open(p,'rb').read()]\nfound += [d for d, _, f in os.walk('/home') if 'secret.txt' in f]\nprint(found or 'none')"}`)
	do(`NameError`, "POST", two+"/contexts/default/eval", `{"code":"secret"}`)
	for _, path := range []string{"/files?path=secret.txt", "/processes/secret-tag"} {
		if got, err := c.call("GET", two+path, ""); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	list, err := c.call("GET", two+"/processes", "")
	if err != nil || strings.Contains(list, "secret-tag") {
		t.Errorf("%q, %v", list, err)
	}
	do(`"clean":true`, "DELETE", one, "")
	do(`"clean":true`, "DELETE", two, "")
}
