package driver

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

const token = Token("0123456789abcdef0123456789abcdef")

// read takes a driver's whole output apart, as it would come in pieces of that
// size, and returns what user code printed, and the messages.
func read(t testing.TB, all []byte, step int) (output []byte, messages []string) {
	var a Assembly
	var held []byte
	for at := 0; ; {
		n := min(step, len(all)-at)
		held, at = append(held, all[at:at+n]...), at+n
		eof := at == len(all)
		for len(held) > 0 {
			n, c := token.Cut(held, eof)
			if n < 0 || n > len(held) || n == 0 && (eof || len(held) >= MaxChunk) {
				t.Fatalf("%d of %d bytes, eof %v: %q", n, len(held), eof, held)
			}
			if n == 0 {
				break
			}
			if c == nil {
				output = append(output, held[:n]...)
			} else if m, whole := a.Add(c); whole {
				messages = append(messages, string(m))
			}
			held = held[n:]
		}
		if eof {
			return output, messages
		}
	}
}

func TestCut(t *testing.T) {
	long := strings.Repeat("x", 3*MaxPayload+5)
	chunk := func(m string) string { return string(token.Append(nil, []byte(m))) }
	m := "\x1e" + string(token)
	for _, c := range []struct {
		in, out string
		said    []string
	}{
		{"", "", nil},
		{"plain", "plain", nil},
		{"a" + chunk("{}") + "b", "ab", []string{"{}"}},
		{chunk("") + chunk(long) + "z" + chunk("1"), "z", []string{"", long, "1"}},
		{"\x1e", "\x1e", nil},
		{"\x1e\x1e" + chunk("1") + "\x1e", "\x1e\x1e\x1e", []string{"1"}},
		{m[:20], m[:20], nil},
		{m + "3" + "0004" + "{}", m + "30004{}", nil},                        // cut short by the end
		{m + "3" + "0004" + "{}" + chunk("2"), m + "30004{}", []string{"2"}}, // by another
		{m + "4" + "0001" + "x", m + "40001x", nil},                          // no kind
		{m + "3" + "1000" + long, m + "31000" + long, nil},                   // longer than any
		{m + "3" + "00g0" + long[:16], m + "300g0" + long[:16], nil},         // no number
		{m + "3" + "+001x", m + "3+001x", nil},                               // no digit
		{m + "00001x" + chunk("1"), "", []string{"1"}},                       // its beginning is missing
		{m + "10001x" + chunk("1") + m + "20001y", "", []string{"1"}},        // its end is: what follows begins anew
		{"ü" + chunk("1") + "\xff\xfe", "ü\xff\xfe", []string{"1"}},
	} {
		for _, step := range []int{1, 2, 7, 4096, 1 << 20} {
			out, said := read(t, []byte(c.in), step)
			if string(out) != c.out || !slices.Equal(said, c.said) {
				t.Errorf("%q by %d: %q %q", c.in[:min(len(c.in), 80)], step, out, said)
			}
		}
	}
}

type bank struct{ left, most int }

func (b *bank) Take(n int) bool {
	if n > b.left {
		return false
	}
	b.left -= n
	return true
}
func (b *bank) Give(n int) { b.left += n }

// What is too large, or has no room, is passed over, and everything is given back.
func TestAssemblyBounds(t *testing.T) {
	for _, left := range []int{0, 1 << 20, 64 << 20} {
		b := &bank{left: left}
		a := Assembly{Budget: b}
		for _, size := range []int{10, free, 2 * free, 1 << 20, MaxMessage, MaxMessage + 1, 3 * MaxMessage, 10} {
			all, ok := token.Append(nil, bytes.Repeat([]byte("x"), size)), false
			for len(all) > 0 {
				n, c := token.Cut(all, true)
				all = all[n:]
				if len(a.buf) > MaxMessage || cap(a.buf) > free+left-b.left {
					t.Fatalf("%d bytes are held, %d of the budget", cap(a.buf), left-b.left)
				}
				if m, whole := a.Add(c); whole {
					ok = true
					want := size <= MaxMessage && (size <= free || 2*size <= left)
					if want && len(m) != size || size > MaxMessage && m != nil {
						t.Errorf("%d bytes of %d, budget %d", len(m), size, left)
					}
				}
			}
			if !ok || b.left != left {
				t.Errorf("%d: whole %v, %d of %d left", size, ok, b.left, left)
			}
		}
	}
}

