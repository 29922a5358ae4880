package server

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"path"
	"strconv"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	rpc "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/internal/filebody"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	archiveTemplate = "/v1/sandboxes/{id}/files/archive"
	// leftOut is the trailer that counts what is not in an archive.
	leftOut = "Firebreak-Left-Out"
)

// registerArchives registers directories as tar files: chunks over Connect and
// gRPC, the bytes themselves over REST.
func (f *files) registerArchives() {
	read := serverStream(f.g, rpc.FileServiceReadArchiveProcedure, f.archiveStream)
	f.g.rawRoute(read, http.MethodGet, archiveTemplate, f.getArchive)
	write := clientStream(f.g, rpc.FileServiceWriteArchiveProcedure, f.unpackStream)
	f.g.rawRoute(write, http.MethodPut, archiveTemplate, f.putArchive)
}

func (f *files) archiveStream(ctx context.Context, req *v1.ReadArchiveRequest, send func(*v1.ArchiveChunk) error) error {
	out := bufio.NewWriterSize(chunkWriter(send), chunkSize)
	err := f.api.ReadArchive(ctx, req, out, func(what string) error { return send(&v1.ArchiveChunk{LeftOut: []string{valid(what)}}) })
	if err != nil {
		return err
	}
	return out.Flush()
}

// chunkWriter sends what is written to it.
type chunkWriter func(*v1.ArchiveChunk) error

// Write implements io.Writer.
func (send chunkWriter) Write(p []byte) (int, error) {
	if err := send(&v1.ArchiveChunk{Data: p}); err != nil { // which encodes before it returns
		return 0, err
	}
	return len(p), nil
}

func (f *files) unpackStream(ctx context.Context, receive func() (*v1.WriteArchiveRequest, error)) (*v1.WrittenArchive, error) {
	first, err := receive()
	if err == io.EOF {
		err = invalidf("no message came")
	}
	if err != nil {
		return nil, err
	}
	if first.Id == "" {
		return nil, invalidf("the first message must name id")
	}
	return f.api.WriteArchive(ctx, first.Id, first.Path, first.User, &dataReader[*v1.WriteArchiveRequest]{first.Data, receive})
}

// getArchive serves a directory as a tar file.
func (f *files) getArchive(x *exchange) error {
	req := &v1.ReadArchiveRequest{}
	if err := x.read(req); err != nil {
		return err
	}
	return f.g.guard(x.r.Context(), x.op, req, func(ctx context.Context) error {
		if x.r.Method == http.MethodHead {
			info, err := f.api.StatFile(ctx, &v1.StatFileRequest{Id: req.Id, Path: cmp.Or(req.Path, "."), User: req.User})
			if err == nil && info.Type != "directory" {
				err = sandbox.Errorf("pack", sandbox.KindNotDirectory, "%s is not a directory", info.Path).WithID(req.Id)
			}
			if err == nil {
				(&archiveBody{x: x, name: req.Path}).begin()
			}
			return err
		}
		body := &archiveBody{x: x, name: req.Path}
		out := bufio.NewWriterSize(body, copyBuffer)
		left := 0
		err := f.api.ReadArchive(ctx, req, out, func(string) error { left++; return nil })
		if err == nil {
			err = out.Flush()
		}
		if err == nil {
			err = body.close()
		}
		if err == nil {
			x.Header().Set(leftOut, strconv.Itoa(left))
		}
		return err
	})
}

// archiveBody is the answer, which begins with the first bytes: errors before them
// are answered as such, those after them cut it off.
type archiveBody struct {
	x    *exchange
	name string
	z    *gzip.Writer // nil where it is not packed
	out  io.Writer
}

// begin sends the header.
func (b *archiveBody) begin() {
	b.out = stallWriter{b.x}
	h := b.x.Header()
	name := path.Base(path.Clean(b.name))
	if name == "." || name == "/" || name == ".." {
		name = "files"
	}
	filebody.Save(h, name+".tar", time.Time{})
	h.Set("Content-Type", "application/x-tar")
	h.Set("Trailer", leftOut)
	h.Set("Vary", "Accept-Encoding")
	if filebody.Packed(b.x.r.Header) {
		h.Set("Content-Encoding", "gzip")
		b.z, _ = gzip.NewWriterLevel(b.out, gzip.BestSpeed) // the level exists
		b.out = b.z
	}
	b.x.WriteHeader(http.StatusOK)
}

// Write implements io.Writer.
func (b *archiveBody) Write(p []byte) (int, error) {
	if b.out == nil {
		b.begin()
	}
	return b.out.Write(p)
}

func (b *archiveBody) close() error {
	if b.z == nil {
		return nil
	}
	return b.z.Close()
}

// putArchive unpacks the request body into a directory.
func (f *files) putArchive(x *exchange) error {
	req := &v1.WriteArchiveRequest{}
	if err := decodeQuery(x.r.URL.RawQuery, req.ProtoReflect()); err != nil {
		return err
	}
	if err := bindPath(req.ProtoReflect(), x.route.params, x.values); err != nil {
		return err
	}
	if len(req.Data) > 0 {
		return invalidf("the content goes into the body, not into data")
	}
	in, err := plain(x)
	if err != nil {
		return err
	}
	return f.g.guard(x.r.Context(), x.op, req, func(ctx context.Context) error {
		res, err := f.api.WriteArchive(ctx, req.Id, req.Path, req.User, in)
		if err != nil {
			return err
		}
		return x.answer(res)
	})
}
