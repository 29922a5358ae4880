// Package dns answers the DNS queries of one sandbox, without asking anybody: a
// name that the policy could allow has an address of the sandbox's own, every
// other name does not exist. What a connection to such an address is for is known
// by it, and the name is resolved when that connection is made, not before.
//
//	a := &dns.Answerer{Policy: live, Account: account, Pool: dns.NewPool(0)}
//	reply, outcome := a.Answer(datagram)
//	host, ok := a.Pool.Host(addr) // of a connection to addr
//
// So nothing that hostile code puts into a query leaves the machine, except
// names below a wildcard, when a connection to one of them is made; those have a
// budget.
package dns

import (
	"errors"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// Range is where addresses of names are from: a network for benchmarks, which
// nobody routes.
var Range = netip.MustParsePrefix("198.18.0.0/15")

// PoolSize is how many names one sandbox can have addresses for, and Epochs how
// many pools fit into Range.
const (
	PoolSize = 4096
	Epochs   = 1 << 17 / PoolSize
)

// Pool is the addresses of names. A name keeps its address, and an address its
// name, as long as the pool lives; nothing is taken away when it is full. All
// methods may be called at once.
type Pool struct {
	first uint32

	mu    sync.Mutex
	names []netaddr.Host          // guarded by mu; that of address first+i
	index map[netaddr.Host]uint32 // guarded by mu
}

// NewPool makes an empty pool. Pools of different epochs, counted modulo Epochs,
// share no address: a sandbox that is restored without its pool gets another
// epoch, and what it remembers of the last one leads nowhere.
func NewPool(epoch int) *Pool {
	b := Range.Addr().As4()
	base := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	return &Pool{first: base + uint32((epoch%Epochs+Epochs)%Epochs)*PoolSize, index: map[netaddr.Host]uint32{}}
}

// ErrFull says that a sandbox has asked for too many names.
var ErrFull = errors.New("the sandbox has addresses for as many names as it can")

// Addr is the address of a name, which it gets if it has none. Errors: ErrFull.
func (p *Pool) Addr(h netaddr.Host) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i, ok := p.index[h]
	if !ok {
		if len(p.names) == PoolSize {
			return netip.Addr{}, ErrFull
		}
		i = uint32(len(p.names))
		p.names = append(p.names, h)
		p.index[h] = i
	}
	n := p.first + i
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), nil
}

// Host is the name an address was given to.
func (p *Pool) Host(a netip.Addr) (netaddr.Host, bool) {
	if a = a.Unmap(); !a.Is4() {
		return netaddr.Host{}, false
	}
	b := a.As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	p.mu.Lock()
	defer p.mu.Unlock()
	if n < p.first || n-p.first >= uint32(len(p.names)) {
		return netaddr.Host{}, false
	}
	return p.names[n-p.first], true
}

// Answerer answers the queries of one sandbox. All methods may be called at once.
type Answerer struct {
	Policy  *policy.Live
	Account *policy.Accountant
	Pool    *Pool
	// Zone, if not nil, reports names that no policy is about, and whether they exist:
	// they have addresses then, and no budget.
	Zone func(h netaddr.Host) (in, exists bool)
}

// Outcome is what a query was about, for the record.
type Outcome struct {
	Host     netaddr.Host     // invalid where the query was odd
	Type     dnsmessage.Type  // likewise
	Code     dnsmessage.RCode // of the reply
	Address  netip.Addr       // that was answered, if any
	Decision policy.Decision  // about Host
	Err      error            // what was odd, or which budget is used up
}

// MaxQuery is the longest query that is looked at, and the longest reply, in
// bytes.
const MaxQuery = 512

const (
	timeToLive = 60   // seconds
	udpSize    = 1232 // what we say that we take, with EDNS
	badVersion = dnsmessage.RCode(16)

	typeIXFR = dnsmessage.Type(251)
	typeALL  = dnsmessage.Type(255)
)

