// Package inspect speaks HTTP/1.1 with a sandbox and sends what it asks for on to
// the one host a binding is for, with the binding's secret added. The sandbox
// never sees that.
//
//	p, err := inspect.New(inspect.Options{Dial: dial, Decide: decide, Refused: refused}, targets)
//	p.Serve(ctx, conn, "openai")
//	p.Close()
//
// A request is read twice: its head byte by byte, where whatever two readers could
// take for two things is refused, and then by net/http. What goes on is written
// anew from what was understood: nothing is spliced, no connection is shared
// between bindings, and none is upgraded.
//
// A request that holds one of the secrets, as it is or encoded, goes nowhere, and
// where one stands in a response there are stars instead.
package inspect
