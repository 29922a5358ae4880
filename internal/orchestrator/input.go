package orchestrator

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxInput is how much may be written to the standard input of one process.
const maxInput = 64 << 20

// input is a standard input that grows while its process runs. It is a file, so
// that it can be read again, over another session or by another server.
type input struct {
	f *os.File

	mu    sync.Mutex
	size  int64         // guarded by mu
	ended bool          // guarded by mu; nothing will be added
	more  chan struct{} // guarded by mu; closed, and replaced, with every change
}

// newInput takes f, with what is in it, as a standard input.
func newInput(f *os.File, ended bool) (*input, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &input{f: f, size: st.Size(), ended: ended, more: make(chan struct{})}, nil
}

// append adds b, all or nothing. Errors: KindTooLarge, KindGone, and those of
// the disk.
func (in *input) append(b []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended {
		return sandbox.Errorf("stdin", sandbox.KindGone, "the standard input is closed")
	}
	if in.size+int64(len(b)) > maxInput {
		return sandbox.Errorf("stdin", sandbox.KindTooLarge, "a process gets at most %s on its standard input", sandbox.FormatSize(maxInput)).
			WithHint("write a file, and let the process read that")
	}
	if _, err := in.f.WriteAt(b, in.size); err != nil { // what of it was written is overwritten by the next
		return err
	}
	in.size += int64(len(b))
	in.changed()
	return nil
}

// changed wakes the readers. Preconditions: in.mu is held.
func (in *input) changed() {
	close(in.more)
	in.more = make(chan struct{})
}

// end says that nothing will be added. Idempotent.
func (in *input) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.ended {
		in.ended = true
		in.changed()
	}
}

// discard ends it for readers, too. Idempotent.
func (in *input) discard() {
	in.end()
	in.f.Close()
}

// from reads from an offset on, and waits for what will be added, until stop is
// closed: then it fails with errUnfollowed.
func (in *input) from(at int64, stop <-chan struct{}) io.Reader { return &inputReader{in, at, stop} }

type inputReader struct {
	in   *input
	at   int64
	stop <-chan struct{}
}

var errUnfollowed = errors.New("the process is no longer followed over this session")

// Read implements io.Reader.
func (r *inputReader) Read(b []byte) (int, error) {
	for {
		r.in.mu.Lock()
		left, ended, more := r.in.size-r.at, r.in.ended, r.in.more
		r.in.mu.Unlock()
		switch {
		case left > 0:
			n, err := r.in.f.ReadAt(b[:min(int64(len(b)), left)], r.at)
			r.at += int64(n)
			if n > 0 {
				err = nil
			}
			return n, err
		case ended:
			return 0, io.EOF
		}
		select {
		case <-more:
		case <-r.stop:
			return 0, errUnfollowed
		}
	}
}

// Read implements io.Reader. Whoever feeds the process reads with from.
func (in *input) Read([]byte) (int, error) { return 0, io.EOF }

// input is the standard input from where the guest has it.
func (x *execution) input(stop <-chan struct{}) io.Reader {
	from := x.proc.StdinOffset()
	switch r := x.stdin.(type) {
	case *input:
		return r.from(from, stop)
	case inMemory:
		return io.NewSectionReader(r, from, max(0, r.Size()-from))
	}
	return x.stdin
}

// feed copies stdin into the process, then closes it; but not because this
// session, or this server, follows the process no longer: the next one goes on.
func feed(w io.WriteCloser, r io.Reader) {
	if _, err := io.Copy(w, r); !errors.Is(err, errUnfollowed) { // others: the program no longer reads, its own business
		w.Close()
	}
}

// edges are the first and the last line of an input.
type edges struct{ first, last []byte }

// lines returns them, after it has cut off what a crash left of a line that was
// being appended: nobody has got any of that.
func (in *input) lines() (edges, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	all, err := io.ReadAll(io.NewSectionReader(in.f, 0, in.size))
	if err != nil {
		return edges{}, err
	}
	whole := all[:bytes.LastIndexByte(all, '\n')+1]
	in.size = int64(len(whole))
	var e edges
	e.first, _, _ = bytes.Cut(whole, []byte("\n"))
	whole = bytes.TrimSuffix(whole, []byte("\n"))
	e.last = whole[bytes.LastIndexByte(whole, '\n')+1:]
	return e, nil
}
