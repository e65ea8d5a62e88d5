package keyring

import (
	"context"

	"claviger"
	"claviger/eek"
	"claviger/provider"
	"claviger/secret"
)

// crypter makes, opens and re-wraps EDEKs, for each kind of provider. Its methods get versions that were read before;
// for a version that was not read, such as a source's, Key and Name are enough. Each method fails as a whole, and
// returns as many elements as it was given, in order.
type crypter interface {
	// Generate makes n EDEKs under v, the current version of its key.
	Generate(ctx context.Context, v claviger.KeyVersion, n int) ([]claviger.EDEK, error)
	// Unwrap returns the DEKs of EDEKs of v. user is the short name of the user on whose behalf they are opened;
	// "" means in this server's own name.
	Unwrap(ctx context.Context, v claviger.KeyVersion, user string, edeks []claviger.EDEK) ([]secret.Bytes, error)
	// Wrap makes one EDEK of each DEK under v, with the IV at the same place. Kind Unsupported, even without a DEK, if
	// the provider wraps only DEKs that it has made.
	Wrap(ctx context.Context, v claviger.KeyVersion, ivs [][]byte, deks []secret.Bytes) ([]claviger.EDEK, error)
	// Reencrypt re-encrypts EDEKs of the versions from under the version to, which is current. EDEKs of to stay
	// unchanged.
	Reencrypt(ctx context.Context, from []claviger.KeyVersion, to claviger.KeyVersion,
		edeks []claviger.EDEK) ([]claviger.EDEK, error)
}

// crypterOf returns the crypter of a provider. read: the provider's versions are read before they are used, so they can
// be pinned. check is the check of its results.
func crypterOf(p provider.Provider, read bool, check eek.SelfCheck) (crypter, error) {
	blocks, encrypts := p.(provider.BlockEncrypter)
	service, serves := p.(provider.EDEKService)
	if encrypts == serves {
		return nil, claviger.Errorf("keyring.New", claviger.Internal, "",
			"provider %s must be exactly one of BlockEncrypter and EDEKService", p.URI())
	}
	if serves {
		return remote{p, service}, nil
	}
	if pinned, ok := p.(provider.Pinned); ok && read {
		return eek.NewPinnedService(pinned).Check(check), nil
	}
	return eek.NewService(blocks).Check(check), nil
}

// SelfCheck says how decrypts and re-encryptions check the results of a primary: "none", "sampled" or "twice".
type SelfCheck = eek.SelfCheck

// remote is the crypter for another KMS.
type remote struct {
	provider provider.Provider
	service  provider.EDEKService
}

func (r remote) Generate(ctx context.Context, v claviger.KeyVersion, n int) ([]claviger.EDEK, error) {
	return r.service.Generate(ctx, v.Key, n)
}

func (r remote) Unwrap(ctx context.Context, v claviger.KeyVersion, user string,
	edeks []claviger.EDEK) ([]secret.Bytes, error) {
	return r.service.Unwrap(ctx, v.Key, user, edeks)
}

func (r remote) Wrap(_ context.Context, v claviger.KeyVersion, _ [][]byte, _ []secret.Bytes) ([]claviger.EDEK, error) {
	return nil, claviger.Errorf("keyring.Reencrypt", claviger.Unsupported, v.Key, "the provider %s wraps no DEK that "+
		"it has not made, so EDEKs of other providers' key versions can't be re-encrypted under it", r.provider.URI())
}

// Reencrypt sends only the EDEKs that are not under to.
func (r remote) Reencrypt(ctx context.Context, _ []claviger.KeyVersion, to claviger.KeyVersion,
	edeks []claviger.EDEK) ([]claviger.EDEK, error) {
	out := append([]claviger.EDEK(nil), edeks...)
	old, at := notUnder(to.Name, edeks)
	if len(old) == 0 {
		return out, nil
	}
	fresh, err := r.service.Reencrypt(ctx, to.Key, old)
	if err != nil {
		return nil, err
	}
	if len(fresh) != len(old) {
		return nil, claviger.Errorf("keyring.Reencrypt", claviger.Internal, to.Key, "primary returned %d EDEKs for %d",
			len(fresh), len(old))
	}
	for i, e := range fresh {
		out[at[i]] = e
	}
	return out, nil
}

// notUnder returns the EDEKs that are not under the version, and their places.
func notUnder(version string, es []claviger.EDEK) (old []claviger.EDEK, at []int) {
	for i, e := range es {
		if e.Version != version {
			old, at = append(old, e), append(at, i)
		}
	}
	return old, at
}

// checkOpened checks that a provider returned one DEK for each EDEK, with the EDEK's length.
func checkOpened(edeks []claviger.EDEK, deks []secret.Bytes) error {
	if len(deks) != len(edeks) {
		return claviger.Errorf("keyring.unwrap", claviger.Internal, edeks[0].Version, "%d DEKs for %d EDEKs",
			len(deks), len(edeks))
	}
	for i := range deks {
		if len(deks[i]) != len(edeks[i].Material) {
			return claviger.Errorf("keyring.unwrap", claviger.Internal, edeks[i].Version,
				"a DEK of %d bytes for an EDEK of %d", len(deks[i]), len(edeks[i].Material))
		}
	}
	return nil
}
