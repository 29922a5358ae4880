package audit

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var quiet = slog.New(slog.DiscardHandler)

// paperLog is a log of which only the tree exists.
type paperLog struct {
	t      testing.TB
	signer note.Signer
	vkey   string
	origin string
	stored []tlog.Hash
	n      int64
}

func newPaperLog(t testing.TB, name string) *paperLog {
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return &paperLog{t: t, signer: signer, vkey: vkey, origin: name + "/server"}
}

func (l *paperLog) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = l.stored[x]
	}
	return out, nil
}

func (l *paperLog) grow(n int, what string) {
	for range n {
		h, err := tlog.StoredHashes(l.n, fmt.Appendf(nil, "%s %d", what, l.n), l)
		if err != nil {
			l.t.Fatal(err)
		}
		l.stored, l.n = append(l.stored, h...), l.n+1
	}
}

func (l *paperLog) checkpoint() []byte { return l.sign(l.signer) }

func (l *paperLog) sign(signers ...note.Signer) []byte {
	root, err := tlog.TreeHash(l.n, l)
	if err != nil {
		l.t.Fatal(err)
	}
	msg, err := note.Sign(&note.Note{Text: Checkpoint{l.origin, l.n, root}.Text()}, signers...)
	if err != nil {
		l.t.Fatal(err)
	}
	return msg
}

func (l *paperLog) request(old int64) []byte {
	b := fmt.Appendf(nil, "old %d\n", old)
	if old > 0 && old < l.n {
		proof, err := tlog.ProveTree(l.n, old, l)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, h := range proof {
			b = fmt.Appendf(b, "%s\n", base64.StdEncoding.EncodeToString(h[:]))
		}
	}
	return append(append(b, '\n'), l.checkpoint()...)
}

