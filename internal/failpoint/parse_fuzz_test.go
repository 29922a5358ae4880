package failpoint

import "testing"

// FuzzParse: whatever arms a point, hits of other points do nothing.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"create/after-intent", "a:2", "a:-1", ":", "::1", "a:99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		if v == "count" {
			return // prints
		}
		hit := parse(v)
		for range 3 {
			hit("other/" + v)
		}
	})
}
