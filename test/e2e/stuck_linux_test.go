package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stuck asks for a stream and never reads it.
func (s *server) stuck(method, path, body string) {
	s.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, path, s.key, len(body), body); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 12)); err != nil { // it has begun
		s.t.Fatal(err)
	}
}

// memory is what the server holds, in bytes.
func (s *server) memory() int {
	s.t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/status")
	if err != nil {
		s.t.Fatal(err)
	}
	m := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		s.t.Skip("not run: the kernel does not say what a process holds")
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n << 10
}

// TestStuckReaders: programs print as fast as they can, to terminals and pipes, to
// readers that never read and to one that is stopped. Others, in their sandbox and
// beside it, run as ever, and the server holds no more of it after a while than
// after the first moments.
func TestStuckReaders(t *testing.T) {
	s := newWorld(t).serve()
	id, beside := s.sandbox(), s.sandbox()
	const printer = `import os\nb=b'x'*65535+b'\\n'\nwhile True: os.write(1,b)`
	path := "/v1/sandboxes/" + id
	for tag, more := range map[string]string{"pipe": "", "vt": `,"pty":{"cols":80,"rows":24}`} {
		if code, body, _ := s.do("POST", path+"/processes", `{"code":"`+printer+`","tag":"`+tag+`"`+more+`}`); code != 201 {
			t.Fatalf("%s: %d %s", tag, code, body)
		}
		for range 3 {
			s.stuck("GET", path+"/processes/"+tag+"/stream", "")
		}
	}
	s.stuck("POST", path+"/exec", `{"code":"`+printer+`"}`)
	s.stuck("POST", path+"/exec", `{"code":"`+printer+`","pty":{"cols":80,"rows":24}}`)
	stopped := s.command("attach", id, "vt")
	out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	stopped.Stdout = out
	if err := stopped.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stopped.Process.Kill(); stopped.Wait() }()
	stopped.Process.Signal(syscall.SIGSTOP)

	works := func() {
		t.Helper()
		for _, at := range []string{id, beside} {
			code, body, _ := s.do("POST", "/v1/sandboxes/"+at+"/exec", `{"command":"echo","args":["fine"],"timeout_ms":60000}`)
			if code != 200 || !strings.Contains(body, `"stdout":"fine\n"`) {
				t.Errorf("%d %s", code, body)
			}
		}
	}
	begun := time.Now()
	for time.Since(begun) < 2*time.Second {
		works()
	}
	before := s.memory()
	for time.Since(begun) < 8*time.Second {
		works()
	}
	if after := s.memory(); after > before+48<<20 {
		t.Errorf("the server holds %d MiB, %d MiB before", after>>20, before>>20)
	}
	for _, tag := range []string{"pipe", "vt"} {
		if code, body, _ := s.do("DELETE", path+"/processes/"+tag, ""); code != 200 || !strings.Contains(body, `"reason":"operator"`) {
			t.Errorf("kill %s: %d %s", tag, code, body)
		}
	}
	works()
}
