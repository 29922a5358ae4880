package e2e

import (
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// packageRegistry is what this machine's own configuration of a package manager says; ok
// if it is a server that a plain connection reaches.
func packageRegistry(t *testing.T, host string, argv ...string) (u *url.URL, ok bool) {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	address := strings.TrimSpace(string(out))
	if err != nil || address == "" || address == "undefined" {
		address = host
	}
	u, err = url.Parse(address)
	if err != nil || u.Scheme != "https" || u.User != nil { // somebody's password is not for a sandbox
		return nil, false
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(u.Hostname(), "443"), 10*time.Second)
	if err != nil {
		return nil, false
	}
	conn.Close()
	return u, true
}

// TestNetworkRegistries: pip and npm install from the registries that this machine
// is configured for, under the built-in policies. Where a name stands for a network
// that is not public here, the operator opens that.
func TestNetworkRegistries(t *testing.T) {
	enforcing(t)
	for _, v := range []string{"HTTPS_PROXY", "https_proxy", "ALL_PROXY"} {
		if os.Getenv(v) != "" {
			t.Skip("not run: this machine reaches its registries by a proxy only")
		}
	}
	pip, okPip := packageRegistry(t, "https://pypi.org/simple", "python3", "-m", "pip", "config", "get", "global.index-url")
	npm, okNPM := packageRegistry(t, "https://registry.npmjs.org/", "npm", "config", "get", "registry")
	if !okPip || !okNPM {
		t.Skip("not run: this machine reaches no package registries")
	}
	w := newWorld(t)
	var private, cidrs []string
	for _, host := range []string{pip.Hostname(), npm.Hostname(), "files.pythonhosted.org"} {
		addrs, err := net.LookupIP(host)
		if err != nil {
			t.Fatal(err)
		}
		for _, ip := range addrs {
			if a, ok := netip.AddrFromSlice(ip); ok && netaddr.Classify(a.Unmap()).Openable() {
				p := netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()).String()
				private, cidrs = append(private, p), append(cidrs, "--allow", p)
			}
		}
	}
	if len(private) > 0 {
		w.env = append(w.env, "FIREBREAK_EGRESS_PRIVATE="+strings.Join(private, ","))
	}
	for name, c := range map[string]struct {
		args   []string
		script string
		prints string
	}{
		"pip": {[]string{"--policy", "pypi", "--allow", pip.Hostname()}, "/usr/bin/python3 -m pip install -q --disable-pip-version-check --no-cache-dir --no-deps --index-url " + pip.String() +
			" --target site idna==3.20 && PYTHONPATH=site /usr/bin/python3 -c 'import idna; print(idna.__version__)'", "3.20"},
		"npm": {[]string{"--policy", "npm", "--allow", npm.Hostname()}, "npm install --loglevel=error --fetch-retries=0 --no-audit --no-fund --no-update-notifier --registry=" + npm.String() +
			" ms@2.1.3 && node -p 'require(\"ms\")(60000)'", "1m"},
	} {
		t.Run(name, func(t *testing.T) {
			// Node knows the public authorities only, and this machine may have one of its own.
			args := append([]string{"run", "--timeout", "120s", "--memory", "1GiB", "--env", "NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt"}, c.args...)
			args = append(append(args, cidrs...), "--", "sh", "-c", c.script)
			var r result
			for try := range 3 { // registries have bad moments
				time.Sleep(time.Duration(try) * 5 * time.Second)
				if r = w.run("", args...); r.code == 0 {
					break
				}
			}
			if r.code != 0 || !strings.Contains(r.stdout, c.prints) {
				t.Errorf("%+v", r)
			}
		})
	}
}