func newWitness(t testing.TB, logs ...string) (*Witness, string) {
	file := filepath.Join(t.TempDir(), "witness.key")
	if _, err := NewWitnessKey(file, "witness.example"); err != nil {
		t.Fatal(err)
	}
	w, err := OpenWitness(file, logs, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w, file
}

func post(w http.Handler, body []byte) (int, string, string) {
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/add-checkpoint", bytes.NewReader(body)))
	return rec.Code, rec.Body.String(), rec.Header().Get("Content-Type")
}

// TestWitness goes through every answer of C2SP tlog-witness.
func TestWitness(t *testing.T) {
	l, other := newPaperLog(t, "firebreak/0a"), newPaperLog(t, "firebreak/0b")
	l.grow(3, "a")
	other.grow(3, "a")
	w, _ := newWitness(t, l.vkey)
	key, err := NewVerifier(w.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	// good checks that an answer is a cosignature on what was sent.
	good := func(body []byte) {
		t.Helper()
		code, line, _ := post(w, body)
		_, msg, _ := bytes.Cut(body, []byte("\n\n"))
		if code != http.StatusOK {
			t.Fatalf("%d %s", code, line)
		}
		n, err := note.Open(append(bytes.Clone(msg), line...), note.VerifierList(key))
		if err != nil || len(n.Sigs) != 1 || time.Since(cosignedAt(n.Sigs[0])).Abs() > time.Minute {
			t.Fatalf("%v %q", err, line)
		}
	}
	refused := func(name string, body []byte, want int, text string) {
		t.Helper()
		code, got, ctype := post(w, body)
		if code != want || text != "" && got != text || (want == http.StatusConflict) != (ctype == "text/x.tlog.size") {
			t.Errorf("%s: %d %q %s, want %d %q", name, code, got, ctype, want, text)
		}
	}
	refused("unknown log", other.request(0), http.StatusNotFound, "")
	refused("conflict before the first", l.request(2), http.StatusConflict, "0\n")
	good(l.request(0))
	good(l.request(3)) // the same again
	refused("forgotten", l.request(0), http.StatusConflict, "3\n")
	l.grow(300, "a")
	at3 := l.request(3)
	good(at3)
	refused("replay", at3, http.StatusConflict, "303\n")
	refused("too old", func() []byte { b := l.request(303); return bytes.Replace(b, []byte("old 303"), []byte("old 304"), 1) }(), http.StatusBadRequest, "")

	l.grow(10, "a")
	req := l.request(303)
	lines := bytes.SplitAfter(req, []byte("\n"))
	refused("no proof", bytes.Join(append([][]byte{lines[0]}, lines[len(lines)-7:]...), nil), http.StatusUnprocessableEntity, "")
	refused("unsigned", bytes.Replace(req, []byte("\n— "), []byte("\n— x"), 1), http.StatusForbidden, "")
	refused("two signatures of a key", append(bytes.Clone(req), lines[len(lines)-2]...), http.StatusBadRequest, "")
	bad := bytes.Clone(req)
	if c := &bad[len(bad)-12]; *c == 'A' { // another character of base64
		*c = 'B'
	} else {
		*c = 'A'
	}
	refused("bad signature", bad, http.StatusForbidden, "")
	for name, body := range map[string]string{
		"empty": "", "no old": "size 3\n\nx", "signed old": strings.Replace(string(req), "old 303", "old +303", 1),
		"zero in front": strings.Replace(string(req), "old 303", "old 0303", 1), "no checkpoint": "old 303\n\n",
		"64 lines":   "old 303\n" + strings.Repeat(base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n", 64) + "\n" + string(l.checkpoint()),
		"short hash": "old 303\nAAAA\n\n" + string(l.checkpoint()),
	} {
		refused(name, []byte(body), http.StatusBadRequest, "")
	}
	refused("long", make([]byte, maxRequest+1), http.StatusRequestEntityTooLarge, "")
	good(req)

	// The same log with another past, signed with the same key.
	fork := &paperLog{t: t, signer: l.signer, origin: l.origin}
	fork.grow(313, "b")
	refused("fork at the same size", fork.request(313), http.StatusUnprocessableEntity, "")
	fork.grow(1, "b")
	refused("fork that grew", fork.request(313), http.StatusUnprocessableEntity, "")
	rolled := &paperLog{t: t, signer: l.signer, origin: l.origin}
	rolled.grow(3, "a")
	refused("rolled back", rolled.request(3), http.StatusConflict, "313\n")
}

// TestWitnessRemembers: it answers only with what is stored, and without its
// memory, or with one that is not its own, it answers nothing.
func TestWitnessRemembers(t *testing.T) {
	l := newPaperLog(t, "firebreak/0a")
	l.grow(5, "a")
	w, file := newWitness(t, "firebreak/0a/server "+l.vkey)
	if code, body, _ := post(w, l.request(0)); code != http.StatusOK {
		t.Fatal(code, body)
	}
	if _, err := OpenWitness(file, nil, quiet); err == nil {
		t.Error("two processes are one witness")
	}
	w.Close()
	w, err := OpenWitness(file, []string{l.vkey}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if code, body, _ := post(w, l.request(0)); code != http.StatusConflict || body != "5\n" {
		t.Error(code, body)
	}
	rec := httptest.NewRecorder()
	state := w.path(l.origin)
	w.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/"+filepath.Base(state)+"/checkpoint", nil))
	key, _ := NewVerifier(l.vkey)
	if n, err := openNote(rec.Body.Bytes(), key, &w.key.witnessKey); err != nil || len(n.Sigs) != 2 {
		t.Errorf("%v %s", err, rec.Body)
	}
	b, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		if i < bytes.Index(b, []byte("\n\n")) {
			if err := os.WriteFile(state, append(append(bytes.Clone(b[:i]), b[i]^1), b[i+1:]...), 0o600); err != nil {
				t.Fatal(err)
			}
			if code, body, _ := post(w, l.request(0)); code != http.StatusInternalServerError {
				t.Fatalf("with byte %d of its memory changed: %d %s", i, code, body)
			}
		}
	}
	w.Close()
	if err := os.RemoveAll(file + ".state"); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenWitness(file, []string{l.vkey}, quiet); err == nil {
		t.Error("a witness without a memory opened")
	}
}

func FuzzWitnessRequest(f *testing.F) {
	l := newPaperLog(f, "firebreak/0a")
	l.grow(3, "a")
	f.Add(l.request(0))
	f.Add([]byte("old 0\n\n"))
	f.Add([]byte("old 10\nAAAA\n\nx"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := parseRequest(b)
		if err != nil {
			return
		}
		again := fmt.Appendf(nil, "old %d\n", q.old)
		for _, h := range q.proof {
			again = fmt.Appendf(again, "%s\n", h)
		}
		if again = append(append(again, '\n'), q.note...); !bytes.Equal(again, b) || len(q.proof) > maxProof {
			t.Fatalf("%q reads as %q", b, again)
		}
	})
}

func FuzzVerifierKey(f *testing.F) {
	_, witness, _ := GenerateWitnessKey("witness.example")
	f.Add(newPaperLog(f, "firebreak/0a").vkey)
	f.Add(witness)
	f.Add("a+00000000+AA==")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := NewVerifier(s)
		if err != nil {
			return
		}
		name, raw, err := cutKey(strings.TrimSpace(s))
		if err != nil || k.Name() != name || k.KeyHash() != keyID(name, raw) || formatKey(name, raw) != strings.TrimSpace(s) {
			t.Fatalf("%q is read as %s+%08x", s, k.Name(), k.KeyHash())
		}
	})
}

// answering is a witness that answers what it is told to.
func answering(t *testing.T, code int, ctype, body string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", ctype)
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// TestSubmitRefusals: what a witness can answer, and what that means.
func TestSubmitRefusals(t *testing.T) {
	l := newPaperLog(t, "firebreak/0a")
	l.grow(5, "a")
	_, vkey, err := GenerateWitnessKey("witness.example")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		code          int
		body          string
		contradiction bool
	}{
		"it has seen more":     {http.StatusConflict, "9\n", true},
		"another past":         {http.StatusUnprocessableEntity, "no", true},
		"no size":              {http.StatusConflict, "x", false},
		"unknown log":          {http.StatusNotFound, "", false},
		"a redirect":           {http.StatusFound, "", false},
		"a bad cosignature":    {http.StatusOK, "— witness.example AAAA\n", false},
		"nothing":              {http.StatusOK, "", false},
		"more than reasonable": {http.StatusOK, strings.Repeat("— x ", maxNote), false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w, err := ParseWitness(answering(t, c.code, "text/x.tlog.size", c.body) + " " + vkey)
			if err != nil {
				t.Fatal(err)
			}
			s := &Submitter{Dir: dir, Log: quiet}
			err = s.Submit(context.Background(), w, l.checkpoint())
			var no *ContradictionError
			if err == nil || errors.As(err, &no) != c.contradiction {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, cosignedDir)); err == nil {
				t.Error("something was kept")
			}
		})
	}
}

