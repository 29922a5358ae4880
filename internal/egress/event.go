package egress

import "time"

// The kinds of Event.
const (
	KindDNS     = "dns"     // a query
	KindConnect = "connect" // a connection, before anything is dialled for it
	KindClose   = "close"   // the end of a connection that was allowed
	KindRequest = "request" // on a connection that is read, or through a binding, before it is sent on
)

// The decisions in Event.
const (
	Allow   = "allow"
	Deny    = "deny"
	Observe = "observe" // no rule allows it; the policy lets pass and tells
)

// Reasons in Event beside those of package policy.
const (
	ReasonLimit       = "limit"       // the wire has as many of these as it can
	ReasonSilent      = "silent"      // nothing was said on the connection
	ReasonUnresolved  = "unresolved"  // the name has no address
	ReasonUnrecorded  = "unrecorded"  // the decision could not be recorded
	ReasonStale       = "stale"       // the policy changed again and again
	ReasonUnreachable = "unreachable" // of a close: nobody answered
	ReasonDone        = "done"        // of a close: both sides have said all
	ReasonReset       = "reset"       // of a close: one side broke off
	ReasonIdle        = "idle"        // of a close: nothing was said for long
	ReasonUpdated     = "updated"     // of a close: the policy changed
	ReasonDetached    = "detached"    // of a close: the sandbox ended
	ReasonBinding     = "binding"     // of a request: the binding allows it
	ReasonUnbound     = "unbound"     // the sandbox has no such binding
	ReasonMethod      = "method"      // of a request: binding or rules are for others
	ReasonPath        = "path"        // of a request: binding or rules are for others
	ReasonRequest     = "request"     // of a request: it is none, or one that means two things
	ReasonPush        = "push"        // of a request: a push to a ref that the binding is not for
	ReasonLeak        = "leak"        // a secret, or something like it, is where none goes
	ReasonPlaceholder = "placeholder" // what stands for a secret is where that does not go
)

// Event is a decision, or the end of what one allowed. It crosses a socket, and
// becomes a record, an event and an entry of a run's result.
type Event struct {
	Wire string    `json:"wire"`
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	// Host is what was wanted: a name or an address; empty of Count different ones,
	// when a sandbox asks for so many that they are no longer told one by one.
	Host string `json:"host"`
	Port uint16 `json:"port"`
	// Address is what is dialled, or the answer to a query; empty for none.
	Address    string `json:"address,omitempty"`
	Protocol   string `json:"protocol,omitempty"` // "tls", "http", "tcp"; "udp" and "icmp", which are always denied
	Decision   string `json:"decision"`
	Rule       string `json:"rule"`
	Reason     string `json:"reason"`
	Hint       string `json:"hint,omitempty"`    // what would permit it, for people
	Generation uint64 `json:"generation"`        // of the policy
	Binding    string `json:"binding,omitempty"` // of a request: what it was made through
	Method     string `json:"method,omitempty"`  // of a request
	Upload     int64  `json:"upload,omitempty"`
	Download   int64  `json:"download,omitempty"`
	// Count is how many alike this stands for: denials are told when the first
	// happens and, if there are more, once for those of some seconds.
	Count int `json:"count"`
}

// Stats is what a router does, over all wires it has.
type Stats struct {
	Wires       int   `json:"wires"`
	Connections int   `json:"connections"` // now
	Allowed     int64 `json:"allowed"`     // connections, since the router began; so are the others
	Denied      int64 `json:"denied"`      // connections, queries and datagrams
	Upload      int64 `json:"upload"`
	Download    int64 `json:"download"`
}
