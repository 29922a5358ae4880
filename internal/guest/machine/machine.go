// Package machine is the first process of a virtual machine: what stands between
// a kernel that has just started and the agent of a sandbox.
//
//	kernel … rdinit=/init firebreak=<Settings>    → Boot, in the initial file system
//	firebreak-guest enter                         → Enter, PID 1 of a namespace of its own
//	firebreak-guest init                          → the agent, as in every other boundary
//
// Boot loads the modules it was packed with, mounts the root image read-only, the
// disk and an overlay of the two, and starts the agent in namespaces of its own,
// with the capabilities a container's root has and no more. It stays behind as
// what no user code can see or signal: when the agent has ended it says so on the
// console and switches the machine off.
//
// Everything here runs inside the boundary. The host relies on none of it.
package machine

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
)

// Settings is what the host tells a machine on the kernel's command line. It
// holds no secret: whoever runs in the machine may read it.
type Settings struct {
	Hostname string `json:"h,omitempty"`
	// Readonly leaves no writable layer on the root; /tmp and the home have one.
	Readonly bool `json:"ro,omitempty"`
	// PIDs is how many tasks the guest's kernel lets user code have: a backstop of
	// the agent's limit. 0 is none.
	PIDs int `json:"p,omitempty"`
	// VSock is the port the agent is served at; without one it is the virtio port
	// called PortName.
	VSock uint32 `json:"v,omitempty"`
	// Given is the kind of file system of a root image that somebody else made: it
	// is furnished with what a sandbox needs. "" is one of package vmimage.
	Given string `json:"f,omitempty"`
	// Orders is the port of the vsock that Boot itself is given orders at; see Order.
	// Without VSock it is the virtio port called OrdersName.
	Orders uint32 `json:"o,omitempty"`
	// Probe says hello on the channel and no more: no image is needed.
	Probe bool `json:"t,omitempty"`
	// Network is that of a machine with a network device; nil: there is none.
	Network *Network `json:"n,omitempty"`
	// Test asks for what tests need: TestFreeze, TestKeys.
	Test string `json:"x,omitempty"`
}

// Network is what a machine's only network device is to be.
type Network struct {
	Link       string       `json:"l"`
	Address    netip.Prefix `json:"a"`
	Gateway    netip.Addr   `json:"g"` // answers DNS, and is the way to everything else
	GatewayMAC string       `json:"m"`
}

// What tests ask for.
const (
	TestFreeze = "freeze" // an agent that never answers
	TestKeys   = "keys"   // /proc/sysrq-trigger is root's inside
)

// PortName is what the agent's virtio port is called.
const PortName = "firebreak.agent"

// OrdersName is what the virtio port of Boot's own is called; see Order.
const OrdersName = "firebreak.machine"

// Hello is what a machine writes to the channel when Settings.Probe is set.
const Hello = "firebreak machine\n"

// Modules are those Boot needs, by name. A kernel may have some built in.
var Modules = []string{"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "erofs", "overlay"}

// VSockModules are those of Settings.VSock, in addition.
var VSockModules = []string{"vmw_vsock_virtio_transport"}

// NetworkModules are those of Settings.Network, in addition: the device, and what
// ends connections of a machine that was copied.
var NetworkModules = []string{"virtio_net", "tcp_diag"}

// The devices, in the order the host attaches them.
const (
	deviceRoot    = "/dev/vda"
	deviceRuntime = "/dev/vdb"
	deviceDisk    = "/dev/vdc"
)

// ModuleDir is where the initial file system has the modules; Boot loads them in
// the order of their names.
const ModuleDir = "/modules"

// maxArgument keeps the command line within the kernel's 2048 bytes.
const maxArgument = 1024

// Argument is the kernel argument that carries s.
func (s Settings) Argument() (string, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	a := "firebreak=" + base64.RawURLEncoding.EncodeToString(b)
	if len(a) > maxArgument {
		return "", fmt.Errorf("the machine's settings take %d bytes, more than %d", len(a), maxArgument)
	}
	return a, nil
}

// parse is the inverse, from the value alone: the kernel hands it to its first
// process as a variable of the environment.
func parse(value string) (s Settings, err error) {
	b, err := base64.RawURLEncoding.DecodeString(value)
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("the machine's settings: %w", err)
	}
	return s, nil
}
