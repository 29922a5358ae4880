// Package chart draws what the benches measured, as SVG.
package chart

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strings"

	"github.com/firebreak-dev/firebreak/bench"
)

// Sizes in pixels.
const (
	width   = 960
	labels  = 440 // wide
	margin  = 24
	line    = 34 // a row's height
	heading = 74
)

// Colours that can be told apart on paper, too.
const (
	ink    = "#1f2328"
	faint  = "#6e7781"
	grid   = "#d0d7de"
	good   = "#1a7f37"
	bad    = "#cf222e"
	theirs = "#8c959f"
)

// picture is an SVG in the making.
type picture struct {
	bytes.Buffer
	height int
}

func (p *picture) text(x, y float64, size int, colour, anchor, format string, args ...any) {
	fmt.Fprintf(p, `<text x="%.1f" y="%.1f" font-size="%d" fill="%s" text-anchor="%s">`, x, y, size, colour, anchor)
	xml.EscapeText(p, fmt.Appendf(nil, format, args...))
	p.WriteString("</text>\n")
}

func (p *picture) line(x1, y1, x2, y2 float64, colour string, thick float64) {
	fmt.Fprintf(p, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"/>`+"\n", x1, y1, x2, y2, colour, thick)
}

// done is the whole file.
func (p *picture) done(title string) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" role="img">`+"\n<title>", width, p.height, width, p.height)
	xml.EscapeText(&out, []byte(title))
	fmt.Fprintf(&out, "</title>\n"+`<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, p.height)
	out.Write(p.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// scale is a logarithmic axis.
type scale struct{ low, high float64 }

// over is the smallest scale of whole decades with 1, 2 and 5 that has all values.
func over(values ...float64) scale {
	s := scale{math.Inf(1), math.Inf(-1)}
	for _, v := range values {
		if v > 0 {
			s.low, s.high = min(s.low, v), max(s.high, v)
		}
	}
	return scale{s.low * 0.85, s.high * 1.15}
}

func (s scale) at(v float64) float64 {
	v = min(max(v, s.low), s.high)
	return labels + (width-labels-3*margin)*math.Log(v/s.low)/math.Log(s.high/s.low)
}

// ticks are the round numbers on it.
func (s scale) ticks() (all []float64) {
	for d := math.Pow(10, math.Floor(math.Log10(s.low))); d <= s.high; d *= 10 {
		for _, m := range []float64{1, 2, 5} {
			if v := d * m; v >= s.low && v <= s.high {
				all = append(all, v)
			}
		}
	}
	return all
}

// axis draws the scale below a heading, down to the bottom.
func (p *picture) axis(s scale, top, bottom float64, unit string) {
	for _, v := range s.ticks() {
		x := s.at(v)
		p.line(x, top, x, bottom, grid, 1)
		p.text(x, top-6, 11, faint, "middle", "%s%s", number(v), unit)
	}
}

func number(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", v), "0"), ".")
}

// Ratios draws each row as the ratio of ours to what it is compared with, with its 95 % interval
// and what was asked for; those where more is better after those where less is.
func Ratios(rows []bench.Result) []byte {
	p, y := new(picture), float64(margin)
	const title = "Firebreak beside what it is measured against, in one run"
	p.text(margin, y+8, 18, ink, "start", title)
	p.text(margin, y+28, 12, faint, "start", "Median of the ratios of interleaved rounds, 95 %% interval; the mark is the goal. Measured by this repository's bench; make bench draws it again.")
	y += 44
	for _, more := range []bool{false, true} {
		var part []bench.Result
		var all []float64
		for _, r := range rows {
			if r.Rate == more {
				part, all = append(part, r), append(all, r.Low, r.High, r.Goal, 1)
			}
		}
		if len(part) == 0 {
			continue
		}
		what := "time, as a multiple of the other's: less is better"
		if more {
			what = "rate, as a multiple of the other's: more is better"
		}
		s, top := over(all...), y+heading-20
		bottom := top + float64(len(part)*line)
		p.text(margin, top-24, 13, ink, "start", "%s", what)
		p.axis(s, top, bottom, "×")
		p.line(s.at(1), top, s.at(1), bottom, faint, 1.5)
		for i, r := range part {
			p.ratio(s, r, top+float64(i*line))
		}
		y = bottom
	}
	p.height = int(y) + margin
	return p.done(title)
}

// ratio draws one row.
func (p *picture) ratio(s scale, r bench.Result, y float64) {
	p.text(margin, y+14, 13, ink, "start", "%s", r.Name)
	p.text(margin, y+28, 11, faint, "start", "%s", other(r))
	colour := good
	if !r.Met {
		colour = bad
	}
	mid := y + 17
	p.line(s.at(r.Low), mid, s.at(r.High), mid, colour, 5)
	fmt.Fprintf(p, `<circle cx="%.1f" cy="%.1f" r="5" fill="%s"/>`+"\n", s.at(r.Ratio), mid, colour)
	p.line(s.at(r.Goal), mid-10, s.at(r.Goal), mid+10, ink, 2)
	p.text(s.at(r.Ratio), mid-8, 11, colour, "middle", "%s", fmt.Sprintf("%.2f", r.Ratio))
}

// other says what the row compares with.
func other(r bench.Result) string {
	for _, kind := range []string{"base", "peer", "floor"} {
		for _, c := range r.Columns {
			if what, ok := strings.CutPrefix(c, kind+": "); ok {
				return "beside " + what
			}
		}
	}
	if len(r.Columns) > 0 {
		return "beside " + r.Columns[0]
	}
	return ""
}
