package machine

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
)

// Order is what the host tells a machine's first process around a snapshot, a line
// of JSON on the port called OrdersName. What it asks for is done in the order of
// its fields. The answer is the nonce and Done or Failed: the host compares it and
// parses nothing.
//
// User code has no way to the port: it has no devices.
type Order struct {
	Nonce string `json:"n"`
	// Freeze stops everything in the sandbox, the agent too, until Thaw.
	Freeze bool `json:"f,omitempty"`
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
