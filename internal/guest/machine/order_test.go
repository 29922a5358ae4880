package machine

import (
	"bufio"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

// TestOrders: what the host writes is what is read, also behind what a host that
// died has left.
func TestOrders(t *testing.T) {
	want := []Order{
		{Nonce: "1", Freeze: true},
		{Nonce: "2", Time: 1, Renew: &Renewal{Seed: make([]byte, 64), Hostname: strings.Repeat("h", 64), BootID: make([]byte, 16), MachineID: make([]byte, 16)}},
		{Nonce: "3", Time: 5, Thaw: true},
	}
	var text strings.Builder
	for _, o := range want {
		b, err := o.Line()
		if err != nil {
			t.Fatal(err)
		}
		text.Write(b[:len(b)/2])
		text.WriteString("\n" + strings.Repeat("x", 3*maxOrder) + "\n{}\n")
		text.Write(b)
	}
	r := bufio.NewReaderSize(strings.NewReader(text.String()), maxOrder)
	for _, o := range want {
		if got, err := readOrder(r); err != nil || !reflect.DeepEqual(got, o) {
			t.Errorf("%+v, %v; want %+v", got, err, o)
		}
	}
	if o, err := readOrder(r); !errors.Is(err, io.EOF) {
		t.Errorf("%+v, %v behind the last", o, err)
	}
	if _, err := (Order{Nonce: strings.Repeat("n", maxOrder)}).Line(); err == nil {
		t.Error("an order longer than can be read")
	}
}
