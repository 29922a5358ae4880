package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificate is one in DER.
func certificate(t testing.TB, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func text(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// TestTrusting: ours is in a list once, the latest, and leaves no trace.
func TestTrusting(t *testing.T) {
	old, next := text(certificate(t, "old")), text(certificate(t, "next"))
	for _, list := range []string{"", "\n", old, "# a comment\n" + old + "\n", strings.TrimSuffix(old, "\n")} {
		one := trusting([]byte(list), old)
		two := trusting(one, next)
		if n := bytes.Count(two, []byte(trustBegin)); n != 1 || !bytes.Contains(two, []byte(next)) || !bytes.HasPrefix(two, []byte(list)) {
			t.Errorf("%q became %q", list, two)
		}
		if got, want := len(certificatesOf(two)), len(certificatesOf([]byte(list)))+1; got != want {
			t.Errorf("%d certificates, want %d", got, want)
		}
		if again := trusting(two, next); !bytes.Equal(again, two) {
			t.Errorf("again: %q", again)
		}
		if back := distrusting(two); strings.TrimSpace(string(back)) != strings.TrimSpace(list) {
			t.Errorf("without: %q, was %q", back, list)
		}
	}
	// What an image says may be half of what we say.
	for _, list := range []string{trustBegin, trustBegin + trustBegin, trustEnd, trustBegin + old, trustEnd + trustBegin} {
		got := trusting([]byte(list), next)
		if n := bytes.Count(got, []byte(trustBegin)); n != 1 || !bytes.HasSuffix(got, []byte(trustBegin+next+trustEnd)) {
			t.Errorf("%q became %q", list, got)
		}
	}
}

// TestKeystore: Java's own tool reads what is written, and what it has written is
// kept, but for an earlier one of ours.
func TestKeystore(t *testing.T) {
	a, b, old, ours := certificate(t, "a"), certificate(t, "b"), certificate(t, "old"), certificate(t, "ours")
	store := keystore(nil, []byte(text(a)+text(b)+text(ours)), ours)
	entries, err := decodeJKS(store)
	if err != nil || len(entries) != 3 || entries[2].alias != jksAlias || !bytes.HasSuffix(entries[2].raw, ours) {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if again := keystore(store, nil, ours); !bytes.Equal(again, store) {
		t.Error("again: another store")
	}
	next := keystore(keystore(nil, []byte(text(a)), old), nil, ours)
	if entries, err := decodeJKS(next); err != nil || len(entries) != 2 || bytes.Contains(next, old) {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if _, err := exec.LookPath("keytool"); err != nil {
		t.Skip("not run: there is no keytool here")
	}
	dir := t.TempDir()
	keytool := func(args ...string) string {
		out, err := exec.Command("keytool", append(args, "-storepass", jksPassword)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	path := filepath.Join(dir, "ours")
	if err := os.WriteFile(path, store, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := keytool("-list", "-v", "-keystore", path); strings.Count(out, "trustedCertEntry") != 3 || !strings.Contains(out, jksAlias) || !strings.Contains(out, "CN=ours") || !strings.Contains(out, "JKS") {
		t.Errorf("keytool: %s", out)
	}
	// One of Java's, with a private key in it.
	path = filepath.Join(dir, "theirs")
	keytool("-genkeypair", "-alias", "mine", "-keyalg", "EC", "-dname", "CN=mine", "-keypass", jksPassword, "-storetype", "JKS", "-keystore", path)
	pemFile := filepath.Join(dir, "a.pem")
	if err := os.WriteFile(pemFile, []byte(text(a)), 0o600); err != nil {
		t.Fatal(err)
	}
	keytool("-importcert", "-noprompt", "-alias", "a", "-file", pemFile, "-keystore", path)
	theirs, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, keystore(theirs, []byte(text(b)), ours), 0o600); err != nil {
		t.Fatal(err)
	}
	out := keytool("-list", "-v", "-keystore", path)
	for _, want := range []string{"PrivateKeyEntry", "Alias name: mine", "Alias name: a\n", "Alias name: " + jksAlias, "contains 3 entries"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
}

// FuzzKeystore: a store that may be anything is read as one or not, in little
// memory, and what is made of it is one.
func FuzzKeystore(f *testing.F) {
	ours := []byte("certificate")
	f.Add(keystore(nil, nil, ours))
	f.Add(encodeJKS([]jksEntry{trustedEntry("a", []byte("x")), trustedEntry(jksAlias, ours)}))
	f.Add([]byte{0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x30, 0x82})
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := decodeJKS(b)
		made := keystore(b, nil, ours)
		again, e := decodeJKS(made)
		if e != nil || len(again) == 0 || again[len(again)-1].alias != jksAlias {
			t.Fatalf("%d entries, %v", len(again), e)
		}
		n := 0
		for _, x := range entries {
			if x.alias != jksAlias {
				n++
			}
		}
		if err == nil && n < maxEntries && len(again) != n+1 {
			t.Errorf("%d entries became %d", n, len(again))
		}
	})
}

func TestIsKeystore(t *testing.T) {
	for b, want := range map[string]bool{"": false, "\xfe\xed\xfe\xed": true, "\x30\x82\x01\x00": true, "0123": false, "root:x:0:0": false} {
		if isKeystore([]byte(b)) != want {
			t.Errorf("%q: %v", b, !want)
		}
	}
	for s, want := range map[string]bool{"": false, "01234567": true, "0123456g": false, "../../xx": false, "012345678": false, "ABCDEF01": false} {
		if isHash(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
	if fmt.Sprint(isBundle(nil), isBundle([]byte("root:x:0:0\n")), isBundle([]byte(text([]byte("x"))))) != "true false true" {
		t.Error("what is a list of certificates")
	}
}
