package audit

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// cosignedDir holds, in the directory of a log, for each witness the newest
// checkpoint it cosigned, in a file named by the id of its key.
const cosignedDir = "cosigned"

// WitnessAddress says where a witness is and what its public key is.
type WitnessAddress struct {
	URL string // in front of /add-checkpoint
	Key note.Verifier
}

// ParseWitness reads "URL VKEY". Errors: KindInvalid.
func ParseWitness(s string) (WitnessAddress, error) {
	f := strings.Fields(s)
	if len(f) != 2 {
		return WitnessAddress{}, sandbox.Errorf("witness", sandbox.KindInvalid, "%.80q is no witness", s).
			WithHint("write its address and its public key: https://witness.example.org name+1a2b3c4d+AbCd…")
	}
	u, err := url.Parse(f[0])
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return WitnessAddress{}, sandbox.Errorf("witness", sandbox.KindInvalid, "%.80q is no address of a witness", f[0])
	}
	k, err := NewVerifier(f[1])
	if err != nil {
		return WitnessAddress{}, err
	}
	if _, ok := k.(*witnessKey); !ok {
		return WitnessAddress{}, sandbox.Errorf("witness", sandbox.KindInvalid, "the key %s is a log's, not a witness's", k.Name())
	}
	return WitnessAddress{strings.TrimRight(f[0], "/"), k}, nil
}

// ContradictionError is a witness's refusal to cosign because of what it has
// seen before: the log was rolled back, or its past was changed.
type ContradictionError struct {
	Witness string
	Size    int64 // of the checkpoint it refused
	Seen    int64 // the size it has seen; -1 when it saw another past instead
}

// Error implements error.
func (e *ContradictionError) Error() string {
	if e.Seen < 0 {
		return fmt.Sprintf("witness %s has seen another past of this log than the %d records now here", e.Witness, e.Size)
	}
	return fmt.Sprintf("witness %s has seen %d records of this log, here are %d: it was rolled back", e.Witness, e.Seen, e.Size)
}

// Submitter shows a log's checkpoints to witnesses and keeps their
// cosignatures beside the log. It never delays a record.
type Submitter struct {
	Dir       string // of the log
	Witnesses []WitnessAddress
	Every     time.Duration // how often it looks for a new checkpoint; default 1 s
	Client    *http.Client  // default: one with a time limit that follows no redirect
	Log       *slog.Logger
	// Report, if not nil, is told when what a witness says has changed: nil when
	// it cosigns, a *ContradictionError, or why it cannot be asked.
	Report func(witness string, err error)

	mu    sync.Mutex
	state map[string]error // by witness; guarded by mu
}

// Err joins what keeps witnesses from cosigning, as far as asked.
func (s *Submitter) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, w := range s.Witnesses {
		if err := s.state[w.Key.Name()]; err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

const maxBackoff = time.Minute

// Run works until ctx ends.
func (s *Submitter) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, w := range s.Witnesses {
		all.Go(func() { s.follow(ctx, w) })
	}
	all.Wait()
}

// follow submits each new checkpoint to one witness.
func (s *Submitter) follow(ctx context.Context, w WitnessAddress) {
	every := s.Every
	if every <= 0 {
		every = time.Second
	}
	wait, last := every, []byte(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		msg, err := ReadCheckpoint(s.Dir)
		if err == nil && bytes.Equal(msg, last) || errors.Is(err, fs.ErrNotExist) {
			wait = every
			continue
		}
		if err == nil {
			err = s.Submit(ctx, w, msg)
		}
		if ctx.Err() != nil {
			return
		}
		s.tell(w, err)
		if err != nil {
			wait = min(2*wait, max(maxBackoff, every))
			continue
		}
		wait, last = every, msg
	}
}

