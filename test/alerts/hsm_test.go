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

// hsmPlant is a KMS on a token of that label.
func hsmPlant(label string) func(t *testing.T) *plant {
	return func(t *testing.T) *plant {
		t.Helper()
		return newPlant(t, newHSMNode(t, label, map[string]string{
			"hadoop.security.kms.encrypted.key.cache.size":             "10",
			"hadoop.security.kms.encrypted.key.cache.num.fill.threads": "1"})).loaded()
	}
}

// delayed delays each encryption of the HSM.
func delayed(d time.Duration) func(p *plant) {
	return func(p *plant) { p.kms[0].module.Delay(faultmodule.Encrypt, d) }
}

func heal(p *plant) { p.kms[0].module.Heal() }

var hsmFaults = []fault{
	{phase: phase{name: "each encryption fails",
		alerts:  []string{"ClavigerNotReady", "ClavigerHSMFails", "ClavigerErrors"},
		allowed: []string{"ClavigerCheckFails", "ClavigerHSMLost"}}, // the server looks for the HSM again and again
		shows: `claviger_ready\{for="decrypt"\} 0`, begin: func(p *plant) {
			p.kms[0].module.Order(faultmodule.EncryptInit, faultmodule.Order{Action: faultmodule.Fail,
				Value: p11.CKR_DEVICE_ERROR, Times: faultmodule.Always})
		}, look: func(p *plant) {
			p.readyz("provider", "CKR_DEVICE_ERROR")
			p.shows("ClavigerHSMFails", "claviger hsm inspect --conf", 1, "CKR_DEVICE_ERROR", "hsm", "inspect",
				"--conf", p.kms[0].dir)
		}, mend: heal},
	{phase: phase{name: "an encryption takes 60 ms", alerts: []string{"ClavigerHSMSlow"},
		allowed: []string{"ClavigerQueueDry"}},
		begin: delayed(60 * time.Millisecond), mend: heal},
	{phase: phase{name: "an encryption takes 300 ms", pause: 700 * time.Millisecond,
		alerts: []string{"ClavigerHSMSlow", "ClavigerSlow"}, allowed: []string{"ClavigerQueueDry"}},
		begin: delayed(300 * time.Millisecond), mend: heal},
	{phase: phase{name: "an encryption takes 2.05 s", pause: 2500 * time.Millisecond,
		alerts:  []string{"ClavigerHSMSlow", "ClavigerSlow", "ClavigerVerySlow"},
		allowed: []string{"ClavigerQueueDry"}},
		begin: delayed(2050 * time.Millisecond), mend: heal},
}

var queueFaults = []fault{
	{phase: phase{name: "logins are lost", pause: time.Second, alerts: []string{"ClavigerHSMLost"},
		allowed: []string{"ClavigerErrors", "ClavigerHSMFails"}}, begin: loseLogins,
		mend: func(p *plant) { p.endFault() }},
	{phase: phase{name: "no EDEK is ready", alerts: []string{"ClavigerQueueDry"},
		allowed: []string{"ClavigerNoChanges", "ClavigerCheckFails"}},
		shows: `claviger_edek_queue_ready 0`, begin: hangRefill, mend: heal},
}

// during runs f again and again until the fault ends.
func (p *plant) during(f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			f(ctx)
		}
	})
	before := p.endFault
	p.endFault = func() {
		cancel()
		running.Wait()
		if p.endFault = before; before != nil {
			before()
		}
	}
}

// loseLogins logs the library out again and again.
func loseLogins(p *plant) {
	p.during(func(context.Context) {
		p.kms[0].module.LogOut()
		time.Sleep(300 * time.Millisecond) // the pace of the fault
	})
}

// hangRefill makes the refill of one key hang, so that nothing refills the queues.
func hangRefill(p *plant) {
	n := p.kms[0]
	n.create("stuck")
	if _, err := n.generate(p.t.Context(), "stuck", 1); err != nil {
		p.t.Fatal(err)
	}
	n.module.HangKey("stuck@0")
	for range 12 { // until the queue of the key is empty: then a request hangs, too
		ctx, cancel := context.WithTimeout(p.t.Context(), 500*time.Millisecond)
		_, err := n.generate(ctx, "stuck", 1)
		cancel()
		if err != nil {
			return
		}
	}
	p.t.Error("a key that hangs gives EDEKs")
}

