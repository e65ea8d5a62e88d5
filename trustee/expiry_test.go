package trustee

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"claviger"
)

// TestExpiry: a key that expires or has expired is refused as the identity of a folder and as the key of a client that
// registers. So the key is refused before the client makes a deposit.
func TestExpiry(t *testing.T) {
	for what, life := range map[string]uint32{"has expired": 3600, "will expire": 3 * 24 * 3600, "never": 0} {
		created := time.Now().Add(-48 * time.Hour).Truncate(time.Second)
		e, err := openpgp.NewEntity("keytrustee", "client", "kms@h", &packet.Config{
			Algorithm: packet.PubKeyAlgoRSA, RSABits: 2048, KeyLifetimeSecs: life,
			Time: func() time.Time { return created },
		})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		id, _ := pair()
		if _, err := NewFolder(filepath.Join(dir, "f"), id); err != nil {
			t.Fatal(err)
		}
		var public, secret bytes.Buffer
		if err := errors.Join(e.Serialize(&public), e.SerializePrivateWithoutSigning(&secret, nil)); err != nil {
			t.Fatal(err)
		}
		conf, err := os.ReadFile(filepath.Join(dir, "f", ConfFile))
		if err != nil {
			t.Fatal(err)
		}
		party := &Party{entity: e, bits: 2048}
		for name, data := range map[string][]byte{ConfFile: bytes.ReplaceAll(conf, []byte(id.String()),
			[]byte(party.String())), PublicRing: public.Bytes(), PrivateRing: secret.Bytes()} {
			if err := os.WriteFile(filepath.Join(dir, "f", name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, folder := LoadFolder(filepath.Join(dir, "f"))
		_, ring := ReadParty(public.Bytes())
		for where, err := range map[string]error{"LoadFolder": folder, "ReadParty": ring} {
			end := created.Add(time.Duration(life) * time.Second).UTC().Format(time.RFC3339)
			switch {
			case life == 0 && err != nil:
				t.Errorf("%s: %s: %v", what, where, err)
			case life != 0 && (!claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(),
				"expires at "+end) || !strings.Contains(err.Error(), "gpg --edit-key")):
				t.Errorf("%s: %s: %v", what, where, err)
			}
		}
	}
}