// odd is why a query is not one that a resolver sends.
type odd struct {
	code dnsmessage.RCode
	why  string
}

// Error implements error.
func (e *odd) Error() string { return e.why }

// query is what is looked at.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	edns     bool
}

// Answer returns the reply to one message, nil for none: to what is no query,
// nothing is said. It never fails, allocates at most some kilobytes, and asks
// nobody.
func (a *Answerer) Answer(message []byte) ([]byte, Outcome) {
	q, err := parse(message)
	var o Outcome
	if err != nil {
		o.Err = err
		var e *odd
		if !errors.As(err, &e) {
			return nil, o
		}
		o.Code = e.code
		return reply(q, o), o
	}
	o.Type = q.question.Type
	o.Host, err = netaddr.ParseHost(strings.TrimSuffix(q.question.Name.String(), "."))
	if err != nil || o.Host.Name() == "" {
		o.Code, o.Err = dnsmessage.RCodeNameError, err
		return reply(q, o), o
	}
	a.decide(&o)
	return reply(q, o), o
}

// Failure returns the reply to a message where Answer's must not be sent: that the
// server failed. Nil for what is no plain question.
func Failure(message []byte) []byte {
	q, err := parse(message)
	if err != nil {
		return nil
	}
	return reply(q, Outcome{Code: dnsmessage.RCodeServerFailure})
}

// decide fills in what the policy says.
func (a *Answerer) decide(o *Outcome) {
	if a.Zone != nil {
		if in, exists := a.Zone(o.Host); in {
			o.Decision = policy.Decision{Allow: exists, Generation: a.Policy.Table().Generation()}
			a.address(o)
			return
		}
	}
	o.Decision = a.Policy.Table().Could(policy.Flow{Host: o.Host})
	if !o.Decision.Allow {
		o.Code = dnsmessage.RCodeNameError
		return
	}
	if r := o.Decision.Rule; r != nil {
		if err := a.Account.Name(r, o.Host); err != nil {
			o.Decision.Allow, o.Decision.Reason = false, policy.ReasonBudget
			o.Code, o.Err = dnsmessage.RCodeRefused, err
			return
		}
	}
	a.address(o)
}

// address gives a name that exists its address.
func (a *Answerer) address(o *Outcome) {
	if !o.Decision.Allow {
		o.Code = dnsmessage.RCodeNameError
		return
	}
	if o.Type != dnsmessage.TypeA {
		return // it exists and has none of these, IPv6 addresses and keys for ECH among them
	}
	addr, err := a.Pool.Addr(o.Host)
	if err != nil {
		o.Code, o.Err = dnsmessage.RCodeServerFailure, err
		return
	}
	o.Address = addr
}

var errNoQuery = errors.New("this is no DNS query")

