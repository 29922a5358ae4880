//go:build linux

package internet

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Repository serves a git repository over HTTP, as git itself does it: files are
// what is committed on the branch main. The URL is https://NAME/REPOSITORY.git.
func (n *Internet) Repository(repository string, files map[string]string) (http.Handler, error) {
	root, err := os.MkdirTemp(n.dir, "git-")
	if err == nil {
		err = commit(root, repository, files)
	}
	if err != nil {
		return nil, err
	}
	return gitServer(root)
}

// git runs git in a directory of root, without anybody's configuration.
func git(root, dir string, args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@b.example"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + root, "GIT_CONFIG_NOSYSTEM=1"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("git %q: %w: %s", args, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// commit makes a repository of files below root.
func commit(root, repository string, files map[string]string) error {
	work, err := os.MkdirTemp(root, "work-")
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(work, name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-q", "-m", "first"}, {"clone", "-q", "--bare", ".", bare(root, repository)}} {
		if _, err := git(root, work, args...); err != nil {
			return err
		}
	}
	return nil
}

func bare(root, repository string) string { return filepath.Join(root, "srv", repository+".git") }

// gitServer serves the repositories below root.
func gitServer(root string, env ...string) (http.Handler, error) {
	programs, err := git(root, root, "--exec-path")
	if err != nil {
		return nil, err
	}
	return &cgi.Handler{Path: filepath.Join(programs, "git-http-backend"), Root: "/", Dir: root, Stderr: io.Discard,
		Env: append([]string{"GIT_PROJECT_ROOT=" + filepath.Join(root, "srv"), "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root, "GIT_CONFIG_NOSYSTEM=1"}, env...)}, nil
}

// Forge is a server of private repositories of git, which can be pushed to: whoever
// does not bring its token as a password is asked for one. All methods may be
// called at once.
type Forge struct {
	root, token string
	server      http.Handler

	mu    sync.Mutex
	asked int // guarded by mu; requests without the token
}

// Forge makes a server of repositories, OWNER/NAME each, with a README.
func (n *Internet) Forge(token string, repositories ...string) (*Forge, error) {
	root, err := os.MkdirTemp(n.dir, "forge-")
	if err != nil {
		return nil, err
	}
	for _, r := range repositories {
		if err := commit(root, r, map[string]string{"README": "this is " + r + "\n"}); err != nil {
			return nil, err
		}
	}
	f := &Forge{root: root, token: token}
	f.server, err = gitServer(root, "REMOTE_USER=somebody") // who may push
	return f, err
}

// ServeHTTP implements http.Handler.
func (f *Forge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, password, _ := r.BasicAuth(); password != f.token {
		f.mu.Lock()
		f.asked++
		f.mu.Unlock()
		w.Header().Set("WWW-Authenticate", `Basic realm="forge"`)
		http.Error(w, "who are you", http.StatusUnauthorized)
		return
	}
	f.server.ServeHTTP(w, r)
}

// Strangers is how many requests came without the token.
func (f *Forge) Strangers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// Refs are those of a repository, a line each: its id and its name.
func (f *Forge) Refs(repository string) (string, error) {
	return git(f.root, bare(f.root, repository), "for-each-ref", "--format=%(objectname) %(refname)")
}
