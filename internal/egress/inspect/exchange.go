package inspect

import (
	"context"
	"io"
	"net/http"
	"time"
)

// small is how long a body may be to be looked through before the first byte of
// its request is sent on.
const small = 64 << 10

// Asker decides about the requests of one connection. Its methods are called at
// once for those of HTTP/2.
type Asker interface {
	// Decide is asked about a request before anything of it is sent on, and records
	// what it says; nil: it goes on. The path is as it was sent.
	Decide(ctx context.Context, method, path string) *Refusal
	// Refused is told of what is refused apart from that, also later.
	Refused(method string, no *Refusal)
}

// session is one connection of a sandbox.
type session struct {
	proxy  *Proxy
	route  *route
	ask    Asker
	narrow bool // of Visit
}

// front is the sandbox's side of one request, in its version of HTTP.
type front interface {
	// watch calls gone when the sandbox goes away while it waits for an answer. stop
	// ends that.
	watch(gone func()) (stop func())
	// refuse answers a request that is not sent on; nil: nobody is there to read it.
	// again: another may follow.
	refuse(no *Refusal) (again bool)
	// reply answers with what a host answered. again: another may follow.
	reply(ctx context.Context, a *answer) (again bool)
}

// upload is the body of a request as the sandbox sends it.
type upload interface {
	io.Reader
	whole() bool // it was read to its end
	lend()       // to who sends the request on
	end()        // whoever reads it stops
}

// exchange is one request and its answer.
type exchange struct {
	*session
	with  *grants
	front front
	head  head
	req   *http.Request
	body  upload
	key   string // of a WebSocket that is asked for
}

// run sends a request on and its answer back, and reports whether another request
// may follow.
func (x *exchange) run(ctx context.Context) (again bool) {
	p := x.proxy
	x.with = p.use()
	defer p.leave(x.with)
	if no := x.renew(); no != nil {
		return x.deny(no)
	}
	out, no := x.outgoing()
	if no != nil {
		return x.deny(no)
	}
	select {
	case p.requests <- struct{}{}:
		defer func() { <-p.requests }()
	default:
		return x.deny(&Refusal{Status: http.StatusServiceUnavailable, Reason: ReasonLimit, Text: "the sandbox has too many requests at once"})
	}
	sent, no := x.outgoingBody(out)
	if no != nil {
		return x.deny(no)
	}
	if no := x.ask.Decide(ctx, x.head.method, out.URL.EscapedPath()); no != nil {
		return x.say(no)
	}
	x.arm(out)
	return x.send(ctx, out, sent)
}

// deny tells of a refusal that has a reason, and says it.
func (x *exchange) deny(no *Refusal) (again bool) {
	if no.Reason != "" {
		x.ask.Refused(x.head.method, no)
	}
	return x.say(no)
}

func (x *exchange) say(no *Refusal) (again bool) {
	if no.result != nil {
		x.swallow()
	}
	return x.front.refuse(no)
}

// send has the request go on and the answer come back.
func (x *exchange) send(ctx context.Context, out *http.Request, sent *sending) (again bool) {
	p := x.proxy
	ctx, cancel := context.WithCancel(ctx)
	idle := time.AfterFunc(p.o.Idle, cancel)
	defer func() {
		cancel()
		x.body.end()
		<-sent.done // who sends the request on has let go of it
		idle.Stop()
	}()
	sent.alive = func() { idle.Reset(p.o.Idle) }
	sent.tell = func() {
		x.ask.Refused(x.head.method, sent.why)
		cancel()
	}
	stop := func() {}
	if x.body.whole() {
		stop = x.front.watch(cancel)
	}
	resp, err := x.route.transport.RoundTrip(out.WithContext(ctx))
	switch {
	case err != nil:
	case x.head.socket && resp.StatusCode == http.StatusSwitchingProtocols:
		stop() // it would read what the frames are read from
		again = x.socket(ctx, resp, sent.alive)
	default:
		again = x.answer(ctx, resp, sent.alive)
	}
	stop()
	if err == nil {
		return again
	}
	idled := !idle.Stop()
	switch {
	case sent.leaked.Load():
		return x.say(sent.why)
	case sent.failed.Load():
		return x.say(&Refusal{Status: http.StatusBadRequest, Text: "the body cannot be read", close: true})
	case ctx.Err() == nil || idled:
		return x.deny(x.route.why(err))
	}
	return x.front.refuse(nil) // the sandbox has gone, or the wire
}

// maxSwallow is how much of a refused push is read, and thrown away.
const maxSwallow = 256 << 20

// swallow reads what is left of a refused push: git reads no answer before it has
// sent all of it.
func (x *exchange) swallow() {
	_, _ = io.Copy(io.Discard, io.LimitReader(x.body, maxSwallow)) // what fails, fails again for the answer
}
