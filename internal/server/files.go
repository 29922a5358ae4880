package server

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	rpc "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/internal/filebody"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	filesTemplate     = "/v1/sandboxes/{id}/files"
	artifactsTemplate = "/v1/runs/{id}/artifacts/{path...}"
	copyBuffer        = 256 << 10 // of a raw body; large enough that net/http copies nothing itself
	chunkSize         = 128 << 10 // of a FileChunk
	minPacked         = 1 << 10   // bytes of what is worth packing
	maxPackers        = 8         // bodies being packed at once
)

// registerFiles registers what carries raw content: messages of chunks over
// Connect and gRPC, plain bodies over REST. Memory is constant either way.
func (g *registry) registerFiles(api API) {
	f := &files{g: g, api: api}
	read := serverStream(g, rpc.FileServiceReadFileProcedure, f.readStream)
	g.rawRoute(read, http.MethodGet, filesTemplate, f.get)
	write := clientStream(g, rpc.FileServiceWriteFileProcedure, f.writeStream)
	g.rawRoute(write, http.MethodPut, filesTemplate, f.put)
	g.rawRoute(write, http.MethodPost, filesTemplate, f.post)
	f.registerArchives()
	artifact := serverStream(g, rpc.RunServiceReadArtifactProcedure, f.artifactStream)
	g.rawRoute(artifact, http.MethodGet, artifactsTemplate, f.getArtifact)
}

type files struct {
	g   *registry
	api API
}

func (f *files) readStream(ctx context.Context, req *v1.ReadFileRequest, send func(*v1.FileChunk) error) error {
	r, info, err := f.api.OpenFile(ctx, req.Id, req.Path, req.User, req.Offset, req.Length)
	if err != nil {
		return err
	}
	defer r.Close()
	return sendChunks(r, info, send)
}

