package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/policy"
)

// policyRun runs one command line with standard input.
func policyRun(t *testing.T, in string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	app := &App{In: strings.NewReader(in), Out: &o, Err: &e, Lookup: func(string) (string, bool) { return "", false }}
	code = app.Execute(context.Background(), append([]string{"policy"}, args...))
	return code, o.String(), e.String()
}

const policyText = `
version: 1
name: p
include: [pypi, team]
allow:
  - api.example.com
  - {host: db.example.com, ports: 5432, protocol: tcp}
  - {cidr: 10.1.0.0/16, ports: 5432, protocol: tcp}
  - {host: rest.example.com, methods: [GET, POST], paths: [/v1]}
  - {host: pinned.example.com, inspect: none}
deny:
  - evil.example.com
  - {host: rest.example.com, paths: [/v1/admin]}
rego: |
  package firebreak
  allow if input.host != "files.pythonhosted.org"
`

func TestPolicy(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("team.yaml", "name: team\nallow: [team.example.com]\n")
	file := write("p.yaml", policyText)
	bad := write("bad.yaml", "allow:\n  - '*.com'\n")
	badRego := write("rego.yaml", "allow: []\nrego: |\n  package firebreak\n  allow if http.send({})\n")
	lost := write("lost.yaml", "include: ../team\n")
	lost2 := write("lost2.yaml", "include: nobody\n")
	observed := write("observed.jsonl", `{"host":"pypi.org","port":443}`+"\n"+`{"host":"new.example.com","port":443}`+"\n"+`{"host":"169.254.169.254","port":80}`+"\n")
	for _, c := range []struct {
		in   string
		args []string
		code int
		out  string // in stdout
		errs string // in stderr
	}{
		{"", []string{"check", file}, 0, "8 allow rules; 2 deny rules; 1 Rego module; mode enforce", "p.yaml:8: 10.1.0.0/16 is not public (private)"},
		{"", []string{"check", "--private", "10.0.0.0/8", file}, 0, "8 allow rules", ""},
		{policyText, []string{"check", "-"}, 1, "", `there is no policy called "team"`},
		{"min_isolation: hypervisor\ninclude: [pypi]", []string{"check", "-"}, 0, "mode enforce; at least hypervisor\n", ""},
		{"min_isolation: hypervisor\ninclude: [pypi]", []string{"check", "--json", "-"}, 0, `"min_isolation":"hypervisor"`, ""},
		{"min_isolation: strong", []string{"check", "-"}, 1, "", "-:1: \"strong\" is no isolation class to demand"},
		{"min_isolation: hypervisor\ninclude: [pypi]", []string{"explain", "-", "pypi.org"}, 0, "  in a sandbox isolated by hypervisor or better, as - demands\n", ""},
		{"allow: [a.b]", []string{"check", "-"}, 0, "-: 1 allow rule;", ""},
		{"mode: observe", []string{"check", "-"}, 0, "mode observe", ""},
		{"", []string{"check", bad}, 1, "", "bad.yaml:2: \"*.com\": anybody can register a name below com"},
		{"", []string{"check", badRego}, 1, "", "rego.yaml:4: undefined function http.send"},
		{"", []string{"check", lost}, 1, "", "which is no name of a policy"},
		{"", []string{"check", lost2}, 1, "", "built in are debian, github, go, model-providers, npm, pypi"},
		{"", []string{"check", "--json", bad}, 1, `"ok":false,"error":"`, ""},
		{"", []string{"check", "--json", file}, 0, `{"ok":true,"mode":"enforce","allow":8,"deny":2,"rego":1,"warnings":["`, ""},
		{"", []string{"check", filepath.Join(dir, "none.yaml")}, 1, "", "no such file"},
		{"", []string{"check"}, exitUsage, "", "hint"},
		{"", []string{"check", "--private", "10.0.0.1/8", file}, exitUsage, "", "is not a network"},

		{"", []string{"explain", file, "api.example.com"}, 0, "allow by p/allow api.example.com:443\n  Rego was not asked: give --address\n+ p/allow api.example.com:443", ""},
		{"", []string{"explain", file, "API.example.com.:443", "--address", "1.1.1.1"}, 0, "allow by p/allow api.example.com:443\n+ ", ""},
		{"", []string{"explain", file, "team.example.com"}, 0, "allow by team/allow team.example.com:443", ""},
		{"", []string{"explain", file, "pypi.org"}, 0, "allow by pypi/index", ""},
		{"", []string{"explain", file, "files.pythonhosted.org", "--address", "1.1.1.1"}, 1, "deny: rego\n  hint: the rule \"pypi/files\" allows it, and the policy's Rego does not agree", ""},
		{"", []string{"explain", file, "evil.example.com"}, 1, "deny by p/deny evil.example.com\n", ""},
		{"", []string{"explain", file, "other.example.com:8443"}, 1, "deny: no_rule\n  hint: to permit it: --allow other.example.com:8443\n  10 rules about other hosts\n", ""},
		{"", []string{"explain", file, "api.example.com:80"}, 1, "deny: port\n", ""},
		{"", []string{"explain", file, "api.example.com", "--claimed", "other.example.com"}, 1, "deny: claim\n", ""},
		{"", []string{"explain", file, "169.254.169.254:80"}, 1, "deny: address\n  hint: no rule can permit it: 169.254.169.254 is metadata", ""},
		{"", []string{"explain", file, "db.example.com:5432", "--protocol", "tcp", "--address", "10.1.2.3"}, 1, "deny: private\n  hint: 10.1.2.3 is private", ""},
		{"", []string{"explain", file, "db.example.com:5432", "--protocol", "tcp", "--address", "10.1.2.3", "--private", "10.0.0.0/8"}, 0, "allow by p/allow db.example.com:5432\n", ""},
		{"", []string{"explain", "--json", "--all", file, "pypi.org"}, 0, `"decision":"allow","reason":"rule","rule":"pypi/index","rego":"not asked","steps":[{"rule":"p/deny evil.example.com"`, ""},
		{"", []string{"explain", file, "rest.example.com"}, 0, "allow by p/allow rest.example.com:443 GET,POST /v1\n  Rego was not asked: give --address\n  p/deny rest.example.com /v1/admin", ""},
		{"", []string{"explain", file, "rest.example.com", "--method", "POST", "--path", "/v1/x"}, 0, "allow by p/allow rest.example.com:443 GET,POST /v1\n", ""},
		{"", []string{"explain", file, "rest.example.com", "--path", "/v1/x", "--address", "1.1.1.1"}, 0, "allow by p/allow rest.example.com:443 GET,POST /v1\n", ""},
		{"", []string{"explain", file, "rest.example.com", "--method", "PUT", "--path", "/v1/x"}, 1, "deny: method\n  hint: to permit it: a rule for rest.example.com:443 with the method in `methods`, or without any; there is GET, POST\n", ""},
		{"", []string{"explain", file, "rest.example.com", "--method", "GET"}, 1, "deny: path\n  hint: to permit it: a rule for rest.example.com:443 with the path in `paths`, or without any; there is /v1\n", ""},
		{"", []string{"explain", file, "rest.example.com", "--path", "/v1/%41dmin/x"}, 1, "deny by p/deny rest.example.com /v1/admin\n", ""},
		{"", []string{"explain", file, "pinned.example.com", "--path", "/v1"}, 0, "allow by p/allow pinned.example.com:443 inspect:none\n  it passes unread", ""},
		{"", []string{"explain", file, "files.pythonhosted.org", "--method", "GET", "--address", "1.1.1.1"}, 1, "deny: rego\n", ""},
		{"", []string{"explain", "--json", file, "rest.example.com", "--path", "/v1"}, 0, `"method":"GET","path":"/v1","decision":"allow"`, ""},
		{"", []string{"explain", "--json", file, "pinned.example.com"}, 0, `"reason":"rule","rule":"p/allow pinned.example.com:443 inspect:none","unread":true`, ""},
		{"", []string{"explain", file, "db.example.com:5432", "--protocol", "tcp", "--method", "GET"}, exitUsage, "", "raw TCP has no requests"},
		{"", []string{"explain", file, "rest.example.com", "--path", "/v1?x=y"}, exitUsage, "", "rules are not about queries"},
		{"", []string{"explain", file, "0x7f.1"}, exitUsage, "", "is not a host"},
		{"", []string{"explain", file, "a b"}, exitUsage, "", "is not a host"},
		{"", []string{"explain", file, "a.b", "--protocol", "quic"}, exitUsage, "", "is not a protocol"},
		{"", []string{"explain", bad, "a.b"}, exitUsage, "", "bad.yaml:2"},

		{"", []string{"suggest", observed}, 0, "version: 1\nallow:\n  - host: [new.example.com]\n  - host: [pypi.org]\n", "169.254.169.254 is never dialled"},
		{"", []string{"suggest", "--policy", file, observed}, 0, "version: 1\nallow:\n  - host: [new.example.com]\n", ""},
		{`{"egress":[{"host":"a.b","port":1}]}`, []string{"suggest"}, 0, "host: [a.b]\n    ports: [\"1\"]\n", ""},
		{"nonsense", []string{"suggest", "-"}, exitUsage, "", "line 1"},
	} {
		code, out, errs := policyRun(t, c.in, c.args...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errs, c.errs) {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", c.args, code, out, errs)
		}
	}
	_, out, _ := policyRun(t, "", "explain", "--json", file, "api.example.com")
	var o explainOut
	if err := json.Unmarshal([]byte(out), &o); err != nil || o.Decision != "allow" || len(o.Steps) != 1 || !o.Steps[0].Match {
		t.Errorf("%q: %v", out, err)
	}
}

