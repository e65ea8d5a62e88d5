package trustee

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"claviger"
)

// unwritable returns a party whose packets cannot be written, because its only signature is empty.
func unwritable(id *Identity) *Party {
	e := *id.entity
	e.Signatures = []*packet.Signature{{}}
	return &Party{entity: &e, bits: id.bits}
}

// withoutPrivate returns an identity that lacks its private keys.
func withoutPrivate(id *Identity) *Identity { return &Identity{Party: id.Party, private: id.entity} }

// curve returns an OpenPGP key pair that is not RSA.
func curve(t *testing.T) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("keytrustee", "", "kms@h", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestNewPartyRefuses: a key that cannot serve as an identity is refused, whether it was sent or read from a ring.
func TestNewPartyRefuses(t *testing.T) {
	a, _ := pair()
	short, err := openpgp.NewEntity("keytrustee", "", "kms@h", &packet.Config{Algorithm: packet.PubKeyAlgoRSA,
		RSABits: 1024})
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(*openpgp.Entity)) *openpgp.Entity {
		e := *a.entity
		e.Subkeys, e.Identities = slices.Clone(e.Subkeys), maps.Clone(e.Identities)
		change(&e)
		return &e
	}
	for what, tt := range map[string]struct {
		key  *openpgp.Entity
		want string
	}{
		"version 6": {&openpgp.Entity{PrimaryKey: &packet.PublicKey{Fingerprint: make([]byte, 32)}},
			"is not an OpenPGP version 4 key"},
		"a curve":             {curve(t), "is not an RSA key"},
		"a short key":         {short, "has 1024 bits"},
		"no subkey":           {changed(func(e *openpgp.Entity) { e.Subkeys = nil }), "no key for encryption"},
		"no signature":        {unwritable(a).entity, "cannot be written"},
		"an unsigned user id": {changed(removeUserIDSignatures), "cannot be read back"},
		"a subkey that expires": {changed(func(e *openpgp.Entity) {
			sig, life := *e.Subkeys[0].Sig, uint32(3600)
			sig.KeyLifetimeSecs = &life
			e.Subkeys[0].Sig = &sig
		}), "expires at"},
	} {
		if p, err := newParty("test", tt.key); p != nil || !claviger.Is(err, claviger.Invalid) ||
			!strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v", what, p, err)
		}
	}
}

// removeUserIDSignatures removes the signatures of all user ids, so no user id is written.
func removeUserIDSignatures(e *openpgp.Entity) {
	for name, id := range e.Identities {
		unsigned := *id
		unsigned.Signatures = nil
		e.Identities[name] = &unsigned
	}
}

// TestReadPartyCurves: a subkey of a public key may use an elliptic curve, but the primary key may not.
func TestReadPartyCurves(t *testing.T) {
	a, _ := pair()
	e := *a.private
	e.Subkeys = slices.Clone(e.Subkeys)
	if err := e.AddEncryptionSubkey(&packet.Config{Algorithm: packet.PubKeyAlgoEdDSA}); err != nil {
		t.Fatal(err)
	}
	var mixed, pure bytes.Buffer
	for _, err := range []error{e.Serialize(&mixed), curve(t).Serialize(&pure)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if p, err := ReadParty(mixed.Bytes()); err != nil || p.String() != a.String() {
		t.Errorf("a subkey with a curve: %v, %v", p, err)
	}
	if p, err := ReadParty(pure.Bytes()); !claviger.Is(err, claviger.Invalid) || !strings.Contains(err.Error(),
		"is not an RSA key") {
		t.Errorf("a primary key with a curve: %v, %v", p, err)
	}
}

// TestUnusableIdentity: an identity without its private keys, or on a host with a wrong clock, cannot make messages or
// files.
func TestUnusableIdentity(t *testing.T) {
	a, _ := pair()
	now, past, far := time.Now(), time.Unix(0, 0), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	public := withoutPrivate(a)
	_, seal := public.Seal([]byte("s"), now)
	_, sign := public.sign([]byte("s"), now)
	_, early := a.sign([]byte("s"), past)
	_, request := requestOf(public, GetArgs{}, now)
	_, deposit := public.seal(Deposit{}, now)
	_, answer := public.NewAnswer("d", nil, nil, now)
	_, unencodable := a.NewAnswer("d", make(chan int), nil, now)
	_, farAnswer := a.NewAnswer("d", nil, nil, far) // JSON has no year 10000
	_, arguments := requestOf(a, make(chan int), now)
	_, farRequest := requestOf(a, GetArgs{}, far)
	_, farDeposit := a.seal(Deposit{}, far)
	_, folder := NewFolder(t.TempDir(), public)
	for what, err := range map[string]error{"Seal": seal, "a private ring": public.secret(io.Discard),
		"a public ring": unwritable(a).Public(io.Discard), "sign": sign, "sign before the identity was made": early,
		"NewRequest": request, "seal": deposit, "NewAnswer": answer, "a result that is not JSON": unencodable,
		"an answer in the year 10000": farAnswer, "arguments that are not JSON": arguments,
		"a request in the year 10000": farRequest, "a deposit in the year 10000": farDeposit, "NewFolder": folder,
		"Save": (&Folder{Path: t.TempDir(), Identity: &Identity{Party: *unwritable(a)}}).Save()} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func requestOf(id *Identity, args any, now time.Time) ([]byte, error) {
	body, _, err := id.NewRequest(VerbGet, id.Fingerprint(), args, now)
	return body, err
}

// TestOpenRefuses: Open refuses a message that is not encrypted to the identity, not signed by the identity, signed at
// a time far in the future, or too long.
func TestOpenRefuses(t *testing.T) {
	a, b := pair()
	now := time.Now()
	message := func(to, by *openpgp.Entity) []byte {
		t.Helper()
		var out bytes.Buffer
		var w io.WriteCloser
		var err error
		if to == nil {
			w, err = openpgp.Sign(&out, by, nil, configAt(now))
		} else {
			w, err = openpgp.Encrypt(&out, []*openpgp.Entity{to}, by, nil, configAt(now))
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err = w.Write([]byte("secret")); err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	early, err := a.Seal([]byte("secret"), now.Add(2*clockTolerance))
	if err != nil {
		t.Fatal(err)
	}
	long, err := a.Seal(make([]byte, maxSecret+1), now)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Open(message(a.entity, a.private), now); err != nil || string(got) != "secret" {
		t.Errorf("a good message: %q, %v", got, err)
	}
	for what, sealed := range map[string][]byte{
		"not encrypted": message(nil, a.private), "not signed": message(a.entity, nil),
		"signed by another": message(a.entity, b.private), "signed too far ahead": early, "too long": long,
	} {
		if got, err := a.Open(sealed, now); !claviger.Is(err, claviger.Invalid) || got != nil {
			t.Errorf("%s: %.20q, %v", what, got, err)
		}
	}
}
