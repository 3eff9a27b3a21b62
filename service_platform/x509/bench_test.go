package x509

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	stdx509 "crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/nats"
)

// cpuOf reports the processor time of an operation, client's and server's where both are here: what a busy machine does not
// change much.
func cpuOf(b *testing.B) (report func()) {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64((used()-before).Microseconds())/float64(b.N), "cpu_us/op") }
}

// BenchmarkSign is the CA's signature alone.
func BenchmarkSign(b *testing.B) {
	a, err := authority.Open(b.TempDir(), authority.Options{})
	if err != nil {
		b.Fatal(err)
	}
	k, err := newKey()
	if err != nil {
		b.Fatal(err)
	}
	defer cpuOf(b)()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := a.Issue(authority.Request{Device: "d-17", Key: k.Public()}); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkIssue is a whole enrolment by request: read and checked, signed, registered on the engine that ships, synced, and
// the certificate handed out. As many ask at once as an import does.
func BenchmarkIssue(b *testing.B) {
	engine, err := nats.Open(b.Context(), nats.Options{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = engine.Close() })
	a := newAPI(b)
	a.bus = engine
	a.start()
	request := string(csr(b, ecKey(b, elliptic.P256()), ""))
	go func() { // nobody listens to the facts
		for range a.heard {
		}
	}()
	b.Cleanup(func() { a.stop(); close(a.heard) })
	var n atomic.Int64
	b.SetParallelism(8 / min(8, runtime.GOMAXPROCS(0)))
	b.ResetTimer()
	defer cpuOf(b)()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if got := a.do("POST", "/api/v1/devices", Enrolment{ID: fmt.Sprint("d-", n.Add(1)), CSR: request}, nil); got != http.StatusCreated {
				b.Errorf("answered %d", got)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certificates/s")
}

// BenchmarkRevocationListOfAMillion signs the list.
func BenchmarkRevocationListOfAMillion(b *testing.B) {
	a, err := authority.Open(b.TempDir(), authority.Options{})
	if err != nil {
		b.Fatal(err)
	}
	entries := make([]stdx509.RevocationListEntry, 1_000_000)
	for i := range entries {
		n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
		entries[i] = stdx509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now()}
	}
	defer cpuOf(b)()
	for b.Loop() {
		der, err := a.RevocationList("", entries)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(der))/1e6, "MB")
	}
}

// BenchmarkAMillionWithdrawn is what a million certificates that were withdrawn cost the CA: to hold them, and to gather and
// sign a list of them.
func BenchmarkAMillionWithdrawn(b *testing.B) {
	ca, err := authority.Open(b.TempDir(), authority.Options{})
	if err != nil {
		b.Fatal(err)
	}
	issuer := hex.EncodeToString(ca.Bundle().Issuing[0].SubjectKeyId)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var x withdrawals
	for i := range 1_000_000 {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
		if err != nil {
			b.Fatal(err)
		}
		raw, err := json.Marshal(revokedCert{Device: fmt.Sprint("d-", i), Serial: n.Text(16), Issuer: issuer, NotAfter: time.Now().Add(day), At: time.Now()})
		if err != nil {
			b.Fatal(err)
		}
		x.apply(bus.Entry{Key: revokedPrefix + authority.Fingerprint(raw), Value: raw})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ResetTimer()
	defer cpuOf(b)()
	for b.Loop() {
		var list []stdx509.RevocationListEntry
		x.each(time.Now(), func(_ string, e stdx509.RevocationListEntry) { list = append(list, e) })
		der, err := ca.RevocationList(issuer, list)
		if err != nil || len(list) != 1_000_000 {
			b.Fatal(len(list), err)
		}
		b.ReportMetric(float64(len(der))/1e6, "MB")
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "B_held_each")
	runtime.KeepAlive(&x)
}

// benchmarkHandshake measures a whole admission over TCP: TLS 1.3 with ECDSA P-256 on both sides, and the door's verdict.
func benchmarkHandshake(b *testing.B, resumed bool) {
	dir := b.TempDir()
	ca, err := authority.Open(dir, authority.Options{})
	if err != nil {
		b.Fatal(err)
	}
	tables := newTables()
	trust, _ := tables.Table(b.Context(), trustTable, bus.TableOptions{})
	if err := publishTrust(b.Context(), trust, ca.Bundle(), false); err != nil {
		b.Fatal(err)
	}
	reg, err := OpenRegistry(b.Context(), tables, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	issued, err := ca.Issue(authority.Request{Device: "d-1"})
	if err != nil {
		b.Fatal(err)
	}
	if _, _, err := reg.Add(b.Context(), Registration{ID: "d-1", Certificate: recordOf(issued.Certificate, time.Now())}); err != nil {
		b.Fatal(err)
	}
	door := NewAdmission(tables, AdmissionOptions{ServerCert: filepath.Join(dir, "server.crt"), ServerKey: filepath.Join(dir, "server.key")})
	ready := make(chan struct{})
	go func() { _ = door.Run(b.Context(), func() { close(ready) }) }()
	<-ready
	conf, err := door.ServerTLS()
	if err != nil {
		b.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				c := nc.(*tls.Conn)
				if c.Handshake() != nil {
					return
				}
				if _, err := door.AdmitClient(b.Context(), ClientOf(c.RemoteAddr().String(), c.ConnectionState())); err == nil {
					_, _ = c.Write([]byte("x"))
				}
			}()
		}
	}()
	pair, err := tls.X509KeyPair(issued.Chain, issued.Key)
	if err != nil {
		b.Fatal(err)
	}
	roots, _ := pools(ca.Bundle())
	visit := func(client *tls.Config) (did bool, err error) {
		c, err := tls.Dial("tcp", l.Addr().String(), client)
		if err != nil {
			return false, err
		}
		defer c.Close()
		if n, err := c.Read(make([]byte, 1)); n != 1 { // and with it comes the ticket for the next time
			return false, err
		}
		return c.ConnectionState().DidResume, nil
	}
	defer cpuOf(b)()
	b.RunParallel(func(p *testing.PB) {
		client := &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}} // of one device
		if resumed {
			client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			if _, err := visit(client); err != nil {
				b.Error(err)
				return
			}
		}
		for p.Next() {
			if did, err := visit(client); err != nil || did != resumed {
				b.Errorf("resumed %v, want %v; %v", did, resumed, err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "handshakes/s")
}

func BenchmarkHandshakeFull(b *testing.B)    { benchmarkHandshake(b, false) }
func BenchmarkHandshakeResumed(b *testing.B) { benchmarkHandshake(b, true) }
