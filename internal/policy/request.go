package policy

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Request is one HTTP request on a connection that was allowed and is read.
type Request struct {
	// Method is what the request line says, compared byte by byte: GET is neither get
	// nor HEAD.
	Method string
	// Path is as it was sent, with its escapes and without the query.
	Path string
	// Binding is the name of the binding whose secret would be put into the request;
	// empty for none. Rules are not about it, Rego may be.
	Binding string
}

// The most a rule may say about requests.
const (
	maxMethods = 16
	maxPaths   = 64
	maxPath    = 1024 // bytes
)

var (
	reMethod = regexp.MustCompile(`^[A-Z][A-Z-]{0,23}$`)
	// What two parsers could read differently is in no rule: escapes, parameters,
	// backslashes, dots as segments, empty segments. A binding's path is the same.
	rePath = regexp.MustCompile(`^(/[A-Za-z0-9._~!$&'()*+,=:@-]+)+$`)
)

func parseMethod(s string) (string, error) {
	switch {
	case !reMethod.MatchString(s):
		return "", fmt.Errorf("%.40q is not a method: write GET, HEAD, POST, PUT, PATCH, DELETE or another in capitals", s)
	case s == "CONNECT" || s == "PRI":
		return "", fmt.Errorf("no request with %s ever passes", s)
	}
	return s, nil
}

// parsePath reads a prefix of whole segments; a slash at its end says no more.
func parsePath(s string) (string, error) {
	if s == "/" {
		return s, nil
	}
	p := strings.TrimSuffix(s, "/")
	if len(p) > maxPath || !rePath.MatchString(p) {
		return "", fmt.Errorf("%.80q is not a path: write /v1, whole segments of letters, digits and -._~!$&'()*+,=:@ without escapes or a query", s)
	}
	for segment := range strings.SplitSeq(p[1:], "/") {
		if strings.Trim(segment, ".") == "" {
			return "", fmt.Errorf("%.80q has a segment of dots", s)
		}
	}
	return p, nil
}

// aboutRequests reports whether a rule is about some requests only.
func (r *Rule) aboutRequests() bool { return len(r.Methods)+len(r.Paths) > 0 }

// asked is a request that is decided about.
type asked struct {
	Request
	plain bool // the path means one thing; see OddPath
}

// meaning is the path without its escapes, if it means one thing.
func (q *asked) meaning() string {
	if p, err := url.PathUnescape(q.Path); q.plain && err == nil {
		return p
	}
	return ""
}

// permits reports whether an allow rule permits a request by its method and path,
// or which of the two it does not. The path is compared as it was sent: an escape
// is never what a rule says.
func (r *Rule) permits(q *asked) Reason {
	if len(r.Methods) > 0 && !slices.Contains(r.Methods, q.Method) {
		return ReasonMethod
	}
	if len(r.Paths) > 0 && !(q.plain && slices.ContainsFunc(r.Paths, func(p string) bool { return holds(p, q.Path) })) {
		return ReasonPath
	}
	return ReasonRule
}

// forbids reports whether a deny rule, whose host it is, is about a request. What
// some server could take for something the rule names is: a method that is not in
// capitals, a path that is not plain, or is one of the rule's unescaped or in
// other letters.
func (r *Rule) forbids(q *asked) bool {
	if len(r.Methods) > 0 && !slices.Contains(r.Methods, q.Method) && reMethod.MatchString(q.Method) {
		return false
	}
	return len(r.Paths) == 0 || !q.plain || slices.ContainsFunc(r.Paths, func(p string) bool { return mayHold(p, q.Path) })
}

// holds reports whether path is prefix or is below it.
func holds(prefix, path string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (rest == "" || rest[0] == '/')
}

