package inspect

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/gitname"
)

// Git is the one repository that a binding is for, by git's smart protocol over
// HTTP, and the refs of it that may be pushed to.
type Git struct {
	Repo string   // OWNER/NAME, without .git
	Push []string // refs in full, or all below one: refs/heads/agent/*; none: none
}

// maxPush is how many patterns a binding has at most.
const maxPush = 32

// The two services of git's protocol.
const (
	fetching = "git-upload-pack"
	pushing  = "git-receive-pack"
)

// check says what about a target cannot be, as it is for git.
func (g *Git) check(t *Target) error {
	if err := gitname.CheckRepo(g.Repo); err != nil {
		return fmt.Errorf("the binding %s cannot have the repository %.80q: %w", t.Name, g.Repo, err)
	}
	if t.Path != "/"+g.Repo || len(t.Methods) > 0 || t.As == "query" || len(g.Push) > maxPush {
		return fmt.Errorf("the binding %s is for git, and has another path, methods, a parameter, or more than %d refs", t.Name, maxPush)
	}
	for _, p := range g.Push {
		if err := gitname.CheckPattern(p); err != nil {
			return fmt.Errorf("the binding %s cannot have the refs %.80q: %w", t.Name, p, err)
		}
	}
	return nil
}

// part is what of the repository a path asks for; empty: nothing that there is.
func (g *Git) part(path string) string {
	rest, ok := strings.CutPrefix(path, "/"+g.Repo)
	if !ok {
		return ""
	}
	rest, _ = strings.CutPrefix(rest, ".git")
	switch rest {
	case "/info/refs", "/" + fetching, "/" + pushing:
		return rest[1:]
	}
	return ""
}

// admit refuses what is not one of the four requests that git makes of the
// repository. What a push wants its body says.
func (g *Git) admit(method, path, query string, header http.Header) *Refusal {
	part := g.part(path)
	service, verb := part, http.MethodPost
	if part == "info/refs" {
		service, _ = strings.CutPrefix(query, "service=")
		verb, query = http.MethodGet, strings.TrimPrefix(query, "service="+service)
	}
	switch {
	case part == "":
		return &Refusal{Status: http.StatusForbidden, Reason: ReasonPath, Text: "the binding is for the repository " + g.Repo + ", and git's smart protocol"}
	case service != fetching && service != pushing || query != "":
		return &Refusal{Status: http.StatusForbidden, Reason: ReasonPath, Text: "the binding is for git's smart protocol"}
	case method != verb:
		return &Refusal{Status: http.StatusMethodNotAllowed, Reason: ReasonMethod, Text: "git does not ask for this by this method"}
	case service == pushing && len(g.Push) == 0:
		return &Refusal{Status: http.StatusForbidden, Reason: ReasonPush, Text: "the binding is for fetching: it lets nothing be pushed"}
	case verb == http.MethodPost && !only(header["Content-Type"], "application/x-"+service+"-request"):
		return &Refusal{Status: http.StatusUnsupportedMediaType, Reason: ReasonRequest, Text: "the body is not git's"}
	case header["Git-Protocol"] != nil && !only(header["Git-Protocol"], "version=0", "version=1", "version=2"):
		return &Refusal{Status: http.StatusBadRequest, Reason: ReasonRequest, Text: "this version of git's protocol is not known"}
	}
	return nil
}

// only reports whether there is one value, which is one of some.
func only(values []string, some ...string) bool {
	return len(values) == 1 && slices.Contains(some, values[0])
}

// gitHeaders are what git says beside what is about the message itself.
var gitHeaders = []string{"Accept", "Accept-Language", "Cache-Control", "Content-Type", "Git-Protocol", "Pragma", "User-Agent"}

// strip leaves of a request's headers those of git.
func (g *Git) strip(h http.Header) {
	for name := range h {
		if !slices.Contains(gitHeaders, name) {
			delete(h, name)
		}
	}
}

// judge refuses a push of which one ref is not the binding's: nothing of it happens
// then.
func (g *Git) judge(p *push) *Refusal {
	mine := func(ref string) bool {
		return slices.ContainsFunc(g.Push, func(pattern string) bool { return gitname.Matches(pattern, ref) })
	}
	i := slices.IndexFunc(p.refs, func(ref string) bool { return !mine(ref) })
	if i < 0 {
		return nil
	}
	may := g.Push[0]
	if n := len(g.Push) - 1; n > 0 {
		may = fmt.Sprintf("%s and %d more", may, n)
	}
	no := &Refusal{Status: http.StatusForbidden, Reason: ReasonPush, Text: fmt.Sprintf("the binding does not let %.120q be pushed to, only %s", p.refs[i], may)}
	if p.reports {
		no.result = p.result(no.Text, mine)
	}
	return no
}

// result is a refusal as git tells of it: with what became of each ref.
func (p *push) result(text string, mine func(string) bool) []byte {
	out := packet(nil, "unpack ok\n")
	for _, ref := range p.refs {
		why := "not by this binding"
		if mine(ref) {
			why = "not with the others"
		}
		out = packet(out, "ng "+ref+" "+why+"\n")
	}
	out = append(out, flush...)
	if !p.band {
		return out
	}
	all := packet(nil, "\x02firebreak: "+text+"\n")
	for piece := range slices.Chunk(out, maxPacket-5) {
		all = packet(all, "\x01"+string(piece))
	}
	return append(all, flush...)
}
