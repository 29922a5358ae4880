package broker

import (
	"encoding/json"
	"net/textproto"
	"regexp"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Binding is a secret and the only use that may be made of it: requests to one
// host and port, with some methods, below one path.
type Binding struct {
	Name   string `json:"name"`   // ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$, a DNS label
	Secret string `json:"secret"` // its name
	Host   string `json:"host"`   // one name, canonical; no wildcard
	Port   uint16 `json:"port"`   // 443
	Plain  bool   `json:"plain,omitempty"`
	// Methods that may be used, in capitals; none: GET, HEAD, POST, PUT, PATCH,
	// DELETE.
	Methods []string `json:"methods,omitempty"`
	Path    string   `json:"path"` // a prefix of whole segments, "/" for all
	Inject  Inject   `json:"inject"`
	Git     *Git     `json:"git,omitempty"` // nil: for HTTP of any kind
	// Env is the variable in which a sandbox's programs find a placeholder of the
	// secret, to be sent to https://HOST itself; empty: they use the base URL.
	Env string `json:"env,omitempty"`
	// Tier is the weakest isolation of a sandbox that may use it; IsolationNone: any.
	Tier sandbox.Isolation `json:"-"` // by its name, as "tier"
}

// Inject is where the secret goes in a request.
type Inject struct {
	As string `json:"as"` // bearer, basic, header, query
	// Name of the header or the query's parameter; for basic the user.
	Name string `json:"name,omitempty"`
}

// Git makes a binding one for a repository, by git's smart protocol alone.
type Git struct {
	Repo string `json:"repo"` // OWNER/NAME, without .git
	// Push is the refs that may be pushed to: in full, or all below one as in
	// refs/heads/agent/*; none: none.
	Push []string `json:"push,omitempty"`
}

// The ways to inject a secret.
const (
	AsBearer = "bearer"
	AsBasic  = "basic"
	AsHeader = "header"
	AsQuery  = "query"
)

// bindingJSON is a Binding as it is stored.
type bindingJSON struct {
	bindingFields
	Tier string `json:"tier,omitempty"`
}

type bindingFields Binding

// MarshalJSON implements json.Marshaler: a tier is written by its name.
func (b Binding) MarshalJSON() ([]byte, error) {
	j := bindingJSON{bindingFields: bindingFields(b)}
	if b.Tier != sandbox.IsolationNone {
		j.Tier = b.Tier.String()
	}
	return json.Marshal(j)
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *Binding) UnmarshalJSON(text []byte) error {
	var j bindingJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return err
	}
	*b = Binding(j.bindingFields)
	b.Tier = sandbox.IsolationNone
	if j.Tier == "" {
		return nil
	}
	tier, err := sandbox.ParseIsolation(j.Tier)
	b.Tier = tier
	return err
}

// Bounds of a binding.
const (
	maxPath    = 1024
	maxMethods = 16
	maxUser    = 256
	maxPush    = 32
)

var (
	reBindingName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	reMethod      = regexp.MustCompile(`^[A-Z][A-Z-]{0,31}$`)
	// What two parsers could read differently is in no path: escapes, parameters,
	// backslashes, dots as segments, empty segments.
	rePath      = regexp.MustCompile(`^(/[A-Za-z0-9._~!$&'()*+,=:@-]+)+$`)
	reHeader    = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")
	reParameter = regexp.MustCompile(`^[A-Za-z0-9._~-]{1,128}$`)
	reUser      = regexp.MustCompile(`^[!-9;-~]*$`) // printable ASCII without the colon
)

