package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	maxProof   = 63                 // lines of a consistency proof
	maxRequest = maxNote + 4<<10    // bytes of a request
	maxOrigins = 1024               // logs a witness keeps the state of
	sizeType   = "text/x.tlog.size" // media type of the answer to a wrong old size
)

// Witness cosigns checkpoints of logs, each only if it continues what it
// cosigned before: whoever trusts it need not trust the log for showing
// everybody the same. It implements C2SP tlog-witness (c2sp.org/tlog-witness):
//
//	POST /add-checkpoint              200 with the cosignature, or 400, 403, 404, 409, 422
//	GET  /<sha256 of origin>/checkpoint   the newest cosigned one
//
// It is safe for concurrent use.
type Witness struct {
	key  *cosigner
	logs []trustedLog
	dir  string
	log  *slog.Logger
	lock *store.Owner
	mu   sync.Mutex // one checkpoint at a time is compared and stored
}

// NewWitnessKey makes the key file of a witness, and beside it the directory
// for what it has seen (file + ".state"). Errors: KindConflict if there is one.
func NewWitnessKey(file, name string) (vkey string, err error) {
	const op = "make witness key"
	skey, vkey, err := GenerateWitnessKey(name)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(file+".state", 0o700); err != nil {
		return "", sandbox.Wrap(op, file, err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", sandbox.Wrap(op, file, errors.Join(err, os.Remove(file+".state")))
	}
	_, err = f.WriteString(skey + "\n")
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close(), syncDir(filepath.Dir(file)))
	return vkey, sandbox.Wrap(op, file, err)
}

// trustedLog is a key, and what it may sign.
type trustedLog struct {
	key    note.Verifier
	origin string // "": its name, and whatever begins with its name and a slash
}

// parseTrusted reads "VKEY" or "ORIGIN VKEY".
func parseTrusted(s string) (t trustedLog, err error) {
	f := strings.Fields(s)
	switch len(f) {
	case 2:
		t.origin = f[0]
	case 1:
	default:
		return t, sandbox.Errorf("witness", sandbox.KindInvalid, "%.80q names no log", s).
			WithHint("the log's public key, or its origin and a later key of it")
	}
	t.key, err = NewVerifier(f[len(f)-1])
	return t, err
}

// OpenWitness opens the witness whose key is in file. logs are public keys, each
// trusted for the origins that begin with its name; or an origin and a public
// key, as a log needs it once its key has changed.
//
// Errors: KindNotFound without a key; KindConflict when what the witness has
// seen is missing, because it must then not be used again; KindUnavailable
// when another process runs it; KindInvalid for bad keys.
func OpenWitness(file string, logs []string, log *slog.Logger) (*Witness, error) {
	const op = "open witness"
	if fi, err := os.Stat(file); err == nil && fi.Mode().Perm()&0o077 != 0 {
		return nil, sandbox.Errorf(op, sandbox.KindDenied, "%s can be read by others", file).WithHint("chmod 600 it, or make a new key")
	}
	skey, err := os.ReadFile(file)
	if err != nil {
		return nil, sandbox.Wrap(op, file, err)
	}
	w := &Witness{dir: file + ".state", log: log}
	if w.key, err = newCosigner(string(skey)); err != nil {
		return nil, sandbox.Wrap(op, file, err)
	}
	for _, s := range logs {
		t, err := parseTrusted(s)
		if err != nil {
			return nil, err
		}
		w.logs = append(w.logs, t)
	}
	if _, err := os.Stat(w.dir); err != nil {
		return nil, sandbox.Errorf(op, sandbox.KindConflict, "what this witness has cosigned is missing: %w", err).
			WithHint("a witness that forgot is none any more: retire its key and make another")
	}
	if w.lock, err = store.Lock(w.dir); err != nil {
		return nil, sandbox.Wrap(op, file, err)
	}
	return w, nil
}

// PublicKey is the witness's, for those who want its cosignatures.
func (w *Witness) PublicKey() string {
	return formatKey(w.key.name, append([]byte{keyWitness}, w.key.public...))
}

// Close frees the state directory. Nobody may be calling any more.
func (w *Witness) Close() error { return w.lock.Close() }

// ServeHTTP implements http.Handler.
func (w *Witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if hash, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/"), "/checkpoint"); ok && r.Method == http.MethodGet {
		w.serveCheckpoint(rw, hash)
		return
	}
	switch {
	case r.URL.Path != "/add-checkpoint":
		http.Error(rw, "not found", http.StatusNotFound)
		return
	case r.Method != http.MethodPost:
		rw.Header().Set("Allow", "POST")
		http.Error(rw, "POST only", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxRequest))
	if err != nil {
		http.Error(rw, "the request is too long", http.StatusRequestEntityTooLarge)
		return
	}
	sig, err := w.add(body)
	var no *refusal
	switch {
	case errors.As(err, &no) && no.seen >= 0:
		rw.Header().Set("Content-Type", sizeType)
		rw.WriteHeader(http.StatusConflict)
		fmt.Fprintf(rw, "%d\n", no.seen)
	case errors.As(err, &no):
		http.Error(rw, no.why, no.status)
	case err != nil:
		w.log.Error("witness", "error", err)
		http.Error(rw, "the witness cannot work", http.StatusInternalServerError)
	default:
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = rw.Write(sig)
	}
}

func (w *Witness) serveCheckpoint(rw http.ResponseWriter, hash string) {
	if raw, err := hex.DecodeString(hash); err != nil || len(raw) != sha256.Size || hex.EncodeToString(raw) != hash {
		http.Error(rw, "not found", http.StatusNotFound)
		return
	}
	b, err := os.ReadFile(filepath.Join(w.dir, hash))
	if err != nil {
		http.Error(rw, "not found", http.StatusNotFound)
		return
	}
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = rw.Write(b)
}

