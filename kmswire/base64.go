package kmswire

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
)

// urlSafe is the encoding of all output: URL-safe and without padding.
var urlSafe = base64.RawURLEncoding

var errBase64 = errors.New("not base64")

// base64Values maps the characters of both alphabets to values; 0xff is for all other
// characters.
var base64Values = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	for i := range len(digits) {
		t[digits[i]] = byte(i)
	}
	t['+'], t['-'], t['/'], t['_'] = 62, 62, 63, 63
	return t
}()

// appendBase64 decodes s and appends the result to dst. It accepts both alphabets,
// even mixed, with and without padding, and white space, because clients differ:
// Hadoop's client uses the standard alphabet for generate and decrypt, and the
// URL-safe one for batches. Other characters are an error; Hadoop (commons-codec)
// ignores them.
func appendBase64[T string | []byte](dst []byte, s T) ([]byte, error) {
	var acc uint32
	n := 0 // digits so far
	i := 0
	for ; i < len(s); i++ {
		c := s[i]
		v := base64Values[c]
		if v == 0xff {
			if c == ' ' || c == '\n' || c == '\r' || c == '\t' {
				continue
			}
			break
		}
		acc = acc<<6 | uint32(v)
		if n++; n%4 == 0 {
			dst = append(dst, byte(acc>>16), byte(acc>>8), byte(acc))
			acc = 0
		}
	}
	pad := 0
	for ; i < len(s); i++ {
		switch s[i] {
		case '=':
			pad++
		case ' ', '\n', '\r', '\t':
		default:
			return dst, errBase64
		}
	}
	switch {
	case n%4 == 1, pad > 0 && (n+pad)%4 != 0, pad > 2:
		return dst, errBase64
	case n%4 == 2:
		dst = append(dst, byte(acc>>4))
	case n%4 == 3:
		dst = append(dst, byte(acc>>10), byte(acc>>2))
	}
	return dst, nil
}

// decodeBase64 is appendBase64 to a new slice. The result is never nil.
func decodeBase64[T string | []byte](s T) ([]byte, error) {
	return appendBase64(make([]byte, 0, len(s)*3/4), s)
}

// The functions below are for EDEKs, which are no secrets. Their tables are so large that the time of a look-up may
// depend on the value, so key material and DEKs use the functions above.

const urlSafeDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// noDigit is the value in digitsAt of a character that is in neither alphabet. No group of digits has this bit.
const noDigit = 1 << 31

// digitsAt has the value of each character of both alphabets at each place of a group of four digits.
var digitsAt = func() (t [4][256]uint32) {
	for at := range t {
		for c, v := range base64Values {
			t[at][c] = noDigit
			if v != 0xff {
				t[at][c] = uint32(v) << (18 - 6*at)
			}
		}
	}
	return t
}()

// digitPairs has the two digits for each value of 12 bits.
var digitPairs = func() (t [1 << 12][2]byte) {
	for i := range t {
		t[i] = [2]byte{urlSafeDigits[i>>6], urlSafeDigits[i&63]}
	}
	return t
}()

// appendPublicBase64 is appendBase64 for a text that is no secret.
func appendPublicBase64(dst, s []byte) ([]byte, error) {
	start := len(dst)
	dst = slices.Grow(dst, len(s)/4*3+1) // 1: PutUint32 writes four bytes for the three of a group
	out := dst[start:cap(dst)]
	size := 0
	for len(s) >= 4 && len(out) >= 4 {
		v := digitsAt[0][s[0]] | digitsAt[1][s[1]] | digitsAt[2][s[2]] | digitsAt[3][s[3]]
		if v >= noDigit {
			break
		}
		binary.BigEndian.PutUint32(out, v<<8)
		s, out, size = s[4:], out[3:], size+3
	}
	return appendBase64(dst[:start+size], s)
}

// appendPublic appends data, which is no secret, in the encoding of all output.
func appendPublic(b, data []byte) []byte {
	start, size := len(b), urlSafe.EncodedLen(len(data))
	b = slices.Grow(b, size)[:start+size]
	out := b[start:]
	for len(data) >= 3 && len(out) >= 4 {
		first, second := &digitPairs[int(data[0])<<4|int(data[1])>>4], &digitPairs[int(data[1]&15)<<8|int(data[2])]
		out[0], out[1], out[2], out[3] = first[0], first[1], second[0], second[1]
		data, out = data[3:], out[4:]
	}
	urlSafe.Encode(out, data)
	return b
}
