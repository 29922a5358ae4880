package gitsource

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// noise does not compress.
func noise(n int) string {
	b := make([]byte, n)
	_, _ = rand.New(rand.NewSource(1)).Read(b)
	return string(b)
}

func pkt(text string) string { return fmt.Sprintf("%04x%s", len(text)+4, text) }

var (
	greeting = pkt("version 2\n") + pkt("ls-refs\n") + pkt("fetch=shallow\n") + "0000"
	packfile = pkt("packfile\n")
)

// stranger is a server that answers what a test says: the greeting, ls-refs, fetch.
type stranger struct {
	*httptest.Server
	net *Network
}

func newStranger(t *testing.T, greet, refs, fetch http.HandlerFunc) *stranger {
	t.Helper()
	s := &stranger{Server: httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
		switch {
		case r.Method == http.MethodGet:
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			greet(w, r)
		case bytes.Contains(body, []byte("command=ls-refs")):
			refs(w, r)
		default:
			fetch(w, r)
		}
	}))}
	t.Cleanup(s.Close)
	s.net = reaching(s.Server)
	s.net.limits = usual
	return s
}

// says answers with a text.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// forever answers with a text again and again, for as long as somebody listens.
func forever(begin, text string, pause time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, err := io.WriteString(w, begin)
		for err == nil && r.Context().Err() == nil {
			if _, err = io.WriteString(w, text); pause > 0 {
				_ = http.NewResponseController(w).Flush()
				time.Sleep(pause)
			}
		}
	}
}

// side is data on the first channel.
func side(data string) string {
	var b strings.Builder
	for len(data) > 0 {
		n := min(len(data), 60000)
		b.WriteString(pkt("\x01" + data[:n]))
		data = data[n:]
	}
	return b.String()
}

// pack is one of the objects that a repository names.
func (r *repo) pack(ids ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", "pack-objects", "--stdout", "-q")
	cmd.Dir, cmd.Stdin = r.dir, strings.NewReader(strings.Join(ids, "\n")+"\n")
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatal(err)
	}
	return string(out)
}

