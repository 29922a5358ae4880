package gitsource

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// The client's half of git's protocol, version 2, over HTTP: what a server can do,
// what its refs are, and one commit. gitprotocol-v2(5) has the words.

const agent = "agent=firebreak"

// maxPacket is the longest that a packet carries.
const maxPacket = 65520 - 4

// The packets without content.
type mark int

const (
	none  mark = iota // it has content
	flush             // the end of an answer
	delim             // the end of a section
)

// packets reads an answer, a packet at a time.
type packets struct {
	s   *server
	r   *bufio.Reader
	buf [maxPacket]byte
}

func (p *packets) malformed(what string) error {
	return p.s.errorf(sandbox.KindProtocol, "the server does not speak git's protocol: %s", what)
}

// next is the content of a packet, good until the next call. An answer that ends
// without a flush is an error.
func (p *packets) next() ([]byte, mark, error) {
	var digits [4]byte
	if err := p.full(digits[:]); err != nil {
		return nil, none, err
	}
	n, err := strconv.ParseUint(string(digits[:]), 16, 16)
	switch {
	case err != nil:
		return nil, none, p.malformed("a packet has no length")
	case n == 0:
		return nil, flush, nil
	case n == 1:
		return nil, delim, nil
	case n < 4 || n > maxPacket+4:
		return nil, none, p.malformed("a packet has a wrong length")
	}
	line := p.buf[:n-4]
	if err := p.full(line); err != nil {
		return nil, none, err
	}
	return line, none, nil
}

// end looks for the end of the answer, so that the connection can be used again.
func (p *packets) end() { _, _ = p.r.Peek(1) }

func (p *packets) full(b []byte) error {
	_, err := io.ReadFull(p.r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return p.malformed("its answer ends too early")
	}
	return err
}

// line is a packet of text, without its line's end. What a server has to say
// instead becomes an error.
func (p *packets) line() (string, mark, error) {
	b, m, err := p.next()
	if said, ok := bytes.CutPrefix(b, []byte("ERR ")); ok && err == nil {
		err = &saidError{clip(said)}
	}
	return string(bytes.TrimSuffix(b, []byte("\n"))), m, err
}

// saidError is a server's own words.
type saidError struct{ words string }

// Error implements error.
func (e *saidError) Error() string { return fmt.Sprintf("the server says %q", e.words) }

func clip(b []byte) string {
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(b[:min(len(b), 200)]), "?")), " ")
}

// answer is the body of a response, which has a limit, and in which no long
// silence is borne.
type answer struct {
	body io.ReadCloser
	s    *server
	left int64
	got  func(n int)
}

// Read implements io.Reader.
func (a *answer) Read(b []byte) (int, error) {
	a.s.silence.Reset(a.s.limits.silence)
	n, err := a.body.Read(b)
	a.s.silence.Stop()
	if a.left -= int64(n); a.left < 0 {
		return 0, errTooLarge
	}
	if a.got != nil && n > 0 {
		a.got(n)
	}
	return n, err
}

// do sends a request and returns the packets of the answer. Its owner closes it.
func (s *server) do(req *http.Request, kind string, limit int64) (*packets, *answer, error) {
	req.Header.Set("User-Agent", "git/2 (firebreak)") // some servers answer programs called git only
	req.Header.Set("Git-Protocol", "version=2")
	req.Header.Set("Accept", "application/x-git-upload-pack-"+kind)
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	if err := s.status(resp, kind); err != nil {
		_ = resp.Body.Close()
		return nil, nil, err
	}
	if s.base == s.url && req.Method == http.MethodGet {
		s.base = strings.TrimSuffix(resp.Request.URL.String(), refsPath+"?"+refsQuery)
	}
	a := &answer{body: resp.Body, s: s, left: limit}
	return &packets{s: s, r: bufio.NewReaderSize(a, 64<<10)}, a, nil
}

