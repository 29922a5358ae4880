// Package guest speaks to the agent inside a sandbox.
//
// A backend hands out a byte stream (sandbox.Instance.Dial); Open makes a
// Session of it, and everything that happens inside a sandbox goes through
// that one Session:
//
//	s, err := guest.Open(ctx, conn, guest.Config{PIDs: 128, Memory: 256 << 20})
//	p, err := s.Exec(ctx, guest.Command{Argv: []string{"python3", "-c", code}, Timeout: 30 * time.Second})
//	go io.Copy(out, p.Stdout())
//	go io.Copy(errOut, p.Stderr())
//	exit, err := p.Wait(ctx)             // exit.Code, exit.Reason
//	n, err := s.WriteFile(ctx, "in.csv", r, guest.WriteOptions{Parents: true})
//
// The bytes that arrive come from hostile code. A Session therefore keeps
// bounded memory whatever the other end sends, turns every violation into a
// typed error (sandbox.KindProtocol) that ends the session, and never blocks
// longer than the context of the call. A Session that has ended stays ended:
// Dial and Open again, then Reattach to the processes that matter. No output
// byte is lost or repeated by that, even if the previous host process was
// killed in the middle of a frame.
//
// # Wire format
//
// The stream carries frames, each a 16-byte header and a payload, integers
// big-endian:
//
//	magic u16 = 0xfb1e | version u8 = 1 | type u8 | stream u32 | length u32 | crc32c u32
//
// The checksum covers the first 12 bytes and the payload. Control payloads are
// JSON (at most MaxControl bytes, MaxCall towards the guest), data payloads are
// an 8-byte absolute stream offset and at most MaxData raw bytes.
//
//	type       direction  payload
//	reset      →          16-byte nonce, 8-byte epoch
//	resetAck   ←          the nonce, the guest's own 16-byte nonce, the epoch
//	hello      ↔          Hello; → first, quoting the guest's nonce
//	call       →          Call; stream is a fresh id
//	reply      ←          Reply; stream is the call's id
//	cancel     →          nothing: the caller of the call has gone
//	stdin      →          data
//	stdout     ←          data
//	stderr     ←          data
//	file       ↔          data of a read, write, list or dial call
//	window     ↔          channel u8, offset u64: all before offset is consumed
//	end        ↔          channel u8, offset u64: the channel ends there
//	exit       ←          Exit, repeated after a reattach until acknowledged
//	exitAck    →          nothing: the guest may forget the process
//
// Flow control is by absolute offset: a sender may be at most the channel's
// window ahead of the last window frame. What is not acknowledged is kept by
// the guest, so a window frame is credit and acknowledgement in one.
//
// A program with a terminal has its output on stdout, and stderr ends at once. The
// end of its stdin hangs the terminal up. What an agent may not know, a terminal,
// its hello lists as a capability, and the host refuses by that: an unknown field
// is ignored, an unknown operation is answered with KindUnsupported.
//
// # Attaching
//
// On gVisor the stream is a pair of FIFOs that outlive both ends: there is no
// end of file, and what a killed host left in them is still there. So a host
// begins by sending reset with a fresh nonce. The guest, at a frame boundary or
// hunting for one, drops everything in flight and answers resetAck; the host
// discards all bytes up to the resetAck that quotes its nonce, which code in the
// sandbox cannot know. If no answer comes the guest may be waiting for the rest
// of a half frame: the host sends as many zeros as the longest frame has bytes,
// and reset again. The hello that follows must quote the guest's nonce, so that
// bytes of an older connection, found while hunting, can never act as a host.
package guest
