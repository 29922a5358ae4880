package e2e

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// TestWatch: what programs and callers do to the files of a real sandbox is told
// as it happens, and a flood is told of.
func TestWatch(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	_, body, _ := s.do("POST", "/v1/sandboxes", `{"name":"watched"}`)
	var sb struct{ ID string }
	if json.Unmarshal([]byte(body), &sb); sb.ID == "" {
		t.Fatal(body)
	}
	path := "/v1/sandboxes/" + sb.ID
	req, _ := http.NewRequestWithContext(t.Context(), "GET", s.url+path+"/files/watch?recursive=true", nil)
	req.Header.Set("Authorization", "Bearer "+s.key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	until := func(want string) (seen []string) {
		t.Helper()
		for lines.Scan() {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok {
				continue
			}
			var e struct{ Type, Path string }
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(data)
			}
			if e.Type+" "+e.Path == want {
				return seen
			}
			seen = append(seen, e.Type+" "+e.Path)
		}
		t.Fatalf("no %q after %q: %v", want, seen, lines.Err())
		return nil
	}
	exec := func(script string) {
		t.Helper()
		b, _ := json.Marshal(map[string]string{"code": script, "language_pack": "shell"})
		if code, body, _ := s.do("POST", path+"/exec", string(b)); code != 200 || !strings.Contains(body, `"exit_code":0`) {
			t.Fatalf("%d %s", code, body)
		}
	}
	until("start ")
	exec(`mkdir -p a/b/c && echo x > a/b/c/f && mv a/b m && ln -s /etc link && mkdir "two
lines"`)
	got := strings.Join(until("create two\nlines"), "|")
	mustContain(t, "a program", got, "create a", "create a/b/c/f", "rename a/b", "create m", "create link")
	exec(`echo x > m/c/g; chmod 600 m/c/g; rm m/c/g`)
	mustContain(t, "in the renamed directory", strings.Join(until("remove m/c/g"), "|"), "create m/c/g|write m/c/g", "chmod m/c/g")
	s.do("PUT", path+"/files?path=m/c/api", "content")
	until("create m/c/api")
	if got := until("write m/c/api"); len(got) > 0 {
		t.Errorf("a caller's file: %q", got)
	}
	s.do("PUT", path+"/files?path=m/c/api", "again")
	if got := until("write m/c/api"); len(got) > 0 {
		t.Errorf("written again: %q", got)
	}
	code, body, _ := s.do("POST", path+"/files/watchers", `{"path":"m"}`)
	var wa struct{ Watcher string }
	if json.Unmarshal([]byte(body), &wa); code != 201 {
		t.Fatalf("%d %s", code, body)
	}
	exec(`cd m && i=0; while [ $i -lt 30000 ]; do : > f$i; i=$((i+1)); done; rm -r c`)
	overflow, over := false, false
	for !overflow { // nobody asked meanwhile
		code, body, _ := s.do("GET", path+"/files/watchers/"+wa.Watcher, "")
		if code != 200 {
			t.Fatalf("%d %s", code, body)
		}
		overflow = strings.Contains(body, `"overflow"`)
	}
	exec(`rm -r m`)
	for !over {
		_, body, _ := s.do("GET", path+"/files/watchers/"+wa.Watcher, "")
		over = strings.Contains(body, `"over":true`)
	}
	until("remove m")
	if code, body, _ := s.do("DELETE", path+"/files/watchers/"+wa.Watcher, ""); code != 200 && code != 204 {
		t.Errorf("%d %s", code, body)
	}
	if code, body, _ := s.do("GET", path+"/files/watch?path=/proc", ""); code != 422 || !strings.Contains(body, "not reported") {
		t.Errorf("watching /proc: %d %s", code, body)
	}
	if code, body, _ := s.do("DELETE", path, ""); code != 200 || !strings.Contains(body, `"clean":true`) {
		t.Errorf("%d %s", code, body)
	}
	for lines.Scan() {
		body = lines.Text()
		if strings.Contains(body, `"kind":"gone"`) {
			return
		}
	}
	t.Errorf("the stream did not tell of the sandbox's end: %q", body)
}
