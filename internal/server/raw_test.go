package server

import (
	"bufio"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// failing fails with the kind that the sandbox's name says.
func failing(_ context.Context, r *v1.CreateSandboxRequest) (*v1.Sandbox, error) {
	switch r.Name {
	case "plain":
		return nil, errors.New("a secret path")
	case "panic":
		panic("oops")
	}
	e := sandbox.Errorf("create", sandbox.Kind(strings.ReplaceAll(r.Name, "-", "_")), "because").WithID("x").WithHint("do this")
	if e.Kind == sandbox.KindCapacity {
		e.RetryAfter = 1500 * time.Millisecond
	}
	return nil, e
}

// rawConn is a TCP connection for requests no client library would make.
func rawConn(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func readLine(t *testing.T, c net.Conn) string {
	t.Helper()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return line
}
