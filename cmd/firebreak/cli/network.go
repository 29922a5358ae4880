package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/policy/rego"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// networkFlags are the flags that say where a sandbox may connect.
type networkFlags struct{ allow, policies []string }

func (f *networkFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.allow, "allow", nil, "let it connect to HOST[:PORT], port 443 unless given; *.NAME is one label in front (repeatable)")
	fs.StringArrayVar(&f.policies, "policy", nil, "let it connect where a policy says: FILE (with a slash or .yaml), or NAME of a built-in or stored one (repeatable)")
}

// network is what the flags say; nil where they say nothing. What is wrong in a
// file is said with its line before anybody is asked.
func (f *networkFlags) network() (*client.Network, error) {
	if len(f.allow)+len(f.policies) == 0 {
		return nil, nil
	}
	for _, s := range f.allow {
		if _, err := policy.ParseAllow(s); err != nil {
			return nil, flagged("--allow", err)
		}
	}
	b := &policyBundle{texts: map[string]string{}, docs: map[string]*policy.Document{}, files: map[string]string{}}
	n := &client.Network{Allow: f.allow}
	var top []*policy.Document
	for _, s := range f.policies {
		if policyName(s) {
			n.Policies = append(n.Policies, s)
			continue
		}
		name, err := b.top(s)
		if err != nil {
			return nil, flagged("--policy", err)
		}
		n.Policies = append(n.Policies, name)
		top = append(top, b.docs[name])
	}
	if len(b.texts) > 0 {
		n.Documents = b.texts
	}
	o := policy.Options{Judge: rego.Options{Timeout: 5 * time.Second}.Judge, Named: func(name string) (*policy.Document, error) {
		if d := b.docs[name]; d != nil {
			return d, nil
		}
		return &policy.Document{Mode: policy.ModeEnforce, File: name}, nil // the server has it, or says that it has not
	}}
	if _, err := policy.Compile(o, top...); len(top) > 0 && err != nil {
		return nil, flagged("--policy", err)
	}
	return n, nil
}

// flagged is an error of a flag's value: wrong usage.
func flagged(flag string, err error) error {
	var e *sandbox.Error
	if !errors.As(err, &e) {
		return sandbox.Errorf(flag, sandbox.KindInvalid, "%w", err)
	}
	c := *e
	c.Op, c.ID, c.Kind = flag, "", sandbox.KindInvalid
	return &c
}

// policyName tells names from files by how they are written, never by what lies
// in the current directory: that may be somebody else's.
func policyName(s string) bool {
	switch filepath.Ext(s) {
	case ".yaml", ".yml", ".json":
		return false
	}
	return policy.ValidName(s)
}

// policyBundle is policies of files, with what they include, as a request carries
// them.
type policyBundle struct {
	texts map[string]string // by name
	docs  map[string]*policy.Document
	files map[string]string // where each was read
}

var reNotInName = regexp.MustCompile(`[^a-z0-9._-]+`)

// top adds the file of a --policy and returns the name it has in the request.
func (b *policyBundle) top(file string) (string, error) {
	base := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
	name := strings.TrimLeft(reNotInName.ReplaceAllString(strings.ToLower(base), "-"), "._-")
	name = cmp.Or(name[:min(len(name), 48)], "policy")
	if policy.BuiltIn(name) { // who includes that name means the built-in one
		name = "file-" + name
	}
	return name, b.add(name, file)
}

// add reads a file and those beside it that it includes.
func (b *policyBundle) add(name, file string) error {
	if was, there := b.files[name]; there && filepath.Clean(was) == filepath.Clean(file) {
		return nil
	}
	text, d, err := readPolicyFile(file)
	if err != nil {
		return err
	}
	if was, there := b.texts[name]; there && was != string(text) {
		return sandbox.Errorf("", sandbox.KindInvalid, "%s and %s are both called %s", b.files[name], file, name).WithHint("rename one of the files")
	}
	b.texts[name], b.docs[name], b.files[name] = string(text), d, file
	for _, in := range d.Include {
		beside := filepath.Join(filepath.Dir(file), in+".yaml")
		if policy.BuiltIn(in) || !policy.ValidName(in) {
			continue
		}
		if _, err := os.Stat(beside); errors.Is(err, fs.ErrNotExist) {
			continue // one that the server has
		}
		if err := b.add(in, beside); err != nil {
			return err
		}
	}
	return nil
}

