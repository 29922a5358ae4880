// Package driver speaks with the programs that keep an interpreter warm inside a
// sandbox (runtime/python/firebreak_context.py, runtime/node/context.js).
//
//	token := driver.NewToken()
//	stdin ← token.Hello(nil)                       // once
//	stdin ← driver.Turn{Turn: 1, Code: "6*7"}.Line()
//	n, chunk := token.Cut(stdout, false)           // output of user code, or a chunk
//	text, whole := assembly.Add(chunk)             // a message, when it is complete
//	m, err := driver.Parse(text)                   // ready, result, error, end
//
// Commands are lines of JSON on the driver's standard input, which user code does
// not have: the driver moves it away and leaves /dev/null. Messages come among
// what user code prints, so that their order with it is kept, in chunks that one
// write puts into a pipe undivided:
//
//	RS (0x1e), the token, kind, four hex digits: the length, payload
//
// kind is a hex digit: 1 set on the first chunk of a message, 2 on the last. A
// message is a JSON object, so no payload has an RS in it. Each turn ends with one on both outputs, so that the
// host knows that it has all of either.
//
// Code in the interpreter can learn the token and say what it likes in its own
// interpreter's name: who speaks is known by the process whose output it is.
// Every size is bounded, and what is no chunk is output.
package driver
