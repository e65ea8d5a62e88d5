package alerts

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/faultmodule"
	"claviger/internal/softhsm"
	"claviger/kms/kmstest"
)

// hsmDeployment makes a KMS on a token with that label.
func hsmDeployment(label string) func(t *testing.T) *deployment {
	return func(t *testing.T) *deployment {
		t.Helper()
		return newDeployment(t, newHSMNode(t, label, map[string]string{
			"hadoop.security.kms.encrypted.key.cache.size":             "10",
			"hadoop.security.kms.encrypted.key.cache.num.fill.threads": "1"})).withLoad()
	}
}

// delayEncrypt delays each encryption of the HSM.
func delayEncrypt(length time.Duration) func(d *deployment) {
	return func(d *deployment) { d.kms[0].module.Delay(faultmodule.Encrypt, length) }
}

func heal(d *deployment) { d.kms[0].module.Heal() }

var hsmFaults = []fault{
	{phase: phase{name: "each encryption fails",
		alerts:  []string{"ClavigerNotReady", "ClavigerHSMFails", "ClavigerErrors"},
		allowed: []string{"ClavigerCheckFails", "ClavigerHSMLost"}}, // the server logs in repeatedly
		symptom: `claviger_ready\{for="decrypt"\} 0`, begin: func(d *deployment) {
			d.kms[0].module.Order(faultmodule.EncryptInit, faultmodule.Order{Action: faultmodule.Fail,
				Value: p11.CKR_DEVICE_ERROR, Times: faultmodule.Always})
		}, check: func(d *deployment) {
			d.checkReadyz("provider", "CKR_DEVICE_ERROR")
			d.checkCommand("ClavigerHSMFails", "claviger hsm inspect --conf", 1, "CKR_DEVICE_ERROR", "hsm", "inspect",
				"--conf", d.kms[0].dir)
		}, repair: heal},
	{phase: phase{name: "an encryption takes 60 ms", alerts: []string{"ClavigerHSMSlow"},
		allowed: []string{"ClavigerQueueDry"}},
		begin: delayEncrypt(60 * time.Millisecond), repair: heal},
	{phase: phase{name: "an encryption takes 300 ms", pause: 700 * time.Millisecond,
		alerts: []string{"ClavigerHSMSlow", "ClavigerSlow"}, allowed: []string{"ClavigerQueueDry"}},
		begin: delayEncrypt(300 * time.Millisecond), repair: heal},
	{phase: phase{name: "an encryption takes 2.05 s", pause: 2500 * time.Millisecond,
		alerts:  []string{"ClavigerHSMSlow", "ClavigerSlow", "ClavigerVerySlow"},
		allowed: []string{"ClavigerQueueDry"}},
		begin: delayEncrypt(2050 * time.Millisecond), repair: heal},
}

var queueFaults = []fault{
	{phase: phase{name: "logins are lost", pause: time.Second, alerts: []string{"ClavigerHSMLost"},
		allowed: []string{"ClavigerErrors", "ClavigerHSMFails"}}, begin: loseLogins,
		repair: func(d *deployment) { d.endFault() }},
	{phase: phase{name: "no EDEK is ready", alerts: []string{"ClavigerQueueDry"},
		allowed: []string{"ClavigerNoChanges", "ClavigerCheckFails"}},
		symptom: `claviger_edek_queue_ready 0`, begin: hangRefill, repair: heal},
}

// untilFaultEnds calls f repeatedly, in a goroutine, until the fault ends.
func (d *deployment) untilFaultEnds(f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			f(ctx)
		}
	})
	before := d.endFault
	d.endFault = func() {
		cancel()
		running.Wait()
		if d.endFault = before; before != nil {
			before()
		}
	}
}

// loseLogins logs the library out every 300 ms.
func loseLogins(d *deployment) {
	d.untilFaultEnds(func(context.Context) {
		d.kms[0].module.LogOut()
		time.Sleep(300 * time.Millisecond) // the pace of the fault
	})
}

// hangRefill makes the refill of one key hang, so that nothing refills the queues.
func hangRefill(d *deployment) {
	n := d.kms[0]
	n.create("stuck")
	if _, err := n.generate(d.t.Context(), "stuck", 1); err != nil {
		d.t.Fatal(err)
	}
	n.module.HangKey("stuck@0")
	for range 12 { // until the queue of the key is empty, and a request hangs
		ctx, cancel := context.WithTimeout(d.t.Context(), 500*time.Millisecond)
		_, err := n.generate(ctx, "stuck", 1)
		cancel()
		if err != nil {
			return
		}
	}
	d.t.Error("the key stuck hangs, but requests for its EDEKs still succeed")
}

func lostKeysDeployment(t *testing.T) *deployment {
	t.Helper()
	return newDeployment(t, newHSMNode(t, "alerts-lost", nil)).withLoad()
}

