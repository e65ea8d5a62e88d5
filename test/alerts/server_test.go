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

func keystoreDeployment(t *testing.T) *deployment {
	t.Helper()
	return newDeployment(t, newNode(t, nil)).withLoad()
}

var rulesFaults = []fault{
	{phase: phase{name: "kms-acls.xml is broken", alerts: []string{"ClavigerRulesBroken"}},
		symptom: `claviger_check_ok\{check="acls",informational="true"\} 0`,
		begin:   truncated("kms-acls.xml"),
		check: func(d *deployment) {
			d.checkReadyz("acls", "kms-acls.xml")
			d.checkCommand("ClavigerRulesBroken", "claviger acl check --conf", 3, "kms-acls.xml:3: malformed XML",
				"acl", "check", "--conf", d.kms[0].dir)
		}, repair: endFault},
	{phase: phase{name: "kms-site.xml is broken", alerts: []string{"ClavigerCheckFails"}},
		symptom: `claviger_check_ok\{check="configuration",informational="true"\} 0`,
		begin:   truncated("kms-site.xml"),
		check:   func(d *deployment) { d.checkReadyz("configuration", "kms-site.xml") }, repair: endFault},
}

// truncated removes the second half of a file of the configuration.
func truncated(name string) func(d *deployment) {
	return func(d *deployment) {
		path := filepath.Join(d.kms[0].dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			d.t.Fatal(err)
		}
		kmstest.WriteFile(d.t, path, string(text[:len(text)/2]))
		d.endFault = func() { kmstest.WriteFile(d.t, path, string(text)) }
	}
}

func endFault(d *deployment) { d.endFault() }

// auditDeployment makes a KMS whose audit log is on a small file system.
func auditDeployment(t *testing.T) *deployment {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("no file system of a small size can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	d := newDeployment(t, newNode(t, map[string]string{"claviger.audit.json.file": filepath.Join(dir, "audit.json"),
		"claviger.audit.file": filepath.Join(dir, "audit.log")})).withLoad()
	d.auditDir, d.kms[0].losesRecords = dir, true
	return d
}

var auditFaults = []fault{{
	phase: phase{name: "the disk of the audit log is full",
		alerts: []string{"ClavigerAuditFails", "ClavigerNoChanges"}},
	symptom: `claviger_check_ok\{check="audit",informational="false"\} 0`,
	begin: func(d *deployment) {
		f, err := os.Create(filepath.Join(d.auditDir, "filler")) //nolint:gosec // a file of a test
		if err != nil {
			d.t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		_ = f.Close() // the file system is full
		d.untilFaultEnds(func(ctx context.Context) {
			_, _, _ = d.kms[0].request(ctx, http.MethodPost, "/kms/v1/keys?user.name=u", map[string]any{"name": "late"})
			time.Sleep(100 * time.Millisecond) // the pace of the requests
		})
	},
	check: func(d *deployment) { d.checkReadyz("audit", "no space left on device") },
	repair: func(d *deployment) {
		d.endFault()
		if err := os.Remove(filepath.Join(d.auditDir, "filler")); err != nil {
			d.t.Fatal(err)
		}
	},
	after: func(d *deployment) {
		d.kms[0].stopLoad()
		d.kms[0].end()
		d.kms[0].start()
		d.kms[0].end()
		d.checkCommand("ClavigerAuditFails", "claviger audit verify", 0, "an unbroken chain", "audit", "verify",
			filepath.Join(d.auditDir, "audit.json"))
	},
}}

const day = 24 * time.Hour

func tlsDeployment(t *testing.T) *deployment {
	t.Helper()
	n := newNode(t, map[string]string{"hadoop.kms.ssl.enabled": "true"})
	n.withTLS(time.Now().Add(90 * day))
	return newDeployment(t, n).withLoad()
}

// restartWithCertificate starts the KMS again with a certificate that expires after left.
func restartWithCertificate(left time.Duration) func(d *deployment) {
	return func(d *deployment) {
		n := d.kms[0]
		n.end()
		n.certificate(time.Now().Add(left))
		n.start()
	}
}

var certificateFaults = []fault{
	{phase: phase{name: "the certificate ends in 20 days", alerts: []string{"ClavigerCertificateEnds"},
		allowed: []string{"ClavigerCheckFails"}}, lasts: true,
		symptom: `claviger_check_ok\{check="certificates",informational="true"\} 0`,
		begin:   restartWithCertificate(20 * day),
		repair:  func(*deployment) {}},
	{phase: phase{name: "the certificate ends in 2 days",
		alerts:  []string{"ClavigerCertificateEnds", "ClavigerCertificateEndsSoon"},
		allowed: []string{"ClavigerCheckFails"}},
		symptom: `claviger_check_ok\{check="certificates",informational="true"\} 0`,
		begin:   restartWithCertificate(2 * day),
		check: func(d *deployment) {
			d.checkReadyz("certificates", time.Now().Add(2*day).UTC().Format(time.DateOnly))
			d.checkCommand("ClavigerCertificateEndsSoon", "--only D-tls-expiry", 0, "days left: 1", "doctor", "--conf",
				d.kms[0].dir, "--only", "D-tls-expiry")
		},
		repair: func(d *deployment) { d.kms[0].certificate(time.Now().Add(90 * day)) }},
}

func connectionsDeployment(t *testing.T) *deployment {
	t.Helper()
	return newDeployment(t, newNode(t, map[string]string{"claviger.http.max.connections": "40"})).withLoad()
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
		symptom: `claviger_http_connections 3[3-9]`,
		begin: func(d *deployment) {
			var open []net.Conn
			for range 32 {
				open = append(open, d.kms[0].connect())
			}
			d.endFault = func() {
				for _, c := range open {
					_ = c.Close() // it has sent nothing
				}
			}
		},
		repair: func(d *deployment) { d.endFault() }},
	{phase: phase{name: "connections are refused", alerts: []string{"ClavigerOverload"},
		allowed: []string{"ClavigerCheckFails"}},
		symptom: `claviger_http_connections_refused_total [1-9]`, lasts: true,
		begin: func(d *deployment) {
			d.untilFaultEnds(func(context.Context) {
				c := d.kms[0].connect()
				_ = c.SetReadDeadline(time.Now().Add(2 * time.Millisecond)) // an open connection has one
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					_ = c.Close() // refused; the others are closed by the server, after claviger.http.head.timeout
				}
			})
		},
		repair: func(d *deployment) { d.endFault() }},
}

func twoNodeDeployment(t *testing.T) *deployment {
	t.Helper()
	return newDeployment(t, newNode(t, nil), newNode(t, nil)).withLoad()
}

var downFaults = []fault{
	{phase: phase{name: "one KMS of two is down", alerts: []string{"ClavigerDown"}},
		begin: func(d *deployment) { d.kms[0].end() }, repair: func(d *deployment) { d.kms[0].start() }},
	{phase: phase{name: "both are down", alerts: []string{"ClavigerDown", "ClavigerAllDown"}},
		begin: func(d *deployment) {
			for _, n := range d.kms {
				n.end()
			}
		},
		repair: func(d *deployment) {
			for _, n := range d.kms {
				n.start()
			}
		}},
}
