// Package egress ends the wires of sandboxes: each has a TCP/IP stack of its own
// in this process, which answers the sandbox's DNS queries from its policy, reads
// what its connections are for, decides, dials, and carries bytes both ways.
//
//	r := egress.New(egress.Config{Logger: log, Record: record})
//	err := r.Attach(egress.Wire{ID: id, Table: table, Authority: a}, tap)
//	generation, closed, err := r.Update(id, next, nil)
//	used, err := r.Detach(id)
//
// Nothing is forwarded: there is no route from a wire to anywhere. What leaves is
// what this package dialled, to an address that the policy decided about, after
// that was recorded. Everything else is answered with a reset, or with silence.
//
// TLS and HTTP that a rule allows end here, too: package inspect reads each request,
// this one decides about it, and what goes on is a request of ours. Bytes pass as
// they are where a rule says so.
//
// A name below BindingZone is a binding of the sandbox: HTTP to it goes on, by
// package inspect, to the binding's host with a secret the sandbox never has. It
// is the one thing that is not a policy's to allow; what rules deny stays denied.
//
// Whose a connection is, is known by the wire it came from and by nothing in it.
package egress