func (s *server) status(resp *http.Response, kind string) error {
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		if got := resp.Header.Get("Content-Type"); got != "application/x-git-upload-pack-"+kind {
			return s.errorf(sandbox.KindUnsupported, "no git server answers there, or one that is too old: it sends %.80q", got)
		}
		return nil
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusProxyAuthRequired:
		return s.errorf(sandbox.KindDenied, "there is no such repository, or it asks who you are (%d)", code).
			WithHint("no credentials are used here: clone it, and name the directory of the clone")
	case code == http.StatusNotFound, code == http.StatusGone:
		return s.errorf(sandbox.KindNotFound, "the server has no such repository (%d)", code).WithHint("see that the URL is what `git clone` takes")
	default:
		return s.errorf(sandbox.KindUnavailable, "the server answers %d %s", code, http.StatusText(code)).WithHint("try again later")
	}
}

// greet asks what the server can do.
func (s *server) greet(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+refsPath+"?"+refsQuery, nil)
	if err != nil {
		return err
	}
	p, a, err := s.do(req, "advertisement", s.limits.answer)
	if err != nil {
		return err
	}
	defer a.body.Close()
	line, m, err := p.line()
	if err == nil && m == none && strings.HasPrefix(line, "# service=") {
		if _, m, err = p.line(); err == nil && m != flush {
			err = p.malformed("its greeting goes on")
		}
		if err == nil {
			line, m, err = p.line()
		}
	}
	if err != nil {
		return s.refused(err)
	}
	if line != "version 2" {
		return s.errorf(sandbox.KindUnsupported, "the server does not speak version 2 of git's protocol")
	}
	s.features = map[string]string{}
	for {
		line, m, err := p.line()
		switch {
		case err != nil:
			return s.refused(err)
		case m == flush:
			p.end()
			return s.able()
		case m != none || len(s.features) > 100:
			return p.malformed("what it can do")
		}
		k, v, _ := strings.Cut(line, "=")
		s.features[k] = v
	}
}

// able looks whether the server can do what is needed.
func (s *server) able() error {
	if _, ok := s.features["ls-refs"]; !ok || !slices.Contains(strings.Fields(s.features["fetch"]), "shallow") {
		return s.errorf(sandbox.KindUnsupported, "the server cannot send a commit without its history")
	}
	switch s.features["object-format"] {
	case "", "sha1":
		s.digits = 40
	case "sha256":
		s.digits = 64
	default:
		return s.errorf(sandbox.KindUnsupported, "its objects have the format %.40q", s.features["object-format"])
	}
	return nil
}

// refused is for errors whose words are a server's.
func (s *server) refused(err error) error {
	var said *saidError
	if errors.As(err, &said) {
		return s.errorf(sandbox.KindUnavailable, "%w", said)
	}
	return err
}

// ask sends a command. Nothing in arguments has a line's end: refs are checked,
// ids are digits.
func (s *server) ask(ctx context.Context, limit int64, command string, arguments ...string) (*packets, *answer, error) {
	var b bytes.Buffer
	line := func(text string) { fmt.Fprintf(&b, "%04x%s\n", len(text)+5, text) }
	line("command=" + command)
	if _, ok := s.features["agent"]; ok {
		line(agent)
	}
	if f, ok := s.features["object-format"]; ok {
		line("object-format=" + f)
	}
	b.WriteString("0001")
	for _, a := range arguments {
		line(a)
	}
	b.WriteString("0000")
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+"/git-upload-pack", &b)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/x-git-upload-pack-request")
	return s.do(req, "result", limit)
}

