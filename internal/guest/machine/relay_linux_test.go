package machine

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// relayed is a Relay with an agent's end, and how a host connects to it.
func relayed(t *testing.T) (r *Relay, agent *os.File, dial func() net.Conn) {
	t.Helper()
	r, agent, err := NewRelay()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "port")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error)
	go func() { over <- r.Serve(l) }()
	t.Cleanup(func() {
		agent.Close()
		l.Close()
		<-over
	})
	return r, agent, func() net.Conn {
		t.Helper()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

// TestRelay: nothing is lost or said twice when the machine is saved amid a stream, and
// its connections are cut: what the one side has sent the other has, before the agent
// stands still, and the rest comes over the next connection.
func TestRelay(t *testing.T) {
	r, agent, dial := relayed(t)
	const total = 8 << 20
	text := make([]byte, total)
	for k := range text {
		text[k] = byte(k ^ k>>8 ^ k>>16)
	}
	var frozen sync.RWMutex // held by who saves; the agent says and hears nothing meanwhile
	go func() {
		for at := 0; at < total; at += 1000 {
			frozen.RLock()
			_, err := agent.Write(text[at:min(at+1000, total)])
			frozen.RUnlock()
			if err != nil {
				return
			}
		}
	}()
	var got, sent []byte
	heard := make(chan []byte, 1)
	go func() {
		b := make([]byte, 0, 1<<20)
		buf := make([]byte, 4096)
		for len(b) < cap(b) {
			n, err := agent.Read(buf)
			if b = append(b, buf[:n]...); err != nil {
				break
			}
		}
		heard <- b
	}()
	for turn := 0; len(got) < total; turn++ {
		host := dial()
		part, begun := 0, len(got)
		for len(sent) < 1<<20 && part < 100<<10 {
			n := min(10<<10, 1<<20-len(sent))
			if _, err := host.Write(text[len(sent) : len(sent)+n]); err != nil {
				t.Fatal(err)
			}
			sent, part = text[:len(sent)+n], part+n
		}
		buf := make([]byte, 700<<10)
		n, err := io.ReadFull(host, buf[:min(len(buf), total-len(got))])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
		if !r.Settle(int64(part)) {
			t.Fatalf("the agent was not given the %d bytes of turn %d", part, turn)
		}
		pumped := make(chan []byte)
		go func() { // a host reads on, or the agent could not be stopped
			b, _ := io.ReadAll(host)
			pumped <- b
		}()
		frozen.Lock()
		count := r.Park()
		time.Sleep(time.Millisecond)
		host.(*net.UnixConn).CloseRead() // cut, with nothing on the way
		got = append(got, <-pumped...)
		if int64(len(got)-begun) != count {
			t.Fatalf("%d bytes came in turn %d, the relay counts %d", len(got)-begun, turn, count)
		}
		frozen.Unlock()
	}
	if !bytes.Equal(got, text) {
		t.Error("what the agent has said came otherwise")
	}
	for len(sent) < 1<<20 {
		host := dial()
		n, err := host.Write(text[len(sent) : 1<<20])
		if err != nil {
			t.Fatal(err)
		}
		sent = text[:len(sent)+n]
	}
	if b := <-heard; !bytes.Equal(b, text[:1<<20]) {
		t.Error("what the host has sent came otherwise")
	}
}

// TestRelaySettles: what has not come is not taken for settled, and who connects ends
// the connection before.
func TestRelaySettles(t *testing.T) {
	r, _, dial := relayed(t)
	if r.Settle(0) {
		t.Error("settled with nobody")
	}
	first := dial()
	io.WriteString(first, "abc")
	for end := time.Now().Add(time.Minute); !r.Settle(3); {
		if time.Now().After(end) {
			t.Fatal("three bytes do not come")
		}
	}
	if r.Settle(2) {
		t.Error("more came than was sent, and it is settled")
	}
	if r.Settle(4) {
		t.Error("a byte that was never sent has come")
	}
	dial()
	first.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the first connection: %v", err)
	}
}

// TestObey: orders are done one at a time and in order, whichever connection they came
// over; that of a host that is gone is done, and no other of its.
func TestObey(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "orders"))
	if err != nil {
		t.Fatal(err)
	}
	begun, resume := make(chan string, 10), make(chan struct{})
	over := make(chan error)
	go func() {
		over <- Obey(l, func(o Order) (int64, error) {
			begun <- o.Nonce
			<-resume
			if o.Thaw {
				return 0, errors.New("no")
			}
			return 77, nil
		})
	}()
	dial := func() net.Conn {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	give := func(c net.Conn, o Order) {
		t.Helper()
		b, err := o.Line()
		if err == nil {
			_, err = c.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	first := dial()
	give(first, Order{Nonce: "1", Freeze: true})
	if n := <-begun; n != "1" {
		t.Fatalf("%q was begun", n)
	}
	give(first, Order{Nonce: "never"})
	second := dial()
	give(second, Order{Nonce: "2", Thaw: true})
	select {
	case n := <-begun:
		t.Fatalf("%q was begun while 1 was not done", n)
	case <-time.After(50 * time.Millisecond):
	}
	for k, want := range []string{"1", "2"} {
		if k > 0 {
			if n := <-begun; n != want {
				t.Fatalf("%q was begun, not %q", n, want)
			}
		}
		resume <- struct{}{}
	}
	b := make([]byte, 2+AnswerDigits)
	second.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadFull(second, b); err != nil || string(b) != "2-0000000000000000" {
		t.Errorf("answered %q, %v", b, err)
	}
	if got := string((Order{Nonce: "n"}).Answer(nil, -1)); len(got) != 2+AnswerDigits {
		t.Errorf("%q is an answer", got)
	} else if n, err := strconv.ParseInt(got[2:], 16, 64); err != nil || n != -1 {
		t.Errorf("%q comes as %d, %v", got, n, err)
	}
	l.Close()
	if err := <-over; !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}