func TestHostileServers(t *testing.T) {
	empty(t)
	r := newRepo(t)
	r.write("f", "text")
	c := r.commit("x")
	tree, blob := r.git("rev-parse", "HEAD^{tree}"), r.git("rev-parse", "HEAD:f")
	good := r.pack(c, tree, blob)
	other := r.pack(r.git("commit-tree", "-m", "y", tree), tree, blob)
	refs := says(pkt(c+" HEAD\n") + "0000")
	ok := says(greeting)
	turned := func(i int) string { b := []byte(good); b[i] ^= 0x40; return string(b) }
	sent := func(data string) http.HandlerFunc { return says(packfile + side(data) + "0000") }
	honest := newStranger(t, ok, refs, sent(good))
	honest.net.want(t, honest.URL+"/r", c, "f", "text")
	for name, s := range map[string]struct {
		greet, refs, fetch http.HandlerFunc
		kind               sandbox.Kind
		words              string
	}{
		"dumb":               {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", "text/plain") }, nil, nil, sandbox.KindUnsupported, "no git server"},
		"old":                {says(pkt("# service=git-upload-pack\n") + "0000" + pkt(c+" HEAD\x00multi_ack\n") + "0000"), nil, nil, sandbox.KindUnsupported, "version 2"},
		"not shallow":        {says(pkt("version 2\n") + pkt("ls-refs\n") + pkt("fetch\n") + "0000"), nil, nil, sandbox.KindUnsupported, "without its history"},
		"unknown format":     {says(pkt("version 2\n") + pkt("ls-refs\n") + pkt("fetch=shallow\n") + pkt("object-format=md5\n") + "0000"), nil, nil, sandbox.KindUnsupported, "md5"},
		"not packets":        {says("<html>"), nil, nil, sandbox.KindProtocol, "length"},
		"odd length":         {says("0003"), nil, nil, sandbox.KindProtocol, "length"},
		"long packet":        {says("fff1"), nil, nil, sandbox.KindProtocol, "length"},
		"cut off":            {says("0010vers"), nil, nil, sandbox.KindProtocol, "too early"},
		"empty":              {says(""), nil, nil, sandbox.KindProtocol, "too early"},
		"endless greeting":   {forever(pkt("version 2\n"), pkt(strings.Repeat("x", 60000)), 0), nil, nil, sandbox.KindTooLarge, "4 MiB"},
		"many features":      {says(pkt("version 2\n") + manyFeatures()), nil, nil, sandbox.KindProtocol, ""},
		"says no":            {says(pkt("ERR \x1b[2Jgo away\n")), nil, nil, sandbox.KindUnavailable, `\x1b[2Jgo away`},
		"500":                {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, nil, nil, sandbox.KindUnavailable, "500"},
		"403":                {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, nil, nil, sandbox.KindDenied, "asks who you are"},
		"huge header":        {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) }, nil, nil, sandbox.KindUnavailable, "header"},
		"endless refs":       {ok, forever("", pkt(c+" refs/heads/other\n"), 0), nil, sandbox.KindTooLarge, "4 MiB"},
		"no id":              {ok, says(pkt("x HEAD\n") + "0000"), nil, sandbox.KindProtocol, "no id"},
		"an option as id":    {ok, says(pkt("--upload-pack=touch HEAD\n") + "0000"), nil, sandbox.KindProtocol, "no id"},
		"wrong peeled":       {ok, says(pkt(c+" HEAD peeled:x\n") + "0000"), nil, sandbox.KindProtocol, "no id"},
		"no refs":            {ok, says("0000"), nil, sandbox.KindNotFound, ""},
		"no pack":            {ok, refs, says("0000"), sandbox.KindProtocol, "no pack"},
		"not a pack":         {ok, refs, sent("MZ" + strings.Repeat("x", 100)), sandbox.KindProtocol, "no pack"},
		"empty pack":         {ok, refs, sent(""), sandbox.KindProtocol, "no pack"},
		"cut pack":           {ok, refs, says(packfile + side(good[:len(good)-30])), sandbox.KindProtocol, "too early"},
		"short pack":         {ok, refs, sent(good[:len(good)-30]), sandbox.KindInvalid, "damaged"},
		"wrong checksum":     {ok, refs, sent(turned(len(good) - 1)), sandbox.KindInvalid, "damaged"},
		"broken object":      {ok, refs, sent(turned(20)), sandbox.KindInvalid, "damaged"},
		"wrong version":      {ok, refs, sent(turned(7)), sandbox.KindInvalid, "damaged"},
		"too many objects":   {ok, refs, sent(turned(8)), sandbox.KindTooLarge, "objects"},
		"another commit":     {ok, refs, sent(other), sandbox.KindInvalid, "did not send " + c},
		"a part of it":       {ok, refs, sent(r.pack(c, tree)), sandbox.KindInvalid, "missing"},
		"unknown channel":    {ok, refs, says(packfile + pkt("\x07x") + "0000"), sandbox.KindProtocol, ""},
		"empty packet":       {ok, refs, says(packfile + "0004" + "0000"), sandbox.KindProtocol, ""},
		"dies":               {ok, refs, says(packfile + side(good[:30]) + pkt("\x03\x1b]0;oops")), sandbox.KindUnavailable, `\x1b]0;oops`},
		"endless sections":   {ok, refs, forever("", pkt("shallow-info\n")+"0001", 0), sandbox.KindTooLarge, "more than 1 MiB"},
		"endless progress":   {ok, refs, forever(packfile, pkt("\x02\x1b[2J"+strings.Repeat("x", 1000)), 0), sandbox.KindTooLarge, "more than 1 MiB"},
		"endless pack":       {ok, refs, forever(packfile+side(large), side(stored+noise(65535)), 0), sandbox.KindTooLarge, "more than 1 MiB"},
		"more than a pack":   {ok, refs, sent(good + noise(800000)), sandbox.KindInvalid, ""},
		"a bomb of a delta":  {ok, refs, sent(bomb(300 << 20)), sandbox.KindTooLarge, "memory"},
		"missing delta base": {ok, refs, sent(orphan()), sandbox.KindInvalid, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStranger(t, s.greet, s.refs, s.fetch)
			st.net.limits.pack = 1 << 20
			st.net.refuse(t, st.URL+"/r", s.kind, s.words)
		})
	}
}

