package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reaper names, in the environment of a process that reaps for a daemon, the
// daemon's program.
const reaper = "FIREBREAK_BENCH_REAPER"

// StartPool starts a daemon that keeps size sandboxes ready, and no more than most,
// and waits until it has them. What its sandboxes leave behind falls to a process of
// its own, so that CPU tells of everything that the daemon has caused. The program
// that calls it calls ServeReaper first thing in main.
func StartPool(ctx context.Context, binary, dir string, size, most int) (*Daemon, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	d, err := startDaemon(ctx, exec.Command("/proc/self/exe"), dir, nil, []string{reaper + "=" + binary,
		"FIREBREAK_POOL_SIZE=" + strconv.Itoa(size), "FIREBREAK_POOL_MAX=" + strconv.Itoa(most), "FIREBREAK_BACKEND=gvisor"})
	if err != nil {
		return nil, err
	}
	pid, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err == nil {
		d.pid, err = strconv.Atoi(string(pid))
	}
	if err == nil {
		err = d.Filled(ctx, size)
	}
	if err != nil {
		d.Stop()
		return nil, err
	}
	return d, nil
}

// ServeReaper is the process that reaps for a daemon of StartPool; elsewhere it
// returns at once. Its times of children are those of all that the daemon has begun
// and that is over, and was not the daemon's to wait for.
func ServeReaper() {
	binary := os.Getenv(reaper)
	if binary == "" {
		return
	}
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Unsetenv(reaper)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	fail(unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	p, err := os.StartProcess(binary, os.Args, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
	fail(err)
	for k, arg := range os.Args {
		if arg == "--data" {
			fail(os.WriteFile(filepath.Join(filepath.Dir(os.Args[k+1]), "pid"), []byte(strconv.Itoa(p.Pid)), 0o600))
		}
	}
	go func() {
		<-term
		unix.Kill(p.Pid, unix.SIGTERM)
	}()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		fail(err)
		if pid == p.Pid {
			os.Exit(ws.ExitStatus())
		}
	}
}

// CPU is what the daemon, the runtimes it has started and all sandboxes that are
// over have used since they began. Preconditions: d is of StartPool.
func (d *Daemon) CPU() (time.Duration, error) {
	const utime = 14 - 3 // proc_pid_stat(5) counts from 1, and the name ends the second
	var ticks int64
	for pid, fields := range map[int][]int{d.pid: {utime, utime + 1, utime + 2, utime + 3}, d.cmd.Process.Pid: {utime + 2, utime + 3}} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		for _, k := range fields {
			n, err := strconv.ParseInt(f[k], 10, 64)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * (time.Second / 100), nil // USER_HZ, which no architecture changes any more
}

// Shelf is what the pool has of a shape.
type Shelf struct {
	Ready  int `json:"ready"`
	Making int `json:"making"`
	Hits   int `json:"hits"`
	Misses int `json:"misses"`
	Failed int `json:"failed"`
}

// Shelves sums what the pool has.
func (d *Daemon) Shelves(ctx context.Context) (sum Shelf, err error) {
	out, err := d.Do(ctx, "GET", "/v1/pool", nil, 0)
	if err != nil {
		return sum, err
	}
	var r struct {
		Shelves []Shelf `json:"shelves"`
	}
	err = json.Unmarshal(out, &r)
	for _, s := range r.Shelves {
		sum = Shelf{sum.Ready + s.Ready, sum.Making + s.Making, sum.Hits + s.Hits, sum.Misses + s.Misses, sum.Failed + s.Failed}
	}
	return sum, err
}

// Filled waits until the pool has n ready and makes no more.
func (d *Daemon) Filled(ctx context.Context, n int) error {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		s, err := d.Shelves(ctx)
		if err != nil {
			return err
		}
		if s.Ready >= n && s.Making == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the pool has %+v after two minutes, and not %d", s, n)
		}
	}
}

// Claim makes a sandbox of what a pool has: of all that is the default.
func (d *Daemon) Claim(ctx context.Context) (id string, err error) { return d.Create(ctx, `{}`) }

// ExecCode runs a program of one line and checks what it prints.
func (d *Daemon) ExecCode(ctx context.Context, id string) error {
	m, err := d.post(ctx, "/v1/sandboxes/"+id+"/exec", `{"code":"print(6*7)"}`)
	if err == nil && m["stdout"] != "42\n" {
		err = fmt.Errorf("exec: %v", m)
	}
	return err
}

