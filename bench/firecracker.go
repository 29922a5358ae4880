package bench

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/firecracker"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Raw is Firecracker without us: the same kernel, file systems and configuration as one
// of our machines has, its API called by who knows what to ask for. It has no jail, no
// control group, no journal, and nobody checks a digest.
type Raw struct {
	program string
	from    string // the jail of the machine it was copied from
	dir     string // of its own machines, one each
	machine firecracker.Machine
	port    uint32 // of the agent
	disk    string // the writable one's path, in a machine's directory
	made    int
}

// Files of a raw machine, relative to its directory.
const (
	rawAPI    = "api.sock"
	rawState  = "state"
	rawMemory = "memory"
)

// NewRaw learns from a machine of ours, whose jail is at jail, what one is, and takes
// an empty disk like its. Raw machines are made below dir.
func NewRaw(ctx context.Context, program, jail, disk, dir string) (*Raw, error) {
	m, err := apiOf(jail).Configured(ctx)
	if err != nil {
		return nil, err
	}
	r := &Raw{program: program, from: filepath.Join(dir, "pattern"), dir: dir}
	if r.port, err = portOf(m.Arguments); err != nil {
		return nil, err
	}
	relative := func(p *string) { *p = "." + *p } // as the jail's root is ours
	for _, p := range []*string{&m.Kernel, &m.Initial, &m.VSock} {
		relative(p)
	}
	files := map[string]string{m.Kernel: jail, m.Initial: jail}
	for k := range m.Drives {
		d := &m.Drives[k]
		relative(&d.Path)
		if d.Readonly {
			files[d.Path] = jail
		} else {
			r.disk = d.Path
		}
	}
	if r.disk == "" {
		return nil, errors.New("the machine has no disk to write to")
	}
	if err := os.Mkdir(r.from, 0o700); err != nil {
		return nil, err
	}
	for name := range files {
		if err := os.Link(filepath.Join(jail, name), filepath.Join(r.from, name)); err != nil {
			return nil, err
		}
	}
	r.machine = m
	return r, copySparse(ctx, disk, filepath.Join(r.from, r.disk))
}

// portOf finds the agent's port in what the guest is told.
func portOf(arguments string) (uint32, error) {
	for _, a := range strings.Fields(arguments) {
		value, ok := strings.CutPrefix(a, "firebreak=")
		if !ok {
			continue
		}
		var s struct {
			Port uint32 `json:"v"`
		}
		b, err := base64.RawURLEncoding.DecodeString(value)
		if err == nil {
			err = json.Unmarshal(b, &s)
		}
		if err == nil && s.Port == 0 {
			err = errors.New("it is not on a vsock")
		}
		return s.Port, err
	}
	return 0, errors.New("the machine was not told where its agent is")
}

// copySparse copies a file with its holes.
func copySparse(ctx context.Context, from, to string) error {
	out, err := exec.CommandContext(ctx, "cp", "--sparse=always", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cp %s: %w: %s", from, err, out)
	}
	return nil
}

// place makes the directory of another machine, with what there is at from in it.
func (r *Raw) place(ctx context.Context, from string) (dir string, err error) {
	r.made++
	dir = filepath.Join(r.dir, fmt.Sprint("m", r.made))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	list, err := os.ReadDir(from)
	for _, e := range list {
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		a, b := filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())
		if "./"+e.Name() == r.disk {
			err = copySparse(ctx, a, b)
		} else {
			err = os.Link(a, b)
		}
	}
	return dir, err
}

// process is a raw machine's.
type process struct {
	dir string
	cmd *exec.Cmd
	api *firecracker.Client
}

