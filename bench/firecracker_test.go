package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/firecracker"
	"github.com/firebreak-dev/firebreak/internal/firecracker/fake"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// standIn makes the test binary a Firecracker of a kind: its API without a machine, and
// a model's agent behind the vsock.
const standIn = "FIREBREAK_BENCH_FIRECRACKER"

func TestMain(m *testing.M) {
	if os.Getenv(standIn) != "" {
		fmt.Fprintln(os.Stderr, serveFake(os.Args[1:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func serveFake(args []string) error {
	if len(args) != 4 || args[0] != "--api-sock" || args[2] != "--level" {
		return fmt.Errorf("arguments %q", args)
	}
	api, err := net.Listen("unix", args[1])
	if err != nil {
		return err
	}
	p := fake.New("1.13.1", ".")
	p.Ended = func() { os.Exit(1) }
	p.Started = func(configured fake.Configuration) {
		l, err := net.Listen("unix", configured["PUT /vsock"]["uds_path"].(string))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go p.ServeVSock(l, fake.Ports{1024: agent})
	}
	return http.Serve(api, p)
}

// agent is a model's.
func agent(c net.Conn) {
	b := sim.New(sim.Config{})
	inst, err := b.Create(context.Background(), sandbox.Spec{Instance: sandbox.NewInstanceID()})
	if err != nil {
		return
	}
	model, err := inst.Dial(context.Background())
	if err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { io.Copy(model, c); model.Close() })
	both.Go(func() { io.Copy(c, model); c.Close() })
	both.Wait()
}

// TestRaw: what is compared with ours does the same work: it boots, and goes on from
// what was saved, as its API has it, and waits for an agent's answer. Nothing is left.
// How long a real one takes is not what this is about.
func TestRaw(t *testing.T) {
	dir, err := os.MkdirTemp("", "fb") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	program := filepath.Join(dir, "firecracker")
	jail, raws := filepath.Join(dir, "jail"), filepath.Join(dir, "raw")
	if err := os.Mkdir(jail, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(raws, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{program: "#!/bin/sh\n" + standIn + "=1 exec " + os.Args[0] + " \"$@\"\n",
		"kernel": "k", "initial": "i", "root.img": "r", "disk": "d"} {
		if !filepath.IsAbs(name) {
			name = filepath.Join(jail, name)
		}
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// One of ours that is the pattern.
	api, err := net.Listen("unix", filepath.Join(jail, rawAPI))
	if err != nil {
		t.Fatal(err)
	}
	pattern := &http.Server{Handler: fake.New("1.13.1", jail)}
	go pattern.Serve(api)
	defer pattern.Close()
	ours := firecracker.Machine{CPUs: 1, MemoryMiB: 128, Kernel: "/kernel", Initial: "/initial", Arguments: "quiet firebreak=eyJ2IjoxMDI0LCJvIjoxMDI1fQ",
		Drives: []firecracker.Drive{{ID: "root", Path: "/root.img", Readonly: true}, {ID: "disk", Path: "/disk"}}, CID: 3, VSock: "/vsock.sock"}
	if err := apiOf(jail).Configure(ctx, ours); err != nil {
		t.Fatal(err)
	}
	r, err := NewRaw(ctx, program, jail, filepath.Join(jail, "disk"), raws)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := r.Save(ctx)
	if err != nil {
		t.Fatal(err)
	}
	model := sim.New(sim.Config{})
	defer model.Close()
	make := func(ctx context.Context) (sandbox.Instance, error) {
		return model.Create(ctx, sandbox.Spec{Instance: sandbox.NewInstanceID()})
	}
	for _, base := range []Column{r.BootColumn(), r.LoadColumn(saved)} {
		res, err := Measure(ctx, Row{Name: "a row", Columns: []Column{base, MachineColumn("ours", make)}, Ours: 1, Goal: 100, Rounds: 2})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(res.Columns, []string{base.Name, "ours"}) || res.Medians[base.Name] <= 0 || res.Medians["ours"] <= 0 || !res.Met {
			t.Errorf("%+v", res)
		}
	}
	list, err := os.ReadDir(raws)
	if err != nil || len(list) != 2 {
		t.Errorf("left: %v, %v", list, err)
	}
	if all, err := model.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("ours left %v, %v", all, err)
	}
	for _, bad := range []string{"quiet", "firebreak=e30", "firebreak=!"} {
		if p, err := portOf(bad); err == nil {
			t.Errorf("%q has the agent at %d", bad, p)
		}
	}
	if _, err := NewRaw(ctx, program, jail, filepath.Join(jail, "no"), t.TempDir()); err == nil || !strings.Contains(err.Error(), "cp") {
		t.Errorf("without a disk: %v", err)
	}
}
