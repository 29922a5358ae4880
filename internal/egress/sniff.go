//go:build linux

package egress

import (
	"bytes"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// maxSniff is how many bytes a connection may need to say what it is for.
const maxSniff = 32 << 10

// look says what a connection to port is that begins with b, and which host its
// bytes claim: SNI of TLS, Host of HTTP/1. Not done: more bytes are needed. What
// two servers could read differently claims nothing, and what is not quite TLS or
// HTTP is neither.
func look(b []byte, port uint16) (p policy.Protocol, claimed netaddr.Host, done bool) {
	switch {
	case len(b) == 0:
		return policy.ProtocolUnknown, netaddr.Host{}, false
	case b[0] == recordHandshake:
		return lookTLS(b)
	case token(b[0]):
		return lookHTTP(b, port)
	}
	return policy.ProtocolTCP, netaddr.Host{}, true
}

// lookHTTP reads the head of an HTTP/1 request.
func lookHTTP(b []byte, port uint16) (policy.Protocol, netaddr.Host, bool) {
	const maxMethod = 24
	method := bytes.IndexFunc(b[:min(len(b), maxMethod)], func(r rune) bool { return r >= 0x80 || !token(byte(r)) })
	switch {
	case method < 0 && len(b) < maxMethod:
		return policy.ProtocolUnknown, netaddr.Host{}, false
	case method < 0 || b[method] != ' ':
		return policy.ProtocolTCP, netaddr.Host{}, true
	}
	line, rest, whole := bytes.Cut(b, []byte("\r\n"))
	if !whole {
		odd := bytes.IndexFunc(bytes.TrimSuffix(line, []byte("\r")), func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0
		if odd || len(b) >= maxSniff {
			return policy.ProtocolTCP, netaddr.Host{}, true
		}
		return policy.ProtocolUnknown, netaddr.Host{}, false
	}
	target, ok := requestLine(line[method+1:])
	if !ok {
		return policy.ProtocolTCP, netaddr.Host{}, true
	}
	end := bytes.Index(rest, []byte("\r\n\r\n"))
	switch {
	case bytes.HasPrefix(rest, []byte("\r\n")): // no fields
		return policy.ProtocolHTTP, netaddr.Host{}, true
	case end >= 0:
		host := hostField(rest[:end], port)
		if host.IsValid() && !aims(string(line[:method]), target, host, port) {
			host = netaddr.Host{}
		}
		return policy.ProtocolHTTP, host, true
	case len(b) >= maxSniff:
		return policy.ProtocolHTTP, netaddr.Host{}, true
	}
	return policy.ProtocolUnknown, netaddr.Host{}, false
}

// requestLine takes the target out of "TARGET HTTP/1.x".
func requestLine(b []byte) (target string, ok bool) {
	target, version, ok := strings.Cut(string(b), " ")
	if !ok || target == "" || version != "HTTP/1.1" && version != "HTTP/1.0" {
		return "", false
	}
	for i := range len(target) {
		if target[i] <= ' ' || target[i] >= 0x7f {
			return "", false
		}
	}
	return target, true
}

// hostField reads the one Host of header fields, each of which is plain.
func hostField(b []byte, port uint16) netaddr.Host {
	var found netaddr.Host
	seen := false
	for line := range bytes.SplitSeq(b, []byte("\r\n")) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) == 0 || bytes.IndexFunc(name, func(r rune) bool { return r >= 0x80 || !token(byte(r)) }) >= 0 ||
			bytes.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return netaddr.Host{}
		}
		if !strings.EqualFold(string(name), "host") {
			continue
		}
		if seen {
			return netaddr.Host{}
		}
		seen = true
		if found, ok = authorityOf(strings.Trim(string(value), " \t"), port); !ok {
			return netaddr.Host{}
		}
	}
	return found
}

// authorityOf reads HOST or HOST:PORT, of which the port is the connection's.
func authorityOf(s string, port uint16) (netaddr.Host, bool) {
	h, p, err := netaddr.ParseHostPort(s)
	return h, err == nil && (p == 0 || p == port)
}

// aims reports whether a request's target is on host.
func aims(method, target string, host netaddr.Host, port uint16) bool {
	if strings.EqualFold(method, "connect") {
		return false // a way through to anywhere
	}
	if target[0] == '/' || target == "*" {
		return true
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || !strings.EqualFold(scheme, "http") {
		return false
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	h, ok := authorityOf(rest, port)
	return ok && h == host
}

// token reports whether c may stand in a method or a field's name.
func token(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c != 0 && strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
