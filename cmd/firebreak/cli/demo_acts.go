package cli

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

//go:embed demo/*.py
var demoPrograms embed.FS

// script is one of the programs in demo.
func script(name string, args ...string) client.Command {
	code, err := demoPrograms.ReadFile(path.Join("demo", name+".py"))
	if err != nil {
		panic(err) // it is compiled in
	}
	return client.Command{Language: "python", Code: string(code), Args: args}
}

// acts are the programs of the demo in the order in which they run.
func acts(b *bait) []act {
	return []act{metadataTheft(), exfiltration(b), ajar(b), forkBomb(), balloon(), loop(), diskFill(), escape(b), job()}
}

// sceneNames are the names of acts.
func sceneNames() (names []string) {
	for _, a := range acts(&bait{sink: &sink{}}) {
		names = append(names, a.name)
	}
	return names
}

// report reads a program's structured result.
func report[T any](run *v1.Run) (r T, ok bool) {
	return r, json.Unmarshal([]byte(run.GetResultJson()), &r) == nil
}

// tally says how often each answer came, the most frequent first.
func tally(answers map[string]string) string {
	n := map[string]int{}
	for _, a := range answers {
		n[a]++
	}
	keys := slices.SortedFunc(maps.Keys(n), func(a, b string) int {
		if n[a] != n[b] {
			return n[b] - n[a]
		}
		return strings.Compare(a, b)
	})
	for i, k := range keys {
		keys[i] = fmt.Sprintf("%d %s", n[k], k)
	}
	return strings.Join(keys, ", ")
}

