package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Runsc is the peer: upstream's runtime used by hand, with the platform,
// network, overlay and limits that Firebreak uses, on the same root.
type Runsc struct {
	binary, dir string
	root        sandbox.Root
	n           int
}

// NewRunsc prepares the peer in dir.
func NewRunsc(binary, dir string, root sandbox.Root) *Runsc {
	return &Runsc{binary: binary, dir: dir, root: root}
}

// Close removes what upstream's runtime leaves behind: a mount that pins an empty
// network namespace in its state directory, and the parents of its control
// groups.
func (r *Runsc) Close() {
	unix.Unmount(filepath.Join(r.dir, "state", "null-netns"), unix.MNT_DETACH)
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/firebreak-bench")
	for _, g := range append(groups, "/sys/fs/cgroup/firebreak-bench") {
		os.Remove(g)
	}
}

func (r *Runsc) bundle(id string, args ...string) (string, error) {
	dir := filepath.Join(r.dir, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	mounts := []map[string]any{
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
		{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": []string{"ro"}},
	}
	for _, m := range r.root.Mounts {
		mounts = append(mounts, map[string]any{"destination": m.Target, "type": "bind", "source": m.Source, "options": []string{"ro", "rbind"}})
	}
	spec := map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"args": args, "cwd": "/", "env": []string{"PATH=/usr/bin:/bin"}, "noNewPrivileges": true,
			"user": map[string]any{"uid": 0, "gid": 0}, "capabilities": map[string]any{},
		},
		"root":     map[string]any{"path": r.root.Dir, "readonly": false},
		"hostname": id,
		"mounts":   mounts,
		"linux": map[string]any{
			"cgroupsPath": "/firebreak-bench/" + id,
			"resources": map[string]any{
				"memory": map[string]any{"limit": 320 << 20}, "pids": map[string]any{"limit": 1024},
				"cpu": map[string]any{"quota": 100000, "period": 100000},
			},
			"namespaces": []map[string]any{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}},
		},
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}

func (r *Runsc) command(ctx context.Context, args ...string) *exec.Cmd {
	global := []string{"--root", filepath.Join(r.dir, "state"), "--network=none", "--overlay2=root:dir=" + r.dir + ",size=1g"}
	return exec.CommandContext(ctx, r.binary, append(global, args...)...)
}

// RunTrue is `runsc run … true`, end to end.
func (r *Runsc) RunTrue(ctx context.Context) (time.Duration, error) {
	r.n++
	id := fmt.Sprintf("bench-run-%d-%d", os.Getpid(), r.n)
	dir, err := r.bundle(id, "/bin/true")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	cmd := r.command(ctx, "run", "--bundle", dir, id)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("runsc run: %w: %s", err, out)
	}
	return took, nil
}

// Start makes a sandbox that sleeps, and returns its id and how to end it.
func (r *Runsc) Start(ctx context.Context) (string, func(), error) {
	r.n++
	id := fmt.Sprintf("bench-live-%d-%d", os.Getpid(), r.n)
	dir, err := r.bundle(id, "/bin/sleep", "1000000")
	if err != nil {
		return "", nil, err
	}
	// No pipes: the detached sandbox would keep them open.
	if err := r.command(ctx, "run", "--detach", "--bundle", dir, id).Run(); err != nil {
		return "", nil, fmt.Errorf("runsc run --detach: %w", err)
	}
	return id, func() {
		r.command(context.Background(), "delete", "--force", id).Run()
		os.RemoveAll(dir)
	}, nil
}

// ExecTrue is `runsc exec ID true`.
func (r *Runsc) ExecTrue(ctx context.Context, id string) (time.Duration, error) {
	start := time.Now()
	out, err := r.command(ctx, "exec", id, "/bin/true").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("runsc exec: %w: %s", err, out)
	}
	return time.Since(start), nil
}
