// Command kvm compares machines of the microvm backend with Firecracker alone, where
// there is KVM: the same kernel, file systems and configuration, both up to the same
// agent's first answer, interleaved in one run.
//
//	FIREBREAK_MACHINE_KERNEL=/path/of/vmlinux go run ./bench/kvm [-rounds N] [-out FILE]
//
// Without usable KVM, firecracker and jailer on the PATH, an uncompressed kernel and
// root it measures nothing, says why, and fails.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/bench"
	"github.com/firebreak-dev/firebreak/internal/backend/microvm"
	"github.com/firebreak-dev/firebreak/internal/bundle"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/vmimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// coldGoal bounds a create of ours by what Firecracker alone takes, and restoreGoal a
// restore, which checks what it goes on from and makes the copy another one.
const (
	coldGoal    = 1.10
	restoreGoal = 2.0
)

func main() {
	rounds := flag.Int("rounds", 20, "rounds per row")
	out := flag.String("out", "bench/results/kvm.json", "where to store the results")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench-kvm:", err)
		os.Exit(1)
	}
}

// report is what is stored.
type report struct {
	Time    time.Time      `json:"time"`
	CPUs    int            `json:"cpus"`
	Kernel  string         `json:"kernel"`
	Monitor string         `json:"monitor"`
	Results []bench.Result `json:"results"`
}

func run(ctx context.Context, out string, rounds int) (err error) {
	dir, err := os.MkdirTemp("", "fbkvm")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	programs, err := bundle.Open(dir)
	if err != nil {
		return fmt.Errorf("not run: %w", err)
	}
	defer programs.Close()
	b, err := microvm.New(microvm.Config{Dir: filepath.Join(dir, "machines"), Cache: filepath.Join(dir, "images"), Runtime: programs.Runtime,
		VMM: "firecracker", Kernel: os.Getenv("FIREBREAK_MACHINE_KERNEL"), Cgroup: fmt.Sprint("firebreak-bench-", os.Getpid())})
	if err != nil {
		return err
	}
	defer b.Close()
	info, err := b.Info(ctx)
	switch {
	case err != nil:
		return err
	case !info.Available:
		return fmt.Errorf("not run: %s; %s", info.Reason, info.Hint)
	case !info.Capabilities.Snapshot:
		return fmt.Errorf("not run: %s saves no machines", info.Version)
	}
	program, err := exec.LookPath("firecracker")
	if err != nil {
		return fmt.Errorf("not run: %w", err)
	}
	root, err := emptyRoot(dir)
	if err != nil {
		return err
	}
	rows, err := rowsOf(ctx, b, root, program, dir)
	if err != nil {
		return err
	}
	host, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	rep := report{Time: time.Now().UTC(), CPUs: runtime.NumCPU(), Kernel: strings.TrimSpace(string(host)), Monitor: info.Version}
	for _, row := range rows {
		row.Rounds = rounds
		r, err := bench.Measure(ctx, row)
		if err != nil {
			return err
		}
		fmt.Print(r)
		rep.Results = append(rep.Results, r)
	}
	data, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(out, append(data, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Println("stored in", out)
	for _, r := range rep.Results {
		if !r.Met {
			return fmt.Errorf("%s: the goal is not met", r.Name)
		}
	}
	return nil
}

// rowsOf makes a machine that the raw ones are like, saves it, and returns what is to
// be measured.
func rowsOf(ctx context.Context, b *microvm.Backend, root sandbox.Root, program, dir string) ([]bench.Row, error) {
	spec := func() sandbox.Spec { return sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root} }
	s := spec()
	pattern, err := b.Create(ctx, s)
	if err != nil {
		return nil, err
	}
	defer pattern.Destroy(context.WithoutCancel(ctx))
	id := string(s.Instance)
	jails, err := filepath.Glob(filepath.Join(dir, "machines", id, "jail", "*", id, "root"))
	if err != nil || len(jails) != 1 {
		return nil, fmt.Errorf("%d jails (%w)", len(jails), err)
	}
	disk := filepath.Join(dir, "empty-disk")
	f, err := os.Create(disk)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(vmimage.WriteDisk(f, microvm.DefaultDisk, vmimage.UUID("bench")), f.Close()); err != nil {
		return nil, err
	}
	raws := filepath.Join(dir, "raw")
	if err := os.Mkdir(raws, 0o700); err != nil {
		return nil, err
	}
	raw, err := bench.NewRaw(ctx, program, jails[0], disk, raws)
	if err != nil {
		return nil, err
	}
	saved, err := raw.Save(ctx)
	if err != nil {
		return nil, err
	}
	snap, err := pattern.(sandbox.Snapshotter).Snapshot(ctx, filepath.Join(dir, "snapshot"))
	if err != nil {
		return nil, err
	}
	create := func(ctx context.Context) (sandbox.Instance, error) { return b.Create(ctx, spec()) }
	restore := func(ctx context.Context) (sandbox.Instance, error) { return b.Restore(ctx, spec(), snap) }
	return []bench.Row{
		{Name: "kvm: create, to the agent's first answer", Columns: []bench.Column{raw.BootColumn(), bench.MachineColumn("ours: create", create)}, Ours: 1, Goal: coldGoal},
		{Name: "kvm: restore, to the agent's first answer", Columns: []bench.Column{raw.LoadColumn(saved), bench.MachineColumn("ours: restore", restore)}, Ours: 1, Goal: restoreGoal},
	}, nil
}

// emptyRoot is a root file system with mount points alone: what is in it is not what is
// measured.
func emptyRoot(dir string) (sandbox.Root, error) {
	root := filepath.Join(dir, "root")
	for _, d := range []string{"proc", "sys", "dev", "tmp", "etc", "root", guest.DefaultHome, filepath.Dir(guest.AgentPath)} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return sandbox.Root{}, err
		}
	}
	err := errors.Join(os.Chmod(filepath.Join(root, "tmp"), 0o1777), os.Chown(filepath.Join(root, guest.DefaultHome), guest.DefaultUID, guest.DefaultUID),
		os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::"+guest.DefaultHome+":/bin/sh\n"), 0o644))
	return sandbox.Root{Digest: "sha256:bench", Dir: root}, err
}