// mayHold is holds for a server that undoes escapes and does not tell capitals
// apart. The path is plain.
func mayHold(prefix, path string) bool {
	i := 0
	for j := range len(prefix) {
		if i >= len(path) {
			return false
		}
		c := path[i]
		if c == '%' {
			c = unhex(path[i+1])<<4 | unhex(path[i+2])
			i += 2
		}
		i++
		if lower(c) != lower(prefix[j]) {
			return false
		}
	}
	return i == len(path) || path[i] == '/'
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// unhex is the value of a hexadecimal digit, 0xff of anything else.
func unhex(c byte) byte {
	switch c = lower(c); {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// pathChars are those that stand for themselves in a path. A semicolon is none:
// some servers cut a segment there.
const pathChars = "-._~!$&'()*+,=:@"

// OddPath says why two servers may read a request's path differently: escapes of
// what has a meaning, empty segments, dots. Empty: they may not. It allocates
// where the path has escapes.
func OddPath(path string) (why string) {
	if path == "" || path[0] != '/' {
		return "the target is not a path"
	}
	escapes := false
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '/', strings.IndexByte(pathChars, c) >= 0:
		case c != '%':
			return "the path has a character that is to be escaped"
		case i+2 >= len(path) || unhex(path[i+1]) == 0xff || unhex(path[i+2]) == 0xff:
			return "the path has an escape that is none"
		default:
			switch v := unhex(path[i+1])<<4 | unhex(path[i+2]); {
			case v == '.', v == '/', v == '\\', v == ';', v == '%', v == '?', v == '#', v < ' ', v == 0x7f:
				return "the path has an escape of a character that has a meaning"
			}
			escapes = true
			i += 2
		}
	}
	if escapes {
		var err error
		if path, err = url.PathUnescape(path); err != nil || !utf8.ValidString(path) {
			return "the path is not UTF-8"
		}
	}
	for rest, more := path[1:], true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		switch {
		case segment == "" && more:
			return "the path has an empty segment"
		case segment != "" && strings.Trim(segment, ". ") == "":
			return "the path has a segment of dots"
		}
	}
	return ""
}

// DecideRequest decides about a request on a connection that Decide allowed and
// that is read; f is what Decide got, and claims what the request says it is for.
// Deny rules come first. Of the allow rules for the connection, the most specific
// one whose methods and paths permit the request answers. It holds for any strings:
// a path that is odd is below no path of an allow rule and below each of a deny
// rule. Costs are those of Decide, and of Rego, which is asked about requests as
// well.
func (t *Table) DecideRequest(ctx context.Context, f Flow, r Request) Decision {
	if f.Port == 0 || f.Protocol != ProtocolTLS && f.Protocol != ProtocolHTTP || !f.Addr.IsValid() || r.Method == "" {
		return Decision{Generation: t.generation}
	}
	q := t.asked(r)
	d := t.decide(f, &q)
	if t.judge == nil || d.Reason != ReasonRule {
		return d
	}
	return t.judged(ctx, f, &q, d)
}

// CouldRequest is Could for a request: it decides as far as the connection is
// known. It asks no Rego.
func (t *Table) CouldRequest(f Flow, r Request) Decision {
	q := t.asked(r)
	return t.decide(f, &q)
}

// Particular reports whether it matters what a request on a connection is: some
// rule about the connection is about some requests only, or Rego is asked. What
// asks a server to take a request for another one must not pass on it then.
func (t *Table) Particular(f Flow) bool {
	return t.judge != nil || t.narrows && t.narrow.denied(f, nil) != nil || slices.ContainsFunc(t.candidates(f, nil), func(r *Compiled) bool { return r.aboutRequests() })
}

// said is what the allow rules for a connection say about requests, cut short: a
// sandbox can have it asked for as often as it is denied something.
func (t *Table) said(f Flow, what func(*Rule) []string) string {
	all := map[string]bool{}
	for _, r := range t.candidates(f, nil) {
		for _, s := range what(&r.Rule) {
			if all[s] = true; len(all) > maxSaid {
				return short(slices.Sorted(maps.Keys(all)))
			}
		}
	}
	return short(slices.Sorted(maps.Keys(all)))
}

// maxSaid is how many of a list people are told.
const maxSaid = 6

// short is a list for people.
func short(list []string) string {
	text := strings.Join(list[:min(len(list), maxSaid)], ", ")
	if len(list) > maxSaid {
		text += " and others"
	}
	return text
}

// asked looks at a request's path once, if any rule will.
func (t *Table) asked(r Request) asked {
	return asked{r, !t.paths && t.judge == nil || OddPath(r.Path) == ""}
}
