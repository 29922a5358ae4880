package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
)

// ajarName is the one name that the program with a network may reach. Nobody can have
// registered it.
const ajarName = "allowed.firebreak.test"

// ajar is a sandbox that has a network, and one rule.
func ajar(b *bait) act {
	args := append([]string{ajarName, b.marker, fmt.Sprint(b.sink.port)}, b.sink.hosts...)
	return act{
		name: "door-ajar", title: "A door ajar: one name is allowed, and the program wants all others", limit: "one wire", networked: true,
		options: client.RunOptions{Sandbox: client.CreateOptions{Network: &client.Network{Allow: []string{ajarName}}}, Program: script("ajar", args...)},
		verify: func(_ context.Context, _ *session, run *v1.Run) []finding {
			r, ok := report[struct {
				Devices, Known []string
				Names, Places  map[string]string
			}](run)
			if !ok {
				return nil
			}
			nobody := func(control string, answers map[string]string) finding {
				met := having(answers, "connected")
				return found(len(met) == 0 && len(answers) > 3, control, "%d asked for, %d answered%s: %s", len(answers), len(met), listed(met), tally(answers))
			}
			wires := slices.DeleteFunc(slices.Clone(r.Devices), func(d string) bool { return d == "lo" })
			denied, passed := egressOf(run)
			heard, works := b.sink.heard(b.marker)
			return []finding{
				found(len(wires) == 1, "one wire", "inside: %s", strings.Join(r.Devices, ", ")),
				found(len(r.Known) > 0, "the allowed name", "resolves by the policy alone, nobody was asked: %s", strings.Join(r.Known, ", ")),
				nobody("no other name", r.Names),
				nobody("no other place", r.Places),
				found(works && heard == 0, "nothing heard", "%d bytes at the listener", heard),
				found(denied >= 2 && passed == 0, "on record", "%d kinds of denials, %d of anything else", denied, passed),
			}
		},
	}
}

// egressOf counts what a run was denied, and what passed.
func egressOf(run *v1.Run) (denied, passed int) {
	for _, f := range run.GetEgress() {
		if f.GetDecision() == "deny" {
			denied++
		} else {
			passed++
		}
	}
	return denied, passed
}
