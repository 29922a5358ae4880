package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Key types of C2SP signed notes.
const (
	keyEd25519 = 1 // signs the text of a note
	keyWitness = 4 // cosignature/v1: signs a time and the text
)

const privatePrefix = "PRIVATE+KEY+"

var errKey = errors.New("malformed key")

// NewVerifier reads the public key of a log or of a witness,
// "name+8 hex digits+base64". Errors: KindInvalid.
func NewVerifier(vkey string) (note.Verifier, error) {
	vkey = strings.TrimSpace(vkey)
	name, raw, err := cutKey(vkey)
	if err == nil && formatKey(name, raw) != vkey {
		err = errors.New("its parts do not belong together")
	}
	if err != nil {
		return nil, sandbox.Errorf("read key", sandbox.KindInvalid, "%.80q is no public key: %w", vkey, err).
			WithHint("a key looks like name+1a2b3c4d+AbCd…; `firebreak audit key` prints that of a log")
	}
	switch raw[0] {
	case keyEd25519:
		return note.NewVerifier(vkey)
	case keyWitness:
		return &witnessKey{name: name, hash: keyID(name, raw), public: raw[1:]}, nil
	}
	return nil, sandbox.Errorf("read key", sandbox.KindInvalid, "the key of %s is of the unknown type %d", name, raw[0])
}

// cutKey takes "name+hash+base64" apart and checks that it is written in the
// only way there is.
func cutKey(key string) (name string, raw []byte, err error) {
	parts := strings.Split(key, "+")
	if len(parts) < 3 || !validName(parts[0]) {
		return "", nil, errKey
	}
	raw, err = base64.StdEncoding.Strict().DecodeString(strings.Join(parts[2:], "+"))
	if err != nil || len(raw) != 1+32 {
		return "", nil, errKey
	}
	return parts[0], raw, nil
}

func validName(name string) bool {
	return name != "" && len(name) <= 255 && utf8.ValidString(name) &&
		strings.IndexFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '+' }) < 0
}

func keyID(name string, typed []byte) uint32 {
	sum := sha256.Sum256([]byte(name + "\n" + string(typed)))
	return binary.BigEndian.Uint32(sum[:])
}

func formatKey(name string, typed []byte) string {
	return fmt.Sprintf("%s+%08x+%s", name, keyID(name, typed), base64.StdEncoding.EncodeToString(typed))
}

// witnessKey verifies cosignatures.
type witnessKey struct {
	name   string
	hash   uint32
	public ed25519.PublicKey
}

var _ note.Verifier = (*witnessKey)(nil)

// Name implements note.Verifier.
func (k *witnessKey) Name() string { return k.name }

// KeyHash implements note.Verifier.
func (k *witnessKey) KeyHash() uint32 { return k.hash }

// Verify implements note.Verifier. sig is a time in big-endian POSIX seconds and an
// Ed25519 signature.
func (k *witnessKey) Verify(text, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	t := binary.BigEndian.Uint64(sig)
	return t != 0 && t < 1<<63 && ed25519.Verify(k.public, cosigned(t, text), sig[8:])
}

// cosigned is what a cosignature/v1 signs.
func cosigned(t uint64, text []byte) []byte {
	return append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", t), text...)
}

// cosigner makes cosignatures.
type cosigner struct {
	witnessKey
	private ed25519.PrivateKey
	now     func() time.Time
}

var _ note.Signer = (*cosigner)(nil)

// Sign implements note.Signer.
func (c *cosigner) Sign(text []byte) ([]byte, error) {
	t := uint64(c.now().Unix())
	return append(binary.BigEndian.AppendUint64(nil, t), ed25519.Sign(c.private, cosigned(t, text))...), nil
}

