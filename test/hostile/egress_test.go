package hostile

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The names of the internet that sandboxes are attacked from here, and what they
// stand for. Only what an attack's network says may be reached.
var egressNames = map[string][]string{
	"api.example":        {"151.101.9.1"},
	"plain.example":      {"151.101.9.2"},
	"pulse.example":      {"151.101.9.3"},
	"crowd.example":      {"151.101.9.7"},
	"narrow.example":     {"151.101.9.8"},
	"*.wild.example":     {"151.101.9.6"},
	"evil.example":       {"93.184.11.11"},
	"*.evil.example":     {"93.184.11.12"},
	"apiexample":         {"93.184.11.13"},
	"*.tunnel.example":   {"txt:answer", "93.184.5.5", "2606:4700::5"},
	"xn--pi-7kc.example": {"93.184.11.14"},

	// Inside, in every form that an answer has.
	"meta.example":    {"169.254.169.254"},
	"loop.example":    {"127.0.0.1"},
	"self.example":    {"10.77.0.2"},
	"lan.example":     {"10.9.8.7"},
	"shared.example":  {"100.64.0.1"},
	"zero.example":    {"0.0.0.0"},
	"bench.example":   {"198.18.0.1"},
	"alias.example":   {"cname:target.example"},
	"target.example":  {"192.168.7.7"},
	"six.example":     {"fd00:ec2::254"},
	"nat.example":     {"64:ff9b::a9fe:a9fe"},
	"tunnel6.example": {"2002:7f00:1::"},
	"link.example":    {"fe80::1"},
	"own6.example":    {"fd77::2"},
	"loop6.example":   {"::1"},
	"group.example":   {"224.0.0.251"},
	"mixed.example":   {"151.101.9.4", "127.0.0.1"},
	"mixed6.example":  {"151.101.9.4", "::1"},
	"wide.example":    {"151.101.9.4", "151.101.9.5", "10.9.8.7", "169.254.169.254"},
}

// Names that change: what they stand for each time that somebody asks.
var egressTurns = map[string][][]string{
	"turn.example":  {{"151.101.9.4"}, {"127.0.0.1"}},
	"turns.example": {{"151.101.9.4"}, {"151.101.9.4"}, {"169.254.169.254"}, {"10.77.0.2"}},
}

var insideNames = []string{"meta.example", "loop.example", "self.example", "lan.example", "shared.example", "zero.example", "bench.example", "alias.example",
	"six.example", "nat.example", "tunnel6.example", "link.example", "own6.example", "loop6.example", "group.example"}

var rebinding = []string{"turn.example", "turns.example", "mixed.example", "mixed6.example", "wide.example"}

// allowing is the network of `--allow`.
func allowing(list ...string) string {
	b, _ := json.Marshal(map[string]any{"allow": list}) // strings
	return string(b)
}

// policyOf is the network of `--policy`.
func policyOf(text string) string {
	b, _ := json.Marshal(map[string]any{"document": text}) // strings
	return string(b)
}

// onAllPorts allows hosts everything that a server of theirs may speak.
func onAllPorts(hosts []string) string {
	return policyOf("allow: [{host: [" + strings.Join(hosts, ", ") + "], ports: [80, 443, 9000], protocol: [tls, http, tcp]}]")
}

var attempts = []string{"attempts.py"}

// roomy is enough for the programs that programs start.
const roomy = `"memory_bytes":268435456`