// ExecFirst is ExecCode by a stream, and how long it took to the first byte that is
// printed; the rest is waited for, and checked, behind that.
func (d *Daemon) ExecFirst(ctx context.Context, id string) (took time.Duration, err error) {
	start, printed := time.Now(), ""
	err = d.stream(ctx, "/v1/sandboxes/"+id+"/exec", `{"code":"print(6*7)"}`, func(item streamed) {
		if printed += item.Stdout.Text; took == 0 && printed != "" {
			took = time.Since(start)
		}
	})
	if err == nil && printed != "42\n" {
		err = fmt.Errorf("exec printed %q", printed)
	}
	return took, err
}

// EvalFirst is Eval by a stream, and how long it took to the result; the rest is waited
// for behind that.
func (d *Daemon) EvalFirst(ctx context.Context, id string) (took time.Duration, err error) {
	start, result := time.Now(), ""
	err = d.stream(ctx, "/v1/sandboxes/"+id+"/contexts/python/eval", `{"code":"6*7"}`, func(item streamed) {
		if result += item.Result.Text; took == 0 && result != "" {
			took = time.Since(start)
		}
	})
	if err == nil && result != "42" {
		err = fmt.Errorf("eval: %q", result)
	}
	return took, err
}

// streamed is an item of an answer in pieces, as far as it matters here.
type streamed struct {
	Stdout struct {
		Text string `json:"text"`
	} `json:"stdout"`
	Result struct {
		Text string `json:"text"`
	} `json:"result"`
	Error json.RawMessage `json:"error"`
}

// stream posts body and hands over the items of the answer as they come.
func (d *Daemon) stream(ctx context.Context, path, body string, take func(streamed)) error {
	req, err := http.NewRequestWithContext(ctx, "POST", d.URL+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+d.key)
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var item streamed
		if err := dec.Decode(&item); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if item.Error != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("POST %s: %s: %s", path, resp.Status, item.Error)
		}
		take(item)
	}
}

// Receipt ends a sandbox, demands a clean receipt and returns the paths that it
// names, for others to look for.
func (d *Daemon) Receipt(ctx context.Context, id string) (paths []string, err error) {
	out, err := d.Do(ctx, "DELETE", "/v1/sandboxes/"+id, nil, 0)
	if err != nil {
		return nil, err
	}
	var r struct {
		Receipt struct {
			Clean   bool `json:"clean"`
			Objects []struct {
				Name string `json:"name"`
			} `json:"objects"`
		} `json:"receipt"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, err
	}
	if !r.Receipt.Clean {
		return nil, fmt.Errorf("the receipt of %s is not clean: %s", id, out)
	}
	for _, o := range r.Receipt.Objects {
		if strings.HasPrefix(o.Name, "/") {
			paths = append(paths, o.Name)
		}
	}
	return paths, nil
}

// Leftovers counts what there still is of a daemon that has been stopped: processes
// that name its directory, and the paths that receipts said were gone.
func (d *Daemon) Leftovers(paths []string) (n int, err error) {
	for _, p := range paths {
		if _, err := os.Lstat(p); err == nil {
			n++
		}
	}
	_, processes, err := d.SandboxPSS()
	return n + processes, err
}

// SandboxRSS sums the resident sets of what SandboxPSS sums: what it would be if
// nothing were shared.
func (d *Daemon) SandboxRSS() (int64, error) {
	total, _, err := d.sandboxes("Rss:")
	return total, err
}

// python is the host's own interpreter, which is the one that the host template has.
// What the PATH finds first may be a script that looks for one.
const python = "/usr/bin/python3"

// HostPython is the host's own `python3 -c 'print(6*7)'`, to its output.
func HostPython(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	out, err := exec.CommandContext(ctx, python, "-c", "print(6*7)").Output()
	took := time.Since(start)
	if err == nil && string(out) != "42\n" {
		err = fmt.Errorf("python3 printed %q", out)
	}
	return took, err
}

// HostFirst is HostPython to the first byte in its pipe; its end is waited for, and what
// it printed is checked, behind that.
func HostFirst(ctx context.Context) (took time.Duration, err error) {
	cmd := exec.CommandContext(ctx, python, "-c", "print(6*7)")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	out := make([]byte, 1)
	_, err = io.ReadFull(pipe, out)
	took = time.Since(start)
	rest, err2 := io.ReadAll(pipe)
	if out = append(out, rest...); err == nil && string(out) != "42\n" {
		err = fmt.Errorf("python3 printed %q", out)
	}
	return took, errors.Join(err, err2, cmd.Wait())
}

// Flush is one fdatasync of a record that was appended to a file in dir.
func Flush(dir string) (c Column, end func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "floor-log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Column{}, nil, err
	}
	record := pattern(512)
	return Column{"floor: one fdatasync", func(context.Context) (time.Duration, error) {
		start := time.Now()
		_, err := f.Write(record)
		if err == nil {
			err = unix.Fdatasync(int(f.Fd()))
		}
		return time.Since(start), err
	}}, func() { f.Close() }, nil
}