// GenerateWitnessKey makes the key of a witness called name: the private text, to
// be kept, and the public one, to be told. Errors: KindInvalid for a name with
// spaces or a plus sign.
func GenerateWitnessKey(name string) (skey, vkey string, err error) {
	if !validName(name) {
		return "", "", sandbox.Errorf("make key", sandbox.KindInvalid, "%q cannot name a witness", name).
			WithHint("something like witness.example.org, without spaces and plus signs")
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", sandbox.Wrap("make key", name, err)
	}
	typed := append([]byte{keyWitness}, public...)
	seed := append([]byte{keyWitness}, private.Seed()...)
	return fmt.Sprintf("%s%s+%08x+%s", privatePrefix, name, keyID(name, typed), base64.StdEncoding.EncodeToString(seed)),
		formatKey(name, typed), nil
}

// newCosigner reads a private key that GenerateWitnessKey made.
func newCosigner(skey string) (*cosigner, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(skey), privatePrefix)
	name, raw, err := cutKey(rest)
	if !ok || err != nil || raw[0] != keyWitness {
		return nil, sandbox.Errorf("read key", sandbox.KindInvalid, "not the private key of a witness")
	}
	private := ed25519.NewKeyFromSeed(raw[1:])
	public := private.Public().(ed25519.PublicKey)
	id := keyID(name, append([]byte{keyWitness}, public...))
	if !strings.HasPrefix(rest, fmt.Sprintf("%s+%08x+", name, id)) {
		return nil, sandbox.Errorf("read key", sandbox.KindInvalid, "the private key of %s is damaged", name)
	}
	return &cosigner{witnessKey{name, id, public}, private, time.Now}, nil
}

// openNote is note.Open for notes that must be written in the only way there
// is; see noteText.
func openNote(msg []byte, keys ...note.Verifier) (*note.Note, error) {
	if _, err := noteText(msg); err != nil {
		return nil, err
	}
	return note.Open(msg, note.VerifierList(keys...))
}

// noteText returns the text of a note, whose signatures it does not check but for
// being written in the only way there is: one with spare bits set, or a second
// one of the same key, is refused.
func noteText(msg []byte) (string, error) {
	i := bytes.LastIndex(msg, []byte("\n\n"))
	if len(msg) > maxNote || i < 0 || !bytes.HasSuffix(msg, []byte("\n")) {
		return "", errors.New("malformed note")
	}
	seen := map[string]bool{}
	for line := range bytes.Lines(msg[i+2:]) {
		signature, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "— ")
		name, sig, _ := strings.Cut(signature, " ")
		raw, err := base64.StdEncoding.Strict().DecodeString(sig)
		if !ok || err != nil || len(raw) < 5 || base64.StdEncoding.EncodeToString(raw) != sig {
			return "", errors.New("malformed signature")
		}
		id := name + "+" + string(raw[:4])
		if seen[id] {
			return "", errors.New("two signatures of one key")
		}
		seen[id] = true
	}
	return string(msg[:i+1]), nil
}

// signedBy returns the signature of k on n, if there is one that was verified.
func signedBy(n *note.Note, k note.Verifier) (note.Signature, bool) {
	for _, s := range n.Sigs {
		if s.Name == k.Name() && s.Hash == k.KeyHash() {
			return s, true
		}
	}
	return note.Signature{}, false
}

// cosignedAt is the time a verified cosignature states.
func cosignedAt(s note.Signature) time.Time {
	raw, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(raw) < 12 {
		return time.Time{}
	}
	return time.Unix(int64(binary.BigEndian.Uint64(raw[4:])), 0).UTC()
}

// parseSize reads a tree size: ASCII decimal, no sign, no leading zero.
func parseSize(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= 0 && strconv.FormatInt(n, 10) == s
}

// openSigned opens a note that is a checkpoint. Errors are those of note.Open,
// or say what is malformed.
func openSigned(msg []byte, keys ...note.Verifier) (Checkpoint, *note.Note, error) {
	n, err := openNote(msg, keys...)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	cp, err := ParseCheckpoint(n.Text)
	return cp, n, err
}
