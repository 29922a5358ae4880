package service

import (
	"context"
	"io"
	"io/fs"
	"strconv"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// fileChunk is how much of a file one message carries.
const fileChunk = 256 << 10

// maxListed is how many entries one listing holds.
const maxListed = 10_000

// ReadFile streams a file; info travels in the first chunk, which may be empty.
// Errors: KindNotFound, KindIsDirectory, KindDenied (by the guest), KindGone.
func (s *Service) ReadFile(ctx context.Context, req *v1.ReadFileRequest, send func(*v1.FileChunk) error) error {
	r, info, err := s.OpenFile(ctx, req.GetId(), req.GetPath(), req.GetUser(), req.GetOffset(), req.GetLength())
	if err != nil {
		return err
	}
	defer r.Close()
	if err := send(&v1.FileChunk{Info: info}); err != nil {
		return err
	}
	for {
		buf := make([]byte, fileChunk) // send may keep it
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := send(&v1.FileChunk{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return sandbox.Wrap("read", req.GetId(), err)
		}
	}
}

// OpenFile is ReadFile as a reader, for surfaces with raw bodies. length 0 is to
// the end. The info describes the whole file. The caller closes the reader; the
// end of ctx does, too.
func (s *Service) OpenFile(ctx context.Context, id, path, user string, offset, length int64) (io.ReadCloser, *v1.FileInfo, error) {
	who, _, err := s.allow(ctx, "FileService.ReadFile")
	if err != nil {
		return nil, nil, err
	}
	if err := needs("read", "id", id, "path", path); err != nil {
		return nil, nil, err
	}
	f, err := s.Orchestrator.OpenFile(ctx, who, id, path, guest.ReadOptions{User: user, Offset: offset, Length: length})
	if err != nil {
		return nil, nil, err
	}
	return f, toFile(f.Info), nil
}

// WriteFile stores r as the file that req names, whole or not at all, and makes
// missing parent directories. The data of req is none of it.
func (s *Service) WriteFile(ctx context.Context, req *v1.WriteFileRequest, r io.Reader) (*v1.FileInfo, error) {
	who, _, err := s.allow(ctx, "FileService.WriteFile")
	if err != nil {
		return nil, err
	}
	if err := needs("write", "id", req.GetId(), "path", req.GetPath()); err != nil {
		return nil, err
	}
	perm, err := parseMode(req.GetMode())
	if err != nil {
		return nil, err
	}
	info, err := s.Orchestrator.WriteFile(ctx, who, req.GetId(), req.GetPath(), guest.WriteOptions{User: req.GetUser(), Mode: perm, Attributes: req.GetMetadata()}, r)
	if err != nil {
		return nil, err
	}
	return toFile(info), nil
}

// WriteArchive unpacks a tar file into the directory path, which is made; the
// user's home if that is empty.
func (s *Service) WriteArchive(ctx context.Context, id, path, user string, r io.Reader) (*v1.WrittenArchive, error) {
	who, _, err := s.allow(ctx, "FileService.WriteArchive")
	if err != nil {
		return nil, err
	}
	if err := needs("unpack", "id", id); err != nil {
		return nil, err
	}
	n, err := s.Orchestrator.WriteArchive(ctx, who, id, path, user, r)
	if err != nil {
		return nil, err
	}
	return &v1.WrittenArchive{Files: n.Files, Directories: n.Directories, Links: n.Links, Bytes: n.Bytes}, nil
}

// ReadArchive writes the directory that req names to w as a tar file, and tells
// left what is not in it, and why.
func (s *Service) ReadArchive(ctx context.Context, req *v1.ReadArchiveRequest, w io.Writer, left func(string) error) error {
	who, _, err := s.allow(ctx, "FileService.ReadArchive")
	if err != nil {
		return err
	}
	if err := needs("pack", "id", req.GetId()); err != nil {
		return err
	}
	return s.Orchestrator.ReadArchive(ctx, who, req.GetId(), req.GetPath(), req.GetUser(), w, left)
}

// parseMode reads octal permission bits. Set-id bits are no business of a file
// that comes from outside.
func parseMode(mode string) (fs.FileMode, error) {
	if mode == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(mode, 8, 16)
	if err != nil || v > 0o777 {
		return 0, sandbox.Errorf("write", sandbox.KindInvalid, "bad mode %.16q", mode).WithHint("octal permission bits, such as 644 or 755")
	}
	return fs.FileMode(v), nil
}

// StatFile describes a file; a final symbolic link is not followed.
func (s *Service) StatFile(ctx context.Context, req *v1.StatFileRequest) (*v1.FileInfo, error) {
	who, _, err := s.allow(ctx, "FileService.StatFile")
	if err != nil {
		return nil, err
	}
	info, err := s.Orchestrator.StatFile(ctx, who, req.GetId(), req.GetPath(), req.GetUser())
	if err != nil {
		return nil, err
	}
	return toFile(info), nil
}

// ListFiles lists a directory, the user's home if path is empty.
func (s *Service) ListFiles(ctx context.Context, req *v1.ListFilesRequest) (*v1.ListFilesResponse, error) {
	who, _, err := s.allow(ctx, "FileService.ListFiles")
	if err != nil {
		return nil, err
	}
	list, more, err := s.Orchestrator.ListFiles(ctx, who, req.GetId(), req.GetPath(),
		guest.ListOptions{User: req.GetUser(), Depth: int(max(1, req.GetDepth())), Max: maxListed})
	if err != nil {
		return nil, err
	}
	resp := &v1.ListFilesResponse{Truncated: more, Files: make([]*v1.FileInfo, len(list))}
	for i, f := range list {
		resp.Files[i] = toFile(f)
	}
	return resp, nil
}

// MakeDirectory makes a directory and its parents; one that exists is fine.
func (s *Service) MakeDirectory(ctx context.Context, req *v1.MakeDirectoryRequest) (*v1.FileInfo, error) {
	who, _, err := s.allow(ctx, "FileService.MakeDirectory")
	if err != nil {
		return nil, err
	}
	info, err := s.Orchestrator.MakeDirectory(ctx, who, req.GetId(), req.GetPath(), req.GetUser())
	if err != nil {
		return nil, err
	}
	return toFile(info), nil
}

// MoveFile renames a file or directory, replacing a file at the target.
func (s *Service) MoveFile(ctx context.Context, req *v1.MoveFileRequest) (*v1.FileInfo, error) {
	who, _, err := s.allow(ctx, "FileService.MoveFile")
	if err != nil {
		return nil, err
	}
	info, err := s.Orchestrator.MoveFile(ctx, who, req.GetId(), req.GetFrom(), req.GetTo(), req.GetUser())
	if err != nil {
		return nil, err
	}
	return toFile(info), nil
}

// RemoveFile removes a file or an empty directory, with recursive a tree.
func (s *Service) RemoveFile(ctx context.Context, req *v1.RemoveFileRequest) (*v1.RemoveFileResponse, error) {
	who, _, err := s.allow(ctx, "FileService.RemoveFile")
	if err != nil {
		return nil, err
	}
	if err := s.Orchestrator.RemoveFile(ctx, who, req.GetId(), req.GetPath(), req.GetUser(), req.GetRecursive()); err != nil {
		return nil, err
	}
	return &v1.RemoveFileResponse{}, nil
}