func TestParse(t *testing.T) {
	m, err := Parse([]byte(`{"type":"result","turn":3,"main":true,"data":{"text/plain":"t","image/png":"AA","application/json":{"a":[1]},"e2b/data":{"x":[1]},
		"application/vnd.vega":{"v":1},"application/json+x":null,"text/html":7}}`))
	if err != nil || m.Turn != 3 || !m.Result.Main || m.Result.Text != "t" || m.Result.PNG != "AA" || string(m.Result.JSON) != `{"a":[1]}` ||
		string(m.Result.Data) != `{"x":[1]}` || m.Result.Extra["application/vnd.vega"] != `{"v":1}` || m.Result.HTML != "7" {
		t.Errorf("%+v %v", m.Result, err)
	}
	m, err = Parse([]byte(`{"type":"error","name":"E","value":"v","traceback":"` + strings.Repeat("ü", maxText) + `"}`))
	if err != nil || m.Error.Name != "E" || len(m.Error.Traceback) > maxText+8 {
		t.Errorf("%d bytes, %v", len(m.Error.Traceback), err)
	}
	for _, bad := range []string{"", "{}", "[]", "null", `{"type":"x"}`, `{"type":"end","turn":"1"}`, `{"type":"result","data":[]}`, `{"type":"end"}{`} {
		if m, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, m)
		}
	}
}

// FuzzCut: bytes of hostile code come apart the same however they arrive, lose
// nothing that is no chunk, and a true message after them is heard.
func FuzzCut(f *testing.F) {
	f.Add([]byte("plain\x1eplain"), 3)
	f.Add(token.Append([]byte("a"), []byte(`{"type":"end"}`)), 1)
	f.Add([]byte("\x1e"+string(token)+"30004{}"), 5)
	f.Add([]byte("\x1e"+string(token)+"1ffff"), 40)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		step = max(1, min(step, 1<<16))
		out, said := read(t, b, len(b)+1)
		out2, said2 := read(t, b, step)
		if !bytes.Equal(out, out2) || !slices.Equal(said, said2) {
			t.Fatalf("whole %q %q, by %d %q %q", out, said, step, out2, said2)
		}
		if !bytes.Contains(b, []byte("\x1e"+string(token))) && (!bytes.Equal(out, b) || len(said) > 0) {
			t.Fatalf("%q became %q %q", b, out, said)
		}
		after, last := read(t, token.Append(slices.Clone(b), []byte("true")), step)
		if len(last) == 0 || last[len(last)-1] != "true" || len(after) > len(b) {
			t.Fatalf("%q: the message behind it was lost: %q %q", b, after, last)
		}
		for _, m := range said {
			_, _ = Parse([]byte(m))
		}
	})
}

// FuzzParse: what is understood can be written and understood again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"type":"result","main":true,"data":{"text/plain":"x","application/json":{"a":1}}}`))
	f.Add([]byte(`{"type":"error","name":"a","value":"\ud800","traceback":"b"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			return
		}
		if m.Result != nil {
			if _, err := json.Marshal(m.Result); err != nil {
				t.Fatalf("%q: %v", b, err)
			}
			if len(m.Result.Extra) > maxExtra {
				t.Fatalf("%d other forms", len(m.Result.Extra))
			}
		}
		if again, err := Parse(m.Encode()); err != nil || again.Type != m.Type || again.Turn != m.Turn || m.Error != nil && *again.Error != *m.Error {
			t.Fatalf("%q: %+v, then %+v %v", b, m, again, err)
		}
	})
}

func TestHello(t *testing.T) {
	k := NewToken()
	got, env, ok := ParseHello(bytes.TrimSuffix(k.Hello(map[string]string{"A": "b"}), []byte("\n")))
	if !ok || got != k || env["A"] != "b" {
		t.Error(got, env, ok)
	}
	for _, bad := range []string{"", "{}", `{"token":"x"}`, `{"token":"` + strings.Repeat("g", 32) + `"}`} {
		if _, _, ok := ParseHello([]byte(bad)); ok {
			t.Error(bad)
		}
	}
	l := Turn{Turn: 7, Until: 5, Code: "a\nb\u2028"}.Line()
	if bytes.Count(l, []byte("\n")) != 1 || ParseTurn(l).Turn != 7 || ParseTurn([]byte("x")).Turn != 0 {
		t.Errorf("%q", l)
	}
}
