package machine

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// TestSettings: what the host writes on the command line is what the guest reads,
// and it fits.
func TestSettings(t *testing.T) {
	for _, s := range []Settings{
		{}, {Hostname: "sbabcdefghijklmnopqr", Readonly: true, PIDs: 1 << 20, VSock: 1<<32 - 1, Probe: true, Test: TestFreeze},
		{Network: &Network{Link: "eth0", Address: netip.MustParsePrefix("10.200.0.2/30"), Gateway: netip.MustParseAddr("10.200.0.1"), GatewayMAC: "02:00:00:00:00:01"}},
		{Hostname: "a b\" ' \n = é " + strings.Repeat("x", 50)},
	} {
		a, err := s.Argument()
		if err != nil {
			t.Fatal(err)
		}
		value, ok := strings.CutPrefix(a, "firebreak=")
		if !ok || strings.ContainsAny(value, " \t\n\"'=,") {
			t.Errorf("argument %q", a)
		}
		if got, err := parse(value); err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%+v came as %+v, %v", s, got, err)
		}
	}
	if _, err := (Settings{Hostname: strings.Repeat("x", 2000)}).Argument(); err == nil {
		t.Error("a command line too long for a kernel")
	}
	for _, bad := range []string{"", "!", "e30=", "W10"} {
		if s, err := parse(bad); err == nil {
			t.Errorf("%q is %+v", bad, s)
		}
	}
}
