package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Client calls one Firecracker process. It is safe for concurrent use; the API
// itself answers one call after the other.
type Client struct{ http http.Client }

// maxAnswer bounds an answer's body: the largest we ask for has a few lines.
const maxAnswer = 64 << 10

// New returns a client whose connections dial makes. It connects when it is used.
func New(dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{http.Client{
		Timeout: 10 * time.Minute, // a snapshot writes all memory, and waits until it is on the disk
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Fault is Firecracker's refusal of a call.
type Fault struct {
	Method, Path string
	Status       int
	Message      string // of Firecracker, printable, at most 500 bytes
}

// Error implements error.
func (f *Fault) Error() string {
	return fmt.Sprintf("firecracker: %s %s: %d: %s", f.Method, f.Path, f.Status, f.Message)
}

// call sends body, if not nil, and decodes the answer into result, if not nil.
func (c *Client) call(ctx context.Context, method, path string, body, result any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, in)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	case len(b) > maxAnswer:
		return fmt.Errorf("firecracker: %s %s: an answer of more than %d bytes", method, path, maxAnswer)
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent:
		return &Fault{method, path, resp.StatusCode, faultMessage(b)}
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(b, result); err != nil {
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	}
	return nil
}

// faultMessage is the message of an error's body, or the body where it is none.
func faultMessage(b []byte) string {
	var e struct {
		Message string `json:"fault_message"`
	}
	text := string(b)
	if json.Unmarshal(b, &e) == nil && e.Message != "" {
		text = e.Message
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text)
	return text[:min(len(text), 500)]
}

// Paused is the state of a machine that was.
const Paused = "Paused"

// Instance is what a Firecracker process says of itself.
type Instance struct {
	ID      string `json:"id"`
	State   string `json:"state"` // "Not started", "Running" or Paused
	Version string `json:"vmm_version"`
}

// Instance describes the process.
func (c *Client) Instance(ctx context.Context) (i Instance, err error) {
	return i, c.call(ctx, http.MethodGet, "/", nil, &i)
}

// Version is the process's.
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct {
		Version string `json:"firecracker_version"`
	}
	err := c.call(ctx, http.MethodGet, "/version", nil, &v)
	return v.Version, err
}

// The releases that are supported: from the first whose machines describe
// themselves by ACPI, which distributions' kernels need, to the next major one. From
// firstToSave on snapshots are generally available, and a machine's vsock tells the
// guest that its connections ended with one (since 1.10).
const (
	minMinor    = 8
	firstToSave = 13
	major       = 1
)

// FirstToSave is the first release whose machines can be saved.
const FirstToSave = "1.13"

// Supported returns nil for a version this package was written for, such as
// "1.13.1" or "v1.13.1".
func Supported(version string) error {
	x, y, err := release(version)
	if err == nil && (x != major || y < minMinor) {
		err = fmt.Errorf("firecracker %d.%d is not supported: %d.%d or newer, below %d.0, is", x, y, major, minMinor, major+1)
	}
	return err
}

// Saves reports whether machines of a version that is supported can be saved.
func Saves(version string) bool {
	_, y, err := release(version)
	return err == nil && y >= firstToSave
}

// Deaf reports whether machines of a version hear nothing of the host any more when
// they were paused, and resumed without a snapshot (their pull request 6100).
func Deaf(version string) bool {
	_, y, err := release(version)
	return err == nil && y == 16
}

func release(version string) (x, y int, err error) {
	f := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(f) < 2 {
		return 0, 0, fmt.Errorf("firecracker says it is version %.40q", version)
	}
	x, err1 := strconv.Atoi(f[0])
	y, err2 := strconv.Atoi(f[1])
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("firecracker says it is version %.40q", version)
	}
	return x, y, nil
}

// Machine is a machine's configuration.
type Machine struct {
	CPUs      int
	MemoryMiB int64
	Kernel    string
	Initial   string // initial file system; "" for none
	Arguments string // of the kernel
	Drives    []Drive
	NICs      []NIC
	CID       uint32 // the guest's address; 3 or more
	VSock     string // the socket connections to the guest are made through
}

// Drive is a file as a disk. The guest sees them in their order.
type Drive struct {
	ID       string
	Path     string
	Readonly bool
	Rate     RateLimiter // the zero value: none
}

// NIC is a TAP of the process's network namespace as a network device.
type NIC struct {
	ID     string
	Device string // the TAP
	MAC    string // the guest's
}

type machineConfig struct {
	CPUs   int   `json:"vcpu_count"`
	Memory int64 `json:"mem_size_mib"`
}

type bootSource struct {
	Kernel    string `json:"kernel_image_path"`
	Initial   string `json:"initrd_path,omitempty"`
	Arguments string `json:"boot_args,omitempty"`
}

