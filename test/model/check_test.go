package model

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds the search for an order. What is not decided by then fails.
const patience = time.Minute

// check looks for an order that the model allows.
func (h *history) check() porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(lifecycle, h.project(), patience)
}

// mustBeLegal fails the test if there is none, and says how far it is possible
// to go: the steps of the objects that are wrong, and a page to look at.
func (h *history) mustBeLegal(t *testing.T) {
	t.Helper()
	if h.check() == porcupine.Ok {
		return
	}
	result, info := porcupine.CheckOperationsVerbose(lifecycle, h.project(), patience)
	t.Errorf("%s: no order of these calls is allowed", result)
	objects := wrong(h.project())
	for _, object := range objects[:min(5, len(objects))] {
		t.Error(object)
	}
	t.Errorf("%d objects are wrong", len(objects))
	f, err := os.CreateTemp("", "firebreak-history-*.html")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := porcupine.Visualize(lifecycle, info, f); err != nil {
		t.Fatal(err)
	}
	t.Errorf("to look at it: %s", f.Name())
}

// wrong describes each object whose history is not allowed: the longest legal
// beginning that was found, and what then cannot follow.
func wrong(ops []porcupine.Operation) (out []string) {
	for _, part := range lifecycle.Partition(ops) {
		result, info := porcupine.CheckOperationsVerbose(lifecycle, part, patience)
		if result == porcupine.Ok {
			continue
		}
		var longest []porcupine.Operation
		for _, order := range info.PartialLinearizationsOperations()[0] {
			if len(order) > len(longest) {
				longest = order
			}
		}
		var b strings.Builder
		b.WriteString(string(result) + "\n")
		taken := map[porcupine.Operation]int{}
		for _, op := range longest {
			taken[op]++
			line(&b, "  ", op)
		}
		b.WriteString("  and then none of\n")
		for _, op := range part {
			if taken[op]--; taken[op] < 0 {
				line(&b, "- ", op)
			}
		}
		out = append(out, b.String())
	}
	return out
}

func line(b *strings.Builder, mark string, op porcupine.Operation) {
	end := "…"
	if op.Return < int64(never) {
		end = time.Duration(op.Return).Round(time.Microsecond).String()
	}
	b.WriteString(mark + "[" + time.Duration(op.Call).Round(time.Microsecond).String() + " " + end + "] " + op.Input.(input).String() + "\n")
}
