package egress

import "fmt"

// Binding is what requests to http://<name>.binding.internal/ become: the same
// requests, sent on to one host with a secret added that the sandbox never sees.
type Binding struct {
	Name    string   `json:"name"` // a DNS label
	Host    string   `json:"host"`
	Port    uint16   `json:"port"`
	Plain   bool     `json:"plain,omitempty"`   // without TLS
	Methods []string `json:"methods,omitempty"` // none: GET, HEAD, POST, PUT, PATCH, DELETE
	Path    string   `json:"path"`              // a prefix of whole segments, "/" for all
	As      string   `json:"as"`                // bearer, basic, header, query: where the secret goes
	Field   string   `json:"field,omitempty"`   // the header, the parameter or the user
	Git     *Git     `json:"git,omitempty"`
	Secret  Hidden   `json:"secret"`
	// Placeholder becomes the secret in requests to https://<host> itself, where the
	// secret goes and nowhere else; empty: there is none.
	Placeholder Hidden `json:"placeholder,omitempty"`
	// Inherited are placeholders that stand for the secret as well, on this wire: those of
	// the sandbox that this one was made of.
	Inherited []Hidden `json:"inherited,omitempty"`
}

// Transform sets headers of the requests to a host that the policy lets pass,
// whatever the sandbox says in them.
type Transform struct {
	Host    string            `json:"host"` // a name, or *.NAME for all below it; the most specific counts alone
	Port    uint16            `json:"port"`
	Headers []TransformHeader `json:"headers"`
	Secrets []Hidden          `json:"secrets,omitempty"` // in their values
}

// TransformHeader is a header that is set.
type TransformHeader struct {
	Name  string `json:"name"` // in its canonical spelling
	Value Hidden `json:"value"`
}

// Git makes a binding one for a repository by git's smart protocol, whose path is
// the binding's.
type Git struct {
	Repo string   `json:"repo"`           // OWNER/NAME, without .git
	Push []string `json:"push,omitempty"` // refs that may be pushed to, in full or as refs/heads/agent/*
}

// Hidden is a secret on its way to the router. It prints as nothing, and crosses
// the router's socket in JSON, which is the one place where that is meant.
type Hidden []byte

// Wipe overwrites what is hidden in a binding.
func (b *Binding) Wipe() {
	clear(b.Secret)
	clear(b.Placeholder)
	for _, p := range b.Inherited {
		clear(p)
	}
}

// Wipe overwrites what is hidden in a transform.
func (t *Transform) Wipe() {
	for _, h := range t.Headers {
		clear(h.Value)
	}
	for _, s := range t.Secrets {
		clear(s)
	}
}

// Format implements fmt.Formatter.
func (Hidden) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted]")) }
