// Package residue looks for what a sandbox left on the host, without asking
// the code that made it.
//
// A receipt says what a backend believes it removed. This package is the
// second opinion: it reads /proc, mount tables, control groups, network
// namespaces with those that a mount keeps, links, sockets, loop devices, temporary directories, the file
// tree and the descriptors of the calling process, and reports whatever
// belongs to the scope and is still there.
//
//	base, err := residue.Take(residue.Scope{Dirs: []string{dataDir}})
//	… create, use and destroy sandboxes …
//	for _, f := range base.Diff() {
//		t.Errorf("left behind: %s", f)
//	}
//
// One instance is checked, also while others live, by its id alone. Ids are
// random, so every mention of one is residue and no baseline is needed:
//
//	residue.Of(scope, string(inst.ID()))
//
// An object belongs to a scope when it mentions a tracked id or a path under
// one of Dirs: in a command line, an environment, an executable's path, a
// working directory, an open file, a control group, a mount, a socket's name;
// or when it is a child of this process, or carries one of Prefixes. With
// Exclusive every new object on the host counts, for machines that run nothing
// else.
//
// What it cannot see: netfilter tables, System V IPC, mounts in a namespace of
// processes that are not ours, and whatever carries neither id nor path while no
// process of ours holds it. Elsewhere than on Linux
// only files are looked at.
package residue

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Settle is how long Diff and Of wait for asynchronous clean-up by the kernel
// (control groups, lazily detached mounts, reaping) before they report.
const Settle = 2 * time.Second

// Scope says which host objects belong to whoever is examined.
type Scope struct {
	// Dirs are absolute paths of data directories.
	Dirs []string
	// Keep lists what may stay under Dirs, as slash-separated paths relative
	// to a directory of Dirs: caches and locks that outlive instances by
	// design. Everything under a kept path may stay as well.
	Keep []string
	// Cgroups are control groups, relative to the hierarchy's root, under
	// which every new group is ours.
	Cgroups []string
	// Prefixes are what names of our links, named network namespaces and
	// entries of /tmp, /run and /dev/shm begin with.
	Prefixes []string
	// Descriptors also reports descriptors of this process that are new,
	// whatever they refer to. Only for callers that run nothing in parallel.
	Descriptors bool
	// Exclusive counts every new process namespace, mount, group, link and
	// temporary entry of the host as ours.
	Exclusive bool
	// IgnorePIDs are processes that may mention the scope, such as a daemon
	// under test. This process itself is always ignored.
	IgnorePIDs []int
}

// Finding is one object that should not exist.
type Finding struct {
	Kind   string // process, mount, cgroup, netns, link, socket, loop, descriptor, file
	Name   string // path or number: enough to look for it again
	Detail string // why it counts as ours
}

// String returns "kind name: detail".
func (f Finding) String() string {
	if f.Detail == "" {
		return f.Kind + " " + f.Name
	}
	return f.Kind + " " + f.Name + ": " + f.Detail
}

// object is something seen on the host. Key identifies it across scans.
type object struct {
	Finding
	key   string
	ours  bool
	alien bool // counts only when Scope.Exclusive
}

// Baseline is what existed when Take was called.
type Baseline struct {
	scope Scope
	seen  map[string]bool
	ids   []string
}

// Take records what exists now. It costs some milliseconds per hundred
// processes. An error means that the host could not be read.
func Take(scope Scope) (*Baseline, error) {
	for _, d := range scope.Dirs {
		if !strings.HasPrefix(d, string(os.PathSeparator)) && os.PathSeparator == '/' {
			return nil, fmt.Errorf("residue: directory %q is not absolute", d)
		}
	}
	objs, err := scan(scope, matcher{dirs: scope.Dirs})
	if err != nil {
		return nil, err
	}
	b := &Baseline{scope: scope, seen: map[string]bool{}}
	for _, o := range objs {
		b.seen[o.key] = true
	}
	return b, nil
}

// Track adds ids whose mention anywhere marks an object as ours. It must not
// be called concurrently with Diff.
func (b *Baseline) Track(ids ...string) { b.ids = append(b.ids, ids...) }

// Diff reports what is ours and was not there at Take. While it would report
// something it looks again, for up to Settle.
func (b *Baseline) Diff() []Finding {
	return settle(func() []Finding {
		return findings(b.scope, matcher{ids: b.ids, dirs: b.scope.Dirs}, func(o object) bool {
			return !b.seen[o.key] && (o.ours || b.scope.Exclusive && o.alien)
		})
	})
}

// Of reports everything on the host that mentions one of ids, whenever it was
// made. While it would report something it looks again, for up to Settle.
func Of(scope Scope, ids ...string) []Finding {
	scope.Descriptors, scope.Exclusive = false, false
	m := matcher{ids: ids} // no directories: siblings live there
	return settle(func() []Finding { return mentions(scope, m) })
}

// Seen reports what Of would, as it is now: of a live instance, all that its
// end has to remove.
func Seen(scope Scope, ids ...string) []Finding {
	scope.Descriptors, scope.Exclusive = false, false
	return mentions(scope, matcher{ids: ids})
}

func mentions(scope Scope, m matcher) []Finding {
	return findings(scope, m, func(o object) bool {
		return o.ours && (m.find(o.Name) != "" || m.find(o.Detail) != "")
	})
}

func findings(scope Scope, m matcher, want func(object) bool) []Finding {
	objs, err := scan(scope, m)
	if err != nil {
		// An oracle that cannot see must not say "clean".
		return []Finding{{Kind: "oracle", Name: "scan", Detail: err.Error()}}
	}
	var out []Finding
	for _, o := range objs {
		if want(o) {
			out = append(out, o.Finding)
		}
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(out)
}

func settle(look func() []Finding) []Finding {
	end := time.Now().Add(Settle)
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		f := look()
		if len(f) == 0 || time.Now().After(end) {
			return f
		}
		time.Sleep(min(wait, time.Until(end)+time.Millisecond))
	}
}
