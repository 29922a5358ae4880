package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) lsCommand() *cobra.Command {
	var all, asJSON, quiet bool
	var labels []string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List sandboxes",
		Example: "  firebreak ls\n  firebreak ls -a --json\n  firebreak rm $(firebreak ls -q --metadata team=search)",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := client.ListOptions{}
			var err error
			if o.Metadata, err = parseMetadata(labels); err != nil {
				return err
			}
			if all {
				o.State = "all"
			}
			return a.withSession(cmd, func(s *session) error {
				if asJSON {
					return a.listJSON(cmd.Context(), s, o)
				}
				return a.list(cmd.Context(), s, o, quiet)
			})
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&all, "all", "a", false, "those that have ended, too")
	fs.BoolVarP(&quiet, "quiet", "q", false, "ids only")
	fs.BoolVar(&asJSON, "json", false, "print a JSON array")
	fs.StringArrayVar(&labels, "metadata", nil, "only with label K=V (repeatable)")
	return cmd
}

func (a *App) list(ctx context.Context, s *session, o client.ListOptions, quiet bool) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	if !quiet {
		fmt.Fprintln(w, "ID\tNAME\tSTATE\tBACKEND\tTEMPLATE\tAGE\tENDS")
	}
	for sb, err := range s.List(ctx, o) {
		if err != nil {
			return err
		}
		if quiet {
			fmt.Fprintln(w, sb.GetId())
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", sb.GetId(), visible(cmp.Or(sb.GetName(), "-")), sb.GetState(), sb.GetBackend(),
			visible(cmp.Or(sb.GetTemplate(), "-")), age(time.Since(sb.GetCreatedAt().AsTime())), visible(ends(sb)))
	}
	return w.Flush()
}

// ends says when, or why, a sandbox ends.
func ends(sb *v1.Sandbox) string {
	switch {
	case sb.GetReason() != "" && sb.GetDetail() != "":
		return sb.GetReason() + " (" + sb.GetDetail() + ")"
	case sb.GetReason() != "":
		return sb.GetReason()
	case sb.GetExpiresAt() == nil:
		return "never"
	}
	return "in " + age(time.Until(sb.GetExpiresAt().AsTime()))
}

// age prints a duration the way people say it.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// listJSON prints the sandboxes exactly as the API shows them.
func (a *App) listJSON(ctx context.Context, s *session, o client.ListOptions) error {
	all := []json.RawMessage{}
	q := url.Values{"page_size": {"500"}}
	if o.State != "" {
		q.Set("state", o.State)
	}
	for k, v := range o.Metadata {
		q.Set("metadata."+k, v)
	}
	for {
		body, err := s.JSON(ctx, "/v1/sandboxes", q)
		if err != nil {
			return err
		}
		var page struct {
			Sandboxes []json.RawMessage `json:"sandboxes"`
			Next      string            `json:"next_page_token"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return sandbox.Errorf("list", sandbox.KindProtocol, "%w", err)
		}
		all = append(all, page.Sandboxes...)
		if page.Next == "" {
			return a.printJSON(all)
		}
		q.Set("page_token", page.Next)
	}
}

func (a *App) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect ID",
		Short: "Show everything about a sandbox, also after its end",
		Long: `Inspect prints the sandbox as the API shows it: state, limits and whether each is
enforced, usage and, once it has ended, why and the receipt.`,
		Example:           "  firebreak inspect $id | jq .receipt",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error { return a.printSandbox(cmd, s, args[0]) })
		},
	}
}

// printSandbox prints a sandbox as the API shows it and, if it is given, what only
// we know: where its files came from.
func (a *App) printSandbox(cmd *cobra.Command, s *session, id string, source ...*sourceOut) error {
	body, err := s.JSON(cmd.Context(), "/v1/sandboxes/"+url.PathEscape(id), nil)
	if err != nil {
		return err
	}
	for _, from := range source {
		text, err := json.Marshal(from)
		if err != nil {
			return sandbox.Wrap("print", id, err)
		}
		object, _ := bytes.CutSuffix(bytes.TrimSpace(body), []byte("}"))
		body = append(append(append(object, `,"source":`...), text...), '}')
	}
	var b bytes.Buffer
	if err := json.Indent(&b, body, "", "  "); err != nil {
		return sandbox.Errorf("inspect", sandbox.KindProtocol, "%w", err).WithID(id)
	}
	return a.showJSON(append(bytes.TrimSpace(b.Bytes()), '\n'))
}

func (a *App) rmCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "rm ID...",
		Aliases:           []string{"destroy"},
		Short:             "End sandboxes and check that nothing of them is left",
		Example:           "  firebreak rm $id\n  firebreak rm --json $id | jq .receipt.objects",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeSandboxes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				var errs []error
				for _, id := range args {
					if err := a.remove(cmd.Context(), s, id, asJSON); err != nil {
						errs = append(errs, err)
					}
				}
				return a.all(errs)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each receipt as a JSON object")
	return cmd
}

// all reports every error but the last, which it returns.
func (a *App) all(errs []error) error {
	for i, err := range errs {
		var se *sandbox.Error
		if i == len(errs)-1 {
			return err
		}
		if errors.As(err, &se) {
			a.report(se)
		}
	}
	return nil
}

func (a *App) remove(ctx context.Context, s *session, id string, asJSON bool) error {
	res, err := s.Sandbox(id).Destroy(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		err = a.printJSON(struct {
			ID      string      `json:"id"`
			State   string      `json:"state"`
			Reason  string      `json:"reason"`
			Usage   usageOut    `json:"usage"`
			Receipt *receiptOut `json:"receipt"`
		}{res.GetId(), res.GetState(), res.GetReason(), usageJSON(res.GetUsage()), receiptJSON(res.GetReceipt())})
	} else {
		_, err = fmt.Fprintln(a.Out, cmp.Or(res.GetId(), id))
	}
	if err != nil {
		return err
	}
	for _, o := range res.GetReceipt().GetObjects() {
		if !o.GetGone() {
			err = sandbox.Errorf("rm", sandbox.KindInternal, "left behind: %s %s: %s", o.GetKind(), o.GetName(), o.GetDetail()).WithID(id)
		}
	}
	return err
}

// completeSandboxes completes ids and names of live sandboxes for the first n
// arguments, or all.
func (a *App) completeSandboxes(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.sandboxNames(cmd, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

// sandboxNames asks the server, briefly: a shell waits for the answer.
func (a *App) sandboxNames(cmd *cobra.Command, prefix string) []string {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := a.connect(ctx)
	if err != nil {
		return nil
	}
	defer s.close()
	var names []string
	for sb, err := range s.List(ctx, client.ListOptions{}) {
		if err != nil || len(names) >= 200 {
			break
		}
		what := sb.GetState() + ", " + age(time.Since(sb.GetCreatedAt().AsTime())) + " old"
		for _, n := range []string{sb.GetId(), sb.GetName()} {
			if n != "" && strings.HasPrefix(n, prefix) {
				names = append(names, cobra.CompletionWithDesc(n, what))
			}
		}
	}
	return names
}
