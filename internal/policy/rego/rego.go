// Package rego asks modules in Open Policy Agent's language whether they agree
// with what a policy's rules allow.
//
//	table, err := policy.Compile(policy.Options{Judge: rego.Options{}.Judge}, doc)
//
// A module is `package firebreak` and defines `allow`. It is given the connection,
// or the request on one, and the rules that would allow it as input (see Input in the guide), and agrees
// by making data.firebreak.allow exactly true. Anything else denies: false,
// undefined, another type, an error, a time-out. Of several modules all have to
// agree. Modules reach nothing: what reads the network, the clock, the
// environment or randomness does not exist for them, nor does what needs memory
// or time out of proportion to its arguments. The clock is input.now_ns.
package rego

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Options says how modules are run.
type Options struct {
	// Timeout bounds one question to all modules; default 50 ms.
	Timeout time.Duration
	// Now is the clock modules are told; default time.Now.
	Now func() time.Time
}

const (
	maxModule  = 64 << 10 // bytes
	maxNesting = 200      // of brackets
	// maxShared bounds what arrays, sets and objects of variables can describe when
	// they hold each other: 2^maxShared elements. The compiler's types describe all
	// of them, however short the text is.
	maxShared = 16
	// maxAtOnce bounds evaluations at one time, those included that nobody waits for
	// any more.
	maxAtOnce = 8
)

// allowed are the built-in functions of modules: pure, and their results no
// larger than their arguments, so that a chain of them does not double.
var allowed = strings.Fields(`
	assign eq equal neq lt lte gt gte internal.member_2 internal.member_3
	plus minus abs round ceil floor rem div
	and or union intersection set_diff
	count sum max min sort
	array.reverse array.slice
	object.get object.keys object.union object.filter object.remove object.subset
	contains endswith startswith format_int indexof lower upper split substring trim trim_left trim_prefix trim_right trim_space trim_suffix
	strings.any_prefix_match strings.any_suffix_match strings.count strings.reverse
	regex.is_valid regex.match regex.split regex.find_n
	net.cidr_contains net.cidr_intersects net.cidr_is_valid
	time.clock time.date time.weekday time.add_date time.diff time.parse_rfc3339_ns
	is_array is_boolean is_null is_number is_object is_set is_string type_name to_number
`)

// capabilities are the language without what is not allowed.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.AllowNet = []string{}
	c.Builtins = slices.DeleteFunc(slices.Clone(c.Builtins), func(b *ast.Builtin) bool { return !slices.Contains(allowed, b.Name) })
	return c
}

// judge is policy.Judge over modules.
type judge struct {
	options Options
	queries []oparego.PreparedEvalQuery
	slots   chan struct{} // one element for each evaluation that is under way
}

var _ policy.Judge = (*judge)(nil)

