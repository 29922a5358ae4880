package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pythonCases runs docs/guides/verify.py, once for each list of arguments, in one
// process.
const pythonCases = `
import contextlib, io, json, runpy, sys
script = sys.argv[1]
for args in json.load(sys.stdin):
    sys.argv, out = [script] + args, io.StringIO()
    try:
        with contextlib.redirect_stdout(out): runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as e: code = e.code
    print(json.dumps([code, out.getvalue().strip()]))
`

type pythonCase struct {
	name string
	args []string
	want bool // what the Go verifier says
	said string
}

// TestPythonAgrees: a second verifier, which shares nothing with this one, comes
// to the same verdict on good and on tampered evidence. Key, checkpoint and
// witnesses' keys come from outside.
func TestPythonAgrees(t *testing.T) {
	var cases []pythonCase
	outside := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(outside, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	addLog := func(name, dir string, o VerifyOptions) {
		args := []string{dir, "--key", o.Key}
		if o.From != nil {
			args = append(args, "--from", file(fmt.Sprint("pin", len(cases)), o.From))
		}
		for _, w := range o.Witnesses {
			args = append(args, "--witness", w)
		}
		_, err := VerifyLog(dir, o)
		if err != nil && !errors.As(err, new(*EvidenceError)) {
			t.Fatal(name, err)
		}
		cases = append(cases, pythonCase{name, args, err == nil, fmt.Sprint(err)})
	}
	addFile := func(name string, b []byte, o VerifyOptions) {
		_, err := verifyFile(b, o)
		args := []string{file(fmt.Sprintf("evidence%d.json", len(cases)), b), "--key", o.Key}
		cases = append(cases, pythonCase{name, args, err == nil, fmt.Sprint(err)})
	}
	logCases(t, addLog)
	evidenceCases(t, addFile)

	in, err := json.Marshal(func() (list [][]string) {
		for _, c := range cases {
			list = append(list, c.args)
		}
		return list
	}())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("python3", "-c", pythonCases, filepath.Join("..", "..", "docs", "guides", "verify.py"))
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%v\n%s", err, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(cases) {
		t.Fatalf("%d verdicts on %d cases", len(lines), len(cases))
	}
	good := 0
	for i, c := range cases {
		var verdict [2]any
		if err := json.Unmarshal([]byte(lines[i]), &verdict); err != nil {
			t.Fatal(err)
		}
		if c.want {
			good++
		}
		if want := map[bool]float64{true: 0, false: 1}[c.want]; verdict[0] != want {
			t.Errorf("%s: exit code %v (%v); the Go verifier says %v", c.name, verdict[0], verdict[1], c.said)
		}
	}
	t.Logf("%d cases, %d of them good", len(cases), good)
	if good < 6 || len(cases)-good < 50 {
		t.Error("the cases are not what they were meant to be")
	}
}

