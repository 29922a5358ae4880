package probe

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
)

// serve is a server, well-behaved or not.
func serve(a []string) error {
	behave, ok := map[string]func(*net.TCPConn){
		"echo": func(c *net.TCPConn) {
			_, _ = io.Copy(c, struct{ io.Reader }{c})
			_ = c.CloseWrite()
		},
		"flood": func(c *net.TCPConn) {
			for b := bytes.Repeat([]byte("x"), 64<<10); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		},
		"reset":  func(c *net.TCPConn) { _ = c.SetLinger(0) },
		"ignore": func(*net.TCPConn) { _ = hold() },
		"queue":  nil,
	}[a[0]]
	if !ok {
		return fmt.Errorf("unknown mode %q", a[0])
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString(strconv.Itoa(l.Addr().(*net.TCPAddr).Port) + "\n"); err != nil {
		return err
	}
	if behave == nil {
		return hold()
	}
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			behave(c)
		}()
	}
}
