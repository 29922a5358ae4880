// Package gvisor makes sandboxes with an embedded runsc: gVisor's user-space
// kernel on the systrap platform.
//
//	b, err := gvisor.New(gvisor.Config{
//		Dir:     filepath.Join(data, "instances"), // one directory per instance
//		Runsc:   bundle.Runsc,                     // firebreak-runsc
//		Runtime: bundle.Runtime,                   // bound read-only at /.firebreak
//		Log:     log,
//	})
//	inst, err := b.Create(ctx, spec) // live, or nothing left behind
//	conn, err := inst.Dial(ctx)      // to firebreak-guest, PID 1 inside
//	receipt, err := inst.Destroy(ctx)
//
// # What an instance is
//
// A directory <Dir>/<instance> holding everything the instance owns on disk,
// one cgroup <parent>/<instance> per controller, and three kinds of processes:
// the sentry (the user-space kernel), the gofer (serves the root file system)
// and the sentry's stubs (execute guest code). All of them are started by one
// short-lived `firebreak-runsc create` (`run -detach`, with a wire) and outlive this process, so
// nothing here is a parent that has to stay: another Backend over the same
// Dir finds the instances with List and takes them over with Attach.
//
//	instance.json  the intent, written before any other object is made
//	config.json    the OCI bundle
//	in, out        FIFOs: the agent's stdin and stdout, see Dial
//	processes      who was running when the agent first answered
//	resolv.conf    and hosts, of one with a wire: bound read-only over the root's
//	runsc/         runsc's own state and control socket
//	runsc.log      what runsc said when it failed
//	panic.log      the sentry's last words, if it had any
//
// The writable layer is an unlinked file in the instance's directory, held by
// the sentry; it costs disk, not memory, and ends with the sentry. Dirty pages
// on their way to that file are charged to the instance's memory cgroup like
// any page cache: they make the kernel write back and reclaim earlier, they
// never make it kill.
//
// # What holds a guest
//
// Its system calls end in the sentry, which runs as root of a user namespace of
// its own with CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID and
// SYS_PTRACE, in an empty root directory, an empty network namespace, under
// no_new_privs and a seccomp filter without execve, socket or open by path
// beyond descriptors the gofer gave it. There is no network device, no host
// socket, no host FIFO but its own two, no set-user-id. The root file system
// is mounted read-only on the host side as well.
//
// With Spec.Wire the sentry is in the wire's namespace instead and has a packet
// socket of its one link, which runsc opened: it cannot open another, and has no
// rights over the namespace, which belongs to the host's user namespace. Its
// filter and its capabilities are the same. The namespace is not the instance's:
// its receipt does not list it, and Destroy leaves it.
//
// # Teardown
//
// Destroy does not use runsc. It stops the cgroup from growing, kills what is
// in it, what was recorded, and what names the instance on its command line,
// waits until all of it is gone, and removes cgroups, mounts and directory. It
// therefore works the same on an instance whose creator was killed half way.
//
// # Memory
//
// Limits.Memory is what the guest may use. The cgroup's limit is that plus
// Overhead, the sentry's and gofer's own. The sentry and the gofer are the
// last processes the kernel picks when the limit is hit, so a guest that
// overruns it loses the process that did; only if that does not help does the
// sandbox end, with ReasonMemory.
package gvisor
