package broker

import "github.com/firebreak-dev/firebreak/sandbox"

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
	// Tier is the weakest isolation of a sandbox that may use it; empty: any.
	Tier sandbox.Isolation `json:"tier,omitempty"`
}

// Inject is where the secret goes in a request.
type Inject struct {
	As string `json:"as"` // bearer, basic, header, query
	// Name of the header or the query's parameter; for basic the user.
	Name string `json:"name,omitempty"`
}