// logCases makes logs that are good, and others.
func logCases(t *testing.T, add func(string, string, VerifyOptions)) {
	dir := signedLog(t, 60, 3000)
	key := publicKey(t, dir)
	o := VerifyOptions{Key: key}
	all := files(t, dir)
	copied := func(change func(m map[string][]byte)) string {
		m := map[string][]byte{}
		for name, b := range all {
			m[name] = bytes.Clone(b)
		}
		change(m)
		to := filepath.Join(t.TempDir(), "server")
		lay(t, to, m)
		return to
	}
	add("whole", dir, o)
	add("from the key before", dir, VerifyOptions{Key: oldKey(t, dir)})
	early := all[checkpointName]
	add("from its own checkpoint", dir, VerifyOptions{Key: key, From: early})
	add("another key", dir, VerifyOptions{Key: newPaperLog(t, "firebreak/0a").vkey})
	add("a witness who never saw it", dir, VerifyOptions{Key: key, Witnesses: []string{func() string { _, v, _ := GenerateWitnessKey("w"); return v }()}})
	add("a torn end", copied(func(m map[string][]byte) {
		names := segmentsOf(m)
		m[names[len(names)-1]] = append(m[names[len(names)-1]], "\x00\x00\x00\x80half"...)
	}), o)
	var names []string
	for name := range all {
		if !strings.HasPrefix(name, "tile/") && name != linksName { // derived: the other verifier does without
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		for i := range 12 {
			at := i * len(all[name]) / 12
			add(fmt.Sprintf("byte %d of %s flipped", at, name), copied(func(m map[string][]byte) { m[name][at] ^= 1 << (i % 8) }), o)
		}
		if strings.HasSuffix(name, ".log") || strings.HasSuffix(name, ".cut") {
			add(name+" gone", copied(func(m map[string][]byte) { delete(m, name) }), o)
		}
	}
	list := payloads(t, dir)
	for i := 0; i < len(list); i += 11 {
		put := func(l [][]byte) string {
			return copied(func(m map[string][]byte) {
				for _, name := range segmentsOf(m) {
					delete(m, name)
				}
				delete(m, linksName)
				for name, b := range forge(l, 20) {
					m[name] = b
				}
			})
		}
		changed := slices.Clone(list)
		changed[i] = bytes.Clone(changed[i])
		changed[i][timeOff] ^= 1
		add(fmt.Sprintf("record %d forged", i+1), put(changed), o)
		add(fmt.Sprintf("record %d dropped", i+1), put(renumber(slices.Delete(slices.Clone(list), i, i+1))), o)
	}

	w, _ := newWitness(t, trusted(t, dir))
	address, err := ParseWitness(httptestServer(t, w) + " " + w.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Submitter{Dir: dir, Log: quiet}).Submit(t.Context(), address, early); err != nil {
		t.Fatal(err)
	}
	witnessed := VerifyOptions{Key: key, Witnesses: []string{w.PublicKey()}}
	add("with a witness", dir, witnessed)
	l := open(t, dir, Options{})
	for range 5 {
		mustRecord(t, l, gate("more"))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	later, err := ReadCheckpoint(dir)
	if err != nil {
		t.Fatal(err)
	}
	add("grown since the witness and the pin", dir, VerifyOptions{Key: key, From: early, Witnesses: witnessed.Witnesses})
	add("rolled back", copied(func(map[string][]byte) {}), VerifyOptions{Key: key, From: later})
	for name, b := range files(t, dir) {
		if !strings.HasPrefix(name, cosignedDir) {
			continue
		}
		for i := range 8 {
			m := files(t, dir)
			m[name] = bytes.Clone(b)
			m[name][i*len(b)/8] ^= 2
			to := filepath.Join(t.TempDir(), "server")
			lay(t, to, m)
			add(fmt.Sprintf("cosignature flipped at %d", i*len(b)/8), to, witnessed)
		}
	}
}

func segmentsOf(m map[string][]byte) (names []string) {
	for name := range m {
		if strings.HasSuffix(name, ".log") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// evidenceCases makes evidence files that are good, and others.
func evidenceCases(t *testing.T, add func(string, []byte, VerifyOptions)) {
	dir, receipt := evidenceLog(t)
	o := VerifyOptions{Key: publicKey(t, dir)}
	e := collect(t, dir, "sbone")
	if !e.SetReceipt(receipt) {
		t.Fatal("no receipt")
	}
	b := encoded(t, e)
	add("evidence", b, o)
	for i, key := range e.Keys {
		add(fmt.Sprint("evidence from key ", i), b, VerifyOptions{Key: key})
	}
	o.Key = e.Keys[0]
	for i := range e.Rotations {
		less := *e
		less.Rotations = slices.Delete(slices.Clone(e.Rotations), i, i+1)
		add(fmt.Sprintf("evidence without rotation %d", i), encoded(t, &less), o)
	}
	add("evidence of what has not ended", encoded(t, collect(t, dir, "sbtwo")), o)
	add("evidence under another key", b, VerifyOptions{Key: newPaperLog(t, "firebreak/0a").vkey})
	for i := range 60 {
		at := i * len(b) / 60
		c := bytes.Clone(b)
		c[at] ^= 1 << (i % 7)
		if known := bytes.Index(b, []byte(`"keys"`)); at < known || at > known+300 { // for information only
			add(fmt.Sprintf("evidence flipped at %d", at), c, o)
		}
	}
	for i := range e.Records {
		less := *e
		less.Records = slices.Delete(slices.Clone(e.Records), i, i+1)
		add(fmt.Sprintf("evidence without record %d", i), encoded(t, &less), o)
	}
	add("half of it", b[:len(b)/2], o)
	add("something behind it", append(bytes.Clone(b), '\n'), o)
}
