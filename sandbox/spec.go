package sandbox

import (
	"net/netip"
	"time"
)

// Spec is what a backend needs to make one instance. It holds nothing about
// who asked or for how long: that is the orchestrator's.
type Spec struct {
	Instance InstanceID // required; Create of an id that exists fails with KindExists
	Sandbox  ID         // for labels and logs only
	Tenant   TenantID   // for labels and logs only
	Hostname string     // what the guest sees; defaults to the sandbox id

	Root         Root
	ReadonlyRoot bool // no writable layer on the root; /tmp and the home stay writable

	Limits Limits
	// Explicit names the limits a person asked for. A backend that cannot
	// enforce one of them refuses with KindUnsupported; one it fills in or
	// inherits from defaults is reported as not enforced instead.
	Explicit LimitSet
	// AcceptWeaker turns that refusal into a report. Whoever sets it has
	// recorded an audited event.
	AcceptWeaker bool
	// MinIsolation refuses a backend whose Info says less.
	MinIsolation Isolation

	// Wire is the sandbox's only network. Nil means no network device at all.
	Wire *Wire
}

// Root is the file system a sandbox starts from. Everything in it is read-only
// to the guest; what the guest writes goes to a layer of its own that Destroy
// throws away.
type Root struct {
	// Digest identifies the content: "sha256:" and 64 hex digits. The host
	// template's is a fingerprint, see Mutable.
	Digest string
	// Dir is a directory tree on the host, with every mount point in place.
	Dir string
	// Mounts are further directories, bound read-only over Dir.
	Mounts []Mount
	// Mutable marks a root the host may change under us (the "host" template).
	Mutable bool
	// Boot, if not nil, is what a machine of this root boots instead of what its
	// backend would. A backend without Capabilities.Boot refuses one.
	Boot *Boot
}

// Boot names files of the host that a virtual machine boots from. An operator put
// them there; no request names one.
type Boot struct {
	Kernel File // zero: the backend's own
	Image  File // of a file system that takes Root.Dir's place; zero: one made of that
}

// File is a file of the host, and what has to be in it.
type File struct {
	Path   string // absolute; "" for none
	Digest string // "sha256:" and 64 hex digits
}

// Mount binds the host directory Source read-only at Target in the guest.
type Mount struct{ Source, Target string }

// Wire is a prepared network, terminated elsewhere: a backend plugs it in and
// never configures it. A backend without Capabilities.Wire refuses one.
type Wire struct {
	// NetNS is the path of the network namespace that holds the link.
	NetNS string
	// Link is the interface inside NetNS, up and with its address.
	Link string
	// Address is the guest's, on Link.
	Address netip.Prefix
	// Gateway is the way to everything else, and who answers DNS.
	Gateway netip.Addr
}

// Isolation orders how strong a boundary is.
type Isolation int

// The isolation classes, weakest first.
const (
	IsolationNone Isolation = iota
	IsolationSharedKernel
	IsolationUserKernel
	IsolationHypervisor
	IsolationConfidential
)

var isolationNames = [...]string{"none", "shared-kernel", "user-kernel", "hypervisor", "confidential"}

// String returns the class's name, as in the API.
func (i Isolation) String() string {
	if i < 0 || int(i) >= len(isolationNames) {
		return "unknown"
	}
	return isolationNames[i]
}

// ParseIsolation is the inverse of String.
func ParseIsolation(s string) (Isolation, error) {
	for i, n := range isolationNames {
		if n == s {
			return Isolation(i), nil
		}
	}
	return 0, Errorf("parse isolation", KindInvalid, "unknown isolation class %q", s).
		WithHint("one of none, shared-kernel, user-kernel, hypervisor, confidential")
}

// Capabilities is what a backend enforces or does here and now: probed, never
// hoped.
type Capabilities struct {
	// Limits are those the host enforces over the whole boundary, whatever code
	// inside does. Where one is missing the agent inside still ends programs that
	// exceed it, with the right reason; that holds for programs, not for somebody
	// who has taken over the agent or the boundary, and is not called enforced.
	Limits       LimitSet
	ReadonlyRoot bool
	Wire         bool
	// Snapshot: instances are Snapshotters, and the backend is a Restorer.
	Snapshot bool
	// Pause: an instance can be saved, destroyed, and restored under another id
	// as the same sandbox. It needs Snapshot.
	Pause  bool
	Attest bool
	// Boot: a sandbox has a kernel of its own, and its template may bring it
	// (Root.Boot).
	Boot bool
}

