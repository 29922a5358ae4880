package audit

import (
	"bytes"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// lives records the lives of two sandboxes, one ended and one not, among other
// things, and returns the receipt of the first.
func lives(t testing.TB, l *Log) sandbox.Receipt {
	t.Helper()
	receipt := sandbox.Receipt{Instance: "i1", Objects: []sandbox.Object{{Kind: "cgroup", Name: "/a<b>\u2028", Gone: true}}}.Seal()
	for i, r := range []sandbox.Record{
		{Action: "sandbox.create", Sandbox: "sbone"}, {Action: "sandbox.create", Sandbox: "sbtwo"}, {Action: "daemon.tick"},
		{Action: "process.exec", Sandbox: "sbone", Detail: map[string]string{"args": "1"}}, {Action: "process.exec", Sandbox: "sbtwo"},
		{Action: "process.exec", Sandbox: "sbone"}, {Action: "sandbox.receipt", Sandbox: "sbone", Digest: receipt.Digest()},
		{Action: "file.read", Sandbox: "sbone"}, {Action: "daemon.tick"},
	} {
		r.Time = time.Unix(int64(i), 0).UTC()
		r.Outcome = sandbox.OutcomeAllowed
		mustRecord(t, l, r)
	}
	return receipt
}

func collect(t testing.TB, dir string, id sandbox.ID) *Evidence {
	t.Helper()
	e, err := CollectEvidence(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func encoded(t testing.TB, e *Evidence) []byte {
	t.Helper()
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// verifyFile is what somebody with a file and a key does.
func verifyFile(b []byte, o VerifyOptions) (EvidenceReport, error) {
	e, err := DecodeEvidence(b)
	if err != nil {
		return EvidenceReport{}, err
	}
	return e.Verify(o)
}

func evidenceLog(t testing.TB) (dir string, receipt sandbox.Receipt) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "server")
	l := open(t, dir, Options{})
	receipt = lives(t, l)
	for range 2 {
		if _, err := l.Rotate(t.Context(), "uid:0"); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, receipt
}

func TestEvidence(t *testing.T) {
	dir, receipt := evidenceLog(t)
	o := VerifyOptions{Key: publicKey(t, dir)}
	one := collect(t, dir, "sbone")
	if one.SetReceipt(sandbox.Receipt{Instance: "i1"}.Seal()) || !one.SetReceipt(receipt) {
		t.Fatal("the receipt is not the recorded one")
	}
	r, err := verifyFile(encoded(t, one), o)
	if err != nil || !r.Complete || !r.Receipt || !r.Clean || r.Records != 5 || r.First != 1 || r.Last != 8 || !r.KeyOutside || r.Sandbox != "sbone" {
		t.Errorf("%+v, %v", r, err)
	}
	for i, key := range one.Keys {
		if r, err := verifyFile(encoded(t, one), VerifyOptions{Key: key}); err != nil || len(one.Keys) != 3 || r.Rotations != 2-i {
			t.Errorf("from key %d: %+v, %v", i, r, err)
		}
	}
	two := collect(t, dir, "sbtwo")
	if r, err := verifyFile(encoded(t, two), o); err != nil || r.Complete || r.Missing == "" || r.Receipt {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := CollectEvidence(dir, "sbthree"); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Error(err)
	}
	if _, err := verifyFile(encoded(t, one), VerifyOptions{Key: newPaperLog(t, "firebreak/0a").vkey}); !errors.As(err, new(*EvidenceError)) {
		t.Error(err)
	}

	l := open(t, dir, Options{Interval: time.Hour})
	mustRecord(t, l, sandbox.Record{Action: "process.exec", Sandbox: "sbtwo"})
	if _, err := CollectEvidence(dir, "sbtwo"); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Error(err)
	}
}

// TestEvidenceTampered: whatever is taken out, put in, exchanged or changed is
// found, with or without the file's form kept.
func TestEvidenceTampered(t *testing.T) {
	dir, receipt := evidenceLog(t)
	o := VerifyOptions{Key: collect(t, dir, "sbone").Keys[0]}
	fresh := func() *Evidence {
		e := collect(t, dir, "sbone")
		if !e.SetReceipt(receipt) {
			t.Fatal("no receipt")
		}
		return e
	}
	other := collect(t, dir, "sbtwo")
	elsewhere, _ := evidenceLog(t)
	foreign := collect(t, elsewhere, "sbone")
	for name, tamper := range map[string]func(e *Evidence){
		"the first record left out":  func(e *Evidence) { e.Records = e.Records[1:] },
		"one in the middle left out": func(e *Evidence) { e.Records = slices.Delete(e.Records, 2, 3) },
		"the receipt's left out":     func(e *Evidence) { e.Records = slices.Delete(e.Records, 3, 4) },
		"two exchanged":              func(e *Evidence) { e.Records[1], e.Records[2] = e.Records[2], e.Records[1] },
		"one twice":                  func(e *Evidence) { e.Records = slices.Insert(e.Records, 1, e.Records[1]) },
		"one of another sandbox":     func(e *Evidence) { e.Records = slices.Insert(e.Records, 1, other.Records[0]) },
		"another sandbox claimed":    func(e *Evidence) { e.Sandbox = "sbtwo" },
		"another's records":          func(e *Evidence) { e.Records = other.Records },
		"another log's record":       func(e *Evidence) { e.Records[0] = foreign.Records[0] },
		"another log's checkpoint":   func(e *Evidence) { e.Checkpoint = foreign.Checkpoint },
		"another origin":             func(e *Evidence) { e.Origin += "x" },
		"a proof cut short":          func(e *Evidence) { e.Records[0].Proof = e.Records[0].Proof[1:] },
		"a proof made longer":        func(e *Evidence) { e.Records[0].Proof = append(e.Records[0].Proof, e.Records[0].Proof[0]) },
		"a proof of another":         func(e *Evidence) { e.Records[0].Proof = e.Records[1].Proof },
		"a position changed":         func(e *Evidence) { e.Records[0].Position++ },
		"a payload changed":          func(e *Evidence) { e.Records[0].Payload[timeOff+7] ^= 1 },
		"the receipt changed":        func(e *Evidence) { e.Receipt = strings.Replace(e.Receipt, "cgroup", "croup", 1) },
		"a rotation that is not one": func(e *Evidence) {
			e.Rotations = []EvidenceKeys{{e.Checkpoint, e.Records[0].Payload, e.Records[0].Proof}}
		},
		"a rotation left out":         func(e *Evidence) { e.Rotations = e.Rotations[1:] },
		"the last rotation left out":  func(e *Evidence) { e.Rotations = e.Rotations[:1] },
		"rotations exchanged":         func(e *Evidence) { slices.Reverse(e.Rotations) },
		"a rotation's record changed": func(e *Evidence) { e.Rotations[0].Payload[timeOff+7] ^= 1 },
		"a rotation's proof changed":  func(e *Evidence) { e.Rotations[0].Proof[0][0] ^= 1 },
		"another log's rotations":     func(e *Evidence) { e.Rotations = foreign.Rotations },
		"a receipt without a receipt": func(e *Evidence) { e.Records = e.Records[:3] },
	} {
		e := fresh()
		tamper(e)
		if _, err := verifyFile(encoded(t, e), o); !errors.As(err, new(*EvidenceError)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Keys are informational: what they say is not believed, nor is it checked.
	e := fresh()
	e.Keys = nil
	if r, err := verifyFile(encoded(t, fresh()), o); err != nil || !r.Complete {
		t.Errorf("%+v, %v", r, err)
	}

	good := encoded(t, fresh())
	known := bytes.Index(good, []byte(`"keys"`))
	parallel(t, len(good), func(t testing.TB) func(int) {
		return func(i int) {
			b := bytes.Clone(good)
			b[i] ^= 1
			if r, err := verifyFile(b, o); err == nil && (i < known || i > known+300) {
				t.Errorf("byte %d of %q… flipped: %+v", i, b[max(0, i-30):i+1], r)
			}
		}
	})
	for i := range good {
		if _, err := verifyFile(good[:i], o); err == nil {
			t.Fatalf("cut at %d it is good", i)
		}
	}
}

func FuzzEvidence(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "server") // as little as there can be: the fuzzer works faster on it
	l := open(f, dir, Options{})
	mustRecord(f, l, sandbox.Record{Action: "sandbox.create", Sandbox: "s"})
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	key := publicKey(f, dir)
	e := collect(f, dir, "s")
	e.Keys = []string{}
	original, recorded := encoded(f, e), payloads(f, dir)
	f.Add(original)
	f.Add(bytes.Replace(original, []byte("\n "), []byte("\n"), 1))
	f.Add([]byte(`{"format":"firebreak-evidence/1"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEvidence(b)
		if err != nil {
			if !errors.As(err, new(*EvidenceError)) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(encoded(t, e), b) {
			t.Fatal("two forms of one file")
		}
		r, err := e.Verify(VerifyOptions{Key: key})
		if err == nil && r.Records > 0 && e.Checkpoint == "" {
			t.Fatal("records without a checkpoint")
		}
		for _, rec := range e.Records {
			if err == nil && !slices.ContainsFunc(recorded, func(p []byte) bool { return bytes.Equal(p, rec.Payload) }) {
				t.Fatal("a record that was never made")
			}
		}
	})
}

// FuzzView: verification reads exactly the payloads that the decoder does.
func FuzzView(f *testing.F) {
	dir := signedLog(f, 6, 1<<20)
	for _, p := range payloads(f, dir) {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var v view
		ok := viewPayload(b, &v)
		e, err := decodePayload(b)
		if ok != (err == nil) {
			t.Fatalf("seen %v, decoded %v", ok, err)
		}
		if !ok {
			return
		}
		if v.position != uint64(e.Position) || v.previous != uint64(e.Previous) || v.version != e.Version || string(v.fields[fieldAction]) != e.Record.Action ||
			string(v.fields[fieldSandbox]) != string(e.Record.Sandbox) || string(v.fields[fieldDigest]) != e.Record.Digest || string(v.fields[fieldObject]) != e.Record.Object {
			t.Fatalf("%+v is %+v", v, e)
		}
		for k, want := range e.Record.Detail {
			if v.detail(k) != want {
				t.Fatalf("%q is %q, not %q", k, v.detail(k), want)
			}
		}
	})
}
