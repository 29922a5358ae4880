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

// Format implements fmt.Formatter.
func (Hidden) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted]")) }
