package sandbox

import (
	"math"
	"strconv"
	"strings"
)

// units are the suffixes of a size. All are binary: 64M is 64 MiB, as for
// every other tool that limits memory.
var units = []struct {
	suffix string
	shift  uint
}{
	{"kib", 10}, {"mib", 20}, {"gib", 30}, {"tib", 40},
	{"kb", 10}, {"mb", 20}, {"gb", 30}, {"tb", 40},
	{"k", 10}, {"m", 20}, {"g", 30}, {"t", 40},
	{"b", 0},
}

// ParseSize reads sizes such as 64M, 64MiB, 0.5G or 1048576 (bytes). Errors:
// KindInvalid.
func ParseSize(s string) (int64, error) {
	text := strings.ToLower(strings.TrimSpace(s))
	var shift uint
	for _, u := range units {
		if rest, ok := strings.CutSuffix(text, u.suffix); ok {
			text, shift = strings.TrimSpace(rest), u.shift
			break
		}
	}
	bad := func(why string) error {
		return Errorf("", KindInvalid, "%q is not a size: %s", s, why).
			WithHint("write a number and a unit: 64M, 64MiB, 0.5G")
	}
	// ParseFloat would also take "inf", "nan", hexadecimal and exponents.
	if text == "" || strings.Trim(text, "0123456789.") != "" {
		return 0, bad("it must be a number with a unit such as M or GiB")
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, bad("it must be a number with a unit such as M or GiB")
	}
	n := f * float64(uint64(1)<<shift)
	switch {
	case n >= math.MaxInt64:
		return 0, bad("it is too large")
	case n < 1:
		return 0, bad("it must be at least one byte")
	}
	return int64(n), nil
}
