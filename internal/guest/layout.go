package guest

// Where things are inside a sandbox. Backends lay the directory out read-only;
// the agent, the language modules and the host agree on it here.
const (
	// RuntimeDir holds what Firebreak brings into every sandbox.
	RuntimeDir = "/.firebreak"
	// AgentPath is the static agent binary, PID 1 and probe program.
	AgentPath = RuntimeDir + "/firebreak-guest"
	// PythonDir is appended to PYTHONPATH.
	PythonDir = RuntimeDir + "/python"
	// NodeModule is loaded into every Node process by NODE_OPTIONS.
	NodeModule = RuntimeDir + "/node/firebreak.js"
	// PythonContext and NodeContext keep an interpreter warm.
	PythonContext = PythonDir + "/firebreak_context.py"
	NodeContext   = RuntimeDir + "/node/context.js"
	// PythonStandby waits to become a program.
	PythonStandby = PythonDir + "/firebreak_standby.py"
	// ResultPrefix and an exec's id make the file named by $FIREBREAK_RESULT.
	ResultPrefix = "/tmp/.firebreak-result-"
	// ResultEnv names the environment variable that holds that path.
	ResultEnv = "FIREBREAK_RESULT"
	// MaxResult caps a structured result, in bytes.
	MaxResult = 1 << 20

	// TrustFile and TrustBundle are in the TrustDir: the certificate of the sandbox's
	// authority alone, and behind the system's.
	TrustFile   = "ca.pem"
	TrustBundle = "ca-bundle.pem"

	// DefaultUser runs user code; without a passwd entry it is uid and gid
	// DefaultUID with DefaultHome.
	DefaultUser = "user"
	DefaultUID  = 1000
	DefaultHome = "/home/user"
	// DefaultPath is PATH inside.
	DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// TrustDir is where a sandbox has its authority's certificate: a directory that is
// root's. With a root that is read-only it is in the one place besides the home that
// is not.
func TrustDir(readOnly bool) string {
	if readOnly {
		return "/tmp/.firebreak"
	}
	return "/etc/firebreak"
}
