package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// What may be asked of a router. Each is answered, but for opNames and opAck.
const (
	opStart  = "start"  // first, once
	opNames  = "names"  // how names are resolved has changed
	opAttach = "attach" // with the TAP
	opUpdate = "update"
	opGrant  = "grant" // bindings and transforms, and nothing else, are others
	opDetach = "detach"
	opStats  = "stats" // also whether it still answers
	opAck    = "ack"
	opStop   = "stop" // answered when all wires are detached
)

// down is a message to the router.
type down struct {
	Op    string `json:"op"`
	Ref   uint64 `json:"ref,omitempty"` // of the answer
	ID    string `json:"id,omitempty"`  // attach, update, grant, detach: the wire
	Start *start `json:"start,omitempty"`
	Names *names `json:"names,omitempty"`
	Wire  *wire  `json:"wire,omitempty"` // attach, update; of grant its bindings and transforms
	Ack   *ack   `json:"ack,omitempty"`
}

// start is what a router is told first.
type start struct {
	Private []netip.Prefix `json:"private,omitempty"`
	Names   names          `json:"names"`
	Roots   []byte         `json:"roots,omitempty"` // certificates in PEM
}

// names are the files that say how names are resolved, which the router cannot
// open.
type names struct {
	Resolv []byte `json:"resolv,omitempty"` // resolv.conf
	Hosts  []byte `json:"hosts,omitempty"`
}

// wire is what a router serves.
type wire struct {
	Policies
	Epoch int                    `json:"epoch"`
	Used  map[string]policy.Used `json:"used,omitempty"`
	// Bindings and Transforms are all there are from now on.
	Bindings   []egress.Binding     `json:"bindings,omitempty"`
	Transforms []egress.Transform   `json:"transforms,omitempty"`
	Authority  *authority.Authority `json:"authority,omitempty"` // not of a grant
}

// ack says that all events up to Seq are recorded, apart from Failed.
type ack struct {
	Seq    uint64   `json:"seq"`
	Failed []uint64 `json:"failed,omitempty"`
}

// up is a message from the router: an answer, an event, or what was used.
type up struct {
	Ref        uint64                            `json:"ref,omitempty"`
	Error      *failure                          `json:"error,omitempty"`
	Notes      []string                          `json:"notes,omitempty"` // start
	Generation uint64                            `json:"generation,omitempty"`
	Closed     int                               `json:"closed,omitempty"`
	Used       map[string]policy.Used            `json:"used,omitempty"`
	Stats      *egress.Stats                     `json:"stats,omitempty"`
	Seq        uint64                            `json:"seq,omitempty"`
	Event      *egress.Event                     `json:"event,omitempty"`
	Usage      map[string]map[string]policy.Used `json:"usage,omitempty"` // by wire and rule
}

// failure is a *sandbox.Error on its way.
type failure struct {
	Kind    sandbox.Kind `json:"kind"`
	Message string       `json:"message"`
	Hint    string       `json:"hint,omitempty"`
}

func failureOf(err error) *failure {
	f := &failure{Kind: sandbox.KindOf(err), Message: err.Error()}
	var e *sandbox.Error
	if errors.As(err, &e) {
		f.Message, f.Hint = e.Message(), e.Hint
	}
	f.Message, f.Hint = cut(f.Message, maxText), cut(f.Hint, maxText)
	return f
}

func (f *failure) err(op, id string) error {
	e := sandbox.Errorf(op, f.Kind, "%s", f.Message).WithID(id)
	e.Hint = f.Hint
	return e
}

const (
	maxText   = 2 << 10 // bytes of a message or a hint
	maxNotes  = 16
	maxWires  = 4096
	maxClosed = 1 << 20 // connections of one wire
)

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// wireID is what ids of wires look like: those of instances, and nothing that
// could be anything else in a record.
var wireID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

// decode reads one JSON object and nothing after it.
func decode(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is something after the message")
	}
	return nil
}

// decodeDown reads a message to the router that came with a descriptor or not.
func decodeDown(b []byte, descriptor bool) (*down, error) {
	m := new(down)
	if err := decode(b, m); err != nil {
		return nil, err
	}
	has := func(ref, id, start, names, wire, ack bool) bool {
		return ref == (m.Ref != 0) && id == wireID.MatchString(m.ID) && (id || m.ID == "") && start == (m.Start != nil) && names == (m.Names != nil) &&
			wire == (m.Wire != nil) && ack == (m.Ack != nil) && descriptor == (m.Op == opAttach)
	}
	ok := false
	switch m.Op {
	case opStart:
		ok = has(true, false, true, false, false, false)
	case opNames:
		ok = has(false, false, false, true, false, false)
	case opAttach:
		ok = has(true, true, false, false, true, false) && m.Wire.Epoch >= 0 && m.Wire.granted() && checkAuthority(m.Wire.Authority) == nil
	case opUpdate:
		ok = has(true, true, false, false, true, false) && m.Wire.Epoch >= 0 && m.Wire.granted() && checkAuthority(m.Wire.Authority) == nil
	case opGrant:
		ok = has(true, true, false, false, true, false) && m.Wire.Epoch == 0 && m.Wire.granted() && m.Wire.Authority == nil && m.Wire.Documents == nil && m.Wire.Used == nil
	case opDetach:
		ok = has(true, true, false, false, false, false)
	case opStats, opStop:
		ok = has(true, false, false, false, false, false)
	case opAck:
		ok = has(false, false, false, false, false, true)
	}
	if !ok {
		return nil, fmt.Errorf("%.20q is no request, or not a whole one", m.Op)
	}
	return m, nil
}

