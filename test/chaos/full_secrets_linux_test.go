package chaos

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSecretsOnAFullDisk: what does not fit is refused as such, and what was there
// stays, whole.
func TestSecretsOnAFullDisk(t *testing.T) {
	data := smallDisk(t)
	w := newWorld(t, data)
	s := w.serve("")
	if status, r := s.do("PUT", "/v1/secrets/token", `{"value":"old"}`); status != http.StatusOK {
		t.Fatalf("%d %+v", status, r)
	}
	fill(t, filepath.Join(data, "ballast"))
	big := `{"value":"` + strings.Repeat("new", 20000) + `"}`
	var status int
	var r reply
	acked := 0
	for deadline := time.Now().Add(20 * time.Second); ; acked++ { // what is buffered or preallocated may still be used up
		if status, r = s.do("PUT", "/v1/secrets/token", big); status != http.StatusOK {
			break
		}
		fill(t, filepath.Join(data, "ballast"))
		if time.Now().After(deadline) {
			t.Fatalf("%d secrets were stored on a full disk", acked)
		}
	}
	if status != http.StatusInsufficientStorage || r.Error.Kind != "no_space" {
		t.Errorf("%d %+v", status, r)
	}
	s.cmd.Process.Kill()
	s.wait()
	want := "old"
	if acked > 0 {
		want = strings.Repeat("new", 20000)
	}
	g := &ground{world: w}
	tr := g.trial(t, "full disk")
	if got, err := tr.opened("token"); err != nil || got != want {
		t.Errorf("%d bytes after %d were acknowledged, %v", len(got), acked, err)
	}
}
