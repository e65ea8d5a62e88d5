package host

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"claviger/durable"
	"claviger/internal/softhsm"
	"claviger/keyhsm"
	"claviger/owner"
	"claviger/pkcs11"
	"claviger/shellword"
)

// modules are the paths where the client software of an HSM installs its library.
var modules = map[pkcs11.Profile]string{
	pkcs11.Luna:     "/usr/safenet/lunaclient/lib/libCryptoki2_64.so",
	pkcs11.NCipher:  "/opt/nfast/toolkits/pkcs11/libcknfast.so",
	pkcs11.CloudHSM: "/opt/cloudhsm/lib/libcloudhsm_pkcs11.so",
}

// Setup makes the pair of a Key HSM and the folder with its settings.
type Setup struct {
	Folder string
	Bits   int      // of a new pair
	Hosts  []string // names and addresses in a new certificate; empty: those of this host
	// Settings are written into the folder. If KeyID is "", Run makes a new pair. If Certificate is "",
	// Run makes a new certificate.
	Settings keyhsm.Settings

	newPair, newCertificate bool
}

// Complete fills in the settings that were not given. Its errors are about wrong arguments. Call it once,
// before Run.
func (s *Setup) Complete() (err error) {
	set := &s.Settings
	if set.Module == "" {
		if set.Module = modules[set.HSM]; set.HSM == pkcs11.SoftHSM {
			if set.Module, err = softhsm.Module(); err != nil {
				return err
			}
		}
	}
	if s.newPair = set.KeyID == ""; s.newPair {
		id := make([]byte, 16)
		if _, err := rand.Read(id); err != nil {
			return err
		}
		set.KeyID = hex.EncodeToString(id)
	}
	if (set.Certificate == "") != (set.PrivateKey == "") {
		return errors.New("--certificate and --key belong together: give both, or neither to get new ones")
	}
	if s.newCertificate = set.Certificate == ""; s.newCertificate {
		set.Certificate, set.PrivateKey = keyhsm.CertificateFile, keyhsm.PrivateKeyFile
	} else if set.Certificate, err = filepath.Abs(set.Certificate); err == nil {
		set.PrivateKey, err = filepath.Abs(set.PrivateKey)
	}
	if err == nil {
		set.PINFile, err = filepath.Abs(set.PINFile)
	}
	set.Trust = "trust"
	return err
}

// Run makes the pair, the certificate and the settings, and calls report with a line of text for each. It
// first checks everything that needs no token, and writes the settings last. If a step fails, Run undoes
// the steps before it.
func (s *Setup) Run(ctx context.Context, report func(text string)) error {
	if err := s.Settings.Check(s.Folder); err != nil {
		return err
	}
	cfg, err := s.Settings.PKCS11()
	if err != nil {
		return err
	}
	tok, err := pkcs11.Open(ctx, cfg)
	if err != nil {
		return err
	}
	info := tok.Info()
	report(fmt.Sprintf("token %s, serial %s, %s %s: logged in", info.Label, info.Serial, info.Manufacturer, info.Model))
	return errors.Join(s.onToken(ctx, tok, report), tok.Close())
}

// onToken does the steps of Run that need the open token, and the steps after them.
func (s *Setup) onToken(ctx context.Context, tok *pkcs11.Token, report func(string)) (err error) {
	var undo []func() error
	defer func() {
		if err != nil {
			for _, f := range slices.Backward(undo) {
				err = errors.Join(err, f())
			}
		}
	}()
	id, label := s.Settings.ID(), s.Settings.KeyLabel
	if s.newPair {
		if err := owner.RefuseRoot(s.Settings.PINFile); err != nil {
			return err
		}
		if err := tok.GeneratePair(ctx, id, label, s.Bits); err != nil {
			return err
		}
		// The pair has wrapped no deposit yet, so it can be destroyed.
		undo = append(undo, func() error { return tok.DestroyPair(context.WithoutCancel(ctx), id, label) })
	}
	st := keyhsm.NewKeeper(tok, id, label).Status(ctx)
	if st.State != keyhsm.Ready {
		return fmt.Errorf("the pair does not wrap and unwrap: %s", st.Detail)
	}
	report(fmt.Sprintf("RSA pair %q, id %s, %d bits: wraps and unwraps by RSA-OAEP with %s", label, st.KeyID,
		st.KeyBits, st.OAEP))
	if err := durable.MakeFolder(s.Folder, 0o700); err != nil {
		return err
	}
	if s.newCertificate {
		remove, err := s.makeCertificate(report)
		if err != nil {
			return err
		}
		undo = append(undo, remove)
	}
	if err := keyhsm.WriteSettings(s.Folder, s.Settings); err != nil {
		return err
	}
	report(fmt.Sprintf("wrote %s; next: claviger keyhsm trust --conf %s TRUSTEE-CERTIFICATE, then claviger keyhsm "+
		"validate --conf %[2]s", filepath.Join(s.Folder, keyhsm.SettingsFile), shellword.Quote(s.Folder)))
	return nil
}

// makeCertificate makes the certificate and its key, unless an interrupted setup has made them. remove
// removes the files that this call has made.
func (s *Setup) makeCertificate(report func(string)) (remove func() error, err error) {
	cert, hosts := filepath.Join(s.Folder, keyhsm.CertificateFile), s.certificateHosts()
	exists, err := keyhsm.HasCertificate(s.Folder, hosts)
	if err != nil {
		return nil, err
	}
	if exists {
		report(fmt.Sprintf("an interrupted setup has made %s and its key; they are used", cert))
		return func() error { return nil }, nil
	}
	if err := keyhsm.CreateCertificate(s.Folder, hosts); err != nil {
		return nil, err
	}
	report(fmt.Sprintf("wrote %s for %v; trustees need this file", cert, hosts))
	return func() error { return durable.Remove(cert, filepath.Join(s.Folder, keyhsm.PrivateKeyFile)) }, nil
}

// certificateHosts returns Hosts, or else the names and addresses of this host.
func (s *Setup) certificateHosts() []string {
	if len(s.Hosts) > 0 {
		return s.Hosts
	}
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	if host, _, err := net.SplitHostPort(s.Settings.Listen); err == nil && host != "" {
		if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}
