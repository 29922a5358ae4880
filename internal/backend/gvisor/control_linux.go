package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A sentry is told to start its guest, to save itself, and what to go on from, over the
// control socket that runsc made for it in the instance's directory. No runsc is started,
// or kept at work, for that: it would take as long as what it asks for.
//
// The calls are those of the version of gVisor in go.mod, as its package urpc sends
// them: JSON, with descriptors beside it. TestCalls here and in cmd/firebreak-runsc
// compare them.

// maxAnswer bounds what is read of an answer: a sentry that has run a guest is not
// trusted to be brief.
const maxAnswer = 64 << 10

// call has the sentry do something and returns when it has. The end of ctx ends the
// wait, not what the sentry does.
func (i *Instance) call(ctx context.Context, method string, arg any, files ...*os.File) error {
	conn, err := i.control(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	request, err := json.Marshal(controlCall{method, arg})
	if err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for k, f := range files {
			fds[k] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	n, _, err := conn.WriteMsgUnix(request, rights, nil)
	if err == nil && n < len(request) {
		_, err = conn.Write(request[n:])
	}
	var answer struct {
		Success bool   `json:"success"`
		Err     string `json:"err"`
	}
	if err == nil {
		err = json.NewDecoder(io.LimitReader(conn, maxAnswer)).Decode(&answer)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("the sentry does not answer: %w", err)
	case !answer.Success:
		return fmt.Errorf("the sentry refuses: %.1000q", answer.Err)
	}
	return nil
}

// control connects to the sentry. The way to the socket is a descriptor, since an
// address has room for 108 bytes.
func (i *Instance) control(ctx context.Context) (*net.UnixConn, error) {
	dir, err := os.Open(i.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	name := filepath.Join(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), dirState, "runsc-"+string(i.id)+".sock")
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", name)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err // without the path
		}
		return nil, fmt.Errorf("connect to the sentry: %w", err)
	}
	return c.(*net.UnixConn), nil
}

type (
	// controlCall is a request of package urpc.
	controlCall struct {
		Method string `json:"method"`
		Arg    any    `json:"arg"`
	}
	// saveCall is control.SaveOpts.
	saveCall struct {
		Metadata      map[string]string `json:"metadata"`
		HavePagesFile bool              `json:"have_pages_file"`
		Resume        bool
	}
	// networkCall is boot.CreateLinksAndRoutesArgs.
	networkCall struct {
		LoopbackLinks []loopbackLink
		IsRestore     bool
	}
	loopbackLink struct {
		Name      string
		Addresses []linkAddress
		Routes    []linkRoute
	}
	linkAddress struct {
		Address   net.IP
		PrefixLen int
	}
	linkRoute struct{ Destination net.IPNet }
	// restoreCall is boot.RestoreOpts.
	restoreCall struct{ HavePagesFile bool }
)

// Names of the calls.
const (
	callSave    = "containerManager.Checkpoint"
	callNetwork = "containerManager.SetNetworkArgs"
	callRestore = "containerManager.Restore"
	callStart   = "containerManager.StartRoot"
)

// whole is how an image is written: uncompressed, which costs more to read back than it
// saves, and the guest goes on.
var whole = saveCall{map[string]string{"compression": "none"}, true, true}

// alone is the network of a sandbox that has none: itself. restored: for a guest that
// goes on.
func alone(restored bool) networkCall {
	return networkCall{IsRestore: restored, LoopbackLinks: []loopbackLink{{
		Name:      "lo",
		Addresses: []linkAddress{{net.IPv4(127, 0, 0, 1), 8}, {net.IPv6loopback, 128}},
		Routes: []linkRoute{
			{net.IPNet{IP: net.IPv4(127, 0, 0, 0), Mask: net.CIDRMask(8, 32)}},
			{net.IPNet{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)}},
		},
	}}}
}

// imageNames are the files of an image, in the order in which a sentry takes them:
// its own state, which pages of memory there are, and what is in them.
var imageNames = []string{"checkpoint.img", "pages_meta.img", "pages.img"}

// saveInto has the sentry write its image into files, and the guest go on.
func (i *Instance) saveInto(ctx context.Context, files []*os.File) error {
	i.saving.Lock()
	defer i.saving.Unlock()
	return i.call(ctx, callSave, whole, files...)
}

// goOnFrom gives a sentry without a guest, which has been told of its network, that of
// an image, which runs from then on.
func (i *Instance) goOnFrom(ctx context.Context, files []*os.File) error {
	return i.call(ctx, callRestore, restoreCall{true}, files...)
}

// start has a sentry without a guest run the one of its bundle, which has no network. The
// processes are there when it is called: what has a network is started by runsc, which
// finds the links of its namespace.
func (i *Instance) start(ctx context.Context) error {
	if err := i.call(ctx, callNetwork, alone(false)); err != nil {
		return err
	}
	return i.call(ctx, callStart, i.id)
}