// TestPolicyGuide: every block of YAML in the guide is a policy, and every
// command line after it ends as the guide says.
func TestPolicyGuide(t *testing.T) {
	guide, err := os.ReadFile("../../../docs/guides/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Chdir(dir)
	policies, commands := 0, 0
	for _, m := range regexp.MustCompile("(?s)```(yaml|console|json)\n(.*?)```").FindAllStringSubmatch(string(guide), -1) {
		switch m[1] {
		case "yaml":
			policies++
			if _, err := policy.Parse("guide", []byte(m[2])); err != nil {
				t.Errorf("%v in\n%s", err, m[2])
			}
			name := "build.yaml"
			if n := regexp.MustCompile(`(?m)^# (\S+\.yaml)$`).FindStringSubmatch(m[2]); n != nil {
				name = n[1]
			}
			if err := os.WriteFile(name, []byte(m[2]), 0o644); err != nil {
				t.Fatal(err)
			}
			if code, _, errs := policyRun(t, "", "check", "--private", "10.1.0.0/16", name); code != 0 || errs != "" {
				t.Errorf("check of\n%s: exit code %d, %s", m[2], code, errs)
			}
		case "json":
			if err := os.WriteFile("observed.jsonl", []byte(m[2]), 0o644); err != nil {
				t.Fatal(err)
			}
		case "console":
			for _, block := range strings.Split(m[2], "$ firebreak policy ")[1:] {
				commands++
				line, want, _ := strings.Cut(block, "\n")
				_, out, errs := policyRun(t, "", strings.Fields(line)...)
				if got := out + errs; got != want {
					t.Errorf("%s prints\n%s, the guide says\n%s", line, got, want)
				}
			}
		}
	}
	if policies < 4 || commands < 4 {
		t.Errorf("%d policies and %d commands in the guide", policies, commands)
	}
}
