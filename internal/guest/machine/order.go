package machine

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Order is what the host tells a machine's first process around a snapshot, a line
// of JSON on the port called OrdersName, or over a connection to the port of the vsock
// that is Settings.Orders. What it asks for is done in the order of its fields. The
// answer is the nonce, Done or Failed, and a number of AnswerDigits hexadecimal
// digits: how many bytes of the agent's the host was given over its connection to it,
// or -1 when not all that it has sent has come.
//
// User code has no way to the port: it has no devices, and is not the host.
type Order struct {
	Nonce string `json:"n"`
	// Freeze stops everything in the sandbox, the agent too, until Thaw.
	Freeze bool `json:"f,omitempty"`
	// Sent is how many bytes the host has sent over its connection to the agent, which
	// the agent is given before it is frozen; nil where nobody is connected.
	Sent *int64 `json:"c,omitempty"`
	// Time sets the clock, to nanoseconds since 1970. 0 leaves it.
	Time int64 `json:"t,omitempty"`
	// Renew makes a restored machine another than the one it was.
	Renew *Renewal `json:"r,omitempty"`
	// Thaw lets everything go on.
	Thaw bool `json:"g,omitempty"`
}

// Renewal is what no two machines may have in common.
type Renewal struct {
	// Seed goes into the kernel's random numbers, credited, and they are made anew.
	Seed     []byte `json:"s"`
	Hostname string `json:"h"`
	// BootID and MachineID are 16 bytes.
	BootID    []byte `json:"b"`
	MachineID []byte `json:"m"`
}

// The answers, behind the nonce.
const (
	Done   = '+'
	Failed = '-'
)

// AnswerDigits is how many digits come behind them.
const AnswerDigits = 16

// Answer is what is said about an order.
func (o Order) Answer(err error, sent int64) []byte {
	verdict := byte(Done)
	if err != nil {
		verdict = Failed
	}
	return fmt.Appendf(nil, "%s%c%0*x", o.Nonce, verdict, AnswerDigits, sent)
}

// maxOrder bounds a line.
const maxOrder = 4 << 10

// Line is the order as it is sent.
func (o Order) Line() ([]byte, error) {
	b, err := json.Marshal(o)
	if err == nil && len(b) >= maxOrder {
		err = errors.New("an order that is too long")
	}
	return append(b, '\n'), err
}

// readOrder reads the next order that is one. What a host that died has left half
// written ends with the line of the next.
func readOrder(r *bufio.Reader) (o Order, err error) {
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return o, err
		case len(line) == 0:
			return o, io.EOF
		}
		o = Order{}
		if json.Unmarshal(line, &o) == nil && o.Nonce != "" {
			return o, nil
		}
	}
}

// obey has do do what the host says on a port, which never ends: while nobody is at
// the other end there is nothing to read.
func obey(port io.ReadWriter, do func(Order) (int64, error)) {
	r := bufio.NewReaderSize(port, maxOrder)
	for {
		if answer(port, r, do) != nil {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// Obey has do do what the host says over connections. Orders are done one at a time,
// in the order in which they came: who connects ends the connection before, of which
// the order in progress is waited for and no other is begun. It returns when l fails.
func Obey(l net.Listener, do func(Order) (int64, error)) error {
	var before net.Conn
	over := make(chan struct{})
	close(over)
	for {
		conn, err := l.Accept()
		if before != nil {
			before.Close()
		}
		<-over
		if err != nil {
			return err
		}
		before, over = conn, make(chan struct{})
		go func(over chan<- struct{}) {
			defer close(over)
			defer conn.Close()
			for r := bufio.NewReaderSize(conn, maxOrder); answer(conn, r, do) == nil; {
			}
		}(over)
	}
}

// answer does the next order. Who gave one and is gone notices that it has no answer.
func answer(w io.Writer, r *bufio.Reader, do func(Order) (int64, error)) error {
	o, err := readOrder(r)
	if err != nil {
		return err
	}
	sent, err := do(o)
	_, _ = w.Write(o.Answer(err, sent))
	return nil
}