// egressAttacks try to get something out, or at something inside. The programs
// print what they tried, and FINDING for what worked; what they print is only the
// half of it: nothing may arrive at the other end.
var egressAttacks = []attack{
	{number: 1, name: "metadata", verdict: deny, run: []string{"net_metadata.py"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: allowing("api.example"), wants: []string{`connect 169.254.169.254:80 deny \S+`, `connect 100.100.100.200:80 deny \S+`, `dns metadata.google.internal deny no_rule`}},
	{number: 1, name: "metadata under rules for every address", verdict: deny, run: []string{"net_metadata.py"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: policyOf(`allow: [{cidr: [0.0.0.0/0, "::/0"], ports: 1-65535, protocol: [tls, http, tcp]}]`), wants: []string{`connect 169.254.169.254:80 deny (address|private)`}},
	{number: 2, name: "names of what is inside", verdict: deny, run: append([]string{"net_inside.py"}, insideNames...), with: attempts, limits: roomy, timeout: 2 * time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: onAllPorts(insideNames), wants: []string{`connect meta.example:80 deny (address|private)`, `connect loop.example:443 deny private`, `connect self.example:9000 deny private`, `connect alias.example:80 deny private`}},
	{number: 3, name: "names that change", verdict: deny, run: append([]string{"net_inside.py"}, rebinding...), with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: onAllPorts(rebinding), wants: []string{`connect turn.example:(80|443|9000) deny private`, `connect turn.example:80 allow rule`, `connect mixed.example:80 deny private`, `connect wide.example:443 deny (address|private)`}},
	{number: 4, name: "redirects", verdict: deny, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		run: []string{"net_redirect.py", "https://moved.example/?to=http://169.254.169.254/latest/", "https://moved.example/?to=http://evil.example/", "https://moved.example/?to=http://127.0.0.1/",
			"https://moved.example/?to=https://10.77.0.2/", "https://moved.example/?to=http://moved.example:8080/", "https://moved.example/?to=https://moved.example/%3fto=http://evil.example/"},
		network: allowing("moved.example"), wants: []string{`connect 169.254.169.254:80 deny \S+`, `dns evil.example deny no_rule`, `connect 10.77.0.2:443 deny \S+`, `connect moved.example:8080 deny (port|no_rule)`}},
	{number: 5, name: "data in DNS queries", verdict: deny, run: []string{"net_tunnel.py", "tunnel.example", "api.example"}, with: attempts, limits: roomy, timeout: 90 * time.Second, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: allowing("api.example"), wants: []string{`dns .*tunnel.example deny no_rule`, `connect 1.1.1.1:853 deny \S+`, `connect 8.8.8.8:53 deny \S+`, `connect 1.1.1.1:443 deny \S+`}},
	{number: 6, name: "data in names below a wildcard", verdict: deny, run: []string{"net_wildcard.py", "wild.example", "120"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: `tried 120 names\npassed ([1-9]|1\d|20)\n`,
		network: policyOf(`allow: [{host: "*.wild.example", ports: 80, budget: {names: 20}}]`), wants: []string{`dns \S+.wild.example deny budget`}},
	{number: 7, name: "packets of every kind", verdict: deny, run: []string{"net_raw.py", "93.184.7.7", "api.example"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: allowing("api.example"), wants: []string{`connect 93.184.7.7:443 deny \S+`, `connect 93.184.7.7:12345 deny \S+`, `connect api.example:443 deny protocol`}},
	{number: 8, name: "the link", verdict: deny, act: onTheLink,
		network: allowing("api.example"), wants: []string{`connect 10.200.0.1:80 deny \S+`, `connect 10.200.1.2:80 deny \S+`}},
	{number: 9, name: "around the policy", verdict: deny, run: []string{"net_bypass.py", "api.example", "151.101.9.1", "93.184.9.9"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: allowing("api.example"), wants: []string{`connect 151.101.9.1:443 deny \S+`, `connect 93.184.9.9:1080 deny \S+`}},
	{number: 10, also: []int{13}, name: "one host for the policy and another for the server", verdict: deny, run: []string{"net_fronting.py", "plain.example", "evil.example"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: policyOf(`allow: [{host: plain.example, ports: [80, 443, 8443]}]`), wants: []string{`connect plain.example:443 deny claim`, `connect plain.example:80 deny claim`}},
	{number: 10, also: []int{13}, name: "the same inside TLS", verdict: deny, run: []string{"net_inside_tls.py", "plain.example", "evil.example"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: policyOf(`allow: [{host: plain.example, ports: [80, 443, 8443]}]`), wants: []string{`request GET plain.example:443 allowed rule`, `request GET plain.example:443 denied claim`, `connect plain.example:443 deny claim`, `connect plain.example:443 deny tls`, `connect plain.example:443 deny untrusted`}},
	{number: 11, name: "names that are read differently", verdict: deny, run: []string{"net_spellings.py", "api.example", "evil.example"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: policyOf(`allow: [{host: api.example, ports: [80, 443]}]`), wants: []string{`dns evil.example deny no_rule`, `connect api.example:443 deny claim`}},
	{number: 11, name: "rules that are read differently", verdict: deny, act: oddRules, network: allowing("api.example")},
	{number: 12, name: "a relay inside", verdict: deny, run: []string{"net_relay.py", "evil.example", "93.184.12.12", "169.254.169.254"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: allowing("api.example"), wants: []string{`dns evil.example deny no_rule`, `connect 93.184.12.12:443 deny \S+`, `connect 169.254.169.254:80 deny \S+`}},
	{number: 14, name: "smuggled requests", verdict: deny, run: []string{"net_smuggle.py", "plain.example"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: policyOf(`allow: [{host: plain.example, ports: [80, 443, 8443]}]`), wants: []string{`request POST plain.example:80 denied request`, `request POST plain.example:443 denied request`}},
	{number: 15, name: "methods and paths that no rule has", verdict: deny, run: []string{"net_rules.py", "narrow.example"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)open b'reached.*tried.*tried", check: noFindings,
		network: policyOf(`allow: [{host: narrow.example, ports: [80, 443], methods: [GET], paths: [/open]}]`), wants: []string{`request GET narrow.example:443 allowed rule`, `request GET narrow.example:443 denied path`, `request POST narrow.example:80 denied method`}},
	{number: 15, name: "forms of hosts that no rule has", verdict: deny, run: []string{"net_forms.py", "api.example", "evil.example"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done", prints: "(?s)tried.*tried", check: noFindings,
		network: allowing("api.example"), wants: []string{`connect api.example:80 deny (port|no_rule)`, `connect api.example:8443 deny (port|no_rule)`, `dns evil.example deny no_rule`}},
	{number: 26, name: "upstreams that trickle, flood and expand", verdict: survive, run: []string{"net_upstream.py", "trickle=https://trickle.example/", "silent=https://silent.example/", "pour=https://silent.example/", "bomb=https://bomb.example/",
		"headers=http://headers.example/", "flood=https://flood.example/"}, with: attempts, limits: roomy, timeout: 2 * time.Minute, reasons: "done", prints: `(?s)tried trickle - exit 28.*tried pour - exit 28.*tried flood - exit (18|56)`,
		network: policyOf(`allow: [{host: [trickle.example, silent.example, bomb.example], ports: 443}, {host: headers.example, ports: 80}, {host: flood.example, budget: {download: 64MiB}}]`),
		wants:   []string{`connect flood.example:443 allow rule`, `close flood.example:443 \S+ budget`, `close trickle.example:443 .*`}},
	{number: 27, name: "questions by the thousand", verdict: survive, run: []string{"net_queries.py", "tunnel.example", "20000"}, with: attempts, limits: roomy, reasons: "done", prints: `tried \d{4,} questions`, check: fewRecords,
		network: allowing("api.example"), wants: []string{`dns \S+.tunnel.example deny no_rule`}},
	{number: 27, name: "connections by the thousand", verdict: survive, alone: true, run: []string{"net_flood.py", "crowd.example", "93.184.27.27", "10000"}, with: attempts, limits: roomy, timeout: time.Minute, reasons: "done|memory", prints: "tried", check: pulses,
		network: allowing("crowd.example:80"), wants: []string{`connect crowd.example:80 allow rule`, `connect crowd.example:80 deny limit`, `connect 93.184.27.27:80 deny \S+`}},
}

// exampleName finds the names in a network's rules.
var exampleName = regexp.MustCompile(`(?:\*\.)?[a-z0-9-]+(?:\.[a-z0-9-]+)*\.example`)

// mayBeAsked are the names that networks name: a name server may hear those.
func mayBeAsked() map[string]bool {
	names := map[string]bool{"pulse.example": true}
	for _, a := range egressAttacks {
		for _, n := range exampleName.FindAllString(a.network, -1) {
			names[n] = true
		}
	}
	return names
}

// mayBeReached is whether networks allow a port of an address outside. Addresses
// inside are never there, whatever rules say.
var mayBeReached = map[string][]uint16{
	"151.101.9.1": {80, 443},
	"151.101.9.2": {80, 443, 8443},
	"151.101.9.3": {80},
	"151.101.9.4": {80, 443, 9000},
	"151.101.9.6": {80},
	"151.101.9.7": {80},
	"151.101.9.8": {80, 443},
}

// onTheLink runs the program while a neighbour listens, which may hear nothing.
func onTheLink(t *testing.T, w *world, id string) {
	neighbour := w.create(t, `"network":`+allowing("api.example"))
	w.upload(t, neighbour, "net_listen.py")
	w.upload(t, id, "net_link.py")
	w.upload(t, id, "attempts.py")
	heard := make(chan reply, 1)
	go func() {
		_, r := w.exec(neighbour, 2*time.Minute, "python3", "net_listen.py", "10")
		heard <- r
	}()
	status, r := w.exec(id, time.Minute, "python3", "net_link.py", "2606:4700::8", "10.200.0.2")
	if status != http.StatusOK || r.ExitCode != 0 || !strings.Contains(r.Stdout, "tried") {
		t.Errorf("%d %s", status, r.body)
	}
	noFindings(t, w, id, r, 0)
	if r = <-heard; !strings.Contains(r.Stdout, "heard 0\n") {
		t.Errorf("the neighbour heard something, or did not listen: %s %s", r.Stdout, r.Stderr)
	}
	w.destroy(t, neighbour)
}

// oddRules: what a rule's host may not be is refused, in every form of a request.
func oddRules(t *testing.T, w *world, id string) {
	for _, host := range []string{"", " ", "*", "*.com", "*.co.uk", "a.*.example", "api.*", "**", "api.example@evil.example", "api.example\x00.evil.example", "api.example\r\nevil.example", "api.example%00.evil.example",
		"api..example", ".api.example", "api.example#evil.example", "http://api.example", "api.example/path", "api.example:0", "api.example:65536", "api.example:443:80", "api.example:https", "127.1", "169.254.169.254", "169.254.169.254/32", "0x7f000001", "0177.0.0.1",
		"2130706433", "fe80::1%eth0", "[fe80::1%25eth0]:80", "10.0.0.0/33", "1.2.3.4/8.8.8.8", "\u0430pi.example\u0000", strings.Repeat("x", 64) + ".example", strings.Repeat("long.", 60) + "example", "-api.example", "api_.example"} {
		status, r := w.do("POST", "/v1/sandboxes", `{"network":`+allowing(host)+`}`)
		if status/100 == 2 {
			t.Errorf("a sandbox may reach %q: %s", host, r.body)
			w.destroy(t, r.ID)
		} else if status != http.StatusBadRequest || r.Error.Message == "" {
			t.Errorf("%q: %d %s", host, status, r.body)
		}
		if status, r := w.do("PUT", "/v1/sandboxes/"+id+"/network", allowing(host)); status != http.StatusBadRequest {
			t.Errorf("%q in an update: %d %s", host, status, r.body)
		}
	}
	if status, r := w.exec(id, 20*time.Second, "curl", "-sS", "-k", "-m", "10", "https://api.example/"); status != http.StatusOK || !strings.Contains(r.Stdout, "reached 151.101.9.1") {
		t.Errorf("what was allowed before no longer is: %d %s", status, r.body)
	}
}

// fewRecords: a flood of denials is told, and not one by one.
func fewRecords(t *testing.T, w *world, id string, r reply, _ time.Duration) {
	noFindings(t, w, id, r, 0)
	n := 0
	for _, action := range w.records(id) {
		if action == "egress.decide" {
			n++
		}
	}
	t.Logf("%s, %d records", strings.TrimSpace(r.Stdout), n)
	if n == 0 || n > 2000 {
		t.Errorf("%d records of a flood", n)
	}
}

// pulses: the program made what it was to make, or had no memory left for it.
func pulses(t *testing.T, _ *world, _ string, r reply, _ time.Duration) {
	if m := regexp.MustCompile(`tried (\d+) connections`).FindStringSubmatch(r.Stdout); m != nil {
		if tried, _ := strconv.Atoi(m[1]); tried < 2000 {
			t.Errorf("it made %d connections only", tried)
		}
		t.Log(strings.TrimSpace(r.Stdout))
	}
}