// having are the keys whose answer is this one.
func having(answers map[string]string, answer string) (keys []string) {
	for k, a := range answers {
		if a == answer {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func metadataTheft() act {
	return act{
		name: "metadata", title: "Metadata theft: ask the cloud for this machine's credentials",
		options: client.RunOptions{Program: script("metadata")},
		verify: func(_ context.Context, _ *session, run *v1.Run) []finding {
			r, ok := report[struct {
				Answers         map[string]string
				Devices, Routes []string
			}](run)
			if !ok {
				return nil
			}
			connected := having(r.Answers, "connected")
			devices := strings.Join(r.Devices, ", ")
			return []finding{
				found(devices == "" || devices == "lo", "no network device", "inside: %s", orNone(devices)),
				found(len(r.Routes) == 0, "no route", "%d lead out%s", len(r.Routes), listed(r.Routes)),
				found(len(connected) == 0 && len(r.Answers) > 9, "nobody answers", "%d spellings, %d answered%s: %s",
					len(r.Answers), len(connected), listed(connected), tally(r.Answers)),
			}
		},
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	if s == "lo" {
		return "lo, the loopback, alone"
	}
	return s
}

func exfiltration(b *bait) act {
	return act{
		name: "exfiltration", title: "Exfiltration: find the secret, send it out by DNS and by raw connection",
		options: client.RunOptions{Program: script("exfiltration", append([]string{b.file, b.marker, fmt.Sprint(b.sink.port)}, b.sink.hosts...)...)},
		verify: func(_ context.Context, _ *session, run *v1.Run) []finding {
			r, ok := report[struct {
				Own              bool
				Bait             []string
				Files, Processes int
				DNS, Raw, Sink   map[string]string
			}](run)
			if !ok {
				return nil
			}
			ways := func(control string, answers map[string]string) finding {
				sent := having(answers, "sent")
				return found(len(sent) == 0 && len(answers) > 3, control, "%d ways, %d worked%s: %s", len(answers), len(sent), listed(sent), tally(answers))
			}
			// Whatever the program believes: the sink hears what leaves.
			heard, works := b.sink.heard(b.marker)
			return []finding{
				found(r.Own && len(r.Bait) == 0 && r.Files > 0 && r.Processes > 0, "no host secrets",
					"the bait: %d times in %d files and in /proc; the search found one of its own", len(r.Bait), r.Files),
				ways("no DNS", r.DNS),
				ways("no connection", r.Raw),
				found(works && heard == 0 && len(r.Sink) > 0, "the listener", "on %s: %d tries, %d bytes heard; and %s of ours, so it does listen",
					strings.Join(b.sink.hosts, " and "), len(r.Sink), heard, b.sink.said()),
			}
		},
	}
}

// killed is the finding every limit has: why the program ended, and how.
func killed(run *v1.Run, control string, reason sandbox.Reason, code int) finding {
	return found(run.GetReason() == string(reason) && exitCode(run.GetReason(), int(run.GetExitCode())) == code,
		control, "%s, exit code %d", endLine(run.GetReason(), run.GetDetail(), code), exitCode(run.GetReason(), int(run.GetExitCode())))
}

func forkBomb() act {
	return act{
		name: "fork-bomb", title: "Fork bomb: twice as many processes, and again, with 32 allowed", limit: "task limit",
		options: client.RunOptions{Sandbox: client.CreateOptions{PIDs: 32}, Program: script("fork_bomb")},
		verify: func(_ context.Context, _ *session, run *v1.Run) []finding {
			return []finding{killed(run, "task limit", sandbox.ReasonPIDs, exitKilled)}
		},
	}
}

func balloon() act {
	return act{
		name: "memory-balloon", title: "Memory balloon: 1 GB, with 64 MiB allowed", limit: "memory limit",
		options: client.RunOptions{Sandbox: client.CreateOptions{Memory: 64 << 20}, Program: script("balloon")},
		verify: func(_ context.Context, _ *session, run *v1.Run) []finding {
			return []finding{killed(run, "memory limit", sandbox.ReasonMemory, exitKilled)}
		},
	}
}

func loop() act {
	p := script("loop")
	p.Timeout = 2 * time.Second
	return act{
		name: "infinite-loop", title: "Infinite loop: deaf to signals, with two seconds to live",
		options: client.RunOptions{Program: p},
		verify: func(_ context.Context, _ *session, run *v1.Run) []finding {
			f := killed(run, "wall clock", sandbox.ReasonTimeout, exitTimeout)
			ms := run.GetTimingsMs().GetExecute()
			f.Measured += fmt.Sprintf(", %.1f s", ms/1000)
			if ms > 3500 {
				f.Outcome = failed
			}
			return []finding{f}
		},
	}
}

func diskFill() act {
	const limit = 32 << 20
	return act{
		name: "disk-fill", title: "Disk fill: write until nothing more fits, with 32 MiB allowed",
		options: client.RunOptions{Sandbox: client.CreateOptions{Disk: limit}, Program: script("disk_fill")},
		verify: func(_ context.Context, _ *session, run *v1.Run) []finding {
			r, ok := report[struct {
				Bytes int64
				Why   string
			}](run)
			if !ok {
				return nil
			}
			return []finding{found(r.Why == "ENOSPC" && r.Bytes <= limit && r.Bytes > 0, "disk limit", "%s after %s were written", r.Why, sandbox.FormatSize(r.Bytes))}
		},
	}
}

func escape(b *bait) act {
	return act{
		name: "escape", title: "Host escape: sockets, /proc, mounts, devices, the kernel itself",
		options: client.RunOptions{Program: script("escape", b.file)},
		verify: func(_ context.Context, _ *session, run *v1.Run) []finding {
			r, ok := report[struct {
				Tried                map[string]int
				Through              map[string][]string
				UID, Processes       int
				Capabilities, Kernel string
				Boot                 string // the kernel's boot id, which not every kernel has
			}](run)
			if !ok {
				return nil
			}
			probes := func(control, group, what string) finding {
				return found(r.Tried[group] > 0 && len(r.Through[group]) == 0, control, "%d of %d got through: %s%s",
					len(r.Through[group]), r.Tried[group], what, listed(r.Through[group]))
			}
			host := 0
			procs, _ := os.ReadDir("/proc")
			for _, p := range procs {
				if strings.Trim(p.Name(), "0123456789") == "" {
					host++
				}
			}
			intact, err := os.ReadFile(b.file)
			return []finding{
				probes("no host sockets", "sockets", "docker.sock and its like"),
				probes("own file system", "files", "the host's files"),
				found(err == nil && string(intact) == b.secret, "the bait", "its file is as we left it, %d bytes", len(intact)),
				probes("own /proc, /sys", "/proc and /sys", "kernel switches, PID 1"),
				found(r.Processes > 0 && r.Processes < host, "own processes", "%d seen inside, %d on this machine", r.Processes, host),
				probes("no mounts", "mounts", "mount, setns, system files"),
				probes("no devices", "devices", "disks, memory, KVM"),
				probes("own kernel", "kernel", "modules, kexec, bpf, reboot"),
				anotherKernel(r.Kernel, r.Boot),
				found(r.UID == 1000 && r.Capabilities != "" && strings.Trim(r.Capabilities, "0") == "", "no privilege", "uid %d, capabilities %s", r.UID, r.Capabilities),
			}
		},
	}
}

// anotherKernel tells a kernel that says so of itself, by what it is called and by when it
// was booted, from this machine's: a virtual machine may well run the same release.
func anotherKernel(version, boot string) finding {
	here, _ := os.ReadFile("/proc/version")
	booted, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if version == strings.TrimSpace(string(here)) {
		return found(boot != "" && boot != strings.TrimSpace(string(booted)), "another kernel", "%s inside and here; booted there as %.8s, here as %.8s", release(version), boot, booted)
	}
	return found(version != "", "another kernel", "%s inside, %s here", release(version), release(string(here)))
}

// release is the third word of /proc/version.
func release(version string) string {
	if w := strings.Fields(version); len(w) > 2 {
		return w[2]
	}
	return version
}

// job is honest work: a structured result and an artifact.
func job() act {
	return act{
		name: "job", title: "And an honest job: compute, report a result, leave a file",
		options: client.RunOptions{Program: script("job"), Artifacts: []string{"primes.txt"}},
		verify: func(ctx context.Context, s *session, run *v1.Run) []finding {
			r, ok := report[struct{ Count, Largest int }](run)
			if !ok {
				return nil
			}
			f := []finding{
				found(run.GetExitCode() == 0 && run.GetReason() == "done", "it simply works", "exit code %d, in %s (%s)", run.GetExitCode(), run.GetBackend(), run.GetIsolation()),
				found(r.Count == 1229 && r.Largest == 9973, "structured result", "%s", run.GetResultJson()),
				found(len(run.GetArtifacts()) == 1, "artifact", "%d of 1 kept", len(run.GetArtifacts())),
			}
			for _, art := range run.GetArtifacts() {
				h := sha256.New()
				n, err := s.ReadArtifact(ctx, run.GetId(), art.GetPath(), h)
				sum := hex.EncodeToString(h.Sum(nil))
				f = append(f, found(err == nil && n == art.GetSize() && sum == art.GetSha256(), "artifact's digest", "%s: %d bytes, SHA-256 %s..", art.GetPath(), n, sum[:12]))
			}
			return f
		},
	}
}

func counts(m map[string]int) string {
	parts := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%d %s", m[k], k))
	}
	return strings.Join(parts, ", ")
}