func (f *files) artifactStream(ctx context.Context, req *v1.ReadArtifactRequest, send func(*v1.FileChunk) error) error {
	r, a, err := f.api.OpenArtifact(ctx, req.Id, req.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	return sendChunks(r, &v1.FileInfo{Name: path.Base(a.Path), Path: a.Path, Type: "file", Size: a.Size}, send)
}

// sendChunks sends info, then r to its end.
func sendChunks(r io.Reader, info *v1.FileInfo, send func(*v1.FileChunk) error) error {
	buf := make([]byte, chunkSize)
	chunk := &v1.FileChunk{Info: info}
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 || chunk.Info != nil {
			chunk.Data = buf[:n] // Send encodes before it returns
			if err := send(chunk); err != nil {
				return err
			}
			chunk = &v1.FileChunk{}
		}
		switch {
		case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func (f *files) writeStream(ctx context.Context, receive func() (*v1.WriteFileRequest, error)) (*v1.FileInfo, error) {
	first, err := receive()
	if err == io.EOF {
		err = invalidf("no message came")
	}
	if err != nil {
		return nil, err
	}
	if first.Id == "" || first.Path == "" {
		return nil, invalidf("the first message must name id and path")
	}
	return f.api.WriteFile(ctx, first, &dataReader[*v1.WriteFileRequest]{first.Data, receive})
}

// dataReader reads the data of a stream of messages.
type dataReader[M interface{ GetData() []byte }] struct {
	rest    []byte
	receive func() (M, error)
}

// Read implements io.Reader.
func (r *dataReader[M]) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.receive()
		if err != nil {
			return 0, err
		}
		r.rest = m.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// get serves a file's content, or the part a Range header names.
func (f *files) get(x *exchange) error {
	req := &v1.ReadFileRequest{}
	if err := x.read(req); err != nil {
		return err
	}
	return f.g.guard(x.r.Context(), x.op, req, func(ctx context.Context) error {
		if x.r.Method == http.MethodHead {
			info, err := f.api.StatFile(ctx, &v1.StatFileRequest{Id: req.Id, Path: req.Path, User: req.User})
			if err != nil {
				return err
			}
			if info.Type == "directory" {
				return sandbox.Errorf("read file", sandbox.KindIsDirectory, "%s is a directory", info.Path).WithID(req.Id)
			}
			return (&content{size: info.Size, length: info.Size, name: info.Name, modified: info.ModifiedAt}).send(x)
		}
		want, ranged := parseRange(x.r.Header)
		if ranged && (req.Offset != 0 || req.Length != 0) {
			return invalidf("a Range header and offset or length exclude each other")
		}
		if want.suffix {
			info, err := f.api.StatFile(ctx, &v1.StatFileRequest{Id: req.Id, Path: req.Path, User: req.User})
			if err != nil {
				return err
			}
			want = want.from(info.Size)
		}
		if ranged {
			req.Offset, req.Length = want.start, want.length
		}
		r, info, err := f.api.OpenFile(ctx, req.Id, req.Path, req.User, req.Offset, req.Length)
		if err != nil {
			return err
		}
		defer r.Close()
		c := &content{r: r, ranged: ranged, start: req.Offset, size: info.Size, name: info.Name, modified: info.ModifiedAt}
		c.length = max(0, info.Size-req.Offset)
		if req.Length > 0 {
			c.length = min(c.length, req.Length)
		}
		return c.send(x)
	})
}

// getArtifact serves what a run left behind.
func (f *files) getArtifact(x *exchange) error {
	req := &v1.ReadArtifactRequest{}
	if err := x.read(req); err != nil {
		return err
	}
	return f.g.guard(x.r.Context(), x.op, req, func(ctx context.Context) error {
		r, a, err := f.api.OpenArtifact(ctx, req.Id, req.Path)
		if err != nil {
			return err
		}
		defer r.Close()
		c := &content{r: r, size: a.Size, length: a.Size, name: path.Base(a.Path)}
		if a.Sha256 != "" {
			c.etag = `"sha256:` + a.Sha256 + `"`
		}
		if seeker, ok := r.(io.Seeker); ok {
			var want byteRange
			if want, c.ranged = parseRange(x.r.Header); c.ranged {
				want = want.from(a.Size)
				c.start, c.length = want.start, max(0, a.Size-want.start)
				if want.length > 0 {
					c.length = min(c.length, want.length)
				}
				if _, err := seeker.Seek(min(c.start, a.Size), io.SeekStart); err != nil {
					return err
				}
			}
		}
		return c.send(x)
	})
}

// put stores the request body as a file.
func (f *files) put(x *exchange) error {
	req := &v1.WriteFileRequest{}
	if err := f.writeRequest(x, req); err != nil {
		return err
	}
	if req.Path == "" {
		return invalidf("query parameter path is missing").WithHint("PUT %s?path=FILE", x.r.URL.EscapedPath())
	}
	in, err := plain(x)
	if err != nil {
		return err
	}
	return f.g.guard(x.r.Context(), x.op, req, func(ctx context.Context) error {
		info, err := f.api.WriteFile(ctx, req, in)
		if err != nil {
			return err
		}
		return x.answer(info)
	})
}

// content is a body to send.
type content struct {
	r             io.Reader // nil: headers only
	size          int64     // of the whole; 0 may mean that it is not known (/proc)
	start, length int64
	ranged        bool
	name          string
	modified      *timestamppb.Timestamp
	etag          string
}

// send answers with the content, to be saved.
func (c *content) send(x *exchange) error {
	h := x.Header()
	h.Set("Accept-Ranges", "bytes")
	if c.ranged && c.start >= c.size {
		h.Set("Content-Range", "bytes */"+strconv.FormatInt(c.size, 10))
		return &httpError{invalidf("the range begins after the end (%d bytes)", c.size), http.StatusRequestedRangeNotSatisfiable}
	}
	r, err := c.begin(x)
	if err != nil {
		return err
	}
	var modified time.Time
	if c.modified.IsValid() {
		modified = c.modified.AsTime()
	}
	filebody.Save(h, c.name, modified)
	if c.etag != "" {
		h.Set("ETag", c.etag)
	}
	if c.packs(x) {
		if z, ok := takePacker(); ok {
			defer returnPacker(z)
			return c.sendPacked(x, r, z)
		}
	}
	status := http.StatusOK
	if c.ranged {
		status = http.StatusPartialContent
		h.Set("Content-Range", "bytes "+strconv.FormatInt(c.start, 10)+"-"+strconv.FormatInt(c.start+c.length-1, 10)+"/"+strconv.FormatInt(c.size, 10))
	}
	if c.size > 0 {
		h.Set("Content-Length", strconv.FormatInt(c.length, 10))
	}
	x.WriteHeader(status)
	if r == nil {
		return nil
	}
	n, err := x.copy(r)
	if err == nil && c.size > 0 && n != c.length {
		err = c.short(x, n)
	}
	return err
}

// packs says whether the content is sent packed: a whole file, for a caller who
// takes that. What has a validator is its bytes.
func (c *content) packs(x *exchange) bool {
	return c.r != nil && !c.ranged && c.etag == "" && c.size >= minPacked && x.r.Method == http.MethodGet && filebody.Packed(x.r.Header)
}

// packers are the compressors that there may be, nil where one was not needed yet:
// each takes more than a megabyte, however slow its reader is. While all are busy
// content is sent as it is, which whoever takes gzip takes, too.
var packers = make(chan *gzip.Writer, maxPackers)

func init() {
	for range maxPackers {
		packers <- nil
	}
}

func takePacker() (z *gzip.Writer, ok bool) {
	select {
	case z = <-packers:
		if z == nil {
			z, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level exists
		}
		return z, true
	default:
		return nil, false
	}
}

func returnPacker(z *gzip.Writer) {
	z.Reset(nil) // it must not keep the exchange
	packers <- z
}

// sendPacked sends r by gzip. Its end is in it: nothing else tells its length.
func (c *content) sendPacked(x *exchange, r io.Reader, z *gzip.Writer) error {
	h := x.Header()
	h.Set("Content-Encoding", "gzip")
	h.Set("Vary", "Accept-Encoding")
	h.Del("Accept-Ranges")
	x.WriteHeader(http.StatusOK)
	z.Reset(stallWriter{x})
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	n, err := io.CopyBuffer(struct{ io.Writer }{z}, r, buf[:])
	if err == nil && n != c.length {
		err = c.short(x, n)
	}
	if err == nil {
		err = z.Close()
	}
	return err
}

// stallWriter gives the caller time for each piece.
type stallWriter struct{ x *exchange }

// Write implements io.Writer.
func (w stallWriter) Write(p []byte) (int, error) {
	w.x.extendWrite(w.x.s.stall)
	n, err := w.x.Write(p)
	if err != nil {
		err = sandbox.Errorf(w.x.op.name, sandbox.KindCanceled, "the reader went away")
	}
	return n, err
}

// begin reads as much as one buffer holds, so that content that fails early, or
// is shorter than a guest said, is answered with an error and not cut off. It
// returns what to send, nil for headers only.
func (c *content) begin(x *exchange) (io.Reader, error) {
	if c.r == nil || x.r.Method == http.MethodHead {
		return nil, nil
	}
	if c.size <= 0 {
		return c.r, nil
	}
	r := io.LimitReader(c.r, c.length)
	head := make([]byte, min(c.length, copyBuffer))
	n, err := io.ReadFull(r, head)
	switch {
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, c.short(x, int64(n))
	case err != nil:
		return nil, err
	}
	return io.MultiReader(bytes.NewReader(head), r), nil
}

func (c *content) short(x *exchange, n int64) error {
	return sandbox.Errorf(x.op.name, sandbox.KindProtocol, "the content ended after %d of %d bytes", n, c.length).
		WithHint("the file changed while it was read, or the sandbox lies about its size; try again")
}

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// copy sends r with a deadline that moves as the caller takes it.
func (x *exchange) copy(r io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	var total int64
	var extended time.Time
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			if now := time.Now(); now.Sub(extended) > time.Second {
				extended = now
				x.extendWrite(x.s.stall)
			}
			m, werr := x.Write(buf[:n])
			total += int64(m)
			if werr != nil {
				return total, sandbox.Errorf(x.op.name, sandbox.KindCanceled, "the reader went away")
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// byteRange is one range of a Range header; length 0 is to the end. A suffix
// is the last length bytes.
type byteRange struct {
	start, length int64
	suffix        bool
}

// from resolves a suffix against a size.
func (r byteRange) from(size int64) byteRange {
	if !r.suffix {
		return r
	}
	if r.length == 0 { // "-0" asks for nothing, which cannot be satisfied
		return byteRange{start: size}
	}
	return byteRange{start: max(0, size-r.length)}
}

// parseRange reads a single range of bytes. Anything else is ignored, as the
// RFC allows: several ranges, other units, nonsense, and conditional ranges
// (If-Range) because a guest's file has no validator worth the name.
func parseRange(h http.Header) (byteRange, bool) {
	spec, ok := strings.CutPrefix(h.Get("Range"), "bytes=")
	if !ok || h.Get("If-Range") != "" {
		return byteRange{}, false
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return byteRange{}, false
	}
	if first == "" {
		n, err := parseOffset(last)
		return byteRange{length: n, suffix: true}, err == nil
	}
	start, err := parseOffset(first)
	if err != nil {
		return byteRange{}, false
	}
	if last == "" {
		return byteRange{start: start}, true
	}
	end, err := parseOffset(last)
	if err != nil || end < start {
		return byteRange{}, false
	}
	return byteRange{start: start, length: end - start + 1}, true
}

// parseOffset reads digits only, up to 2^62 so that sums stay positive.
func parseOffset(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 62)
	return int64(n), err
}
