// Package wire makes the far end of a sandbox's network: a network namespace
// with one TAP in it, whose frames come out of a descriptor and go nowhere else.
//
//	link, err := wire.Open(dir, id)     // <dir>/<id> is the namespace
//	spec.Wire = &link.Wire              // a backend plugs it in
//	router.Attach(…, link.Tap)          // a router serves it
//	…
//	link, err = wire.Reopen(dir, id)    // after a restart: the TAP that is there
//	objects, err := wire.Remove(dir, id)
//
// It is the privileged side and no more than that: it parses no frame. Opening
// needs root in the host's user namespace, a descriptor of the TAP needs
// nothing.
//
// # Every wire is the same
//
// Since each has a stack of its own at its far end, all wires have the same
// addresses, and a snapshot is restored on any of them: see the constants.
//
// # What outlives what
//
// The TAP is persistent. A router that dies leaves a link without carrier: the
// guest keeps its device, its frames are dropped by the kernel, and with the
// next Reopen they go on. The namespace is a mount, so it outlives whoever made
// it. Nothing of a wire outlives Remove, except the namespace's empty shell while
// somebody still holds a descriptor of the TAP.
//
// A wire is for one instance: gVisor takes the address off the device when it
// starts on it, and Reopen does not put it back, because a kernel that has the
// address would answer for the guest.
//
// # The second layer
//
// Where the router fails to refuse, the kernel does: nftables chains on the TAP,
// in the guest's direction and in the other, drop every frame that is not ARP
// between guest and gateway, or IPv4 without options and fragments, between the
// two MAC addresses and with the guest's own address, that carries TCP or UDP, or
// ICMP of the guest's; to the guest, UDP of a DNS server's port only. They look at fixed offsets of the frame, as it goes over
// the wire, never at what the kernel made of it. The chains are there before the
// link is up, and a kernel without them gets no wire at all.
//
// The chain towards the guest guards the namespace's kernel. A guest that reads
// the device with a packet socket, as gVisor does, sees frames before any hook of
// the kernel; it has a stack of its own to refuse them with. A machine gets no
// frame that the chain drops.
//
// # Machines
//
//	tap, err := wire.Machines{}.Plug(link.Wire, id, 0) // for its monitor
//	err = wire.Machines{}.Connect(link.Wire)           // now frames pass
//	objects, err := wire.Machines{}.Unplug(link.Wire.NetNS)
//
// The monitor of a virtual machine has a TAP of its own in the namespace, and the
// kernel hands frames over between the two, behind the filter: see Plug.
package wire
