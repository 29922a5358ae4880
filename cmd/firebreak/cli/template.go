package cli

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) templateCommand() *cobra.Command {
	return group("template", "Build, list and remove what sandboxes start from", a.templateBuild(), a.templateLs(), a.templateRm(), a.templateGC())
}

func (a *App) templateBuild() *cobra.Command {
	var o buildFlags
	cmd := &cobra.Command{
		Use:   "build NAME | [NAME] --image REFERENCE | NAME --dir DIR | NAME --tar FILE | NAME --rootfs FILE",
		Short: "Build a template from Debian packages, an image or a directory",
		Long: `Build makes a template and prints its digest. python, node and shell are made from
Debian packages: minutes the first time, seconds when nothing changed. The template
host needs no build: it shows the machine's own programs.

--image makes it of a container image: REPOSITORY:TAG, which is resolved to a digest
now, or REPOSITORY@sha256:…. The server fetches it; built again, a tag that has moved
makes NAME stand for the new image, and one that has not fetches nothing. Without NAME
one is derived: python-3.13 for docker.io/library/python:3.13.

--dir and --tar make it of a root file system here: a directory, or a tar file, plain
or packed by gzip or zstd, - for standard input. A tar file of docker save or of an
OCI layout is taken as the image it holds.

--kernel and --rootfs bring what machines of it boot, for the backend microvm: a kernel
(vmlinux or bzImage), beside any of the above, and an image of a root file system
(squashfs, erofs or ext4) in place of them, of which --language says what it can run.
They are copied, and checked before each boot. This takes the scope template:boot. What
a kernel needs is in images/kernel/microvm.config.

What runs in it is user code as uid 1000, never the image's entrypoint. Setuid bits,
file capabilities, devices and pipes are left out.`,
		Example: `  firebreak template build python
  firebreak template build py --image docker.io/library/python:3.13-slim
  docker save alpine | firebreak template build alpine --tar -
  firebreak template build mine --kernel vmlinux --rootfs rootfs.squashfs --language python
  firebreak run --template py -c 'print(6*7)'`,
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: []string{"python", "node", "shell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.name = args[0]
			}
			if err := o.check(cmd); err != nil {
				return err
			}
			return a.with(cmd, true, func(s *session) error {
				t, err := a.buildTemplate(cmd.Context(), s, o)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(a.Out, t.GetDigest())
				return err
			})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.image, "image", "", "container image, by tag or digest")
	fs.StringVar(&o.dir, "dir", "", "directory that holds a root file system")
	fs.StringVar(&o.tar, "tar", "", "tar file of a root file system or image; - is standard input")
	fs.StringVar(&o.pack, "pack", "", "pack that NAME is a variant of: python, node, shell")
	fs.StringVar(&o.kernel, "kernel", "", "kernel for its machines, a vmlinux or bzImage")
	fs.StringVar(&o.rootfs, "rootfs", "", "image of a root file system: squashfs, erofs or ext4")
	fs.StringArrayVar(&o.languages, "language", nil, "language that the root file system of --rootfs can run; repeat for more")
	return cmd
}

// progressLine shows work on one line of a terminal, and nothing in a pipe.
type progressLine struct {
	app *App
	on  bool
	any bool
}

func (p *progressLine) show(b *v1.BuildProgress) {
	if !p.on {
		return
	}
	p.any = true
	percent := ""
	if b.GetPercent() >= 0 {
		percent = fmt.Sprintf(" %3d%%", b.GetPercent())
	}
	text := []rune(visible(strings.TrimSpace(b.GetText())))
	if len(text) > 50 {
		text = append(text[:49], '…')
	}
	fmt.Fprintf(p.app.Err, "\r\x1b[K%s%s  %s", b.GetStage(), percent, string(text))
}

func (p *progressLine) end() {
	if p.any {
		fmt.Fprint(p.app.Err, "\r\x1b[K")
	}
}

func (a *App) templateLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List templates", Args: cobra.NoArgs,
		Example: "  firebreak template ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, true, func(s *session) error {
				if asJSON {
					body, err := s.JSON(cmd.Context(), "/v1/templates", nil)
					if err != nil {
						return err
					}
					return a.printJSON(body)
				}
				ts, err := s.Templates(cmd.Context())
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tSTATE\tSIZE\tRUNS\tDIGEST")
				for _, t := range ts {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", cmp.Or(t.GetName(), "-"), visible(t.GetState()), size(t.GetSizeBytes()),
						cmp.Or(strings.Join(t.GetLanguagePacks(), ","), "-"), cmp.Or(short(t.GetDigest()), "-"))
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the API shows")
	return cmd
}

func size(n int64) string {
	if n <= 0 {
		return "-"
	}
	return sandbox.FormatSize(n)
}

// short is a digest as people compare it.
func short(digest string) string {
	if len(digest) > 19 {
		return digest[:19]
	}
	return digest
}

func (a *App) templateRm() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Short: "Remove built templates", Args: cobra.MinimumNArgs(1),
		Example: "  firebreak template rm node",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, true, func(s *session) error {
				var errs []error
				for _, name := range args {
					if err := s.RemoveTemplate(cmd.Context(), name); err != nil {
						errs = append(errs, err)
					} else {
						fmt.Fprintln(a.Out, name)
					}
				}
				return a.all(errs)
			})
		},
	}
}
