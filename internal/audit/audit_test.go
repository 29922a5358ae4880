package audit

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	l, err := Open(dir, o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func wantKind(t testing.TB, err error, k sandbox.Kind) {
	t.Helper()
	var e *sandbox.Error
	if !errors.As(err, &e) || e.Kind != k {
		t.Fatalf("got %v (%T), want kind %q", err, err, k)
	}
}

func gate(action string) sandbox.Record {
	return sandbox.Record{Class: sandbox.Gate, Action: action, Time: time.Unix(1, 2).UTC()}
}

func mustRecord(t testing.TB, l *Log, r sandbox.Record) sandbox.Position {
	t.Helper()
	p, err := l.Record(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func all(t testing.TB, dir string) []Entry {
	t.Helper()
	var list []Entry
	for e, err := range Scan(dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

func sample() sandbox.Record {
	return sandbox.Record{
		Class: sandbox.Flow, Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Tenant: "acme", Sandbox: "sbx",
		Instance: "inx", Principal: "uid:0", Action: "file.write", Outcome: sandbox.OutcomeDenied,
		Reason: sandbox.ReasonDisk, Policy: 7, Object: "/a\x1b]52;c\x07\n{\"position\":1}\xff\u202e", Digest: "00ff",
		Detail: map[string]string{"b": "2", "a": "1", "": "empty"},
	}
}

// goldenEntries are what the golden files hold.
func goldenEntries(version uint8) []*Entry {
	list := []*Entry{{Record: gate("sandbox.create")}, {Record: sample()}, {Record: sample()}}
	list[2].Record.Action = ActionReceipt
	for i, e := range list {
		e.Version = version
		if version == oldVersion {
			e.Record.Policy = 0
			continue
		}
		e.Monotonic = time.Duration(1000 + i)
		copy(e.Boot[:], "0123456789abcdef")
	}
	return list
}

// The bytes of a format never change.
func TestGolden(t *testing.T) {
	for v, line := range map[uint8]string{
		1: `{"position":2,"hash":"HASH","time":"2026-01-02T03:04:05.000000006Z","class":"flow","tenant":"acme",` +
			`"sandbox_id":"sbx","instance_id":"inx","principal":"uid:0","action":"file.write","outcome":"denied","reason":"disk",` +
			`"object":"/a\u001b]52;c\u0007\n{\"position\":1}\ufffd\u202e","digest":"00ff","detail":{"":"empty","a":"1","b":"2"}}`,
		2: `{"position":2,"hash":"HASH","time":"2026-01-02T03:04:05.000000006Z","boot_id":"30313233343536373839616263646566","monotonic_ns":1001,` +
			`"class":"flow","tenant":"acme",` +
			`"sandbox_id":"sbx","instance_id":"inx","principal":"uid:0","action":"file.write","outcome":"denied","reason":"disk",` +
			`"policy":7,"object":"/a\u001b]52;c\u0007\n{\"position\":1}\ufffd\u202e","digest":"00ff","detail":{"":"empty","a":"1","b":"2"}}`,
	} {
		t.Run(fmt.Sprint("v", v), func(t *testing.T) {
			list := goldenEntries(v)
			b := build(list...)
			golden := filepath.Join("testdata", fmt.Sprintf("v%d.hex", v))
			if *update {
				if err := os.WriteFile(golden, []byte(hex.Dump(b)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || hex.Dump(b) != string(want) {
				t.Fatalf("%v\n%s", err, hex.Dump(b))
			}
			e := all(t, write(t, b))
			if len(e) != 3 {
				t.Fatalf("%+v", e)
			}
			for i := range e {
				if !reflect.DeepEqual(e[i].Record, list[i].Record) || e[i].Previous != list[i].Previous || e[i].Monotonic != list[i].Monotonic || e[i].Version != v {
					t.Errorf("%+v, want %+v", e[i], list[i])
				}
			}
			if prev := e[2].Previous; v == version && prev != 2 {
				t.Errorf("the receipt links to %d", prev)
			}
			j, err := json.Marshal(e[1])
			if err != nil {
				t.Fatal(err)
			}
			if s := strings.Replace(string(j), hex.EncodeToString(e[1].Hash[:]), "HASH", 1); s != line {
				t.Fatalf("\n got %s\nwant %s", s, line)
			}
		})
	}
}

func TestJSONIsInertAndFaithful(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s") + rapid.SampledFrom([]string{"\x7f", "\u0085", "\u200b", "\u2028", "\U000e0041", "é☃"}).Draw(t, "x")
		b, err := json.Marshal(Entry{Record: sandbox.Record{Object: s}})
		if err != nil {
			t.Fatal(err)
		}
		var back struct{ Object string }
		if err := json.Unmarshal(b, &back); err != nil || back.Object != s {
			t.Fatalf("%q became %q, %v", s, back.Object, err)
		}
		for _, r := range string(b) {
			if r < 0x20 || (r >= 0x7f && r < 0xa0) || r == 0x200b || r == 0x2028 || r == 0x202e || r == 0xe0041 {
				t.Fatalf("%q stands in the line", r)
			}
		}
	})
}

func drawEntry(t *rapid.T) *Entry {
	str := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 40), func(b []byte) string { return string(b) }))
	e := &Entry{Version: rapid.SampledFrom([]uint8{oldVersion, version}).Draw(t, "version")}
	e.Position = sandbox.Position(rapid.Uint64Min(1).Draw(t, "position"))
	r := &e.Record
	r.Class = sandbox.Class(rapid.IntRange(0, 1).Draw(t, "class"))
	r.Time = time.Unix(0, rapid.Int64().Draw(t, "time")).UTC()
	for i, s := range fields(r) {
		*s = str.Draw(t, fmt.Sprint("field", i))
	}
	if d := rapid.MapOfN(str, str, 0, 5).Draw(t, "detail"); len(d) > 0 {
		r.Detail = d
	}
	if e.Version == version {
		e.Monotonic = time.Duration(rapid.Int64Min(0).Draw(t, "monotonic"))
		copy(e.Boot[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "boot"))
		r.Policy = rapid.Uint64().Draw(t, "policy")
		if r.Sandbox != "" {
			e.Previous = sandbox.Position(rapid.Uint64Max(uint64(e.Position)-1).Draw(t, "previous"))
		}
	}
	return e
}

func TestEncodingRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEntry(t)
		b := appendPayload(nil, e)
		got, err := decodePayload(b)
		if err != nil || !reflect.DeepEqual(&got, e) {
			t.Fatalf("%v\n got %+v\nwant %+v", err, got, e)
		}
		if id, action := sandboxOf(b); string(id) != string(e.Record.Sandbox) || string(action) != e.Record.Action {
			t.Fatalf("of %+v: %q, %q", e, id, action)
		}
	})
}

