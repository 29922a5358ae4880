package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/bench"
	"github.com/firebreak-dev/firebreak/bench/chart"
)

// draw draws what a file of results says: ours beside what it was measured against,
// and beside what peers publish.
func draw(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var rep report
	if err := json.Unmarshal(data, &rep); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	claims, err := chart.ReadClaims("bench/peers.json")
	if err != nil {
		return err
	}
	ours := slices.DeleteFunc(slices.Clone(rep.Results), func(r bench.Result) bool { return strings.HasPrefix(r.Name, "relay:") }) // is not about us
	err = os.WriteFile("docs/performance.svg", chart.Ratios(ours), 0o644)
	return cmp.Or(err, os.WriteFile("docs/peers.svg", chart.Peers(chart.Measured(claims, rep.Results)), 0o644))
}
