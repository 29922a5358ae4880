package probe

import (
	"context"
	"io"
	"net"
	"os"
	"time"
)

// answerTime is how long a network may take.
const answerTime = 10 * time.Second

// links lists the links and what is set on them.
func links([]string) error {
	type link struct {
		Name, MAC string
		MTU       int
		Up        bool
		Addresses []string
	}
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	out := []link{}
	for _, l := range all {
		addrs, err := l.Addrs()
		if err != nil {
			return err
		}
		o := link{Name: l.Name, MAC: l.HardwareAddr.String(), MTU: l.MTU, Up: l.Flags&net.FlagUp != 0}
		for _, a := range addrs {
			o.Addresses = append(o.Addresses, a.String())
		}
		out = append(out, o)
	}
	return printJSON(out)
}

// resolve asks as any program would.
func resolve(a []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupHost(ctx, a[0])
	if err != nil {
		return err
	}
	for _, s := range addrs {
		if _, err := os.Stdout.WriteString(s + "\n"); err != nil {
			return err
		}
	}
	return nil
}

func connect(a []string) error {
	c, err := net.DialTimeout("tcp", a[0], answerTime)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, a[1]); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, c)
	return err
}

func datagram(a []string) error {
	c, err := net.DialTimeout("udp", a[0], answerTime)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, a[1]); err != nil {
		return err
	}
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(b[:n])
	return err
}
