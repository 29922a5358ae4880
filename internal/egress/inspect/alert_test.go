package inspect

import "testing"

// TestAlertInTheClear: an alert of TLS 1.3 that came before there were keys is told
// from data.
func TestAlertInTheClear(t *testing.T) {
	for b, want := range map[string]uint8{
		"\x15\x03\x03\x00\x02\x02\x30":                         48,
		"\x15\x03\x01\x00\x02\x02\x2a":                         42,
		"\x14\x03\x03\x00\x01\x01\x15\x03\x03\x00\x02\x02\x30": 48,
		"":                                 0,
		"\x15\x03\x03\x00\x02\x01\x00":     0, // a close
		"\x15\x03\x03\x00\x13\x02\x30":     0, // encrypted
		"\x17\x03\x03\x00\x02\x02\x30":     0,
		"\x15\x03\x03\x00\x02\x02\x30\x15": 0,
		"\x14\x03\x03\x00\x01\x01":         0,
		"GET / HTTP/1.":                    0,
	} {
		if got := alertIn([]byte(b)); got != want {
			t.Errorf("%x is %d, want %d", b, got, want)
		}
	}
}
