package agent_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// anAuthority is a certificate in PEM, and what OpenSSL calls it.
func anAuthority(t *testing.T, name string) guest.TrustCall {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	return guest.TrustCall{Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), Link: "0123abcd"}
}

func (b *box) read(name string) string {
	b.t.Helper()
	content, err := os.ReadFile(filepath.Join(b.root, name))
	must(b.t, err)
	return string(content)
}

func (b *box) put(name, content string) {
	b.t.Helper()
	must(b.t, os.MkdirAll(filepath.Dir(filepath.Join(b.root, name)), 0o755))
	must(b.t, os.WriteFile(filepath.Join(b.root, name), []byte(content), 0o644))
}

func (b *box) symlink(target, name string) {
	b.t.Helper()
	must(b.t, os.MkdirAll(filepath.Dir(filepath.Join(b.root, name)), 0o755))
	must(b.t, os.Symlink(target, filepath.Join(b.root, name)))
}

// TestTrust: a system as Debian lays it out, then another certificate.
func TestTrust(t *testing.T) {
	b := newBox(t)
	system := anAuthority(t, "system").Certificate
	b.put("etc/ssl/certs/ca-certificates.crt", "# system\n"+system)
	b.symlink("certs/ca-certificates.crt", "etc/ssl/cert.pem")
	b.symlink("/etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt")
	b.put("etc/ssl/certs/other.pem", system)
	b.symlink("other.pem", "etc/ssl/certs/0123abcd.0") // another certificate with the hash
	must(t, os.MkdirAll(filepath.Join(b.root, "usr/local/share/ca-certificates"), 0o755))
	must(t, os.MkdirAll(filepath.Join(b.root, "usr/lib/jvm/java-17/lib/security"), 0o755))
	b.symlink("java-17", "usr/lib/jvm/default")
	b.symlink("/etc/ssl/certs/java/cacerts", "usr/lib/jvm/java-17/lib/security/cacerts") // leads nowhere yet
	s := b.open(guest.Config{})
	c := ctx(t)
	old, next := anAuthority(t, "old"), anAuthority(t, "next")
	must(t, s.Trust(c, old))
	must(t, s.Trust(c, next))
	must(t, s.Trust(c, next))
	for _, name := range []string{"etc/ssl/certs/ca-certificates.crt", "etc/firebreak/ca-bundle.pem"} {
		got := b.read(name)
		if strings.Count(got, "BEGIN CERTIFICATE") != 2 || !strings.HasPrefix(got, "# system\n"+system) || !strings.Contains(got, next.Certificate) {
			t.Errorf("%s: %s", name, got)
		}
		if st, err := os.Stat(filepath.Join(b.root, name)); err != nil || st.Mode() != 0o644 {
			t.Errorf("%s: %v %v", name, st, err)
		}
	}
	for _, name := range []string{"etc/firebreak/ca.pem", "etc/ssl/certs/0123abcd.1", "usr/local/share/ca-certificates/firebreak.crt"} {
		if got := b.read(name); got != next.Certificate {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := b.read("etc/ssl/certs/0123abcd.0"); got != system {
		t.Errorf("another's link is changed: %s", got)
	}
	if _, err := os.Lstat(filepath.Join(b.root, "etc/ssl/certs/0123abcd.2")); err == nil {
		t.Error("a second link")
	}
	if st, err := os.Lstat(filepath.Join(b.root, "etc/ssl/cert.pem")); err != nil || st.Mode().Type() != os.ModeSymlink {
		t.Errorf("a link became a file: %v", err)
	}
	b.java("etc/ssl/certs/java/cacerts", 2)
	if _, err := os.Stat(filepath.Join(b.root, "etc/firebreak/cacerts")); err == nil {
		t.Error("a store of ours that no Java needs")
	}
	left, err := filepath.Glob(filepath.Join(b.root, "etc/*/.*"))
	must(t, err)
	more, err := filepath.Glob(filepath.Join(b.root, "etc/ssl/certs/.*"))
	must(t, err)
	if len(left)+len(more) > 0 {
		t.Errorf("left behind: %v %v", left, more)
	}
}

// java has Java's tool read a store.
func (b *box) java(name string, certificates int) {
	b.t.Helper()
	if !strings.HasPrefix(b.read(name), "\xfe\xed\xfe\xed") {
		b.t.Errorf("%s is no keystore", name)
	}
	if _, err := exec.LookPath("keytool"); err != nil {
		b.t.Skip("not run: there is no keytool here")
	}
	out, err := exec.Command("keytool", "-list", "-keystore", filepath.Join(b.root, name), "-storepass", "changeit").CombinedOutput()
	if n := strings.Count(string(out), "trustedCertEntry"); err != nil || n != certificates {
		b.t.Errorf("%s has %d certificates: %v %s", name, n, err, out)
	}
}

// TestTrustElsewhere: systems that lay it out otherwise, or have nothing.
func TestTrustElsewhere(t *testing.T) {
	ours := anAuthority(t, "ours")
	system := anAuthority(t, "system").Certificate
	t.Run("nothing", func(t *testing.T) {
		b := newBox(t)
		must(t, b.open(guest.Config{}).Trust(ctx(t), ours))
		for _, name := range []string{"etc/ssl/certs/ca-certificates.crt", "etc/firebreak/ca-bundle.pem"} {
			if got := b.read(name); strings.Count(got, "BEGIN CERTIFICATE") != 1 || !strings.Contains(got, ours.Certificate) {
				t.Errorf("%s: %s", name, got)
			}
		}
		if got := b.read("etc/ssl/certs/0123abcd.0"); got != ours.Certificate {
			t.Error(got)
		}
		if _, err := os.Stat(filepath.Join(b.root, "etc/firebreak/cacerts")); err == nil {
			t.Error("a store of Java's without a Java")
		}
	})
	t.Run("Red Hat", func(t *testing.T) {
		b := newBox(t)
		b.put("etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", system)
		b.symlink("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "etc/pki/tls/certs/ca-bundle.crt")
		b.symlink("../pki/tls/certs", "etc/ssl/certs")
		must(t, os.MkdirAll(filepath.Join(b.root, "etc/pki/ca-trust/source/anchors"), 0o755))
		must(t, b.open(guest.Config{}).Trust(ctx(t), ours))
		for _, name := range []string{"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "etc/firebreak/ca-bundle.pem"} {
			if got := b.read(name); strings.Count(got, "BEGIN CERTIFICATE") != 2 {
				t.Errorf("%s: %s", name, got)
			}
		}
		if b.read("etc/pki/ca-trust/source/anchors/firebreak.pem") != ours.Certificate || b.read("etc/pki/tls/certs/0123abcd.0") != ours.Certificate {
			t.Error("no anchor, or no link")
		}
	})
	t.Run("read-only", func(t *testing.T) {
		b := newBox(t)
		b.put("etc/ssl/certs/ca-certificates.crt", system)
		call := ours
		call.ReadOnly = true
		must(t, b.open(guest.Config{}).Trust(ctx(t), call))
		if got := b.read("tmp/.firebreak/ca-bundle.pem"); strings.Count(got, "BEGIN CERTIFICATE") != 2 || b.read("tmp/.firebreak/ca.pem") != ours.Certificate {
			t.Error(got)
		}
		if b.read("etc/ssl/certs/ca-certificates.crt") != system {
			t.Error("the system's list is changed")
		}
	})
	t.Run("a Java of the image's", func(t *testing.T) {
		b := newBox(t)
		b.put("etc/ssl/certs/ca-certificates.crt", system)
		b.put("opt/own/lib/security/cacerts", "\x30\x82\x01\x00 of Java 21")
		call := ours
		call.Java = []string{"/opt/own", "relative", "/missing"}
		must(t, b.open(guest.Config{}).Trust(ctx(t), call))
		b.java("opt/own/lib/security/cacerts", 2)
	})
}

// TestTrustIsNotLedAstray: what an image puts in the way is not written through, not
// waited for, and fails with words.
func TestTrustIsNotLedAstray(t *testing.T) {
	ours := anAuthority(t, "ours")
	b := newBox(t)
	b.symlink("/etc/passwd", "etc/ssl/certs/ca-certificates.crt")
	b.symlink("/home/user", "etc/firebreak")
	b.put("etc/pki/tls/certs/ca-bundle.crt/file", "a directory has the name")
	b.symlink("/etc/ssl/cert.pem", "etc/ssl/cert.pem")
	must(t, unix.Mkfifo(filepath.Join(b.root, "etc/pki/tls/cert.pem"), 0o666))
	must(t, unix.Mkfifo(filepath.Join(b.root, "etc/ssl/ca-bundle.pem"), 0o666))
	b.put("var/lib/ca-certificates/ca-bundle.pem", "-----BEGIN CERTIFICATE-----\n")
	must(t, os.Truncate(filepath.Join(b.root, "var/lib/ca-certificates/ca-bundle.pem"), 1<<40))
	must(t, os.MkdirAll(filepath.Join(b.root, "usr/lib/jvm/a/lib/security"), 0o755))
	b.symlink("/etc/group", "usr/lib/jvm/a/lib/security/cacerts")
	must(t, os.MkdirAll(filepath.Join(b.root, "usr/lib/jvm/b/lib/security"), 0o755))
	b.symlink("/home/user/new", "usr/lib/jvm/b/lib/security/cacerts")
	passwd, group := b.read("etc/passwd"), b.read("etc/group")
	s := b.open(guest.Config{})
	must(t, s.Trust(ctx(t), ours))
	if b.read("etc/passwd") != passwd || b.read("etc/group") != group {
		t.Error("what is no list of certificates was changed")
	}
	if names, err := os.ReadDir(filepath.Join(b.root, "home/user")); err != nil || len(names) != 0 {
		t.Errorf("written where a link led: %v %v", names, err)
	}
	if got := b.read("etc/firebreak/ca.pem"); got != ours.Certificate {
		t.Error(got)
	}
	for name, bad := range map[string]guest.TrustCall{
		"no certificate": {Link: "01234567"},
		"not one":        {Certificate: "x", Link: "01234567"},
		"two":            {Certificate: ours.Certificate + ours.Certificate, Link: "01234567"},
		"a path":         {Certificate: ours.Certificate, Link: "../../xx"},
		"many Javas":     {Certificate: ours.Certificate, Link: "01234567", Java: make([]string, 33)},
	} {
		want(t, name, s.Trust(ctx(t), bad), sandbox.KindInvalid)
	}
	// A directory that a program made before, where there is nothing else to write.
	must(t, os.Mkdir(filepath.Join(b.root, "tmp/.firebreak"), 0o777))
	must(t, os.Chown(filepath.Join(b.root, "tmp/.firebreak"), 1000, 1000))
	call := ours
	call.ReadOnly = true
	want(t, "another's directory", s.Trust(ctx(t), call), sandbox.KindConflict)
	if names, err := os.ReadDir(filepath.Join(b.root, "tmp/.firebreak")); err != nil || len(names) != 0 {
		t.Errorf("written into another's directory: %v %v", names, err)
	}
	must(t, os.Remove(filepath.Join(b.root, "tmp/.firebreak")))
	b.symlink("/home/user", "tmp/.firebreak")
	must(t, s.Trust(ctx(t), call))
	if st, err := os.Lstat(filepath.Join(b.root, "tmp/.firebreak")); err != nil || !st.IsDir() {
		t.Errorf("%v %v", st, err)
	}
	if bytes.Contains([]byte(b.read("tmp/.firebreak/ca-bundle.pem")), []byte("root:x")) {
		t.Error("another file's content is in the list")
	}
}