// Whatever the decoder accepts is exactly what the encoder writes.
func FuzzDecode(f *testing.F) {
	for _, v := range []uint8{oldVersion, version} {
		for i, e := range goldenEntries(v) {
			e.Position = sandbox.Position(i + 1)
			f.Add(appendPayload(nil, e))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodePayload(b)
		if err == nil && !bytes.Equal(appendPayload(nil, &e), b) {
			t.Fatalf("accepted %x", b)
		}
		if err == nil {
			if id, action := sandboxOf(b); string(id) != string(e.Record.Sandbox) || string(action) != e.Record.Action {
				t.Fatalf("%q and %q of %x", id, action, b)
			}
		}
		cutFrame(b)
		parseHeader(b)
		holdsRecord(b, 1)
		skipped(b, 3)
	})
}

func TestRefusals(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	ctx := context.Background()
	many := map[string]string{}
	for i := range 70 {
		many[fmt.Sprint(i)] = strings.Repeat("x", MaxDetail)
	}
	for name, c := range map[string]struct {
		r    sandbox.Record
		kind sandbox.Kind
	}{
		"no action": {sandbox.Record{}, sandbox.KindInvalid},
		"class":     {sandbox.Record{Action: "a", Class: 9}, sandbox.KindInvalid},
		"detail":    {sandbox.Record{Action: "a", Detail: map[string]string{"k": strings.Repeat("x", MaxDetail+1)}}, sandbox.KindTooLarge},
		"details":   {sandbox.Record{Action: "a", Detail: many}, sandbox.KindTooLarge},
		"object":    {sandbox.Record{Action: "a", Object: strings.Repeat("x", MaxRecord)}, sandbox.KindTooLarge},
	} {
		t.Run(name, func(t *testing.T) { _, err := l.Record(ctx, c.r); wantKind(t, err, c.kind) })
	}
	exact := sandbox.Record{Action: "a", Object: strings.Repeat("x", MaxRecord-minPayload-1),
		Time: time.Unix(1, 0)}
	if p := mustRecord(t, l, exact); p != 1 {
		t.Fatal("refused records took positions:", p)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	_, err := l.Record(done, gate("a"))
	wantKind(t, err, sandbox.KindCanceled)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = l.Record(ctx, gate("a"))
	wantKind(t, err, sandbox.KindUnavailable)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// Positions are dense and in the order each caller was answered; rotation,
// reopening and readers keep the chain.
func TestConcurrentRotationReopen(t *testing.T) {
	dir := t.TempDir()
	var heads []Head
	const writers, each, rounds = 16, 40, 3
	for range rounds {
		l := open(t, dir, Options{SegmentBytes: 4 << 10})
		var wg sync.WaitGroup
		var mu sync.Mutex
		seen := map[sandbox.Position]string{}
		for w := range writers {
			wg.Go(func() {
				var last sandbox.Position
				for i := range each {
					r := gate(fmt.Sprint(w, ".", i))
					r.Class = sandbox.Class(i % 2)
					p, err := l.Record(context.Background(), r)
					if err != nil || p <= last {
						t.Error(p, last, err)
						return
					}
					if r.Class == sandbox.Gate && l.Head().Position < p {
						t.Error("a gate record was acknowledged before it was durable")
					}
					last = p
					mu.Lock()
					seen[p] = r.Action
					mu.Unlock()
				}
			})
		}
		// A reader in the middle of it all sees a prefix, and no damage.
		wg.Go(func() {
			for range 20 {
				if _, err := Verify(dir); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Wait()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		for _, e := range all(t, dir) {
			if a, ok := seen[e.Position]; ok && a != e.Record.Action {
				t.Fatalf("position %d holds %s, answered for %s", e.Position, e.Record.Action, a)
			}
		}
		heads = append(heads, l.Head())
	}
	if h, err := Verify(dir); err != nil || h != heads[rounds-1] || h.Position != writers*each*rounds {
		t.Fatal(h, err)
	}
	list, err := segments(dir)
	if err != nil || len(list) < 10 {
		t.Fatal("no rotation", list, err)
	}
	for _, from := range []sandbox.Position{1, 2, list[3] - 1, list[3], list[3] + 1, writers * each * rounds} {
		n := from
		for e, err := range Scan(dir, from) {
			if err != nil || e.Position != n {
				t.Fatal(e.Position, n, err)
			}
			n++
		}
		if n != writers*each*rounds+1 {
			t.Fatal("scan from", from, "ended before", n)
		}
	}
}

// A Reader at the end finds what is written later, across segments.
func TestReaderFollows(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{SegmentBytes: 300})
	r, err := NewReader(dir, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i := range 12 {
		p := mustRecord(t, l, gate(fmt.Sprint(i)))
		e, err := r.Next()
		if p < 3 {
			if !errors.Is(err, io.EOF) {
				t.Fatal(e, err)
			}
			continue
		}
		if err != nil || e.Position != p {
			t.Fatal(e.Position, p, err)
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	if _, err := NewReader(filepath.Join(dir, "no"), 1); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Fatal(err)
	}
}

func TestFlowRecordsReachTheDisk(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{MaxLagTime: 40 * time.Millisecond})
	r := gate("a")
	r.Class = sandbox.Flow
	p := mustRecord(t, l, r)
	for deadline := time.Now().Add(5 * time.Second); l.Head().Position < p; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the record never became durable")
		}
	}
}

func TestOneOwner(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	_, err := Open(dir, Options{}, slog.New(slog.DiscardHandler))
	wantKind(t, err, sandbox.KindUnavailable)
	var le *store.LockedError
	if !errors.As(err, &le) || le.PID != os.Getpid() {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Options{})
}
