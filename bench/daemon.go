package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// Daemon is a `firebreak serve` of its own, in a directory of its own, on a
// loopback port of its own.
type Daemon struct {
	Dir    string
	URL    string
	key    string
	cmd    *exec.Cmd
	pid    int // the daemon's, which is cmd's unless that reaps for it
	client *http.Client
	local  *http.Client // over the local socket
}

// StartDaemon starts binary, on the host of an internet unless that is nil, and
// waits until it is ready, with env beside this process's environment. Stop ends it.
func StartDaemon(ctx context.Context, binary, dir string, on *internet.Internet, env ...string) (*Daemon, error) {
	return startDaemon(ctx, exec.Command(binary), dir, on, env)
}

// startDaemon is StartDaemon with the command to which the daemon's arguments are
// added.
func startDaemon(ctx context.Context, cmd *exec.Cmd, dir string, on *internet.Internet, env []string) (*Daemon, error) {
	there, begin, transport := func(f func() error) error { return f() }, (*exec.Cmd).Start, new(http.Transport)
	if on != nil {
		there, begin, transport = on.OnHost, on.Start, on.Transport()
	}
	transport.MaxIdleConnsPerHost = 4
	var port string
	err := there(func() (err error) {
		port, err = freePort()
		return err
	})
	if err != nil {
		return nil, err
	}
	d := &Daemon{Dir: dir, URL: "http://127.0.0.1:" + port, client: &http.Client{Transport: transport}}
	socket := filepath.Join(dir, "firebreak.sock")
	d.local = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	log, err := os.Create(filepath.Join(dir, "serve.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd = cmd
	d.cmd.Args = append(d.cmd.Args, "serve", "--data", filepath.Join(dir, "data"), "--listen", "127.0.0.1:"+port,
		"--socket", socket, "--stop-sandboxes")
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Env = append(os.Environ(), "FIREBREAK_TENANT_REQUESTS=0", "FIREBREAK_TENANT_KEY_REQUESTS=0") // the bench is a flood
	d.cmd.Env = append(d.cmd.Env, env...)
	if on != nil {
		d.cmd.Env = append(d.cmd.Env, "SSL_CERT_FILE="+on.Authority.File)
	}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := begin(d.cmd); err != nil {
		return nil, err
	}
	d.pid = d.cmd.Process.Pid
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		resp, err := d.client.Get(d.URL + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			d.Stop()
			out, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("the daemon is not ready after 30 s:\n%s", out)
		}
	}
	key, err := os.ReadFile(filepath.Join(dir, "data", "api-key"))
	if err != nil {
		d.Stop()
		return nil, err
	}
	d.key = strings.TrimSpace(string(key))
	return d, nil
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// Stop ends the daemon and its sandboxes.
func (d *Daemon) Stop() {
	d.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { d.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute): // a hundred sandboxes on a busy machine take their time; killed, it leaves them
		d.cmd.Process.Kill()
		<-done
	}
}

// Do sends one request over TCP with the key and returns the body of a 2xx
// answer.
func (d *Daemon) Do(ctx context.Context, method, path string, body io.Reader, size int64) ([]byte, error) {
	return d.do(ctx, d.client, method, path, body, size)
}

func (d *Daemon) do(ctx context.Context, client *http.Client, method, path string, body io.Reader, size int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, d.URL+path, body)
	if err != nil {
		return nil, err
	}
	if size > 0 {
		req.ContentLength = size
	}
	req.Header.Set("Authorization", "Bearer "+d.key)
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, out)
	}
	return out, nil
}

func (d *Daemon) post(ctx context.Context, path, body string) (map[string]any, error) {
	out, err := d.Do(ctx, "POST", path, strings.NewReader(body), int64(len(body)))
	if err != nil {
		return nil, err
	}
	var m map[string]any
	return m, json.Unmarshal(out, &m)
}

// Create makes a sandbox and returns its id.
func (d *Daemon) Create(ctx context.Context, body string) (string, error) {
	m, err := d.post(ctx, "/v1/sandboxes", body)
	if err != nil {
		return "", err
	}
	id, _ := m["id"].(string)
	if id == "" {
		return "", fmt.Errorf("create answered without an id: %v", m)
	}
	return id, nil
}