// run starts Firecracker in dir, and waits until its API answers.
func (r *Raw) run(ctx context.Context, dir string) (*process, error) {
	p := &process{dir: dir, cmd: exec.CommandContext(ctx, r.program, "--api-sock", rawAPI, "--level", "Error"), api: apiOf(dir)}
	p.cmd.Dir, p.cmd.Env = dir, append(os.Environ(), "PWD="+dir)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	for {
		_, err := p.api.Version(ctx)
		if err == nil {
			return p, nil
		}
		if ctx.Err() != nil || p.cmd.ProcessState != nil {
			p.end()
			return nil, err
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *process) end() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // killed
	_ = os.RemoveAll(p.dir)
}

// apiOf calls the process whose root or working directory is dir.
func apiOf(dir string) *firecracker.Client {
	return firecracker.New(func(ctx context.Context) (net.Conn, error) { return dialAt(ctx, dir, rawAPI) })
}

// dialAt connects to a socket in dir, whose path may be longer than a socket's can be.
func dialAt(ctx context.Context, dir, name string) (net.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}

// answer waits for the agent's first answer.
func (r *Raw) answer(ctx context.Context, dir string) error {
	for {
		conn, err := dialAt(ctx, dir, r.machine.VSock)
		if err == nil {
			if err = firecracker.Connect(ctx, conn, r.port); err == nil {
				return opened(ctx, conn)
			}
		}
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
		time.Sleep(time.Millisecond)
	}
}

// opened opens a session with the agent, which is its first answer, and ends it.
func opened(ctx context.Context, conn net.Conn) error {
	s, err := guest.Open(ctx, conn, guest.Config{})
	if err != nil {
		return err
	}
	return s.Close()
}

// begin starts Firecracker in dir, has do make its machine run, and waits for the agent.
func (r *Raw) begin(ctx context.Context, dir string, do func(*firecracker.Client) error) (p *process, took time.Duration, err error) {
	start := time.Now()
	if p, err = r.run(ctx, dir); err != nil {
		return nil, 0, err
	}
	if err = do(p.api); err == nil {
		err = r.answer(ctx, dir)
	}
	if took = time.Since(start); err != nil {
		p.end()
		return nil, 0, err
	}
	return p, took, nil
}

func (r *Raw) boot(ctx context.Context) (*process, time.Duration, error) {
	dir, err := r.place(ctx, r.from)
	if err != nil {
		return nil, 0, err
	}
	return r.begin(ctx, dir, func(c *firecracker.Client) error {
		if err := c.Configure(ctx, r.machine); err != nil {
			return err
		}
		return c.Start(ctx)
	})
}

// BootColumn boots a machine, from Firecracker's start to the agent's first answer.
func (r *Raw) BootColumn() Column {
	return Column{"raw Firecracker, booted", func(ctx context.Context) (time.Duration, error) {
		p, took, err := r.boot(ctx)
		if err == nil {
			p.end()
		}
		return took, err
	}}
}

// Save boots a machine, saves it, and returns what LoadColumn goes on from.
func (r *Raw) Save(ctx context.Context) (saved string, err error) {
	p, _, err := r.boot(ctx)
	if err != nil {
		return "", err
	}
	defer p.end()
	if err := errors.Join(p.api.Pause(ctx), p.api.CreateSnapshot(ctx, rawState, rawMemory)); err != nil {
		return "", err
	}
	return r.place(ctx, p.dir)
}

// LoadColumn has a machine go on from what was saved, to the agent's first answer.
func (r *Raw) LoadColumn(saved string) Column {
	return Column{"raw Firecracker, loaded", func(ctx context.Context) (time.Duration, error) {
		dir, err := r.place(ctx, saved)
		if err != nil {
			return 0, err
		}
		p, took, err := r.begin(ctx, dir, func(c *firecracker.Client) error { return c.LoadSnapshot(ctx, rawState, rawMemory, true) })
		if err == nil {
			p.end()
		}
		return took, err
	}}
}

// MachineColumn makes an instance, to the agent's first answer, and destroys it.
func MachineColumn(name string, make func(context.Context) (sandbox.Instance, error)) Column {
	return Column{name, func(ctx context.Context) (took time.Duration, err error) {
		start := time.Now()
		inst, err := make(ctx)
		if err != nil {
			return 0, err
		}
		defer func() {
			_, e := inst.Destroy(context.WithoutCancel(ctx))
			err = errors.Join(err, e)
		}()
		conn, err := inst.Dial(ctx)
		if err == nil {
			err = opened(ctx, conn)
		}
		return time.Since(start), err
	}}
}
