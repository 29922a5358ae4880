package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// looked runs a script in a sandbox that may reach hosts. Beside what it said and
// wanted it returns which run it was.
func (w *world) looked(t *testing.T, p internet.Program, args ...string) (out ran, run string) {
	t.Helper()
	args = append([]string{"run", "--json", "--timeout", "100s", "--memory", "1GiB", "--disk", "1GiB"}, args...)
	for _, a := range p.Allow {
		args = append(args, "--allow", a)
	}
	for k, v := range p.Env {
		args = append(args, "--env", k+"="+v)
	}
	r := w.run("", append(args, "--", "sh", "-c", p.Script)...)
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || !out.Receipt.Clean {
		t.Fatalf("%v: %+v", err, r)
	}
	return out, runOf(t, r.stdout)
}

// TestInspectedClients: clients as they are, which know nothing of sandboxes or of an
// authority, work where their TLS is looked into: each by what it trusts by itself.
// Each of their requests is among the events, by method and host.
func TestInspectedClients(t *testing.T) {
	n := internet.New(t)
	w := newWorld(t).on(t, n)
	programs, err := n.Programs()
	if err != nil {
		t.Fatal(err)
	}
	inputs := map[string][]string{"Go": {"--input", goClient(t) + ":client"}, "with a root that is read-only": {"--readonly-root"}}
	programs = append(programs,
		internet.Program{Name: "Go", Script: "./client https://api.example/", Prints: `(?s)HTTP/2.0 reached .* for api.example.*HTTP/2.0 reached`},
		internet.Program{Name: "with a root that is read-only", Script: `curl -sS https://api.example/ && node -e "fetch('https://api.example/').then(r => console.log(r.status))"`, Prints: `(?s)for api.example.*200`},
		internet.Program{Name: "by the system's list alone", Script: `unset SSL_CERT_FILE CURL_CA_BUNDLE GIT_SSL_CAINFO; curl -sS https://api.example/ && /usr/bin/python3 -c "
import ssl, urllib.request
urllib.request.urlopen('https://api.example/').read()
ssl.create_default_context(capath='/etc/ssl/certs')
c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
c.load_verify_locations(capath='/etc/ssl/certs')
print('by directory', urllib.request.urlopen('https://api.example/', context=c).status)"`, Prints: `(?s)for api.example.*by directory 200`},
	)
	java, has := javaClient(t)
	if has {
		programs = append(programs, java.Program)
		inputs[java.Name] = java.inputs
	}
	wheels := internet.Wheels(t, "../../bin/network-clients")
	upstream := strings.NewReplacer("by HTTP/1.1", "by HTTP/2.0") // whatever the client speaks
	s := w.serve()
	for _, p := range programs {
		t.Run(p.Name, func(t *testing.T) {
			if len(p.Allow) == 0 {
				p.Allow = []string{"api.example"}
			}
			args := inputs[p.Name]
			if p.Wheels {
				args = append(args, "--input", wheels+":wheels")
			}
			out, run := w.looked(t, p, args...)
			if slices.Equal(p.Allow, []string{"api.example"}) {
				p.Prints = upstream.Replace(p.Prints)
			}
			if out.ExitCode != 0 || !regexp.MustCompile(p.Prints).MatchString(out.Stdout) {
				t.Fatalf("%d %q %q, want %s; %+v", out.ExitCode, out.Stdout, out.Stderr, p.Prints, out.Egress)
			}
			_, events, _ := s.do("GET", "/v1/runs/"+run+"/events", "")
			for _, a := range p.Allow {
				host, _, _ := strings.Cut(a, ":")
				if !slices.ContainsFunc(strings.Split(events, "\n"), func(line string) bool {
					return strings.Contains(line, `"kind":"request"`) && strings.Contains(line, `"host":"`+host+`"`) && strings.Contains(line, `"decision":"allow"`) && strings.Contains(line, `"method":"`)
				}) {
					t.Errorf("no request to %s: %s", a, events)
				}
			}
		})
	}
	if !has {
		t.Skip("not run: there is no Java with a compiler here, and so it is not known what that trusts")
	}
}

// goClient is a program of Go's, linked statically.
func goClient(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "client")
	build := exec.Command("go", "build", "-o", path, "./testdata/client")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// aProgram is a program with the arguments of run that it needs.
type aProgram struct {
	internet.Program
	inputs []string
}

// javaClient is a program for the machine's Java.
func javaClient(t *testing.T) (p aProgram, ok bool) {
	t.Helper()
	program, err := filepath.EvalSymlinks("/usr/bin/java")
	if err != nil {
		return p, false
	}
	home := filepath.Dir(filepath.Dir(program))
	if _, err := os.Stat(filepath.Join(home, "bin/javac")); err != nil {
		return p, false
	}
	p.Name = "Java"
	p.inputs = []string{"--input", "testdata/Client.java:Client.java"}
	p.Script = "/usr/bin/java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 Client.java https://api.example/"
	p.Prints = `HTTP_1_1 200 reached .* by HTTP.* for api.example.*\n(.*\n)*.*HTTP_2 200 reached .* for api.example`
	abs, err := filepath.Abs("testdata/Client.java")
	if err != nil {
		t.Fatal(err)
	}
	p.inputs[1] = abs + ":Client.java"
	return p, true
}