// ExecTrue runs `true` in a sandbox and checks that it ended well.
func (d *Daemon) ExecTrue(ctx context.Context, id string) error {
	m, err := d.post(ctx, "/v1/sandboxes/"+id+"/exec", `{"command":"/bin/true"}`)
	if err == nil && m["exit_code"] != 0.0 {
		err = fmt.Errorf("exec: %v", m)
	}
	return err
}

// Destroy ends a sandbox and demands a clean receipt.
func (d *Daemon) Destroy(ctx context.Context, id string) error {
	out, err := d.Do(ctx, "DELETE", "/v1/sandboxes/"+id, nil, 0)
	if err == nil && !bytes.Contains(out, []byte(`"clean":true`)) && !bytes.Contains(out, []byte(`"clean": true`)) {
		err = fmt.Errorf("the receipt of %s is not clean: %s", id, out)
	}
	return err
}

// RSS is the daemon's resident memory in bytes, from /proc.
func (d *Daemon) RSS() (int64, error) { return procField(d.pid, "status", "VmRSS:") }

// procField reads a "name: N kB" line of a file below /proc/<pid>.
func procField(pid int, file, name string) (int64, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no %s in /proc/%d/%s", name, pid, file)
}

// SandboxPSS sums the proportional set size of every process of the daemon's
// sandboxes: those whose command line names something below its directory
// (sentry and gofer), and whatever shares a memory control group with one of
// them (the stubs, which have no command line).
func (d *Daemon) SandboxPSS() (total int64, processes int, err error) { return d.sandboxes("Pss:") }

// sandboxes sums a field of smaps_rollup over them.
func (d *Daemon) sandboxes(field string) (total int64, processes int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, 0, err
	}
	groups := map[string]bool{}
	group := map[int]string{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == d.pid || pid == d.cmd.Process.Pid {
			continue
		}
		cgroup, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if err != nil {
			continue // it ended meanwhile
		}
		group[pid] = memoryGroup(string(cgroup))
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && bytes.Contains(cmdline, []byte(d.Dir)) {
			groups[group[pid]] = true
		}
	}
	for pid, g := range group {
		if !groups[g] {
			continue
		}
		pss, err := procField(pid, "smaps_rollup", field)
		if err != nil {
			continue
		}
		total += pss
		processes++
	}
	return total, processes, nil
}

// memoryGroup is the line of the memory controller (v1) or the only one (v2) in
// a /proc/<pid>/cgroup.
func memoryGroup(lines string) string {
	unified := ""
	for line := range strings.Lines(lines) {
		if strings.Contains(line, ":memory:") {
			return line
		}
		if strings.HasPrefix(line, "0::") {
			unified = line
		}
	}
	return unified
}

// GetColumn fetches a sandbox's record over one kept-alive connection.
func (d *Daemon) GetColumn(id string) Column {
	return Column{"ours", func(ctx context.Context) (time.Duration, error) {
		return repeat(ctx, getsPerRound, func() error { return get(ctx, d.client, d.URL+"/v1/sandboxes/"+id, d.key) })
	}}
}

// WriteColumn stores size bytes in a file inside the sandbox, over the local
// socket, as the floor uses one, too.
func (d *Daemon) WriteColumn(id string, size int) Column {
	data := pattern(size)
	return Column{"ours: PUT files", func(ctx context.Context) (time.Duration, error) {
		start := time.Now()
		_, err := d.do(ctx, d.local, http.MethodPut, "/v1/sandboxes/"+id+"/files?path=bench.bin", bytes.NewReader(data), int64(size))
		return time.Since(start), err
	}}
}

// Eval runs a trivial turn in a sandbox's own Python context, and checks what came
// of it.
func (d *Daemon) Eval(ctx context.Context, id string) error {
	m, err := d.post(ctx, "/v1/sandboxes/"+id+"/contexts/python/eval", `{"code":"6*7"}`)
	if err != nil {
		return err
	}
	results, _ := m["results"].([]any)
	if len(results) != 1 || results[0].(map[string]any)["text"] != "42" {
		err = fmt.Errorf("eval: %v", m)
	}
	return err
}

// FreshPython runs the same in an interpreter that is started for it.
func (d *Daemon) FreshPython(ctx context.Context, id string) error {
	m, err := d.post(ctx, "/v1/sandboxes/"+id+"/exec", `{"command":"python3","args":["-c","print(6*7)"]}`)
	if err == nil && m["stdout"] != "42\n" {
		err = fmt.Errorf("exec: %v", m)
	}
	return err
}