func manyFeatures() string {
	var b strings.Builder
	for i := range 1000 {
		b.WriteString(pkt(fmt.Sprintf("feature-%d\n", i)))
	}
	return b.String() + "0000"
}

// large begins a pack of one file of nearly 2 GiB, whose content is blocks that
// begin with stored and have 65535 bytes.
var (
	large  = packOf(packed(3, 1<<31-1, "", ""))[:12+5] + "\x78\x01"
	stored = "\x00\xff\xff\x00\x00"
)

// packed is an object of a pack: its type and size, perhaps a base, its content.
func packed(kind byte, size int, base, content string) string {
	var b bytes.Buffer
	c := kind<<4 | byte(size&15)
	for size >>= 4; size > 0; size >>= 7 {
		b.WriteByte(c | 0x80)
		c = byte(size & 0x7f)
	}
	b.WriteByte(c)
	b.WriteString(base)
	z := zlib.NewWriter(&b)
	_, _ = io.WriteString(z, content)
	_ = z.Close()
	return b.String()
}

func packOf(objects ...string) string {
	p := binary.BigEndian.AppendUint32([]byte("PACK\x00\x00\x00\x02"), uint32(len(objects)))
	p = append(p, strings.Join(objects, "")...)
	sum := sha1.Sum(p)
	return string(append(p, sum[:]...))
}

func varint(n int) string {
	var b []byte
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return string(append(b, byte(n)))
}

// bomb is a small pack of a large object: a delta that repeats its base.
func bomb(size int) string {
	const base = 64 << 10
	zeros := strings.Repeat("\x00", base)
	id := sha1.Sum([]byte(fmt.Sprintf("blob %d\x00%s", base, zeros)))
	delta := varint(base) + varint(size) + strings.Repeat("\x80", size/base) // copy 64 KiB from the beginning
	return packOf(packed(3, base, "", zeros), packed(7, len(delta), string(id[:]), delta))
}

// orphan is a delta whose base is not in the pack.
func orphan() string {
	delta := varint(1) + varint(1) + "\x01x"
	return packOf(packed(7, len(delta), strings.Repeat("\x11", 20), delta))
}

