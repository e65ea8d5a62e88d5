package kmswire

import (
	"encoding/base64"
	"errors"
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
