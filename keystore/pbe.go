package keystore

import (
	"crypto/cipher"
	"crypto/des"
	"crypto/md5"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"

	"claviger/secret"
)

// The JDK's PBEWithMD5AndTripleDES is a scheme of com.sun.crypto.provider (PBES1Core), and not of a standard. A chain
// of MD5 sums over each half of the salt gives a 3DES key and an IV.
const (
	pbeAlgorithm = "PBEWithMD5AndTripleDES"
	pbeSaltSize  = 8

	// DefaultIterations is the iteration count of current JDKs (KeyProtector's default for jceks.iterationCount).
	// With it an entry opens in 400,000 MD5 rounds, 60 to 80 ms. JDKs before 8u151 used 20.
	DefaultIterations = 200_000
	// MinIterations and MaxIterations are the JDK's own limits for jceks.iterationCount. MaxIterations is also the
	// limit for entries that are read.
	MinIterations = 10_000
	MaxIterations = 5_000_000
)

// ErrPasswordNotASCII is the error for a password that the JDK's JCEKS cannot use. Only the characters U+0020 to
// U+007E are allowed. With another password Hadoop fails at its first new key ("Password is not ASCII").
var ErrPasswordNotASCII = errors.New("a JCEKS entry's password must consist of ASCII characters (space to ~)")

// CheckPassword returns ErrPasswordNotASCII for a password that Java cannot use for a JCEKS entry.
func CheckPassword(password secret.Bytes) error {
	for _, c := range password {
		if c < 0x20 || c > 0x7e {
			return ErrPasswordNotASCII
		}
	}
	return nil
}

// pbeParams is the DER of Java's PBEParameterSpec.
type pbeParams struct {
	Salt       []byte
	Iterations int
}

func newPBEParams(iterations int) (pbeParams, error) {
	if iterations == 0 {
		iterations = DefaultIterations
	}
	if iterations < MinIterations || iterations > MaxIterations {
		return pbeParams{}, fmt.Errorf("iteration count %d is not between %d and %d", iterations, MinIterations,
			MaxIterations)
	}
	p := pbeParams{Salt: make([]byte, pbeSaltSize), Iterations: iterations}
	_, _ = rand.Read(p.Salt) // Read never fails
	return p, nil
}

func parsePBEParams(der []byte) (pbeParams, error) {
	var p pbeParams
	rest, err := asn1.Unmarshal(der, &p)
	switch {
	case err != nil || len(rest) != 0:
		return p, errors.New("encryption parameters are not a DER sequence of salt and iteration count")
	case len(p.Salt) != pbeSaltSize:
		return p, fmt.Errorf("salt of %d bytes, want %d", len(p.Salt), pbeSaltSize)
	case p.Iterations < 1 || p.Iterations > MaxIterations:
		return p, fmt.Errorf("iteration count %d is not between 1 and %d", p.Iterations, MaxIterations)
	}
	return p, nil
}

// derive returns the 3DES block cipher and the IV.
func (p pbeParams) derive(password secret.Bytes) (cipher.Block, []byte, error) {
	if err := CheckPassword(password); err != nil {
		return nil, nil, err
	}
	var salt [pbeSaltSize]byte
	copy(salt[:], p.Salt)
	if [4]byte(salt[:4]) == [4]byte(salt[4:]) {
		// Equal halves would give equal chains of MD5 sums. The JDK reverses one half in this way.
		salt[0], salt[1], salt[2], salt[3] = salt[3], salt[2], salt[1], salt[0]
	}
	var out [2 * md5.Size]byte
	buf := make([]byte, md5.Size+len(password))
	defer func() { clear(out[:]); clear(buf) }()
	for half := range 2 {
		n := copy(buf, salt[4*half:4*half+4])
		copy(buf[n:], password)
		sum := md5.Sum(buf[:n+len(password)])
		copy(buf[md5.Size:], password)
		for range p.Iterations - 1 {
			copy(buf, sum[:])
			sum = md5.Sum(buf)
		}
		copy(out[md5.Size*half:], sum[:])
	}
	block, err := des.NewTripleDESCipher(out[:24])
	if err != nil {
		return nil, nil, err
	}
	return block, append([]byte(nil), out[24:]...), nil
}

func (p pbeParams) encrypt(password secret.Bytes, plain []byte) ([]byte, error) {
	block, iv, err := p.derive(password)
	if err != nil {
		return nil, err
	}
	pad := des.BlockSize - len(plain)%des.BlockSize
	out := make([]byte, len(plain)+pad)
	copy(out, plain)
	for i := len(plain); i < len(out); i++ {
		out[i] = byte(pad)
	}
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(out, out)
	return out, nil
}

// decrypt returns ErrPassword if the padding is wrong. A wrong password gives wrong padding in 255 of 256 cases; in
// the others the plain text is not a Java serialisation.
func (p pbeParams) decrypt(password secret.Bytes, sealed []byte) ([]byte, error) {
	if len(sealed) == 0 || len(sealed)%des.BlockSize != 0 {
		return nil, fmt.Errorf("encrypted content of %d bytes, want a multiple of %d", len(sealed), des.BlockSize)
	}
	block, iv, err := p.derive(password)
	if err != nil {
		return nil, err
	}
	out := make([]byte, len(sealed))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(out, sealed)
	pad := int(out[len(out)-1])
	if pad < 1 || pad > des.BlockSize {
		clear(out)
		return nil, ErrPassword
	}
	for _, c := range out[len(out)-pad:] {
		if int(c) != pad {
			clear(out)
			return nil, ErrPassword
		}
	}
	return out[:len(out)-pad], nil
}
