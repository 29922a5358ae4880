package guest

import (
	"bytes"
	"net"
	"slices"
	"testing"
)

// writes is a stream that notes what each write to it has.
type writes struct {
	net.Conn
	all  [][]byte
	done chan struct{} // closed after so many
	want int
}

// Write implements net.Conn.
func (w *writes) Write(p []byte) (int, error) {
	w.all = append(w.all, bytes.Clone(p))
	if len(w.all) == w.want {
		close(w.done)
	}
	return len(p), nil
}

// TestOneWrite: a frame goes out in one write, head and data, since each wakes the
// guest; small ones that wait go before it, together.
func TestOneWrite(t *testing.T) {
	var o outbox
	o.init()
	content := bytes.Repeat([]byte("x"), MaxData)
	for i := range 2 {
		o.slots <- struct{}{}
		buf := bulkPool.Get().(*bulkBuf)
		o.send(TypeFile, 7, uint64(i)*MaxData, buf, copy(buf.data(), content))
	}
	o.mark(TypeEnd, 7, TypeFile, 2*MaxData)
	o.frame(TypeCancel, 9, nil)
	w := &writes{done: make(chan struct{}), want: 3}
	stop := make(chan struct{})
	over := make(chan error)
	go func() { over <- o.run(w, stop) }()
	<-w.done
	close(stop)
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for _, p := range w.all {
		sizes = append(sizes, len(p))
	}
	if want := []int{HeaderSize + markSize + HeaderSize, MaxFrame, MaxFrame}; !slices.Equal(sizes, want) {
		t.Fatalf("writes of %v bytes, want %v", sizes, want)
	}
	d := NewDecoder(bytes.NewReader(slices.Concat(w.all...)), Guest)
	for i := range 4 {
		h, err := d.Next()
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if p, err := d.Payload(h); err != nil || h.Type == TypeFile && !bytes.Equal(p, content) {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
}
