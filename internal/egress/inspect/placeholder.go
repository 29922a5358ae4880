package inspect

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// ReasonPlaceholder: what stands for a secret is where the secret does not go.
const ReasonPlaceholder = "placeholder"

var errPlaceholder = fmt.Errorf("what stands for a secret is where that does not go: %w", errLeak)

func misplaced() *Refusal {
	return &Refusal{Status: http.StatusForbidden, Reason: ReasonPlaceholder, close: true,
		Text: "the request holds a placeholder of a secret where the secret does not go, or for another host"}
}

// choose finds the binding whose placeholder stands where its secret goes, and has
// the request made through it. It returns of target and header what is left when
// that is taken away: there is no placeholder in it.
func (x *exchange) choose(target string) (rest string, header http.Header, no *Refusal) {
	header = x.req.Header
	if t := x.route.binding; t != nil {
		rest, header = t.lift(target, header) // by its base URL
		return rest, header, nil
	}
	if !x.route.named() {
		return target, header, nil
	}
	var found *route
	for _, r := range x.with.direct[x.route.place()] {
		if !r.binding.stands(target, header) {
			continue
		}
		if found != nil { // each would take the other's off
			return target, header, misplaced()
		}
		found = r
	}
	if found == nil {
		return target, header, nil
	}
	x.session = &session{proxy: x.proxy, route: found, ask: x.proxy.o.Ask(found.binding)}
	rest, header = found.binding.lift(target, header)
	return rest, header, nil
}

// stands reports whether the binding's placeholder, and nothing else, is where its
// secret goes in a request.
func (t *Target) stands(target string, header http.Header) bool {
	if len(t.Placeholder) == 0 {
		return false
	}
	if t.As == "query" {
		return t.standsIn(target) >= 0
	}
	name, _ := t.credential()
	values := header[name]
	if len(values) != 1 {
		return false
	}
	value := values[0]
	scheme, rest, _ := strings.Cut(value, " ")
	switch t.As {
	case "bearer":
		return strings.EqualFold(scheme, "bearer") && t.means([]byte(rest))
	case "basic":
		pair, err := base64.StdEncoding.DecodeString(rest)
		_, password, ok := bytes.Cut(pair, []byte(":"))
		return strings.EqualFold(scheme, "basic") && err == nil && ok && t.means(password)
	}
	return t.means([]byte(value))
}

// standsIn is which part of a target's query is the binding's parameter with its
// placeholder; -1: none, or there is another of that name.
func (t *Target) standsIn(target string) (at int) {
	at = -1
	_, query, _ := strings.Cut(target, "?")
	named := 0
	for i, part := range strings.Split(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		if plain, err := url.QueryUnescape(name); err != nil || plain != t.Field {
			continue
		}
		if named++; t.means([]byte(value)) {
			at = i
		}
	}
	if named != 1 {
		return -1
	}
	return at
}

// lift takes the placeholder away from where it stands.
func (t *Target) lift(target string, header http.Header) (string, http.Header) {
	if !t.stands(target, header) {
		return target, header
	}
	if t.As == "query" {
		path, query, _ := strings.Cut(target, "?")
		parts := strings.Split(query, "&")
		i := t.standsIn(target)
		return path + "?" + strings.Join(append(parts[:i:i], parts[i+1:]...), "&"), header
	}
	name, _ := t.credential()
	header = header.Clone()
	delete(header, name)
	return target, header
}

// disarm takes a sandbox's own credentials off a request to a host for which there
// are bindings, none of which it is made through.
func (x *exchange) disarm(out *http.Request) {
	if !x.route.named() {
		return
	}
	for _, t := range x.with.bound[x.route.place()] {
		into, _ := t.credential()
		for name := range out.Header {
			if credential(name) || strings.EqualFold(name, into) {
				delete(out.Header, name)
			}
		}
		out.URL.RawQuery = stripQuery(out.URL.RawQuery, t.parameter())
	}
}

// arm adds to a request that goes on what the sandbox does not see.
func (x *exchange) arm(out *http.Request) {
	if t := x.route.binding; t != nil {
		t.arm(out)
	}
	if f := x.route.face; f.named() {
		if t := x.with.transforms.of(f.place()); t != nil {
			t.set(out.Header)
		}
	}
}

// arm adds the secret.
func (t *Target) arm(out *http.Request) {
	if t.As == "query" {
		if out.URL.RawQuery != "" {
			out.URL.RawQuery += "&"
		}
		out.URL.RawQuery += url.QueryEscape(t.Field) + "=" + url.QueryEscape(string(t.Secret))
		return
	}
	into, value := t.credential()
	out.Header[into] = []string{value}
}

// misuse is why text, which holds a secret or what stands for one, goes nowhere.
func (s *secrets) misuse(text string) *Refusal {
	if s.stands != nil && s.stands.inString(text) {
		return misplaced()
	}
	return leak()
}

// found is the error for a body of which b is left, which begins with a secret or
// what stands for one.
func (s *secrets) found(b []byte) error {
	if s.stands != nil && s.stands.at(b) > 0 {
		return errPlaceholder
	}
	return errLeak
}

// leaked is what the sandbox is told of a body with a secret in it.
func leaked(err error) *Refusal {
	if errors.Is(err, errPlaceholder) {
		return misplaced()
	}
	return leak()
}
