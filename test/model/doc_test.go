// Package model checks concurrent histories of API calls against a model of
// what a sandbox is.
//
// Clients of two tenants call a server, each at its own pace, and note when
// they asked, when they were answered, and what. Afterwards porcupine looks for
// an order of the calls that the model allows and that respects real time: a
// call that was answered before another was sent comes before it. If there is
// none, the server told somebody something untrue.
//
// # The model
//
// What a tenant sees falls apart into objects that hardly know each other, and
// a history is right exactly if it is for each of them (what spans several at
// one instant, as a list does, is checked for each object in it, which is
// weaker):
//
//	sandbox    absent → creating → running → stopping → ended, and the moment, before
//	           stopping is seen, from which no new work is taken; the time it ends by
//	           itself; one reason and one receipt, for ever
//	name       held by one live sandbox of the tenant from its intent to its end
//	key        an Idempotency-Key: one body, and one sandbox however often it is sent
//	quota      how many of the tenant's sandboxes have not ended (by bounds: see quota_test.go)
//	file       a register per sandbox and path: a write is whole and not forgotten
//	stranger   what the other tenant is told about any of this: not_found
//
// One call may take effect in several steps that others can see between: a
// create is intent and ready, an end is decided, journalled and over. Each step
// is an operation of its own within the call's time. A call whose answer was
// lost (cancelled, connection cut, server killed) may take effect at any time
// after it was sent, or never: its steps end at infinity.
package model