// Info describes a backend on this host.
type Info struct {
	Name         string // "gvisor", "sim", …
	Isolation    Isolation
	Capabilities Capabilities
	Version      string // of what makes the boundary
	// Emulated: what enforces the boundary imitates a processor in software. It is
	// as strong and many times slower, so it has to be named to be taken.
	Emulated bool
	// Available is false when the backend cannot run sandboxes here; Reason
	// then says why and Hint what to do. When it is true, Hint says how the host
	// could enforce the limits that are missing from Capabilities.
	Available bool
	Reason    string
	Hint      string
	// Notes are facts an operator should know, such as why a limit is not
	// enforced.
	Notes []string
}

// Check decides whether a backend described by i may serve spec. It returns nil,
// KindUnavailable when the backend does not work here, or KindUnsupported
// naming the first demand it cannot enforce. Every Create begins with it.
func (i Info) Check(spec Spec) error {
	refuse := func(hint, format string, args ...any) error {
		return Errorf("create", KindUnsupported, format, args...).WithID(string(spec.Sandbox)).WithHint("%s", hint)
	}
	switch {
	case !i.Available:
		return Errorf("create", KindUnavailable, "backend %s does not work here: %s", i.Name, i.Reason).WithHint("%s", i.Hint)
	case i.Isolation < spec.MinIsolation:
		return refuse("choose a stronger backend; `firebreak doctor` lists what works here",
			"backend %s isolates by %s, %s was demanded", i.Name, i.Isolation, spec.MinIsolation)
	case spec.Wire != nil && !i.Capabilities.Wire:
		return refuse("remove the network rules or choose another backend", "backend %s cannot attach a network", i.Name)
	case spec.Root.Boot != nil && !i.Capabilities.Boot:
		return refuse("use the backend microvm (--backend microvm)", "backend %s boots no kernel: the template has a kernel or file system of its own", i.Name)
	case spec.AcceptWeaker:
		return nil
	case spec.ReadonlyRoot && !i.Capabilities.ReadonlyRoot:
		return refuse("leave readonly_root out, or pass accept_weaker", "backend %s cannot make the root read-only", i.Name)
	}
	if miss := spec.Explicit &^ i.Capabilities.Limits; miss != 0 {
		hint := "leave the limit out, or pass accept_weaker (--accept-weaker) to run without it; `firebreak doctor` says what is missing"
		if i.Hint != "" {
			hint += "; to have it enforced, " + i.Hint
		}
		return refuse(hint, "backend %s cannot enforce the %s limit here", i.Name, miss.Names()[0])
	}
	return nil
}

// Usage is what an instance has consumed. Zero means unknown where the backend
// cannot measure.
type Usage struct {
	CPU        time.Duration // user and system, all processes of the boundary
	Memory     int64         // bytes now, the boundary's overhead included
	MemoryPeak int64         // highest Memory seen
	Overhead   int64         // bytes the boundary itself needs, an estimate made at create
	Disk       int64         // bytes allocated by the writable layer
	PIDs       int           // host tasks
	OOMKills   int           // times the kernel killed for memory
}

// Status is an instance as the backend sees it now.
type Status struct {
	Instance InstanceID
	Alive    bool
	Exit     Exit // why it ended; meaningful when !Alive
	Usage    Usage
	Enforced LimitSet // the limits in force
	Created  time.Time
}

// Reason says why something ended. The set is closed and part of the API.
type Reason string

// The reasons.
const (
	ReasonDone     Reason = "done"     // ended by itself
	ReasonTimeout  Reason = "timeout"  // wall clock or maximum life
	ReasonIdle     Reason = "idle"     // unused for too long
	ReasonMemory   Reason = "memory"   // over its memory limit
	ReasonPIDs     Reason = "pids"     // over its task limit
	ReasonDisk     Reason = "disk"     // its writable layer is full
	ReasonCPU      Reason = "cpu"      // over its CPU time
	ReasonEgress   Reason = "egress"   // a denied connection ended it
	ReasonOperator Reason = "operator" // somebody asked for it
	ReasonCrashed  Reason = "crashed"  // the boundary failed
	ReasonLost     Reason = "lost"     // gone while nobody watched
)

// Exit is how an instance or a process ended.
type Exit struct {
	Reason Reason
	Detail string // for people: "limit 64 MiB"
	Time   time.Time
}
