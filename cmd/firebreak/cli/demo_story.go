package cli

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// story tells a demo in lines of at most storyWidth columns. A nil story tells
// nothing.
type story struct {
	w      io.Writer
	colour bool
}

const (
	storyWidth = 80
	findingAt  = 32 // the column where what was measured begins
	runAt      = 13 // and where what a sandbox took does
)

// story is coloured where a person watches and did not ask for none
// (https://no-color.org).
func (a *App) story() *story {
	none, _ := a.Lookup("NO_COLOR")
	kind, _ := a.Lookup("TERM")
	return &story{a.Out, terminal(a.Out) && none == "" && kind != "dumb"}
}

// The colours in use.
const (
	bold   = "1"
	dim    = "2"
	red    = "1;31"
	green  = "32"
	yellow = "33"
)

func (s *story) paint(colour, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (s *story) begin(b *bait, backend *v1.Backend) {
	if s == nil {
		return
	}
	fmt.Fprintln(s.w, s.paint(bold, "Programs that nobody reviewed, each in a sandbox of its own, here and now."))
	if backend.GetEmulated() {
		s.note(fmt.Sprintf("Made by %s, emulated: as strong as with KVM, and many times slower.", backend.GetName()))
	}
	fmt.Fprintf(s.w, "Bait: a made-up secret lies in a file that everybody may read (mode 0666) and in\nthe environment of this process. It begins with %s.\n", b.secret[:11])
}

// note is a line for whoever waits.
func (s *story) note(text string) {
	if s != nil {
		fmt.Fprintln(s.w, s.paint(dim, text))
	}
}

func (s *story) scene(n int, sc *scene) {
	if s == nil {
		return
	}
	fmt.Fprintf(s.w, "\n%s\n", s.paint(bold, fmt.Sprintf("%2d  %s", n, sc.Title)))
}

func (s *story) finding(f finding) {
	if s == nil {
		return
	}
	mark, colour := "held", green
	switch f.Outcome {
	case failed:
		mark, colour = "FAILED", red
	case refused:
		mark, colour = "refused", yellow
	case absent:
		mark, colour = "absent", yellow
	}
	lines := wrap(visible(f.Measured), storyWidth-findingAt)
	fmt.Fprintf(s.w, "    %s %-18s %s\n", s.paint(colour, fmt.Sprintf("%-8s", mark)), f.Control, lines[0])
	for _, l := range lines[1:] {
		fmt.Fprintf(s.w, "%*s%s\n", findingAt, "", l)
	}
}

// ran says what a scene's sandbox took.
func (s *story) ran(r *sceneRun) {
	if s == nil {
		return
	}
	line := fmt.Sprintf("made %.0f ms, ran %.0f ms, gone %.0f ms", r.Create, r.Execute, r.Destroy)
	if r.MemoryPeak > 0 { // nobody measures it for a user without cgroups
		line += fmt.Sprintf("; %.0f ms CPU, peak %s", r.CPU, sandbox.FormatSize(r.MemoryPeak))
	}
	for _, l := range wrap(line, storyWidth-runAt) {
		fmt.Fprintf(s.w, "%*s%s\n", runAt, "", s.paint(dim, l))
	}
}

func (s *story) end(d *demo) {
	if s == nil {
		return
	}
	colour := green
	if d.Failed > 0 {
		colour = red
	}
	fmt.Fprintf(s.w, "\n%s", s.paint(colour, fmt.Sprintf("%d controls held, %d did not; %.1f s.", d.Held, d.Failed, float64(d.Millis)/1000)))
	if d.Refused > 0 {
		fmt.Fprintf(s.w, "\n%d cannot be enforced here and %s refused; `firebreak doctor` says why.", d.Refused, map[bool]string{true: "was", false: "were"}[d.Refused == 1])
	}
	if d.Absent > 0 {
		fmt.Fprintf(s.w, "\n%d cannot be shown on this backend, which is said above.", d.Absent)
	}
	if d.Failed == 0 {
		fmt.Fprint(s.w, "\nYour turn: firebreak run -c 'print(6*7)', firebreak audit verify")
	}
	fmt.Fprintln(s.w)
}

// wrap breaks text at spaces into lines of at most width characters, and longer
// words where they reach it. There is at least one line.
func wrap(text string, width int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		for utf8.RuneCountInString(word) > width {
			if line != "" {
				lines, line = append(lines, line), ""
			}
			r := []rune(word)
			lines, word = append(lines, string(r[:width])), string(r[width:])
		}
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			lines, line = append(lines, line), word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