// Judge compiles modules. It is what policy.Options.Judge wants. Errors:
// KindInvalid with FILE:LINE, KindTooLarge.
func (o Options) Judge(modules []policy.Module) (policy.Judge, error) {
	if o.Timeout <= 0 {
		o.Timeout = 50 * time.Millisecond
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	j := &judge{options: o, slots: make(chan struct{}, maxAtOnce)}
	for _, m := range modules {
		q, err := compile(m)
		if err != nil {
			return nil, err
		}
		j.queries = append(j.queries, q)
	}
	return j, nil
}

func compile(m policy.Module) (q oparego.PreparedEvalQuery, err error) {
	fail := func(row int, format string, args ...any) error {
		return sandbox.Errorf("policy", sandbox.KindInvalid, "%s:%d: "+format, append([]any{m.File, m.Line + max(row, 1) - 1}, args...)...)
	}
	defer func() { // the library's bugs are no reason to fall
		if p := recover(); p != nil {
			err = fail(1, "this Rego cannot be compiled: %v", p)
		}
	}()
	if len(m.Text) > maxModule {
		return q, sandbox.Errorf("policy", sandbox.KindTooLarge, "%s:%d: Rego has at most 64 KiB", m.File, m.Line)
	}
	if row := tooDeep(m.Text); row > 0 {
		return q, fail(row, "this Rego nests deeper than %d", maxNesting)
	}
	caps := capabilities()
	module, err := ast.ParseModuleWithOpts(m.File, m.Text, ast.ParserOptions{Capabilities: caps, RegoVersion: ast.RegoV1})
	if err != nil {
		return q, explain(err, fail)
	}
	row := module.Package.Location.Row
	if module.Package.Path.String() != "data.firebreak" {
		return q, fail(row, "a policy's Rego is `package firebreak`, this is %s", module.Package)
	}
	if !slices.ContainsFunc(module.Rules, func(r *ast.Rule) bool {
		return r.Head.Ref().String() == "allow" && len(r.Head.Args) == 0 && r.Head.Key == nil
	}) {
		return q, fail(row, "this Rego defines no `allow`, so it would deny everything")
	}
	if row := tooShared(module); row > 0 {
		return q, fail(row, "here are too many arrays, sets and objects of variables")
	}
	c := ast.NewCompiler().WithCapabilities(caps).WithStrict(true)
	if c.Compile(map[string]*ast.Module{m.File: module}); c.Failed() {
		return q, explain(c.Errors, fail)
	}
	// Only booleans leave the evaluation: whatever else the module makes of its input
	// is never copied.
	q, err = oparego.New(oparego.Query("bool := is_boolean(data.firebreak.allow); agreed := data.firebreak.allow == true"), oparego.Compiler(c), oparego.Capabilities(caps),
		oparego.StrictBuiltinErrors(true)).PrepareForEval(context.Background())
	if err != nil {
		return q, explain(err, fail)
	}
	return q, nil
}

// tooDeep returns the line at which brackets nest too deep, 0 for nowhere. It
// counts those in strings and comments, too.
func tooDeep(text string) int {
	depth, row := 0, 1
	for _, c := range []byte(text) {
		switch c {
		case '\n':
			row++
		case '(', '[', '{':
			if depth++; depth > maxNesting {
				return row
			}
		case ')', ']', '}':
			depth = max(depth-1, 0)
		}
	}
	return 0
}

// explain makes the library's errors one of ours: the first, which the others
// often follow from.
func explain(err error, fail func(int, string, ...any) error) error {
	var list ast.Errors
	var one *ast.Error
	switch {
	case errors.As(err, &list) && len(list) > 0:
		one = list[0]
	case !errors.As(err, &one):
		return fail(1, "%w", err)
	}
	row := 1
	if one.Location != nil {
		row = one.Location.Row
	}
	err = fail(row, "%s", one.Message)
	var e *sandbox.Error
	if strings.Contains(one.Message, "undefined function") && errors.As(err, &e) {
		return e.WithHint("a policy's Rego has no network, clock, environment or randomness; the time is input.now_ns")
	}
	return err
}

// tooShared returns the line at which arrays, sets and objects that hold
// something else than constants are too many, 0 for nowhere.
func tooShared(m *ast.Module) (row int) {
	shared := 0.0
	ast.WalkTerms(m, func(t *ast.Term) bool {
		n := 0
		count := func(t *ast.Term) {
			if !constant(t) {
				n++
			}
		}
		switch v := t.Value.(type) {
		case *ast.Array:
			v.Foreach(count)
		case ast.Set:
			v.Foreach(count)
		case ast.Object:
			v.Foreach(func(key, value *ast.Term) { count(key); count(value) })
		}
		if shared += math.Log2(float64(n + 1)); shared > maxShared && row == 0 {
			row = 1
			if t.Location != nil {
				row = t.Location.Row
			}
		}
		return row > 0
	})
	return row
}

// constant reports whether a term is a scalar, or holds nothing else.
func constant(t *ast.Term) bool {
	found := true
	ast.WalkTerms(t, func(t *ast.Term) bool {
		switch t.Value.(type) {
		case ast.Null, ast.Boolean, ast.Number, ast.String, *ast.Array, ast.Set, ast.Object:
		default:
			found = false
		}
		return !found
	})
	return found
}

// Agree implements policy.Judge. A step of an evaluation that takes longer than
// the time there is goes on for itself, and keeps its slot until it is over.
func (j *judge) Agree(ctx context.Context, q policy.Question) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, j.options.Timeout)
	defer cancel()
	if ctx.Err() != nil {
		return false, fmt.Errorf("rego: %w", ctx.Err())
	}
	select {
	case j.slots <- struct{}{}:
	case <-ctx.Done():
		return false, fmt.Errorf("rego: %d evaluations at once: %w", maxAtOnce, ctx.Err())
	}
	type answer struct {
		agreed bool
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		defer func() { <-j.slots }()
		agreed, err := j.evaluate(ctx, q)
		answered <- answer{agreed, err}
	}()
	select {
	case a := <-answered:
		return a.agreed && a.err == nil, a.err
	case <-ctx.Done():
		return false, fmt.Errorf("rego: %w", ctx.Err())
	}
}

