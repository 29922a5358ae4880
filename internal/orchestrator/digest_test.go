package orchestrator

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"testing"
	"testing/iotest"
)

// TestDigester: what is read is what was there, and its digest is that of it,
// whatever the sizes; also of what was read when nobody reads on.
func TestDigester(t *testing.T) {
	all := make([]byte, 3*digestChunks*digestChunk+7)
	for i := range all {
		all[i] = byte(i * i >> 7)
	}
	for _, size := range []int{0, 1, digestChunk - 1, digestChunk, digestChunk + 1, digestChunks * digestChunk, len(all)} {
		for name, r := range map[string]io.Reader{"whole": bytes.NewReader(all[:size]), "halves": iotest.HalfReader(bytes.NewReader(all[:size])),
			"last with its end": iotest.DataErrReader(bytes.NewReader(all[:size]))} {
			d := newDigester(r)
			got, err := io.ReadAll(d)
			sum := sha256.Sum256(all[:size])
			if err != nil || !bytes.Equal(got, all[:size]) || d.n != int64(size) || d.Close() != hex.EncodeToString(sum[:]) || d.Close() != hex.EncodeToString(sum[:]) {
				t.Errorf("%d bytes, %s: %d, %v", size, name, len(got), err)
			}
		}
	}
	d := newDigester(bytes.NewReader(all))
	io.ReadFull(d, make([]byte, 1000))
	sum := sha256.Sum256(all[:1000])
	if d.Close() != hex.EncodeToString(sum[:]) {
		t.Error("abandoned")
	}
}
