package hostile

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/guides/hostile-matrix.md")

const guide = "../../docs/guides/hostile-matrix.md"

// column is where a case can be carried out.
type column int

const (
	onGVisor column = iota
	onModel
	onMicroVM
	onDocker
	onKube
	onNone // tests that need no backend
	columns
)

var heads = [columns]string{"gvisor", "sim", "microvm", "docker", "kube", "no backend needed"}

// row is a case of the list. What no test of this package carries out is carried
// out elsewhere, or it is not, for a reason.
type row struct {
	number  int
	title   string
	verdict string
	not     string // why it is not run where no test is named
	partly  string // what of the case no test covers
	linked  map[column]string
}

const (
	noInspection = "nobody looks into bodies for it yet"
	noModel      = "the model executes no code"
)

// rows is the list of hostile workloads, in our words.
var rows = []row{
	{1, "Ask for cloud metadata, its address spelled in every way", "DENY", "", "", map[column]string{onMicroVM: "test/hostile TestEgressMachine", onGVisor: "test/e2e TestDemo", onNone: "internal/netaddr TestDialer"}},
	{2, "A name that resolves to metadata, loopback or the local net", "DENY", "", "", map[column]string{onNone: "internal/template TestSafeAddresses; internal/netaddr TestDialer"}},
	{3, "A name that changes its address between check and use", "DENY", "", "", map[column]string{onNone: "internal/netaddr TestDialerPins"}},
	{4, "An allowed host that redirects to an internal one", "DENY", "", "", map[column]string{onNone: "internal/template TestCredentials"}},
	{5, "Data tunnelled in DNS queries, by any transport", "DENY", "", "", map[column]string{onMicroVM: "test/hostile TestEgressMachine", onGVisor: "test/e2e TestDemo"}},
	{6, "Data tunnelled in names below an allowed wildcard", "DENY", "", "bounded by a budget, not denied: what is below a wildcard is whoever serves the zone", map[column]string{onNone: "internal/policy TestNameBudget; internal/egress/dns TestAnswer"}},
	{7, "Raw TCP, UDP, ICMP, SCTP and packet sockets to the internet", "DENY", "", "", map[column]string{onMicroVM: "test/hostile TestEgressMachine", onGVisor: "test/e2e TestDemo, TestNetworkRun"}},
	{8, "Spoofing and probing on the link: IPv6, ARP, DHCP, multicast", "DENY", "", "frames that no socket of a sandbox can make are sent by a plain kernel, elsewhere", map[column]string{onMicroVM: "test/hostile TestEgressMachine; internal/egress/wire TestPlugged, TestPlugNoise", onGVisor: "test/hostile TestPrograms"}},
	{9, "Going round the proxy settings to an address", "DENY", "", "", map[column]string{onGVisor: "test/e2e TestDemo"}},
	{10, "One host to the policy, another to the server (fronting, CONNECT, h2)", "DENY", "", "", map[column]string{onMicroVM: "test/hostile TestEgressMachine", onNone: "internal/egress TestReadHosts; internal/egress/inspect TestEveryStream"}},
	{11, "Host names that two parsers read differently", "DENY", "", "", map[column]string{onNone: "internal/netaddr TestParseHost, FuzzParseHost"}},
	{12, "A relay inside that asks again on another's behalf", "DENY", "", "", nil},
	{13, "TLS without a name, with ECH, too old, or pinned", "DENY", "", "", map[column]string{onMicroVM: "test/hostile TestEgressMachine", onNone: "internal/egress TestReadUntrusted; internal/egress/inspect TestHandshakes, TestUpstreams"}},
	{14, "Smuggled requests", "DENY", "", "", map[column]string{onNone: "internal/egress/inspect TestSiteSmuggling, TestSmuggling, FuzzVisit, FuzzStreams"}},
	{15, "Methods and paths that slip past a rule", "DENY", "", "", map[column]string{onNone: "internal/egress TestReadRequests"}},
	{16, "An upload to an allowed host with the attacker's own key", "DENY", "", "to a host that there is a binding for: where there is none, a key of one's own is the sandbox's to send", nil},
	{17, "Personal data in bodies, in any encoding", "DENY", noInspection, "", nil},
	{18, "A broker's secret in query, header, cookie, path or timing", "DENY", "", "timing is not shown; nor is what a program encodes in a way of its own", nil},
	{19, "A placeholder sent to a host it is not bound to", "DENY", "", "", map[column]string{onMicroVM: "test/e2e TestMicroVMNetwork"}},
	{20, "A server that echoes the injected credential", "DENY", "", "", nil},
	{21, "Search the whole sandbox for a secret of the host", "DENY", "", "", map[column]string{onGVisor: "test/e2e TestDemo"}},
	{22, "Git: read the token, push where it is not allowed", "DENY", "", "over HTTP, through a binding; what a host's own automation does with what is pushed is the host's", nil},
	{23, "Use the binding of another sandbox", "DENY", "", "", nil},
	{24, "Install a package that is too young", "DENY", noInspection, "", nil},
	{25, "Install a package known to be malicious, or of another hash", "DENY", noInspection, "", nil},
	{26, "An upstream that trickles, floods or expands", "SURVIVE", "", "", map[column]string{onNone: "internal/template TestTamperingRegistry, TestCompressions"}},
	{27, "Ten thousand connections at once into the network stack", "SURVIVE", "", "", nil},
	{28, "Fork and thread bombs", "KILL", "", "", map[column]string{onMicroVM: "internal/backend/microvm TestConformance", onModel: "internal/backend/sim TestConformance"}},
	{29, "Memory by heap, memfd, shared memory, page cache", "KILL, CONTAIN", "", "", map[column]string{onMicroVM: "internal/backend/microvm TestConformance", onModel: "internal/backend/sim TestConformance"}},
	{30, "Spinning on every CPU with a storm of timers", "KILL", "", "", map[column]string{onMicroVM: "internal/backend/microvm TestConformance", onModel: "internal/backend/sim TestConformance"}},
	{31, "Filling disk and inodes, with data and with holes", "CONTAIN", "", "", map[column]string{onMicroVM: "internal/backend/microvm TestConformance", onModel: "internal/backend/sim TestConformance"}},
	{32, "Output without end, without lines, without text", "SURVIVE", "", "", map[column]string{onModel: "internal/backend/sim TestConformance", onNone: "internal/server TestEndlessOutput"}},
	{33, "A flood on the serial console", "CONTAIN", "this boundary has no serial console", "", map[column]string{onMicroVM: "internal/backend/microvm TestConsoleFlood"}},
	{34, "Processes that ignore signals, detach and stay", "KILL, CONTAIN", noModel, "", nil},
	{35, "Exhausting streams and descriptors of the guest channel", "SURVIVE", "", "", map[column]string{onMicroVM: "internal/backend/microvm TestManyStreams"}},
	{36, "Other ports and addresses over vsock", "DENY", "the model has no sockets", "the channel is a pair of FIFOs: that no vsock can be opened is shown", map[column]string{onMicroVM: "internal/backend/microvm TestHeld", onGVisor: "test/hostile TestPrograms; test/e2e TestDemo"}},
	{37, "Taking over the agent, and speaking in its name", "DENY, SURVIVE", noModel, "", map[column]string{onMicroVM: "internal/backend/microvm TestHostileAgent", onGVisor: "test/hostile TestChaos", onNone: "test/hostile TestOverAPipe"}},
	{38, "Breaking the agent's protocol: lengths, frames, ids, order, silence", "SURVIVE", "the model's agent is not replaced", "", map[column]string{onMicroVM: "internal/backend/microvm TestHostileAgent", onGVisor: "test/hostile TestChaos", onNone: "test/hostile TestOverAPipe; internal/guest FuzzHello"}},
	{39, "Hostile from the start: ready and then silent, or never ready", "SURVIVE", "the model's agent is not replaced", "gVisor has no guest kernel that could panic or reboot", map[column]string{onMicroVM: "internal/backend/microvm TestConformance, TestEnds, TestGivenLacks", onGVisor: "test/hostile TestChaos; internal/backend/gvisor TestConformance"}},
	{40, "Paths, links and special files against the file API", "DENY", "", "", map[column]string{onModel: "internal/orchestrator TestFiles"}},
	{41, "Artifacts that traverse, link, pretend or carry modes", "CONTAIN", "", "", map[column]string{onModel: "internal/orchestrator TestArtifactsStayInside, TestArtifactsAreBounded"}},
	{42, "Archives and directories that are bombs", "SURVIVE", noModel, "", map[column]string{onNone: "internal/template TestCompressions, TestHostileLayers, TestHostileArchives"}},
	{43, "Names and lines that a terminal or a log obeys", "CONTAIN", noModel, "", nil},
	{44, "Output that a browser or a spreadsheet obeys", "CONTAIN", "", "there is no console yet: what API and command line emit is shown", map[column]string{onNone: "internal/server TestSecurityHeaders"}},
	{45, "Structured results that parsers read differently", "CONTAIN", "", "", map[column]string{onNone: "internal/orchestrator TestCheckResult, FuzzCheckResult"}},
	{46, "Callback addresses that lead inside", "DENY", "there are no callbacks yet", "", nil},
	{47, "Probing for ways out: sockets, mounts, devices, kernel interfaces", "DENY", noModel, "", map[column]string{onMicroVM: "internal/backend/microvm TestHeld, TestWireHeld", onGVisor: "test/e2e TestDemo; internal/backend/gvisor TestConformance, TestHostSide, TestGuestSide"}},
	{48, "System calls a shared kernel would suffer from", "DENY", noModel, "", nil},
	{49, "Going round Landlock", "DENY", "no backend relies on Landlock yet", "", nil},
	{50, "Setuid, file capabilities, preloads", "DENY", noModel, "", nil},
	{51, "What /proc and /sys tell of host and tenants", "DENY", noModel, "", nil},
	{52, "Another tenant's ids", "DENY", "", "", map[column]string{onModel: "internal/orchestrator TestTenantsDoNotSeeEachOther"}},
	{53, "Roles, keys and tokens that do not fit", "DENY", "", "there are no JWTs yet", map[column]string{onNone: "internal/server TestEveryMethodNeedsItsScope; internal/auth TestParseRejects, TestRevocationAndExpiry, TestKeysAreNoStrongerThanTheirMaker"}},
	{54, "Floods of calls, slow bodies, huge JSON, rapid resets", "SURVIVE", "", "", map[column]string{onModel: "test/overload TestOverload", onNone: "internal/server TestSlowBody, TestSlowLoris, TestHTTP2Floods, TestHugeRequests, TestCrowdedJSON, TestThrottle"}},
	{55, "A hostile API process against the supervisor", "DENY", "API and supervisor are one process yet", "", nil},
	{56, "Forks that share randomness, clocks, names or sessions", "CONTAIN", "", "what a program of the sandbox's own keeps of randomness is its own to seed: TestForkBites shows that it repeats", map[column]string{onMicroVM: "internal/backend/microvm TestCopies; test/e2e TestMicroVM", onGVisor: "test/e2e TestFork, TestForkAgain, TestForkFresh, TestForkBites"}},
	{57, "Tampered snapshot, root file system or image", "DENY", "", "", map[column]string{onMicroVM: "internal/backend/microvm TestConformance, TestImages, TestGivenChecked, TestFirecrackerTampered, TestSnapshotOfOtherMonitor; test/e2e TestCreateWorkspace", onGVisor: "internal/backend/gvisor TestConformance, TestSnapshotOfOtherBuild", onNone: "internal/template TestTamperedImage, TestTamperingRegistry, TestDamage, TestVerify, TestCheck, TestBootDamaged"}},
	{58, "One tenant's snapshot restored by another", "DENY", "", "", map[column]string{onMicroVM: "internal/backend/microvm TestConformance, TestFirecrackerSuite", onGVisor: "internal/backend/gvisor TestConformance"}},
	{59, "What a reused sandbox still holds of the one before", "CONTAIN", "", "no sandbox is used twice: what is shown is what one gets that was ready, and what one program leaves for the next", map[column]string{onGVisor: "test/e2e TestPool, TestStandbyIsFresh"}},
	{60, "Evidence edited, cut, reordered, replaced or rolled back", "DENY", "decided above the backends", "", map[column]string{onGVisor: "test/hostile TestTampering", onNone: "internal/audit TestVerifyLog, TestVerifyNamesTheFlippedByte, TestVerifyNamesTheForgedRecord, TestVerifyTruncated, TestVerifyRolledBack, TestEvidenceTampered, TestWitness, TestDiskFull"}},
	{61, "Hostile tool servers and clients", "DENY", "there is no MCP server yet", "", nil},
	{62, "Another site's page talking to API or console", "DENY", "there is no console yet", "the API's check of the Host header is shown", map[column]string{onNone: "internal/server TestHost"}},
	{63, "Policies that never end, fail or fetch", "DENY", "decided above the backends", "unsigned or old bundles: there are none", map[column]string{onNone: "internal/policy/rego TestAgreement, TestTimeout, TestExpensive, TestCompileErrors; internal/policy TestJudge"}},
	{64, "Killed at each failpoint of each operation, and in the recovery", "SURVIVE", "", "sampled in `make test`; `make chaos` visits all", map[column]string{onMicroVM: "internal/backend/microvm TestKilledWhileCreating, TestKilledWhileSaving", onGVisor: "test/chaos TestCrashMatrix, TestServerKilledMidway", onModel: "internal/orchestrator TestCrashAnywhere, TestCrashInRecovery, TestCrashAnywhereInExec", onNone: "internal/audit TestKilledAnywhere"}},
	{65, "Forged and replayed attestation", "DENY", "there is no attestation yet", "", nil},
	{66, "Promotion of what was not reviewed", "DENY", "there are no releases yet", "", nil},
	{67, "Approvals by the hundred that look alike", "DENY", "there are no approvals yet", "", nil},
	{68, "Covert timing and sizes towards an allowed host", "SURVIVE", "budgets of bytes and connections are all that bounds it", "", nil},
}