// TestPinnedClients: who trusts somebody else, or one key alone, reaches nobody, and
// the report says why and what would help; with what it says it works.
func TestPinnedClients(t *testing.T) {
	n := internet.New(t)
	w := newWorld(t).on(t, n)
	site := n.Site("api.example", internet.Reached)
	s := w.serve()
	pin := "curl -sS -m 20 --pinnedpubkey sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= https://api.example/"
	for name, script := range map[string]string{
		"its own list": "curl -sS -m 20 --cacert real.pem --capath . https://api.example/", /* else curl reads the system's directory, too */
		"one key":      pin,
		"Python":       `/usr/bin/python3 -c "import ssl, urllib.request as u; u.urlopen('https://api.example/', context=ssl.create_default_context(cafile='real.pem'))"`,
		"Node":         `NODE_EXTRA_CA_CERTS= node -e "require('https').get({host: 'api.example', ca: require('fs').readFileSync('real.pem')}, r => process.exit(0)).on('error', () => process.exit(1))"`,
	} {
		t.Run(name, func(t *testing.T) {
			before := len(n.Requests(site))
			out, _ := w.looked(t, internet.Program{Script: script, Allow: []string{"api.example"}}, "--input", n.Authority.File+":real.pem")
			if out.ExitCode == 0 || strings.Contains(out.Stdout, "reached") {
				t.Errorf("it worked: %+v", out)
			}
			if !slices.ContainsFunc(out.Egress, func(f flow) bool {
				return f.Decision == "deny" && f.Reason == "untrusted" && f.Kind == "connect" && f.Host == "api.example" && f.Port == 443 && strings.Contains(f.Hint, "inspect: none")
			}) {
				t.Errorf("the report does not say why: %+v", out.Egress)
			}
			if now := len(n.Requests(site)); now != before {
				t.Errorf("%d requests arrived", now-before)
			}
		})
	}
	policy := filepath.Join(t.TempDir(), "unread.yaml")
	if err := os.WriteFile(policy, []byte("allow:\n- host: api.example\n  inspect: none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, run := w.looked(t, internet.Program{Script: "curl -sS -m 20 --cacert real.pem https://api.example/"}, "--policy", policy, "--input", n.Authority.File+":real.pem")
	_, events, _ := s.do("GET", "/v1/runs/"+run+"/events", "")
	if out.ExitCode != 0 || !strings.Contains(out.Stdout, "reached") || strings.Contains(events, `"kind":"request"`) {
		t.Errorf("with `inspect: none`: %+v %s", out, events)
	}
}

// TestTrustOverRestarts: a program that has read its list goes on over a restart of
// the server; a new policy's hosts are trusted by the programs that start after it.
func TestTrustOverRestarts(t *testing.T) {
	n := internet.New(t)
	w := newWorld(t).on(t, n)
	n.Site("api.example", internet.Reached)
	n.Site("other.example", internet.Reached)
	s := w.serve()
	status, body, _ := s.do("POST", "/v1/sandboxes", `{"network":{"allow":["api.example"]}}`)
	var sb struct{ ID string }
	if err := json.Unmarshal([]byte(body), &sb); err != nil || status != http.StatusCreated {
		t.Fatalf("%d %s", status, body)
	}
	exec := func(s *server, script string) string {
		cmd, _ := json.Marshal(map[string]any{"command": "sh", "args": []string{"-c", script}, "timeout_ms": 60_000})
		_, body, _ := s.do("POST", "/v1/sandboxes/"+sb.ID+"/exec", string(cmd))
		return body
	}
	mustContain(t, "before", exec(s, "curl -sS -m 20 https://api.example/"), "reached")
	long := `import ssl, time, os, urllib.request as u
context = ssl.create_default_context()
while True:
    try:
        said = u.urlopen('https://api.example/', context=context, timeout=20).read().decode()
    except Exception as e:
        said = repr(e)
    open('new', 'w').write(said)
    os.rename('new', 'said')
    time.sleep(0.1)`
	cmd, _ := json.Marshal(map[string]any{"command": "/usr/bin/python3", "args": []string{"-c", long}})
	if status, body, _ := s.do("POST", "/v1/sandboxes/"+sb.ID+"/processes", string(cmd)); status/100 != 2 {
		t.Fatalf("%d %s", status, body)
	}
	before := exec(s, "sha256sum /etc/firebreak/ca.pem; grep -c 'BEGIN' /etc/ssl/certs/ca-certificates.crt /etc/firebreak/ca-bundle.pem")
	s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s = w.serve()
	eventuallySays := func(what, script, want string) {
		t.Helper()
		for range 100 {
			if strings.Contains(exec(s, script), want) {
				return
			}
		}
		t.Errorf("%s: %s", what, exec(s, script))
	}
	eventuallySays("the program that was there before", "rm -f said; sleep 0.5; cat said", "reached")
	after := exec(s, "sha256sum /etc/firebreak/ca.pem; grep -c 'BEGIN' /etc/ssl/certs/ca-certificates.crt /etc/firebreak/ca-bundle.pem")
	counts := regexp.MustCompile(`crt:\d+`)
	if before == after || counts.FindString(before) != counts.FindString(after) || counts.FindString(after) == "" {
		t.Errorf("the list before: %s, after: %s", before, after)
	}
	if status, body, _ := s.do("PUT", "/v1/sandboxes/"+sb.ID+"/network", `{"allow":["other.example"]}`); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	mustContain(t, "after the update", exec(s, "curl -sS -m 20 https://other.example/"), "reached")
	if got := exec(s, "curl -sS -m 20 https://api.example/"); strings.Contains(got, "reached") {
		t.Errorf("the host of before: %s", got)
	}
	if status, body, _ := s.do("DELETE", "/v1/sandboxes/"+sb.ID, ""); status != http.StatusOK || !strings.Contains(body, `"clean":true`) {
		t.Errorf("%d %s", status, body)
	}
}