// TestSlowServers: neither a byte now and then nor none at all holds anybody for
// longer than the limits say.
func TestSlowServers(t *testing.T) {
	empty(t)
	id := strings.Repeat("ab", 20)
	refs, ok := says(pkt(id+" HEAD\n")+"0000"), says(greeting)
	silent := func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	mute := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	trickle := forever("", "0", 20*time.Millisecond)
	pack := forever(packfile+side(large+stored), pkt("\x01x"), 20*time.Millisecond)
	for name, s := range map[string]struct {
		greet, refs, fetch http.HandlerFunc
		words              string
	}{
		"mute":            {mute, nil, nil, ""},
		"silent":          {silent, nil, nil, "nothing for"},
		"silent refs":     {ok, silent, nil, "nothing for"},
		"silent pack":     {ok, refs, silent, "nothing for"},
		"slow greeting":   {forever(pkt("version 2\n"), pkt("ls-refs\n"), 20*time.Millisecond), nil, nil, "longer than"},
		"slow refs":       {ok, forever("", pkt(id+" refs/heads/x\n"), 20*time.Millisecond), nil, "longer than"},
		"slow pack":       {ok, refs, pack, "longer than"},
		"a byte at once":  {ok, refs, trickle, ""},
		"only keepalives": {ok, refs, forever(packfile, pkt("\x02x"), 20*time.Millisecond), "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStranger(t, s.greet, s.refs, s.fetch)
			st.net.limits.time, st.net.limits.silence = 3*time.Second, 500*time.Millisecond
			kind := sandbox.KindTimeout
			if name == "a byte at once" {
				kind = sandbox.KindProtocol // "0000" is the end
			}
			if strings.HasPrefix(s.words, "longer") {
				st.net.limits.silence = time.Minute
			}
			start := time.Now()
			st.net.refuse(t, st.URL+"/r", kind, s.words)
			if took := time.Since(start); took > 45*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// TestSweep: what killed processes have left goes with the next fetch, what others
// are at stays, and no name leads elsewhere.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	at := func(name string) string { return filepath.Join(dir, keptPrefix+name) }
	victim := filepath.Join(dir, "victim")
	for _, d := range []string{at("left/objects/pack"), at("locked"), at("new"), victim} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink(victim, at("link")), os.WriteFile(at("file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	held, err := lock(at("locked"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	old := time.Now().Add(-time.Hour)
	for _, name := range []string{"left", "locked", "file"} {
		if err := os.Chtimes(at(name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(victim, old, old); err != nil {
		t.Fatal(err)
	}
	sweep()
	for name, stays := range map[string]bool{at("left"): false, at("locked"): true, at("new"): true, at("link"): true, at("file"): true, victim: true} {
		if exists(name) != stays {
			t.Errorf("%s: %v", name, exists(name))
		}
	}
}

// FuzzAnswers feeds what a server says to what reads it: it ends, with an error
// that has a kind, or with what was asked for.
func FuzzAnswers(f *testing.F) {
	id := strings.Repeat("ab", 20)
	f.Add([]byte(greeting), []byte(pkt(id+" HEAD symref-target:refs/heads/main peeled:"+id+"\n")+"0000"), []byte(packfile+pkt("\x01PACK")+pkt("\x02x")+"0000"))
	f.Add([]byte(pkt("# service=git-upload-pack\n")+"0000"+greeting), []byte(pkt("ERR no")), []byte(pkt("shallow-info\n")+pkt("shallow "+id)+"0001"+packfile+pkt("\x03no")))
	f.Add([]byte("0001"), []byte("0004"), []byte("ffff"))
	f.Fuzz(func(t *testing.T, greet, refs, fetch []byte) {
		s := new(Network).server("https://h/r", limits{pack: 1 << 16, answer: 1 << 16, objects: 10, silence: time.Minute}, func(error) {})
		answers := [][]byte{greet, refs, fetch}
		s.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			b := answers[0]
			answers = answers[1:]
			kind := "application/x-git-upload-pack-result"
			if r.Method == http.MethodGet {
				kind = "application/x-git-upload-pack-advertisement"
			}
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(bytes.NewReader(b)), Request: r}, nil
		})
		ctx := context.Background()
		err := s.greet(ctx)
		if err != nil {
			typed(t, s.explain(ctx, err))
			return
		}
		id, err := s.resolve(ctx, "HEAD")
		if err != nil {
			typed(t, s.explain(ctx, err))
		} else if !s.isID(id) {
			t.Fatalf("%q is no id", id)
		}
		if len(answers) > 1 {
			answers = answers[1:]
		}
		p, a, err := s.ask(ctx, s.limits.pack, "fetch")
		if err != nil {
			t.Fatal(err)
		}
		defer a.body.Close()
		if n, err := io.Copy(io.Discard, &sideband{p: p}); n > int64(len(fetch)) {
			t.Fatalf("%d bytes of %d", n, len(fetch))
		} else if err != nil {
			typed(t, s.explain(ctx, err))
		}
	})
}

func typed(t *testing.T, err error) {
	t.Helper()
	var e *sandbox.Error
	if !errors.As(err, &e) || e.Kind == sandbox.KindInternal || e.Hint == "" {
		t.Fatalf("%v has no kind, or no hint", err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
