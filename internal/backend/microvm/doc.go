// Package microvm makes sandboxes that have a kernel of their own: virtual
// machines with as few devices as will do, run by QEMU or Firecracker.
//
//	b, err := microvm.New(microvm.Config{
//		Dir:     filepath.Join(data, "machines"), // one directory per instance
//		Cache:   filepath.Join(data, "machine-images"),
//		Runtime: bundle.Runtime,
//		Log:     log,
//	})
//	inst, err := b.Create(ctx, spec) // live, or nothing left behind
//
// # What an instance is
//
// A directory <Dir>/<instance>, one cgroup <parent>/<instance> per controller, and
// one process: the monitor, which outlives this one. Another Backend over the
// same Dir finds it with List and takes it over with Attach.
//
//	instance.json  the intent, written before any other object is made
//	processes      the monitor, as soon as it runs
//	ready          there once the agent has answered
//	disk           the writable layer: an ext4 of the size of the disk limit, sparse
//	origin.json    what it was booted from, for a snapshot of it
//	agent.in, .out    QEMU: FIFOs behind the agent's virtio port
//	orders.in, .out   QEMU: those of the machine's first process
//	qmp, control   QEMU: its control sockets, for who watches it and for who saves it
//	jail/          Firecracker: the jailer's directory, with its sockets
//
// # What a machine has
//
// A read-only disk with the template's root file system, one with the runtime, one
// to write to; a channel to the agent; a serial console whose last 64 KiB are kept
// in the monitor's memory; and with Spec.Wire one network device, and without none.
// No host directory, no clock, no balloon, no keyboard, no graphics. Its RAM is Limits.Memory plus what its kernel
// needs, so no guest can use more; its disk is as large as Limits.Disk.
//
// The images are files this package makes and nobody mounts on the host, see
// package vmimage. Their digest is checked before the first boot from them.
//
// # Its network
//
// A wire's namespace gets another TAP, the monitor's, which the kernel joins to the
// wire's own: see package wire and ADR 45. QEMU is given its descriptor and stays in
// an empty network namespace; Firecracker's jailer enters the wire's. The link is
// removed with the instance, the wire is not.
//
// # How it is saved
//
// Machines are Snapshotters, those of Firecracker from 1.13 on. What runs inside is
// frozen, the machine stopped, the monitor's state, memory and disk are copied, and it
// goes on. A machine that is made of that is told to be another before anything in it
// goes on. See ADR 43 and, for Firecracker, which maps the memory's file, ADR 47.
//
// # What holds a guest
//
// The processor's virtualization where KVM works; QEMU's emulation otherwise,
// which is a hypervisor in software: correct, slow, and never called anything else.
// As root, QEMU starts in network, IPC and UTS namespaces of its own with nothing in
// them, and before the guest's first instruction is in an empty root directory, a
// user of its own per instance, under a seccomp filter that knows no exec.
// Firecracker is started by its jailer, with its own filter.
//
// # How an end is told
//
// A machine that panics, faults three times in a row or switches itself off stops,
// and its monitor stays to say so; then the monitor is ended. A monitor that dies
// is a crash of its own, or of the memory limit when the kernel says so. The
// agent's end switches the machine off. See sandbox.Exit.Detail.
package microvm
