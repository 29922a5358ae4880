package bench

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ForkTrue is the unit of "run something": fork and exec of the host's true.
func ForkTrue(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	err := exec.CommandContext(ctx, "/bin/true").Run()
	return time.Since(start), err
}

// BareHandler starts a process of its own, as the daemon is one, that serves body
// from a plain ServeMux on a loopback port. It returns a Column that fetches it
// over one kept-alive connection. The program that calls it calls ServeBare
// first thing in main.
func BareHandler(body []byte) (Column, func(), error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), bareBody+"="+string(body))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return Column{}, nil, err
	}
	if err := cmd.Start(); err != nil {
		return Column{}, nil, err
	}
	end := func() { cmd.Process.Kill(); cmd.Wait() }
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		end()
		return Column{}, nil, err
	}
	client := &http.Client{Transport: &http.Transport{}}
	url := "http://" + strings.TrimSpace(addr) + "/v1/sandboxes/x"
	return Column{"bare ServeMux handler", func(ctx context.Context) (time.Duration, error) {
		return repeat(ctx, getsPerRound, func() error { return get(ctx, client, url, "") })
	}}, end, nil
}

const bareBody = "FIREBREAK_BENCH_BARE"

// ServeBare is the process of BareHandler; elsewhere it returns at once.
func ServeBare() {
	body := []byte(os.Getenv(bareBody))
	if len(body) == 0 {
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/sandboxes/{id}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	})
	fmt.Fprintln(os.Stderr, http.Serve(l, mux))
	os.Exit(1)
}

// getsPerRound requests make one round, so that a scheduling hiccup does not
// decide it.
const getsPerRound = 200

// repeat returns the mean of n calls.
func repeat(ctx context.Context, n int, f func() error) (time.Duration, error) {
	start := time.Now()
	for range n {
		if err := f(); err != nil {
			return 0, err
		}
	}
	return time.Since(start) / time.Duration(n), nil
}

func get(ctx context.Context, c *http.Client, url, key string) error {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return err
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}

// SocketToFile is the floor of a file write: size bytes through one unix socket
// in 256 KiB writes, stored by the receiver in a file below dir, acknowledged
// with one byte. The receiver is a goroutine, not a process: this flatters the
// floor.
func SocketToFile(dir string, size int) (Column, func(), error) {
	path := filepath.Join(dir, "floor.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		return Column{}, nil, err
	}
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			name := filepath.Join(dir, fmt.Sprintf("floor-%d", n%2))
			f, err := os.Create(name)
			if err == nil {
				_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{io.LimitReader(c, int64(size))}, make([]byte, 256<<10))
				f.Close()
			}
			if err == nil {
				c.Write([]byte{1})
			}
			c.Close()
		}
	}()
	data := pattern(size)
	return Column{"raw unix socket to a file", func(ctx context.Context) (time.Duration, error) {
		start := time.Now()
		c, err := net.Dial("unix", path)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 256<<10)
			if _, err := c.Write(rest[:n]); err != nil {
				return 0, err
			}
			rest = rest[n:]
		}
		var ack [1]byte
		if _, err := io.ReadFull(c, ack[:]); err != nil {
			return 0, err
		}
		return time.Since(start), nil
	}}, func() { l.Close() }, nil
}

// pattern is size bytes that do not compress or repeat.
func pattern(size int) []byte {
	data := make([]byte, 0, size+sha256.Size)
	for sum := sha256.Sum256(nil); len(data) < size; sum = sha256.Sum256(sum[:]) {
		data = append(data, sum[:]...)
	}
	return data[:size]
}