// parse reads a message that must be one plain question. Errors: *odd, which is
// answered, and errNoQuery, which is not.
func parse(b []byte) (q query, err error) {
	var p dnsmessage.Parser
	if q.header, err = p.Start(b); err != nil || q.header.Response {
		return q, errNoQuery
	}
	count := func(i int) int { return int(b[i])<<8 | int(b[i+1]) }
	switch {
	case len(b) > MaxQuery:
		return q, &odd{dnsmessage.RCodeFormatError, "the query is longer than 512 bytes"}
	case q.header.OpCode != 0:
		return q, &odd{dnsmessage.RCodeNotImplemented, "the opcode is not that of a query"}
	case q.header.Truncated || q.header.Authoritative || q.header.RecursionAvailable || q.header.RCode != 0 || b[3]&0x40 != 0:
		return q, &odd{dnsmessage.RCodeFormatError, "the header has flags of a reply"}
	case count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 1:
		return q, &odd{dnsmessage.RCodeFormatError, "there is not exactly one question"}
	}
	end, ok := plainName(b)
	if !ok {
		return q, &odd{dnsmessage.RCodeFormatError, "the name is cut short or compressed"}
	}
	question, err := p.Question()
	if err != nil {
		return q, &odd{dnsmessage.RCodeFormatError, "the question cannot be read"}
	}
	q.question = question
	end += 4
	if err := p.SkipAllQuestions(); err != nil {
		return q, &odd{dnsmessage.RCodeFormatError, "the question cannot be read"}
	}
	if count(10) == 1 {
		if end, err = q.options(b, end); err != nil {
			return q, err
		}
	}
	switch {
	case end != len(b):
		return q, &odd{dnsmessage.RCodeFormatError, "there are bytes behind the query"}
	case question.Class != dnsmessage.ClassINET:
		return q, &odd{dnsmessage.RCodeRefused, "the class is not that of the Internet"}
	case question.Type == dnsmessage.TypeAXFR, question.Type == typeIXFR, question.Type == typeALL, question.Type == dnsmessage.TypeOPT, question.Type == 0,
		question.Type > 127 && question.Type < 256: // what is asked of a server and not of a name
		return q, &odd{dnsmessage.RCodeRefused, "the type is none of a record"}
	}
	return q, nil
}

// plainName returns the end of the name of the first question, which has no
// pointers.
func plainName(b []byte) (end int, ok bool) {
	for i := 12; i < len(b); i += 1 + int(b[i]) {
		switch {
		case b[i]&0xc0 != 0:
			return 0, false
		case b[i] == 0:
			return i + 1, i+5 <= len(b)
		}
	}
	return 0, false
}

// options reads the one additional record, from at on, which is EDNS's.
func (q *query) options(b []byte, at int) (end int, err error) {
	const fixed = 11 // root, type, class, TTL, length
	if at+fixed > len(b) || b[at] != 0 || b[at+1] != 0 || b[at+2] != byte(dnsmessage.TypeOPT) {
		return 0, &odd{dnsmessage.RCodeFormatError, "the additional record is not EDNS's"}
	}
	extended, version, flags, length := b[at+5], b[at+6], int(b[at+7])<<8|int(b[at+8]), int(b[at+9])<<8|int(b[at+10])
	q.edns = true
	switch {
	case version != 0:
		return 0, &odd{badVersion, "the version of EDNS is not 0"}
	case extended != 0 || flags&^0x8000 != 0: // 0x8000: DNSSEC, of which there is none
		return 0, &odd{dnsmessage.RCodeFormatError, "EDNS has flags nobody knows"}
	}
	end = at + fixed + length
	if end > len(b) {
		return 0, &odd{dnsmessage.RCodeFormatError, "EDNS is cut short"}
	}
	for i := at + fixed; i < end; {
		if i+4 > end || i+4+(int(b[i+2])<<8|int(b[i+3])) > end {
			return 0, &odd{dnsmessage.RCodeFormatError, "an option of EDNS is cut short"}
		}
		i += 4 + (int(b[i+2])<<8 | int(b[i+3])) // none has an effect
	}
	return end, nil
}

// reply is the answer to q.
func reply(q query, o Outcome) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, MaxQuery), dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, RCode: o.Code & 0xf,
	})
	b.EnableCompression()
	err := b.StartQuestions()
	if q.question.Name.Length > 0 && err == nil {
		err = b.Question(q.question)
	}
	if err == nil && o.Address.IsValid() {
		err = errors.Join(b.StartAnswers(), b.AResource(dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: timeToLive},
			dnsmessage.AResource{A: o.Address.As4()}))
	}
	if err == nil && q.edns {
		var h dnsmessage.ResourceHeader
		err = errors.Join(h.SetEDNS0(udpSize, o.Code, false), b.StartAdditionals(), b.OPTResource(h, dnsmessage.OPTResource{}))
	}
	out, ferr := b.Finish()
	if err != nil || ferr != nil {
		return nil // a question that could be read and not be written
	}
	return out
}
