package server

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// frame encodes an HTTP/2 frame.
func frame(kind, flags byte, stream uint32, payload ...byte) []byte {
	n := len(payload)
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags, byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream)}, payload...)
}

func TestFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		many := func(n int, b []byte) (out []byte) {
			for range n {
				out = append(out, b...)
			}
			return out
		}
		for name, c := range map[string]struct {
			bytes []byte
			pass  bool
		}{
			"HTTP/1":        {many(100000, []byte("GET / HTTP/1.1\r\n\r\n")), true},
			"almost HTTP/2": {append([]byte("PRI * HTTP/2.1"), many(5000, frame(3, 0, 1))...), true},
			"resets":        {append([]byte(preface), many(controlBurst+1, frame(3, 0, 1, 0, 0, 0, 8))...), false},
			"some resets":   {append([]byte(preface), many(controlBurst, frame(3, 0, 1, 0, 0, 0, 8))...), true},
			"pings":         {append([]byte(preface), many(2000, frame(6, 0, 0, make([]byte, 8)...))...), false},
			"continuation":  {append([]byte(preface), many(2000, frame(9, 0, 1))...), false},
			"unknown":       {append([]byte(preface), many(2000, frame(99, 0, 1, 1, 2, 3))...), false},
			"empty data":    {append([]byte(preface), many(2000, frame(0, 0, 1))...), false},
			"requests":      {append([]byte(preface), many(50000, append(frame(1, 4, 1, make([]byte, 20)...), frame(0, 1, 1)...))...), true},
			"an upload":     {append([]byte(preface), many(5000, frame(0, 0, 1, make([]byte, 100)...))...), true},
			"a download":    {append([]byte(preface), many(50000, frame(8, 0, 1, 0, 0, 16, 0))...), true},
		} {
			for _, piece := range []int{1, 7, 1 << 20} {
				var f frames
				pass := true
				for b := c.bytes; len(b) > 0 && pass; b = b[min(piece, len(b)):] {
					pass = f.pass(b[:min(piece, len(b))])
				}
				if pass != c.pass {
					t.Errorf("%s in pieces of %d: %t", name, piece, pass)
				}
			}
		}
		var f frames
		f.pass([]byte(preface))
		for range 1000 { // steady, within the rate
			if !f.pass(many(controlPerSecond, frame(6, 0, 0, make([]byte, 8)...))) {
				t.Fatal("cut off")
			}
			time.Sleep(time.Second)
		}
	})
}

// FuzzFrames: however the bytes are cut, the count is the same.
func FuzzFrames(f *testing.F) {
	f.Add([]byte(preface+string(frame(6, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8))+string(frame(3, 0, 1, 0, 0, 0, 8))), uint8(3))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint8(1))
	f.Add(append([]byte(preface), 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1), uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		var whole, pieces frames
		a := whole.pass(b)
		c := true
		for rest := b; len(rest) > 0; {
			n := min(int(cut)+1, len(rest))
			c = pieces.pass(rest[:n]) && c
			rest = rest[n:]
		}
		if math.Abs(whole.left.tokens-pieces.left.tokens) > controlPerSecond { // time passes
			t.Errorf("%v left of the whole, %v of the pieces", whole.left, pieces.left)
		}
		if a && c && (whole.state != pieces.state || whole.scan != pieces.scan) {
			t.Errorf("%+v whole, %+v in pieces", whole, pieces)
		}
	})
}
