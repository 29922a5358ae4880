// Package control runs the router of package egress as a process of its own, and
// looks after it.
//
//	k, err := control.Start(ctx, control.Options{Logger: log, Record: record})
//	err = k.Attach(ctx, control.Wire{ID: id, Documents: docs}, tap)
//	generation, closed, err := k.Update(ctx, id, control.Policies{Documents: next})
//	err = k.Detach(ctx, id)
//
// # The router
//
// It parses what hostile code sends and is the only one that dials for it, so it
// is the process that can do least: `firebreak router`, which ends up in Run. It
// has a uid that nothing else has, no capability, opens no file, starts no
// program, and has a list of the system calls it makes. What it has to know of
// files (name servers, certificates) it is told. Where it comes from:
//
//	Start ── a thread of its own ── no_new_privs, bounding set, Landlock ── fork, uid, exec
//	      ── Run ── Confine: looks whether all that holds; limits, seccomp ── Serve
//
// That thread makes nothing else and waits for the router: the kernel kills the
// router when it ends, and it ends with this process.
//
// # The socket between them
//
// Descriptor 3 of the router is a unixpacket socket. A message is JSON in packets
// of at most 32 KiB, and brings at most one descriptor: the TAP of a wire that is
// attached. Both decode strictly, and take what they do not understand for the end:
// the router exits, and the keeper kills it. What the router says is a hostile
// process' claim: it is bounded, held against what was asked, and concerns nothing
// but the wires it serves.
//
// Decisions go up with numbers and are acknowledged once they are recorded. The
// router lets a flow begin while at most 256 records are on their way, none of them
// for longer than 100 ms; it waits, and denies when that does not help. After a
// record that failed it waits for each.
//
// # When the router dies
//
// The keeper has a descriptor of each TAP, the policies, the bindings with their
// secrets, and what was used of budgets, and gives them to the next one at once.
// Until that serves, nothing is answered: sandboxes keep their device and reach
// nobody. Connections are lost.
package control