// notHeaders frame a message, or are about one connection: whoever sets them says
// where a request ends, or to whom it goes.
var notHeaders = []string{"Connection", "Content-Length", "Expect", "Host", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
	"Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// CheckBindingName refuses what cannot be the name of a binding. Errors: KindInvalid.
func CheckBindingName(name string) error {
	if reBindingName.MatchString(name) {
		return nil
	}
	return invalid("%.80q is no name of a binding", name).
		WithHint("1 to 63 lower-case letters, digits and hyphens, none at an end: it becomes NAME.binding.internal")
}

// Normal is b as it is kept: host, path and header in one spelling, methods in
// capitals, sorted, and what is left out filled in: port 443, or 80 where Plain, path
// "/", injection as a bearer token. Errors: KindInvalid with what to write instead.
// It looks up neither the host nor the secret.
func (b Binding) Normal() (Binding, error) {
	if err := CheckBindingName(b.Name); err != nil {
		return b, err
	}
	if err := CheckSecretName(b.Secret); err != nil {
		return b, err
	}
	host, err := normalHost(b.Host)
	if err != nil {
		return b, err
	}
	b.Host = host
	if b.Port == 0 {
		b.Port = 443
		if b.Plain {
			b.Port = 80
		}
	}
	if b.Git != nil {
		if b, err = b.normalGit(); err != nil {
			return b, err
		}
	}
	if b.Methods, err = normalMethods(b.Methods); err != nil {
		return b, err
	}
	if b.Path, err = normalPath(b.Path); err != nil {
		return b, err
	}
	if b.Inject, err = b.Inject.normal(); err != nil {
		return b, err
	}
	if err := b.checkEnv(); err != nil {
		return b, err
	}
	if b.Tier < sandbox.IsolationNone || b.Tier > sandbox.IsolationConfidential {
		return b, invalid("tier: %d is no isolation class", b.Tier)
	}
	return b, nil
}

// Check refuses a binding that is not in normal form. Errors: KindInvalid.
func (b Binding) Check() error {
	n, err := b.Normal()
	if err != nil {
		return err
	}
	if n.Host != b.Host || n.Port != b.Port || n.Path != b.Path || n.Inject != b.Inject || !slices.Equal(n.Methods, b.Methods) ||
		n.Git != nil && (n.Git.Repo != b.Git.Repo || !slices.Equal(n.Git.Push, b.Git.Push)) {
		return invalid("the binding is not in its normal form")
	}
	return nil
}

// reEnv are names of variables that every shell can set.
var reEnv = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// notEnv say how programs run, or whom they trust: a placeholder there would break
// all of them.
var notEnv = []string{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "TERM", "LANG", "TMPDIR", "HOSTNAME", "IFS", "ENV", "BASH_ENV",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "AWS_CA_BUNDLE",
	"CARGO_HTTP_CAINFO", "DENO_CERT", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"}

// checkEnv refuses a variable that cannot hold a placeholder, or a binding whose
// requests are not looked into.
func (b Binding) checkEnv() error {
	upper := strings.ToUpper(b.Env)
	switch {
	case b.Env == "":
		return nil
	case !reEnv.MatchString(b.Env):
		return invalid("placeholder: %.80q is no name of a variable", b.Env).WithHint("write --placeholder OPENAI_API_KEY: letters, digits and underscores, no digit first")
	case slices.Contains(notEnv, upper), strings.HasPrefix(upper, "LD_"), strings.HasPrefix(upper, "FIREBREAK"), strings.HasPrefix(upper, "LC_"):
		return invalid("placeholder: %s says how programs run", b.Env).WithHint("name the variable that the client reads its key from")
	case strings.HasSuffix(upper, "_BASE_URL"):
		return invalid("placeholder: %s is where a binding is found", b.Env).WithHint("name the variable that the client reads its key from")
	case b.Plain:
		return invalid("placeholder: the binding is without TLS").WithHint("a placeholder is replaced in HTTPS alone; leave one of --plain and --placeholder out")
	}
	return nil
}

func invalid(format string, args ...any) *sandbox.Error {
	return sandbox.Errorf("binding", sandbox.KindInvalid, format, args...)
}

func normalHost(s string) (string, error) {
	if strings.Contains(s, "*") {
		return "", invalid("host: %.80q is a wildcard", s).WithHint("a binding is for one host: what it may be sent to is what can read it")
	}
	h, err := netaddr.ParseHost(s)
	if err != nil {
		return "", invalid("host: %w", err).WithHint("write a name like api.example.com; the port is apart, with --port")
	}
	switch name := h.Name(); {
	case name == "":
		return "", invalid("host: %s is an address", h).WithHint("a binding is for a name, which the other side proves with its certificate")
	case name == "binding.internal" || strings.HasSuffix(name, ".binding.internal"):
		return "", invalid("host: %s is a name of bindings", name).WithHint("name the host where requests go in the end")
	}
	return h.Name(), nil
}

func normalMethods(list []string) ([]string, error) {
	var out []string
	for _, m := range list {
		m = strings.ToUpper(m)
		switch {
		case !reMethod.MatchString(m):
			return nil, invalid("method: %.80q is none", m).WithHint("write GET, HEAD, POST, PUT, PATCH, DELETE or another in letters")
		case m == "CONNECT" || m == "TRACE" || m == "PRI":
			return nil, invalid("method: %s is not for a binding", m).WithHint("it would open a tunnel, or send the secret back")
		}
		out = append(out, m)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) > maxMethods {
		return nil, invalid("method: there are %d", len(out)).WithHint("at most %d; without any the usual ones may be used", maxMethods)
	}
	return out, nil
}

func normalPath(s string) (string, error) {
	if s == "" || s == "/" {
		return "/", nil
	}
	p := strings.TrimSuffix(s, "/")
	bad := func(why string) (string, error) {
		return "", invalid("path: %.80q %s", s, why).WithHint("write /v1: whole segments of letters, digits and -._~!$&'()*+,=:@, without escapes or a query")
	}
	switch {
	case len(p) > maxPath:
		return bad("is too long")
	case s[0] != '/':
		return bad("does not begin with a slash")
	case !rePath.MatchString(p):
		return bad("is not a plain path")
	}
	for seg := range strings.SplitSeq(p[1:], "/") {
		if seg == "." || seg == ".." {
			return bad("has a segment of dots")
		}
	}
	return p, nil
}

func (i Inject) normal() (Inject, error) {
	if i.As == "" {
		i.As = AsBearer
	}
	switch i.As {
	case AsBearer:
		if i.Name != "" {
			return i, invalid("field: a bearer token has no field of its own").WithHint("leave it out, or inject as header")
		}
	case AsBasic:
		if len(i.Name) > maxUser || !reUser.MatchString(i.Name) {
			return i, invalid("field: %.80q is no user's name", i.Name).WithHint("printable ASCII without a colon or a space; it may be empty")
		}
	case AsHeader:
		if !reHeader.MatchString(i.Name) {
			return i, invalid("field: %.80q is no name of a header", i.Name).WithHint("write --field X-Api-Key")
		}
		i.Name = textproto.CanonicalMIMEHeaderKey(i.Name)
		if slices.Contains(notHeaders, i.Name) {
			return i, invalid("field: %s says where a message ends or goes, and holds no secret", i.Name).WithHint("name the header that the host reads its credential from")
		}
	case AsQuery:
		if !reParameter.MatchString(i.Name) {
			return i, invalid("field: %.80q is no name of a parameter", i.Name).WithHint("write --field key: letters, digits, dots, hyphens, underscores and tildes")
		}
	default:
		return i, invalid("as: %.80q is no way to inject a secret", i.As).WithHint("one of bearer, basic, header, query")
	}
	return i, nil
}
