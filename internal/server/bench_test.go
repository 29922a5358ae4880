package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	rpc "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
)

// bareHandler is the floor: a ServeMux and the same bytes, no key, no rules.
func bareHandler(b *testing.B, body []byte) string {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/sandboxes/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") != testID {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	b.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

// getter sends the same GET over one connection and reads its answer.
type getter struct {
	c       net.Conn
	r       *bufio.Reader
	request []byte
}

func newGetter(b testing.TB, addr string) *getter {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return &getter{c, bufio.NewReader(c), fmt.Appendf(nil, "GET /v1/sandboxes/%s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer all\r\nUser-Agent: bench\r\n\r\n", testID, addr)}
}

func (g *getter) get(b testing.TB) []byte {
	if _, err := g.c.Write(g.request); err != nil {
		b.Fatal(err)
	}
	res, err := http.ReadResponse(g.r, nil)
	if err != nil || res.StatusCode != 200 {
		b.Fatal(res, err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.Fatal(err)
	}
	return body
}

// BenchmarkGetSandbox alternates our GET with the floor's on two keep-alive
// connections and reports the ratio. Promise: at most 2.5.
func BenchmarkGetSandbox(b *testing.B) {
	w := start(b, &fake{})
	ours := newGetter(b, w.addr)
	floor := newGetter(b, bareHandler(b, ours.get(b)))
	floor.get(b)
	var tOurs, tFloor time.Duration
	for b.Loop() {
		t := time.Now()
		floor.get(b)
		tFloor += time.Since(t)
		t = time.Now()
		ours.get(b)
		tOurs += time.Since(t)
	}
	b.ReportMetric(float64(tOurs)/float64(tFloor), "x-floor")
	b.ReportMetric(float64(tFloor.Microseconds())/float64(b.N), "floor-µs")
	b.ReportMetric(float64(tOurs.Microseconds())/float64(b.N), "ours-µs")
}

// BenchmarkGetSandboxConnect is the same over Connect.
func BenchmarkGetSandboxConnect(b *testing.B) {
	w := start(b, &fake{})
	c := rpc.NewSandboxServiceClient(&http.Client{Transport: withKey{"all", &http.Transport{}}}, "http://"+w.addr)
	for b.Loop() {
		if _, err := c.GetSandbox(b.Context(), connect.NewRequest(&v1.GetSandboxRequest{Id: testID})); err != nil {
			b.Fatal(err)
		}
	}
}

const uploadSize = 16 << 20

// BenchmarkUpload alternates a PUT of 16 MiB over the unix socket with the same
// bytes over a raw one. Promise: at least 0.4 of its speed.
func BenchmarkUpload(b *testing.B) {
	f := &fake{write: func(r io.Reader) error {
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 256<<10))
		if err == nil && n != uploadSize {
			err = io.ErrUnexpectedEOF
		}
		return err
	}}
	w := start(b, f)
	raw := rawSocket(b)
	data := make([]byte, uploadSize)
	client := w.local()
	client.Transport.(*http.Transport).WriteBufferSize = 256 << 10
	var tOurs, tRaw time.Duration
	b.SetBytes(uploadSize)
	for b.Loop() {
		t := time.Now()
		raw(data)
		tRaw += time.Since(t)
		t = time.Now()
		req, _ := http.NewRequest("PUT", "http://localhost/v1/sandboxes/x/files?path=f", newReader(data))
		req.ContentLength = uploadSize
		res, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != 200 {
			b.Fatal(res.Status)
		}
		tOurs += time.Since(t)
	}
	b.ReportMetric(float64(tRaw)/float64(tOurs), "of-raw")
}

// BenchmarkDownload is the way back.
func BenchmarkDownload(b *testing.B) {
	data := make([]byte, uploadSize)
	w := start(b, &fake{open: func(int64, int64) (io.ReadCloser, *v1.FileInfo, error) {
		return io.NopCloser(newReader(data)), &v1.FileInfo{Name: "f", Size: uploadSize}, nil
	}})
	client := w.local()
	client.Transport.(*http.Transport).ReadBufferSize = 256 << 10
	buf := make([]byte, 256<<10)
	b.SetBytes(uploadSize)
	for b.Loop() {
		res, err := client.Get("http://localhost/v1/sandboxes/x/files?path=f")
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{res.Body}, buf)
		res.Body.Close()
		if n != uploadSize || err != nil {
			b.Fatal(n, err)
		}
	}
}

// newReader hides bytes.Reader's WriteTo, so that both sides copy alike.
func newReader(b []byte) io.Reader { return struct{ io.Reader }{&sliceReader{b}} }

type sliceReader struct{ b []byte }

func (r *sliceReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// rawSocket sends data to a reader on the other end of a unix socket, which
// answers with one byte when it has all.
func rawSocket(b *testing.B) func([]byte) {
	dir, err := os.MkdirTemp("", "fb")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 256<<10)
		for {
			for left := uploadSize; left > 0; {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				left -= n
			}
			c.Write([]byte{1})
		}
	}()
	c, err := net.Dial("unix", filepath.Join(dir, "s"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return func(data []byte) {
		for len(data) > 0 {
			n, err := c.Write(data[:min(len(data), 256<<10)])
			if err != nil {
				b.Fatal(err)
			}
			data = data[n:]
		}
		io.ReadFull(c, make([]byte, 1))
	}
}

// BenchmarkEncode is the JSON profile's encoder alone.
func BenchmarkEncode(b *testing.B) {
	m := fullSandbox()
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = appendMessage(buf[:0], m)
	}
	b.SetBytes(int64(len(buf)))
}
