// Package layering enforces the import ranks of ARCHITECTURE.md.
package layering

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/firebreak-dev/firebreak/"

// ranks is the table of ARCHITECTURE.md. An entry ending in "/" covers what is
// below it. An import points to a strictly lower rank; cmd and test code stand
// above all.
var ranks = []struct {
	path string
	rank int
}{
	{"sandbox", 0},
	{"api/gen/", 0},
	{"api", 0},
	{"images", 0},
	{"api/gen/firebreak/v1/firebreakv1connect", 1},
	{"internal/failpoint", 0},
	{"internal/sysmon", 0},
	{"internal/portproxy", 0},
	{"internal/guest/runtime", 0},
	{"internal/netaddr", 0},
	{"internal/gitname", 0},
	{"internal/guest", 1},
	{"internal/policy", 1},
	{"internal/policy/rego", 2},
	{"internal/store", 1},
	{"internal/broker", 1},
	{"internal/bundle", 1},
	{"internal/guest/probe", 1},
	{"internal/guest/driver", 1},
	{"internal/guest/agent", 2},
	{"internal/guest/machine", 2},
	{"internal/vmimage", 1},
	{"internal/snapimage", 1},
	{"internal/firecracker", 1}, {"internal/firecracker/fake", 0},
	{"internal/audit", 2},
	{"internal/auth", 2},
	{"internal/filebody", 1}, {"internal/archive", 2}, {"internal/event", 2},
	{"internal/template", 2},
	{"internal/backup", 3},
	{"internal/egress/dns", 2},
	{"internal/egress/wire", 2},
	{"internal/egress/authority", 2},
	{"internal/egress/inspect", 2},
	{"internal/egress", 3},
	{"internal/egress/control", 4},
	{"internal/attest", 3},
	{"internal/backend/", 3},
	{"internal/pool", 4},
	{"internal/orchestrator", 5},
	{"internal/release", 6},
	{"internal/trigger", 6},
	{"internal/webhook", 6},
	{"internal/service", 7},
	{"internal/server", 8},
	{"internal/e2b", 8},
	{"internal/e2b/gen/", 0},
	{"internal/e2b/gen/process/processconnect", 1},
	{"internal/e2b/gen/filesystem/filesystemconnect", 1},
	{"internal/mcp", 8},

	{"client", top},
	{"sandbox/backendtest", top},
	{"sandbox/backendtest/", top},
	{"cmd/", top},
	{"bench", top},
	{"bench/", top},
	{"test/", top},
	{"tools/", top},
	{"internal/bundle/pack", top},
}

const top = 100

// rankOf finds the most specific entry for an import path below the module.
func rankOf(path string) (int, bool) {
	best, rank := -1, 0
	for _, r := range ranks {
		match := path == r.path || strings.HasSuffix(r.path, "/") && strings.HasPrefix(path, r.path)
		if match && len(r.path) > best {
			best, rank = len(r.path), r.rank
		}
	}
	return rank, best >= 0
}

type pkg struct {
	Dir        string
	ImportPath string
	Imports    []string
	GoFiles    []string
}

// packages lists the module for Linux, without compiling anything.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=Dir,ImportPath,Imports,GoFiles", module+"...")
	cmd.Dir = "../.."
	cmd.Env = append(cmd.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, err.(*exec.ExitError).Stderr)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		rank, ok := rankOf(from)
		if !ok {
			t.Errorf("%s has no rank: add it to ARCHITECTURE.md and to this table, or do without the package", from)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module)
			if !ours || rank == top {
				continue
			}
			if r, ok := rankOf(to); !ok || r >= rank {
				t.Errorf("%s (rank %d) imports %s (rank %d): imports point to a strictly lower rank", from, rank, to, r)
			}
		}
	}
}

// mayStartProcesses lists who may start processes or make privileged system
// calls on the host. The agent, the probe and a machine's first process do so inside a sandbox.
func mayStartProcesses(path string) bool {
	for _, p := range []string{"internal/backend/", "internal/egress", "internal/template", "internal/guest/agent", "internal/guest/machine", "internal/guest/probe",
		"cmd/", "test/", "bench", "sandbox/backendtest", "internal/bundle/pack", "tools/"} {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// privileged names the calls of packages syscall and x/sys/unix that change
// the machine rather than a file.
var privileged = []string{"Mount", "Unmount", "Unshare", "Setns", "Chroot", "PivotRoot", "Mknod", "Setuid", "Setgid", "Setresuid", "Setresgid",
	"ForkExec", "StartProcess", "Exec", "Reboot", "Sethostname", "PtraceAttach", "Clone", "Fexecve"}

func TestOnlyBackendsTouchTheHost(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if mayStartProcesses(from) {
			continue
		}
		if slices.Contains(p.Imports, "os/exec") {
			t.Errorf("%s imports os/exec: only backends, egress, template and cmd start processes", from)
		}
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "unix" || x.Name == "syscall") && slices.Contains(privileged, sel.Sel.Name) {
					t.Errorf("%s/%s calls %s.%s: only backends, egress, template and cmd make privileged calls", from, file, x.Name, sel.Sel.Name)
				}
				return true
			})
		}
	}
}

// TestAgentIsSmall keeps what runs beside hostile code auditable.
func TestAgentIsSmall(t *testing.T) {
	allowed := []string{module + "internal/guest", module + "sandbox", "golang.org/x/sys/unix", "github.com/mdlayher/vsock"}
	forbidden := []string{"net/http", "os/exec", "crypto/tls"}
	for _, p := range packages(t) {
		if p.ImportPath != module+"internal/guest/agent" {
			continue
		}
		for _, imp := range p.Imports {
			if strings.Contains(imp, ".") && !slices.Contains(allowed, imp) || slices.Contains(forbidden, imp) {
				t.Errorf("internal/guest/agent imports %s: only guest, the standard library without net/http, x/sys and vsock", imp)
			}
		}
	}
}

// TestClientsUseTheWire keeps the SDK what any client could be.
func TestClientsUseTheWire(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if from != "client" {
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module)
			if ours && to != "sandbox" && !strings.HasPrefix(to, "api/gen/") {
				t.Errorf("%s imports %s: clients use api/gen, sandbox and the network", from, to)
			}
		}
	}
}

// TestCommandsUseTheClient: the command line reaches a server through package
// client and by no other way. What it has of its own packs files, looks at evidence,
// policies and repositories offline.
func TestCommandsUseTheClient(t *testing.T) {
	const commands = "cmd/firebreak/cli"
	seen := false
	for _, p := range packages(t) {
		if strings.TrimPrefix(p.ImportPath, module) != commands {
			continue
		}
		seen = true
		for _, imp := range p.Imports {
			to := strings.TrimPrefix(imp, module)
			switch {
			case strings.HasPrefix(imp, "connectrpc.com/"), strings.HasPrefix(imp, "google.golang.org/grpc"):
				t.Errorf("%s imports %s: calls belong into client", commands, imp)
			case to == imp, slices.Contains([]string{"client", "sandbox", "api/gen/firebreak/v1", "cmd/firebreak/config", "cmd/firebreak/gitsource", "internal/archive", "internal/audit", "internal/guest",
				"internal/netaddr", "internal/policy", "internal/policy/rego"}, to):
			default:
				t.Errorf("%s imports %s: a server does that, behind client", commands, to)
			}
		}
	}
	if !seen {
		t.Error("there is no " + commands)
	}
}