func (s *Submitter) tell(w WitnessAddress, err error) {
	name := w.Key.Name()
	s.mu.Lock()
	before, known := s.state[name]
	if s.state == nil {
		s.state = map[string]error{}
	}
	s.state[name] = err
	s.mu.Unlock()
	if known && same(before, err) {
		return
	}
	var no *ContradictionError
	switch {
	case errors.As(err, &no):
		s.Log.Error("a witness refuses the audit log", "witness", name, "error", err)
	case err != nil:
		s.Log.Warn("a witness does not cosign", "witness", name, "error", err)
	default:
		s.Log.Info("a witness cosigns the audit log", "witness", name)
	}
	if s.Report != nil {
		s.Report(name, err)
	}
}

// same reports whether a witness says the same as before: what it contradicts may
// have grown, the more so as that is recorded.
func same(before, now error) bool {
	var a, b *ContradictionError
	if errors.As(before, &a) && errors.As(now, &b) {
		return a.Seen == b.Seen
	}
	return (before == nil) == (now == nil) && (now == nil || before.Error() == now.Error())
}

// Submit has one checkpoint of the log cosigned and keeps the result. Errors:
// *ContradictionError; others say why the witness could not be asked.
func (s *Submitter) Submit(ctx context.Context, w WitnessAddress, msg []byte) error {
	text, _, _ := bytes.Cut(msg, []byte("\n\n"))
	cp, err := ParseCheckpoint(string(text) + "\n")
	if err != nil {
		return err
	}
	old := s.cosignedSize(w)
	for range 3 { // each answer with another size but the first means that somebody else submits
		if old > cp.Size {
			return &ContradictionError{w.Key.Name(), cp.Size, old}
		}
		body, err := s.request(old, cp.Size, msg)
		if err != nil {
			return err
		}
		status, answer, err := s.post(ctx, w, body)
		if err != nil {
			return err
		}
		switch {
		case status == http.StatusOK:
			return s.keep(w, msg, answer)
		case status == http.StatusUnprocessableEntity:
			return &ContradictionError{w.Key.Name(), cp.Size, -1}
		case status != http.StatusConflict:
			return fmt.Errorf("witness %s answers %d: %.100q", w.Key.Name(), status, answer)
		}
		seen, ok := parseSize(strings.TrimSuffix(string(answer), "\n"))
		if !ok || seen == old {
			return fmt.Errorf("witness %s answers 409 without another size", w.Key.Name())
		}
		old = seen
	}
	return fmt.Errorf("witness %s changes its mind", w.Key.Name())
}

// cosignedSize is the size the witness has cosigned, as far as known here.
func (s *Submitter) cosignedSize(w WitnessAddress) int64 {
	b, err := os.ReadFile(cosignedPath(s.Dir, w.Key))
	if err != nil {
		return 0
	}
	cp, _, err := openSigned(b, w.Key)
	if err != nil {
		return 0 // the witness will say
	}
	return cp.Size
}

func cosignedPath(dir string, k note.Verifier) string {
	return filepath.Join(dir, cosignedDir, fmt.Sprintf("%08x", k.KeyHash()))
}

func (s *Submitter) request(old, size int64, msg []byte) ([]byte, error) {
	b := fmt.Appendf(nil, "old %d\n", old)
	if old > 0 && old < size {
		proof, err := TreeProof(s.Dir, old, size)
		if err != nil {
			return nil, err
		}
		for _, h := range proof {
			b = append(base64.StdEncoding.AppendEncode(b, h[:]), '\n')
		}
	}
	return append(append(b, '\n'), msg...), nil
}

func (s *Submitter) post(ctx context.Context, w WitnessAddress, body []byte) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	client := s.Client
	if client == nil {
		client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxNote))
	return resp.StatusCode, answer, err
}

// keep stores the checkpoint with the cosignature, if that is good.
func (s *Submitter) keep(w WitnessAddress, msg, answer []byte) error {
	n, err := openNote(append(bytes.Clone(msg), answer...), w.Key)
	if err != nil {
		return fmt.Errorf("witness %s answers with a bad cosignature: %w", w.Key.Name(), err)
	}
	sig, _ := signedBy(n, w.Key)
	path := cosignedPath(s.Dir, w.Key)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	line := fmt.Sprintf("— %s %s\n", sig.Name, sig.Base64)
	return replaceFile(path, append(bytes.Clone(msg), line...), 0o600)
}
