package alerts

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"claviger/kms/kmstest"
)

func keystorePlant(t *testing.T) *plant {
	t.Helper()
	return newPlant(t, newNode(t, nil)).loaded()
}

var rulesFaults = []fault{
	{phase: phase{name: "kms-acls.xml is broken", alerts: []string{"ClavigerRulesBroken"}},
		shows: `claviger_check_ok\{check="acls",informational="true"\} 0`, begin: halved("kms-acls.xml"),
		look: func(p *plant) {
			p.readyz("acls", "kms-acls.xml")
			p.shows("ClavigerRulesBroken", "claviger acl check --conf", 3, "kms-acls.xml:3: malformed XML", "acl",
				"check", "--conf", p.kms[0].dir)
		}, mend: putBack},
	{phase: phase{name: "kms-site.xml is broken", alerts: []string{"ClavigerCheckFails"}},
		shows: `claviger_check_ok\{check="configuration",informational="true"\} 0`, begin: halved("kms-site.xml"),
		look: func(p *plant) { p.readyz("configuration", "kms-site.xml") }, mend: putBack},
}

// halved removes the second half of a file of the configuration.
func halved(name string) func(p *plant) {
	return func(p *plant) {
		path := filepath.Join(p.kms[0].dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			p.t.Fatal(err)
		}
		kmstest.WriteFile(p.t, path, string(text[:len(text)/2]))
		p.endFault = func() { kmstest.WriteFile(p.t, path, string(text)) }
	}
}

func putBack(p *plant) { p.endFault() }

// auditPlant has its audit log on a small file system.
func auditPlant(t *testing.T) *plant {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("no file system of a small size can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	p := newPlant(t, newNode(t, map[string]string{"claviger.audit.json.file": filepath.Join(dir, "audit.json"),
		"claviger.audit.file": filepath.Join(dir, "audit.log")})).loaded()
	p.auditDir, p.kms[0].losesRecords = dir, true
	return p
}

var auditFaults = []fault{{
	phase: phase{name: "the disk of the audit log is full",
		alerts: []string{"ClavigerAuditFails", "ClavigerNoChanges"}},
	shows: `claviger_check_ok\{check="audit",informational="false"\} 0`,
	begin: func(p *plant) {
		f, err := os.Create(filepath.Join(p.auditDir, "filler")) //nolint:gosec // a file of a test
		if err != nil {
			p.t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		_ = f.Close() // the file system is full
		p.during(func(ctx context.Context) {
			_, _, _ = p.kms[0].request(ctx, http.MethodPost, "/kms/v1/keys?user.name=u", map[string]any{"name": "late"})
			time.Sleep(100 * time.Millisecond) // the pace of the requests
		})
	},
	look: func(p *plant) { p.readyz("audit", "no space left on device") },
	mend: func(p *plant) {
		p.endFault()
		if err := os.Remove(filepath.Join(p.auditDir, "filler")); err != nil {
			p.t.Fatal(err)
		}
	},
	after: func(p *plant) {
		p.kms[0].stopLoad()
		p.kms[0].end()
		p.kms[0].start()
		p.kms[0].end()
		p.shows("ClavigerAuditFails", "claviger audit verify", 0, "an unbroken chain", "audit", "verify",
			filepath.Join(p.auditDir, "audit.json"))
	},
}}

const day = 24 * time.Hour

func tlsPlant(t *testing.T) *plant {
	t.Helper()
	n := newNode(t, map[string]string{"hadoop.kms.ssl.enabled": "true"})
	n.withTLS(time.Now().Add(90 * day))
	return newPlant(t, n).loaded()
}

// endsIn starts the KMS again with a certificate that ends then.
func endsIn(left time.Duration) func(p *plant) {
	return func(p *plant) {
		n := p.kms[0]
		n.end()
		n.certificate(time.Now().Add(left))
		n.start()
	}
}

var certificateFaults = []fault{
	{phase: phase{name: "the certificate ends in 20 days", alerts: []string{"ClavigerCertificateEnds"},
		allowed: []string{"ClavigerCheckFails"}}, lasts: true,
		shows: `claviger_check_ok\{check="certificates",informational="true"\} 0`, begin: endsIn(20 * day),
		mend: func(*plant) {}},
	{phase: phase{name: "the certificate ends in 2 days",
		alerts:  []string{"ClavigerCertificateEnds", "ClavigerCertificateEndsSoon"},
		allowed: []string{"ClavigerCheckFails"}},
		shows: `claviger_check_ok\{check="certificates",informational="true"\} 0`, begin: endsIn(2 * day),
		look: func(p *plant) {
			p.readyz("certificates", time.Now().Add(2*day).UTC().Format(time.DateOnly))
			p.shows("ClavigerCertificateEndsSoon", "--only D-tls-expiry", 0, "days left: 1", "doctor", "--conf",
				p.kms[0].dir, "--only", "D-tls-expiry")
		},
		mend: func(p *plant) { p.kms[0].certificate(time.Now().Add(90 * day)) }},
}

func connectionsPlant(t *testing.T) *plant {
	t.Helper()
	return newPlant(t, newNode(t, map[string]string{"claviger.http.max.connections": "40"})).loaded()
}

// connect opens a connection to the KMS, and sends nothing.
func (n *node) connect() net.Conn {
	u, err := url.Parse(n.url)
	if err != nil {
		n.t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host) //nolint:noctx // of this test
	if err != nil {
		n.t.Fatal(err)
	}
	return conn
}

var connectionsFaults = []fault{
	{phase: phase{name: "most connections are in use", alerts: []string{"ClavigerOverload"}},
		shows: `claviger_http_connections 3[3-9]`,
		begin: func(p *plant) {
			var open []net.Conn
			for range 32 {
				open = append(open, p.kms[0].connect())
			}
			p.endFault = func() {
				for _, c := range open {
					_ = c.Close() // it has sent nothing
				}
			}
		},
		mend: func(p *plant) { p.endFault() }},
	{phase: phase{name: "connections are refused", alerts: []string{"ClavigerOverload"},
		allowed: []string{"ClavigerCheckFails"}},
		shows: `claviger_http_connections_refused_total [1-9]`, lasts: true,
		begin: func(p *plant) {
			p.during(func(context.Context) {
				c := p.kms[0].connect()
				_ = c.SetReadDeadline(time.Now().Add(2 * time.Millisecond)) // an open connection has one
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					_ = c.Close() // refused; the others are closed by the server, after claviger.http.head.timeout
				}
			})
		},
		mend: func(p *plant) { p.endFault() }},
}

func twoPlant(t *testing.T) *plant {
	t.Helper()
	return newPlant(t, newNode(t, nil), newNode(t, nil)).loaded()
}

var downFaults = []fault{
	{phase: phase{name: "one KMS of two is down", alerts: []string{"ClavigerDown"}},
		begin: func(p *plant) { p.kms[0].end() }, mend: func(p *plant) { p.kms[0].start() }},
	{phase: phase{name: "both are down", alerts: []string{"ClavigerDown", "ClavigerAllDown"}},
		begin: func(p *plant) {
			for _, n := range p.kms {
				n.end()
			}
		},
		mend: func(p *plant) {
			for _, n := range p.kms {
				n.start()
			}
		}},
}