func readPolicyFile(file string) ([]byte, *policy.Document, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, sandbox.Errorf("", sandbox.KindInvalid, "%w", err).WithHint("a policy is a FILE, or the NAME of a built-in or stored one: firebreak policy ls")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPolicyFile))
	if err != nil {
		return nil, nil, sandbox.Errorf("", sandbox.KindInvalid, "%w", err)
	}
	d, err := policy.Parse(file, text)
	return text, d, err
}

func (a *App) networkCommand() *cobra.Command {
	var f networkFlags
	var none, asJSON bool
	cmd := &cobra.Command{
		Use:   "network ID [--allow HOST[:PORT]]... [--policy FILE|NAME]... | ID --none",
		Short: "Show or replace what a sandbox may reach",
		Long: `Network shows a sandbox's policy and what its programs wanted to reach. With --allow
or --policy it replaces the whole policy by what they say, with --none by one that
allows nothing, and closes the connections that the one before had allowed. The
bindings that it was made with stay, unless a rule of the policy denies their hosts.

A sandbox that was made without network rules has no network device, and gets none:
make it with --policy FILE, where FILE says ` + "`allow: []`" + `, to open it later.`,
		Example: `  firebreak network $id
  firebreak network $id --allow api.example.com --policy pypi
  firebreak network $id --none`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := f.network()
			switch {
			case err != nil:
				return err
			case n != nil && none:
				return sandbox.Errorf("--none", sandbox.KindInvalid, "it allows nothing, and other flags do").WithHint("leave one out")
			case none:
				n = &client.Network{}
			}
			return a.withSession(cmd, func(s *session) error {
				if n != nil {
					return a.updateNetwork(cmd, s, args[0], n, asJSON)
				}
				return a.showNetwork(cmd, s, args[0], asJSON)
			})
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVar(&none, "none", false, "let it reach nothing any more")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one object")
	return cmd
}

// networkOut is what `network --json` prints.
type networkOut struct {
	Network  *networkState `json:"network"` // null: no network device
	Bindings []string      `json:"bindings,omitempty"`
	Closed   *int64        `json:"closed_connections,omitempty"`
	Egress   []flowOut     `json:"egress"`
	More     int64         `json:"egress_more"`
}

type networkState struct {
	Generation int64             `json:"generation"`
	Mode       string            `json:"mode"`
	Digest     string            `json:"digest"`
	Problem    string            `json:"problem"`
	Documents  []networkDocument `json:"documents"`
}

type networkDocument struct {
	Name   string `json:"name"`
	Source string `json:"source"`
	Digest string `json:"digest"`
	Text   string `json:"text"`
}

func networkJSON(n *v1.SandboxNetwork) *networkState {
	if n == nil {
		return nil
	}
	o := &networkState{n.GetGeneration(), n.GetMode(), n.GetDigest(), n.GetProblem(), []networkDocument{}}
	for _, d := range n.GetDocuments() {
		o.Documents = append(o.Documents, networkDocument{d.GetName(), d.GetSource(), d.GetDigest(), d.GetText()})
	}
	return o
}

func (a *App) updateNetwork(cmd *cobra.Command, s *session, id string, n *client.Network, asJSON bool) error {
	res, err := s.Sandbox(id).UpdateNetwork(cmd.Context(), *n)
	if err != nil {
		return err
	}
	closed := res.GetClosedConnections()
	if asJSON {
		return a.printJSON(networkOut{Network: networkJSON(res.GetNetwork()), Closed: &closed, Egress: []flowOut{}})
	}
	if res.GetNetwork() == nil {
		_, err = fmt.Fprintln(a.Out, "no network device")
	} else {
		_, err = fmt.Fprintf(a.Out, "generation %d; %s closed\n", res.GetNetwork().GetGeneration(), count(int(closed), "connection"))
	}
	return sandbox.Wrap("print", "", err)
}

func (a *App) showNetwork(cmd *cobra.Command, s *session, id string, asJSON bool) error {
	sb, err := s.Sandbox(id).Info(cmd.Context())
	if err != nil {
		return err
	}
	n := sb.GetNetwork()
	if asJSON {
		return a.printJSON(networkOut{Network: networkJSON(n), Bindings: sb.GetBindings(), Egress: flowsJSON(sb.GetEgress()), More: sb.GetEgressMore()})
	}
	if n == nil {
		_, err := fmt.Fprintln(a.Out, "no network device")
		return sandbox.Wrap("print", "", err)
	}
	fmt.Fprintf(a.Out, "generation %d, mode %s, sha256:%s\n", n.GetGeneration(), visible(n.GetMode()), visible(n.GetDigest()))
	if list := sb.GetBindings(); len(list) > 0 {
		fmt.Fprintf(a.Out, "bindings %s\n", visible(strings.Join(list, ", ")))
	}
	if n.GetProblem() != "" {
		a.say("cut off: %s", oneLine(n.GetProblem()))
	}
	for _, d := range n.GetDocuments() {
		fmt.Fprintf(a.Out, "\n# %s\n", visible(strings.TrimSpace(d.GetName()+" ("+d.GetSource()+")")))
		if err := a.showText(d.GetText()); err != nil {
			return err
		}
	}
	if len(sb.GetEgress()) == 0 {
		return nil
	}
	fmt.Fprintln(a.Out)
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DECISION\tTO\tTIMES\tSENT\tRECEIVED\tWHY")
	for _, f := range sb.GetEgress() {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", visible(f.GetDecision()), visible(flowTo(f)), f.GetCount(), size(f.GetUploadBytes()), size(f.GetDownloadBytes()),
			visible(cmp.Or(f.GetRule(), f.GetReason())))
	}
	if more := sb.GetEgressMore(); more > 0 {
		fmt.Fprintf(w, "and %d more\n", more)
	}
	return w.Flush()
}

