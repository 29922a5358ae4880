// Package bench measures Firebreak against a floor and a peer, fairly.
//
// The machine is shared and noisy, so absolute times mean little. Each Row runs
// its columns interleaved (floor, peer, ours, floor, peer, ours, …) in one
// process; what is reported is the median of the per-round ratios with a
// bootstrap 95 % interval. A goal counts as met when the interval's upper end is
// within it (the lower end, for goals that are a minimum). The clock stops at
// the first correct byte, both sides give the same guarantees, and set-up and
// teardown are outside it.
package bench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Column is one contestant of a Row. Run does the work once and returns how
// long the part that counts took.
type Column struct {
	Name string
	Run  func(context.Context) (time.Duration, error)
}

// Row is one question: how does Ours compare to Base?
type Row struct {
	Name    string
	Columns []Column
	// Ours and Base index Columns; the ratio is Ours/Base, or Base/Ours where
	// Rate is set (throughput: more is better).
	Ours, Base int
	Rate       bool
	Goal       float64 // upper bound of the ratio; lower bound where Rate is set
	Rounds     int
}

// Result is a measured Row.
type Result struct {
	Name    string             `json:"name"`
	Medians map[string]float64 `json:"median_ms"`
	Mins    map[string]float64 `json:"min_ms"`
	Ratio   float64            `json:"ratio"`
	Low     float64            `json:"ratio_low"`
	High    float64            `json:"ratio_high"`
	Goal    float64            `json:"goal"`
	Rate    bool               `json:"at_least"`
	Met     bool               `json:"met"`
	Rounds  int                `json:"rounds"`
	// Order of the columns, for printing.
	Columns []string `json:"columns"`
	// When it was measured, and how busy the machine was before.
	Time time.Time `json:"time,omitzero"`
	Load string    `json:"load_before,omitempty"`
}

// dropped rounds warm caches and are not counted.
const dropped = 2

// Measure runs a row.
func Measure(ctx context.Context, row Row) (Result, error) {
	samples := make([][]float64, len(row.Columns))
	for round := range row.Rounds + dropped {
		for i, c := range row.Columns {
			d, err := c.Run(ctx)
			if err != nil {
				return Result{}, fmt.Errorf("%s: %s: %w", row.Name, c.Name, err)
			}
			if round >= dropped {
				samples[i] = append(samples[i], float64(d)/float64(time.Millisecond))
			}
		}
	}
	r := Result{Name: row.Name, Medians: map[string]float64{}, Mins: map[string]float64{}, Goal: row.Goal, Rate: row.Rate, Rounds: row.Rounds}
	for i, c := range row.Columns {
		r.Columns = append(r.Columns, c.Name)
		r.Medians[c.Name], r.Mins[c.Name] = median(samples[i]), slices.Min(samples[i])
	}
	ratios := make([]float64, row.Rounds)
	for i := range ratios {
		ratios[i] = samples[row.Ours][i] / samples[row.Base][i]
		if row.Rate {
			ratios[i] = 1 / ratios[i]
		}
	}
	r.Ratio = median(ratios)
	r.Low, r.High = bootstrap(ratios)
	r.Met = r.High <= row.Goal
	if row.Rate {
		r.Met = r.Low >= row.Goal
	}
	return r, nil
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// bootstrap returns the 95 % interval of the median of v. The resampling is
// seeded, so one set of samples always gives one interval.
func bootstrap(v []float64) (low, high float64) {
	const n = 2000
	rng := rand.New(rand.NewPCG(1, 2))
	medians, sample := make([]float64, n), make([]float64, len(v))
	for i := range medians {
		for j := range sample {
			sample[j] = v[rng.IntN(len(v))]
		}
		medians[i] = median(sample)
	}
	slices.Sort(medians)
	return medians[int(math.Floor(0.025*n))], medians[int(math.Ceil(0.975*n))-1]
}

// String prints a result as one readable block.
func (r Result) String() string {
	s := r.Name + "\n"
	for _, c := range r.Columns {
		s += fmt.Sprintf("    %-34s %10.3f ms   (min %.3f)\n", c, r.Medians[c], r.Mins[c])
	}
	bound, verdict := "≤", "met"
	if r.Rate {
		bound = "≥"
	}
	if !r.Met {
		verdict = "NOT MET"
	}
	return s + fmt.Sprintf("    ratio %.2f  [%.2f, %.2f]   goal %s %.2f: %s   (%d rounds)\n", r.Ratio, r.Low, r.High, bound, r.Goal, verdict, r.Rounds)
}
