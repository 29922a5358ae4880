package chart

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/bench"
)

// Claim is a figure that somebody has published of a product.
type Claim struct {
	Product string  `json:"product"`
	What    string  `json:"what"` // that the clock measured, from when to when
	MS      float64 `json:"ms"`
	Who     string  `json:"measured_by"`
	How     string  `json:"how"` // where and on what, as far as it says
	When    string  `json:"published,omitempty"`
	// Row is set instead of MS, for ours: the row of the bench, and the beginning of
	// the column.
	Row    string `json:"row,omitempty"`
	Column string `json:"column,omitempty"`
}

// ReadClaims reads a list of claims. Errors: also where one does not say who measured
// what, and how.
func ReadClaims(file string) (claims []Claim, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&claims); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one list", file)
	}
	for _, c := range claims {
		if c.Product == "" || c.What == "" || c.Who == "" || c.How == "" || (c.MS > 0) == (c.Row != "") {
			return nil, fmt.Errorf("%s: %s %s: a claim needs product, what, measured_by, how, and either ms or row", file, c.Product, c.What)
		}
	}
	return claims, nil
}

// Measured puts the medians of rows into the claims that name them. What was not
// measured is left out.
func Measured(claims []Claim, rows []bench.Result) (all []Claim) {
	for _, c := range claims {
		if c.Row != "" {
			i := slices.IndexFunc(rows, func(r bench.Result) bool { return r.Name == c.Row })
			if i < 0 {
				continue
			}
			for name, ms := range rows[i].Medians {
				if strings.HasPrefix(name, c.Column) {
					c.MS = ms
				}
			}
			if !rows[i].Time.IsZero() {
				c.When = rows[i].Time.Format("2006-01-02")
			}
		}
		if c.MS > 0 {
			all = append(all, c)
		}
	}
	return all
}

// Peers draws claims beside each other, fastest first, each with who measured it and how.
func Peers(claims []Claim) []byte {
	claims = slices.Clone(claims)
	slices.SortStableFunc(claims, func(a, b Claim) int {
		switch {
		case a.MS < b.MS:
			return -1
		case a.MS > b.MS:
			return 1
		}
		return 0
	})
	var all []float64
	for _, c := range claims {
		all = append(all, c.MS)
	}
	const row = 46
	p, s := new(picture), over(all...)
	const title = "What others publish, and what we measured"
	p.text(margin, margin+8, 18, ink, "start", title)
	p.text(margin, margin+28, 12, faint, "start", "Milliseconds, logarithmic. Not a race: different machines, networks, clocks and guarantees. Each line says what its clock measured, and whose it is.")
	top := float64(margin + heading)
	bottom := top + float64(len(claims)*row)
	p.axis(s, top, bottom, " ms")
	for i, c := range claims {
		y := top + float64(i*row)
		colour := theirs
		if c.Row != "" {
			colour = good
		}
		p.text(margin, y+15, 13, ink, "start", "%s: %s", c.Product, c.What)
		p.text(margin, y+29, 11, faint, "start", "%s", c.Who+when(c))
		p.text(margin, y+41, 11, faint, "start", "%s", c.How)
		x := s.at(c.MS) // a dot, not a bar: a logarithmic axis has no zero to begin at
		fmt.Fprintf(p, `<circle cx="%.1f" cy="%.1f" r="6" fill="%s"/>`+"\n", x, y+21, colour)
		p.text(x+10, y+25, 11, ink, "start", "%s", number(float64(int(c.MS*10+0.5))/10))
	}
	p.height = int(bottom) + margin
	return p.done(title)
}

func when(c Claim) string {
	if c.When == "" {
		return ""
	}
	return ", " + c.When
}