// showText prints a text that others wrote: to a program as it is, to a terminal
// without what that would obey.
func (a *App) showText(text string) error {
	if terminal(a.Out) {
		lines := strings.Split(text, "\n")
		for i := range lines {
			lines[i] = visible(lines[i])
		}
		text = strings.Join(lines, "\n")
	}
	_, err := io.WriteString(a.Out, text)
	return sandbox.Wrap("print", "", err)
}

// flowTo is what a flow was to. One without a host stands for many that were no
// longer told one by one.
func flowTo(f *v1.EgressFlow) string {
	switch {
	case f.GetHost() == "":
		return "other hosts"
	case f.GetPort() == 0:
		return f.GetHost()
	}
	to := net.JoinHostPort(f.GetHost(), strconv.Itoa(int(f.GetPort())))
	if f.GetBinding() != "" {
		return f.GetMethod() + " " + to + " through " + f.GetBinding()
	}
	return to
}

// maxDenied is how many denied flows a run tells of: what it wanted is up to
// hostile code.
const maxDenied = 10

// tellDenied says what of a run was denied, why, and what would permit it.
func (a *App) tellDenied(flows []*v1.EgressFlow, more int64) {
	told := 0
	for _, f := range flows {
		if f.GetDecision() != "deny" {
			continue
		}
		if told++; told > maxDenied {
			more += f.GetCount()
			continue
		}
		// A name that was only asked for has no port yet: 443 is that of a rule without.
		hint := strings.TrimSuffix(f.GetHint(), ":PORT")
		why := clipRunes(oneLine(f.GetReason()), 40)
		if hint != "" {
			why += "; " + clipRunes(oneLine(hint), 400)
		}
		a.say("denied: %s: %s", clipRunes(oneLine(flowTo(f)), 260), why)
	}
	if told > 0 && more > 0 {
		a.say("denied: more than that; the sandbox's events and --json tell of the rest")
	}
}

func clipRunes(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

// flowOut is an element of egress in what --json prints.
type flowOut struct {
	Host       string `json:"host"`
	Port       int32  `json:"port"`
	Decision   string `json:"decision"`
	Rule       string `json:"rule"`
	Reason     string `json:"reason"`
	Kind       string `json:"kind"`
	Address    string `json:"address,omitempty"`
	Protocol   string `json:"protocol,omitempty"`
	Hint       string `json:"hint,omitempty"`
	Count      int64  `json:"count"`
	Upload     int64  `json:"upload_bytes"`
	Download   int64  `json:"download_bytes"`
	Generation int64  `json:"generation"`
	Binding    string `json:"binding,omitempty"`
	Method     string `json:"method,omitempty"`
}

func flowJSON(f *v1.EgressFlow) *flowOut {
	if f == nil {
		return nil
	}
	return &flowOut{f.GetHost(), f.GetPort(), f.GetDecision(), f.GetRule(), f.GetReason(), f.GetKind(), f.GetAddress(), f.GetProtocol(), f.GetHint(),
		f.GetCount(), f.GetUploadBytes(), f.GetDownloadBytes(), f.GetGeneration(), f.GetBinding(), f.GetMethod()}
}

func flowsJSON(flows []*v1.EgressFlow) []flowOut {
	out := []flowOut{}
	for _, f := range flows {
		out = append(out, *flowJSON(f))
	}
	return out
}