var lostKeysFaults = []fault{{
	phase:   phase{name: "the token has lost a key", alerts: []string{"ClavigerKeysMissing", "ClavigerNoChanges"}},
	symptom: `claviger_hsm_lost_keys 1`, begin: loseKey, check: func(d *deployment) {
		d.checkReadyz("keys in the HSM", "lost@0")
		d.checkCommand("ClavigerKeysMissing", "claviger metastore verify --conf", 3, "MISSING +lost@0", "metastore",
			"verify", "--conf", d.kms[0].dir)
	}, repair: func(d *deployment) { d.endFault() },
}}

// loseKey makes a key, stops the KMS, moves the files of the key out of the token, and starts the KMS.
func loseKey(d *deployment) {
	n := d.kms[0]
	before := objects(d.t, n.token)
	n.create("lost")
	var gone []string
	for _, path := range objects(d.t, n.token) {
		if !strings.Contains(strings.Join(before, " "), path) {
			gone = append(gone, path)
		}
	}
	if len(gone) == 0 {
		d.t.Fatal("the key has no file")
	}
	move := func(from, to string) {
		n.end()
		for _, path := range gone {
			if err := os.Rename(path+from, path+to); err != nil {
				d.t.Fatal(err)
			}
		}
		n.start()
	}
	move("", ".gone")
	d.endFault = func() { move(".gone", "") }
}

// objects lists the files of a token's objects.
func objects(t *testing.T, token softhsm.Token) (paths []string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(tokens, "tokens", "*", "token.object"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), token.Serial) {
			paths, err = filepath.Glob(filepath.Join(filepath.Dir(path), "*.object"))
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return paths
}

func slotsDeployment(t *testing.T) *deployment {
	t.Helper()
	return newDeployment(t, newHSMNode(t, "alerts-slots", map[string]string{
		"claviger.kms.max.concurrent.decrypts": "1", "claviger.kms.max.wait": "10ms"})).withLoad()
}

var slotsFaults = []fault{{
	phase: phase{name: "decrypts get no slot", alerts: []string{"ClavigerOverload"},
		allowed: []string{"ClavigerErrors", "ClavigerCheckFails"}},
	symptom: `claviger_kms_slot_refused_total\{class="decrypt"\} [1-9]`, lasts: true,
	begin: func(d *deployment) {
		n := d.kms[0]
		made, err := n.generate(d.t.Context(), "zone", 1)
		if err != nil {
			d.t.Fatal(err)
		}
		n.module.Delay(faultmodule.Encrypt, 150*time.Millisecond)
		for range 6 {
			d.untilFaultEnds(func(ctx context.Context) { n.decrypt(ctx, made[0]) })
		}
	},
	repair: func(d *deployment) { d.endFault(); heal(d) },
}}

// sourceDeployment makes a KMS that has taken over a key of a keystore file. The file is still its source.
func sourceDeployment(t *testing.T) *deployment {
	t.Helper()
	old := newNode(t, nil)
	old.start()
	old.create("old")
	made, err := old.generate(t.Context(), "old", 1)
	if err != nil {
		t.Fatal(err)
	}
	old.end()
	source := "jceks://file@" + filepath.Join(old.dir, "kms.keystore")
	n := newHSMNode(t, "alerts-source", map[string]string{"hadoop.kms.key.provider.reencryption.source.uri": source,
		"cloudera.hsmkp.initiatemigration": "true",
		"claviger.console.details":         "10.1.0.7"}) // without this, /metrics names the versions
	d := newDeployment(t, n).withLoad()
	if status := n.decrypt(t.Context(), made[0]); status != http.StatusOK {
		t.Fatalf("the source's EDEK: %d", status)
	}
	d.sourceEDEK = made[0]
	return d
}

var sourceFaults = []fault{{
	phase: phase{name: "a client needs a source that is not configured", at: 10 * time.Minute,
		alerts: []string{"ClavigerSourceUsed"}, allowed: []string{"ClavigerCheckFails"}},
	symptom: `claviger_source_edeks_total\{op="unserved"\} 1`,
	begin: func(d *deployment) {
		n := d.kms[0]
		site := filepath.Join(n.dir, "kms-site.xml")
		before, err := os.ReadFile(site)
		if err != nil {
			d.t.Fatal(err)
		}
		n.end()
		var lines []string
		for line := range strings.Lines(string(before)) {
			if !strings.Contains(line, "source.uri") && !strings.Contains(line, "initiatemigration") {
				lines = append(lines, line)
			}
		}
		kmstest.WriteFile(d.t, site, strings.Join(lines, ""))
		n.start()
		if status := n.decrypt(d.t.Context(), d.sourceEDEK); status != http.StatusServiceUnavailable {
			d.t.Errorf("the source's EDEK: %d", status)
		}
		d.endFault = func() {
			n.end()
			kmstest.WriteFile(d.t, site, string(before))
			n.start()
			if status := n.decrypt(d.t.Context(), d.sourceEDEK); status != http.StatusOK {
				d.t.Errorf("the source's EDEK with the source again: %d", status)
			}
		}
	},
	repair: func(d *deployment) { d.endFault() },
}}
