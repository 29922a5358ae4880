//go:build linux

package internet

import (
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Redirect sends everybody to url.
func Redirect(url string) http.Handler { return http.RedirectHandler(url, http.StatusFound) }

// Upstream is a hostile server, and how much of its answers was taken.
type Upstream struct {
	http.Handler
	taken atomic.Int64
	done  atomic.Int64
}

// Taken is how many bytes of answers were written, into the kernel's buffers at
// least.
func (u *Upstream) Taken() int64 { return u.taken.Load() }

// Ended is how many answers are over, cut off or whole.
func (u *Upstream) Ended() int64 { return u.done.Load() }

// upstream makes a handler that writes until it may not.
func upstream(head func(h http.Header), write func(w io.Writer, flush func(), over <-chan struct{}) error) *Upstream {
	u := new(Upstream)
	u.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer u.done.Add(1)
		head(w.Header())
		flush := func() { _ = http.NewResponseController(w).Flush() }
		_ = write(writerFunc(func(b []byte) (int, error) {
			n, err := w.Write(b)
			u.taken.Add(int64(n))
			return n, err
		}), flush, r.Context().Done())
	})
	return u
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// Trickle answers with a byte each interval, for ever.
func Trickle(interval time.Duration) *Upstream {
	return upstream(func(http.Header) {}, func(w io.Writer, flush func(), over <-chan struct{}) error {
		for {
			if _, err := w.Write([]byte{'.'}); err != nil {
				return err
			}
			flush()
			select {
			case <-over:
				return nil
			case <-time.After(interval):
			}
		}
	})
}

// Flood answers with so many bytes.
func Flood(size int64) *Upstream {
	block := bytes.Repeat([]byte("flood "), 10923)
	return upstream(func(http.Header) {}, func(w io.Writer, _ func(), _ <-chan struct{}) error {
		for left := size; left > 0; left -= int64(len(block)) {
			if _, err := w.Write(block[:min(int64(len(block)), left)]); err != nil {
				return err
			}
		}
		return nil
	})
}

// bomb is 1 GiB of zeros, packed: 16 MiB of them 64 times. It is made once.
var bomb = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(make([]byte, 16<<20))
	_ = z.Close() // into memory
	return bytes.Repeat(b.Bytes(), 64)
})

// Bomb answers with 1 GiB, packed to one megabyte.
func Bomb() *Upstream {
	return upstream(func(h http.Header) { h.Set("Content-Encoding", "gzip") }, func(w io.Writer, _ func(), _ <-chan struct{}) error {
		_, err := w.Write(bomb())
		return err
	})
}

// Headers answers with so many header fields, or trailers, past what net/http
// would keep in memory for a whole answer.
func Headers(count int) *Upstream {
	u := new(Upstream)
	u.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		defer u.done.Add(1)
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil { // HTTP/2 has no such thing
			http.Error(w, err.Error(), http.StatusHTTPVersionNotSupported)
			return
		}
		defer conn.Close()
		_, err = rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n")
		for i := 0; err == nil && i < count; i++ {
			var n int
			n, err = fmt.Fprintf(rw, "X-%d: %032d\r\n", i, i)
			u.taken.Add(int64(n))
		}
		_, _ = rw.WriteString("\r\nok")
		_ = rw.Flush()
	})
	return u
}

// Silent takes a request and says nothing until the other end goes away.
func Silent() *Upstream {
	return upstream(func(http.Header) {}, func(_ io.Writer, _ func(), over <-chan struct{}) error {
		<-over
		return nil
	})
}

// Chat is a WebSocket server that gives back each message.
var Chat http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		http.Error(w, "this is a WebSocket", http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusHTTPVersionNotSupported)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n")
	var kind byte
	var message []byte
	for {
		op, last, payload, err := readFrame(rw)
		if err != nil || len(message)+len(payload) > 1<<20 {
			return
		}
		switch {
		case op == 9: // a ping
			op = 10
		case op < 8: // a message, or a piece of it
			if op != 0 {
				kind, message = op, nil
			}
			message = append(message, payload...)
			if !last {
				continue
			}
			op, payload, message = kind, message, nil
		}
		if _, err := conn.Write(frame(op, payload)); err != nil || op == 8 {
			return
		}
	}
})

// readFrame reads a masked frame of at most 1 MiB.
func readFrame(r io.Reader) (op byte, last bool, payload []byte, err error) {
	head := make([]byte, 2)
	if _, err = io.ReadFull(r, head); err != nil {
		return 0, false, nil, err
	}
	size := uint64(head[1] & 127)
	switch size {
	case 126:
		var n uint16
		err = binary.Read(r, binary.BigEndian, &n)
		size = uint64(n)
	case 127:
		err = binary.Read(r, binary.BigEndian, &size)
	}
	if err != nil || size > 1<<20 || head[1]&128 == 0 {
		return 0, false, nil, fmt.Errorf("a frame of %d bytes: %w", size, err)
	}
	mask := make([]byte, 4)
	payload = make([]byte, size)
	if _, err = io.ReadFull(r, mask); err != nil {
		return 0, false, nil, err
	}
	_, err = io.ReadFull(r, payload)
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return head[0] & 15, head[0]&128 != 0, payload, err
}

// frame is a whole message.
func frame(op byte, payload []byte) []byte {
	b := []byte{0x80 | op}
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

// Sized answers with as many bytes as the path says, for measuring.
var Sized http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(strings.TrimPrefix(r.URL.Path, "/"), 10, 64)
	if err != nil {
		http.Error(w, "the path is a number of bytes", http.StatusBadRequest)
		return
	}
	Flood(n).ServeHTTP(w, r)
})
