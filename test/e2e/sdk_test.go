package e2e

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	sdk "github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// connect is the Go SDK against s.
func (s *server) connect() *sdk.Client {
	s.t.Helper()
	c, err := sdk.New(sdk.Options{URL: s.url, APIKey: s.key})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// TestSDKTerminal: the helpers with which a program puts a terminal on a screen.
func TestSDKTerminal(t *testing.T) {
	s := newWorld(t).serve()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	sb, err := s.connect().Create(ctx, sdk.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := sb.Start(ctx, sdk.Command{Path: "sh", Args: []string{"-c", `while read -r line; do echo "got $line"; [ "$line" = end ] && break; done; stty size; exit 6`},
		PTY: &sdk.Size{Cols: 80, Rows: 24}, Stdin: []byte("first\r")}, sdk.StartOptions{Tag: "vt"})
	if err != nil {
		t.Fatal(err)
	}
	sizes := make(chan sdk.Size, 1)
	sizes <- sdk.Size{Cols: 99, Rows: 33}
	close(sizes)
	if err := p.KeepSize(ctx, sizes); err != nil {
		t.Errorf("size: %v", err)
	}
	if err := p.Type(ctx, strings.NewReader("second\rend\r")); err != nil {
		t.Errorf("type: %v", err)
	}
	var out bytes.Buffer
	exit, err := p.Attach(ctx, &out, io.Discard)
	if err != nil || exit.Code != 6 {
		t.Errorf("%+v, %v", exit, err)
	}
	mustContain(t, "the screen", out.String(), "got first\r\n", "got second\r\n", "got end\r\n33 99\r\n")
	if err := p.Type(ctx, strings.NewReader("x")); sandbox.KindOf(err) != sandbox.KindGone {
		t.Errorf("typed after the end: %v", err)
	}

	// A deadline, in the background and before one's eyes.
	slow := sdk.Command{Path: "sleep", Args: []string{"1000"}, PTY: &sdk.Size{Cols: 80, Rows: 24}, Timeout: 300 * time.Millisecond}
	if p, err = sb.Start(ctx, slow, sdk.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	for what, end := range map[string]func() (sdk.Exit, error){
		"background": func() (sdk.Exit, error) { return p.Wait(ctx) },
		"foreground": func() (sdk.Exit, error) { return sb.Exec(ctx, slow, nil, nil) },
	} {
		if exit, err := end(); err != nil || exit.Code != 124 || exit.Reason != sandbox.ReasonTimeout {
			t.Errorf("%s: %+v, %v", what, exit, err)
		}
	}
	out.Reset()
	exit, err = sb.Exec(ctx, sdk.Command{Path: "sh", Args: []string{"-c", "tty -s && stty size; id -un; echo $A >&2"}, User: "nobody", Dir: "/tmp", Env: map[string]string{"A": "b"},
		PTY: &sdk.Size{Cols: 7, Rows: 8}}, &out, io.Discard)
	if err != nil || exit.Code != 0 || out.String() != "8 7\r\nnobody\r\nb\r\n" {
		t.Errorf("exec: %+v, %v, %q", exit, err, out.String())
	}
	if _, err := sb.Exec(ctx, sdk.Command{Path: "true", PTY: &sdk.Size{}}, nil, nil); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("a terminal of no size: %v", err)
	}
}

// TestSDKWatcher: changes of a directory for a caller who polls.
func TestSDKWatcher(t *testing.T) {
	s := newWorld(t).serve()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	sb, err := s.connect().Create(ctx, sdk.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := sb.CreateWatcher(ctx, "", true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Exec(ctx, sdk.Command{Path: "sh", Args: []string{"-c", "mkdir d; echo x > d/seen; rm -r d"}}, nil, nil); err != nil {
		t.Fatal(err)
	}
	seen := ""
	for !strings.Contains(seen, "d/seen") {
		events, over, err := w.Events(ctx)
		if err != nil || over {
			t.Fatalf("%v, %v after %q", over, err, seen)
		}
		for _, e := range events {
			seen += e.GetType() + " " + e.GetPath() + "\n"
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := w.Remove(ctx); err != nil {
		t.Error(err)
	}
	if _, _, err := w.Events(ctx); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("a removed one: %v", err)
	}
}