// evaluate asks all modules.
func (j *judge) evaluate(ctx context.Context, q policy.Question) (agreed bool, err error) {
	defer func() { // the library's bugs are no reason to fall
		if p := recover(); p != nil {
			agreed, err = false, fmt.Errorf("rego: %v", p)
		}
	}()
	in := input(q, j.options.Now())
	for _, query := range j.queries {
		rs, err := query.Eval(ctx, oparego.EvalParsedInput(in))
		switch {
		case err != nil:
			return false, fmt.Errorf("rego: %w", err)
		case len(rs) == 0: // undefined
			return false, nil
		case len(rs) != 1:
			return false, fmt.Errorf("rego: %d answers", len(rs))
		case rs[0].Bindings["bool"] != true:
			return false, errors.New("rego: allow is neither true nor false")
		case rs[0].Bindings["agreed"] != true:
			return false, nil
		}
	}
	return len(j.queries) > 0, nil
}

// input is what a module sees.
func input(q policy.Question, now time.Time) ast.Value {
	f := q.Flow
	orNull := func(s string) *ast.Term {
		if s == "" {
			return ast.NullTerm()
		}
		return ast.StringTerm(s)
	}
	claimed := ast.NullTerm()
	if f.Claimed.IsValid() {
		claimed = ast.StringTerm(f.Claimed.String())
	}
	ids := make([]*ast.Term, 0, len(q.Candidates))
	for _, r := range q.Candidates {
		ids = append(ids, ast.StringTerm(r.ID))
	}
	return ast.NewObject(
		[2]*ast.Term{ast.StringTerm("host"), ast.StringTerm(f.Host.String())},
		[2]*ast.Term{ast.StringTerm("is_address"), ast.BooleanTerm(f.Host.Name() == "")},
		[2]*ast.Term{ast.StringTerm("port"), ast.IntNumberTerm(int(f.Port))},
		[2]*ast.Term{ast.StringTerm("address"), ast.StringTerm(f.Addr.String())},
		[2]*ast.Term{ast.StringTerm("class"), ast.StringTerm(q.Class.String())},
		[2]*ast.Term{ast.StringTerm("protocol"), ast.StringTerm(f.Protocol.String())},
		[2]*ast.Term{ast.StringTerm("claimed"), claimed},
		[2]*ast.Term{ast.StringTerm("method"), orNull(q.Method)},
		[2]*ast.Term{ast.StringTerm("path"), orNull(q.Path)},
		[2]*ast.Term{ast.StringTerm("binding"), orNull(q.Binding)},
		[2]*ast.Term{ast.StringTerm("rule"), ast.StringTerm(q.Rule.ID)},
		[2]*ast.Term{ast.StringTerm("candidates"), ast.NewTerm(ast.NewArray(ids...))},
		[2]*ast.Term{ast.StringTerm("generation"), ast.UIntNumberTerm(q.Generation)},
		[2]*ast.Term{ast.StringTerm("now_ns"), ast.UIntNumberTerm(uint64(max(now.UnixNano(), 0)))},
	)
}