// resolve finds the object that ref is: a commit in full is itself, whether the
// server has it turns out later; else HEAD, refs/…, a branch or a tag. A branch and
// a tag of one name must agree. Errors: KindNotFound, KindInvalid if ref is ambiguous.
func (s *server) resolve(ctx context.Context, ref string) (string, error) {
	if isHex(ref) && len(ref) == s.digits {
		return strings.ToLower(ref), nil
	}
	names := []string{"refs/heads/" + ref, "refs/tags/" + ref}
	if ref == "HEAD" || strings.HasPrefix(ref, "refs/") {
		names = []string{ref}
	}
	arguments := []string{"peel"}
	for _, name := range names {
		arguments = append(arguments, "ref-prefix "+name)
	}
	p, a, err := s.ask(ctx, s.limits.answer, "ls-refs", arguments...)
	if err != nil {
		return "", err
	}
	defer a.body.Close()
	ids, commits, found := []string{}, []string{}, []string{}
	for {
		line, m, err := p.line()
		switch {
		case err != nil:
			return "", s.refused(err)
		case m == flush:
			p.end()
			return s.one(ref, ids, commits, found)
		case m != none:
			return "", p.malformed("its refs")
		}
		words := strings.Fields(line)
		if len(words) < 2 || !slices.Contains(names, words[1]) || slices.Contains(found, words[1]) {
			continue // a name that begins alike
		}
		commit := words[0]
		for _, w := range words[2:] {
			if peeled, ok := strings.CutPrefix(w, "peeled:"); ok {
				commit = peeled
			}
		}
		if !s.isID(words[0]) || !s.isID(commit) {
			return "", p.malformed("a ref has no id")
		}
		ids, commits, found = append(ids, words[0]), append(commits, commit), append(found, words[1])
	}
}

// one picks the id of refs that are the same commit.
func (s *server) one(ref string, ids, commits, found []string) (string, error) {
	switch {
	case len(ids) == 0 && isHex(ref) && len(ref) >= 4:
		return "", s.errorf(sandbox.KindNotFound, "no branch and no tag is named %q", ref).WithHint("a commit of a server is written in full, with %d digits", s.digits)
	case len(ids) == 0:
		return "", s.errorf(sandbox.KindNotFound, "no commit is named %q", ref).WithHint("`git ls-remote %s` lists branches and tags", s.url)
	case len(ids) == 2 && commits[0] != commits[1]:
		return "", s.errorf(sandbox.KindInvalid, "%q is ambiguous: %s", ref, some(found)).WithHint("write the one that is meant in full")
	}
	return ids[0], nil
}

func (s *server) isID(id string) bool { return len(id) == s.digits && isHex(id) }

// fetch brings the object id, a commit or a tag of one, without history.
// exact: id was asked for, and not what a name stands for.
func (s *server) fetch(ctx context.Context, id string, exact bool, to *kept) (err error) {
	defer func() {
		if errors.Is(err, errTooLarge) {
			err = s.errorf(sandbox.KindTooLarge, "the commit has more than %s, packed", sandbox.FormatSize(s.limits.pack))
		}
	}()
	p, a, err := s.ask(ctx, s.limits.pack, "fetch", "no-progress", "ofs-delta", "deepen 1", "want "+id, "done")
	if err != nil {
		return err
	}
	defer a.body.Close()
	received := int64(0)
	a.got = func(n int) {
		if received += int64(n); s.progress != nil {
			s.progress(received)
		}
	}
	for section := ""; section != "packfile"; {
		line, m, err := p.line()
		var said *saidError
		switch {
		case errors.As(err, &said) && exact:
			return s.errorf(sandbox.KindNotFound, "the server does not give the commit %s: it says %q", id, said.words).WithHint("name a branch or a tag that has it")
		case errors.As(err, &said):
			return s.errorf(sandbox.KindUnavailable, "%w", said).WithHint("the name may just have moved: try again")
		case err != nil:
			return err
		case m == flush:
			return p.malformed("its answer has no pack")
		case m == delim:
			section = ""
		case section == "": // shallow-info and the like: of no use here
			section = line
		}
	}
	return to.index(ctx, s, &sideband{p: p})
}

// sideband is the pack in the packets of an answer. A server's words about its
// work are not for this terminal.
type sideband struct {
	p    *packets
	rest []byte
}

// Read implements io.Reader.
func (b *sideband) Read(to []byte) (int, error) {
	for len(b.rest) == 0 {
		packet, m, err := b.p.next()
		switch {
		case err != nil:
			return 0, err
		case m == flush:
			return 0, io.EOF
		case m != none || len(packet) == 0:
			return 0, b.p.malformed("a packet of the pack")
		case packet[0] == 1:
			b.rest = packet[1:]
		case packet[0] == 3:
			return 0, b.p.s.errorf(sandbox.KindUnavailable, "%w", &saidError{clip(packet[1:])})
		case packet[0] != 2:
			return 0, b.p.malformed("a packet of the pack")
		}
	}
	n := copy(to, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}