func lostKeysPlant(t *testing.T) *plant {
	t.Helper()
	return newPlant(t, newHSMNode(t, "alerts-lost", nil)).loaded()
}

var lostKeysFaults = []fault{{
	phase: phase{name: "the token has lost a key", alerts: []string{"ClavigerKeysMissing", "ClavigerNoChanges"}},
	shows: `claviger_hsm_lost_keys 1`, begin: loseKey, look: func(p *plant) {
		p.readyz("keys in the HSM", "lost@0")
		p.shows("ClavigerKeysMissing", "claviger metastore verify --conf", 3, "MISSING +lost@0", "metastore", "verify",
			"--conf", p.kms[0].dir)
	}, mend: func(p *plant) { p.endFault() },
}}

// loseKey makes a key, and takes its object from the token while the KMS does not run.
func loseKey(p *plant) {
	n := p.kms[0]
	before := objects(p.t, n.token)
	n.create("lost")
	var gone []string
	for _, path := range objects(p.t, n.token) {
		if !strings.Contains(strings.Join(before, " "), path) {
			gone = append(gone, path)
		}
	}
	if len(gone) == 0 {
		p.t.Fatal("the key has no file")
	}
	move := func(from, to string) {
		n.end()
		for _, path := range gone {
			if err := os.Rename(path+from, path+to); err != nil {
				p.t.Fatal(err)
			}
		}
		n.start()
	}
	move("", ".gone")
	p.endFault = func() { move(".gone", "") }
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

func slotsPlant(t *testing.T) *plant {
	t.Helper()
	return newPlant(t, newHSMNode(t, "alerts-slots", map[string]string{
		"claviger.kms.max.concurrent.decrypts": "1", "claviger.kms.max.wait": "10ms"})).loaded()
}

var slotsFaults = []fault{{
	phase: phase{name: "decrypts get no slot", alerts: []string{"ClavigerOverload"},
		allowed: []string{"ClavigerErrors", "ClavigerCheckFails"}},
	shows: `claviger_kms_slot_refused_total\{class="decrypt"\} [1-9]`, lasts: true,
	begin: func(p *plant) {
		n := p.kms[0]
		made, err := n.generate(p.t.Context(), "zone", 1)
		if err != nil {
			p.t.Fatal(err)
		}
		n.module.Delay(faultmodule.Encrypt, 150*time.Millisecond)
		for range 6 {
			p.during(func(ctx context.Context) { n.decrypt(ctx, made[0]) })
		}
	},
	mend: func(p *plant) { p.endFault(); heal(p) },
}}

// sourcePlant is a KMS that has taken over a key of a keystore file, which is still its source.
func sourcePlant(t *testing.T) *plant {
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
		"claviger.console.details":         "10.1.0.7"}) // Prometheus reads no names of versions
	p := newPlant(t, n).loaded()
	if status := n.decrypt(t.Context(), made[0]); status != http.StatusOK {
		t.Fatalf("the source's EDEK: %d", status)
	}
	p.ofSource = made[0]
	return p
}

var sourceFaults = []fault{{
	phase: phase{name: "a client needs a source that is not configured", at: 10 * time.Minute,
		alerts: []string{"ClavigerSourceUsed"}, allowed: []string{"ClavigerCheckFails"}},
	shows: `claviger_source_edeks_total\{op="unserved"\} 1`,
	begin: func(p *plant) {
		n := p.kms[0]
		site := filepath.Join(n.dir, "kms-site.xml")
		before, err := os.ReadFile(site)
		if err != nil {
			p.t.Fatal(err)
		}
		n.end()
		var lines []string
		for line := range strings.Lines(string(before)) {
			if !strings.Contains(line, "source.uri") && !strings.Contains(line, "initiatemigration") {
				lines = append(lines, line)
			}
		}
		kmstest.WriteFile(p.t, site, strings.Join(lines, ""))
		n.start()
		if status := n.decrypt(p.t.Context(), p.ofSource); status != http.StatusServiceUnavailable {
			p.t.Errorf("the source's EDEK: %d", status)
		}
		p.endFault = func() {
			n.end()
			kmstest.WriteFile(p.t, site, string(before))
			n.start()
			if status := n.decrypt(p.t.Context(), p.ofSource); status != http.StatusOK {
				p.t.Errorf("the source's EDEK with the source again: %d", status)
			}
		}
	},
	mend: func(p *plant) { p.endFault() },
}}