func TestParseWitness(t *testing.T) {
	_, witness, _ := GenerateWitnessKey("witness.example")
	logKey := newPaperLog(t, "firebreak/0a").vkey
	for _, s := range []string{"", witness, "http://x", "http://x " + logKey, "ftp://x " + witness, "http:// " + witness, "http://u:p@x " + witness,
		"http://x?q " + witness, "http://x " + witness + " y", "http://x " + witness[:len(witness)-1]} {
		if _, err := ParseWitness(s); err == nil {
			t.Errorf("%q is taken for a witness", s)
		}
	}
	if w, err := ParseWitness("https://x.example/w/ " + witness); err != nil || w.URL != "https://x.example/w" || w.Key.Name() != "witness.example" {
		t.Error(w, err)
	}
}

func httptestServer(t testing.TB, h http.Handler) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// TestSubmitter follows a log: each new checkpoint is cosigned; a witness that is
// down, and one that contradicts, is told of once, and records go on.
func TestSubmitter(t *testing.T) {
	dir := signedLog(t, 10, 1<<20)
	w, _ := newWitness(t, trusted(t, dir))
	down := atomic.Bool{}
	url := httptestServer(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if down.Load() {
			http.Error(rw, "down", http.StatusServiceUnavailable)
			return
		}
		w.ServeHTTP(rw, r)
	}))
	address, err := ParseWitness(url + " " + w.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 100)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	s := &Submitter{Dir: dir, Witnesses: []WitnessAddress{address}, Every: 5 * time.Millisecond, Client: client, Log: quiet,
		Report: func(_ string, err error) { told <- err }}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	next := func() error {
		t.Helper()
		select {
		case err := <-told:
			return err
		case <-time.After(time.Minute):
			t.Fatal("nothing is told")
			return nil
		}
	}
	if err := next(); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir, Options{})
	grow := func() int64 {
		t.Helper()
		p := mustRecord(t, l, gate("more"))
		if _, err := l.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		return int64(p)
	}
	down.Store(true)
	grow()
	if err := next(); err == nil {
		t.Error("a witness that is down cosigns")
	}
	down.Store(false)
	if err := next(); err != nil || s.Err() != nil {
		t.Error(err, s.Err())
	}
	size := grow()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if r := good(t, dir, VerifyOptions{Witnesses: []string{w.PublicKey()}}); r.Witnessed == size {
			break
		} else if time.Now().After(end) {
			t.Fatalf("%+v", r)
		}
	}
	// Somebody else with the same key shows the witness another past.
	key, err := readKey(filepath.Join(filepath.Dir(dir), "key"))
	if err != nil {
		t.Fatal(err)
	}
	other := &paperLog{t: t, signer: key.signer, origin: good(t, dir, VerifyOptions{}).Origin}
	other.grow(1000, "b")
	sum := w.path(other.origin)
	if err := os.Remove(sum); err != nil {
		t.Fatal(err)
	}
	if code, body, _ := post(w, other.request(0)); code != http.StatusOK {
		t.Fatal(code, body)
	}
	grow()
	var no *ContradictionError
	if err := next(); !errors.As(err, &no) || no.Seen != 1000 || !errors.As(s.Err(), &no) {
		t.Error(err)
	}
	grow()
	select {
	case err := <-told:
		t.Errorf("told again: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
}
