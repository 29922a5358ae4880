// Package internet is an internet for tests, in two network namespaces: one for
// the machine that the test is about, called the host, and one in which every
// address answers. Nothing leads out of them.
//
//	net := internet.New(t)
//	site := net.Site("api.example", internet.Reached)
//	net.Names.Set("evil.example", "127.0.0.1")
//	cmd := exec.Command(firebreak, "serve") // resolves and dials in there
//	err := net.Start(cmd)
//	before := net.Sink.Counts(t)
//	… what must not get out …
//	if n := net.Sink.Counts(t).Since(before).Total(); n.Packets != 0 { … }
//
// # What is there
//
//   - Every IPv4 and IPv6 address that the host does not have itself: ports 80
//     and 8080 speak HTTP/1, 443 and 8443 TLS with HTTP/2, HTTP/1 and WebSocket, 53
//     DNS by UDP and TCP, 853 DNS by TLS, 7 gives back what it gets, 21 speaks first,
//     and 22, 25, 1080, 4444 and 9000 say that they were reached. Other ports refuse.
//   - Sites: names with an address and a handler of their own. Where there is no
//     site the answer is Reached, and at addresses of clouds' metadata a secret.
//   - Names: a DNS server, authoritative and recursive at once for all names there
//     are, which keeps each query.
//   - An authority that certifies any name it is asked for.
//   - Sink: what of all that was sent, counted as it passes the one link between
//     the two, by destination. The kernel's own counter of that link must agree.
//   - Local: servers at the host's own addresses, which nobody outside may reach
//     through it. They count connections.
//
// # The host
//
// It has 10.77.0.2 and fd77::2, the machine's /etc/resolv.conf, and forwards
// packets: a machine that is set up as badly as can be. Whatever name server is
// written there is answered by Names, since every address is; one on loopback is
// answered in the host's namespace. Programs that Start starts see the machine's
// own mounts, so what they mount there is where a test looks for residue.
//
// The namespaces have no name. They go when the test's process ends, however it
// ends, and the programs in them have.
package internet
