package e2b

import (
	"net/http"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// What E2B's clients can ask for and this server does not do yet is here, and
// nowhere else: a route, or a field of a request to create.

// notYetRoutes are the routes of whole features, as patterns of the control API.
var notYetRoutes = map[string]string{
	"/volumes":                 "keeping volumes",
	"/volumes/{rest...}":       "keeping volumes",
	"/volumecontent/{rest...}": "keeping volumes",
	"/templates":               "managing templates over this API",
	"/templates/{rest...}":     "managing templates over this API",
	"/v2/templates":            "managing templates over this API",
	"/v2/templates/{rest...}":  "managing templates over this API",
	"/v3/templates":            "managing templates over this API",
	"/v3/templates/{rest...}":  "managing templates over this API",
}

// notYet is the one answer.
func notYet(what string) error {
	return sandbox.Errorf("e2b", sandbox.KindUnsupported, "%s is not supported yet", what).
		WithHint("docs/guides/e2b.md lists what works, differs and is refused")
}

// registerNotYet enters the routes.
func (s *Server) registerNotYet(mux *http.ServeMux) {
	for pattern, what := range notYetRoutes {
		mux.HandleFunc(pattern, s.keyed(func(http.ResponseWriter, *http.Request) error { return notYet(what) }))
	}
}

// notYetFields refuses what a create asks for beyond what is done. Ignoring a
// field that somebody relies on for security would be worse than an error.
func (c *createRequest) notYetFields() error {
	switch {
	case c.AutoPauseMemory != nil && !*c.AutoPauseMemory:
		return withMemory(c.AutoPauseMemory)
	case given(c.IAM):
		return notYet("workload identity (iam)")
	case given(c.VolumeMounts):
		return notYet("mounting volumes")
	case given(c.MCP):
		return notYet("the MCP gateway")
	case c.Network != nil:
		return c.Network.notYetFields()
	}
	return nil
}

func (n *networkRequest) notYetFields() error {
	switch {
	case given(n.EgressProxy):
		return notYet("an egress proxy")
	case n.MaskRequestHost != "" || len(n.HTTPSPorts) > 0:
		return notYet("changing the host name or the scheme of what goes to a port")
	case n.AllowPublicTraffic != nil && *n.AllowPublicTraffic:
		return sandbox.Errorf("create", sandbox.KindUnsupported, "traffic to a sandbox's ports always needs its token").
			WithHint("leave allowPublicTraffic out; the header e2b-traffic-access-token carries trafficAccessToken")
	}
	return nil
}