type drive struct {
	ID       string `json:"drive_id"`
	Path     string `json:"path_on_host"`
	Root     bool   `json:"is_root_device"`
	Readonly bool   `json:"is_read_only"`

	Rate *RateLimiter `json:"rate_limiter,omitempty"`
}

type networkInterface struct {
	ID     string `json:"iface_id"`
	Device string `json:"host_dev_name"`
	MAC    string `json:"guest_mac,omitempty"`
}

type vsock struct {
	CID  uint32 `json:"guest_cid"`
	Path string `json:"uds_path"`
}

// Configure says what the machine is to be. It is called once, before Start. There
// is no balloon, no metadata service, and no network device but those of m.
func (c *Client) Configure(ctx context.Context, m Machine) error {
	type put struct {
		path string
		body any
	}
	puts := []put{
		{"/machine-config", machineConfig{m.CPUs, m.MemoryMiB}},
		{"/boot-source", bootSource{m.Kernel, m.Initial, m.Arguments}},
	}
	for _, d := range m.Drives {
		puts = append(puts, put{"/drives/" + d.ID, drive{ID: d.ID, Path: d.Path, Readonly: d.Readonly, Rate: d.Rate.some()}})
	}
	for _, n := range m.NICs {
		puts = append(puts, put{"/network-interfaces/" + n.ID, networkInterface(n)})
	}
	for _, p := range append(puts, put{"/vsock", vsock{m.CID, m.VSock}}) {
		if err := c.call(ctx, http.MethodPut, p.path, p.body, nil); err != nil {
			return err
		}
	}
	return nil
}

// Configured is what the process was configured with.
func (c *Client) Configured(ctx context.Context) (m Machine, err error) {
	var all struct {
		Machine machineConfig      `json:"machine-config"`
		Boot    bootSource         `json:"boot-source"`
		Drives  []drive            `json:"drives"`
		NICs    []networkInterface `json:"network-interfaces"`
		VSock   vsock              `json:"vsock"`
	}
	err = c.call(ctx, http.MethodGet, "/vm/config", nil, &all)
	m = Machine{CPUs: all.Machine.CPUs, MemoryMiB: all.Machine.Memory, Kernel: all.Boot.Kernel, Initial: all.Boot.Initial, Arguments: all.Boot.Arguments,
		CID: all.VSock.CID, VSock: all.VSock.Path}
	for _, d := range all.Drives {
		one := Drive{ID: d.ID, Path: d.Path, Readonly: d.Readonly}
		if d.Rate != nil {
			one.Rate = *d.Rate
		}
		m.Drives = append(m.Drives, one)
	}
	for _, n := range all.NICs {
		m.NICs = append(m.NICs, NIC(n))
	}
	return m, err
}

// Start runs the configured machine.
func (c *Client) Start(ctx context.Context) error {
	return c.call(ctx, http.MethodPut, "/actions", struct {
		Type string `json:"action_type"`
	}{"InstanceStart"}, nil)
}

type state struct {
	State string `json:"state"`
}

// Pause stops the machine's processors. Idempotent.
func (c *Client) Pause(ctx context.Context) error {
	return c.call(ctx, http.MethodPatch, "/vm", state{"Paused"}, nil)
}

// Resume lets them go on. Idempotent.
func (c *Client) Resume(ctx context.Context) error {
	return c.call(ctx, http.MethodPatch, "/vm", state{"Resumed"}, nil)
}

// CreateSnapshot writes a paused machine to two files. Cost: its memory is
// written.
func (c *Client) CreateSnapshot(ctx context.Context, statePath, memoryPath string) error {
	return c.call(ctx, http.MethodPut, "/snapshot/create", struct {
		Type   string `json:"snapshot_type"`
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
	}{"Full", statePath, memoryPath}, nil)
}

type backend struct {
	Type string `json:"backend_type"`
	Path string `json:"backend_path"`
}

// LoadSnapshot makes a process that was never configured the machine of a
// snapshot, running if resume is set. The memory file is mapped, privately and to be
// read only: it must stay as it is for as long as the machine lives. Everything else
// has to be where the machine had it that was saved: drives, and a place for the
// vsock's socket. Nothing is asked for that not all versions know: no override of the
// vsock (since 1.16), of network devices (1.12) or of the clock (1.16). A process
// that refuses ends.
func (c *Client) LoadSnapshot(ctx context.Context, statePath, memoryPath string, resume bool) error {
	return c.call(ctx, http.MethodPut, "/snapshot/load", struct {
		State  string  `json:"snapshot_path"`
		Memory backend `json:"mem_backend"`
		Resume bool    `json:"resume_vm"`
	}{statePath, backend{"File", memoryPath}, resume}, nil)
}
