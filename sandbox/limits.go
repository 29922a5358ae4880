package sandbox

import (
	"fmt"
	"strings"
)

// Limits bounds what a sandbox may use. Zero means "the backend's default" in
// a request and "none" in a report; Orchestrated limits (wall clock, idle,
// maximum life) are not here because no backend enforces them.
type Limits struct {
	// Memory is what the guest's processes may use, in bytes. The boundary's
	// own overhead comes on top (Usage.Overhead). Files count against Disk.
	Memory int64
	// CPUs is the share of host CPUs, in whole CPUs: 0.5 is half of one.
	CPUs float64
	// PIDs is the number of tasks (threads count) user code may hold at once.
	PIDs int
	// Disk is the size of the sandbox's writable layer in bytes.
	Disk int64
}

// LimitSet is a set of limits.
type LimitSet uint8

// The members of a LimitSet.
const (
	LimitMemory LimitSet = 1 << iota
	LimitCPU
	LimitPIDs
	LimitDisk

	AllLimits = LimitMemory | LimitCPU | LimitPIDs | LimitDisk
)

var limitNames = []string{"memory", "cpu", "pids", "disk"}

// Names lists the members in a fixed order.
func (s LimitSet) Names() []string {
	names := []string{}
	for i, n := range limitNames {
		if s&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}

// String joins Names with "|".
func (s LimitSet) String() string { return strings.Join(s.Names(), "|") }

// Bounds of what a Spec may ask for. They reject absurd input early; what a
// tenant may really have is the orchestrator's quota.
const (
	MinMemory = 16 << 20
	MaxMemory = 1 << 40
	MinCPUs   = 0.01
	MaxCPUs   = 1024
	MinPIDs   = 4
	MaxPIDs   = 1 << 20
	MinDisk   = 1 << 20
	MaxDisk   = 1 << 44
)

// Validate rejects limits outside the bounds above with KindInvalid. Zero
// fields are accepted.
func (l Limits) Validate() error {
	bad := func(name string, got, lo, hi any) error {
		return Errorf("create", KindInvalid, "%s limit %v is out of range", name, got).
			WithHint("%s must be between %v and %v", name, lo, hi)
	}
	switch {
	case l.Memory != 0 && (l.Memory < MinMemory || l.Memory > MaxMemory):
		return bad("memory", FormatSize(l.Memory), FormatSize(MinMemory), FormatSize(MaxMemory))
	case l.CPUs != 0 && !(l.CPUs >= MinCPUs && l.CPUs <= MaxCPUs): // written so that NaN fails
		return bad("cpu", l.CPUs, MinCPUs, MaxCPUs)
	case l.PIDs != 0 && (l.PIDs < MinPIDs || l.PIDs > MaxPIDs):
		return bad("pids", l.PIDs, MinPIDs, MaxPIDs)
	case l.Disk != 0 && (l.Disk < MinDisk || l.Disk > MaxDisk):
		return bad("disk", FormatSize(l.Disk), FormatSize(MinDisk), FormatSize(MaxDisk))
	}
	return nil
}

// FormatSize prints n bytes in the largest binary unit that divides it, such
// as "64 MiB", or else with one decimal.
func FormatSize(n int64) string {
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB"}
	if n < 1024 && n > -1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n), -1
	for (f >= 1024 || f <= -1024) && u+1 < len(units) {
		f /= 1024
		u++
	}
	if f == float64(int64(f)) {
		return fmt.Sprintf("%d %s", int64(f), units[u])
	}
	return fmt.Sprintf("%.1f %s", f, units[u])
}
