package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/policy/rego"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) policyCommand() *cobra.Command {
	return group("policy", "Check, explain, suggest and keep policies of where a sandbox may connect", a.policyCheck(), a.policyExplain(), a.policySuggest(),
		a.policySet(), a.policyLs(), a.policyShow(), a.policyRm())
}

// maxPolicyFile is more than a document may have, so that one that is too long is
// told of as such.
const maxPolicyFile = 1 << 20

// rePolicyName is what may be included: no path.
var rePolicyName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// readPolicy reads one document; "-" is standard input.
func (a *App) readPolicy(file string) (*policy.Document, error) {
	in := a.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, sandbox.Errorf("policy", sandbox.KindInvalid, "%w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxPolicyFile))
	if err != nil {
		return nil, sandbox.Errorf("policy", sandbox.KindInvalid, "%w", err)
	}
	return policy.Parse(file, text)
}

// compilePolicy reads a document and what it includes: presets, or files NAME.yaml
// beside it.
func (a *App) compilePolicy(file string, private []string) (*policy.Table, error) {
	d, err := a.readPolicy(file)
	if err != nil {
		return nil, err
	}
	o := policy.Options{
		// Nobody waits for this as a connection does, and a laptop may be busy.
		Judge: rego.Options{Timeout: 5 * time.Second}.Judge,
		Named: func(name string) (*policy.Document, error) {
			if !rePolicyName.MatchString(name) {
				return nil, sandbox.Errorf("policy", sandbox.KindInvalid, "%s includes %.80q, which is no name of a policy", file, name)
			}
			beside := filepath.Join(filepath.Dir(file), name+".yaml")
			if _, err := os.Stat(beside); errors.Is(err, fs.ErrNotExist) {
				_, err := policy.Preset(name) // says which there are
				return nil, err
			}
			return a.readPolicy(beside)
		},
	}
	for _, s := range private {
		p, err := netip.ParsePrefix(s)
		if err != nil || p != p.Masked() {
			return nil, sandbox.Errorf("--private", sandbox.KindInvalid, "%.80q is not a network", s).WithHint("write 10.1.0.0/16")
		}
		o.Private = append(o.Private, p)
	}
	return policy.Compile(o, d)
}

const privateDoc = "as if the operator permitted this network, which is not public (repeatable)"

// checkOut is what `policy check --json` prints.
type checkOut struct {
	OK       bool     `json:"ok"`
	Error    string   `json:"error,omitempty"`
	Hint     string   `json:"hint,omitempty"`
	Mode     string   `json:"mode,omitempty"`
	Allow    int      `json:"allow"`
	Deny     int      `json:"deny"`
	Rego     int      `json:"rego"`
	Warnings []string `json:"warnings"`
	// MinIsolation is the weakest boundary that it demands; empty: it demands none.
	MinIsolation string `json:"min_isolation,omitempty"`
}

// demanded is a class as a policy's readers are told of it; empty for none.
func demanded(d policy.Demand) string {
	if d.Isolation == sandbox.IsolationNone {
		return ""
	}
	return d.Isolation.String()
}

func (a *App) policyCheck() *cobra.Command {
	var private []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say whether a policy is one, and what in it has no effect",
		Long: `Check compiles a policy (- is standard input) with what it includes and its Rego,
as a server does, and names the line of what is wrong. Include takes built-in
policies and files NAME.yaml beside FILE.

Exit code: 0 it is a policy, 1 it is not, 2 wrong usage.`,
		Example: `  firebreak policy check build.yaml
  firebreak policy check --private 10.1.0.0/16 build.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			t, err := a.compilePolicy(args[0], private)
			var e *sandbox.Error
			switch {
			case err != nil && (!errors.As(err, &e) || e.Op == "--private"):
				return err
			case err != nil && asJSON:
				if err := a.printJSON(checkOut{Error: e.Message(), Hint: e.Hint, Warnings: []string{}}); err != nil {
					return err
				}
				return exitError{exitFailed}
			case err != nil:
				a.report(e)
				return exitError{exitFailed}
			}
			o := checkOut{OK: true, Mode: string(policy.ModeEnforce), MinIsolation: demanded(t.Demand()), Rego: len(t.Modules()), Warnings: append([]string{}, t.Warnings()...)}
			if t.Observes() {
				o.Mode = string(policy.ModeObserve)
			}
			for _, r := range t.Rules() {
				if r.Deny {
					o.Deny++
				} else {
					o.Allow++
				}
			}
			if asJSON {
				return a.printJSON(o)
			}
			for _, w := range o.Warnings {
				a.say("warning: %s", w)
			}
			class := ""
			if o.MinIsolation != "" {
				class = "; at least " + o.MinIsolation
			}
			_, err = fmt.Fprintf(a.Out, "%s: %s; %s; %s; mode %s%s\n", visible(args[0]), count(o.Allow, "allow rule"), count(o.Deny, "deny rule"), count(o.Rego, "Rego module"), o.Mode, class)
			return sandbox.Wrap("print", "", err)
		},
	}
	cmd.Flags().StringArrayVar(&private, "private", nil, privateDoc)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one object")
	return cmd
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// explainFlags describe a connection.
type explainFlags struct {
	protocol, address, claimed string
	method, path               string
	private                    []string
	all, json                  bool
}

// explain decides about the connection, or the request on it that the flags
// describe.
func (f *explainFlags) explain(ctx context.Context, t *policy.Table, flow policy.Flow) policy.Explanation {
	if f.method == "" && f.path == "" {
		return t.Explain(ctx, flow)
	}
	return t.ExplainRequest(ctx, flow, policy.Request{Method: cmp.Or(f.method, http.MethodGet), Path: cmp.Or(f.path, "/")})
}

// flow is the connection; what is not given follows from the rest as it usually
// does.
func (f *explainFlags) flow(target string) (flow policy.Flow, err error) {
	bad := func(flag string, err error) error { return sandbox.Errorf(flag, sandbox.KindInvalid, "%w", err) }
	if flow.Host, flow.Port, err = netaddr.ParseHostPort(target); err != nil {
		return flow, bad("", err)
	}
	if flow.Port == 0 {
		flow.Port = 443
	}
	switch {
	case f.protocol != "":
		if flow.Protocol, err = policy.ParseProtocol(f.protocol); err != nil {
			return flow, err
		}
	case flow.Port == 80:
		flow.Protocol = policy.ProtocolHTTP
	default:
		flow.Protocol = policy.ProtocolTLS
	}
	if f.address != "" {
		if flow.Addr, err = netip.ParseAddr(f.address); err != nil {
			return flow, bad("--address", err)
		}
	} else if h := flow.Host.Addr(); h.IsValid() {
		flow.Addr = h
	}
	if f.claimed != "" {
		if flow.Claimed, err = netaddr.ParseHost(f.claimed); err != nil {
			return flow, bad("--claimed", err)
		}
	} else if flow.Protocol != policy.ProtocolTCP {
		flow.Claimed = flow.Host
	}
	switch {
	case f.method+f.path == "":
	case flow.Protocol == policy.ProtocolTCP:
		return flow, bad("--method", errors.New("raw TCP has no requests"))
	case strings.Contains(f.path, "?"):
		return flow, bad("--path", errors.New("rules are not about queries: leave it out from the question mark on"))
	}
	return flow, nil
}

// explainOut is what `policy explain --json` prints.
type explainOut struct {
	Host     string    `json:"host"`
	Port     uint16    `json:"port"`
	Protocol string    `json:"protocol"`
	Address  string    `json:"address,omitempty"`
	Class    string    `json:"class,omitempty"`
	Method   string    `json:"method,omitempty"`
	Path     string    `json:"path,omitempty"`
	Decision string    `json:"decision"` // "allow", "observe", "deny"
	Reason   string    `json:"reason"`
	Rule     string    `json:"rule,omitempty"`
	Hint     string    `json:"hint,omitempty"`
	Unread   bool      `json:"unread,omitempty"` // the connection passes, and nobody looks at its requests
	Rego     string    `json:"rego,omitempty"`   // "not asked" where it would be
	Steps    []stepOut `json:"steps"`
	// MinIsolation is the weakest boundary that the policy demands of the sandbox, and
	// DemandedBy where it does.
	MinIsolation string `json:"min_isolation,omitempty"`
	DemandedBy   string `json:"demanded_by,omitempty"`
}

type stepOut struct {
	Rule  string `json:"rule"`
	Place string `json:"place"`
	Deny  bool   `json:"deny"`
	Match bool   `json:"match"`
	Why   string `json:"why"`
}

func explained(x policy.Explanation, t *policy.Table, all bool) explainOut {
	d := x.Decision
	o := explainOut{Host: x.Flow.Host.String(), Port: x.Flow.Port, Protocol: x.Flow.Protocol.String(), Decision: "deny", Reason: d.Reason.String(), Hint: x.Hint, Unread: d.Opaque(), Steps: []stepOut{}}
	if x.Request != nil {
		o.Method, o.Path = x.Request.Method, x.Request.Path
	}
	if d.Allow {
		o.Decision = "allow"
	}
	if d.Observed() {
		o.Decision = "observe"
	}
	if x.Flow.Addr.IsValid() {
		o.Address, o.Class = x.Flow.Addr.String(), d.Class.String()
	} else if d.Reason == policy.ReasonRule && len(t.Modules()) > 0 {
		o.Rego = "not asked"
	}
	if d.Rule != nil {
		o.Rule = d.Rule.ID
	}
	o.MinIsolation, o.DemandedBy = demanded(t.Demand()), t.Demand().By
	for _, s := range x.Steps {
		if all || s.About {
			o.Steps = append(o.Steps, stepOut{s.Rule.ID, fmt.Sprintf("%s:%d", s.Rule.File, s.Rule.Line), s.Rule.Deny, s.Match, s.Why})
		}
	}
	return o
}

func (a *App) policyExplain() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain FILE HOST[:PORT]",
		Short: "Say whether a policy allows a connection or a request, by which rule, and why not",
		Long: `Explain decides about one connection as a sandbox's router does, or with --method
or --path about a request on it, and shows the rules that are about it. Nothing is looked up: without --address the address a name
stands for, and with it Rego, has no say. The port is 443 unless given, the
protocol tls (http on port 80), what the connection claims is the host, and a
request is GET /.

Exit code: 0 allowed (or only observed), 1 denied, 2 wrong usage or policy.`,
		Example: `  firebreak policy explain build.yaml pypi.org
  firebreak policy explain build.yaml api.example.com --method POST --path /v1/x
  firebreak policy explain build.yaml db.example.com:5432 --protocol tcp --address 10.1.2.3 --private 10.1.0.0/16
  firebreak policy explain --json build.yaml 169.254.169.254:80`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			flow, err := f.flow(args[1])
			if err != nil {
				return err
			}
			t, err := a.compilePolicy(args[0], f.private)
			if err != nil {
				return err
			}
			x := f.explain(cmd.Context(), t, flow)
			o := explained(x, t, f.all)
			if f.json {
				err = a.printJSON(o)
			} else {
				err = a.printExplanation(o, len(x.Steps))
			}
			if err == nil && !x.Decision.Allow {
				err = exitError{exitFailed}
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.protocol, "protocol", "", "what is spoken: tls, http or tcp for anything else")
	fs.StringVar(&f.address, "address", "", "the address the name stands for")
	fs.StringVar(&f.method, "method", "", "ask about a request with this method on the connection")
	fs.StringVar(&f.path, "path", "", "ask about a request for this path, as it is sent, without a query")
	fs.StringVar(&f.claimed, "claimed", "", "the host that SNI or the Host header names, if another")
	fs.StringArrayVar(&f.private, "private", nil, privateDoc)
	fs.BoolVar(&f.all, "all", false, "show rules that are about other hosts, too")
	fs.BoolVar(&f.json, "json", false, "print one object")
	return cmd
}

func (a *App) printExplanation(o explainOut, rules int) error {
	head := o.Decision
	if o.Rule != "" && (o.Reason == policy.ReasonRule.String() || o.Reason == policy.ReasonDenied.String()) {
		head += " by " + o.Rule
	} else {
		head += ": " + o.Reason
	}
	text := visible(head) + "\n"
	if o.Hint != "" {
		text += "  hint: " + oneLine(o.Hint) + "\n"
	}
	if o.Unread {
		text += "  it passes unread: nothing is known of its requests, and no secret put into them\n"
	}
	if o.MinIsolation != "" {
		text += fmt.Sprintf("  in a sandbox isolated by %s or better, as %s demands\n", o.MinIsolation, visible(o.DemandedBy))
	}
	if o.Rego != "" {
		text += "  Rego was not asked: give --address\n"
	}
	for _, s := range o.Steps {
		mark := " "
		if s.Match {
			mark = "+"
			if s.Deny {
				mark = "-"
			}
		}
		text += fmt.Sprintf("%s %s (%s): %s\n", mark, visible(s.Rule), visible(s.Place), visible(s.Why))
	}
	if left := rules - len(o.Steps); left > 0 {
		text += fmt.Sprintf("  %s about other hosts\n", count(left, "rule"))
	}
	_, err := io.WriteString(a.Out, text)
	return sandbox.Wrap("print", "", err)
}

func (a *App) policySuggest() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "suggest [FILE]",
		Short: "Make a policy of what sandboxes wanted",
		Long: `Suggest reads connections as JSON, one object a line (FILE, or standard input): what
events tell of egress, or what ` + "`run --json`" + ` prints. It prints the smallest policy
that allows them: a rule for each host, a wildcard with a budget of names for
four and more below one name, never over a public suffix. What no rule can
allow is told of on stderr.

The hosts were named by code that nobody reviewed. Read what is suggested.`,
		Example: `  firebreak policy suggest observed.jsonl > build.yaml
  firebreak policy suggest --policy build.yaml observed.jsonl`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			in := a.In
			if len(args) == 1 && args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return sandbox.Errorf("suggest", sandbox.KindInvalid, "%w", err)
				}
				defer f.Close()
				in = f
			}
			var have *policy.Table
			if file != "" {
				var err error
				if have, err = a.compilePolicy(file, nil); err != nil {
					return err
				}
			}
			observed, err := policy.ReadObservations(in)
			if err != nil {
				return err
			}
			s := policy.Suggest(observed, have)
			for _, l := range s.Left {
				a.say("%s", l)
			}
			_, err = a.Out.Write(s.Document.YAML())
			return sandbox.Wrap("print", "", err)
		},
	}
	cmd.Flags().StringVar(&file, "policy", "", "leave out what this policy allows already")
	return cmd
}