// own are this package's own tests of a case in a column, with their verdicts.
func own(number int, c column) (list []string) {
	for _, test := range []string{"TestPrograms", "TestFiles", "TestSurface", "TestEgress", "TestBindings"} {
		for _, a := range attacks[test] {
			if a.number != number && !slices.Contains(a.also, number) || c != onGVisor && !(c == onModel && a.sim) {
				continue
			}
			name := test + "/"
			if test == "TestSurface" {
				name += heads[c] + "/"
			}
			list = append(list, fmt.Sprintf("**%s** %s%s", a.verdict, name, strings.ReplaceAll(a.title(), " ", "_")))
		}
	}
	return list
}

// cell is what a row says in a column.
func (r row) cell(c column) string {
	list := own(r.number, c)
	if l := r.linked[c]; l != "" {
		list = append(list, fmt.Sprintf("**%s** %s", r.verdict, l))
	}
	if len(list) > 0 {
		return strings.Join(list, "<br>")
	}
	switch {
	case c == onNone:
		return ""
	case c == onMicroVM:
		return "not run: not carried out on this backend yet"
	case c == onDocker || c == onKube:
		return "not run: no such backend yet"
	case r.not != "":
		return "not run: " + r.not
	case c == onModel && r.linked[onNone] != "", c == onGVisor && r.linked[onNone]+r.linked[onModel] != "":
		return "not run: decided above the backends"
	}
	return "not run: " + noModel
}

