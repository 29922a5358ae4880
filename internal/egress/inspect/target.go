package inspect

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// Target is where the requests of one binding go, which they may be, and what is
// added to them.
type Target struct {
	Name    string // a DNS label
	Host    netaddr.Host
	Port    uint16
	Plain   bool     // without TLS
	Methods []string // none: GET, HEAD, POST, PUT, PATCH, DELETE
	Path    string   // a prefix of whole segments
	As      string   // bearer, basic, header, query
	Field   string   // the header, the parameter or the user
	Git     *Git     // nil: it is for HTTP of any kind
	Secret  []byte   // the proxy's, which overwrites it in the end
	// Placeholder stands for the secret in requests to the host itself; the proxy's,
	// too. Empty: there is none.
	Placeholder []byte
	// Inherited stand for it as well: what programs have that came along from the sandbox
	// that this one was made of.
	Inherited [][]byte
}

// Format implements fmt.Formatter: in no format a target is its secret.
func (t *Target) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "binding %s", t.Name) }

// The most a wire's bindings may be.
const (
	MaxTargets   = 32
	MaxInherited = 4        // placeholders of one binding besides its own
	MaxSecrets   = 64 << 10 // bytes of all together
	maxMethods   = 16
)

var (
	reLabel  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	reMethod = regexp.MustCompile(`^[A-Z][A-Z-]{0,23}$`)
	usual    = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}
)

// placeholderChars are those that no part of a request has to escape.
const placeholderChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"

// check says what about a target cannot be.
func (t *Target) check() error {
	switch {
	case !reLabel.MatchString(t.Name):
		return fmt.Errorf("%.80q is no name of a binding", t.Name)
	case !t.Host.IsValid() || t.Port == 0:
		return fmt.Errorf("the binding %s has no host or no port", t.Name)
	case len(t.Methods) > maxMethods:
		return fmt.Errorf("the binding %s has more than %d methods", t.Name, maxMethods)
	case len(t.Secret) == 0 || !httpguts.ValidHeaderFieldValue(string(t.Secret)):
		return fmt.Errorf("the secret of the binding %s is empty, or cannot be sent in a request", t.Name)
	}
	for _, p := range t.placeholders() {
		if n := len(p); n < 16 || n > block || t.Plain || strings.Trim(string(p), placeholderChars) != "" {
			return fmt.Errorf("the binding %s cannot have such a placeholder, or none without TLS", t.Name)
		}
	}
	if len(t.Inherited) > 0 && (len(t.Placeholder) == 0 || len(t.Inherited) > MaxInherited) {
		return fmt.Errorf("the binding %s has inherited too many placeholders, or has none of its own", t.Name)
	}
	for _, m := range t.Methods {
		if !reMethod.MatchString(m) || m == http.MethodConnect || m == http.MethodTrace {
			return fmt.Errorf("the binding %s cannot have the method %.24q", t.Name, m)
		}
	}
	if path, query, why := splitTarget(t.Path); why != "" || query != "" || strings.Contains(t.Path, "?") || len(path) > 1 && strings.HasSuffix(path, "/") {
		return fmt.Errorf("the binding %s has a path that is none: %s", t.Name, why)
	}
	switch t.As {
	case "bearer":
	case "basic":
		if strings.Contains(t.Field, ":") || !httpguts.ValidHeaderFieldValue(t.Field) {
			return fmt.Errorf("the binding %s has a user with a colon, or one that cannot be sent", t.Name)
		}
	case "header":
		if !plainField(t.Field) {
			return fmt.Errorf("the binding %s cannot have the header %.80q", t.Name, t.Field)
		}
	case "query":
		if t.Field == "" || strings.ContainsAny(t.Field, "&=#;[] ") || !httpguts.ValidHeaderFieldValue(t.Field) {
			return fmt.Errorf("the binding %s cannot have the parameter %.80q", t.Name, t.Field)
		}
	default:
		return fmt.Errorf("the binding %s is injected as %.20q, which is not known", t.Name, t.As)
	}
	if t.Git != nil {
		return t.Git.check(t)
	}
	return nil
}

// plainField reports whether a header may carry a secret: one that says nothing
// about the message itself.
func plainField(name string) bool {
	if !fieldName(name) {
		return false
	}
	switch name = http.CanonicalHeaderKey(name); name {
	case "Host", "Content-Length", "Content-Encoding", "Content-Type", "Expect", "Accept-Encoding", "Range":
		return false
	}
	return !slices.Contains(hopByHop, name) && !slices.Contains(meddling, name)
}

// placeholders are all that stand for the secret.
func (t *Target) placeholders() [][]byte {
	if len(t.Placeholder) == 0 {
		return t.Inherited
	}
	return append([][]byte{t.Placeholder}, t.Inherited...)
}

// means reports whether a text is what stands for the secret.
func (t *Target) means(text []byte) bool {
	return slices.ContainsFunc(t.placeholders(), func(p []byte) bool { return bytes.Equal(p, text) })
}

// Wipe overwrites what is hidden in a target.
func (t *Target) Wipe() {
	clear(t.Secret)
	for _, p := range t.placeholders() {
		clear(p)
	}
}

// allows reports whether the binding is for a method.
func (t *Target) allows(method string) bool {
	if len(t.Methods) == 0 {
		return slices.Contains(usual, method)
	}
	return slices.Contains(t.Methods, method)
}

// holds reports whether a path, which was checked, is one of the binding's.
func (t *Target) holds(path string) bool {
	switch {
	case t.Git != nil:
		return t.Git.part(path) != ""
	case t.Path == "/":
		return true
	}
	rest, ok := strings.CutPrefix(path, t.Path)
	return ok && (rest == "" || rest[0] == '/')
}

// credential is what the binding adds to a header, and to which; of query none.
func (t *Target) credential() (header, value string) {
	switch t.As {
	case "bearer":
		return "Authorization", "Bearer " + string(t.Secret)
	case "basic":
		return "Authorization", "Basic " + base64.StdEncoding.EncodeToString(append([]byte(t.Field+":"), t.Secret...))
	case "header":
		return http.CanonicalHeaderKey(t.Field), string(t.Secret)
	}
	return "", ""
}
