package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// nothing is a System without anything in it.
type nothing struct{}

func (nothing) Start(Program) (Process, error)          { return nil, fs.ErrNotExist }
func (nothing) Files(string) (Files, error)             { return nil, fs.ErrNotExist }
func (nothing) Dial(context.Context, int) (Conn, error) { return nil, fs.ErrNotExist }
func (nothing) Sample() (Sample, error)                 { return Sample{}, nil }
func (nothing) KillAll() error                          { return nil }
func (nothing) KillLargest([]Process) (Process, error)  { return nil, nil }

// tape is a connection that yields what it was given and forgets what is
// written.
type tape struct{ io.Reader }

func (tape) Write(p []byte) (int, error)      { return len(p), nil }
func (tape) Close() error                     { return nil }
func (tape) LocalAddr() net.Addr              { return nil }
func (tape) RemoteAddr() net.Addr             { return nil }
func (tape) SetDeadline(time.Time) error      { return nil }
func (tape) SetReadDeadline(time.Time) error  { return nil }
func (tape) SetWriteDeadline(time.Time) error { return nil }

// FuzzGuestDecode feeds the agent what a host may send, hunting and attached.
// The host is trusted, but the stream may be in any state.
func FuzzGuestDecode(f *testing.F) {
	b, err := os.ReadFile("../testdata/frames.golden")
	if err != nil {
		f.Fatal(err)
	}
	var all []byte
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		_, text, _ := strings.Cut(s.Text(), " ")
		frame, err := hex.DecodeString(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame, false)
		f.Add(frame, true)
		all = append(all, frame...)
	}
	f.Add(all, false)
	for _, op := range []guest.Op{guest.OpPing, guest.OpProcesses, guest.OpStandDown, guest.OpSignal, guest.OpResize, guest.OpWrite, guest.OpRead, "nonsense"} {
		f.Add(guest.AppendFrame(nil, guest.TypeCall, 5, []byte(`{"op":"`+string(op)+`","process":{"id":5},"file":{"path":"x"}}`)), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, attached bool) {
		srv := New(nothing{}, "fuzz")
		conn := tape{bytes.NewReader(in)}
		var err error
		if attached {
			l := newLink(srv, &wire{conn: conn}, guest.MinWindow)
			_, err = l.serve(guest.NewDecoder(conn, guest.Guest))
			l.end()
			if err == nil {
				return // a reset
			}
		} else {
			err = srv.attachments(conn)
		}
		if !errors.Is(err, guest.ErrProtocol) && err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Fatalf("ended with %v", err)
		}
		srv.Close()
	})
}