// refusal is an answer other than a cosignature.
type refusal struct {
	status int
	why    string
	seen   int64 // size of the newest cosigned checkpoint, where the old size was another; else -1
}

// Error implements error.
func (r *refusal) Error() string { return r.why }

func refuse(status int, format string, args ...any) *refusal {
	return &refusal{status, fmt.Sprintf(format, args...), -1}
}

// request is a parsed body of add-checkpoint.
type request struct {
	old   int64
	proof tlog.TreeProof
	note  []byte
}

// parseRequest reads the body of add-checkpoint strictly.
func parseRequest(body []byte) (q request, err error) {
	head, msg, ok := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	size, old := strings.CutPrefix(lines[0], "old ")
	if q.old, ok = parseSize(size); !ok || !old || len(lines)-1 > maxProof || len(msg) == 0 {
		return q, errors.New("malformed request")
	}
	for _, l := range lines[1:] {
		raw, err := base64.StdEncoding.Strict().DecodeString(l)
		if err != nil || len(raw) != tlog.HashSize || len(l) != 44 {
			return q, errors.New("malformed proof")
		}
		q.proof = append(q.proof, tlog.Hash(raw))
	}
	q.note = msg
	return q, nil
}

// trusted lists the keys that may sign for an origin.
func (w *Witness) trusted(origin string) (keys []note.Verifier) {
	for _, t := range w.logs {
		name := t.key.Name()
		if t.origin == origin || t.origin == "" && (origin == name || strings.HasPrefix(origin, name+"/")) {
			keys = append(keys, t.key)
		}
	}
	return keys
}

// add checks a checkpoint against the newest one of its log, makes it the newest,
// and returns the cosignature line. The error is a *refusal, or the witness's own.
func (w *Witness) add(body []byte) ([]byte, error) {
	q, err := parseRequest(body)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	origin, _, _ := bytes.Cut(q.note, []byte("\n"))
	keys := w.trusted(string(origin))
	if len(keys) == 0 {
		return nil, refuse(http.StatusNotFound, "unknown log")
	}
	cp, n, err := openSigned(q.note, keys...)
	var invalid *note.InvalidSignatureError
	var unsigned *note.UnverifiedNoteError
	switch {
	case errors.As(err, &invalid), errors.As(err, &unsigned):
		return nil, refuse(http.StatusForbidden, "no valid signature of a trusted key")
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "malformed checkpoint")
	case q.old > cp.Size:
		return nil, refuse(http.StatusBadRequest, "the old size is greater than the new one")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	seen, err := w.seen(cp.Origin, keys)
	if err != nil {
		return nil, err
	}
	if seen.Size != q.old {
		return nil, &refusal{http.StatusConflict, "the old size is not the newest", seen.Size}
	}
	if err := consistent(seen, cp, q.proof); err != nil {
		w.log.Error("witness: a log contradicts itself", "log", cp.Origin, "size", cp.Size, "seen", seen.Size, "error", err, "checkpoint", string(q.note))
		return nil, refuse(http.StatusUnprocessableEntity, "%v", err)
	}
	return w.cosign(cp, n)
}

// consistent checks that cp continues what was seen. Preconditions: seen is not
// larger.
func consistent(seen, cp Checkpoint, proof tlog.TreeProof) error {
	switch {
	case cp.Size == 0 && cp.Root != tlog.Hash(sha256.Sum256(nil)):
		return errors.New("the root of an empty tree is wrong")
	case seen.Size == 0 && len(proof) > 0:
		return errors.New("there is nothing before the first record to prove")
	case seen.Size == 0:
		return nil
	case seen.Size == cp.Size && seen.Root != cp.Root:
		return errors.New("another root at the same size")
	case seen.Size == cp.Size && len(proof) > 0:
		return errors.New("a proof between equal sizes is empty")
	case seen.Size == cp.Size:
		return nil
	}
	if err := tlog.CheckTree(proof, cp.Size, cp.Root, seen.Size, seen.Root); err != nil {
		return errors.New("the checkpoint does not continue the one cosigned before")
	}
	return nil
}

func (w *Witness) path(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return filepath.Join(w.dir, hex.EncodeToString(sum[:]))
}

// seen is the newest checkpoint that was cosigned; size 0 if none was. A state
// that this witness did not write is an error: forgetting would be worse.
func (w *Witness) seen(origin string, keys []note.Verifier) (Checkpoint, error) {
	b, err := os.ReadFile(w.path(origin))
	if errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(w.dir)
		if err == nil && len(entries) > maxOrigins {
			err = fmt.Errorf("%d logs are enough", maxOrigins)
		}
		return Checkpoint{}, err
	}
	if err != nil {
		return Checkpoint{}, err
	}
	cp, _, err := openSigned(b, &w.key.witnessKey)
	if err == nil && cp.Origin != origin {
		err = errors.New("it is of another log")
	}
	if err != nil {
		return Checkpoint{}, fmt.Errorf("the state of %s is damaged: %w", origin, err)
	}
	return cp, nil
}

// cosign stores cp as the newest, durably, and only then gives the cosignature
// away.
func (w *Witness) cosign(cp Checkpoint, n *note.Note) ([]byte, error) {
	msg, err := note.Sign(&note.Note{Text: n.Text, Sigs: n.Sigs}, w.key)
	if err != nil {
		return nil, err
	}
	if err := replaceFile(w.path(cp.Origin), msg, 0o600); err != nil {
		return nil, err
	}
	failpoint.Hit("audit/witness-stored")
	lines := bytes.SplitAfter(bytes.TrimSuffix(msg, []byte("\n")), []byte("\n"))
	return append(lines[len(lines)-1], '\n'), nil
}
