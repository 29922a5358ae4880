package hostile

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/roots"
)

// byMachine are the cases that are carried out from a machine, too: those whose
// programs use a network as a kernel of one's own lets them, and some of what is
// decided about connections and names.
var byMachine = []int{1, 5, 7, 8, 10}

// TestEgressMachine carries out attacks of TestEgress from one sandbox with a kernel of
// its own, one after the other, with the rules of each: nothing arrives anywhere but
// what they allow. Where the machine is emulated it has its time, not another verdict.
func TestEgressMachine(t *testing.T) {
	bin := built(t)
	if testing.Short() {
		t.Skip("not run: -short, and it boots a machine")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("not run: there is no QEMU (apt-get install qemu-system-x86)")
	}
	if found, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64"); len(found) == 0 {
		t.Skip("not run: there is no kernel to boot (apt-get install linux-image-cloud-amd64)")
	}
	o := newOutside(t)
	w := serveIn(t, bin, o, "SSL_CERT_FILE="+o.Authority.File)
	if _, errs, code := w.cli("template", "build", "small", "--dir", roots.Python(t, "curl")); code != 0 {
		t.Fatalf("template: %s", errs)
	}
	id := w.create(t, `"backend":"microvm","template":"small","limits":{`+roomy+`,"cpus":2},"network":`+allowing("api.example"))
	begin, done := o.mark(t), []int{}
	for _, a := range egressAttacks {
		if a.number == 8 {
			a.act, a.run, a.with, a.limits, a.reasons, a.prints, a.check = nil, []string{"net_link.py", "2606:4700::8", "10.200.0.2"}, attempts, roomy, "done", "tried", noFindings
		}
		if !slices.Contains(byMachine, a.number) || slices.Contains(done, a.number) {
			continue
		}
		done = append(done, a.number)
		t.Run(a.title(), func(t *testing.T) {
			if status, r := w.do("PUT", "/v1/sandboxes/"+id+"/network", a.network); status != http.StatusOK {
				t.Fatalf("%d %s", status, r.body)
			}
			a.timeout = max(4*a.timeout, time.Minute)
			w.runProgram(t, a, id)
			w.wanted(t, id, a.wants)
		})
	}
	for _, l := range o.leaks(t, begin) {
		t.Error(l)
	}
	w.destroy(t, id)
}
