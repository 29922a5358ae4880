package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/bench"
)

var rows = []bench.Result{
	{Name: "pool: create & exec", Medians: map[string]float64{"ours: POST": 6.5, "base: python3 <-c>": 31}, Columns: []string{"base: python3 <-c>", "ours: POST"}, Ratio: 0.21, Low: 0.2, High: 0.24, Goal: 0.25, Met: true},
	{Name: "write", Columns: []string{"raw", "ours"}, Ratio: 0.3, Low: 0.28, High: 0.33, Goal: 0.4, Rate: true},
}

// wellFormed reads a picture and returns the texts in it.
func wellFormed(t *testing.T, svg []byte) (texts []string) {
	t.Helper()
	dec := xml.NewDecoder(strings.NewReader(string(svg)))
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return texts
		}
		if err != nil {
			t.Fatalf("not XML: %v\n%s", err, svg)
		}
		if text, ok := tok.(xml.CharData); ok && strings.TrimSpace(string(text)) != "" {
			texts = append(texts, string(text))
		}
	}
}

func TestRatios(t *testing.T) {
	all := strings.Join(wellFormed(t, Ratios(rows)), "\n")
	for _, want := range []string{"pool: create & exec", "beside python3 <-c>", "0.21", "beside raw", "less is better", "more is better"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in the picture:\n%s", want, all)
		}
	}
	s := over(0.1, 10)
	if a, b, c := s.at(0.1), s.at(1), s.at(10); a >= b || b-a-(c-b) > 1e-6 || c > width || a < labels {
		t.Errorf("the axis is not logarithmic: %v %v %v", a, b, c)
	}
}

func TestPeers(t *testing.T) {
	claims, err := ReadClaims(filepath.Join("..", "peers.json"))
	if err != nil {
		t.Fatal(err)
	}
	shown := Measured(claims, []bench.Result{{Name: claims[0].Row, Medians: map[string]float64{"ours: x": 12.34, "base: y": 99}}})
	if shown[0].MS != 12.34 {
		t.Errorf("ours is %v, not the median of our column", shown[0].MS)
	}
	for _, c := range shown[1:] {
		if c.Row != "" {
			t.Errorf("%q is shown, and was not measured", c.Row)
		}
	}
	all := strings.Join(wellFormed(t, Peers(shown)), "\n")
	for _, c := range shown {
		for _, want := range []string{c.Product + ": " + c.What, c.Who, c.How} {
			if !strings.Contains(all, want) {
				t.Errorf("%q is not in the picture", want)
			}
		}
	}
	bad := filepath.Join(t.TempDir(), "peers.json")
	if err := os.WriteFile(bad, []byte(`[{"product":"X","what":"y","ms":1,"how":"z"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadClaims(bad); err == nil {
		t.Error("a claim without a source was taken")
	}
}
