package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// stages are mmdebstrap's messages that mean progress, with the percentage of
// the whole build.
var stages = []struct {
	prefix  string
	percent int
	line    string
}{
	{"running apt-get update", 3, "reading package lists"},
	{"downloading packages", 10, "downloading packages"},
	{"extracting archives", 45, "checking packages"},
	{"running special hook: copy-out", 52, "collecting packages"},
}

// download has mmdebstrap resolve, fetch and authenticate the packages and
// returns the package files.
//
// Of what mmdebstrap can do only that much is used. Its "extract" variant runs no
// maintainer script, and skipping its mounts leaves nothing to undo when it is
// killed. It unpacks into its own temporary directory, which is thrown away.
func (b *builder) download(ctx context.Context) ([]string, error) {
	sources, err := buildSources()
	if err != nil {
		return nil, err
	}
	mode, err := debstrapMode()
	if err != nil {
		return nil, err
	}
	options, err := b.aptConfig(ctx)
	if err != nil {
		return nil, err
	}
	debs := filepath.Join(b.work, "debs")
	if err := os.Mkdir(debs, 0o755); err != nil {
		return nil, err
	}
	args := []string{
		"--mode=" + mode, "--variant=extract", "--format=null", "--skip=chroot/mount,cleanup/apt",
		"--aptopt=" + options,
		"--extract-hook=copy-out /var/cache/apt/archives " + shellQuote(debs),
		"--include=" + strings.Join(b.recipe.Packages, ","),
		sources[0].suiteName(), "-", "-",
	}
	var input strings.Builder
	for _, s := range sources {
		fmt.Fprintln(&input, s)
	}
	b.progress(StageDownload, 1, "asking the Debian mirror")
	tail := &tailWriter{line: b.downloadLine}
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Env = buildEnv("TMPDIR=" + b.work)
	cmd.Stdin = strings.NewReader(input.String()) // not in argv: an address may carry a password
	cmd.Stderr = tail
	cmd.Stdout = io.Discard
	cmd.ExtraFiles = []*os.File{b.tmp.lock} // what outlives us keeps the directory from being swept
	err = runIsolated(cmd)
	if err != nil && mode != "root" {
		err = errors.Join(err, removeForeign(b.work))
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, sandbox.Errorf("template build", sandbox.KindUnavailable, "packages cannot be fetched: %s: %w", tail.reason(), err).
			WithHint("see that `apt-get update` works on this machine and that these packages exist in it")
	}
	return filepath.Glob(filepath.Join(globQuote(debs), "archives", "*.deb"))
}

// downloadLine turns a line of mmdebstrap's into progress.
func (b *builder) downloadLine(line string) {
	info, ok := strings.CutPrefix(line, "I: ")
	if !ok {
		return
	}
	for _, s := range stages {
		if strings.HasPrefix(info, s.prefix) {
			b.progress(StageDownload, s.percent, s.line)
		}
	}
}

// buildSources finds the machine's Debian mirrors.
func buildSources() ([]aptSource, error) {
	const op = "template build"
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return nil, sandbox.Errorf(op, sandbox.KindUnavailable, "mmdebstrap is not installed").
			WithHint("run `apt-get install mmdebstrap`, or use the template %q", Host)
	}
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return nil, err
	}
	codename := osRelease(b, "VERSION_CODENAME")
	if osRelease(b, "ID") != "debian" || codename == "" {
		return nil, sandbox.Errorf(op, sandbox.KindUnavailable, "packs are built on Debian releases only, this is %q", osRelease(b, "PRETTY_NAME")).
			WithHint("use the template %q", Host)
	}
	sources, err := debianSources("/etc", codename)
	if err == nil && len(sources) == 0 {
		err = sandbox.Errorf(op, sandbox.KindUnavailable, "no Debian mirror for %s in /etc/apt", codename).
			WithHint("add Debian's own archive, with its debian-archive keyring, to /etc/apt/sources.list.d")
	}
	return sources, err
}

// debstrapMode is root where possible, else a user namespace that can be had.
func debstrapMode() (string, error) {
	if os.Geteuid() == 0 {
		return "root", nil
	}
	cmd := exec.Command("mmdebstrap", "--unshare-helper", "true")
	cmd.Env = buildEnv()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", sandbox.Errorf("template build", sandbox.KindUnavailable, "no user namespace for a build without root: %s", firstLine(string(out))).
			WithHint("run the command as root, or install uidmap and give this user a range in /etc/subuid and /etc/subgid")
	}
	return "unshare", nil
}

// aptConfig writes the apt options a build shares with the machine and returns
// the file.
func (b *builder) aptConfig(ctx context.Context) (string, error) {
	options := []string{
		`APT::Install-Recommends "false";`, `Acquire::Languages "none";`, `APT::Get::AllowUnauthenticated "false";`,
		`Acquire::AllowInsecureRepositories "false";`, `Dir::Etc::netrc "/etc/apt/auth.conf";`, `Dir::Etc::netrcparts "/etc/apt/auth.conf.d";`,
	}
	if _, err := exec.LookPath("apt-config"); err == nil {
		out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
		if err != nil {
			return "", fmt.Errorf("apt-config dump: %w", err)
		}
		options = append(options, aptOptions(string(out))...)
	}
	mode := os.FileMode(0o600) // a proxy may carry a password
	if os.Geteuid() != 0 {
		mode = 0o644 // the user namespace's root is not us; what we can read here everybody can
	}
	path := filepath.Join(b.work, "apt.conf")
	return path, os.WriteFile(path, []byte(strings.Join(options, "\n")+"\n"), mode)
}

// buildEnv is all of the environment a build passes on.
func buildEnv(more ...string) []string {
	env := []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix()),
	}
	for _, k := range []string{"HOME", "USER", "LOGNAME", "http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return append(env, more...)
}

// removeForeign deletes what a killed mmdebstrap left that belongs to
// subordinate uids, which only a user namespace can.
func removeForeign(work string) error {
	left, err := filepath.Glob(filepath.Join(globQuote(work), "mmdebstrap.*"))
	if err != nil || len(left) == 0 {
		return err
	}
	cmd := exec.Command("mmdebstrap", slices.Concat([]string{"--unshare-helper", "rm", "-rf", "--"}, left)...)
	cmd.Env = buildEnv()
	return cmd.Run()
}

// shellQuote makes s one word of a shell command.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// globQuote makes s match itself only.
func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return clip(line)
}
