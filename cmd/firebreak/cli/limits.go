package cli

import (
	"math"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// makeFlags are the flags of run and create that say what sandbox to make.
type makeFlags struct {
	template, image    string
	backend, isolation string
	memory, disk       sizeFlag
	cpus               float64
	pids               int64
	timeout            time.Duration
	env                []string
	metadata           []string
	tier               string
	readonly, weaker   bool
	net                networkFlags
	bindings           []string
	git                string
}

func (f *makeFlags) add(fs *pflag.FlagSet, timeoutDoc string) {
	fs.StringVarP(&f.template, "template", "t", "", "what to start from: host, python, node, shell or a digest (default host)")
	fs.StringVar(&f.image, "image", "", "start from a container image, built into a template if it is not yet")
	fs.StringVar(&f.backend, "backend", "", "what makes the sandbox: auto, gvisor, microvm or sim (default auto, the strongest that works)")
	fs.StringVar(&f.isolation, "min-isolation", "", "refuse anything weaker: shared-kernel, user-kernel, hypervisor, confidential")
	fs.DurationVar(&f.timeout, "timeout", 0, timeoutDoc)
	fs.Var(&f.memory, "memory", "memory the code may use, such as 256MiB")
	fs.Float64Var(&f.cpus, "cpus", 0, "share of CPUs, such as 0.5")
	fs.Int64Var(&f.pids, "pids", 0, "processes and threads at once")
	fs.Var(&f.disk, "disk", "size of the writable layer, such as 1GiB")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set K=V, or pass K on from here (repeatable)")
	fs.StringArrayVar(&f.metadata, "metadata", nil, "label K=V (repeatable)")
	fs.StringVar(&f.tier, "tier", "", "risk tier, L0 to L5; recorded")
	fs.BoolVar(&f.readonly, "readonly-root", false, "nothing but /tmp and the home is writable")
	fs.BoolVar(&f.weaker, "accept-weaker", false, "run even if a limit given here cannot be enforced (recorded)")
	fs.StringVar(&f.git, "git", "", "bring the files of a commit: REPO[#REF[:SUBPATH]], a repository of this machine or an https:// URL")
	f.net.add(fs)
	fs.StringArrayVar(&f.bindings, "binding", nil, "let it make requests through your binding NAME, at $NAME_BASE_URL or with its placeholder (repeatable)")
}

// options checks the flags and turns them into a request. Whether a limit was
// asked for is the flag's being given, so "--pids 0" is an error, not a default.
func (f *makeFlags) options(cmd *cobra.Command, lookup func(string) (string, bool)) (client.CreateOptions, error) {
	given := cmd.Flags().Changed
	invalid := func(flag, format string, args ...any) error {
		return sandbox.Errorf("--"+flag, sandbox.KindInvalid, format, args...)
	}
	switch {
	case given("cpus") && !(f.cpus > 0 && !math.IsInf(f.cpus, 0)):
		return client.CreateOptions{}, invalid("cpus", "%v is not a share of CPUs", f.cpus).(*sandbox.Error).WithHint("write 0.5 or 2")
	case given("pids") && f.pids <= 0:
		return client.CreateOptions{}, invalid("pids", "%d is not a number of processes", f.pids)
	case given("timeout") && f.timeout < 0:
		return client.CreateOptions{}, invalid("timeout", "%s is negative", f.timeout)
	}
	env, err := parseEnv(f.env, lookup)
	if err != nil {
		return client.CreateOptions{}, err
	}
	meta, err := parseMetadata(f.metadata)
	if err != nil {
		return client.CreateOptions{}, err
	}
	network, err := f.net.network()
	if err != nil {
		return client.CreateOptions{}, err
	}
	return client.CreateOptions{
		Template: f.template, Backend: f.backend, MinIsolation: f.isolation,
		Memory: f.memory.bytes, Disk: f.disk.bytes, CPUs: f.cpus, PIDs: f.pids,
		Env: env, Metadata: meta, Tier: f.tier, ReadonlyRoot: f.readonly, AcceptWeaker: f.weaker,
		Network: network, Bindings: f.bindings,
	}, nil
}

// never maps a duration flag to the SDK's: an explicit 0 means never, a flag
// that was not given the server's default.
func never(given bool, d time.Duration) time.Duration {
	if given && d == 0 {
		return client.Never
	}
	return d
}
