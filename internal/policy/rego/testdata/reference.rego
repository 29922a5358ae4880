# What a table says, written from the package's documentation and not from its
# code. TestAgree holds the table against it.
#
# input.flow: name ("" for an address), suffix (the public suffix of name), literal
# (the address that was asked for, or ""), addr (effective), class, openable,
# port, protocol, claim: {name, addr, suffix}, same_claim.
# input.rules: [{index, id, deny, names: [{name, stars}], nets, ports: [[low, high]], protocols, opaque, methods, paths}]
# input.request: null for a connection, or {method, path, means}: the path as it
# was sent, and without escapes; "" if it can be taken for two.
# input.private: networks the operator permits. input.observe.
package reference

f := input.flow

default allow := false

allow if {
	reachable
	count(denials) == 0
	claim_ok
	count(matches) > 0
	opened
}

allow if { # what no rule is about, where the policy observes
	input.observe
	reachable
	count(denials) == 0
	claim_ok
	count(matches) == 0
	f.class == "public"
	not raw_to_read
}

reachable if f.class == "public"

reachable if f.openable

# Names.

name_matches(p, name, _) if {
	p.stars == 0
	name == p.name
}

name_matches(p, name, suffix) if {
	p.stars == 1
	labels := split(name, ".")
	concat(".", array.slice(labels, 1, count(labels))) == p.name
	count(suffix) < count(p.name)
}

name_matches(p, name, suffix) if {
	p.stars == 2
	endswith(name, concat("", [".", p.name]))
	count(suffix) < count(p.name)
}

port_matches(r) if {
	some range in r.ports
	range[0] <= f.port
	f.port <= range[1]
}

in_nets(r, addr) if {
	addr != ""
	some cidr in r.nets
	net.cidr_contains(cidr, addr)
}

# Deny rules are about the host, the claimed host and the address.

about(r) if {
	some p in r.names
	name_matches(p, f.name, f.suffix)
}

about(r) if {
	some p in r.names
	name_matches(p, f.claim.name, f.claim.suffix)
}

about(r) if in_nets(r, f.addr)

about(r) if in_nets(r, f.claim.addr)

denials := {r.id | some r in input.rules; r.deny; port_matches(r); about(r); forbids(r)}

some_requests(r) if count(r.methods) > 0

some_requests(r) if count(r.paths) > 0

forbids(r) if not some_requests(r)

forbids(r) if {
	input.request != null
	forbids_method(r)
	forbids_path(r)
}

forbids_method(r) if count(r.methods) == 0

forbids_method(r) if input.request.method in r.methods

forbids_method(_) if not regex.match(`^[A-Z-]+$`, input.request.method)

forbids_path(r) if count(r.paths) == 0

forbids_path(_) if input.request.means == ""

forbids_path(r) if {
	some p in r.paths
	startswith(concat("", [lower(input.request.means), "/"]), concat("", [lower(p), "/"]))
}

# Where requests are denied nothing passes unread.

to_read if {
	input.request == null
	some r in input.rules
	r.deny
	some_requests(r)
	port_matches(r)
	about(r)
}

raw_to_read if {
	to_read
	f.protocol == "tcp"
}

passes_unread(_) if raw_to_read

passes_unread(r) if {
	to_read
	r.opaque
}

# Claims are the host's, if the host is a name.

claim_ok if f.name == ""

claim_ok if {
	f.protocol == "tcp"
	not f.claimed
}

claim_ok if {
	f.protocol != "tcp"
	f.same_claim
}

# Allow rules, each with how specific it is; the smallest is the one that counts.

candidate(r) if {
	names_it(r)
	not passes_unread(r)
}

names_it(r) if {
	not r.deny
	port_matches(r)
	f.protocol in r.protocols
	permits(r)
}

permits(_) if input.request == null

permits(r) if {
	permits_method(r)
	permits_path(r)
}

permits_method(r) if count(r.methods) == 0

permits_method(r) if input.request.method in r.methods

permits_path(r) if count(r.paths) == 0

permits_path(r) if {
	input.request.means != ""
	some p in r.paths
	startswith(concat("", [input.request.path, "/"]), concat("", [p, "/"]))
}

matches contains [0, 0 - count(p.name), p.stars, r.index, r.id] if {
	some r in input.rules
	candidate(r)
	some p in r.names
	p.stars == 0
	name_matches(p, f.name, f.suffix)
}

matches contains [1, 0 - count(p.name), p.stars, r.index, r.id] if {
	some r in input.rules
	candidate(r)
	some p in r.names
	p.stars > 0
	name_matches(p, f.name, f.suffix)
}

matches contains [0, 0 - bits, 0, r.index, r.id] if {
	f.name == ""
	some r in input.rules
	candidate(r)
	some cidr in r.nets
	net.cidr_contains(cidr, f.addr)
	bits := to_number(split(cidr, "/")[1])
}

best := sort(matches)[0][4]

# Addresses that are not public need a rule that names their network and the
# operator's permission for it.

opened if f.class == "public"

special := [
	"127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "100.64.0.0/10", "198.18.0.0/15",
	"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32",
]

opened if {
	not f.class in {"public", "own"}
	some r in input.rules
	names_it(r)
	opens(r)
	some cidr in r.nets
	net.cidr_contains(cidr, f.addr)
	some s in special
	net.cidr_contains(s, cidr)
	some p in input.private
	net.cidr_contains(p, cidr)
}

opened if {
	f.class == "own"
	some r in input.rules
	names_it(r)
	opens(r)
	some cidr in r.nets
	single(cidr)
	net.cidr_contains(cidr, f.addr)
	cidr in input.private
}

# Of a name's addresses nobody knows which one a request goes to.

opens(_) if f.name == ""

opens(r) if not some_requests(r)

single(cidr) if endswith(cidr, "/128")

single(cidr) if {
	endswith(cidr, "/32")
	not contains(cidr, ":")
}
