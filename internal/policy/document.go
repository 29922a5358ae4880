package policy

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Mode says what happens to what no rule allows.
type Mode string

// The modes. ModeObserve lets it pass and tells (Decision.Observed); what a rule
// denies, and what is never dialled, stays denied.
const (
	ModeEnforce Mode = "enforce"
	ModeObserve Mode = "observe"
)

// Protocol is what is spoken on a connection, as far as its first bytes tell.
type Protocol uint8

// The protocols. ProtocolTCP is everything that is neither of the others.
const (
	ProtocolUnknown Protocol = iota
	ProtocolTCP
	ProtocolTLS
	ProtocolHTTP
)

var protocolNames = [...]string{"unknown", "tcp", "tls", "http"}

// String is the protocol's name in documents and records.
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return "invalid"
}

// ParseProtocol is the inverse of String.
func ParseProtocol(s string) (Protocol, error) {
	for i, n := range protocolNames {
		if n == s && i > 0 {
			return Protocol(i), nil
		}
	}
	return 0, sandbox.Errorf("policy", sandbox.KindInvalid, "%q is not a protocol: tls, http or tcp", s)
}

// protocols is a set of them.
type protocols uint8

func (s protocols) has(p Protocol) bool { return s>>p&1 != 0 }

func (s protocols) String() string {
	var names []string
	for p := ProtocolTCP; int(p) < len(protocolNames); p++ {
		if s.has(p) {
			names = append(names, p.String())
		}
	}
	return strings.Join(names, ",")
}

const usualProtocols = protocols(1<<ProtocolTLS | 1<<ProtocolHTTP)

// Document is a policy as it is written.
type Document struct {
	Name    string   // for ids of rules; may be empty
	Mode    Mode     // default ModeEnforce
	Include []string // names of other documents, whose rules, modules and demands are added
	// MinIsolation is the weakest boundary that a sandbox with this policy may have.
	MinIsolation sandbox.Isolation
	Allow        []Rule
	Deny         []Rule
	// Rego is a module that has to agree with every allowed connection; see
	// package rego. RegoLine is where it begins in File.
	Rego     string
	RegoLine int
	File     string // where it was read, for messages

	connects bool // it is about connections, and be it by an empty list
}

// Demand is the weakest boundary that is good enough, and who says so. The zero value
// demands nothing.
type Demand struct {
	Isolation sandbox.Isolation `json:"isolation,omitempty"`
	By        string            `json:"by,omitempty"` // such as "policy build"; for people
}

// Stronger is whichever demands more; d, if both do as much.
func (d Demand) Stronger(e Demand) Demand {
	if e.Isolation > d.Isolation {
		return e
	}
	return d
}

// demand is what the document itself demands.
func (d *Document) demand() Demand {
	if d.MinIsolation == sandbox.IsolationNone {
		return Demand{}
	}
	return Demand{d.MinIsolation, d.File}
}

// Unconnected reports whether the document demands a boundary and has nothing to say
// about connections: by itself it is no reason for a network device.
func (d *Document) Unconnected() bool {
	return d.MinIsolation > sandbox.IsolationNone && !d.connects && len(d.Allow)+len(d.Deny) == 0 && d.Rego == ""
}

// Rule allows or denies hosts or networks.
type Rule struct {
	ID        string // unique in its policy; "allow HOST:PORTS" unless given
	Hosts     []Pattern
	Networks  []netip.Prefix
	Ports     []PortRange
	Protocols protocols
	// Opaque lets TLS and HTTP pass unread: an allow rule's `inspect: none`. Nothing is
	// known of the requests then, and no secret put into them.
	Opaque bool
	// Methods and Paths are the requests the rule is about, none: all. Paths are
	// prefixes of whole segments, without a slash at the end. Both are sorted.
	Methods []string
	Paths   []string
	Budget  Budget
	Note    string // for people

	line int // in the document
}

// Budget is how much of a rule one sandbox may use in its life. Zero: no bound.
type Budget struct {
	Upload      int64 // bytes from the sandbox
	Download    int64 // bytes to it
	Connections int64 // in all
	Concurrent  int64 // at once
	// Rate is how many connections per Per may begin, after as many at once.
	Rate int64
	Per  time.Duration
	// Names is how many different names may be asked for below a wildcard, since a
	// name is a message to whoever serves the zone. Default 256.
	Names int64
}

// defaultNames bounds what leaks through the names below a wildcard.
const defaultNames = 256

// The most a document may be.
const (
	maxDocument = 256 << 10 // bytes
	maxRules    = 10_000    // of a table
	maxIncludes = 100       // of a table
)

var (
	reName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	reRate = regexp.MustCompile(`^([1-9][0-9]{0,8})/(s|m|h)$`)
)

// derivedID names a rule by what it says.
func (r *Rule) derivedID(effect string) string {
	what, n, about := "", len(r.Hosts)+len(r.Networks), r.requestList()
	if len(r.Hosts) > 0 {
		what = r.Hosts[0].String()
	} else if len(r.Networks) > 0 {
		what = r.Networks[0].String()
	}
	if n > 1 {
		what += fmt.Sprintf("+%d", n-1)
	}
	if effect == "deny" && len(r.Ports) == 1 && r.Ports[0] == allPorts[0] {
		return effect + " " + what + about
	}
	return effect + " " + what + ":" + r.portList() + about
}

// maxPathList bounds the paths in a derived id, whose length is bounded, too.
const maxPathList = 200

// requestList is what a derived id says of requests: nothing for a rule about
// connections, and something else for each other rule.
func (r *Rule) requestList() string {
	text := ""
	if r.Opaque {
		text = " inspect:none"
	}
	if len(r.Methods) > 0 {
		text += " " + strings.Join(r.Methods, ",")
	}
	if len(r.Paths) == 0 {
		return text
	}
	paths := " " + strings.Join(r.Paths, " ")
	if len(paths) > maxPathList {
		sum := sha256.Sum256([]byte(paths))
		paths = fmt.Sprintf("%s... %x", paths[:maxPathList], sum[:8])
	}
	return text + paths
}

func (r *Rule) portList() string {
	var list []string
	for _, p := range r.Ports {
		list = append(list, p.String())
	}
	return strings.Join(list, ",")
}
