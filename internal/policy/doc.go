// Package policy decides where a sandbox may connect, and what it may ask there. A
// Document is what people write, a Table what it is compiled to, a Flow what a
// sandbox wants:
//
//	doc, err := policy.Parse("build.yaml", text)
//	table, err := policy.Compile(policy.Options{}, doc)
//	d := table.Decide(ctx, flow)
//	if !d.Allow { reset(d.Reason, table.Hint(flow, d)) }
//	if d.Opaque() { relay(flow) }
//	for request := range requests { d := table.DecideRequest(ctx, flow, request); … }
//
// # What a table says
//
// Nothing is allowed that no rule allows, and a deny rule wins over all allow
// rules. A rule names hosts or networks, ports and protocols:
//
//   - A host is a name, *.NAME for exactly one label in front of it, or **.NAME for
//     one or more. Stars stand only there, never over a public suffix (*.com,
//     *.github.io), and what they match never reaches across one: **.amazonaws.com
//     does not match bucket.s3.amazonaws.com, which is somebody else's.
//   - A network is a CIDR prefix or an address. It allows connections to addresses; a
//     connection to a name needs a rule for the name. A denied network is denied
//     under every name.
//   - Ports are 443 unless said; of a deny rule all.
//   - Protocols are tls and http unless said; anything else on a connection needs
//     tcp, and then ports are said, too. Deny rules do not look at it.
//   - Methods and paths are all unless said. Rules that say some are about requests:
//     such an allow rule lets the connection be made, such a deny rule has it read.
//   - What is TLS or HTTP is read, but where an allow rule says that it passes unread.
//
// Before any rule, the address that is about to be dialled is classified
// (package netaddr). Addresses that are nobody's, or hold secrets, are never
// allowed. Those of this machine and of private networks are if the operator
// permits the network and an allow rule names it: a prefix that lies within
// both. A rule for 0.0.0.0/0 opens nothing private, nor does a host's name.
//
// A document may also demand how strong the boundary of a sandbox has to be
// (Demand); of several the strongest holds. One that says nothing else is not about
// connections, and alone gives no network device (Document.Unconnected).
//
// What the bytes claim (the SNI of TLS, the Host of HTTP) must be the name the
// connection was made to.
//
// Of several allow rules the most specific one answers, and its budgets are
// charged: a name before wildcards, the longer suffix first, * before **, the
// longer prefix first, then as written. Of a request it is the most specific one of
// those that permit it.
package policy