// render is the whole guide.
func render() string {
	var b strings.Builder
	var ran [columns]int
	for _, r := range rows {
		for c := range columns {
			if cell := r.cell(c); cell != "" && !strings.HasPrefix(cell, "not run") {
				ran[c]++
			}
		}
	}
	fmt.Fprintf(&b, `# Hostile cases by backend

Generated by `+"`go test ./test/hostile -run TestMatrix -update`"+`; `+"`make test`"+` fails when it differs from the tests. The numbers are those of the list
of %d hostile workloads; [hostile.md](hostile.md) says what every case must show. A cell names the tests that carry a case out, after the verdict they
assert, or says why it is not run. It says nothing of whether they passed: `+"`make test`"+` does.

| | %s |
|---|%s
| cases with a test | `, len(rows), strings.Join(heads[:], " | "), strings.Repeat("---|", int(columns)))
	for c := range columns {
		fmt.Fprintf(&b, "%d | ", ran[c])
	}
	fmt.Fprintf(&b, "\n\n| case | %s |\n|---|%s\n", strings.Join(heads[:], " | "), strings.Repeat("---|", int(columns)))
	for _, r := range rows {
		title := fmt.Sprintf("%d %s", r.number, r.title)
		if r.partly != "" {
			title += "<br>*in part: " + r.partly + "*"
		}
		fmt.Fprintf(&b, "| %s |", title)
		for c := range columns {
			fmt.Fprintf(&b, " %s |", r.cell(c))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// TestMatrix: the guide is what the tests are, every test it names is there, and
// every attack belongs to a case.
func TestMatrix(t *testing.T) {
	text := render()
	if *update {
		if err := os.WriteFile(guide, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if old, err := os.ReadFile(guide); err != nil || string(old) != text {
		t.Errorf("%s is not what the tests are (%v): go test ./test/hostile -run TestMatrix -update", guide, err)
	}
	for i, r := range rows {
		if r.number != i+1 || r.title == "" || r.verdict == "" {
			t.Errorf("row %d is %+v", i+1, r)
		}
		for _, l := range r.linked {
			for _, part := range strings.Split(l, "; ") {
				pkg, names, _ := strings.Cut(part, " ")
				for _, name := range strings.Split(names, ", ") {
					if !exists(t, pkg, name) {
						t.Errorf("case %d: there is no %s in %s", r.number, name, pkg)
					}
				}
			}
		}
	}
	for test, list := range attacks {
		if !exists(t, "test/hostile", test) {
			t.Errorf("there is no %s", test)
		}
		for _, a := range list {
			if a.number < 1 || a.number > len(rows) || !strings.Contains(rows[a.number-1].verdict, string(a.verdict)) {
				t.Errorf("%s/%s asserts %s, which its case does not know", test, a.title(), a.verdict)
			}
		}
	}
}

// exists looks for a test's declaration in a package's files.
func exists(t *testing.T, pkg, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", pkg, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Errorf("no tests in %s: %v", strconv.Quote(pkg), err)
	}
	return slices.ContainsFunc(files, func(f string) bool {
		b, err := os.ReadFile(f)
		return err == nil && strings.Contains(string(b), "\nfunc "+name+"(")
	})
}
