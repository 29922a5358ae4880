package agent_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// watching is a watch of a home directory, read by a goroutine.
type watching struct {
	t      *testing.T
	root   string // of what is watched, on this side
	events chan guest.FileEvent
	end    chan error
	seen   []string
	marks  int
}

func watchDir(t *testing.T, b *box, s *guest.Session, dir string, recursive bool) *watching {
	t.Helper()
	c, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	w, err := s.Watch(c, dir, guest.WatchOptions{Recursive: recursive})
	must(t, err)
	x := &watching{t: t, root: filepath.Join(b.root, "home/user", dir), events: make(chan guest.FileEvent), end: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer w.Close()
		for {
			e, err := w.Next(c)
			if err != nil {
				x.end <- err
				return
			}
			select {
			case x.events <- e:
			case <-c.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return x
}

// until reads up to the event and returns everything before it.
func (x *watching) until(kind, path string) []string {
	x.t.Helper()
	x.seen = nil
	timeout := time.After(time.Minute)
	for {
		select {
		case e := <-x.events:
			if e.Type == kind && e.Path == path {
				return x.seen
			}
			x.seen = append(x.seen, e.Type+" "+e.Path)
		case err := <-x.end:
			x.t.Fatalf("ended (%v) before %s %q, after %q", err, kind, path, x.seen)
		case <-timeout:
			x.t.Fatalf("no %s %q; after %q", kind, path, x.seen)
		}
	}
}

// settled makes a file that was never there and returns all before its event.
func (x *watching) settled() []string {
	x.t.Helper()
	x.marks++
	name := "mark" + strconv.Itoa(x.marks)
	must(x.t, os.Mkdir(filepath.Join(x.root, name), 0o755))
	return x.until(guest.EventCreate, name)
}

func wantEvents(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q\nwant %q", what, got, want)
	}
}

func TestWatch(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	c := ctx(t)
	must(t, s.Mkdir(c, "w/sub", "", 0o777, true))
	must(t, s.Mkdir(c, "w", "", 0o777, true))
	x := watchDir(t, b, s, "w", false)

	must(t, os.WriteFile(x.root+"/a", []byte("1"), 0o644)) // by another process
	wantEvents(t, "another's file", x.settled(), "create a", "write a")
	must(t, os.Chmod(x.root+"/a", 0o600))
	must(t, os.Rename(x.root+"/a", x.root+"/b"))
	must(t, os.Remove(x.root+"/b"))
	wantEvents(t, "its life", x.settled(), "chmod a", "rename a", "create b", "remove b")
	must(t, os.WriteFile(x.root+"/sub/deep", nil, 0o644))
	must(t, os.Symlink("/etc", x.root+"/link"))
	must(t, unix.Mkfifo(x.root+"/fifo", 0o600))
	wantEvents(t, "others", x.settled(), "create link", "create fifo")

	// The agent's own writes: no temporary name, and what they are.
	_, err := s.WriteFile(c, "w/api", strings.NewReader("1"), guest.WriteOptions{})
	must(t, err)
	wantEvents(t, "a new file", x.settled(), "create api", "write api")
	_, err = s.WriteFile(c, "w/api", strings.NewReader("2"), guest.WriteOptions{})
	must(t, err)
	wantEvents(t, "written again", x.settled(), "write api")
	_, err = s.WriteFile(c, "w/api", strings.NewReader("3"), guest.WriteOptions{Append: true})
	must(t, err)
	must(t, s.Move(c, "w/api", "w/sub/api", ""))
	must(t, s.Mkdir(c, "w/d", "", 0, false))
	must(t, s.Remove(c, "w/d", guest.RemoveOptions{}))
	wantEvents(t, "the rest", x.settled(), "write api", "rename api", "create d", "remove d")

	// Names as they come.
	for _, name := range []string{"two\nlines", "\x1b[2J", "tab\t\"quote\"", "ü", strings.Repeat("x", 255)} {
		must(t, os.Mkdir(x.root+"/"+name, 0o755))
		wantEvents(t, name, x.settled(), "create "+name)
	}
	must(t, os.Mkdir(x.root+"/bad\xff", 0o755))
	wantEvents(t, "no UTF-8", x.settled(), "create bad\uFFFD")
}

func TestWatchRecursive(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	c := ctx(t)
	must(t, s.Mkdir(c, "w/a/b", "", 0, true))
	must(t, s.Mkdir(c, "elsewhere/sub", "", 0, true))
	x := watchDir(t, b, s, "w", true)
	home := filepath.Dir(x.root)
	touch := func(p string) { t.Helper(); must(t, os.Mkdir(p, 0o755)) }

	touch(x.root + "/a/b/f")
	wantEvents(t, "below", x.settled(), "create a/b/f")

	// What comes with a directory is reported, whenever it came.
	must(t, os.MkdirAll(x.root+"/n1/n2/n3", 0o755))
	touch(x.root + "/n1/n2/n3/f")
	got := x.settled()
	for _, e := range []string{"create n1", "create n1/n2", "create n1/n2/n3", "create n1/n2/n3/f"} {
		if !slices.Contains(got, e) {
			t.Errorf("%q lacks %q", got, e)
		}
	}
	must(t, os.Rename(home+"/elsewhere", x.root+"/in"))
	wantEvents(t, "moved in", x.settled(), "create in", "create in/sub")
	touch(x.root + "/in/sub/f")
	wantEvents(t, "in it", x.settled(), "create in/sub/f")

	// A renamed directory goes by its new name, also below.
	must(t, os.Rename(x.root+"/n1", x.root+"/a/m1"))
	wantEvents(t, "renamed", x.settled(), "rename n1", "create a/m1")
	touch(x.root + "/a/m1/n2/g")
	wantEvents(t, "in it", x.settled(), "create a/m1/n2/g")

	// One that left is none of ours.
	must(t, os.Rename(x.root+"/a/m1", home+"/out"))
	must(t, os.Symlink(home+"/out", x.root+"/link"))
	must(t, os.Symlink("/home/user/out", x.root+"/link2"))
	x.settled()
	time.Sleep(300 * time.Millisecond) // longer than a rename may take
	touch(home + "/out/n2/h")
	wantEvents(t, "outside", x.settled())

	must(t, os.RemoveAll(x.root+"/in"))
	must(t, os.Remove(x.root+"/link"))
	got = x.settled()
	if !slices.Contains(got, "remove in") || !slices.Contains(got, "remove in/sub") || !slices.Contains(got, "remove link") {
		t.Errorf("removed: %q", got)
	}
	// One that could not be read is seen once it can.
	must(t, os.Mkdir(x.root+"/shut", 0o700)) // root's
	touch(x.root + "/shut/unseen")
	x.settled()
	must(t, os.Chmod(x.root+"/shut", 0o755))
	x.until(guest.EventCreate, "shut/unseen")
}

// TestWatchEnds: a watch is of a directory at a path, in a session.
func TestWatchEnds(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	c := ctx(t)
	for what, end := range map[string]func(root string){
		"removed": func(root string) { must(t, os.RemoveAll(root)) },
		"renamed": func(root string) { must(t, os.Rename(root, root+".away")) },
	} {
		must(t, s.Mkdir(c, "w/sub", "", 0, true))
		x := watchDir(t, b, s, "w", true)
		end(x.root)
		for over := false; !over; {
			select {
			case <-x.events:
			case err := <-x.end:
				if over = true; err != io.EOF {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
	}
	must(t, s.Mkdir(c, "w", "", 0, true))
	x := watchDir(t, b, s, "w", true)
	s.Close()
	want(t, "session closed", <-x.end, sandbox.KindCanceled)

	s = b.open(guest.Config{})
	for range 100 { // each is given back
		one, cancel := context.WithCancel(c)
		w, err := s.Watch(one, "w", guest.WatchOptions{Recursive: true})
		for sandbox.KindOf(err) == sandbox.KindCapacity && c.Err() == nil { // the agent hears of an end a moment later
			w, err = s.Watch(one, "w", guest.WatchOptions{Recursive: true})
		}
		must(t, err)
		cancel()
		_, err = w.Next(one)
		want(t, "cancelled", err, sandbox.KindCanceled)
		must(t, w.Close())
		must(t, s.Ping(c))
	}
}

func TestWatchIsBounded(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	c := ctx(t)
	for _, tt := range []struct {
		path string
		kind sandbox.Kind
	}{
		{"missing", sandbox.KindNotFound}, {"/etc/passwd", sandbox.KindNotDirectory}, {"/root", sandbox.KindDenied},
		{"/proc", sandbox.KindUnsupported}, {"/proc/self/fd", sandbox.KindUnsupported}, {"a\x00b", sandbox.KindInvalid},
	} {
		_, err := s.Watch(c, tt.path, guest.WatchOptions{Recursive: true})
		want(t, tt.path, err, tt.kind)
	}
	for i := range 8200 {
		must(t, os.MkdirAll(fmt.Sprintf("%s/home/user/wide/%d/%d", b.root, i/100, i), 0o755))
	}
	_, err := s.Watch(c, "wide", guest.WatchOptions{Recursive: true})
	want(t, "too many directories", err, sandbox.KindTooLarge)
	must(t, os.MkdirAll(b.root+"/home/user/deep/"+strings.Repeat("d/", 200), 0o755))
	_, err = s.Watch(c, "deep", guest.WatchOptions{Recursive: true})
	want(t, "too deep", err, sandbox.KindTooLarge)

	// A tree that outgrows the bound says so, and goes on.
	must(t, s.Mkdir(c, "w", "", 0, true))
	x := watchDir(t, b, s, "w", true)
	must(t, os.Rename(b.root+"/home/user/wide", x.root+"/wide"))
	x.until(guest.EventOverflow, "")
	must(t, os.Mkdir(x.root+"/after", 0o755))
	x.until(guest.EventCreate, "after")

	for range 15 {
		w, err := s.Watch(c, "/tmp", guest.WatchOptions{})
		must(t, err)
		defer w.Close()
	}
	_, err = s.Watch(c, "/tmp", guest.WatchOptions{})
	want(t, "too many watches", err, sandbox.KindCapacity)
	if _, err := s.Stat(c, "/tmp", ""); err != nil {
		t.Errorf("watches keep others from working: %v", err)
	}
}

// TestWatchOverflow: nobody reads while more happens than is kept. That is said,
// and what happens later is seen again.
func TestWatchOverflow(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	c := ctx(t)
	must(t, s.Mkdir(c, "w", "", 0, true))
	w, err := s.Watch(c, "w", guest.WatchOptions{Recursive: true})
	must(t, err)
	defer w.Close()
	root := b.root + "/home/user/w"
	pad := strings.Repeat("x", 200)
	for i := range 100_000 {
		fd, err := unix.Open(fmt.Sprintf("%s/%s%d", root, pad, i), unix.O_CREAT|unix.O_WRONLY, 0o644)
		must(t, err)
		unix.Close(fd)
	}
	must(t, os.Mkdir(root+"/last", 0o755))
	overflow, n := false, 0
	for !overflow {
		e, err := w.Next(c)
		must(t, err)
		n++
		overflow = e.Type == guest.EventOverflow
	}
	t.Logf("%d events before the overflow", n)
	for i := 0; ; i++ {
		must(t, os.Mkdir(root+"/again"+strconv.Itoa(i), 0o755))
		e, err := w.Next(c)
		must(t, err)
		if strings.HasPrefix(e.Path, "again") {
			break
		}
	}
}

// TestWatchStorm: whatever is renamed, made and removed, and in whatever order
// the agent comes to see it: once it is quiet, each directory of the tree is
// watched, under the name it has.
func TestWatchStorm(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	c, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	must(t, s.Mkdir(c, "w", "", 0, true))
	x := watchDir(t, b, s, "w", true)
	outside := b.root + "/home/user/outside"
	must(t, os.Mkdir(outside, 0o755))
	drained := make(chan struct{})
	for range 5 {
		go func() { // somebody reads
			for {
				select {
				case <-x.events:
				case <-drained:
					return
				}
			}
		}()
		dirs := func(root string) (all []string) {
			_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					all = append(all, p)
				}
				return nil
			})
			return all
		}
		for range 2000 {
			in, out := dirs(x.root), dirs(outside)
			pick := func() string {
				if r.IntN(8) == 0 {
					return out[r.IntN(len(out))]
				}
				return in[r.IntN(len(in))]
			}
			p := pick() + "/" + strconv.Itoa(r.IntN(4))
			switch k := r.IntN(10); {
			case k < 5 && len(in) < 200:
				_ = os.Mkdir(p, 0o755)
			case k < 9:
				if q := pick(); q != x.root && q != outside {
					_ = os.Rename(q, p)
				}
			case len(in) > 30:
				if q := pick(); q != x.root && q != outside {
					_ = os.RemoveAll(q)
				}
			}
		}
		drained <- struct{}{}
		x.settled()
		time.Sleep(300 * time.Millisecond)
		for i, d := range dirs(x.root) {
			name := fmt.Sprintf("probe%d-%d", i, r.Uint32())
			must(t, os.WriteFile(d+"/"+name, nil, 0o644))
			rel, _ := filepath.Rel(x.root, d+"/"+name)
			x.until(guest.EventCreate, rel)
			must(t, os.Remove(d+"/"+name))
		}
	}
}
