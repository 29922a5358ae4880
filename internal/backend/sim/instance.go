package sim

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// instance is a modelled boundary: a machine, its agent, and the line to it.
type instance struct {
	id       sandbox.InstanceID
	host     *host
	enforced sandbox.LimitSet
	created  time.Time
	m        *machine
	line     *line
	stop     chan struct{}  // closed when the boundary begins to end
	ended    chan struct{}  // closed when it has ended and nothing runs
	agent    sync.WaitGroup // the agent's goroutine

	endOnce sync.Once
	exit    sandbox.Exit // set before ended closes

	destroyOnce sync.Once
	receipt     sandbox.Receipt // set by destroyOnce
}

var _ sandbox.Instance = (*instance)(nil)

// ID implements sandbox.Instance.
func (i *instance) ID() sandbox.InstanceID { return i.id }

// serve starts the agent, which answers after boot.
func (i *instance) serve(boot time.Duration) {
	i.agent.Go(func() {
		t := time.NewTimer(boot)
		defer t.Stop()
		select {
		case <-t.C:
		case <-i.stop:
			return
		}
		srv := agent.New(system{i.m}, "sim")
		defer srv.Close()
		// It fails when the line is closed, which is how an instance ends.
		_ = srv.Serve(context.Background(), i.line.guestEnd())
	})
}

// ready waits for the agent's first answer.
func (i *instance) ready(ctx context.Context) error {
	s, err := guest.Open(ctx, i.line.dial(), guest.Config{})
	if err != nil {
		return err
	}
	return s.Close()
}

// end stops the boundary once; all callers return when it has ended.
func (i *instance) end(why sandbox.Reason, detail string) {
	i.endOnce.Do(func() {
		close(i.stop)
		i.line.close()
		i.agent.Wait()
		i.m.halt()
		i.exit = sandbox.Exit{Reason: why, Detail: detail, Time: time.Now().UTC()}
		close(i.ended)
	})
	<-i.ended
}

func (i *instance) alive() bool {
	select {
	case <-i.ended:
		return false
	default:
		return true
	}
}

// Dial implements sandbox.Instance.
func (i *instance) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, sandbox.Wrap("dial", string(i.id), err)
	}
	if !i.alive() {
		return nil, sandbox.Errorf("dial", sandbox.KindGone, "the instance has ended").WithID(string(i.id))
	}
	return i.line.dial(), nil
}

// Status implements sandbox.Instance.
func (i *instance) Status(context.Context) (sandbox.Status, error) { return i.status(), nil }

func (i *instance) status() sandbox.Status {
	st := sandbox.Status{
		Instance: i.id, Alive: i.alive(), Usage: i.m.usage(),
		Enforced: i.enforced, Created: i.created,
	}
	if !st.Alive {
		st.Exit = i.exit
	}
	return st
}

// Wait implements sandbox.Instance.
func (i *instance) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-i.ended:
		return i.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, sandbox.Wrap("wait", string(i.id), ctx.Err())
	}
}

// Destroy implements sandbox.Instance.
func (i *instance) Destroy(context.Context) (sandbox.Receipt, error) {
	i.destroyOnce.Do(func() {
		i.end(sandbox.ReasonOperator, "destroyed")
		i.host.forget(i.id)
		left := len(i.m.list())
		i.receipt = sandbox.Receipt{Instance: i.id, Objects: []sandbox.Object{
			{Kind: "model", Name: string(i.id), Gone: !i.host.has(i.id), Check: "not among the model's instances", Checked: time.Now().UTC()},
			{Kind: "goroutines", Name: "modelled processes", Gone: left == 0, Check: "the modelled process table is empty", Checked: time.Now().UTC()},
		}}.Seal()
	})
	if !i.receipt.Clean {
		return i.receipt, &sandbox.Error{Op: "destroy", ID: string(i.id), Kind: sandbox.KindInternal,
			Err: errors.New("something of the instance is left")}
	}
	return i.receipt, nil
}