// granted reports whether bindings and transforms are no more than they may be.
func (w *wire) granted() bool {
	return checkBindings(w.Bindings) == nil && checkTransforms(w.Transforms) == nil
}

// decodeUp reads a message from the router. What it returns has the form of one;
// whether it was asked for, and by whom, is for others to say.
func decodeUp(b []byte) (*up, error) {
	m := new(up)
	if err := decode(b, m); err != nil {
		return nil, err
	}
	answer, event, usage := m.Ref != 0, m.Event != nil, m.Usage != nil
	switch {
	case answer && !event && !usage && m.Seq == 0:
		return m, m.checkAnswer()
	case event && !answer && !usage && m.Seq != 0 && m.bare():
		return m, checkEvent(m.Event)
	case usage && !answer && !event && m.Seq == 0 && m.bare():
		if len(m.Usage) > maxWires {
			return nil, errors.New("too many wires")
		}
		for _, used := range m.Usage {
			if err := checkUsed(used); err != nil {
				return nil, err
			}
		}
		return m, nil
	}
	return nil, errors.New("neither an answer nor an event nor what was used")
}

// bare reports whether nothing of an answer is there.
func (m *up) bare() bool {
	return m.Error == nil && m.Notes == nil && m.Generation == 0 && m.Closed == 0 && m.Used == nil && m.Stats == nil
}

func (m *up) checkAnswer() error {
	if m.Closed < 0 || m.Closed > maxClosed || len(m.Notes) > maxNotes {
		return errors.New("an answer that cannot be")
	}
	if e := m.Error; e != nil && (!knownKind(e.Kind) || len(e.Message) > maxText || len(e.Hint) > maxText) {
		return errors.New("an error that cannot be")
	}
	for _, n := range m.Notes {
		if len(n) > maxText {
			return errors.New("too long a note")
		}
	}
	if s := m.Stats; s != nil && min(int64(s.Wires), int64(s.Connections), s.Allowed, s.Denied, s.Upload, s.Download) < 0 {
		return errors.New("statistics that cannot be")
	}
	return checkUsed(m.Used)
}

func knownKind(k sandbox.Kind) bool {
	switch k {
	case sandbox.KindInvalid, sandbox.KindNotFound, sandbox.KindExists, sandbox.KindUnsupported, sandbox.KindCapacity, sandbox.KindTooLarge,
		sandbox.KindTimeout, sandbox.KindCanceled, sandbox.KindUnavailable, sandbox.KindInternal, sandbox.KindConflict, sandbox.KindDenied:
		return true
	}
	return false
}

func checkUsed(used map[string]policy.Used) error {
	for _, u := range used {
		if min(u.Upload, u.Download, u.Connections, u.Concurrent, u.Names) < 0 {
			return errors.New("less than nothing was used")
		}
	}
	return nil
}

// checkEvent holds an event against what one can be: it becomes evidence, and is
// shown to people.
func checkEvent(e *egress.Event) error {
	switch e.Kind {
	case egress.KindDNS, egress.KindConnect, egress.KindClose, egress.KindRequest:
	default:
		return errors.New("an event of no kind")
	}
	switch e.Decision {
	case egress.Allow, egress.Deny, egress.Observe:
	default:
		return errors.New("an event without a decision")
	}
	if e.Upload < 0 || e.Download < 0 || e.Count < 0 || !wireID.MatchString(e.Wire) {
		return errors.New("an event that cannot be")
	}
	for _, f := range texts(e) {
		if len(*f.text) > f.max || strings.ContainsFunc(*f.text, unprintable) {
			return errors.New("an event with a text that cannot be")
		}
	}
	return nil
}

// texts are an event's, and how long they may be.
func texts(e *egress.Event) [8]struct {
	text *string
	max  int
} {
	return [8]struct {
		text *string
		max  int
	}{{&e.Host, 300}, {&e.Address, 64}, {&e.Protocol, 32}, {&e.Rule, maxRuleID}, {&e.Reason, 64}, {&e.Hint, maxText}, {&e.Binding, 64}, {&e.Method, 32}}
}

func unprintable(r rune) bool { return r < ' ' || r == 0x7f }

// tidy makes texts of an honest event such that checkEvent takes them: a hint may
// quote what a sandbox sent.
func tidy(e *egress.Event) {
	for _, f := range texts(e) {
		*f.text = cut(strings.Map(func(r rune) rune {
			if unprintable(r) {
				return utf8.RuneError
			}
			return r
		}, *f.text), f.max)
	}
}

// near is e's time, if it is about now, and otherwise now: clocks of two
// processes of one machine agree.
func near(t, now time.Time) time.Time {
	if d := now.Sub(t); d > time.Minute || d < -time.Minute {
		return now
	}
	return t
}
