package server

import (
	"fmt"
	"net/url"
	"sort"
	"strings"
)

// router finds the route of a method and a path. It is built once, at start,
// and read-only afterwards.
//
// It is not http.ServeMux because an API must not answer a path with a redirect,
// needs typed 404 and 405 answers, and takes ids as they are: a segment is
// unescaped by itself, so %2F never becomes a separator.
type router struct{ root node }

// node is one position in the tree of path segments.
type node struct {
	literal map[string]*node
	param   *node
	tail    map[string]*route // method → route that takes the rest of the path
	routes  map[string]*route // method → route that ends here
}

// route is one REST binding.
type route struct {
	method   string
	template string   // "/v1/sandboxes/{id}"
	params   []string // "id"
	op       *operation
	serve    func(*exchange) error
	noBody   bool // answer 204 without the message
}

// maxSegments bounds the depth of a path.
const maxSegments = 64

// params are a matched path's values, in the order of route.params.
type params []string

// add enters r. Templates are literals and {name} segments; a last {name...}
// takes the rest. It refuses what two routes would disagree about.
func (t *router) add(r *route) error {
	segments, err := splitTemplate(r.template)
	if err != nil {
		return err
	}
	n := &t.root
	for i, s := range segments {
		name, isParam := strings.CutPrefix(s, "{")
		if !isParam {
			if n.literal == nil {
				n.literal = map[string]*node{}
			}
			if n.literal[s] == nil {
				n.literal[s] = &node{}
			}
			n = n.literal[s]
			continue
		}
		name = strings.TrimSuffix(name, "}")
		if rest, isTail := strings.CutSuffix(name, "..."); isTail {
			if i != len(segments)-1 {
				return fmt.Errorf("%s: {%s} must be the last segment", r.template, name)
			}
			r.params = append(r.params, rest)
			return enter(&n.tail, r)
		}
		r.params = append(r.params, name)
		if n.param == nil {
			n.param = &node{}
		}
		n = n.param
	}
	return enter(&n.routes, r)
}

func enter(m *map[string]*route, r *route) error {
	if *m == nil {
		*m = map[string]*route{}
	}
	if old := (*m)[r.method]; old != nil {
		return fmt.Errorf("%s %s and %s are the same route", r.method, r.template, old.template)
	}
	(*m)[r.method] = r
	return nil
}

// splitTemplate checks and splits a path template.
func splitTemplate(template string) ([]string, error) {
	rest, ok := strings.CutPrefix(template, "/")
	if !ok {
		return nil, fmt.Errorf("path template %q must start with /", template)
	}
	segments := strings.Split(rest, "/")
	for _, s := range segments {
		inner, refused := s, "{}*=: "
		if strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}") {
			inner = strings.TrimSuffix(s[1:len(s)-1], "...")
			refused += "." // no fields of fields
		}
		if inner == "" || strings.ContainsAny(inner, refused) {
			return nil, fmt.Errorf("path template %q: segment %q is not simple", template, s)
		}
	}
	return segments, nil
}

// match finds the route for a method and an escaped path. Without one, allow
// lists the methods the path does have; none means that there is no such path.
// values is appended to buf.
func (t *router) match(method, path string, buf params) (r *route, values params, allow []string) {
	if len(path) == 0 || path[0] != '/' || strings.Count(path, "/") > maxSegments {
		return nil, nil, nil
	}
	m := matcher{method: method}
	if r, values := m.walk(&t.root, path[1:], buf); r != nil {
		return r, values, nil
	}
	sort.Strings(m.allow)
	return nil, nil, m.allow
}

type matcher struct {
	method string
	allow  []string
}

// walk matches rest, the path below n without its leading slash. A literal wins
// over a parameter, a parameter over a tail.
func (m *matcher) walk(n *node, rest string, values params) (*route, params) {
	segment, below, more := strings.Cut(rest, "/")
	for _, child := range [...]*node{n.literal[segment], n.param} {
		if child == nil {
			continue
		}
		v := values
		if child == n.param {
			s, ok := unescape(segment)
			if !ok {
				continue
			}
			v = append(v, s)
		}
		if more {
			if r, v := m.walk(child, below, v); r != nil {
				return r, v
			}
		} else if r := m.pick(child.routes); r != nil {
			return r, v
		}
	}
	if n.tail != nil {
		if s, ok := unescape(rest); ok {
			if r := m.pick(n.tail); r != nil {
				return r, append(values, s)
			}
		}
	}
	return nil, nil
}

// pick returns the method's route or notes which methods there are. HEAD is
// served as GET: net/http drops the body.
func (m *matcher) pick(routes map[string]*route) *route {
	if r := routes[m.method]; r != nil {
		return r
	}
	if r := routes["GET"]; r != nil && m.method == "HEAD" {
		return r
	}
	for method := range routes {
		m.allow = append(m.allow, method)
		if method == "GET" {
			m.allow = append(m.allow, "HEAD")
		}
	}
	return nil
}

// unescape decodes a parameter's value, which may not be empty.
func unescape(s string) (string, bool) {
	if strings.IndexByte(s, '%') < 0 {
		return s, s != ""
	}
	u, err := url.PathUnescape(s)
	return u, err == nil && u != ""
}
