// Package sim is a backend that isolates nothing and executes nothing: a model,
// in this process, of how a sandbox behaves. It exists so that everything above
// a backend can be tested and shown on any system, in milliseconds, without
// privilege.
//
//	b := sim.New(sim.Config{})                    // isolation "none"
//	inst, err := b.Create(ctx, sandbox.Spec{Instance: sandbox.NewInstanceID()})
//	conn, err := inst.Dial(ctx)
//	s, err := guest.Open(ctx, conn, guest.Config{})
//	p, err := s.Exec(ctx, guest.Command{Argv: []string{"sh", "-c", "echo hi > f; cat f"}})
//
// The agent and the wire protocol are the real ones, internal/guest/agent over
// a byte stream with the properties of a pair of FIFOs. What the agent drives
// is the model.
//
// # What is modelled
//
// Processes are goroutines with a pid, a process group, signals, standard
// streams and an exit code. The file system is in memory: permissions for root
// and uid 1000, symbolic links resolved inside, a writable layer of the size
// Limits.Disk that fails with ENOSPC, a read-only root on request. Memory and
// tasks are booked and limited; CPU time is computed from how long programs
// spin and how many CPUs they may have, without spinning. There is no network
// device. A
// terminal has its size, lines, echo, ^C and ^D, and no other mode.
//
// Programs are true, false, echo, cat, sleep, env, id, pwd, ls, mkdir, rm,
// hostname, stty size, the probe verbs of firebreak-guest, and a shell for scripts of
// simple commands (see shell).
//
// # What is not
//
// No code runs. python3, node and everything a shell would need a kernel for
// end with exit code 127 and a line on standard error that begins "sim: a model
// does not execute code". The exception is code that says itself what it would
// do, each line by a directive in a comment:
//
//	print(6*7)                     # sim: stdout 42
//	firebreak.result({"ok": 1})    # sim: result {"ok": 1}
//	sys.exit(3)                    // sim: exit 3
//
// A directive is stdout TEXT, stderr TEXT, result JSON, exit N, args, one of the
// programs or one of the probe's verbs ("sleep 1s", "alloc 1000000000"). So one
// text can serve a real backend and the model.
//
// The content of Spec.Root is not read: every instance has the same small
// synthetic root. Spec.Wire, job control, devices beyond null and zero, and
// pipes in shell scripts are not modelled.
//
// # State
//
// Backends with the same Config.Dir in one process see the same instances, as
// two processes would that share a directory, so that Attach and a restart of
// what uses the backend can be tested. Nothing is written to the directory, and
// nothing outlives the process.
package sim
