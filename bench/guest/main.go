// Command guest is the client of the benches of networks, which runs inside a
// sandbox: it measures there, and prints one line of JSON.
//
//	guest up|down|connect|request|flood HOST:PORT N [NAME]
//	guest latency|spin HOST:PORT SECONDS
//
// up and down move N MiB over one connection. connect makes N connections, each
// with a request and its answer's first byte; request makes N requests on one
// connection; with a NAME both speak TLS, to that. latency makes requests on one connection for a while and tells how
// long each took. flood makes connections, hundreds at a time and each open for a
// while, until N have had an answer.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// result is what is printed.
type result struct {
	Nanoseconds int64   `json:"ns"`                // of all that counts
	Done        int64   `json:"done"`              // how much that was
	Failed      int64   `json:"failed"`            // of flood: connections that were not made
	Samples     []int64 `json:"samples,omitempty"` // of latency, in nanoseconds
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 4 && len(os.Args) != 5 {
		return errors.New("usage: guest WHAT HOST:PORT N [NAME]")
	}
	host, port, err := net.SplitHostPort(os.Args[2])
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(os.Args[3], 10, 64)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	if err != nil {
		return err
	}
	c := client{at: net.JoinHostPort(addrs[0].String(), port), host: host, n: n}
	if len(os.Args) == 5 {
		c.host, c.secure = os.Args[4], &tls.Config{ServerName: os.Args[4], NextProtos: []string{"http/1.1"}}
		if err := c.warm(); err != nil {
			return err
		}
	}
	work := map[string]func() (result, error){"up": c.up, "down": c.down, "connect": c.connect, "request": c.request, "latency": c.latency, "spin": c.spin, "flood": c.flood}[os.Args[1]]
	if work == nil {
		return errors.New("no such measurement")
	}
	r, err := work()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

type client struct {
	at, host string
	n        int64
	secure   *tls.Config // nil: without TLS
}

// warm makes a connection that does not count: who is trusted is read once.
func (c *client) warm() error {
	conn, err := c.visit()
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial connects, with TLS if it is to be.
func (c *client) dial() (net.Conn, error) {
	conn, err := net.Dial("tcp4", c.at)
	if err != nil || c.secure == nil {
		return conn, err
	}
	s := tls.Client(conn, c.secure)
	if err := s.Handshake(); err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

const block = 256 << 10

// up sends N MiB and waits for the byte that says they came.
func (c *client) up() (result, error) {
	conn, err := net.Dial("tcp4", c.at)
	if err != nil {
		return result{}, err
	}
	defer conn.Close()
	b, left := make([]byte, block), c.n<<20
	begin := time.Now()
	for left > 0 {
		n, err := conn.Write(b[:min(left, block)])
		if left -= int64(n); err != nil {
			return result{}, err
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return result{}, err
	}
	_, err = io.ReadFull(conn, b[:1])
	return result{Nanoseconds: int64(time.Since(begin)), Done: c.n}, err
}

// down asks for N MiB and reads them.
func (c *client) down() (result, error) {
	conn, err := net.Dial("tcp4", c.at)
	if err != nil {
		return result{}, err
	}
	defer conn.Close()
	b, left := make([]byte, block), c.n<<20
	begin := time.Now()
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, uint64(left))); err != nil {
		return result{}, err
	}
	for left > 0 {
		n, err := conn.Read(b)
		if left -= int64(n); err != nil && left > 0 {
			return result{}, err
		}
	}
	return result{Nanoseconds: int64(time.Since(begin)), Done: c.n}, nil
}

// visit is one connection with a request and its answer.
func (c *client) visit() (net.Conn, error) {
	conn, err := c.dial()
	if err != nil {
		return nil, err
	}
	if err := c.ask(conn, bufio.NewReaderSize(conn, 4096), 1); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// answerSize is how long the server's answers are.
const answerSize = 1024

// ask sends a request and reads as much of the answer as is wanted.
func (c *client) ask(conn net.Conn, r *bufio.Reader, size int) error {
	_ = conn.SetDeadline(time.Now().Add(time.Minute)) // cannot fail on a connection
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+c.host+"\r\n\r\n"); err != nil {
		return err
	}
	if _, err := r.Peek(1); err != nil {
		return err
	}
	if size == 1 {
		return nil
	}
	if c.secure == nil {
		_, err := io.CopyN(io.Discard, r, int64(size))
		return err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// connect makes connections one after the other.
func (c *client) connect() (result, error) {
	var spent time.Duration
	for range c.n {
		begin := time.Now()
		conn, err := c.visit()
		spent += time.Since(begin)
		if err != nil {
			return result{}, err
		}
		conn.Close()
	}
	return result{Nanoseconds: int64(spent), Done: c.n}, nil
}

// open makes one connection and its first request, for those that follow.
func (c *client) open() (net.Conn, *bufio.Reader, error) {
	conn, err := c.dial()
	if err != nil {
		return nil, nil, err
	}
	r := bufio.NewReaderSize(conn, 4096)
	return conn, r, c.ask(conn, r, answerSize)
}

// request makes requests on one connection.
func (c *client) request() (result, error) {
	conn, r, err := c.open()
	if err != nil {
		return result{}, err
	}
	defer conn.Close()
	begin := time.Now()
	for range c.n {
		if err := c.ask(conn, r, answerSize); err != nil {
			return result{}, err
		}
	}
	return result{Nanoseconds: int64(time.Since(begin)), Done: c.n}, nil
}

// latency makes requests on one connection for N seconds.
func (c *client) latency() (out result, err error) {
	conn, r, err := c.open()
	if err != nil {
		return result{}, err
	}
	defer conn.Close()
	begin := time.Now()
	for end := begin.Add(time.Duration(c.n) * time.Second); time.Now().Before(end); out.Done++ {
		at := time.Now()
		if err := c.ask(conn, r, answerSize); err != nil {
			return result{}, err
		}
		out.Samples = append(out.Samples, int64(time.Since(at)))
	}
	out.Nanoseconds = int64(time.Since(begin))
	return out, nil
}

// spin computes for N seconds.
func (c *client) spin() (result, error) {
	var work sync.WaitGroup
	begin := time.Now()
	end := begin.Add(time.Duration(c.n) * time.Second)
	for range runtime.NumCPU() {
		work.Go(func() {
			for time.Now().Before(end) {
				for x := 0; x < 1e6; x++ {
				}
			}
		})
	}
	work.Wait()
	return result{Nanoseconds: int64(time.Since(begin)), Done: c.n}, nil
}

// Of a flood: how many make connections at a time, and how many each keeps open.
const (
	crowd = 100
	held  = 8
)

// flood makes connections until N have had an answer.
func (c *client) flood() (result, error) {
	var done, failed atomic.Int64
	var work sync.WaitGroup
	begin := time.Now()
	for range crowd {
		work.Go(func() {
			var open [held]net.Conn
			for i := 0; done.Load() < c.n && time.Since(begin) < 5*time.Minute; i++ {
				at := &open[i%held]
				if *at != nil {
					(*at).Close()
				}
				var err error
				if *at, err = c.visit(); err != nil {
					*at = nil
					failed.Add(1)
					continue
				}
				done.Add(1)
			}
			for _, conn := range open {
				if conn != nil {
					conn.Close()
				}
			}
		})
	}
	work.Wait()
	return result{Nanoseconds: int64(time.Since(begin)), Done: done.Load(), Failed: failed.Load()}, nil
}
